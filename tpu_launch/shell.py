"""Other programs: run to the end with a time limit, or in the background with their output read as it comes."""

import contextlib
import os
import signal
import subprocess
import tempfile
from typing import NamedTuple

from nrt_jax.errors import UserError

TIMED_OUT = 124  # as of timeout(1)


class Done(NamedTuple):
  """How a program ended. Its streams are text."""

  code: int
  out: str
  err: str

  @property
  def reason(self) -> str:
    """The line that says most about a failure: the last that mentions an error, else the last."""
    lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line.upper()]
    return (errors or lines or [f"exit code {self.code}"])[-1]


def run(argv: list[str], timeout: float, text: str | None = None) -> Done:
  """Runs a program; past `timeout` seconds it is killed with its children. UserError where it isn't installed."""
  process = start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  try:
    out, err = process.communicate(text or "", timeout=timeout)
  except subprocess.TimeoutExpired:
    kill(process)
    process.communicate()
    return Done(TIMED_OUT, "", f"{argv[0]}: no answer within {timeout:g} s")
  except BaseException:
    kill(process)
    raise
  return Done(process.returncode, out, err)


def start(argv: list[str], **settings) -> subprocess.Popen:
  """Starts a program in a session of its own, so that a Ctrl-C for us does not reach it. UserError if it is missing."""
  try:
    return subprocess.Popen(argv, start_new_session=True, **settings)
  except (FileNotFoundError, PermissionError) as error:
    raise UserError(f"{argv[0]}: {error.strerror}") from error


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
  """Sends a signal to a program from `start` and its children."""
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(process.pid, number)


class Stream:
  """A program that goes on printing, as `tail -F` does; started again whenever it ends, as connections do."""

  def __init__(self, first: list[str], again: list[str]):
    self._first, self._again = first, again  # the first time with all that there is, then with what is new
    self._process, self._file, self._offset = None, None, 0

  def read(self) -> str:
    """What it printed since the last call."""
    ended = self._process is None or self._process.poll() is not None
    text = self._drain()
    if ended:
      self._restart()
    return text

  def close(self) -> None:
    if self._process is not None:
      kill(self._process)
      self._process.wait()
      self._file.close()

  def _restart(self) -> None:
    argv = self._first if self._process is None else self._again
    self.close()
    self._file, self._offset = tempfile.TemporaryFile(), 0
    self._process = start(argv, stdin=subprocess.DEVNULL, stdout=self._file, stderr=subprocess.DEVNULL)

  def _drain(self) -> str:
    if self._file is None:
      return ""
    data = os.pread(self._file.fileno(), 1 << 24, self._offset)
    self._offset += len(data)
    return data.decode("utf-8", "replace")
