"""E1: games and positions fit, arms differ in what holds them back, wins and first moves are counted, an arm runs."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from paths import EXPERIMENTS

from nrt_jax.arrays import Rollouts
from nrt_jax.tasks import nim

sys.path.append(str(EXPERIMENTS / "get_go"))
import common
import e1_local_minimum as e1


def test_arms_differ_in_start_and_penalty():
  (rules, imitate, rl), scratch = e1.ARMS["imitate_rl_0"], e1.ARMS["scratch"]
  assert scratch == (rules, rl) and rules.given and e1.ARMS["imitate"] == (rules, imitate)
  settings = {name: dict(arm[-1].settings) for name, arm in e1.ARMS.items() if "_rl_" in name}
  found = {name: settings[name].pop("algorithm.kl_coef", 0) for name in settings}
  assert found == {"imitate_rl_0": 0, "imitate_rl_0.01": 0.01, "imitate_rl_0.1": 0.1, "imitate_rl_1": 1}
  assert len({arm[-1].steps for name, arm in e1.ARMS.items() if name != "imitate"}) == 1


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(e1, "EXAMPLES", {"games": 64, "test": 8, "first_heap": 8})
    patch.setattr(common, "LAYERS", 1)
    return e1.make_bench("nim", str(tmp_path_factory.mktemp("e1")))


def test_everything_fits(bench):
  for name, held in bench._held_out.items():
    assert not any(held.counts.values()) and held.hints is not None
    assert name not in nim.OPPONENTS or {example.world.split()[-1] for example in held.examples} == {name}
  for phase in (e1.RULES, e1.IMITATE):
    data = bench._load(bench.config(phase).data)
    assert not any(data.counts.values()) and min(map(len, data.traces)) > 0


def test_first_moves_in_another_heap_are_counted(bench, monkeypatch):
  """Half of the policy's first moves are in the first heap, and a quarter are none."""
  words = ["a1", "a2", "b1", "nim"]
  ids = np.array(bench.tokenizer.convert_tokens_to_ids(words))
  made = lambda params, batch, key: Rollouts(np.resize(ids, (128, 1)), None, None, None, None)
  monkeypatch.setattr(bench, "_greedy", made)
  assert bench.also(None) == {"blind": 0.25}


def test_it_runs_and_reports(bench, tmp_path, capsys, monkeypatch):
  arm = (dataclasses.replace(e1.rl(0.1), steps=1, prompts=4, samples=4),)
  monkeypatch.setattr(e1, "ARMS", {"penalty": arm})
  monkeypatch.setattr(e1, "make_bench", lambda task, root: bench)
  e1.main(["--seeds", "0", "--workdir", str(tmp_path)])
  line = json.loads((tmp_path / "results.jsonl").read_text())
  assert {"test", *nim.OPPONENTS, "first_heap", "blind"} <= line["end"].keys() and line["curve"][-1]["sampled"] > 0
  assert 0 <= line["end"]["pass_1"] <= line["end"]["pass_32"] <= 1
  assert "| blind | sampled |" in capsys.readouterr().out
