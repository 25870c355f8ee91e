"""E4, a token space that widens: its arms, what it measures, and a run from end to end."""

import json
import sys

import pytest
from paths import EXPERIMENTS

from nrt_jax.config import stages_of

sys.path.append(str(EXPERIMENTS / "get_go"))
import e4_widening as e4


def sizes(arm, seed=0) -> list:
  return [dict(run.data.task_options)["alphabet"] for run in stages_of(e4.values_of(arm, "model", seed))]


def test_the_arms_differ_in_the_order_of_the_alphabets_and_in_what_is_trained():
  given = [e4.START, *e4.SIZES]
  assert sizes("widen") == sizes("frozen") == given and sizes("direct") == [e4.START, e4.SIZES[-1]]
  assert sorted(sizes("shuffled")) == given and sizes("shuffled")[0] == e4.START
  assert len({tuple(sizes("shuffled", seed)) for seed in range(5)}) > 2
  for arm in e4.ARMS:
    form, *rewarded = stages_of(e4.values_of(arm, "model", 3))
    assert form.algorithm_name == "sft" and {run.algorithm_name for run in rewarded} == {"dr_grpo"}
    assert sum(run.total_steps for run in rewarded) == e4.STEPS * len(e4.SIZES)
    assert {run.optimizer.trainable for run in rewarded} == {"token_rows" if arm == "frozen" else "all"}
    assert form.optimizer.trainable == "all" and {run.tokens.active for run in (form, *rewarded)} == {"data"}
    assert rewarded[-1].stop.bar == 0.9 and all(run.stop.bar == 0.8 for run in rewarded[:-1])


class Record:
  def __init__(self, *_, **__):
    pass

  def record(self):
    return {"ends": [2, 5, 3], "step": 4}


@pytest.mark.parametrize("last, samples, right", [(3, 4 + 5 + 3, 0.95), (1, None, 0.5)])
def test_samples_are_those_of_the_reward_until_the_last_size_is_at_the_bar(tmp_path, monkeypatch, last, samples, right):
  """Four stages of 2, 5, 3 and 4 steps, of which 1024 episodes are the last four of a stage."""
  monkeypatch.setattr(e4, "Checkpoints", Record)
  monkeypatch.setattr(e4, "SAMPLES", 1024 // (4 * e4.PROMPTS))
  small, end = e4.SIZES[:2], e4.SIZES[-1]
  order = [e4.START, end, *small] if last == 1 else [e4.START, *small, end]
  runs = [stage(size) for size in order]
  rights = [0.0] * 7 + [0.0] * 3 + [0.95] * 4 if last == 3 else [0.0] * 3 + [0.5] * 11
  lines = [{"step": n, "completion/accuracy": r} for n, r in enumerate(rights, 1) if n > 2]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"step": 1}, *lines]))
  found = e4.measure(str(tmp_path), runs)
  assert found["samples"] == (None if samples is None else samples * e4.PROMPTS * e4.SAMPLES)
  assert found["right"] == pytest.approx(right) and found["alphabets"] == order[1:] and found["steps"] == [5, 3, 4]
  assert found["known_at"] == 2 and found["first"] == pytest.approx(0.95 if last == 3 else 0.375)
  per = e4.PROMPTS * e4.SAMPLES  # points lie a window of four steps apart, and never across stages
  expected = [(4, 0.0), (8, 0.0), (12, 0.95)] if last == 3 else [(4, 0.375), (8, 0.5), (12, 0.5)]
  assert found["curve"] == [[n * per, pytest.approx(share)] for n, share in expected]


def test_a_course_is_drawn_by_means_of_its_points(monkeypatch):
  monkeypatch.setattr(e4, "DRAWN", 2)
  assert e4.drawn([[1000, 0.0], [2000, 0.5], [3000, 1.0]]) == [(2.0, 0.25, 0.0), (3.0, 1.0, 0.0)]
  assert e4.drawn([[1000, 0.5]]) == [(1.0, 0.5, 0.0)]


def stage(size):
  values = e4.values_of("direct", "model", 0)
  values["stages"] = [{"name": "a", "data": {"task_options": {"alphabet": size}}}]
  return stages_of(values)[0]


def test_it_runs_reports_and_does_not_repeat_what_is_finished(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(e4, "SIZES", [3])
  command = ["--workdir", str(tmp_path), "--arms", "direct", "--seeds", "0", "--steps", "4", "--form_steps", "1"]
  e4.main(command)
  first = capsys.readouterr()
  (line,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
  assert (line["arm"], line["alphabets"], line["steps"], line["samples"]) == ("direct", [3], [4], None)
  assert "seed 0 direct: None samples" in first.err
  assert "| direct | 1 | 0 | not reached | - | 0.000 | 0.000 | 0.000 |" in first.out
  monkeypatch.setattr(e4.training, "train", lambda *_: pytest.fail("it ran again"))
  for again in (command, [*command, "--report_only"]):
    e4.main(again)
    assert capsys.readouterr().out == first.out
