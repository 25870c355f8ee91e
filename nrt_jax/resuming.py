"""Whether a workdir may be resumed: what its run was configured with and trained on, against what is there now.

Keys that leave training as it was may change (FREE). Files are compared by their content, not by their names (PLACES).
All else is refused by name, with both values, unless `--allow_change KEY` allows it.
"""

import dataclasses
import hashlib
import json
import os
from typing import NamedTuple

from nrt_jax.config import ModelSource, RunConfig, stages_of
from nrt_jax.errors import UserError, at
from nrt_jax.files import json_safe, write_json
from nrt_jax.processes import fingerprint
from nrt_jax.records import mirror

INPUTS_FILE = "inputs.json"
# May change: how long, how often, how fast, on which devices, and what `evaluate` asks. The result differs by rounding.
FREE = (
  "total_steps", "stop", "logging", "checkpoint", "parallel", "evaluation.every_steps", "evaluation.batch_prompts",
  "evaluation.sets", "evaluation.sets_directory",
  "optimizer.max_skipped_steps", "model.remat", "model.layer_loop", "model.attention", "model.attention_block",
  "model.head_chunk",
)  # fmt: skip
# Names of files and directories: where inputs.json has the fingerprint of what was in them, only that counts.
PLACES = ("model.path", "prompt.tokenizer", "prompt.chat_template", "data.source", "evaluation.data.source")
DATA = ("data.source", "evaluation.data.source")
BY_STAGE = (*DATA, "tokens.active")  # what inputs.json has for each stage
MODEL_SETTINGS = (
  *(f.name for f in dataclasses.fields(ModelSource)), "vocab_padding", "vocab_unused", "platform", "trained",
  "vocab_inactive",
)  # fmt: skip


class Change(NamedTuple):
  """What differs from the workdir's run."""

  key: str  # of the config
  what: str  # the key; of a file or directory, what it holds
  before: object
  now: object
  matters: bool

  def __str__(self):
    return f"{self.what}: {_shown(self.before)} in the workdir, {_shown(self.now)} now"


def describe_inputs(tokenizer, stages: list) -> dict:
  """JSON that identifies what a run reads: key of the config -> name -> value. `stages`: startup.Stage."""
  model = dataclasses.asdict(stages[0].setup.model)
  model["vocab_size"] -= model["vocab_padding"]
  inputs = {"model.path": {name: value for name, value in model.items() if name not in MODEL_SETTINGS}}
  inputs["prompt.tokenizer"] = {"tokens": fingerprint(sorted(tokenizer.get_vocab().items()))}
  inputs["prompt.tokenizer"] |= {"chat template": fingerprint(tokenizer.chat_template)}
  inputs["prompt.tokenizer"] |= {"format": fingerprint(dataclasses.asdict(stages[0].setup.form))}
  for name, part in (("data.source", "train_data"), ("evaluation.data.source", "eval_data")):
    sets = {stage.setup.run.stage: getattr(stage, part) for stage in stages}
    inputs[name] = {stage: data_fingerprint(data.examples) for stage, data in sets.items() if data is not None}
  # They follow from the data of the stages before, and from which stage is the last.
  idle = {stage.setup.run.stage: stage.setup.model.vocab_inactive for stage in stages}
  inputs["tokens.active"] = {name: f"all but {len(ids)} {fingerprint(ids)}" for name, ids in idle.items()}
  return json.loads(json.dumps(json_safe(inputs)))


def data_fingerprint(examples: list) -> str:
  """The number of examples and twelve hexadecimal digits that depend on their texts, weights and order."""
  found = hashlib.sha256()
  for example in examples:
    parts = (example.question, example.answer, example.trace, example.weight)
    parts += () if example.world is None else (example.world,)  # as in workdirs from before there were worlds
    found.update(repr(parts).encode(errors="surrogatepass"))
  return f"{len(examples)} examples {found.hexdigest()[:12]}"


def write_inputs(workdir: str, inputs: dict) -> None:
  write_json(os.path.join(workdir, INPUTS_FILE), inputs)


def check(workdir: str, runs: list[RunConfig], inputs: dict, stage: int, allowed=()) -> list[str]:
  """Compares with the run in `workdir`, whose checkpoint is of stage number `stage`. Returns the changes, as notes.

  Raises UserError for changes that matter, unless `allowed` names their keys, or mappings that they are in.
  """
  before = _read_json(workdir, "config.json")
  if before is None:  # a run of the library alone, which was given no values to write
    return []
  recorded, changes = _read_json(workdir, INPUTS_FILE), {}
  with at(os.path.join(workdir, "config.json")):
    old_runs = stages_of(before)
  free = FREE if recorded is None else (*FREE, *PLACES)
  for old, new in list(zip(old_runs, runs))[: stage + 1]:  # of later stages nothing has been done yet
    changes |= {change.key: change for change in config_changes(old, new, free)}
  found = list(changes.values())
  groups = {change.key.split(".")[0] for change in found if change.matters and within(change.key, allowed)}
  if recorded is not None:
    names = [run.stage for run in runs[: stage + 1]]
    found += [change for change in input_changes(recorded, inputs, names) if not _follows(change, groups)]
  refused = [change for change in found if change.matters and not within(change.key, allowed)]
  if refused:
    flags = " ".join(f"--allow_change {key}" for key in dict.fromkeys(change.key for change in refused))
    where = os.path.dirname(mirror.checkpoints_of(workdir))
    raise UserError(f"{where}: {'; '.join(map(str, refused[:5]))}; allowed: the same, {flags}, or another --workdir")
  return [f"changed since the run was here last: {change}" for change in found]


def config_changes(old: RunConfig, new: RunConfig, free) -> list[Change]:
  """The keys of a stage's config that differ. Of another algorithm, which has other keys, only the name is listed."""
  before, now = flat(old), flat(new)
  other = before["algorithm.name"] != now["algorithm.name"]
  keys = [key for key in {**before, **now} if not (other and key.startswith("algorithm.") and key != "algorithm.name")]
  pairs = [(key, before.get(key), now.get(key)) for key in keys]
  return [Change(key, key, old, new, not within(key, free)) for key, old, new in pairs if old != new]


def input_changes(recorded: dict, inputs: dict, stages: list[str]) -> list[Change]:
  """What differs of the files that were read, for the given stages. What only one side knows is not compared."""
  found = []
  for key in recorded.keys() & inputs.keys():
    for name, before in recorded[key].items():
      now = inputs[key].get(name, before)
      if before != now and (key not in BY_STAGE or name in stages):
        found.append(Change(key, f"{key}: its {name}" if key not in DATA else f"{key}: its content", before, now, True))
  return sorted(found)


def within(key: str, names) -> bool:
  """Whether the key is among the names, or in a mapping that is."""
  return any(key == name or key.startswith(f"{name}.") for name in names)


def check_steps(step: int, ends: tuple, done: int, runs: list[RunConfig]) -> None:
  """Raises UserError where a checkpoint's stages did not end where this config has them end.

  step: of the run; ends: steps that each stage before took; done: steps of its stage that the checkpoint has behind it.
  A stage may have ended before its last step only by its stop rule.
  """
  run, before = runs[len(ends)], runs[: len(ends)]
  configured = [earlier.total_steps for earlier in before]
  early = [end < most for end, most in zip(ends, configured)]
  by_rule = all(earlier.stop.metric for earlier, short in zip(before, early) if short)
  if sum(ends) + done != step or not by_rule or any(end > most for end, most in zip(ends, configured)):
    raise UserError(
      f"total_steps: found {sum(configured)} in the stages before {run.stage!r}, allowed: {step - done}, as the "
      "workdir's checkpoint has it, or another --workdir"
    )
  if done > run.total_steps:
    raise UserError(
      f"total_steps: found {run.total_steps} for stage {run.stage!r}, of which the workdir's checkpoint has {done} "
      f"behind it, allowed: {done} or more, or another --workdir"
    )


def _follows(change: Change, groups: set) -> bool:
  """Whether other contents are what an allowed change of settings makes of the same files."""
  group = change.key.split(".")[0]
  return group in groups or ("prompt" in groups and change.key in BY_STAGE) or ("data" in groups and group == "tokens")


def flat(run: RunConfig) -> dict:
  """key -> value, with keys as in a config file."""

  def walk(value, name):
    if isinstance(value, dict):
      for key, item in value.items():
        yield from walk(item, f"{name}.{key}" if name else key)
    else:
      yield name, value

  values = dataclasses.asdict(run)
  values["algorithm"]["name"] = values.pop("algorithm_name")
  environment = values.pop("environment_name")
  if environment is not None:
    values["environment"]["name"] = environment
  del values["stage"]
  return dict(walk(values, ""))


def _shown(value) -> str:
  text = json.dumps(json_safe(value), ensure_ascii=False)
  return text if len(text) <= 80 else text[:77] + "..."


def _read_json(workdir: str, name: str) -> dict | None:
  """A JSON object; None if there is no such file. UserError if it can't be read."""
  path = os.path.join(workdir, name)
  if not os.path.exists(path):
    return None
  try:
    with open(path, encoding="utf-8") as file:
      value = json.load(file)
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: unreadable: {error}") from error
  if not isinstance(value, dict):
    raise UserError(f"{path}: found {type(value).__name__}, allowed: an object")
  return value
