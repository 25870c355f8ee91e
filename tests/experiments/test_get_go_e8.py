"""E8: checkpoints are parts of one another, parallel averaging is the mean of two optimizers' steps, an arm runs."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from paths import EXPERIMENTS

sys.path.append(str(EXPERIMENTS / "get_go"))
import common
import e8_checkpoints as e8
from lanes import Lane


def test_arms_of_a_checkpoint_share_it():
  for share in e8.SHARES:
    arms = {name: e8.ARMS[f"{share}_{name}"] for name in ("base", "rl", "sft", "sft_rl", "average")}
    assert {arm[0] for arm in arms.values()} == {e8.checkpoint(share)} and e8.checkpoint(share).given
    assert arms["sft_rl"][1:] == (*arms["sft"][1:], *arms["rl"][1:]) and arms["base"][1:] == ()
    assert arms["average"][1].beside == arms["sft"][1]
    assert dataclasses.replace(arms["average"][1], beside=None) == arms["rl"][1]
  assert [e8.checkpoint(share).steps for share in e8.SHARES] == [30, 60, 150, 300, 600, 1500]
  assert len({e8.checkpoint(share).settings for share in e8.SHARES}) == 1  # a warm-up of its own would tell them apart


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(e8, "EXAMPLES", {"pretraining": 128, "asked": 64, "test": 8})
    patch.setattr(common, "LAYERS", 1)
    return e8.make_bench("chain", str(tmp_path_factory.mktemp("e8")))


RL, SFT = (dataclasses.replace(phase, steps=2, prompts=4) for phase in (e8.RL, e8.SFT))


def test_each_step_of_parallel_averaging_is_the_mean_of_two(bench):
  """Two steps by hand: each optimizer moves the same parameters, keeps its moments, and both go on from the mean."""
  start = bench._start(0)
  found = bench._run_phase(start, dataclasses.replace(RL, beside=SFT), 0, 1)
  lanes, params = [Lane(bench, phase, start["params"], 1000) for phase in (RL, SFT)], start["params"]
  for _ in range(2):
    for lane in lanes:
      lane.go_on_from(params)
      lane.step(0)
    params = jax.tree.map(lambda a, b: (a + b) / 2, *(lane.params for lane in lanes))
  for got, expected in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(params)):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
  apart = [jax.tree.leaves(one)[0] for one in (params, start["params"], *(lane.params for lane in lanes))]
  assert all(np.abs(apart[0] - other).max() > 1e-5 for other in apart[1:])
  counts = {"sampled": 0.0, "trained": 0.0, "flops": 0.0}
  for lane in lanes:
    lane.take_metrics(counts)
  assert found["counts"] == counts and counts["sampled"] > 0


def test_the_loss_on_pretraining_is_that_of_random_weights(bench):
  found = bench.also(bench._start(0)["params"])["lm_loss"]
  assert found == pytest.approx(np.log(len(bench.tokenizer)), rel=0.1)


def test_it_runs_and_reports(bench, tmp_path, capsys, monkeypatch):
  first = dataclasses.replace(SFT, given=True)
  monkeypatch.setattr(e8, "ARMS", {"1_average": (first, dataclasses.replace(RL, beside=SFT))})
  monkeypatch.setattr(e8, "make_bench", lambda task, root: bench)
  e8.main(["--seeds", "0", "--workdir", str(tmp_path)])
  line = json.loads((tmp_path / "results.jsonl").read_text())
  assert {"test", "longer", "convention", "pretrained", "lm_loss"} <= line["end"].keys()
  assert "| lm_loss | sampled |" in capsys.readouterr().out
