"""Curricula: a description of stages that differ in one option of their task, written out as stages.

Nothing else knows of curricula: stop rules, resuming and plans see a list of stages.
"""

from dataclasses import dataclass

import numpy as np

from nrt_jax.errors import UserError, require_choice
from nrt_jax.records.stopping import StopConfig

ORDERS = ("given", "direct", "shuffled")


@dataclass(frozen=True)
class CurriculumConfig:
  """One stage for each value of an option of the task; all but the last of them end on success."""

  option: str = ""  # of the task: a key of data.task_options, such as "n_digits"
  values: tuple = ()  # what it is in one stage after another
  order: str = "given"  # given | direct: the last value alone | shuffled by the run's seed, the last value too
  metric: str = "completion/accuracy"  # the stop rule of all stages but the last, which keeps the stage's own
  bar: float = 0.8  # see stop.bar
  episodes: int = 1024  # see stop.episodes

  def __post_init__(self):
    if not self.option:
      raise UserError("curriculum.option: found '', allowed: a key of data.task_options")
    plain = isinstance(self.values, tuple) and all(isinstance(value, (int, float, str)) for value in self.values)
    if not plain or not self.values or len(set(self.values)) < len(self.values):
      found = list(self.values) if isinstance(self.values, tuple) else self.values
      raise UserError(f"curriculum.values: found {found!r}, allowed: a list of numbers or texts, each of them once")
    require_choice("curriculum.order", self.order, ORDERS)
    try:
      StopConfig(self.metric, self.bar, self.episodes)
    except UserError as error:
      raise UserError(str(error).replace("stop.", "curriculum.", 1)) from error

  def ordered(self, seed: int) -> tuple:
    """The values in the order of the stages."""
    if self.order == "direct":
      return self.values[-1:]
    if self.order == "given":
      return self.values
    return tuple(self.values[i] for i in np.random.default_rng(seed).permutation(len(self.values)))


def written_out(curriculum: CurriculumConfig, stage: dict, seed: int) -> list[dict]:
  """The mapping of a stage as those of its curriculum's stages, named after the stage, the option and its value."""
  rule = {"metric": curriculum.metric, "bar": curriculum.bar, "episodes": curriculum.episodes}
  values, data, stages = curriculum.ordered(seed), stage.get("data", {}), []
  for value in values:
    options = {**data.get("task_options", {}), curriculum.option: value}
    name = f"{stage['name']}_{curriculum.option}_{value}"
    stages.append({**stage, "name": name, "data": {**data, "task_options": options}, "stop": rule})
  stages[-1] = {**stages[-1], "stop": stage.get("stop", {})}
  return stages
