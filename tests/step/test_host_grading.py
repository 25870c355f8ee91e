"""A step with a grader on the host: the same as one program, on one host or two, and after resuming."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys

import completions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from completions import MARKER_IDS, PROMPTS, SAMPLES, B, G
from graded import Numbers, setup_of, sharp_params
from paths import ROOT

from nrt_jax import config as configs
from nrt_jax import sharding, training
from nrt_jax.algorithms import rlvr
from nrt_jax.arrays import repeat_rows
from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.errors import UserError
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.records.checkpoint import Checkpoints
from nrt_jax.records.metrics import MetricsWriter
from nrt_jax.step import host_grading, programs
from nrt_jax.tasks import symbolic
from nrt_jax.tasks import table as tasks
from nrt_jax.tasks.running_sum import RunningSum


@functools.cache
def answerable_prompts():
  """Prompts whose reference answer is the own answer of one of their completions, where one has any."""
  setup = setup_of("token_match", "jit")._replace(mesh=None)
  prompts, key = toy.prompts(16), jax.random.fold_in(jax.random.key(0), 0)
  rollouts = jax.device_get(jax.jit(programs.make_tools(setup).complete)(sharp_params(), prompts, key)[0])
  answer_BA, length_B = toy.own_answers(prompts, rollouts, 4)
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
  """Partial credit passes; what lies outside of [0, 1] is cut. What has no whole marker, or no end, is 0 unasked."""
  setup = setup_of("host", "pmap")._replace(form=toy.form(MARKER_IDS))
  asked = []

  def grade(answer, reference_answer):
    asked.append((answer, reference_answer))
    return 7 if answer == reference_answer else 0.25

  by_device = lambda tree: jax.tree.map(lambda a: np.asarray(a)[None], tree)
  labels = host_grading.label_rows(setup, Numbers(), grade, by_device(PROMPTS), by_device(completions.rollouts()))
  assert labels.shape == (1, B * G) and labels.dtype == np.float32
  has_text = [s["marker"] and s["ended"] for s in SAMPLES]
  assert len(asked) == sum(has_text)
  same = [answer == reference_answer for answer, reference_answer in asked]
  np.testing.assert_array_equal(labels[0][has_text], np.where(same, 1, 0.25))
  assert not labels[0][~np.array(has_text)].any() and 8 <= sum(same) < len(same)


def test_host_and_program_take_the_same_completions_for_right():
  """Cut at the limit, half a marker, a second marker: exact_match of texts on the host is token_match."""
  setup = setup_of("host", "pmap")._replace(form=toy.form(MARKER_IDS))
  by_device = lambda tree: jax.tree.map(lambda a: np.asarray(a)[None], tree)
  batch, rollouts = by_device(PROMPTS), completions.rollouts()
  labels = host_grading.label_rows(setup, Numbers(), tasks.GRADERS["exact_match"], batch, by_device(rollouts))
  repeated = repeat_rows(jax.tree.map(jnp.asarray, PROMPTS), G)
  np.testing.assert_array_equal(labels[0], rlvr.token_match(MARKER_IDS, repeated, rollouts))
  cut = by_device(rollouts.replace(ended_N=jnp.zeros_like(rollouts.ended_N)))
  assert not host_grading.label_rows(setup, Numbers(), lambda *_: 1, batch, cut).any()


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_questions_without_an_answer_are_a_metric_of_the_step(kind, monkeypatch):
  """The grader's time-outs; a step of another grader has none to count."""

  def out_of_time(*_):
    symbolic.WORKER.budget.timeouts += 1
    return False

  monkeypatch.setattr(host_grading, "grader", lambda run: out_of_time)
  monkeypatch.setattr(tasks, "may_time_out", lambda grade: grade is out_of_time)
  (first, second), _ = two_steps(setup_of("math", kind))
  assert first["grading/timeouts"] > 0 and first["completion/accuracy"] == 0
  assert symbolic.WORKER.budget.timeouts == 0  # the steps had budgets of their own


def run_values(tmp_path):
  model = tmp_path / "model"
  tokenizer = word_tokenizer(RunningSum().words, model, special=("<|response_start|>",))
  sizes = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=8)
  hf_weights.write_config(ModelConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes), model)
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
from nrt_jax.tasks import symbolic, table
from nrt_jax.tasks.running_sum import RunningSum
jax.distributed.initialize(sys.argv[3], 2, int(sys.argv[4]))
def counted(self, answer, truth):
  symbolic.WORKER.budget.timeouts += 1
  return len(set(answer.split()) & set(truth.split())) / 5
RunningSum.grade = counted
table.may_time_out = lambda grade: True
values = json.load(open(sys.argv[1]))
training.train(config.stages_of(values), sys.argv[2], values)
"""


def counted(_, answer, truth):
  """Some credit for any digit; counts every question as one that no answer came to."""
  symbolic.WORKER.budget.timeouts += 1
  return len(set(answer.split()) & set(truth.split())) / 5


def test_two_processes_grade_as_one(tmp_path, monkeypatch):
  """Each host grades the completions that its own devices sampled; both agree on when the groups are enough."""
  monkeypatch.setattr(RunningSum, "grade", counted)
  monkeypatch.setattr(tasks, "may_time_out", lambda grade: True)
  values = run_values(tmp_path)
  values.update(total_steps=2)
  values["algorithm"]["max_draws"] = 3
  (tmp_path / "values.json").write_text(json.dumps(values))
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  command = [sys.executable, "-c", TWO, str(tmp_path / "values.json"), str(tmp_path / "two"), address]
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  running = [subprocess.Popen([*command, str(number)], env=env, stderr=subprocess.PIPE) for number in range(2)]
  training.train(configs.stages_of(values), str(tmp_path / "one"), values)
  errors = [process.communicate(timeout=300)[1] for process in running]
  assert [process.returncode for process in running] == [0, 0], errors
  one, two = (
    [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    for name in ("one", "two")
  )
  assert [line["step"] for line in two] == [1, 2] and one[0]["advantage/abs_mean"] > 0
  assert one[0]["grading/timeouts"] > 0
  for left, right in zip(two, one, strict=True):
    names = ("draws/count", "draws/kept_groups", "reward/mean", "completion/accuracy", "loss/total", "grading/timeouts")
    for name in names:
      assert left[name] == pytest.approx(right[name], rel=1e-3, abs=1e-5), name
  params = []
  for name in ("one", "two"):
    model = hf_weights.read_model_config(tmp_path / name / "export")
    params.append(jax.device_get(hf_weights.load_params(tmp_path / name / "export", model)))
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
