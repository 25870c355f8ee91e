"""Reinforcement learning from verifiable rewards: rows of the table against lists, and graders on the host."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import completions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from completions import KINDS, MARKER_IDS, PROMPTS, SAMPLES, B, G, R, collected, tools

from nrt_jax import config as configs
from nrt_jax import hf, host_grading, programs, sharding, tasks, training
from nrt_jax.algorithms import ALGORITHMS, rlvr
from nrt_jax.architecture import ModelConfig
from nrt_jax.arrays import repeat_rows
from nrt_jax.checkpoint import Checkpoints
from nrt_jax.errors import UserError
from nrt_jax.metrics import MetricsWriter
from nrt_jax.prompts import word_tokenizer
from nrt_jax.tasks.running_sum import RunningSum

ROWS = ("grpo", "dr_grpo", "dapo", "rloo", "gspo")
NO_REFERENCE = {"reference": "none", "kl_coef": 0.0}


# ------------------------------------------------------------------------------------------------- inside the program


def test_token_match():
  found = rlvr.token_match(MARKER_IDS, repeat_rows(jax.tree.map(jnp.asarray, PROMPTS), G), completions.rollouts())
  np.testing.assert_array_equal(found, [kind == "right" for group in KINDS for kind in group])


@pytest.mark.parametrize(
  "name,over,minibatches",
  [
    *((name, {}, 1) for name in ROWS),
    ("grpo", {"format_reward": 0.25, "wrong_reward": -0.5, "scale": "none"}, 2),
    ("dapo", {"mask_unended": False, "long_buffer": 4}, 1),
    ("dapo", {"normalisation": "sequence"}, 2),
  ],
)
def test_rows_against_lists(name, over, minibatches):
  config = ALGORITHMS[name].config(**NO_REFERENCE, **over)
  made = collected(name, config, minibatches=minibatches)
  expected = reference.rlvr_rows(config, SAMPLES, G, R, minibatches)
  np.testing.assert_allclose(made.samples["reward"], [row["reward"] for row in expected], rtol=1e-6)
  np.testing.assert_allclose(made.samples["advantage"], [row["advantage"] for row in expected], rtol=1e-5, atol=1e-6)
  for n, (row, sample) in enumerate(zip(expected, SAMPLES)):
    columns = np.flatnonzero(np.asarray(made.batch.sampled_mask_NL[n]))
    np.testing.assert_array_equal(made.batch.token_NL[n][columns], sample["sampled"])
    np.testing.assert_allclose(made.batch.behaviour_logp_NL[n][columns], sample["logp"], rtol=1e-6)
    np.testing.assert_allclose(made.batch.trace_coef_NL[n][columns], row["coef"], rtol=1e-5, atol=1e-7)
    assert np.abs(made.batch.trace_coef_NL[n]).sum() == pytest.approx(np.abs(row["coef"]).sum(), rel=1e-5)  # no others
  assert np.abs(made.batch.trace_coef_NL).max() > 1e-3


def test_advantages_by_hand():
  """Group 0 is 1, 0, 0, 0: mean 1/4, unbiased std 1/2. Group 2 is 1, 1, 1, 0; group 3 all right."""
  by_row = {
    "grpo": [[1.5, -0.5, -0.5, -0.5], [0.5, 0.5, 0.5, -1.5]],
    "dr_grpo": [[0.75, -0.25, -0.25, -0.25], [0.25, 0.25, 0.25, -0.75]],
    "rloo": [[1, -1 / 3, -1 / 3, -1 / 3], [1 / 3, 1 / 3, 1 / 3, -1]],
    "gspo": [[1.5, -0.5, -0.5, -0.5], [0.5, 0.5, 0.5, -1.5]],
    # Rewards 1 and -1: mean -1/2, std 1. In group 2 the wrong one hit the limit: left out, and the rest is flat.
    "dapo": [[1.5, -0.5, -0.5, -0.5], [0, 0, 0, 0]],
  }
  for name, (first, third) in by_row.items():
    made = collected(name, ALGORITHMS[name].config(**NO_REFERENCE))
    advantage = np.asarray(made.samples["advantage"]).reshape(B, G)
    np.testing.assert_allclose(advantage[[0, 2]], [first, third], rtol=1e-5, atol=1e-6, err_msg=name)
    assert not advantage[[1, 3]].any()


def test_dapo_normalises_by_the_tokens_that_count():
  """Only group 0 counts: each token weighs 1 over its tokens, whatever else was sampled."""
  made = collected("dapo", ALGORITHMS["dapo"].config())
  tokens = sum(len(s["sampled"]) for s in SAMPLES[:G])
  np.testing.assert_allclose(made.batch.trace_weight_NL.max(), 1 / tokens, rtol=1e-6)
  assert not made.batch.trace_mask_NL[G:].any()
  with_penalty = collected("dapo", ALGORITHMS["dapo"].config(mask_unended=False, long_buffer=4))
  # Penalties differ in the hopeless group 1, but its verdicts don't: no signal. Group 2 has a wrong one now.
  assert not with_penalty.batch.trace_mask_NL[G : 2 * G].any() and with_penalty.batch.trace_mask_NL[2 * G :].any()
  np.testing.assert_array_equal(with_penalty.samples["reward"][:G], [1, -1, -1, -1])


def test_metrics():
  sums = collected("dr_grpo", ALGORITHMS["dr_grpo"].config()).sums
  mean = {name: float(value[0] / value[1]) for name, value in sums.items() if isinstance(value, tuple)}
  assert mean["completion/accuracy"] == pytest.approx(8 / 16)
  assert mean["reward/mean"] == pytest.approx(8 / 16)
  lengths, traces = [], []
  for s in SAMPLES:
    text = s["sampled"][:-1] if s["ended"] else s["sampled"]
    starts = [t for t in range(len(text)) if tuple(text[t : t + 2]) == MARKER_IDS]
    lengths.append(len(text))
    traces.append(starts[0] if starts else len(text))
  assert mean["completion/length_mean"] == pytest.approx(np.mean(lengths))
  assert mean["trace/length_mean"] == pytest.approx(np.mean(traces)) and sums["trace/length_max"] == max(traces)


def test_kl_in_loss_and_in_reward():
  """GRPO's k3 goes to the loss; RLOO's k1, summed over the completion, is subtracted from the reward."""
  shift = 0.3

  def score_batch(params, batch):
    return jnp.where(batch.trace_mask_NL, batch.behaviour_logp_NL - shift, 0)

  grpo = collected("grpo", ALGORITHMS["grpo"].config(), score_batch=score_batch)
  np.testing.assert_allclose(grpo.batch.reference_logp_NL, score_batch(None, grpo.batch))

  def total(config):
    given = tools(log_probs=lambda *_, **__: (grpo.batch.behaviour_logp_NL, 0 * grpo.batch.behaviour_logp_NL))
    return float(ALGORITHMS["grpo"].loss(given, config, {}, grpo.batch).total)

  base = ALGORITHMS["grpo"].config()
  # k3 = r - 1 - log r with r = e^-0.3; every row has tokens, so that their normalised weights add up to 1.
  expected = 0.04 * (np.exp(-shift) - 1 + shift)
  assert total(base) - total(dataclasses.replace(base, kl_coef=0.0)) == pytest.approx(expected, rel=1e-4)

  config = ALGORITHMS["rloo"].config(reference="frozen", kl_coef=0.1, center="none")
  rloo = collected("rloo", config, score_batch=score_batch)
  expected = [s["right"] - 0.1 * shift * len(s["sampled"]) for s in SAMPLES]
  np.testing.assert_allclose(rloo.samples["advantage"], expected, rtol=1e-4, atol=1e-5)


def test_labels_of_the_host_are_the_reward():
  label_N = jnp.linspace(0, 1, B * G)
  config = ALGORITHMS["rloo"].config(verifier="host", wrong_reward=-1.0)
  made = collected("rloo", config, host_label_N=label_N)
  np.testing.assert_allclose(made.samples["reward"], 2 * label_N - 1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [*ROWS, "nft"])
def test_equal_labels_give_no_gradient(name):
  """Whatever the common label is; off-policy too."""
  over = {"wrong_reward": -0.3} if name != "nft" else {}
  for label in (0.0, 0.7, 1.0):
    config = ALGORITHMS[name].config(verifier="host", **NO_REFERENCE, **over)
    made = collected(name, config, host_label_N=jnp.full(B * G, label))
    np.testing.assert_array_equal(made.samples["advantage"], 0)

    def loss(logp_NL, made=made, config=config):
      given = tools(log_probs=lambda *_, **__: (logp_NL, -logp_NL))
      return ALGORITHMS[name].loss(given, config, {}, made.batch).total

    assert not jax.grad(loss)(made.batch.behaviour_logp_NL * 1.3).any()


@pytest.mark.parametrize(
  "over,text",
  [
    ({"verifier": "none"}, "algorithm.verifier: found 'none', allowed: .*host, .*token_match"),
    ({"wrong_reward": 1.0}, "algorithm.wrong_reward: found 1.0, allowed: below 1"),
    ({"reference": "none"}, "algorithm.kl_coef: above 0 with reference 'none'"),
  ],
)
def test_errors(over, text):
  with pytest.raises(UserError, match=text):
    ALGORITHMS["grpo"].config(**over)


# ----------------------------------------------------------------------------------------------------- on the host


class Numbers:
  """A tokenizer whose text is the token ids."""

  def decode(self, ids, **_):
    return " ".join(str(i) for i in ids)


MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)


@functools.cache
def sharp_params():
  """A policy that writes markers and end tokens often, so that short completions have an answer."""
  params = toy.params(MODEL)
  often = jnp.array([toy.MARKER, toy.EOS])
  return {**params, "head": {"kernel": params["head"]["kernel"].at[:, often].multiply(1.5)}}


def setup_of(verifier, kind, minibatches=1):
  setup = toy.setup(
    "dr_grpo", MODEL, sampling__max_trace_length=9, algorithm__verifier=verifier, parallel__kind=kind,
    optimizer__minibatches=minibatches, prompts_per_step=16,
  )  # fmt: skip
  return setup if kind == "pmap" else setup._replace(mesh=sharding.make_mesh(setup.run.parallel))


@functools.cache
def answerable_prompts():
  """Prompts whose reference answer is the own answer of one of their completions, where one has any."""
  setup = setup_of("token_match", "jit")._replace(mesh=None)
  prompts, key = toy.prompts(16), jax.random.fold_in(jax.random.key(0), 0)
  rollouts = jax.device_get(jax.jit(programs.make_tools(setup).complete)(sharp_params(), prompts, key)[0])
  answer_BA, length_B = prompts.answer_BA.copy(), prompts.answer_length_B.copy()
  for n in np.flatnonzero(rollouts.marker_N & rollouts.ended_N):
    text = rollouts.token_NR[n, : rollouts.length_N[n]].tolist()
    own = text[text.index(toy.MARKER) + 1 :]
    if len(own) <= answer_BA.shape[1] and toy.MARKER not in own:
      answer_BA[n // 4, : len(own)], length_B[n // 4] = own, len(own)
  return prompts.replace(answer_BA=answer_BA, answer_length_B=length_B)


def two_steps(setup):
  """(Metrics of both steps, parameters after them)."""
  states = programs.init_states(setup, jax.tree.map(jnp.copy, sharp_params()), jax.random.key(0))
  batch = answerable_prompts()
  if setup.axis_name:
    states, devices = programs.replicate(states), jax.local_device_count()
    batch = jax.tree.map(lambda a: a.reshape(devices, a.shape[0] // devices, *a.shape[1:]), batch)
  else:
    states = jax.device_put(states, programs.state_shardings(setup))
    batch = sharding.place_rows(setup.mesh, batch)
  with contextlib.nullcontext() if setup.mesh is None else jax.set_mesh(setup.mesh):
    step = host_grading.compile_train_step(setup, states, batch, Numbers())
    states, first, _ = step(states, batch)
    states, second, _ = step(states, batch)
  single = programs.unreplicate if setup.axis_name else lambda tree: tree
  return jax.device_get(single((first, second))), jax.device_get(single(states.policy.params))


@pytest.fixture(scope="module")
def in_program():
  return two_steps(setup_of("token_match", "jit"))


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_grader_on_the_host_gives_the_same_step(kind, in_program):
  """Own answer and reference as texts, compared by exact_match, are token match: two programs make one's step."""
  metrics, params = two_steps(setup_of("exact_match", kind))
  expected_metrics, expected = in_program
  assert 0.05 < expected_metrics[0]["completion/accuracy"] < 0.95
  for left, right in zip(metrics, expected_metrics):
    assert left.keys() == right.keys()
    for name in left:
      assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-5), name
  moved = toy.largest_difference(expected, jax.device_get(sharp_params()))
  assert moved > 1e-2 and toy.largest_difference(params, expected) < 1e-4 * moved


def test_labels_are_the_graders():
  """Partial credit passes; what has no marker is 0 without being asked; what lies outside of [0, 1] is cut."""
  setup = setup_of("host", "pmap")._replace(form=toy.form(MARKER_IDS))
  asked = []

  def grade(answer, reference_answer):
    asked.append((answer, reference_answer))
    return 7 if answer == reference_answer else 0.25

  by_device = lambda tree: jax.tree.map(lambda a: np.asarray(a)[None], tree)
  labels = host_grading.label_rows(setup, Numbers(), grade, by_device(PROMPTS), by_device(completions.rollouts()))
  assert labels.shape == (1, B * G) and labels.dtype == np.float32
  has_text = [s["marker"] or kind == "half a marker" for s, kind in zip(SAMPLES, sum(KINDS, []))]
  assert len(asked) == sum(has_text)
  same = [answer == reference_answer for answer, reference_answer in asked]
  np.testing.assert_array_equal(labels[0][has_text], np.where(same, 1, 0.25))
  assert not labels[0][~np.array(has_text)].any() and 8 <= sum(same) < len(same)


def run_values(tmp_path):
  model = tmp_path / "model"
  tokenizer = word_tokenizer(RunningSum().words, model, special=("<|response_start|>",))
  sizes = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=8)
  hf.write_config(ModelConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes), model)
  values = configs.defaults("nft")
  values.update(total_steps=4, prompts_per_step=8, samples_per_prompt=4)
  values["model"].update(path=str(model), weights="random")
  values["prompt"].update(max_prompt_length=11, max_answer_length=8)
  values["data"].update(source="task:running_sum", examples=20)
  values["sampling"]["max_trace_length"] = 12
  values["algorithm"].update(verifier="host", normalisation="token")
  values["optimizer"].update(learning_rate=1e-2, eps=1e-3)
  values["checkpoint"].update(every_steps=1, keep_last=5)
  values["logging"].update(tensorboard=False, progress=False)
  return values


def params_at_the_end(directory):
  flat = {}
  for path in sorted((directory / "export").glob("*.safetensors")):
    flat[path.name] = path.read_bytes()
  return flat


TWO = """
import json, sys
import jax
from nrt_jax import config, training
from nrt_jax.tasks.running_sum import RunningSum
jax.distributed.initialize(sys.argv[3], 2, int(sys.argv[4]))
RunningSum.grade = lambda self, answer, reference: len(set(answer.split()) & set(reference.split())) / 5
values = json.load(open(sys.argv[1]))
training.train(config.stages_of(values), sys.argv[2], values)
"""


def test_two_processes_grade_as_one(tmp_path, monkeypatch):
  """Each host grades the completions that its own devices sampled; both agree on when the groups are enough."""
  monkeypatch.setattr(RunningSum, "grade", lambda _, answer, truth: len(set(answer.split()) & set(truth.split())) / 5)
  values = run_values(tmp_path)
  values.update(total_steps=2)
  values["algorithm"]["max_draws"] = 3
  (tmp_path / "values.json").write_text(json.dumps(values))
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  command = [sys.executable, "-c", TWO, str(tmp_path / "values.json"), str(tmp_path / "two"), address]
  env = {**os.environ, "PYTHONPATH": str(pathlib.Path(training.__file__).parent.parent)}
  running = [subprocess.Popen([*command, str(number)], env=env, stderr=subprocess.PIPE) for number in range(2)]
  training.train(configs.stages_of(values), str(tmp_path / "one"), values)
  errors = [process.communicate(timeout=300)[1] for process in running]
  assert [process.returncode for process in running] == [0, 0], errors
  one, two = (
    [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    for name in ("one", "two")
  )
  assert [line["step"] for line in two] == [1, 2] and one[0]["advantage/abs_mean"] > 0
  for left, right in zip(two, one, strict=True):
    for name in ("draws/count", "draws/kept_groups", "reward/mean", "completion/accuracy", "loss/total"):
      assert left[name] == pytest.approx(right[name], rel=1e-3, abs=1e-5), name
  params = []
  for name in ("one", "two"):
    model = hf.read_model_config(tmp_path / name / "export")
    params.append(jax.device_get(hf.load_params(tmp_path / name / "export", model)))
  assert toy.largest_difference(*params) < 1e-4


@pytest.mark.parametrize("max_draws", [1, 3])
def test_a_resumed_run_grades_the_same(tmp_path, monkeypatch, max_draws):
  """Some credit for any digit in the answer, so that random policies see a signal; stopped and resumed on the way."""

  def some_credit(self, answer, reference_answer):
    return len(set(answer.split()) & set(reference_answer.split())) / 5

  monkeypatch.setattr(RunningSum, "grade", some_credit)
  values = run_values(tmp_path)
  values["algorithm"]["max_draws"] = max_draws
  train = lambda name: training.train(configs.stages_of(values), str(tmp_path / name), values)
  train("whole")
  write = MetricsWriter.write

  def write_then_stop(self, step, metrics):
    write(self, step, metrics)
    if step == 1:
      signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(MetricsWriter, "write", write_then_stop)
    train("stopped")
  assert Checkpoints(str(tmp_path / "stopped" / "checkpoints"), read_only=True).latest_step() < 4
  train("stopped")
  assert params_at_the_end(tmp_path / "stopped") == params_at_the_end(tmp_path / "whole") != {}
  lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [1, 2, 3, 4] and any(line["advantage/abs_mean"] > 0 for line in lines)
  if max_draws > 1:  # prompts that a step left over are the next one's
    drawn = sum(line["draws/count"] for line in lines) * values["prompts_per_step"]
    record = Checkpoints(str(tmp_path / "whole" / "checkpoints"), read_only=True).record(4)
    assert record["position"] == list(divmod(drawn, 20)) and len(lines) < drawn / 8 < 3 * len(lines)


@pytest.mark.parametrize(
  "change,text",
  [
    ({"prompt": {"overlong_answer": "cut"}}, "prompt.overlong_answer: found 'cut' with algorithm.verifier 'host'"),
    (
      {"data": {"source": "task:verse", "task_options": {"path": __file__}}},
      "algorithm.verifier: found 'host', but task:verse has no grader",
    ),
  ],
)
def test_mistakes_with_host_graders(change, text):
  values = configs.defaults("grpo")
  values["algorithm"]["verifier"] = "host"
  values["data"]["source"] = "task:running_sum"
  for key, over in change.items():
    values[key].update(over)
  with pytest.raises(UserError, match=text):
    host_grading.check(configs.stages_of(values)[0])
  values["algorithm"]["verifier"] = "token_match"
  host_grading.check(configs.stages_of(values)[0])
  assert tasks.GRADERS["none"] is None
