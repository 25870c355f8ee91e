"""Where metrics go beside the workdir's own files: TensorBoard, Weights & Biases, MLflow, or a class of yours.

A tracker takes the numbers of one step after another. What it fails at costs its numbers and a warning, never the run.
"""

import abc
import importlib.util
import os
import queue
import re
import secrets
import threading
import time
from typing import NamedTuple

from nrt_jax.errors import UserError, require_choice
from nrt_jax.files import append_json_line, read_json_lines

IDS = "trackers.jsonl"  # in the workdir: the run's id with each tracker, so that a resumed run goes on there
PATIENCE = 30.0  # seconds that the end of a run waits for trackers
PARAMETERS, METRICS, LONGEST = 100, 1000, 6000  # what MLflow takes in one request, and of one text


class Run(NamedTuple):
  """What a tracker is told of a run."""

  workdir: str
  project: str
  name: str
  values: dict  # the config
  start_step: int  # below 1: it starts anew


class Tracker(abc.ABC):
  """One place where metrics go. It is opened with a Run, by TRACKERS from a thread of its own."""

  package: str | None = None  # what must be installed
  extra: str | None = None  # of ours, that installs it

  @classmethod
  def check(cls) -> None:
    """Raises UserError where it can't be used as things are. Called before anything is compiled."""
    if cls.package is not None and importlib.util.find_spec(cls.package) is None:
      raise UserError(f"logging.trackers: the package {cls.package} is not installed: pip install nrt_jax[{cls.extra}]")

  @abc.abstractmethod
  def __init__(self, run: Run): ...

  @abc.abstractmethod
  def write(self, step: int, numbers: dict) -> None:
    """Takes the numbers of a step. A step may come twice, with other numbers: an evaluation's."""

  @abc.abstractmethod
  def close(self) -> None:
    """Returns when all that was written is where it belongs."""


class TensorBoard(Tracker):
  """Scalars in `tensorboard/`. It drops what an interrupted run wrote after `start_step`."""

  package = "tensorboardX"

  def __init__(self, run: Run):
    import tensorboardX

    suffix = f".{max(run.start_step, 0)}.{os.getpid()}"  # names are by second: a quick restart must not overwrite
    purge = run.start_step + 1 if run.start_step else 0
    logdir = os.path.join(run.workdir, "tensorboard")
    self._writer = tensorboardX.SummaryWriter(logdir, purge_step=purge, filename_suffix=suffix)

  def write(self, step: int, numbers: dict) -> None:
    for name, value in numbers.items():
      self._writer.add_scalar(name, value, step)
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


class WandB(Tracker):
  """Weights & Biases: a run in the project, with the config. WANDB_MODE=offline writes to `wandb/` alone."""

  package = extra = "wandb"

  @classmethod
  def check(cls) -> None:
    super().check()
    import wandb

    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
      raise UserError("logging.trackers: wandb: found no API key, allowed: `wandb login`, or WANDB_MODE=offline")

  def __init__(self, run: Run):
    import wandb

    run_id = kept_id(run, "wandb")
    if run_id is None:
      run_id = secrets.token_hex(4)
      keep_id(run, "wandb", run_id)
    settings = wandb.Settings(console="off", silent=True)  # what a run says is for its own terminal
    how = {"resume": "allow", "allow_val_change": True, "settings": settings}
    about = {"project": run.project, "name": run.name, "config": run.values}
    self._run = wandb.init(id=run_id, dir=run.workdir, **about, **how)

  def write(self, step: int, numbers: dict) -> None:
    self._run.log(numbers, step=step)

  def close(self) -> None:
    self._run.finish()


class MLflow(Tracker):
  """MLflow: a run in the experiment named like the project, with the config's keys as parameters.

  MLFLOW_TRACKING_URI says where; without it, `mlflow.db` in the workdir.
  """

  package = extra = "mlflow"

  def __init__(self, run: Run):
    from mlflow.tracking import MlflowClient

    where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{os.path.abspath(run.workdir)}/mlflow.db"
    self._client = MlflowClient(tracking_uri=where)
    kept = kept_id(run, "mlflow")
    if kept is not None:
      self._client.update_run(kept, status="RUNNING")
    self._id = kept or self._begin(run)

  def _begin(self, run: Run) -> str:
    from mlflow.entities import Param

    found = self._client.get_experiment_by_name(run.project)
    experiment = self._client.create_experiment(run.project) if found is None else found.experiment_id
    made = self._client.create_run(experiment, run_name=run.name).info.run_id
    keep_id(run, "mlflow", made)
    params = [Param(allowed_name(key), str(value)[:LONGEST]) for key, value in flat(run.values)]
    for start in range(0, len(params), PARAMETERS):
      self._client.log_batch(made, params=params[start : start + PARAMETERS])
    return made

  def write(self, step: int, numbers: dict) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(allowed_name(name), value, now, step) for name, value in numbers.items()]
    for start in range(0, len(metrics), METRICS):
      self._client.log_batch(self._id, metrics=metrics[start : start + METRICS])

  def close(self) -> None:
    self._client.set_terminated(self._id)


TRACKERS = {"wandb": WandB, "mlflow": MLflow}  # what logging.trackers names


def check(names) -> None:
  """Raises UserError where one of these is unknown, or can't be used. A run that is only read needs none of them."""
  for name in names:
    require_choice("logging.trackers", name, TRACKERS)
    TRACKERS[name].check()


def allowed_name(name: str) -> str:
  """The name with what MLflow refuses replaced: maj@4 -> maj_4."""
  return re.sub(r"[^\w\-. :/]", "_", name)


def flat(values, prefix: str = ""):
  """(key, value) of each leaf of nested mappings and lists: optimizer.learning_rate, stages.0.name."""
  items = values.items() if hasattr(values, "items") else enumerate(values)
  for key, value in items:
    name = f"{prefix}{key}"
    if isinstance(value, (dict, list, tuple)) and value:
      yield from flat(value, f"{name}.")
    else:
      yield name, value


# ---- Ids -----------------------------------------------------------------------------------------------------------


def kept_id(run: Run, tracker: str) -> str | None:
  """The id under which this tracker knows the run that is resumed; None for a fresh run, or a new tracker."""
  if run.start_step < 1:
    return None
  found = read_json_lines(os.path.join(run.workdir, IDS))
  return next((line["id"] for line in reversed(found) if line["tracker"] == tracker), None)


def keep_id(run: Run, tracker: str, run_id: str) -> None:
  append_json_line(os.path.join(run.workdir, IDS), {"tracker": tracker, "id": run_id})


# ---- All of a run's ------------------------------------------------------------------------------------------------


class Behind:
  """A tracker in a thread of its own: a server that is slow, or gone, delays no step.

  What fails there is raised by the next call here.
  """

  def __init__(self, kind: type[Tracker], run: Run):
    self._queue, self._error = queue.SimpleQueue(), None
    self._thread = threading.Thread(target=self._work, args=(kind, run), name=f"tracker-{kind.__name__}", daemon=True)
    self._thread.start()

  def _work(self, kind, run) -> None:
    try:
      tracker = kind(run)
      for step, numbers in iter(self._queue.get, None):
        tracker.write(step, numbers)
      tracker.close()
    except Exception as error:
      self._error = error

  def write(self, step: int, numbers: dict) -> None:
    if self._error is not None:
      raise self._error
    self._queue.put((step, numbers))

  def close(self) -> None:
    self._queue.put(None)
    self._thread.join(PATIENCE)
    if self._error is not None:
      raise self._error
    if self._thread.is_alive():
      raise TimeoutError(f"it has not taken all numbers within {PATIENCE:.0f} s")


class Trackers:
  """The trackers of a run. One that fails is left out from there on, with one warning."""

  def __init__(self, names, run: Run, tensorboard: bool, note, warn):
    self._warn, self._open = warn, {}
    if tensorboard and importlib.util.find_spec(TensorBoard.package) is None:
      note("TensorBoard files are left out: tensorboardX is not installed (pip install tensorboardX)")
    elif tensorboard:
      self._try("tensorboard", lambda: self._open.update(tensorboard=TensorBoard(run)))
    for name in names:
      self._open[name] = Behind(TRACKERS[name], run)

  def write(self, step: int, numbers: dict) -> None:
    for name, tracker in list(self._open.items()):
      self._try(name, lambda: tracker.write(step, numbers))

  def close(self) -> None:
    for name, tracker in list(self._open.items()):
      self._try(name, tracker.close)

  def _try(self, name: str, act) -> None:
    try:
      act()
    except Exception as error:  # packages and servers raise whatever they like
      self._open.pop(name, None)
      reason = next(iter(str(error).strip().splitlines()), "")
      self._warn(f"{name}: metrics are not written there any more: {type(error).__name__}: {reason}")
