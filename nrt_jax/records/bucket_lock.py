"""One run at a time in a workdir of a bucket: an object that says who runs there, and is written again as it beats.

Whoever finds one waits whether it beats. If it does, the run is refused; if not, it was left behind by a run that was
killed, and is taken over. No clocks of different hosts are compared. A run that was taken for dead, and was not, sees
at its next checkpoint whose the lock is now, and ends.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time

from nrt_jax import buckets
from nrt_jax.errors import UserError, warn

NAME = "run.lock"
BEAT = 10.0  # seconds between beats
PATIENCE = 45.0  # seconds without a beat after which a lock is void


@contextlib.contextmanager
def held(workdir: str, place: str):
  """Holds the lock of a workdir in a bucket. Yields (what is to be said of a run that was killed, require).

  require() raises UserError where the lock is not this run's any more. place: the directory on this machine that this
  process holds locked (lock.py), and that every run here of this workdir would: one that says it did is dead.
  """
  lock = Lock(f"{workdir}/{NAME}", place)
  left = lock.take()
  end = threading.Event()

  def beat():
    while not end.wait(BEAT):
      with contextlib.suppress(Exception):  # a server that fails now may answer at the next; the run itself will see
        lock.beat()

  thread = threading.Thread(target=beat, name="bucket-lock", daemon=True)
  thread.start()
  try:
    yield left, lock.require
  finally:
    end.set()
    thread.join()
    with contextlib.suppress(Exception):
      if lock.is_ours():
        buckets.remove(lock.url)


class Lock:
  def __init__(self, url: str, place: str):
    self.url = url
    own = {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8), "beat": 0}
    self._own = {**own, "place": _identity(place)}

  def take(self) -> str | None:
    """Waits for the lock. UserError if another run beats it."""
    left = None
    while not buckets.create(self.url, self._text()):
      before = self._read()
      if before is None:
        continue
      if before["place"] != self._own["place"] and self._beats(before):
        place = os.path.dirname(self.url)
        raise UserError(f"--workdir: {place}: in use by {_holder(before)}; allowed: one run at a time")
      buckets.remove(self.url)
      left = f"the run before, {_holder(before)}, ended without a word; its lock is void"
    self.require()
    return left

  def _beats(self, before: dict) -> bool:
    warn(f"{self.url}: {_holder(before)} was here; looking for {PATIENCE:.0f} s whether it still is")
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
      time.sleep(min(BEAT, PATIENCE) / 4)
      now = self._read()
      if now != before:
        return now is not None
    return False

  def beat(self) -> None:
    """Writes it again, if it is ours."""
    if self.is_ours():
      self._own["beat"] += 1
      buckets.write(self.url, self._text())

  def is_ours(self) -> bool:
    return (self._read() or {}).get("token") == self._own["token"]

  def require(self) -> None:
    """Raises UserError if it isn't ours."""
    now, place = self._read(), os.path.dirname(self.url)
    if now is None:
      raise UserError(f"--workdir: {place}: has been removed while the run was going on")
    if now["token"] != self._own["token"]:
      raise UserError(f"--workdir: {place}: taken over by {_holder(now)}; allowed: one run at a time")

  def _text(self) -> bytes:
    return json.dumps(self._own).encode()

  def _read(self) -> dict | None:
    data = buckets.read(self.url)
    if data is None:
      return None
    try:
      found = json.loads(data)
      return {key: found[key] for key in self._own}
    except (ValueError, KeyError, TypeError):
      return dict.fromkeys(self._own, "unknown")


def _identity(place: str) -> str:
  """Of a directory on this machine, since it was started; of none that is the same elsewhere."""
  with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
    started = file.read().strip()
  status = os.stat(place)
  return f"{started} {status.st_dev} {status.st_ino}"


def _holder(lock: dict) -> str:
  return f"process {lock['pid']} on host {lock['host']}"
