"""What an engine must be able to do with a run; watch.py calls it, and nothing else knows the engines."""

import abc
import enum
import json
import os
import re
import shlex
from typing import NamedTuple

from nrt_jax.errors import UserError
from tpu_launch.run import Run

STEP = re.compile(r"\bstep (\d+)/\d+")  # as nrt_jax.records.metrics prints progress
MISTAKE_CODE = 2  # of nrt-jax: the user's mistake, which no restart mends


class EngineError(Exception):
  """An engine did not do what it was asked to; it may the next time."""


class State(enum.Enum):
  """Where a run stands, as its engine sees it."""

  QUEUED = "queued"  # waits for capacity
  READY = "ready"  # has its machines; `start` comes next
  RUNNING = "running"
  DONE = "done"
  LOST = "lost"  # preempted, a worker dead, or failed: worth another try
  MISTAKE = "mistake"  # the user must change something


class Poll(NamedTuple):
  """A look at a run."""

  state: State
  detail: str = ""
  attempt: int = 0  # how often the engine has restarted the run by itself


class Command(NamedTuple):
  """A command that an engine runs."""

  argv: list[str]
  note: str  # when it is run
  text: str = ""  # standard input

  def __str__(self):
    feed = f" <<'EOF'\n{self.text}EOF" if self.text else ""
    return f"# {self.note}\n{shlex.join(self.argv)}{feed}"


class File(NamedTuple):
  """A file that an engine is given."""

  name: str
  text: str

  def __str__(self):
    return f"cat > {shlex.quote(self.name)} <<'EOF'\n{self.text}EOF"


class Job(abc.ABC):
  """A run on one engine. Every method may raise EngineError, or UserError for what only the user can mend."""

  def __init__(self, run: Run):
    self.run = run

  @abc.abstractmethod
  def plan(self) -> list:
    """What `--dry-run` prints: the Commands that `submit` and the rest run. Checks the description."""

  @abc.abstractmethod
  def submit(self) -> None:
    """Asks for what the run needs; takes up what an earlier launcher left under the same name."""

  @abc.abstractmethod
  def poll(self) -> Poll:
    """Looks where the run stands."""

  def start(self) -> None:
    """Starts the program on machines that are READY; engines that do so themselves are never READY."""

  def restart(self) -> None:
    """Begins anew, after a stall or a loss; the program resumes from its checkpoint."""
    self.delete()
    self.submit()

  @abc.abstractmethod
  def delete(self) -> None:
    """Stops the program and gives back everything that costs money. Without effect where there is nothing."""

  def log(self) -> str:
    """What worker 0 printed since the last call."""
    return ""

  def step(self) -> int | None:
    """The newest step that the workdir tells of; None where it can't be read from here, and the log must do."""
    return None

  def close(self) -> None:
    """Ends what this launcher runs for itself: log streams."""


class Tail:
  """A log file that grows."""

  def __init__(self, path: str):
    self._path, self._offset = path, 0

  def read(self) -> str:
    """What came since the last call."""
    try:
      with open(self._path, "rb") as file:
        file.seek(self._offset)
        data = file.read()
    except OSError:
      return ""
    self._offset += len(data)
    return data.decode("utf-8", "replace")

  def skip(self) -> None:
    """Leaves out what is there: an earlier attempt wrote it."""
    self._offset = os.path.getsize(self._path) if os.path.exists(self._path) else 0

  def last_line(self) -> str:
    try:
      with open(self._path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file.read()[-4096:].splitlines() if line.strip()]
    except OSError:
      lines = []
    return lines[-1] if lines else "no output"


def last_step(metrics_file: str) -> int | None:
  """The step of the last whole line of a metrics.jsonl."""
  try:
    with open(metrics_file, "rb") as file:
      file.seek(max(0, file.seek(0, 2) - 65536))
      lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def make_directory(path: str, key: str) -> None:
  """Makes a directory that a description names under `key`. UserError where that is not possible."""
  try:
    os.makedirs(path, exist_ok=True)
  except OSError as error:
    raise UserError(f"{key}: {path}: {error.strerror}") from error


def require_secrets(run: Run, environ) -> None:
  """Raises UserError where an engine takes secrets from this environment and one isn't there."""
  for name in run.secrets:
    if not environ.get(name):
      raise UserError(f"secrets: {name} is not set in the environment")
