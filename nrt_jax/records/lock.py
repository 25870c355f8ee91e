"""One run at a time in a workdir: a file that the running process holds locked.

The operating system lets go of the lock when the process ends, however it ends; so a lock that is left behind is one
that can be had. On network file systems the lock holds between hosts if they have POSIX locks (NFS 4, Lustre, GPFS).
"""

import contextlib
import errno
import fcntl
import json
import os
import socket

from nrt_jax.errors import UserError
from nrt_jax.files import writing

NAME = "run.lock"
TAKEN = (errno.EACCES, errno.EAGAIN)  # another process has the lock; any other error: the file system has no locks


@contextlib.contextmanager
def held(workdir: str):
  """Holds the lock of an existing directory. Yields what is to be said of a run that was killed while it had it.

  Raises UserError, naming host and process, while another process holds it. Where the file system has no locks, nothing
  is locked.
  """
  path = os.path.join(workdir, NAME)
  file = _lock(path)
  left = _read(file)
  with writing(path):
    file.seek(0)
    file.truncate()
    json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
    file.flush()
  try:
    yield left and f"the run before, process {left[1]} on host {left[0]}, ended without a word; its lock is void"
  finally:
    with contextlib.suppress(OSError):  # somebody has removed the workdir
      os.remove(path)
    file.close()


def _lock(path: str):
  """The open file, locked. One that its holder removed before we had it does not count."""
  while True:
    file = open(path, "a+", encoding="utf-8")
    try:
      fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in TAKEN:
        return file
      host, pid = _read(file) or ("unknown", "unknown")
      file.close()
      raise UserError(
        f"--workdir: {os.path.dirname(path)}: in use by process {pid} on host {host}; allowed: one run at a time"
      ) from error
    with contextlib.suppress(FileNotFoundError):
      if os.stat(path).st_ino == os.fstat(file.fileno()).st_ino:
        return file
    file.close()


def _read(file) -> tuple | None:
  """(host, pid) of the holder; None if the file says nothing."""
  file.seek(0)
  try:
    holder = json.load(file)
    return holder["host"], holder["pid"]
  except (ValueError, KeyError, TypeError):
    return None
