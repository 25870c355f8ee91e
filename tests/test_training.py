"""Whole runs at toy size: stages, resuming after any interruption, saving and exporting."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import toy
from interrupted import stopping_at
from paths import ROOT

from nrt_jax import config, training, workdir
from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.errors import UserError
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.records.checkpoint import Checkpoints
from nrt_jax.step import policy
from nrt_jax.tasks.running_sum import RunningSum

DRIVER = """
import json, sys
from nrt_jax import config, training
values = json.load(open(sys.argv[1]))
training.train(config.stages_of(values), sys.argv[2], values)
"""
UNREPEATABLE = ("time/", "throughput/", "memory/")


@pytest.fixture(scope="module")
def values(tmp_path_factory):
  """Two stages of four steps: next-token prediction, then NRT with a frozen reference. Saved every second step."""
  model = tmp_path_factory.mktemp("model")
  tokenizer = word_tokenizer(RunningSum().words, model)
  sizes = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=8)
  hf_weights.write_config(ModelConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes), model)
  values = config.defaults("nrt")
  values.update(total_steps=4, prompts_per_step=16, samples_per_prompt=2)
  values["model"].update(path=str(model), weights="random", layer_loop="scan")
  values["prompt"].update(max_prompt_length=11, max_answer_length=8)
  values["data"].update(source="task:running_sum", examples=40, task_options={"trace_share": 0.5})
  values["sampling"]["max_trace_length"] = 5
  values["algorithm"].update(base_policy="reference", reference="frozen")
  values["optimizer"].update(learning_rate=1e-2, eps=1e-3)
  values["checkpoint"].update(every_steps=2, keep_last=2, keep_best="eval/heldout/accuracy")
  values["evaluation"].update(
    data={"source": "task:running_sum", "split": "test", "examples": 20}, batch_prompts=16, every_steps=3
  )
  values["logging"].update(samples_every_steps=2, samples_per_step=2, trace_moved_every=2, tensorboard=False)
  values["stages"] = [
    {"name": "pretrain", "algorithm": {"name": "sft"}, "data": {"max_trace_length": 8}},
    {"name": "nrt", "optimizer": {"minibatches": 2, "ema_decay": 0.5}},
  ]
  return values


def train(values, directory):
  training.train(config.stages_of(values), str(directory), values)
  return directory


@pytest.fixture(scope="module")
def uninterrupted(values, tmp_path_factory):
  return train(values, tmp_path_factory.mktemp("uninterrupted"))


def lines(directory, name="metrics.jsonl"):
  rows = [json.loads(line) for line in (directory / name).read_text().split("\n") if line]
  return [{k: v for k, v in row.items() if not k.startswith(UNREPEATABLE)} for row in rows]


def final_states(values, directory):
  """All arrays of the newest checkpoint, by path; typed keys as their data."""
  runs = config.stages_of(values)
  tokenizer, form = policy.open_tokenizer(runs[-1].model, runs[-1].prompt)
  model = policy.read_architecture(runs[-1].model, form)
  setup = training.programs.Setup(runs[-1], model, form, None)
  checkpoints = Checkpoints(str(directory / "checkpoints"), read_only=True)
  states = workdir.restore(setup, checkpoints, checkpoints.latest_step())
  states = states.replace(policy=states.policy.replace(key=jax.random.key_data(states.policy.key)))
  flat = jax.tree_util.tree_flatten_with_path(states)[0]
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def assert_same_run(values, left, right):
  """Bit for bit: parameters, optimizer, key, metrics and samples."""
  a, b = final_states(values, left), final_states(values, right)
  assert a.keys() == b.keys() and len(a) > 30
  assert [key for key in a if not np.array_equal(a[key], b[key])] == []
  assert lines(left) == lines(right)
  assert lines(left, "samples.jsonl") == lines(right, "samples.jsonl")


def test_a_run_leaves_what_its_users_look_for(uninterrupted, values):
  names = {path.name for path in uninterrupted.iterdir()}
  assert names == {"config.json", "inputs.json", "metrics.jsonl", "samples.jsonl", "tokenizer", "checkpoints", "export"}
  assert json.loads((uninterrupted / "config.json").read_text()) == json.loads(json.dumps(values))
  steps = [row["step"] for row in lines(uninterrupted) if "loss/total" in row]
  assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
  evaluated = [row["step"] for row in lines(uninterrupted) if "eval/heldout/accuracy" in row]
  assert evaluated == [0, 3, 4, 7, 8]  # at the start, every third step of each stage, and at each stage's end


def test_samples_show_question_trace_and_probabilities(uninterrupted):
  pretrain, *_, nrt = lines(uninterrupted, "samples.jsonl")
  assert pretrain["question"].startswith("add ")
  assert nrt["answer_tokens"][:3] == ["the", " sum", " is"] and nrt["answer_tokens"][-1].strip() == "<eos>"
  assert "".join(nrt["trace_tokens"]) == nrt["trace"] and len(nrt["trace_tokens"]) > 1
  assert len(nrt["c"]) == len(nrt["c_empty_trace"]) == len(nrt["answer_tokens"])
  assert all(0 < c <= 1 for c in nrt["c"] + nrt["c_empty_trace"])
  for sample in lines(uninterrupted, "samples.jsonl"):  # those of the supervised stage have traces of the data
    gain = np.log(sample["c"]).sum() - np.log(sample["c_empty_trace"]).sum()
    assert sum(sample["trace_moved"]) == pytest.approx(gain, abs=1e-3) and sample["trace_moved_every"] == 2
    text = [piece for piece in sample["trace_tokens"] if piece.strip() not in ("<|response_start|>", "<eos>")]
    assert len(sample["trace_moved"]) == len(text) // 2 + len(text) % 2


def test_the_state_goes_through_all_stages(uninterrupted, values):
  states = final_states(values, uninterrupted)
  assert states[".policy.step"] == 8  # all stages
  assert states[".policy.updates"] == 8  # 4 steps of 2 minibatches in the last stage
  # The frozen reference is the policy at the stage's start: step 4's checkpoint is gone, but the first step saw no gap.
  moved = {k: v for k, v in states.items() if k.startswith(".policy.params")}
  base = {k.replace(".reference", ".policy.params"): v for k, v in states.items() if k.startswith(".reference")}
  assert moved.keys() == base.keys() and any(not np.array_equal(moved[k], base[k]) for k in moved)


def test_the_export_is_the_final_policy(uninterrupted, values, tmp_path):
  """Its average, where there is one; whether it is written by the run or from its checkpoint."""
  model = hf_weights.read_model_config(uninterrupted / "export")
  workdir.export_checkpoint(str(uninterrupted), str(tmp_path))
  average, trained = (workdir.read_policy(str(uninterrupted), model, averaged=a) for a in (True, False))
  for directory in (uninterrupted / "export", tmp_path):
    exported = hf_weights.load_params(directory, model)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), exported, average)))
  assert not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), average, trained)))


def test_the_same_command_again_changes_nothing(uninterrupted, values):
  before = {path: path.read_bytes() for path in uninterrupted.glob("*.jsonl")}
  train(values, uninterrupted)
  assert before == {path: path.read_bytes() for path in uninterrupted.glob("*.jsonl")}


def test_a_signal_that_comes_too_late_is_passed_on(values, uninterrupted, monkeypatch):
  """While the policy is exported: the run ends as it would have, and then whoever waits for the signal gets it."""
  export, passed_on = training.workdirs.export, []

  def interrupted(*arguments):
    signal.raise_signal(signal.SIGTERM)
    export(*arguments)
    assert not passed_on

  monkeypatch.setattr(training.workdirs, "export", interrupted)
  before = signal.signal(signal.SIGTERM, lambda *_: passed_on.append(True))
  try:
    assert training.train(config.stages_of(values), str(uninterrupted), values)
  finally:
    signal.signal(signal.SIGTERM, before)
  assert passed_on == [True]


def test_a_script_of_several_runs_ends_with_the_one_that_is_stopped(monkeypatch):
  """None of them asks `train` how it ended, since one that forgets to takes an unfinished run for a result."""
  for ended in (True, False):
    monkeypatch.setattr(training, "train", lambda *_, ended=ended: ended)
    with contextlib.nullcontext() if ended else pytest.raises(SystemExit, match="143"):
      training.train_to_end([], "runs")
  scripts = [path for place in ("experiments", "nrt_jax/commands") for path in (ROOT / place).rglob("*.py")]
  assert not [path.name for path in scripts if "training.train(" in path.read_text()]


# Noticed one step later: in step 3, which is due an evaluation; at a stage's end; in a stage's first step; at the end.
@pytest.mark.parametrize("stop_at", [2, 3, 4, 7])
def test_sigterm_saves_and_the_same_command_resumes(values, uninterrupted, tmp_path, monkeypatch, stop_at):
  with stopping_at(monkeypatch, stop_at):
    train(values, tmp_path)
  done = Checkpoints(str(tmp_path / "checkpoints"), read_only=True).latest_step()
  assert stop_at <= done <= stop_at + 1  # metrics are written one step late
  assert not (tmp_path / "export").exists()
  amend, ranked = Checkpoints.amend, []

  def noted(self, step, record, metrics):
    ranked.append(step)
    amend(self, step, record, metrics)
    assert self.best_step() is not None and "eval/heldout/accuracy" in metrics

  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, "amend", noted)
    train(values, tmp_path)
    if stop_at == 7:
      train(values, tmp_path)  # nothing is owed any more
  assert ranked == {2: [3], 3: [4], 7: [8]}.get(stop_at, [])  # checkpoints that were saved before they were evaluated
  assert_same_run(values, tmp_path, uninterrupted)


def test_sigkill_at_any_moment_resumes_bit_for_bit(values, uninterrupted, tmp_path):
  """A process of its own is killed three times, at other points of both stages, and then left alone."""
  run = tmp_path / "run"
  (tmp_path / "values.json").write_text(json.dumps(values))
  for until in (2, 5, 7):
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "values.json"), str(run)]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    wait_for_step(process, run, until)
    process.kill()
    process.wait()
  train(values, run)
  assert_same_run(values, run, uninterrupted)


def wait_for_step(process, run, step):
  """Returns as soon as the metrics of `step` are on disk."""
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline:
    if (run / "metrics.jsonl").exists() and f'"step": {step},' in (run / "metrics.jsonl").read_text():
      return
    assert process.poll() is None, "the run ended before it could be killed"
    time.sleep(0.02)
  raise AssertionError(f"no step {step} within the time")


def test_another_run_can_start_from_its_policy(values, uninterrupted, tmp_path):
  fresh = json.loads(json.dumps({**values, "from_checkpoint": str(uninterrupted), "stages": [], "total_steps": 1}))
  fresh["optimizer"]["learning_rate"] = 0.0
  train(fresh, tmp_path)
  model = hf_weights.read_model_config(uninterrupted / "export")
  left, right = workdir.read_policy(str(tmp_path), model), workdir.read_policy(str(uninterrupted), model)
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), left, right)))
  assert any(np.abs(np.asarray(a)).max() > 0 for a in jax.tree.leaves(left))


def test_another_run_can_start_from_its_policy_over_another_tensor_mesh(values, uninterrupted, tmp_path):
  """Its 15 words need a row of padding over two devices, none on one: there and back the policy is the same."""
  model = hf_weights.read_model_config(uninterrupted / "export")
  source = uninterrupted
  for ways in (2, 1):
    fresh = json.loads(json.dumps({**values, "from_checkpoint": str(source), "stages": [], "total_steps": 1}))
    fresh["optimizer"]["learning_rate"] = 0.0
    fresh["parallel"].update(data=-1, tensor=ways)
    source = tmp_path / str(ways)
    train(fresh, source)
    found, expected = (workdir.read_policy(str(run), model) for run in (source, uninterrupted))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_pmap_makes_the_same_run(values, uninterrupted, tmp_path):
  pmapped = json.loads(json.dumps(values))
  pmapped["parallel"]["kind"] = "pmap"
  train(pmapped, tmp_path)
  for left, right in zip(lines(tmp_path), lines(uninterrupted), strict=True):
    assert left.keys() == right.keys()
    for name in ("loss/total", "reward/mean", "trace/length_mean", "answer/logp", "eval/heldout/trace_length"):
      if name in right:
        assert left[name] == pytest.approx(right[name], rel=1e-3, abs=1e-4), (left["step"], name)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"parallel__fsdp": 3}, ("parallel", "fsdp=3", "8 devices")),
    ({"prompts_per_step": 12}, ("prompts_per_step", "12", "multiple of 8")),
    ({"parallel__micro_batches": 3}, ("parallel.micro_batches", "3", "divisor of 2")),
    ({"sampling__wave_prompts": 4}, ("sampling.wave_prompts", "4")),
    ({"evaluation__batch_prompts": 20}, ("evaluation.batch_prompts", "20", "8")),
    ({"parallel__tensor": 4, "parallel__data": 2}, ("kv_heads", "2", "4", "tensor")),
    ({"model__path": "/no/such/model"}, ("/no/such/model",)),
    ({"from_checkpoint": "/no/such/run"}, ("/no/such/run",)),
    ({"evaluation__data__source": "nothing.jsonl"}, ("evaluation.data.source: nothing.jsonl: no such file",)),
    ({"checkpoint__keep_best": "eval/heldout/acuracy"}, ("checkpoint.keep_best", "did you mean", "heldout/accuracy")),
    ({"evaluation__data": None}, ("checkpoint.keep_best", "eval/heldout/accuracy", "evaluation.data")),
  ],
)
def test_mistakes_are_found_before_anything_is_compiled(values, tmp_path, monkeypatch, changes, words):
  monkeypatch.setattr(training.programs, "build_train_step", lambda setup: pytest.fail("compiled"))
  with pytest.raises(UserError) as error:
    train(toy.changed(values, **changes), tmp_path / "run")
  assert all(word in str(error.value) for word in words), str(error.value)
  assert "\n" not in str(error.value)


def test_pmap_is_for_one_host(values, tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(UserError, match="parallel.kind: found 'pmap' in a run of 2 processes, allowed: jit"):
    train(toy.changed(values, parallel__kind="pmap"), tmp_path)


def test_a_workdir_whose_data_has_become_smaller_is_refused(values, uninterrupted):
  before, smaller = (uninterrupted / "config.json").read_bytes(), toy.changed(values, data__examples=20)
  with pytest.raises(UserError, match="data.examples: 40 in the workdir, 20 now"):
    train(smaller, uninterrupted)
  with pytest.raises(UserError, match=r"position \(1, 24\) lies outside of a data set of 20 examples"):
    training.train(config.stages_of(smaller), str(uninterrupted), smaller, allow_change=["data"])
  assert (uninterrupted / "config.json").read_bytes() == before


def test_a_workdir_of_other_stages_is_refused(values, uninterrupted):
  other = toy.changed(values, stages=[{"name": "something else"}, {"name": "nrt"}])
  other["stages"][1]["name"] = "and this"
  with pytest.raises(UserError, match="stage 'nrt'.*something else, and this"):
    train(other, uninterrupted)
