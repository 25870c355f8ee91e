"""Experiments on learning from the get-go: arms differ in what they say, counts and budgets are right, runs resume."""

import dataclasses
import json
import sys
import xml.etree.ElementTree

import jax
import numpy as np
import pytest
from paths import EXPERIMENTS

from nrt_jax.errors import UserError
from nrt_jax.files import append_json_line
from nrt_jax.model import costs

sys.path.append(str(EXPERIMENTS / "get_go"))
import common
import e2_orthogonality as e2
import e3_token_space as e3
import report
from common import Phase

# ---- Arms ------------------------------------------------------------------------------------------------------------


def test_e2s_arms_differ_in_what_comes_before_rl():
  assert all(arm[0] == e2.START and e2.START.given for arm in e2.ARMS.values())
  tuned = {name: arm[1:] for name, arm in e2.ARMS.items()}
  assert tuned["rl"] == (e2.RL,) and all(phases[-1] == e2.RL for name, phases in tuned.items() if name.endswith("_rl"))
  for epochs in (1, 3, 10):
    (before, _) = tuned[f"sft_answers_{epochs}_rl"]
    assert before.steps * before.prompts == epochs * e2.ITEMS and before.data == "items"
  for name in ("rl_likelihood", "rl_probability"):
    assert dataclasses.replace(tuned[name][0], algorithm="dr_grpo") == e2.RL


def test_e3s_arms_share_their_prediction():
  for share in e3.SHARES:
    (first, more), (again, rl) = e3.ARMS[f"ntp_{share}"], e3.ARMS[f"ntp_{share}_rl"]
    assert first == again and first.data == more.data == f"shown_{share}"
    assert rl.data == "shown_0" and rl.algorithm == "dr_grpo"  # it sees no traces
  assert all(len(e3.ARMS[name]) == 1 for name in ("rl", "rl_likelihood", "nft", "nft_soft"))


def test_steps_are_scaled():
  steps = [phase.steps for phase in common.scaled(e2.ARMS["sft_answers_1_rl"], 0.1)]
  assert steps == [e2.START_STEPS // 10, 1, e2.RL_STEPS // 10]


# ---- Budgets and reports ---------------------------------------------------------------------------------------------


def line(arm, seed, accuracies, sampled, flops) -> dict:
  """A finished arm with a point for each accuracy, evenly spaced over its counts."""
  shares = np.arange(1, len(accuracies) + 1) / len(accuracies)
  curve = [{"test": a, "sampled": sampled * s, "flops": flops * s} for a, s in zip(accuracies, shares)]
  end = {"pass_1": 0.5, "pass_32": 1.0, "entropy": 0.1, "kl_start": 0.2, "test": accuracies[-1], "test_trace": 3.0}
  return {"task": "t", "arm": arm, "seed": seed, "steps": 1.0, "curve": curve, "end": end, "cpu_seconds": 2.0}


def test_accuracy_at_a_budget_lies_between_its_points():
  curve = line("rl", 0, [0.2, 0.4, 0.8, 1.0], 400, 4e12)["curve"]
  assert report.at_budget(curve, "sampled", 200) == 0.4
  assert report.at_budget(curve, "sampled", 250) == pytest.approx(0.6)
  assert report.at_budget(curve, "flops", 3.5e12) == pytest.approx(0.9)
  assert np.isnan(report.at_budget(curve, "flops", 5e12))
  assert report.at_budget([{"sampled": 0}, *curve], "sampled", 100) == 0.2  # a point without an evaluation


def test_budgets_are_what_all_arms_that_sample_have_used():
  lines = [line("rl", 0, [1], 300, 4e12), line("nft", 0, [1], 200, 5e12), line("ntp", 0, [1], 0, 1e12)]
  assert report.budgets(lines) == {"sampled": 200, "flops": 4e12}
  assert report.budgets(lines[2:]) == {"sampled": 0, "flops": 1e12}


def test_the_table_has_means_and_deviations_over_seeds():
  lines = [line("rl", seed, ends, 300e3, 4e12) for seed, ends in enumerate(([0.2, 0.4], [0.4, 0.8]))]
  head, rule, rl, ntp = report.table([*lines, line("ntp", 0, [0.5], 0, 1e12)]).split("\n")
  assert head.startswith("| arm | seeds | test, greedy | test at 300k sampled | test at 4.00 TFLOP | pass_1 |")
  assert rl.startswith("| rl | 2 | 0.600 ± 0.283 | 0.600 ± 0.283 | 0.600 ± 0.283 | 0.500 ± 0.000 |")
  assert rl.endswith("| 300k | 4.00 | 2 |") and ntp.startswith("| ntp | 1 | 0.500 |  |  | 0.500 |")
  assert len({row.count("|") for row in (head, rule, rl, ntp)}) == 1


def test_curves_are_means_over_seeds_where_all_have_been():
  lines = [line("rl", 0, [0.0, 0.4, 0.8], 300, 3e9), line("rl", 1, [0.2, 0.6], 200, 2e9)]
  start = {"test": 0.0, "sampled": 100, "flops": 0.0}  # points at one count: the last of them counts
  lines[0]["curve"].insert(0, {**start, "test": 9.0, "flops": 1e9})
  band = report.band(lines, "sampled", 100)
  assert (band[0][0], band[-1][0]) == (1, 2) and band[0][1:] == pytest.approx((0.1, 0.2 / 2**0.5))
  assert band[-1][1:] == pytest.approx((0.5, 0.2 / 2**0.5))
  assert report.band([line("ntp", 0, [0.5], 0, 1e12)], "sampled", 1) == []


def test_curves_are_drawn_over_both_counts(tmp_path):
  pytest.importorskip("vl_convert", reason='pip install "nrt_jax[report]"')
  lines = {arm: [line(arm, 0, [0.2, 0.8], 300, 4e12)] for arm in ("ntp_0", "rl", "ntp_0_rl")}
  report.draw(str(tmp_path / "curves.svg"), "accuracy", e3.curves({"chain": lines}))
  text = [node.text for node in xml.etree.ElementTree.parse(tmp_path / "curves.svg").getroot().iter()]
  assert {"accuracy", "chain, prediction alone", "chain, from random weights", *lines, *report.AXES} <= {*text}


def test_only_whole_lines_of_as_many_steps_are_finished(tmp_path):
  path = str(tmp_path / "results.jsonl")
  assert common.finished(path, 1.0) == {}
  append_json_line(path, line("rl", 0, [1], 1, 1))
  with open(path, "a") as file:
    file.write('{"task": "t", "ar')
  append_json_line(path, {**line("rl", 1, [1], 1, 1), "steps": 0.5})
  append_json_line(path, line("nft", 1, [1], 1, 1))
  assert set(common.finished(path, 1.0)) == {("t", "rl", 0), ("t", "nft", 1)}


@pytest.mark.parametrize("flags", [["--arms", "rlx"], ["--tasks", "go"], ["--steps", "0"]])
def test_bad_flags_are_one_line(flags, tmp_path):
  with pytest.raises(UserError, match=f"^{flags[0]}: found '?{flags[1]}"):
    e3.main([*flags, "--workdir", str(tmp_path / "run")])
  assert not (tmp_path / "run").exists()


# ---- Runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
  """E2's bench with fewer questions, and a model of one layer."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(e2, "EXAMPLES", {"start": 128, "test": 16})
    patch.setattr(common, "LAYERS", 1)
    return e2.make_bench("orthogonality", str(tmp_path_factory.mktemp("e2")))


def test_every_arm_is_a_config(bench, tmp_path):
  names = {bench.config(phase).algorithm_name for arm in e2.ARMS.values() for phase in arm}
  assert names == {"sft", "dr_grpo", "rl_logit", "verifree"}
  room = bench.lengths.trace
  assert bench.config(e2.RL).sampling.max_trace_length == room + 1 + bench.lengths.answer
  assert bench.config(e2.ARMS["rl_likelihood"][1]).sampling.max_trace_length == room
  assert bench.config(e2.START).optimizer.learning_rate == 3e-3 and bench.config(e2.START).data.max_trace_length == room
  others = e3.make_bench("chain", str(tmp_path / "chain"))
  for arm in e3.ARMS.values():
    assert all(others.config(phase) for phase in arm)
  assert others.config(e3.ARMS["nft_soft"][0]).sampling.max_trace_length == others.lengths.trace
  assert others.config(e3.ARMS["nft"][0]).sampling.max_trace_length > others.lengths.trace


def test_all_that_is_shown_fits(bench):
  """No example is dropped or cut, in any set of either experiment."""
  for held in bench._held_out.values():
    assert not any(held.counts.values())
  for phase in (e2.START, e2.RL, e2.ARMS["sft_traces_rl"][1]):
    data = bench._load(bench.config(phase).data)
    assert not any(data.counts.values())
  assert len(data) == e2.ITEMS and min(map(len, data.traces)) > 0


SFT = Phase("sft", 2, "items", 4)
TINY = {"rl": (dataclasses.replace(SFT, given=True, bar=0.0), Phase("dr_grpo", 2, "items", 4, 2)), "sft": (SFT,)}


def test_an_arm_is_trained_counted_and_measured(bench, monkeypatch):
  """A given start counts nothing and ends at its bar; what follows is counted by its lengths. Arms share a start."""
  bench.forget()
  monkeypatch.setattr(common, "CHECK", 1)
  given, rl = TINY["rl"]
  first, second = bench.run((given, rl), 0), bench.run((given, SFT), 0)
  assert first["curve"][0] == second["curve"][0] and len(bench._reached) == 3
  assert (first["curve"][0]["step"], second["curve"][-1]["step"]) == (1, 2) and "test" in first["curve"][0]
  assert first["curve"][0]["sampled"] == first["curve"][0]["flops"] == 0 < first["curve"][1]["sampled"]
  end = second["curve"][-1]
  prompt, row = 10, 10 + 1 + 2  # "orthogonal", eight coordinates, "and"; marker; answer and end token
  assert (end["sampled"], end["trained"]) == (0, 8 * row)
  assert end["flops"] == pytest.approx(8 * costs.train_flops(bench.model, row, row - prompt), rel=1e-4)
  assert {"test", "train", "longer", "alphabet", "convention"} <= set(first["end"])
  assert first["end"] != second["end"] and 0 <= first["end"]["pass_1"] <= first["end"]["pass_32"] <= 1


def test_a_policy_is_at_no_distance_from_itself(bench):
  params, other = bench._start(0)["params"], bench._start(1)["params"]
  same, apart = bench.probe(params, params), bench.probe(params, other)
  assert abs(same["kl_start"]) < 1e-5 < apart["kl_start"] and same["entropy"] == apart["entropy"]
  assert same["entropy"] == pytest.approx(np.log(len(bench.tokenizer)), rel=0.05)  # random weights: nearly uniform
  assert jax.tree.all(jax.tree.map(np.array_equal, params, bench._start(0)["params"]))


def test_the_study_resumes(bench, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(e2, "ARMS", TINY)
  monkeypatch.setattr(e2, "make_bench", lambda task, root: bench)
  argv = ["--seeds", "3", "--workdir", str(tmp_path)]
  e2.main([*argv, "--arms", "rl"])
  assert "| rl | 1 |" in capsys.readouterr().out
  e2.main(argv)
  table = capsys.readouterr().out
  assert "| rl | 1 |" in table and "| sft | 1 |" in table
  with open(tmp_path / "results.jsonl") as file:
    lines = [json.loads(text) for text in file]
  assert [(line["arm"], line["seed"], line["steps"]) for line in lines] == [("rl", 3, 1.0), ("sft", 3, 1.0)]
  assert [[point["phase"] for point in line["curve"]] for line in lines] == [[1, 1, 2, 2], [1, 1]]
  monkeypatch.setattr(e2, "make_bench", None)  # nothing is left to run
  e2.main([*argv, "--report_only"])
  e2.main(argv)
  assert capsys.readouterr().out == table * 2
