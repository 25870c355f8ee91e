"""Checkpoints: the last few and the best, written atomically in the background.

A step is written to a temporary directory and renamed when complete, and renamed into TRASH before it is deleted. A
process killed at any time thus leaves only complete steps under their names. In a bucket (folders.py) nothing can be
renamed, and an object that Orbax writes last says that a step is complete. The state is stored flat, by tree paths
("policy/params/embed/embedding"): mismatches are reported by name, and parts can be restored without the rest.

A step's record holds a digest of each array (digests.py), with which what is restored is compared. Where bits have
changed, or a file is truncated or gone, the step is damaged, and the newest one that is whole takes its place.
A step that storage refuses (storage.py) is not saved, which is said, and the run goes on.
"""

import json
import math
import os
from dataclasses import dataclass

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from nrt_jax import processes
from nrt_jax.errors import UserError, require_choice, warn
from nrt_jax.records import digests, folders, storage

METRICS = "metrics"  # the item of a step that Orbax ranks it by: a file of this name in a directory of this name
STATE = "state"  # the directory of a step's arrays
RECORD = os.path.join("record", "metadata")  # the file of a step's record


@dataclass(frozen=True)
class CheckpointConfig:
  """When to save and what to keep."""

  every_steps: int = 100  # training steps between checkpoints; 0 saves only at the end of the run
  keep_last: int = 2  # number of newest checkpoints to keep
  keep_best: str | None = None  # metric whose best checkpoint is also kept, e.g. "eval/heldout/accuracy"
  best_mode: str = "max"  # max | min: whether higher or lower values of keep_best are better
  async_save: bool = True  # write in the background while training continues

  def __post_init__(self):
    require_choice("checkpoint.best_mode", self.best_mode, ("max", "min"))
    for key, least in (("every_steps", 0), ("keep_last", 1)):
      if getattr(self, key) < least:
        raise UserError(f"checkpoint.{key}: found {getattr(self, key)!r}, allowed: {least} or more")

  def rank(self, metrics: dict) -> float:
    """Higher is better; a checkpoint whose metric is missing or not finite ranks last."""
    value = metrics.get(self.keep_best, math.nan)
    if not math.isfinite(value):
      return -math.inf
    return value if self.best_mode == "max" else -value


class Damaged(UserError):
  """A checkpoint that can't be read, or whose bits are not those that were saved."""


class Checkpoints:
  """The checkpoints of a run. `read_only` never disturbs a run that is still writing them."""

  def __init__(self, directory: str, config: CheckpointConfig = CheckpointConfig(), read_only: bool = False):
    self._folder = folders.open_folder(str(directory))
    self._directory = self._folder.place
    self._config = config
    self.before_save = lambda: None  # what must be stored before a step is; where storage refuses it, so is the step
    if read_only and not self._folder.exists():
      raise UserError(f"{directory}: no such checkpoint directory")
    self._reader = ocp.PyTreeCheckpointHandler()  # not a Checkpointer, which warns of files that only steps have
    self._manager, self._newest = None, None  # the step of the newest save
    if not read_only:
      self.storage = storage.Storage(self._directory)
      self._empty_trash()
      self._mend_metrics()
      self._open()

  # ---- Writing

  def due(self, step: int) -> bool:
    """Whether `step` is a multiple of `every_steps`."""
    return self._config.every_steps > 0 and step % self._config.every_steps == 0

  def save(self, step: int, states, record: dict, metrics: dict | None = None) -> None:
    """Saves a tree of arrays and a JSON `record`; returns once the arrays are copied, so that they may be donated.

    Does nothing if the step exists. `metrics` holds `keep_best` if it was measured. Every host must call this. Where
    storage refuses it, then or in the background, a warning says that the step is not saved.
    """
    if self._manager is None:
      raise ValueError("these checkpoints were opened for reading")
    self.storage.require()
    self.wait()
    if step in self.all_steps():
      return
    ranked, flat = self._ranked(metrics or {}), _flat(states)
    sealed = digests.seal(record, digests.of_arrays(flat))
    items = ocp.args.Composite(state=ocp.args.PyTreeSave(flat), record=ocp.args.JsonSave(sealed))
    self._newest = step
    with self._refusing():
      self.before_save()
      self._reopen()
      self._manager.save(step, args=items, metrics=ranked, force=True)

  def amend(self, step: int, record: dict, metrics: dict) -> None:
    """Replaces a saved step's record and adds a `keep_best` measured after `save`. Every host must call this."""
    self.wait()
    ranked = {name: value for name, value in self._ranked(metrics).items() if not math.isnan(value)}
    sealed = digests.seal(record, self._record(step)[1])
    with self.storage.refusing(f"the evaluation of step {step} is not recorded with its checkpoint"):
      self.before_save()
      if ranked and jax.process_index() == 0:
        self._folder.write_json(ranked, str(step), METRICS, METRICS)
      if jax.process_index() == 0:
        self._folder.write_json(sealed, str(step), RECORD)  # last: until it is written, the evaluation is still due
    processes.together("checkpoint amended")
    self._manager.reload()

  def _ranked(self, metrics: dict) -> dict:
    return {name: float(value) for name, value in metrics.items() if name == self._config.keep_best}

  # ---- Reading

  def restore(self, step: int | None, abstract, partial: bool = False):
    """(tree, record) of `step`, or of the newest that is whole (None). The tree is like `abstract`, shardings included.

    Leaves of `abstract` are arrays or ShapeDtypeStructs; one without a sharding is put on the first device. With
    `partial`, entries of the checkpoint that `abstract` lacks are not read. Raises UserError if the step does not
    exist, if it is damaged, or if its tree doesn't match, naming the first key that differs.
    """
    if step is None:
      return self.newest(lambda step: self.restore(step, abstract, partial))[1]
    step = self._existing(step)
    record, expected = self._record(step)
    wanted, path = {key: _abstract(leaf) for key, leaf in _flat(abstract).items()}, epath.Path(self._path(step, STATE))
    stored = self.stored(step)
    if expected and expected.keys() != stored.keys():
      raise self._damage(step, "its arrays are not those that were saved")
    _require_fit(self._path(step), stored, wanted, partial)
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    arrays = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
    found = self._read(step, lambda: self._reader.restore(path, args=arrays))
    other = (key for key in wanted if found[key].dtype != wanted[key].dtype)
    if (changed := digests.changed(found, expected) or next(other, None)) is not None:
      raise self._damage(step, f"{changed}: its bits are not those that were saved")
    return jax.tree.unflatten(jax.tree.structure(abstract), [found[key] for key in wanted]), record

  def stored(self, step: int) -> dict:
    """Shapes and dtypes of a step's arrays by key. Raises as `restore` does where they can't be read."""
    return self._read(step, lambda: dict(self._reader.metadata(epath.Path(self._path(step, STATE))).items()))

  def record(self, step: int | None = None) -> dict:
    """The record alone, which a reader needs before it can describe the tree. Raises as `restore` does."""
    if step is None:
      return self.newest(self.record)[1]
    return self._record(self._existing(step))[0]

  def newest(self, read):
    """(step, read(step)) of the newest step that is whole, where `read` raises Damaged for others.

    Damaged ones are named in a warning each; a writer also moves them to `damaged/`, for their numbers are to be used
    again. A reader looks again where a step was deleted under its hands. Every host must call this. UserError if no
    step is whole.
    """
    found = {}  # step -> how it is damaged
    while True:
      steps = [step for step in self.all_steps() if step not in found]
      if not steps and found:
        raise UserError(f"{self._directory}: holds no checkpoint that is whole: {found[max(found)]}")
      step = self._existing(steps[-1] if steps else None)
      try:
        value, damage = read(step), None
      except UserError as error:
        if self._manager is None and step not in self.all_steps():
          continue  # the run that writes it has deleted it meanwhile
        if not isinstance(error, Damaged):
          raise
        value, damage = None, error
      if processes.on_any(damage is not None):
        found[step] = damage or f"{self._path(step)}: damaged on another host"
        continue
      for old, reason in found.items():
        self._set_aside(old, f"{reason}; step {step} is used")
      return step, value

  def all_steps(self) -> list[int]:
    """Saved steps, oldest first; a writer's include the one being written."""
    if self._manager is not None:
      return sorted(self._manager.all_steps())
    return sorted(self._folder.steps())

  def latest_step(self) -> int | None:
    return max(self.all_steps(), default=None)

  def best_step(self) -> int | None:
    """The step with the best `keep_best`; the newest if no checkpoint has it."""
    self.wait()
    return max(self.all_steps(), key=lambda step: (self._config.rank(self._metrics(step) or {}), step), default=None)

  def wait(self) -> None:
    """Blocks until everything is on disk, or refused in the background, which is said."""
    if self._manager is not None:
      with self._refusing():
        self._manager.wait_until_finished()
      self.storage.clean()
      self._empty_trash()

  def require_saved(self, step: int) -> None:
    """Raises UserError if storage has refused the last step of a run, which must not end as if nothing had been."""
    if step not in self.all_steps():
      again = f"resumes from step {max(self.all_steps())}" if self.all_steps() else "starts again"
      raise UserError(f"{self._path(step)}: the last checkpoint could not be saved; the same command {again}")

  def close(self) -> None:
    self.wait()
    if self._manager is not None:
      with self._refusing():
        self._manager.close()
    self._reader.close()

  # ---- Files

  def _open(self) -> None:
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
    try:
      self._manager = ocp.CheckpointManager(self._directory, options=_options(self._config), item_handlers=handlers)
    except Exception as error:
      self._folder.require_reached(error)
      raise

  def _reopen(self) -> None:
    """After a refusal: what is left of it in Orbax would be told of as if the next step had been refused."""
    if not self._folder.reopens or not self.storage.refusals:
      return
    try:
      self._manager.close()
    except Exception as error:
      if self._folder.refusal(error) is None:
        raise
    self._open()
    self.storage.refusals = 0

  def _refusing(self):
    return self.storage.refusing(f"checkpoint {self._newest} is not saved")

  def _path(self, step: int, *names: str) -> str:
    return os.path.join(self._directory, str(step), *names)

  def _existing(self, step: int | None) -> int:
    self.wait()
    steps = self.all_steps()
    if not steps:
      raise UserError(f"{self._directory}: holds no checkpoint")
    if step is not None and step not in steps:
      raise UserError(f"{self._directory}: found no checkpoint {step}, allowed: {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step

  def _record(self, step: int) -> tuple[dict, dict]:
    """(record, digests of the arrays) of a step."""
    return self._read(step, lambda: digests.unseal(json.loads(self._folder.read(str(step), RECORD))))

  def _read(self, step: int, read):
    """Runs `read` and reports damage, for which Orbax raises many exception types (even Exception), as one line."""
    storage.hush()
    try:
      return read()
    except Exception as error:
      reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
      if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in reason:
        raise  # the checkpoint may well be whole
      self._folder.require_reached(error)
      raise self._damage(step, reason) from error

  def _damage(self, step: int, reason: str) -> Damaged:
    return Damaged(f"{self._path(step)}: damaged checkpoint ({reason})")

  def _set_aside(self, step: int, reason: str) -> None:
    if self._manager is not None and jax.process_index() == 0:
      reason += f", and the damaged one is now in {self._folder.set_aside(step)}"
    if self._manager is not None:
      processes.together("damaged checkpoint set aside")
      self._manager.reload()
    if jax.process_index() == 0:
      warn(reason)

  def _metrics(self, step: int) -> dict | None:
    """What a step is ranked by; None if the file is gone or no JSON object."""
    try:
      metrics = json.loads(self._folder.read(str(step), METRICS, METRICS))
    except (OSError, ValueError) as error:
      self._folder.require_reached(error)
      return None
    numbers = isinstance(metrics, dict) and all(isinstance(value, (int, float)) for value in metrics.values())
    return metrics if numbers else None

  def _mend_metrics(self) -> None:
    """Orbax reads the metrics of every step at its start: where they are lost, the step counts as not measured."""
    if jax.process_index() == 0 and self._folder.exists():
      for step in self._folder.steps():
        if self._metrics(step) is None and self._folder.has(str(step), METRICS):
          self._folder.write_json({}, str(step), METRICS, METRICS)
    processes.together("metrics mended")

  def _empty_trash(self) -> None:
    if jax.process_index() == 0:
      self._folder.empty_trash()


def _options(config: CheckpointConfig) -> ocp.CheckpointManagerOptions:
  """Orbax keeps a step if any policy does; `best_fn` makes it store the metrics, to rank steps after a restart."""
  keep = [policies.LatestN(config.keep_last)]
  if config.keep_best:
    keep.append(policies.BestN(get_metric_fn=config.rank, n=1))
  return ocp.CheckpointManagerOptions(
    preservation_policy=policies.AnyPreservationPolicy(keep),
    best_fn=config.rank,
    enable_async_checkpointing=config.async_save,
    cleanup_tmp_directories=True,
    todelete_subdir=folders.TRASH,
  )


def _flat(tree) -> dict:
  """{path: leaf}, with paths like "policy/opt_state/0/mu/embed/embedding", in the order of the tree's leaves."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _abstract(leaf) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _describe(leaf) -> str:
  """Dtype and shape as stored; a typed key is stored as its data."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
  return f"{leaf.dtype}{list(leaf.shape)}"


def _require_fit(path: str, stored: dict, wanted: dict, partial: bool) -> None:
  """Raises UserError at the first key that is missing, has a different shape or dtype, or is unexpected."""
  for key, leaf in wanted.items():
    found = _describe(stored[key]) if key in stored else "nothing"
    if found != _describe(leaf):
      raise UserError(f"{path}: {key}: found {found} in the checkpoint, allowed: {_describe(leaf)}")
  extra = sorted(stored.keys() - wanted.keys())
  if extra and not partial:
    raise UserError(f"{path}: {extra[0]}: found in the checkpoint, not in the state to be restored")
