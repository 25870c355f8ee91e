"""Equivalence of mathematical expressions by math-verify, in a process of its own, with limits.

Expressions that models write can keep a computer algebra system busy for ever or eat all memory, and math-verify's own
time limit is a signal: it works in the main thread only and not inside one long operation. A limit must not make
grades depend on what else the machine does. So what would grow too large is refused by its form (closed_forms.py); time
is the process's own CPU time; and a question that no answer came to is counted, and forgotten.
"""

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading

from nrt_jax.errors import UserError

SECONDS = 2.0  # of CPU time a question may take; ordinary ones take hundredths
STALLED_SECONDS = 60.0  # by the clock, until a process that does not answer is given up for a new one
BUDGET_SECONDS, BUDGET_STALLED_SECONDS = 20.0, 240.0  # of all questions of a step: CPU time, and waiting by the clock
START_SECONDS = 240  # importing sympy, on a busy machine
# 9^{9^9}: where it stands in a binomial, the parser itself evaluates it.
TOWER = re.compile(r"[0-9][})\s]*(?:\^|\*\*)[{(\s]*([0-9]{1,9})[})\s]*(?:\^|\*\*)[{(\s]*([0-9]+)")
MAX_EXPONENT_BITS = 20
MEMORY = 4 * 2**30  # bytes of address space of the process
ROOT = pathlib.Path(__file__).resolve().parents[2]


@functools.cache
def installed() -> bool:
  """Whether math-verify (extra [eval]) can be imported."""
  return importlib.util.find_spec("math_verify") is not None


class Unanswered(Exception):
  """A question took longer than it may, or the budget is used up: nobody knows the answer."""


class Budget:
  """What the questions of a step may take together, and how many of them went without an answer."""

  def __init__(self, seconds=float("inf"), stalled_seconds=float("inf")):
    self.seconds, self.stalled_seconds, self.timeouts = seconds, stalled_seconds, 0


class Worker:
  """A process that answers one question after another. Starts when first asked, and again after it ended."""

  def __init__(self):
    self.budget = Budget()
    self._process = None
    self._errors = None
    self._lock = threading.Lock()

  def ask(self, reference: str, found: str, seconds: float | None = None) -> bool:
    """Whether both LaTeX texts are equivalent. `seconds` of CPU time; None = SECONDS.

    Raises Unanswered where that isn't known in time, and UserError where the process can't start.
    """
    with self._lock:
      for _ in range(2):  # that a process stalls, or was ended by someone, says nothing: a new one is asked
        limit = min(SECONDS if seconds is None else seconds, self.budget.seconds)
        wait = min(STALLED_SECONDS, self.budget.stalled_seconds)
        if limit <= 0 or wait <= 0:
          break
        if self._process is None or self._process.poll() is not None:
          self._start()
        reply = self._exchange(json.dumps([reference, found, limit]), wait)
        answer, _, used = reply.partition(" ")
        if used:
          self.budget.seconds -= float(used)
          if answer == "?":
            break
          return answer == "1"
        if self._end() == -signal.SIGVTALRM:  # out of CPU time, inside of one long operation
          self.budget.seconds -= 2 * limit
          break
      raise Unanswered

  def _start(self):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # -P: the working directory may hold another nrt_jax.
    command = [sys.executable, "-P", "-c", "from nrt_jax.tasks import symbolic; symbolic.serve()"]
    self._errors = tempfile.TemporaryFile()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
    try:
      self._process = subprocess.Popen(command, **pipes, text=True, env={**os.environ, "PYTHONPATH": path})
      started = self._exchange(None, START_SECONDS) == "ready"
    except OSError as error:
      raise UserError(f"grader math: the process of math-verify does not start: {error}") from error
    if not started:
      self._errors.seek(0)
      said = self._errors.read().decode(errors="replace").strip().splitlines() or [f"silent for {START_SECONDS} s"]
      self._end()
      raise UserError(f"grader math: the process of math-verify does not start: {said[-1]}")

  def _exchange(self, line, seconds):
    """Writes a line, reads the next one; kills the process after `seconds` by the clock, which ends the reading."""
    stalled = threading.Event()
    timer = threading.Timer(seconds, lambda: (stalled.set(), self._process.kill()))
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
    if stalled.is_set():
      self.budget.stalled_seconds -= seconds
    return reply

  def _end(self):
    """Ends the process; its exit code, the negative number of a signal."""
    self._process.kill()
    self._process.communicate()
    code, self._process = self._process.returncode, None
    self._errors.close()
    return code

  def close(self):
    """Ends the process."""
    if self._process is not None:
      self._end()


WORKER = Worker()
atexit.register(WORKER.close)


@contextlib.contextmanager
def budget(seconds: float = BUDGET_SECONDS, stalled_seconds: float = BUDGET_STALLED_SECONDS):
  """One budget for all questions inside; yields it, so that its `timeouts` can be read."""
  before, WORKER.budget = WORKER.budget, Budget(seconds, stalled_seconds)
  try:
    yield WORKER.budget
  finally:
    WORKER.budget = before


def equivalent(reference: str, found: str) -> bool:
  """Whether two LaTeX answers are equivalent to math-verify, in bounded time and memory. Needs `installed()`.

  False for what is too large to evaluate, and if the answer isn't known in time, which the budget counts and no cache
  keeps. UserError if math-verify's process can't start.
  """
  if any(_towers(text) for text in (reference, found)):
    return False
  try:
    return _answer(reference, found)
  except Unanswered:
    WORKER.budget.timeouts += 1
    return False


def _towers(text):
  return any(int(base).bit_length() * min(int(power), 99) > MAX_EXPONENT_BITS for base, power in TOWER.findall(text))


@functools.lru_cache(maxsize=16384)
def _answer(reference, found):
  return WORKER.ask(reference, found)


# ---- The process's side --------------------------------------------------------------------------------------------


class OutOfTime(BaseException):
  """Not an Exception, for sympy catches those."""


def serve():
  """A JSON line [reference, found, seconds] in; a line "1", "0" or "?" and the CPU seconds it took out."""
  import resource
  import time

  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  replies, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints may pass for a reply
  compare = _comparison()
  signal.signal(signal.SIGPROF, functools.partial(_out_of_time, compare.__code__))
  print("ready", file=replies, flush=True)
  for line in sys.stdin:
    reference, found, seconds = json.loads(line)
    start = time.process_time()
    try:
      # The first timer raises between two operations of Python; inside of a long one, the second ends the process.
      signal.setitimer(signal.ITIMER_VIRTUAL, 2 * seconds)
      signal.setitimer(signal.ITIMER_PROF, seconds, seconds / 10)  # again and again: a library may catch it
      answer = str(int(compare(reference, found)))
    except (OutOfTime, MemoryError):
      answer = "?"
    except Exception:  # whatever sympy and its parser raise on what a model wrote
      answer = "0"
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    print(answer, time.process_time() - start, file=replies, flush=True)


def _out_of_time(code, _, frame):
  """Raises OutOfTime where `code` is running: a signal that comes when it has just ended must not hit the reply."""
  while frame is not None:
    if frame.f_code is code:
      raise OutOfTime
    frame = frame.f_back


def _comparison():
  from latex2sympy2_extended import NormalizationConfig
  from math_verify import LatexExtractionConfig, parse, verify

  from nrt_jax.tasks import closed_forms

  # Boxes only, and only the first: where the whole text can't be read, the default goes on to a fraction somewhere in
  # it. As LaTeX only, for plain expressions are read by eval. No limits of its own: serve keeps the time.
  # Units are our own affair: 6m is no 6.
  spelling = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="last")
  config = LatexExtractionConfig(False, boxed_match_priority=0, normalization_config=spelling)
  how = {"extraction_config": [config], "extraction_mode": "first_match", "parsing_timeout": None}

  def read(text):
    found = parse(f"\\boxed{{{text}}}", **how)
    return None if not found or isinstance(found[0], str) else found[0]

  def compare(reference, found):
    expressions = read(reference), read(found)
    if any(expression is None for expression in expressions):
      return False
    try:
      same = closed_forms.same(*expressions)
    except closed_forms.Refused:
      return False
    return bool(verify(*expressions, allow_set_relation_comp=True, timeout_seconds=None)) if same is None else same

  return compare
