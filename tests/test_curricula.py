"""Curricula, written out as stages."""

import json

import pytest

from nrt_jax import config
from nrt_jax.errors import UserError
from nrt_jax.records.stopping import StopConfig

CURRICULUM = {"option": "n_digits", "values": [4, 6, 8], "metric": "reward/mean", "bar": 0.5, "episodes": 64}


def stages(over=None, /, **curriculum) -> list:
  base = config.defaults("nrt")
  base["data"]["task_options"] = {"base": 3}
  return config.stages_of({**base, "curriculum": {**CURRICULUM, **curriculum}, **(over or {})})


def options(runs) -> list:
  return [dict(run.data.task_options) for run in runs]


def test_each_value_is_a_stage_that_ends_on_success_and_the_last_does_not():
  runs = stages()
  assert [run.stage for run in runs] == ["main_n_digits_4", "main_n_digits_6", "main_n_digits_8"]
  assert options(runs) == [{"base": 3, "n_digits": n} for n in (4, 6, 8)]
  assert [run.stop for run in runs] == [StopConfig("reward/mean", 0.5, 64)] * 2 + [StopConfig()]
  assert {run.total_steps for run in runs} == {100}


def test_the_last_stage_keeps_the_rule_of_the_run():
  runs = stages({"stop": {"metric": "answer/logp", "bar": -0.1}})
  assert [run.stop.metric for run in runs] == ["reward/mean", "reward/mean", "answer/logp"]


def test_a_stage_of_others_may_have_one():
  second = {"name": "reward", "curriculum": CURRICULUM, "total_steps": 7, "data": {"task_options": {"base": 4}}}
  runs = stages({"curriculum": None, "stages": [{"name": "pretrain", "algorithm": {"name": "sft"}}, second]})
  names = ["pretrain", "reward_n_digits_4", "reward_n_digits_6", "reward_n_digits_8"]
  assert [run.stage for run in runs] == names and [run.total_steps for run in runs] == [100, 7, 7, 7]
  assert options(runs) == [{"base": 3}] + [{"base": 4, "n_digits": n} for n in (4, 6, 8)]
  assert runs[0].stop == StopConfig() and runs[0].algorithm_name == "sft"


def test_direct_is_the_last_value_alone():
  (run,) = stages(order="direct")
  assert dict(run.data.task_options)["n_digits"] == 8 and run.stop == StopConfig()


def test_shuffled_follows_the_seed():
  found = [tuple(o["n_digits"] for o in options(stages({"seed": seed}, order="shuffled"))) for seed in range(12)]
  assert {tuple(sorted(order)) for order in found} == {(4, 6, 8)} and len(set(found)) > 3
  assert found == [tuple(o["n_digits"] for o in options(stages({"seed": s}, order="shuffled"))) for s in range(12)]


def test_top_level_steps_cap_every_value():
  values = {"total_steps": 3, "curriculum": None, "stages": [{"name": "a", "curriculum": CURRICULUM, "total_steps": 9}]}
  assert [run.total_steps for run in stages(values)] == [3, 3, 3]


def test_the_config_is_left_as_it_was():
  values = {**config.defaults("nrt"), "curriculum": CURRICULUM}
  before = json.dumps(values)
  config.stages_of(values)
  assert json.dumps(values) == before


@pytest.mark.parametrize(
  "curriculum, says",
  [
    ({"option": ""}, "curriculum.option: found '', allowed: a key of data.task_options"),
    ({"values": []}, r"curriculum.values: found \[\], allowed: a list of numbers or texts, each of them once"),
    ({"values": [4, 4]}, r"curriculum.values: found \[4, 4\], allowed"),
    ({"values": [{"x": 1}]}, "curriculum.values: found .*, allowed: a list of numbers"),
    ({"values": {"x": 1}}, "curriculum.values: found .*, allowed: a list of numbers"),
    ({"values": 4}, "curriculum.values: found 4, allowed: "),
    ({"order": "random"}, "curriculum.order: found 'random', allowed: direct, given, shuffled"),
    ({"bar": 1.1}, "curriculum.bar: found 1.1, allowed: at most 1"),
    ({"episodes": 0}, "curriculum.episodes: found 0, allowed: 1 or more"),
    ({"value": [1]}, "curriculum: unknown key: found 'value', allowed: .*did you mean 'values'"),
  ],
)
def test_bad_curricula_are_one_line(curriculum, says):
  with pytest.raises(UserError, match=f"^{says}") as error:
    stages(**curriculum)
  assert "\n" not in str(error.value)
  staged = {"curriculum": None, "stages": [{"name": "a", "curriculum": {**CURRICULUM, **curriculum}}]}
  with pytest.raises(UserError, match=rf"^stages\[0\]\.{says}"):
    stages(staged)


def test_a_curriculum_needs_a_task_and_a_place_of_its_own():
  with pytest.raises(UserError, match="^curriculum.option: found 'n_digits' with data.source 'pairs.jsonl', allow"):
    stages({"data": {"source": "pairs.jsonl"}})
  with pytest.raises(UserError, match="^curriculum: found one beside stages, allowed: inside of a stage"):
    stages({"stages": [{"name": "a"}]})
  same = [{"name": "a", "curriculum": CURRICULUM}, {"name": "a_n_digits_6"}]
  with pytest.raises(UserError, match=r"^stages\[1\].name: found 'a_n_digits_6', allowed: a text of its own"):
    stages({"curriculum": None, "stages": same})
  for stage in ({"name": "a", "curriculum": 3}, {"name": "a", "curriculum": CURRICULUM, "data": 3}):
    with pytest.raises(UserError, match=r"^stages\[0\].(curriculum|data): found 3, allowed: a mapping"):
      stages({"curriculum": None, "stages": [stage]})
