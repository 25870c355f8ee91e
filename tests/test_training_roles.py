"""Whole runs with a critic: resuming with a half-full buffer, stages, and the critic's own export."""

import json

import jax
import numpy as np
import pytest
from interrupted import stopping_at

from nrt_jax import __main__, config, startup, training, workdir
from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.records.checkpoint import Checkpoints
from nrt_jax.tasks.running_sum import RunningSum

CRITIC = {
  "labels": ["1", "2", "3"], "neutral": "0", "samples": 4, "max_length": 4, "reasoning": False, "own_weights": True,
  "template": "{question} = {answer_1} or {answer_2} =",
}  # fmt: skip
UNREPEATABLE = ("time/", "throughput/", "memory/")


@pytest.fixture(scope="module")
def values(tmp_path_factory):
  """The answers learnt by heart, the critic warmed up on labels, then both together with few places in the buffer."""
  model = tmp_path_factory.mktemp("model")
  tokenizer = word_tokenizer((*RunningSum().words, "=", "or"), model)
  sizes = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=8)
  hf_weights.write_config(ModelConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes), model)
  values = config.defaults("raro")
  values.update(total_steps=4, prompts_per_step=16, samples_per_prompt=2)
  values["model"].update(path=str(model), weights="random", layer_loop="scan")
  values["prompt"].update(max_prompt_length=11, max_answer_length=8)
  values["data"].update(source="task:running_sum", examples=40)
  values["sampling"]["max_trace_length"] = 10
  values["algorithm"].update(replay_size=200, critic=CRITIC)
  values["optimizer"].update(learning_rate=3e-2, eps=1e-3)
  values["checkpoint"].update(every_steps=2)
  values["evaluation"].update(
    data={"source": "task:running_sum", "split": "test", "examples": 20}, batch_prompts=16, every_steps=0
  )
  values["logging"].update(samples_every_steps=2, samples_per_step=2, tensorboard=False)
  values["total_steps"] = 20
  values["stages"] = [
    {"name": "demonstrations", "algorithm": {"name": "sft"}, "total_steps": 20},
    {"name": "labels", "algorithm": {"label_coef": 1.0, "lambda_policy": 0.0, "kl_coef": 0.0}, "total_steps": 10},
    {"name": "both", "total_steps": 4, "optimizer": {"learning_rate": 1e-3}},
  ]
  return values


def train(values, directory):
  training.train(config.stages_of(values), str(directory), values)
  return directory


@pytest.fixture(scope="module")
def whole(values, tmp_path_factory):
  return train(values, tmp_path_factory.mktemp("whole"))


def lines(directory):
  rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().split("\n") if line]
  return [{k: v for k, v in row.items() if not k.startswith(UNREPEATABLE)} for row in rows]


def stored(values, directory):
  """All arrays of the newest checkpoint, which is one of the last stage, by path; typed keys as their data."""
  setup = startup.open_stages(config.stages_of(values), str(directory))[1][-1].setup
  checkpoints = Checkpoints(str(directory / "checkpoints"), read_only=True)
  states = workdir.restore(setup, checkpoints, checkpoints.latest_step())
  flat = jax.tree_util.tree_flatten_with_path(states)[0]
  plain = lambda value: jax.random.key_data(value) if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key) else value
  return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(plain(leaf)) for path, leaf in flat}


def test_the_game_is_played(values, whole):
  """What resuming is tested on: answers, verdicts, and a buffer that is neither empty nor full."""
  last = [row for row in lines(whole) if "loss/total" in row][-1]
  assert last["policy/answered"] > 0.5 and last["critic/parsed"] > 0.5
  assert 32 < last["replay/filled"] < 200
  held = stored(values, whole)
  assert held["memory/replay/seen"] > 32 and held["memory/steps"] == 4
  assert any(key.startswith("critic/opt_state") for key in held)


@pytest.mark.parametrize("stop_at", [31])
def test_a_run_resumes_bit_for_bit(values, whole, tmp_path, monkeypatch, stop_at):
  """Stopped inside of the last stage, with the buffer half full."""
  with stopping_at(monkeypatch, stop_at):
    train(values, tmp_path)
  half = stored(values, tmp_path)
  assert 0 < half["memory/replay/seen"] < stored(values, whole)["memory/replay/seen"]
  train(values, tmp_path)
  left, right = stored(values, tmp_path), stored(values, whole)
  assert left.keys() == right.keys() and [key for key in left if not np.array_equal(left[key], right[key])] == []
  assert lines(tmp_path) == lines(whole)


def test_the_critic_goes_on_through_stages_and_is_exported(values, whole):
  """The critic of the last stage started from the one that learnt labels, not from the policy."""
  names = {path.name for path in whole.iterdir()}
  assert {"export", "export_critic"} <= names
  model = hf_weights.read_model_config(whole / "export_critic")
  critic, policy = (hf_weights.load_params(whole / name, model) for name in ("export_critic", "export"))
  held = stored(values, whole)
  kept = {key.removeprefix("critic/params/"): value for key, value in held.items() if "critic/params" in key}
  flat = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(critic)[0]
  }
  assert flat.keys() == kept.keys()
  for key, leaf in flat.items():
    np.testing.assert_array_equal(leaf, kept[key])
  apart = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), critic, policy)
  assert max(jax.tree.leaves(apart)) > 0.05  # a stage of labels at 3e-2 moves further than four steps at 1e-3
  assert workdir.read_policy(str(whole), model) is not None


# ---- evaluate --tournament -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config_file(values, tmp_path_factory):
  """The run's config as a file."""
  path = tmp_path_factory.mktemp("config") / "config.py"
  path.write_text(f"def get_config():\n  return {json.loads(json.dumps(values))!r}\n")
  return str(path)


def test_the_critic_chooses_among_samples(whole, config_file, tmp_path, capsys):
  """The run's own critic judges: accuracies of every way to choose, for 1, 2 and 4 samples."""
  report = tmp_path / "report.json"
  argv = ["evaluate", "--config", config_file, "--checkpoint", str(whole), "--tournament", "4", "--output", str(report)]
  assert __main__.main(argv) == 0
  found = json.loads(report.read_text())["metrics"]
  names = ("tournament", "majority", "likeliest", "sample", "any")
  chosen = {key.removeprefix("eval/heldout/"): value for key, value in found.items() if "@" in key}
  assert set(chosen) == {f"{name}@{n}" for name in names for n in (1, 2, 4)}
  assert len({chosen[f"{name}@1"] for name in names}) == 1  # nothing to choose
  for n in (2, 4):
    assert all(chosen[f"{name}@{n}"] <= chosen[f"any@{n}"] for name in names)
  assert "tournament@4" in capsys.readouterr().out


@pytest.mark.parametrize(
  "flags,message",
  [
    (["--tournament", "3"], "--tournament: found 3, allowed: a power of two, 2 to 64"),
    (["--tournament", "4", "--votes", "3"], "--votes: found 3, allowed: an even number"),
    (["--tournament", "4", "--stage", "demonstrations"], "--tournament: found algorithm.name 'sft', allowed: one with"),
  ],
)
def test_no_such_tournament(whole, config_file, flags, message, capsys):
  capsys.readouterr()
  assert __main__.main(["evaluate", "--config", config_file, "--checkpoint", str(whole), *flags]) == 2
  out, err = capsys.readouterr()
  assert out == "" and message in err and err.count("\n") == 1
