"""Checkpoints: the last few and the best, written atomically in the background.

A step is written to a temporary directory and renamed when complete, and renamed into TRASH before it is deleted. A
process killed at any time thus leaves only complete steps under their names. The state is stored flat, by tree paths
("policy/params/embed/embedding"): mismatches are reported by name, and parts can be restored without the rest.
"""

import math
import os
import shutil
from dataclasses import dataclass

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from nrt_jax.errors import UserError, require_choice
from nrt_jax.files import write_json

TRASH = "trash"
METRICS = "metrics"  # the item of a step that Orbax ranks it by: a file of this name in a directory of this name
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
    """Higher is better; a checkpoint whose metric is missing or NaN ranks last."""
    value = metrics.get(self.keep_best, math.nan)
    if math.isnan(value):
      return -math.inf
    return value if self.best_mode == "max" else -value


class Checkpoints:
  """The checkpoints of a run. `read_only` never disturbs a run that is still writing them."""

  def __init__(self, directory: str, config: CheckpointConfig = CheckpointConfig(), read_only: bool = False):
    self._directory = os.path.abspath(directory)
    self._config = config
    self._read_only = read_only
    if read_only and not os.path.isdir(self._directory):
      raise UserError(f"{directory}: no such checkpoint directory")
    self._empty_trash()
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
    self._manager = ocp.CheckpointManager(self._directory, options=_options(config, read_only), item_handlers=handlers)

  def due(self, step: int) -> bool:
    """Whether `step` is a multiple of `every_steps`."""
    return self._config.every_steps > 0 and step % self._config.every_steps == 0

  def save(self, step: int, states, record: dict, metrics: dict | None = None) -> None:
    """Saves a tree of arrays and a JSON `record`; returns once the arrays are copied, so that they may be donated.

    Does nothing if the step exists. `metrics` holds `keep_best` if it was measured. Every host must call this. Raises
    the error of an earlier save that failed in the background.
    """
    if self._read_only:
      raise ValueError("these checkpoints were opened for reading")
    self.wait()
    if step in self.all_steps():
      return
    ranked = self._ranked(metrics or {})
    items = ocp.args.Composite(state=ocp.args.PyTreeSave(_flat(states)), record=ocp.args.JsonSave(record))
    self._manager.save(step, args=items, metrics=ranked, force=True)

  def amend(self, step: int, record: dict, metrics: dict) -> None:
    """Replaces a saved step's record and adds a `keep_best` measured after `save`. Every host must call this."""
    self.wait()
    ranked = {name: value for name, value in self._ranked(metrics).items() if not math.isnan(value)}
    path = os.path.join(self._directory, str(step))
    if ranked and jax.process_index() == 0:
      write_json(os.path.join(path, METRICS, METRICS), ranked)
    if jax.process_index() == 0:
      write_json(os.path.join(path, RECORD), record)  # last: until it is written, the evaluation is still due
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("checkpoint amended")
    self._manager.reload()

  def _ranked(self, metrics: dict) -> dict:
    return {name: float(value) for name, value in metrics.items() if name == self._config.keep_best}

  def restore(self, step: int | None, abstract, partial: bool = False):
    """(tree, record) of `step` (None: the newest); the tree has the structure and shardings of `abstract`.

    Leaves of `abstract` are arrays or ShapeDtypeStructs; one without a sharding is put on the first device. With
    `partial`, entries of the checkpoint that `abstract` lacks are not read. Raises UserError if the step does not
    exist, if it can't be read, or if its tree doesn't match, naming the first key that differs.
    """
    step = self._existing(step)
    wanted = {key: _abstract(leaf) for key, leaf in _flat(abstract).items()}
    stored = self._read(step, lambda: dict(self._manager.item_metadata(step)["state"].items()))
    _require_fit(os.path.join(self._directory, str(step)), stored, wanted, partial)
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    arrays = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
    found = self._read_items(step, state=arrays, record=ocp.args.JsonRestore())
    return jax.tree.unflatten(jax.tree.structure(abstract), [found["state"][key] for key in wanted]), found["record"]

  def record(self, step: int | None = None) -> dict:
    """The record alone, which a reader needs before it can describe the tree. Raises as `restore` does."""
    return self._read_items(self._existing(step), record=ocp.args.JsonRestore())["record"]

  def all_steps(self) -> list[int]:
    """Saved steps, oldest first, including the one being written."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step with the best `keep_best`; the newest if no checkpoint has it."""
    return self._manager.best_step()

  def wait(self) -> None:
    """Blocks until everything is on disk; raises the error of a save that failed in the background."""
    self._manager.wait_until_finished()
    self._empty_trash()

  def close(self) -> None:
    self.wait()
    self._manager.close()

  def _existing(self, step: int | None) -> int:
    self.wait()
    steps = self.all_steps()
    if not steps:
      raise UserError(f"{self._directory}: holds no checkpoint")
    if step is not None and step not in steps:
      raise UserError(f"{self._directory}: found no checkpoint {step}, allowed: {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step

  def _read_items(self, step: int, **items):
    return self._read(step, lambda: self._manager.restore(step, args=ocp.args.Composite(**items)))

  def _read(self, step: int, read):
    """Runs `read` and reports damage, for which Orbax raises many exception types (even Exception), as one line."""
    try:
      return read()
    except Exception as error:
      reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
      path = os.path.join(self._directory, str(step))
      raise UserError(f"{path}: unreadable checkpoint; remove it to use an earlier one ({reason})") from error

  def _empty_trash(self) -> None:
    if not self._read_only and jax.process_index() == 0:
      shutil.rmtree(os.path.join(self._directory, TRASH), ignore_errors=True)


def _options(config: CheckpointConfig, read_only: bool) -> ocp.CheckpointManagerOptions:
  """Orbax keeps a step if any policy does; `best_fn` makes it store the metrics, to rank steps after a restart."""
  if read_only:  # Orbax's own read_only warns on stderr
    return ocp.CheckpointManagerOptions(create=False, best_fn=config.rank)
  keep = [policies.LatestN(config.keep_last)]
  if config.keep_best:
    keep.append(policies.BestN(get_metric_fn=config.rank, n=1))
  return ocp.CheckpointManagerOptions(
    preservation_policy=policies.AnyPreservationPolicy(keep),
    best_fn=config.rank,
    enable_async_checkpointing=config.async_save,
    cleanup_tmp_directories=True,
    todelete_subdir=TRASH,
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
