"""What a save does where storage refuses it (a full disk, a quota, a lost mount): a warning, and the run goes on.

Orbax says so in a dozen tracebacks, from as many threads, and leaves half a step behind, which keeps the disk full.
"""

import contextlib
import functools
import logging
import sys

import jax

from nrt_jax import buckets, errors, files
from nrt_jax.records import folders


class Storage:
  """The directory that holds the checkpoints of a run. warn(text) writes a line."""

  def __init__(self, directory: str, warn=errors.warn):
    self._directory = directory
    self._folder = folders.open_folder(directory)
    self.warn = warn
    self._said = None  # the newest warning's first words: Orbax reports one refusal several times
    self._refused = False
    self.refusals = 0  # how many there have been, for whoever counts
    hush()

  def require(self) -> None:
    """Raises UserError where the directory is gone: whatever makes it anew would be the beginning of another run."""
    if self._folder.is_gone():
      raise errors.UserError(f"{self._directory}: has been removed while the run was going on")

  def clean(self) -> None:
    """Removes what a refusal has left of a step, so that the next one finds room. Nothing may be being written.

    What a killed run has left is Orbax's to remove, in the background of the start: whoever else removes it makes that
    fail, and every save after it.
    """
    if self._refused and jax.process_count() == 1:
      self._folder.remove_partial()

  @contextlib.contextmanager
  def refusing(self, what: str):
    """Makes an error of storage a warning that `what`.

    With several processes it is raised as an OSError: they must all save the same steps, or would wait for one another.
    """
    try:
      yield
    except Exception as error:
      refusal = self._folder.refusal(error)
      if refusal is None:
        raise
      self.require()
      self._refused, self.refusals = True, self.refusals + 1
      if jax.process_count() > 1:
        raise refusal from error
      if what != self._said:
        self.warn(f"{what}: {refusal.filename}: {refusal.strerror}; the run goes on")
      self._said = what


@functools.cache
def hush() -> None:
  """Drops tracebacks of errors of storage that reach us as well, and of what ends after the first of them.

  Orbax's threads and tasks each report theirs. For what ends later nobody waits any more: tensorstore then wakes a loop
  of asyncio that Orbax has closed, once for each array. And a task of Orbax's may still be waiting when a process ends.
  """

  def others(record) -> bool:
    if record.name == "asyncio" and "orbax" in record.getMessage():
      return False
    error = record.exc_info and record.exc_info[1]
    missing = isinstance(error, FileNotFoundError)  # in a bucket: without a number
    return not error or not (missing or files.os_error(error, "") or buckets.os_error(error, ""))

  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(others)
  report = sys.unraisablehook

  def hook(raised):
    if raised.exc_type is not RuntimeError or str(raised.exc_value) != "Event loop is closed":
      report(raised)

  sys.unraisablehook = hook
