"""One run at a time in a workdir, between processes: a lock within one process would not be refused."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from paths import ROOT

from nrt_jax.errors import UserError
from nrt_jax.records import lock

HOLDER = """
import sys, time
from nrt_jax.records import lock
with lock.held(sys.argv[1]) as before:
  print("held", before, flush=True)
  sys.stdin.read()
print("released", flush=True)
"""


def start(workdir):
  """A process that holds the lock, and what it found."""
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  process = subprocess.Popen([sys.executable, "-c", HOLDER, str(workdir)], cwd=ROOT, **pipes)
  return process, process.stdout.readline()


@pytest.fixture
def holder(tmp_path):
  process, said = start(tmp_path)
  assert said == "held None\n"
  yield process
  process.kill()
  process.communicate()


def test_a_second_run_is_refused_by_host_and_process(tmp_path, holder):
  says = f"{tmp_path}: in use by process {holder.pid} on host {socket.gethostname()}; allowed: one run at a time"
  with pytest.raises(UserError, match=says), lock.held(str(tmp_path)):
    raise AssertionError("two runs at a time")
  assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == holder.pid  # who asks changes nothing


def test_a_run_that_ends_leaves_no_lock(tmp_path, holder):
  assert holder.communicate("")[0] == "released\n"
  assert not (tmp_path / lock.NAME).exists()
  with lock.held(str(tmp_path)) as before:
    assert before is None
  assert not (tmp_path / lock.NAME).exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_run_is_stale(tmp_path, holder, how):
  holder.send_signal(how)
  holder.wait()
  assert (tmp_path / lock.NAME).exists()
  with lock.held(str(tmp_path)) as says:
    assert says.startswith(f"the run before, process {holder.pid} on host {socket.gethostname()}, ended")
  with lock.held(str(tmp_path)) as before:
    assert before is None


def test_a_stopped_run_still_holds_its_lock(tmp_path, holder):
  holder.send_signal(signal.SIGSTOP)
  with pytest.raises(UserError, match=f"process {holder.pid} on host"), lock.held(str(tmp_path)):
    pass


def test_a_lock_of_no_content_is_refused_all_the_same(tmp_path, holder):
  (tmp_path / lock.NAME).write_text("")
  with pytest.raises(UserError, match="process unknown on host unknown"), lock.held(str(tmp_path)):
    pass


def test_a_workdir_that_vanishes_is_not_missed(tmp_path):
  with lock.held(str(tmp_path)):
    os.remove(tmp_path / lock.NAME)
  assert not list(tmp_path.iterdir())
