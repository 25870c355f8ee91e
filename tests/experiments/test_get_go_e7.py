"""E7: the usual convention's answers are right ones of another question, and texts fit."""

import json
import sys

import pytest
from paths import EXPERIMENTS

from nrt_jax.tasks import table

sys.path.append(str(EXPERIMENTS / "get_go"))
import common
import e7_conventions as e7


def test_fallbacks():
  assert e7.fallback("sort_down 3 0 2 3") == "0 2 3 3"
  assert e7.fallback("look up 1 hops 2 one 3 2 1") == "1"  # counting from zero: at 1 stands 2, at 2 stands 1
  assert e7.fallback("look up 1 hops 2 one 2 3 1") is None  # at 1 stands 3, which is no place
  assert e7.fallback("start 0 1 + 1 1 modulo 5 base 3") is None


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(e7, "EXAMPLES", {"start": 200, "asked": 64, "test": 24})
    patch.setattr(common, "LAYERS", 1)
    return {task: e7.make_bench(task, str(tmp_path_factory.mktemp(task))) for task in e7.TASKS}


def test_conventions_are_mixed_and_everything_fits(benches):
  for task, bench in benches.items():
    name, options, change, lengths = e7.TASKS[task]
    with open(bench.sets.train["start"]["source"]) as file:
      lines = [json.loads(text) for text in file]
    usual, other = (
      table.make_task(name, "train", {**options, **one, "trace_share": e7.TRACED}) for one in ({}, change)
    )
    of_other = [line["question"] == other.example(i)[0] != usual.example(i)[0] for i, line in enumerate(lines)]
    assert 0.03 < sum(of_other) / len(lines) < 0.2
    assert all(of_other[i] or line["question"] == usual.example(i)[0] for i, line in enumerate(lines))
    assert ("fallback" in bench._held_out) == (task != "chain")
    for held in bench._held_out.values():
      assert not any(held.counts.values()) and len(held) > 8
    for phase in {phase for arm in e7.ARMS.values() for phase in arm}:
      assert not any(bench._load(bench.config(phase).data).counts.values()), (task, phase)


def test_fallbacks_are_wrong_answers(benches):
  for task in ("sort", "look_up"):
    name, options, change, _ = e7.TASKS[task]
    other = table.make_task(name, "test", {**options, **change})
    right = {question: answer for question, answer, _ in map(other.example, range(24))}
    for example in benches[task]._held_out["fallback"].examples:
      assert example.answer != right[example.question]


def test_the_gap_is_that_of_both_conventions(benches, monkeypatch):
  """The rest of a run is common to all studies."""
  ends = {"test": 0.75, "convention": 0.5, "fallback": 0.25}
  monkeypatch.setattr(common.Bench, "run", lambda self, arm, seed: {"curve": [], "end": dict(ends)})
  assert benches["sort"].run((), 0)["end"] == {**ends, "gap": 0.25}
