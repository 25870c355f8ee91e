"""Runs of several stages at toy size: when they end, and what goes from one to the next."""

import json
import shutil

import jax
import numpy as np
import pytest
import reference
import toy
from interrupted import stopping_at

from nrt_jax import config, startup, training, workdir
from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.errors import UserError
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.records.checkpoint import Checkpoints
from nrt_jax.tasks.running_sum import RunningSum

UNREPEATABLE = ("time/", "throughput/", "memory/")
ROWS, END = 32, 5  # of a step; the first stage's last step


@pytest.fixture(scope="module")
def values(tmp_path_factory):
  """NRT for eight steps, saved at the end alone."""
  model = tmp_path_factory.mktemp("model")
  tokenizer = word_tokenizer(RunningSum().words, model)
  sizes = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=8)
  sizes |= dict(num_hidden_layers=1)
  hf_weights.write_config(ModelConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes), model)
  values = config.defaults("nrt")
  values.update(total_steps=8, prompts_per_step=16, samples_per_prompt=2)
  values["model"].update(path=str(model), weights="random")
  values["prompt"].update(max_prompt_length=11, max_answer_length=8)
  values["data"].update(source="task:running_sum", examples=40)
  values["sampling"]["max_trace_length"] = 4
  values["optimizer"].update(learning_rate=1e-2, eps=1e-3)
  values["checkpoint"].update(every_steps=0)
  values["logging"].update(samples_every_steps=0, tensorboard=False, progress=False)
  return values


def train(values, directory):
  training.train(config.stages_of(values), str(directory), values)
  return directory


def lines(directory):
  rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
  return [{k: v for k, v in row.items() if not k.startswith(UNREPEATABLE)} for row in rows]


def record(directory) -> dict:
  return Checkpoints(str(directory / "checkpoints"), read_only=True).record()


def final_states(values, directory) -> dict:
  """All arrays of the newest checkpoint, which is one of the last stage, by path; typed keys as their data."""
  setup = startup.open_stages(config.stages_of(values), str(directory))[1][-1].setup
  checkpoints = Checkpoints(str(directory / "checkpoints"), read_only=True)
  states = workdir.restore(setup, checkpoints, checkpoints.latest_step())
  states = states.replace(policy=states.policy.replace(key=jax.random.key_data(states.policy.key)))
  flat = jax.tree_util.tree_flatten_with_path(startup.single_copy(setup, states))[0]
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def assert_same_run(values, left, right):
  """Bit for bit: parameters, optimizer, key and metrics, and where its stages ended."""
  a, b = final_states(values, left), final_states(values, right)
  assert a.keys() == b.keys() and len(a) > 20
  assert [key for key in a if not np.array_equal(a[key], b[key])] == []
  assert lines(left) == lines(right) and record(left) == record(right)


# ---------------------------------------------------------------------------------------------------------- stop rule


@pytest.fixture(scope="module")
def ruled(values):
  """Two stages, of which the first ends by a rule on a metric that is known beforehand: a learning rate that rises."""
  rates = [1e-2 * t / 8 for t in range(1, 9)]
  rule = {"metric": "optimizer/lr", "bar": rates[2] + 1e-5, "episodes": 2 * ROWS - 1}  # met by steps 3 and 4
  assert reference.last_step(rates, rule["bar"], 2) == END
  stages = [{"name": "first", "stop": rule, "optimizer": {"warmup_steps": 8}}, {"name": "second", "total_steps": 2}]
  return toy.changed(values, stages=stages)


@pytest.fixture(scope="module")
def uninterrupted(ruled, tmp_path_factory):
  return train(ruled, tmp_path_factory.mktemp("uninterrupted"))


def test_a_stage_ends_on_success_and_the_next_goes_on_with_the_next_step(ruled, uninterrupted):
  found = lines(uninterrupted)
  assert [row["step"] for row in found] == list(range(1, END + 3))
  rates = [1e-2 * t / 8 for t in range(1, END + 1)]
  assert [row["optimizer/lr"] for row in found] == pytest.approx([*rates, 1e-2, 1e-2])
  states = final_states(ruled, uninterrupted)
  assert states[".policy.step"] == END + 2 and states[".policy.updates"] == 2
  last = record(uninterrupted)
  assert (last["stage"], last["step"], last["ends"], last["window"], last["succeeded"]) == (1, 2, [END], [], False)


def test_however_often_it_is_saved_and_killed_it_ends_with_the_same_step(ruled, uninterrupted, tmp_path, monkeypatch):
  """Saving fetches the metrics of a step before the next one is dispatched: the rule must not see them earlier.

  Killed with its window half full; as the rule is met, and the last step has begun; in the second stage.
  """
  often = toy.changed(ruled, checkpoint__every_steps=1)
  for stop_at, stage, met in ((1, 0, False), (END - 1, 0, True), (END + 1, 1, False)):
    with stopping_at(monkeypatch, stop_at):
      train(often, tmp_path)
    assert (record(tmp_path)["stage"], record(tmp_path)["succeeded"]) == (stage, met)
  train(often, tmp_path)
  assert_same_run(often, tmp_path, uninterrupted)


def test_a_metric_that_the_method_lacks_is_named_before_anything_is_compiled(values, tmp_path, monkeypatch):
  monkeypatch.setattr(training.host_grading, "compile_programs", lambda *_: pytest.fail("compiled"))
  stages = [{"name": "a"}, {"name": "b", "stop": {"metric": "completion/acuracy"}}]
  with pytest.raises(UserError) as error:
    train(toy.changed(values, stages=stages), tmp_path / "run")
  text = str(error.value)
  assert text.startswith("stop.metric of stage 'b' (algorithm.name 'nrt'): found 'completion/acuracy', allowed: ")
  assert "answer/logp" in text and "\n" not in text and not (tmp_path / "run").exists()
  rule = {"name": "b", "algorithm": {"name": "grpo", "verifier": "host"}, "stop": {"metric": "completion/accuracy"}}
  startup.open_stages(config.stages_of(toy.changed(values, stages=[rule])), None)


# ----------------------------------------------------------------------------------------------------------- curricula


def test_a_curriculum_compiles_once_and_resumes_inside_of_any_of_its_stages(values, tmp_path, monkeypatch):
  """Stages that differ in their task's option alone share a program."""
  rule = {"metric": "optimizer/lr", "bar": 1e-2 / 8, "episodes": 1}  # met by the first step, so that it ends with two
  curriculum = {"option": "n_digits", "values": [6, 4, 8], **rule}
  climbs = toy.changed(values, curriculum=curriculum, total_steps=3, optimizer__warmup_steps=8)
  compiled, compile_programs = [], training.host_grading.compile_programs

  def counted(setup, *rest):
    compiled.append(setup.run.stage)
    return compile_programs(setup, *rest)

  monkeypatch.setattr(training.host_grading, "compile_programs", counted)
  whole, killed = train(climbs, tmp_path / "whole"), tmp_path / "killed"
  assert compiled == ["main_n_digits_6"]
  assert [row["step"] for row in lines(whole)] == list(range(1, 8)) and record(whole)["ends"] == [2, 2]
  with stopping_at(monkeypatch, 3):
    train(climbs, killed)
  assert (record(killed)["stage_name"], record(killed)["step"]) == ("main_n_digits_4", 2)
  train(climbs, killed)
  assert_same_run(climbs, killed, whole)
  assert compiled[1:] == ["main_n_digits_6", "main_n_digits_8"]


# ------------------------------------------------------------------------------------------------- a wider token space


@pytest.fixture(scope="module")
def widening(values):
  """Sums of two digits and the base's own name, and then of five, whose rows alone are trained."""
  few = {"name": "few", "total_steps": 3, "data": {"task_options": {"base": 2}}, "tokens": {"active": "data"}}
  optimizer = {"carry_moments": True, "trainable": "token_rows", "ema_decay": 0.5}
  all_of_them = {"name": "all", "total_steps": 2, "optimizer": optimizer, "data": {"task_options": {"base": 5}}}
  return toy.changed(values, stages=[few, all_of_them], checkpoint__keep_last=9)


@pytest.fixture(scope="module")
def widened(widening, tmp_path_factory):
  return train(widening, tmp_path_factory.mktemp("widened"))


def test_a_stage_uses_the_tokens_of_its_data_and_the_last_one_all(widening):
  tokenizer, stages = startup.open_stages(config.stages_of(widening))
  first, last = (stage.setup.model.vocab_inactive for stage in stages)
  assert tokenizer.convert_ids_to_tokens(first) == ["3", "4", "5"] and last == ()
  size = len(tokenizer)
  says = [startup.describe_data(stage).partition("; chance")[0] for stage in stages]
  assert says == [f"stage few: 40 examples; {size - 3} of {size} tokens", "stage all: 40 examples"]


def test_the_models_own_end_token_may_lie_beyond_the_tokenizer(widening, tmp_path):
  """As in a benchmark's directory: a published config.json beside a tokenizer of a few words."""
  shutil.copytree(widening["model"]["path"], tmp_path / "model")
  file = tmp_path / "model" / "config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), "vocab_size": 600, "eos_token_id": 512}))
  for stages in (widening["stages"], []):
    values = toy.changed(widening, model__path=str(tmp_path / "model"), stages=stages)
    _, (first, *_) = startup.open_stages(config.stages_of(values))
    assert 512 in first.setup.form.end_ids and first.setup.model.vocab_size == 600
    assert first.setup.model.vocab_inactive == ((3, 4, 5) if stages else ())


def test_new_rows_start_anew_and_old_ones_go_on_with_their_moments(widening, widened):
  _, (few, whole) = startup.open_stages(config.stages_of(widening), str(widened))
  with jax.set_mesh(few.setup.mesh):
    states = workdir.restore(few.setup, Checkpoints(str(widened / "checkpoints"), read_only=True), 3)
    before = jax.device_get(states.policy.replace(key=jax.random.key_data(states.policy.key)))
    after = startup.next_states(few, whole, states, 3).policy
    after = jax.device_get(after.replace(key=jax.random.key_data(after.key)))
  new, old = [3, 4, 5], [i for i in range(few.setup.form.vocab_size_needed) if i not in (3, 4, 5)]
  moments = {name: (getattr(before.opt_state[1], name), getattr(after.opt_state[1], name)) for name in ("mu", "nu")}
  for part, name, turn in (("embedder", "embedding", np.asarray), ("head", "kernel", np.transpose)):
    start, now = turn(before.params[part][name]), turn(after.params[part][name])
    np.testing.assert_array_equal(now[old], start[old])
    assert np.abs(now[new] - start[new]).max(1).min() > 1e-3  # what was there has never been trained
    for was, goes_on in moments.values():
      assert set(goes_on) == {"embedder", "head"} and set(was) == {*goes_on, "layers", "final_norm"}
      np.testing.assert_array_equal(turn(goes_on[part][name]), turn(was[part][name]))
      assert not turn(goes_on[part][name])[new].any() and turn(goes_on[part][name])[old].any()
  jax.tree.map(np.testing.assert_array_equal, after.params["layers"], before.params["layers"])
  assert (after.opt_state[1].count, after.opt_state[-1].count, after.updates, after.step) == (3, 0, 0, 3)
  np.testing.assert_array_equal(after.key, before.key)


def test_the_trunk_stays_and_the_export_is_the_average_of_the_rows(widening, widened):
  checkpoints = Checkpoints(str(widened / "checkpoints"), read_only=True)
  _, (few, whole) = startup.open_stages(config.stages_of(widening), str(widened))
  ends = ((few, 3), (whole, 5))
  first, last = (jax.device_get(workdir.restore(stage.setup, checkpoints, n).policy.params) for stage, n in ends)
  jax.tree.map(np.testing.assert_array_equal, last["layers"], first["layers"])
  model = hf_weights.read_model_config(widened / "export")
  exported = hf_weights.load_params(widened / "export", model)
  average = workdir.read_policy(str(widened), model, averaged=True)
  jax.tree.map(np.testing.assert_array_equal, exported, average)
  assert not np.array_equal(exported["embedder"]["embedding"], last["embedder"]["embedding"])


def test_killed_on_either_side_of_new_tokens_it_resumes_bit_for_bit(widening, widened, tmp_path, monkeypatch):
  for stop_at, done in ((2, 3), (4, 5)):  # as the stage's last step has begun; in the one with new tokens
    with stopping_at(monkeypatch, stop_at):
      train(widening, tmp_path)
    assert Checkpoints(str(tmp_path / "checkpoints"), read_only=True).latest_step() == done
  train(widening, tmp_path)
  assert_same_run(widening, tmp_path, widened)


def test_moments_go_on_only_where_they_are_the_same(values):
  for changes, says in (
    ({"name": "sgd"}, "name 'sgd' behind 'adamw', allowed: the same in both, or false"),
    ({"moment_dtype": "int8"}, "moment_dtype 'int8' behind 'float32', allowed: the same in both, or false"),
  ):
    stages = [{"name": "a"}, {"name": "b", "optimizer": {"carry_moments": True, **changes}}]
    with pytest.raises(UserError) as error:
      startup.open_stages(config.stages_of(toy.changed(values, stages=stages)))
    assert str(error.value) == f"optimizer.carry_moments of stage 'b': found true with {says}"
