"""Logging: metrics.jsonl, samples.jsonl, trackers and a live progress line.

Lines are in order of steps and hold no timestamps: a run that was interrupted and resumed leaves the same files as one
that was not (except for its measured times).
"""

import collections
import contextlib
import json
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass

from nrt_jax.errors import UserError, printable
from nrt_jax.files import json_safe, write_text
from nrt_jax.records import trackers

PROGRESS_SECONDS = 5.0  # between progress lines that can't be drawn in place
RATE_WINDOW = 20  # writes over which the speed for the ETA is measured
ESCAPE = "backslashreplace"  # lone surrogates, from decoding byte-level tokens, become valid JSON escapes

# The metrics of the progress line, each shown if measured: (label, metric, format).
PROGRESS = (
  ("reward", "reward/mean", "{:.3f}"),
  ("loss", "loss/total", "{:.3f}"),
  ("trace", "trace/length_mean", "{:.1f}"),
  ("tokens/s", "throughput/generated_tokens_per_s", "{:,.0f}"),
  ("trained tokens/s", "throughput/trained_tokens_per_s", "{:,.0f}"),
)

LEAST = {"every_steps": 1, "samples_every_steps": 0, "samples_per_step": 0, "trace_moved_every": 0}


@dataclass(frozen=True)
class LoggingConfig:
  """What is written, and how often."""

  every_steps: int = 1  # training steps between metrics
  samples_every_steps: int = 20  # training steps between samples; 0 writes none
  samples_per_step: int = 4  # samples written each time
  trace_moved_every: int = 0  # samples show how each so many trace tokens moved the answer, see index.md; 0: none do
  tensorboard: bool = True  # also write TensorBoard scalars, if tensorboardX is installed
  trackers: tuple[str, ...] = ()  # wandb, mlflow: metrics go there, too; see docs/trackers.md
  project: str = "nrt_jax"  # of trackers: W&B's project, MLflow's experiment
  run_name: str | None = None  # of trackers; None = the workdir's own
  progress: bool = True  # progress on stderr

  def __post_init__(self):
    object.__setattr__(self, "trackers", tuple(self.trackers))
    for key, least in LEAST.items():
      if getattr(self, key) < least:
        raise UserError(f"logging.{key}: found {getattr(self, key)!r}, allowed: {least} or more")


class MetricsWriter:
  """Writes metrics and samples of the steps after `start_step` into `workdir`, dropping those of an earlier run.

  Progress and notes go to `stream` (stderr). Every host but the first passes primary=False and writes nothing.
  values: the run's config, which trackers show.
  """

  def __init__(
    self, workdir, config: LoggingConfig, total_steps: int, start_step=0, stream=None, primary=True, values=None
  ):
    self._config = config
    self._total_steps = total_steps
    self._primary = primary
    if not primary:
      return
    os.makedirs(workdir, exist_ok=True)
    self._progress = Progress(total_steps, sys.stderr if stream is None else stream, enabled=config.progress)
    self._metrics = Lines(os.path.join(workdir, "metrics.jsonl"), start_step, self.note)
    self._samples = Lines(os.path.join(workdir, "samples.jsonl"), start_step, self.note)
    name = config.run_name or os.path.basename(os.path.abspath(workdir))
    run = trackers.Run(str(workdir), config.project, name, values or {}, start_step)
    self._trackers = trackers.Trackers(config.trackers, run, config.tensorboard, self.note, self.warn)

  def due(self, step: int) -> bool:
    """Whether to fetch and write the metrics of `step`: every `every_steps`, and the last step."""
    return step % self._config.every_steps == 0 or step == self._total_steps

  def samples_due(self, step: int) -> bool:
    """Whether to fetch and write samples of `step`."""
    every = self._config.samples_every_steps
    return every > 0 and self._config.samples_per_step > 0 and step % every == 0

  def write(self, step: int, metrics: dict) -> None:
    """Appends one JSON line `{"step": step, name: value, ...}`; NaN and infinities become null."""
    if not self._primary:
      return
    metrics = json_safe(metrics)
    self._metrics.append({"step": step, **metrics})
    numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    self._trackers.write(step, numbers)
    unknown = {name: math.nan for name, value in metrics.items() if value is None}
    self._progress.show(step, numbers | unknown)  # an old number must not stand for one that isn't finite

  def write_samples(self, step: int, samples: list[dict]) -> None:
    """Appends one JSON line per sample, at most `samples_per_step`, each with its step."""
    for sample in samples[: self._config.samples_per_step] if self._primary else ():
      self._samples.append({"step": step, **json_safe(sample)})

  def note(self, text: str) -> None:
    """Writes a line to stderr without running into the progress line; shown even if progress is off."""
    if self._primary:
      self._progress.note(text)

  def warn(self, text: str) -> None:
    """A note of what went wrong, as errors.warn writes it."""
    self.note(f"nrt-jax: warning: {text}")

  def close(self) -> None:
    if not self._primary:
      return
    self._progress.close()
    self._metrics.close()
    self._samples.close()
    self._trackers.close()


class Progress:
  """The progress line: redrawn in place on a terminal, else a line every PROGRESS_SECONDS and at the last step."""

  def __init__(self, total_steps: int, stream, enabled: bool = True, clock=time.monotonic):
    self._total_steps = total_steps
    self._stream = stream
    self._enabled = enabled
    self._clock = clock
    self._in_place = stream.isatty()
    self._drawn = False  # the cursor is at the end of a line drawn in place
    self._last_shown, self._shown_step = -math.inf, None
    self._times = collections.deque(maxlen=RATE_WINDOW)  # (seconds, step); starts after the first step, which compiles
    self._numbers = {}  # newest value of each metric; not every write has all of them

  def show(self, step: int, numbers: dict) -> None:
    """Shows `step` with the metrics of PROGRESS."""
    self._numbers.update(numbers)
    now = self._clock()
    self._times.append((now, step))
    ends = step == self._total_steps and self._shown_step != step  # an evaluation writes the last step again
    waits = not self._in_place and now - self._last_shown < PROGRESS_SECONDS and not ends
    if not self._enabled or waits:
      return
    self._last_shown, self._shown_step = now, step
    self._put(self.line(step), stay=self._in_place)

  def line(self, step: int) -> str:
    parts = [f"step {step}/{self._total_steps}"]
    parts += [f"{label} {form.format(self._numbers[name])}" for label, name, form in PROGRESS if name in self._numbers]
    return "  ".join([*parts, f"ETA {duration(self.seconds_left(step))}"])

  def seconds_left(self, step: int) -> float:
    """Remaining steps at the speed of the last writes; NaN before two of them."""
    (start, first), (now, last) = self._times[0], self._times[-1]
    return (self._total_steps - step) * (now - start) / (last - first) if last > first else math.nan

  def note(self, text: str) -> None:
    self._put(text, stay=False)

  def close(self) -> None:
    if self._drawn:
      self._write("\n")
    self._drawn = False

  def _put(self, text: str, stay: bool) -> None:
    """Overwrites the line in place. With `stay`, cuts `text` to the terminal's width and leaves the line open."""
    if stay:
      text = text[: shutil.get_terminal_size().columns - 1]
    clear = "\r\x1b[K" if self._drawn or stay else ""
    self._write(clear + printable(text) + ("" if stay else "\n"))
    self._drawn = stay

  def _write(self, text: str) -> None:
    """A run goes on though nobody reads what it says: the terminal is gone, or the pipe has been closed."""
    with contextlib.suppress(OSError, ValueError):
      self._stream.write(text)
      self._stream.flush()


def duration(seconds: float) -> str:
  """12s, 3m05s, 1h02m, or -- if unknown."""
  if not math.isfinite(seconds):
    return "--"
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds}s"
  if seconds < 3600:
    return f"{seconds // 60}m{seconds % 60:02d}s"
  return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


class Lines:
  """A file of JSON lines that a run appends to. What can't be written is lost, with one note, and the run goes on."""

  def __init__(self, path: str, start_step: int, note):
    self._path, self._note = path, note
    self._file = _reopen(path, start_step)
    self._lost = 0  # lines since the last one that could be written

  def append(self, line: dict) -> None:
    """Writes a line. UserError if the directory has been removed, for then there is no run any more."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
    try:
      if os.fstat(self._file.fileno()).st_nlink == 0:
        self._again()
      self._put(text)
      if self._lost:
        self._note(f"{self._path}: can be written again; {self._lost} lines are lost")
      self._lost = 0
    except OSError as error:
      if not self._lost:
        self._note(f"{self._path}: lines are lost: {error.strerror}")
      self._lost += 1

  def close(self) -> None:
    self._file.close()

  def _put(self, text: str) -> None:
    """Writes all of it or nothing: half a line would spoil the next."""
    end = os.fstat(self._file.fileno()).st_size
    data = text.encode("utf-8", ESCAPE)
    try:
      while data:  # a disk that fills up takes a part, and says why only at the next
        data = data[self._file.write(data) :]
    except OSError:
      os.ftruncate(self._file.fileno(), end)
      raise

  def _again(self) -> None:
    """Opens the file anew that somebody has removed."""
    if not os.path.isdir(os.path.dirname(self._path)):
      raise UserError(f"--workdir: {os.path.dirname(self._path)}: has been removed while the run was going on")
    self._file.close()
    self._file = _open(self._path)
    self._note(f"{self._path}: was removed; a new one begins here")


def _reopen(path: str, start_step: int):
  """Opens a file for appending, keeping only lines of steps up to `start_step`; a run from step 0 starts empty."""
  if os.path.exists(path):
    with open(path, encoding="utf-8", errors="replace") as file:
      lines = file.read().split("\n")  # not splitlines, which splits at characters that JSON strings may contain
    kept = [line + "\n" for line in lines if start_step and _step_of(line) <= start_step]
    write_text(path, "".join(kept), errors=ESCAPE)
  return _open(path)


def _open(path: str):
  return open(path, "ab", buffering=0)  # a line is written when it is written


def _step_of(line: str) -> float:
  """The line's step; infinite if the line is incomplete or not a metrics line."""
  try:
    return float(json.loads(line)["step"])
  except (ValueError, KeyError, TypeError):
    return math.inf
