"""Programs of others are shut in: what they try fails inside, ends in bounded time and reaches nothing."""

import os
import struct
import time

import pytest

from nrt_jax.errors import UserError
from nrt_jax.evaluation import guard, sandbox
from nrt_jax.evaluation.sandbox import Limits

FAST = Limits(cpu_s=5, wall_s=20.0)

PASS = {
  "ordinary": "import collections, math, re, typing\nassert math.gcd(12, 18) == 6\nprint('x' * 10**6)",
  "threads": "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
  "reads": "import os\nassert os.listdir('.') == [] and open('/proc/self/status').read()",
  "no rights": "assert 'CapEff:\\t0000000000000000' in open('/proc/self/status').read()",
  "bare": "import os, sys\nassert set(os.environ) <= {'LC_CTYPE'} and not sys.argv[1:] and sys.flags.isolated",
}
FAIL = {
  "wrong": "assert 1 == 2",
  "no Python": "def (",
  "leaves early": "import sys\nsys.exit(0)",
  "leaves at once": "import os\nos._exit(0)",
  "fork bomb": "import os\nwhile True:\n  os.fork()",
  "program": "import subprocess\nsubprocess.run(['true'], check=False)",
  "memory": "x = []\nwhile True:\n  x.append(bytearray(10**8))",
  "one file": "open('x', 'w')",
  "many threads": "import threading, time\nwhile True:\n  threading.Thread(target=time.sleep, args=(99,)).start()",
  "many files": "x = [open('/dev/null') for _ in range(99)]",
  "socket": "import socket\nsocket.socket()",
  "local socket": "import socket\nsocket.socket(socket.AF_UNIX)",
  "address": "import socket\nsocket.create_connection(('127.0.0.1', 80), timeout=1)",
  "signal": "import os\nos.kill(os.getppid(), 9)",
  "no limit": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
}


def test_ordinary_programs_pass():
  assert sandbox.all_pass(list(PASS.values()), FAST) == [True] * len(PASS)


def test_what_is_refused_fails_soon():
  start = time.monotonic()
  assert sandbox.all_pass(list(FAIL.values()), FAST) == [False] * len(FAIL)
  assert time.monotonic() - start < FAST.wall_s  # so none of them was waited for


def test_endless_programs_are_ended():
  """By the time of the processor, or by the clock."""
  limits = Limits(cpu_s=1, wall_s=1.5)
  start = time.monotonic()
  assert sandbox.all_pass(["while True: pass", "import time\ntime.sleep(99)"], limits) == [False, False]
  assert time.monotonic() - start < 20


def test_files_of_others_are_left_alone(tmp_path):
  mine = tmp_path / "mine"
  mine.write_text("kept")
  tries = [f"open({str(mine)!r}, 'a').write('x')", f"import os\nos.remove({str(mine)!r})",
           f"import os\nos.rename({str(mine)!r}, 'x')", f"import os\nos.truncate({str(mine)!r}, 0)",
           f"import os\nos.chmod({str(mine)!r}, 0)", f"import os\nos.mkdir({str(tmp_path / 'new')!r})"]  # fmt: skip
  assert sandbox.all_pass([*tries, f"open({str(mine)!r}).read()"], FAST) == [False] * len(tries) + [True]
  assert mine.read_text() == "kept" and list(tmp_path.iterdir()) == [mine]


def test_equal_programs_run_once():
  seen = []
  programs = ["assert 1", "assert 0", "assert 1"]
  assert sandbox.all_pass(programs, FAST, lambda *done: seen.append(done)) == [True, False, True]
  assert seen == [(1, 2), (2, 2)]


def test_text_that_is_no_unicode_fails():
  assert not sandbox.passes("x = '\ud800'", FAST)


def test_a_system_that_cannot_shut_them_in_is_refused(monkeypatch):
  sandbox.require()
  monkeypatch.setattr(sandbox, "MACHINES", ("vax",))
  with pytest.raises(UserError, match="^--run_code: found Linux on .*, which can't shut programs in, allowed: Linux"):
    sandbox.require()


# ---- The filter of system calls, run by hand -----------------------------------------------------------------------


def verdict(machine: str, number: int, arguments=(), arch=None) -> int:
  """What the kernel would find: classic BPF over its description of a call."""
  column, own = guard.ARCHES[machine]
  data = struct.pack("<II8x6Q", number, own if arch is None else arch, *arguments, *[0] * (6 - len(arguments)))
  code, at, value = guard.instructions(column, own), 0, 0
  while True:
    op, yes, no, operand = code[at]
    at += 1
    if op == guard.RETURN:
      return operand
    if op == guard.LOAD:
      (value,) = struct.unpack_from("<I", data, operand)
    else:
      tests = {guard.EQUAL: value == operand, guard.ABOVE: value >= operand, guard.ANY_BIT: value & operand}
      at += yes if tests[op] else no


@pytest.mark.parametrize("machine,column", [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_of_each_machine(machine, column):
  refused, nothing = guard.REFUSE | guard.EPERM, guard.ALLOW
  for name, numbers in guard.REFUSED.items():
    if numbers[column] is not None:
      assert verdict(machine, numbers[column]) == refused, name
  openat, clone = guard.OPENS["openat"][0][column], guard.CLONE[column]
  for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC | os.O_RDWR):
    assert verdict(machine, openat, (0, 0, flags)) == refused
  assert verdict(machine, openat, (0, os.O_RDWR, os.O_RDONLY | os.O_CLOEXEC)) == nothing
  assert verdict(machine, clone, (guard.CLONE_THREAD | 0x100,)) == nothing
  assert verdict(machine, clone, (17,)) == refused
  assert verdict(machine, guard.CLONE3[column]) == guard.REFUSE | guard.ENOSYS
  assert verdict(machine, 0x40000000 | 41) == refused and verdict(machine, 0, arch=3) == guard.KILL
  assert verdict(machine, {"x86_64": 0, "aarch64": 63}[machine]) == nothing  # read
