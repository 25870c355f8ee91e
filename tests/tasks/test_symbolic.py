"""math-verify's process: what it is asked, what it may take, and what happens where no answer comes."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from graders import GENEROUS, needs_math_verify
from paths import ROOT

from nrt_jax import errors
from nrt_jax.tasks import math_answers, symbolic

pytestmark = needs_math_verify
grade = math_answers.grade_math


@pytest.fixture
def worker():
  """A worker that has started."""
  one = symbolic.Worker()
  assert one.ask("x+1", "1+x", 60)
  yield one
  one.close()


@pytest.fixture
def fresh(worker, monkeypatch):
  """The worker that graders ask, with nothing cached."""
  monkeypatch.setattr(symbolic, "WORKER", worker)
  symbolic._answer.cache_clear()
  return worker


BOMBS = [
  "9^{9^{9^9}}", "9**9**9**9", "10000000!", "10000000!!", "((10^{10})!)!", r"\binom{10^{9}}{5 \cdot 10^8}",
  r"{10^9 \choose 10^8}", "2^{10^{10}}", "10^{-10^{10}}", "0.1^{10^{10}}", r"\sqrt{9^{9^{9}}}", r"\log(9^{9^9})",
  r"\sum_{i=1}^{10^{10}} i^i", r"\prod_{i=1}^{10^9} i", "x^{10^{10}!}", "(1+2)^{10^9}", "e^{e^{e^{100}}}",
  r"\sin(9^{9^9})", "(" * 140 + "x" + ")" * 140, "{" * 140 + "x" + "}" * 140, "1e999999999", "10^{999999999}",
  r"\binom{9^{9^9}}{2}", r"\frac{1}{9^{9^9}}", r"\left(9^9\right)^{9^9}",
]  # fmt: skip


def test_bombs_are_refused_by_their_form(fresh):
  """At once, and not for want of time: a time-out would depend on the machine."""
  with symbolic.budget() as spent:
    start, process = time.perf_counter(), fresh._process
    for bomb in BOMBS:
      assert not grade(bomb, "x+1") and not grade("x+1", bomb) and not grade(bomb, "5"), bomb
  assert spent.timeouts == 0 and fresh._process is process and process.poll() is None
  assert time.perf_counter() - start < 2 * GENEROUS
  assert symbolic.BUDGET_SECONDS - spent.seconds < GENEROUS


def test_a_stalled_process_makes_no_answer_wrong(fresh, monkeypatch):
  """A new process is asked, with all the time it needs."""
  start = symbolic.Worker._start

  def start_anew(worker):
    monkeypatch.setattr(symbolic, "STALLED_SECONDS", 60.0)
    start(worker)

  monkeypatch.setattr(symbolic.Worker, "_start", start_anew)
  monkeypatch.setattr(symbolic, "STALLED_SECONDS", 1.0)
  os.kill(fresh._process.pid, signal.SIGSTOP)
  with symbolic.budget() as spent:
    assert grade("b+a", "a+b") and spent.timeouts == 0
    assert spent.stalled_seconds == symbolic.BUDGET_STALLED_SECONDS - 1


def test_time_outs_are_counted_and_forgotten(fresh, monkeypatch):
  pair = (r"\sin^2 t + \cos^2 t + t", "1+t")
  with symbolic.budget() as spent, monkeypatch.context() as patch:
    patch.setattr(symbolic, "SECONDS", 0.001)
    assert not grade(*pair) and not grade(*pair) and spent.timeouts == 2
    assert grade("5", "5.0") and spent.timeouts == 2  # no question
  with symbolic.budget() as spent:
    assert grade(*pair) and spent.timeouts == 0


def test_a_step_has_one_budget(fresh):
  with symbolic.budget(seconds=0) as spent:
    assert not grade("b+a", "a+b") and not grade("c+a", "a+c") and spent.timeouts == 2
  with symbolic.budget(stalled_seconds=0) as spent:
    assert not grade("b+a", "a+b") and spent.timeouts == 1
  with symbolic.budget(seconds=10) as spent:
    assert grade("b+a", "a+b") and 0 < spent.seconds < 10 and spent.stalled_seconds == symbolic.BUDGET_STALLED_SECONDS
  with symbolic.budget(seconds=0) as spent:
    assert grade("b+a", "a+b") and spent.timeouts == 0  # known from before
  assert grade("d+a", "a+d")  # outside there is none


def test_a_process_that_was_ended_is_replaced(worker):
  worker._process.kill()
  assert worker.ask("x+1", "1+x", 60)
  os.kill(worker._process.pid, signal.SIGSTOP)
  threading.Timer(1, worker._process.kill).start()  # while it is asked
  assert worker.ask("x+1", "1+x", 60)
  worker.close()
  assert worker.ask("x+1", "1+x", 60)
  worker.close()
  worker.close()


def test_one_long_operation_is_a_time_out(worker):
  """What cannot be interrupted ends the process by its own timer, and isn't tried again."""
  pid = worker._process.pid
  os.kill(pid, signal.SIGSTOP)
  threading.Timer(1, lambda: (os.kill(pid, signal.SIGVTALRM), os.kill(pid, signal.SIGCONT))).start()
  with pytest.raises(symbolic.Unanswered):
    worker.ask("x+1", "1+x", 60)
  assert worker.ask("x+1", "1+x", 60)


@pytest.mark.parametrize("program", ["false", "no-such-program"])
def test_a_process_that_does_not_start_is_one_line(program, monkeypatch):
  worker = symbolic.Worker()
  monkeypatch.setattr(symbolic, "WORKER", worker)
  symbolic._answer.cache_clear()
  monkeypatch.setattr(symbolic.sys, "executable", shutil.which(program) or f"/nowhere/{program}")
  for _ in range(2):
    with pytest.raises(errors.UserError, match="^grader math: the process of math-verify does not start: [^\n]+$"):
      grade("b+a", "a+b")


def test_the_process_runs_this_library_whatever_the_working_directory_holds(tmp_path, monkeypatch):
  (tmp_path / "nrt_jax.py").write_text("raise SystemExit")
  monkeypatch.chdir(tmp_path)
  worker = symbolic.Worker()
  assert worker.ask("x+1", "1+x", 60)
  worker.close()


def test_math_grades_in_a_thread():
  found = []
  thread = threading.Thread(target=lambda: found.append(grade("b+a", "a+b")))
  thread.start()
  thread.join()
  assert found == [True]  # math-verify's own time limit works in the main thread only


def test_the_process_ends_with_its_parent():
  code = "from nrt_jax.tasks import symbolic as s; assert s.WORKER.ask('x+1', '1+x', 60); print(s.WORKER._process.pid)"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert not pathlib.Path(f"/proc/{done.stdout.strip()}").exists()
