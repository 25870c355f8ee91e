"""Equivalence of mathematical expressions by math-verify, in a process of its own that is killed when it takes long.

Expressions that models write can keep a computer algebra system busy for ever or eat all memory ("9^{9^{9^9}}"), and
math-verify's own time limit is a signal: it works in the main thread only and not inside one long operation.
"""

import atexit
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading

SECONDS = 5.0  # a question may take; ordinary ones take hundredths
START_SECONDS = 120  # importing sympy, on a busy machine
MEMORY = 4 * 2**30  # bytes of address space of the process
ROOT = pathlib.Path(__file__).resolve().parents[2]


@functools.cache
def installed() -> bool:
  """Whether math-verify (extra [eval]) can be imported."""
  return importlib.util.find_spec("math_verify") is not None


class Worker:
  """A process that answers one question after another. Starts when first asked, and again after it was killed."""

  def __init__(self):
    self._process = None
    self._lock = threading.Lock()

  def ask(self, reference: str, found: str, seconds: float) -> bool:
    """Whether both LaTeX texts are equivalent; False where that isn't known after `seconds`."""
    with self._lock:
      if self._process is None or self._process.poll() is not None:
        self._start()
      return self._exchange(json.dumps([reference, found]), seconds) == "1"

  def _start(self):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", "from nrt_jax.tasks import symbolic; symbolic.serve()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    self._process = subprocess.Popen(command, **pipes, text=True, env={**os.environ, "PYTHONPATH": path})
    if self._exchange(None, START_SECONDS) != "ready":
      raise RuntimeError("math-verify is installed, but a process that imports it does not start")

  def _exchange(self, line, seconds):
    """Writes a line, reads the next one; kills the process after `seconds`, which ends the reading."""
    timer = threading.Timer(seconds, self._process.kill)
    timer.daemon = True
    timer.start()
    try:
      if line is not None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
      reply = self._process.stdout.readline().strip()
    except OSError:  # the process died before it read the line
      reply = ""
    timer.cancel()
    if not reply:
      self.close()
    return reply

  def close(self):
    """Ends the process."""
    if self._process is not None:
      self._process.kill()
      self._process.communicate()
      self._process = None


WORKER = Worker()
atexit.register(WORKER.close)


@functools.lru_cache(maxsize=16384)
def equivalent(reference: str, found: str) -> bool:
  """Whether two LaTeX answers are equivalent to math-verify, in bounded time and memory. Needs `installed()`."""
  return WORKER.ask(reference, found, SECONDS)


def serve():
  """The process's side: a JSON pair a line in, 1 or 0 a line out."""
  import resource

  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  replies, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints may pass for a reply
  from math_verify import parse, verify

  print("ready", file=replies, flush=True)
  for line in sys.stdin:
    try:
      # Boxed, so that the whole text is read as one answer. No limits of its own: the parent keeps the time.
      reference, found = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in json.loads(line))
      same = bool(reference and found and verify(reference, found, timeout_seconds=None))
    except Exception:  # whatever sympy and its parser raise on what a model wrote, MemoryError included
      same = False
    print(int(same), file=replies, flush=True)
