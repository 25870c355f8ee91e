"""The stop rule of a stage."""

import math

import numpy as np
import pytest
import reference

from nrt_jax import config
from nrt_jax.errors import UserError
from nrt_jax.records.stopping import StopConfig


def end_of(rule: StopConfig, values, of_step: int) -> int:
  """The step with which a stage of these metrics ends: the loop's order of seeing and deciding."""
  window = ()
  for step, value in enumerate(values, 1):
    if rule.reached(window, of_step):
      return step
    window = rule.seen(window, {rule.metric: value, "loss/total": 9.0}, of_step)
  return len(values)


@pytest.mark.parametrize("episodes, steps", [(1, 1), (16, 1), (17, 2), (64, 4), (1000, 63)])
@pytest.mark.parametrize("bar", [0.4, 0.55, 0.6, 0.95])
def test_a_stage_ends_one_step_after_its_last_episodes_are_at_the_bar(episodes, steps, bar):
  values = np.clip(np.random.default_rng(episodes).normal(np.linspace(0.2, 0.9, 80), 0.2), 0, 1).tolist()
  rule = StopConfig("completion/accuracy", bar, episodes)
  assert end_of(rule, values, 16) == reference.last_step(values, bar, steps)


def test_exactly_at_the_bar_is_enough():
  rule = StopConfig("completion/accuracy", 1.0, 32)
  assert rule.reached((1.0, 1.0), 16) and not rule.reached((1.0,), 16)
  assert not rule.reached((1.0, 1 - 1e-6), 16)
  assert StopConfig("reward/mean", -1.5, 16).reached((-1.5,), 16)


def test_the_window_keeps_the_last_steps_and_starts_anew_where_a_metric_is_not_finite():
  rule, window = StopConfig("reward/mean", 0.5, 48), ()
  for value in (1, 2, 3, 4):
    window = rule.seen(window, {"reward/mean": value}, 16)
  assert window == (2, 3, 4)
  assert rule.seen(window, {}, 16) == window  # no step was fetched
  assert rule.seen(window, {"reward/mean": math.nan}, 16) == ()


def test_without_a_metric_nothing_ends():
  assert StopConfig().seen((), {"reward/mean": 1.0}, 16) == () and not StopConfig().reached((), 16)


@pytest.mark.parametrize(
  "stop, says",
  [
    ({"bar": 1.5}, "stop.bar: found 1.5, allowed: at most 1"),
    ({"metric": "completion/accuracy", "bar": 0.0}, "stop.bar: found 0.0, allowed: above 0, up to 1, for completion"),
    ({"metric": "trace/marker_fraction", "bar": -1}, "stop.bar: found -1.0, allowed: above 0, up to 1, for trace/mar"),
    ({"episodes": 0}, "stop.episodes: found 0, allowed: 1 or more"),
    ({"bar": math.nan}, "stop.bar: found nan, allowed: finite numbers"),
    ({"metrics": "reward/mean"}, "stop: unknown key: found 'metrics', allowed: bar, episodes, metric .did you mean"),
  ],
)
def test_bad_rules_are_one_line(stop, says):
  for values, where in (({"stop": stop}, ""), ({"stages": [{"name": "a", "stop": stop}]}, r"stages\[0\]\.")):
    with pytest.raises(UserError, match=f"^{where}{says}"):
      config.stages_of({**config.defaults(), **values})
