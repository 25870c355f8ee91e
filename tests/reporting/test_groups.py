"""Which runs are one line of the report, how lines are named, and their means and bands."""

import json

import pytest

from nrt_jax import errors
from nrt_jax.reporting import groups

NRT = {"seed": 0, "algorithm": {"name": "nrt", "reward": "prob"}, "optimizer": {"learning_rate": 1e-3}}


def write(path, values, rewards=(1.0,)):
  path.mkdir()
  if values is not None:
    (path / "config.json").write_text(json.dumps(values))
  lines = [{"step": step, "reward/mean": reward} for step, reward in enumerate(rewards, 1)]
  (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return groups.read(str(path))


def changed(seed, **algorithm):
  return {**NRT, "seed": seed, "algorithm": {**NRT["algorithm"], **algorithm}}


def test_the_band_of_seeds(tmp_path):
  """The mean over the runs that have a step, and the lowest and highest of them; a null is no value."""
  one = write(tmp_path / "a", changed(0), (1.0, 2.0, 6.0))
  two = write(tmp_path / "b", changed(1), (3.0, None))
  (group,) = groups.grouped([one, two])
  assert [run.seed for run in group.runs] == [0, 1] and group.label == "nrt"
  assert groups.curve(group, "reward/mean", 3) == [
    {"s": 1, "m": 2.0, "l": 1.0, "h": 3.0, "n": 2},
    {"s": 2, "m": 2.0, "l": 2.0, "h": 2.0, "n": 1},
    {"s": 3, "m": 6.0, "l": 6.0, "h": 6.0, "n": 1},
  ]
  assert groups.spread(group, "reward/mean", 1) == (4.5, 3.0, 6.0)
  assert groups.spread(group, "reward/mean", 2) == (3.5, 3.0, 4.0)
  assert groups.spread(group, "loss/total", 1) is None and groups.curve(group, "loss/total", 3) == []


def test_long_curves_are_means_of_pieces(tmp_path):
  """Of each run first, so that the band is still that of seeds and not that of steps."""
  steps = 2 * groups.POINTS - 1
  runs = [write(tmp_path / str(seed), changed(seed), [step % 2 + seed for step in range(steps)]) for seed in (0, 1)]
  points = groups.curve(*groups.grouped(runs), "reward/mean", steps)
  assert len(points) == groups.POINTS
  assert points[0] == {"s": 2, "m": 1.0, "l": 0.5, "h": 1.5, "n": 2}
  assert points[-1] == {"s": steps, "m": 0.5, "l": 0.0, "h": 1.0, "n": 2}  # what is left, and no step beyond the last


def test_runs_are_one_line_only_if_nothing_but_the_seed_differs(tmp_path):
  values = [changed(0), changed(1), changed(0, reward="log_prob"), {**changed(2), "from_checkpoint": "start_2"}]
  runs = [write(tmp_path / str(i), value) for i, value in enumerate(values)]
  bare = [write(tmp_path / name, None) for name in ("x", "y")]
  assert [len(group.runs) for group in groups.grouped(runs + bare)] == [2, 1, 1, 1, 1]
  together = groups.grouped(runs, ignored=["from_*"])
  assert [(group.label, len(group.runs)) for group in together] == [("nrt reward=prob", 3), ("nrt reward=log_prob", 1)]


def test_what_differs_between_configs(tmp_path):
  stages = {"stages": [{"name": "one", "total_steps": 3}, {"total_steps": 4}]}
  values = [changed(0), changed(5, reward="log_prob", center="mean"), {**changed(0), **stages}]
  runs = [write(tmp_path / str(i), value) for i, value in enumerate(values)]
  keys = ["algorithm.reward", "algorithm.center", "stages.one.name", "stages.one.total_steps", "stages.1.total_steps"]
  assert groups.differing(runs) == keys
  assert [groups.shown(run.config, "algorithm.reward") for run in runs] == ["prob", "log_prob", "prob"]
  assert groups.shown(runs[0].config, "algorithm.center") == groups.ABSENT
  assert groups.shown(runs[0].config, "optimizer.learning_rate") == "0.001"
  assert groups.differing(runs[:2], ignored=["algorithm.c*"]) == ["algorithm.reward"]


def test_lines_are_named_by_method_then_by_what_differs_in_it(tmp_path):
  values = [changed(0), changed(0, reward="log_prob"), {"seed": 0, "algorithm": {"name": "sft"}}, None, None]
  names = ("a", "b", "c", "d", "e")
  runs = [write(tmp_path / name, value) for name, value in zip(names, values)]
  assert groups.labels(runs) == ["nrt reward=prob", "nrt reward=log_prob", "sft", "d", "e"]
  many = [changed(0, **{f"key{i}": value for i in range(4)}) for value in (1, 2)]
  runs = [write(tmp_path / f"many{i}", value) for i, value in enumerate(many)]
  assert groups.labels(runs) == ["many0", "many1"]
  (tmp_path / "sub").mkdir()
  same = [write(tmp_path / "d2", None), write(tmp_path / "sub" / "d2", None)]
  assert groups.labels(same) == [str(tmp_path / "d2"), str(tmp_path / "sub" / "d2")]


@pytest.mark.parametrize("text,says", [("{", "config.json: not JSON: "), ("[1]", "config.json: found [1], allowed: ")])
def test_a_config_that_is_none(tmp_path, text, says):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(errors.UserError, match=says.replace("[", r"\[")):
    groups.read_config(str(tmp_path))
