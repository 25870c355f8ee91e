"""What the processes of one run tell one another outside of the compiled programs. One process alone sends nothing."""

import contextlib
import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from nrt_jax.errors import UserError
from nrt_jax.files import digest

# What the runtime's errors say where another process is gone: of XLA's collectives on CPUs, and of its heartbeats.
GONE = ("Connection closed by peer", "Connection reset", "Gloo", "heartbeat timeout", "stopped sending heartbeats")
MESSAGE_BYTES = 1000  # of an error that the first process tells the others


def fingerprint(value) -> str:
  """Twelve hexadecimal digits that differ where a JSON value does."""
  return digest(value, 12)


def require_same(values: dict) -> None:
  """Raises UserError, on every process, where a named JSON value differs from that of the first process."""
  if jax.process_count() == 1:
    return
  own = np.array([int(fingerprint(value)[:8], 16) for value in values.values()], np.uint32)
  all_PV = multihost_utils.process_allgather(own)
  for name, column_P in zip(values, all_PV.T):
    other = np.flatnonzero(column_P != column_P[0])
    if len(other):
      found = ", ".join(map(str, other))
      raise UserError(f"{name}: found another in process {found} than in process 0, allowed: the same in all")


def together(name: str) -> None:
  """Waits for all processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def on_any(true: bool) -> bool:
  """Whether it is true on any process: they must decide alike, or they would wait for one another."""
  if jax.process_count() == 1:
    return true
  return bool(multihost_utils.process_allgather(np.bool_(true)).any())


@contextlib.contextmanager
def ending_with_partners():
  """Ends this process with one line and exit code 1 where an error says that another process of the run is gone.

  At once: whatever is cleaned up on the way out, an unfinished checkpoint or JAX's own shutdown, would wait for the
  other process until its time is over, and then abort. A wait for it in the middle of a checkpoint ends so, too.
  """
  try:
    yield
  except Exception as error:
    if jax.process_count() == 1 or not any(text in str(error) for text in GONE):
      raise
    line = "nrt-jax: another process of the run has ended; the same command on all of them resumes it"
    print(line, file=sys.stderr, flush=True)
    os._exit(1)


def on_first(action):
  """action() of the first process, None on the others; a UserError that it raises is raised on every process."""
  if jax.process_count() == 1:
    return action()
  value, message = None, ""
  if jax.process_index() == 0:
    try:
      value = action()
    except UserError as error:
      message = str(error)
  sent = np.zeros(MESSAGE_BYTES, np.uint8)
  text = message.encode()[:MESSAGE_BYTES]
  sent[: len(text)] = np.frombuffer(text, np.uint8)
  told = multihost_utils.broadcast_one_to_all(sent).tobytes().rstrip(b"\0").decode(errors="ignore")
  if told:
    raise UserError(told)
  return value
