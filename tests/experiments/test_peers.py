"""The comparison with TRL and tunix: our side runs, its arithmetic is right, its checks fail when they should."""

import json
import sys

import numpy as np
import pytest
from paths import EXPERIMENTS

BENCHMARKS = EXPERIMENTS / "benchmarks"
sys.path.append(str(BENCHMARKS))  # as if started there: the peers' scripts import their neighbour by its bare name

import peers
import side_nrt_jax
import workload

from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.errors import UserError

SIZES = workload.TINY


@pytest.fixture
def no_row_left(monkeypatch):
  """The table of methods is as it was afterwards: other tests run over all of it."""
  monkeypatch.setitem(ALGORITHMS, side_nrt_jax.ROW, side_nrt_jax.EVEN_WORDS)


@pytest.mark.parametrize("name", workload.WORKLOADS)
def test_our_side_reports_full_samples_and_its_rewards(name, tmp_path, capfd, no_row_left):
  model = tmp_path / "model"
  side_nrt_jax.save_model(SIZES, str(model))
  flags = ["--workload", name, "--steps", "1", "--model", str(model), "--scratch", str(tmp_path), "--threads", "1"]
  side_nrt_jax.main([*flags, "--tiny"])
  run = json.loads(capfd.readouterr().out.split("RESULT ")[1])
  assert run["tokens"] == [SIZES.sampled_tokens] * 2 and len(run["step_s"]) == 1
  # Without learning, half of the words are even, and each of the words has about the same probability.
  assert run["rewards"][0] == pytest.approx(0.5 if name == "grpo" else 1 / SIZES.vocab, rel=0.5)
  assert np.load(tmp_path / "nrt_jax.npy").shape == (2, SIZES.prompt_length, SIZES.vocab)


def test_reward_in_the_program_is_the_one_on_texts(no_row_left):
  ids = [[3, 4, 6, 7], [1, 2, 8, 9], [5, 5, 5, 0]]
  assert [workload.even_share(" ".join(f"w{i}" for i in row if i >= workload.FIRST_WORD)) for row in ids] == [
    0.5,
    0.5,
    0,
  ]
  values = np.asarray(side_nrt_jax.even_share(np.array(ids), np.array([4, 4, 4])))
  np.testing.assert_allclose(values, [0.5, 0.5, 0])
  np.testing.assert_allclose(side_nrt_jax.even_share(np.array(ids), np.array([2, 3, 0])), [0.5, 1, 0])


def run(side, number, steps, name="grpo", **more):
  times = {"step_s": steps, "busy_s": 10.0, "own_s": 9.9, "tokens": [SIZES.sampled_tokens] * (len(steps) + 1)}
  return {"side": side, "round": number, "workload": name, "rewards": [0.5], "versions": {}, **times, **more}


RUNS = [
  run("nrt_jax", 0, [2.0, 1.0, 9.0]),
  run("trl", 0, [4.0, 4.0, 4.0]),
  run("nrt_jax", 1, [3.0, 3.0, 3.0], own_s=5.0),
  run("trl", 1, [4.0, 5.0, 100.0]),
  run("nrt_jax", 2, [1.0, 1.0, 1.0]),
]


def test_ratios_are_of_medians_within_a_round():
  assert peers.paired_ratios(RUNS, "grpo", "trl") == [2 / 4, 3 / 5]  # round 2 has no TRL
  assert peers.paired_ratios(RUNS, "verifier_free", "trl") == []
  summary = peers.summarise(RUNS)
  assert summary["grpo"]["step_s"] == {"nrt_jax": [2, 3, 1], "trl": [4, 5]}
  assert summary["grpo"]["ratios"] == {"trl": [0.5, 0.6]}
  assert summary["grpo"]["own_share"] == {"nrt_jax": 0.5, "trl": pytest.approx(0.99)}


def test_rounds_with_others_at_work_are_left_out():
  left = [r["round"] for r in peers.quiet_rounds(RUNS)]
  assert left == [0, 0, 2]
  assert peers.quiet_rounds(RUNS[2:4]) == RUNS[2:4]  # no quiet round: better loud figures than none
  assert peers.summarise(peers.quiet_rounds(RUNS))["grpo"]["ratios"] == {"trl": [0.5]}


def test_table_has_a_line_per_side_with_the_figure_to_reach():
  lines = peers.table(peers.summarise(RUNS)).splitlines()[2:]
  assert lines[0] == "| grpo | nrt_jax | 2.00 (1.00 to 3.00) |  |  | 0.50 |"
  assert lines[1] == "| grpo | trl | 4.50 (4.00 to 5.00) | 0.55 (0.50 to 0.60) | 0.70 | 0.99 |"
  assert "Left out, since others were at work: grpo round 2" in peers.describe(RUNS, {"trl": 1e-6})
  assert "Others were at work during: nrt_jax" in peers.describe(RUNS[2:4], {"trl": 1e-6})


def test_sides_must_do_the_same_work():
  peers.check_tokens(RUNS, SIZES)
  with pytest.raises(UserError, match="trl, grpo: sampled"):
    peers.check_tokens([*RUNS, run("trl", 2, [1.0], tokens=[SIZES.sampled_tokens, 3])], SIZES)
  peers.check_rewards(RUNS, SIZES)
  with pytest.raises(UserError, match="mean rewards of the first step"):
    peers.check_rewards([*RUNS, run("trl", 2, [1.0], rewards=[0.01])], SIZES)


def test_sides_must_start_from_the_same_weights(tmp_path):
  logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
  for side, off in (("nrt_jax", 0), ("trl", 1e-6), ("tunix", 0.01)):
    np.save(tmp_path / f"{side}.npy", logits + np.float32(off))
  assert peers.check_logits({"nrt_jax", "trl"}, tmp_path)["trl"] < 1e-5
  with pytest.raises(UserError, match="tunix: first logits differ"):
    peers.check_logits({"nrt_jax", "trl", "tunix"}, tmp_path)


@pytest.mark.parametrize("path", [None, "nowhere/bin/python", sys.executable])
def test_missing_environment_is_one_line(path, capsys, tmp_path):
  flags = ["--sides", "nrt_jax", "trl", "--workdir", str(tmp_path / "run")]
  assert peers.main(flags + (["--trl-python", path] if path else [])) == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("peers: --trl-python: found")
  assert not (tmp_path / "run").exists()
