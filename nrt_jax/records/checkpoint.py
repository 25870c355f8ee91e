"""Checkpoints: the last few and the best, written in the background, whole or not at all.

A step is written to a temporary directory and renamed when complete, and renamed into TRASH before it is deleted, so a
process killed at any moment leaves only whole steps under their names. The state is stored flat, under its tree paths
("policy/params/embed/embedding"): what doesn't fit is found by name, and a part can be restored without the rest.
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
METRICS = "metrics"  # a step's item that Orbax ranks it by: a file of this name in a directory of this name
RECORD = os.path.join("record", "metadata")  # the file of a step's record


@dataclass(frozen=True)
class CheckpointConfig:
  """When to save and what to keep."""

  every_steps: int = 100  # training steps between checkpoints; 0 saves at the end of the run only
  keep_last: int = 2  # newest checkpoints kept
  keep_best: str | None = None  # metric whose best checkpoint is kept besides, e.g. "eval/heldout/accuracy"
  best_mode: str = "max"  # max | min: which value of keep_best is the best
  async_save: bool = True  # write in the background while training goes on

  def __post_init__(self):
    require_choice("checkpoint.best_mode", self.best_mode, ("max", "min"))
    for key, least in (("every_steps", 0), ("keep_last", 1)):
      if getattr(self, key) < least:
        raise UserError(f"checkpoint.{key}: found {getattr(self, key)!r}, allowed: {least} or more")

  def rank(self, metrics: dict) -> float:
    """Higher is better; a checkpoint without the metric, or where it is NaN, ranks last."""
    value = metrics.get(self.keep_best, math.nan)
    if math.isnan(value):
      return -math.inf
    return value if self.best_mode == "max" else -value


class Checkpoints:
  """The checkpoints of a run. With `read_only`, a run that is still writing them is left alone."""

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
    """Whether `step` is one of every `every_steps`."""
    return self._config.every_steps > 0 and step % self._config.every_steps == 0

  def save(self, step: int, states, record: dict, metrics: dict | None = None) -> None:
    """Saves a tree of arrays and a JSON `record`; returns once the arrays are copied, so that they may be donated.

    A step that is already there is left alone. `metrics` holds `keep_best` where it was measured. Every host calls
    this. Raises the error of an earlier save that failed in the background.
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
    """Gives a saved step another record, and the `keep_best` that was measured too late for `save`. For every host."""
    self.wait()
    ranked = {name: value for name, value in self._ranked(metrics).items() if not math.isnan(value)}
    path = os.path.join(self._directory, str(step))
    if ranked and jax.process_index() == 0:
      write_json(os.path.join(path, METRICS, METRICS), ranked)
    if jax.process_index() == 0:
      write_json(os.path.join(path, RECORD), record)  # last: until it is there, the evaluation is still owed
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("checkpoint amended")
    self._manager.reload()

  def _ranked(self, metrics: dict) -> dict:
    return {name: float(value) for name, value in metrics.items() if name == self._config.keep_best}

  def restore(self, step: int | None, abstract, partial: bool = False):
    """(tree, record) of `step` (None: the newest), the tree like `abstract` and on the shardings of its leaves.

    Leaves of `abstract` are arrays or ShapeDtypeStructs; one without a sharding lands on the first device. With
    `partial`, what the checkpoint holds beyond `abstract` is not read. Raises UserError where there is no such step,
    where it can't be read, and where its tree doesn't fit, naming the first key that differs.
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
    """The record alone: what a reader must know before it can describe the tree. Errors as in `restore`."""
    return self._read_items(self._existing(step), record=ocp.args.JsonRestore())["record"]

  def all_steps(self) -> list[int]:
    """Saved steps, oldest first, the one being written included."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step with the best `keep_best`; the newest where no checkpoint has it."""
    return self._manager.best_step()

  def wait(self) -> None:
    """Returns when everything is on disk; raises the error of a save that failed in the background."""
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
    """Runs `read`. Damage shows as exceptions of many kinds (Orbax raises a plain Exception too): one line for all."""
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
  """Orbax keeps a step that any policy wants; `best_fn` has it store the metrics, for the ranking after a restart."""
  if read_only:  # not Orbax's own read_only, which warns on stderr
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
  """{path: leaf}, paths like "policy/opt_state/0/mu/embed/embedding", in the order of the tree's leaves."""
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
  """Raises UserError at the first key that is missing, has another shape or dtype, or is left over."""
  for key, leaf in wanted.items():
    found = _describe(stored[key]) if key in stored else "nothing"
    if found != _describe(leaf):
      raise UserError(f"{path}: {key}: found {found} in the checkpoint, allowed: {_describe(leaf)}")
  extra = sorted(stored.keys() - wanted.keys())
  if extra and not partial:
    raise UserError(f"{path}: {extra[0]}: found in the checkpoint, not in the state to be restored")
