"""Storage that refuses a save: what is a refusal, what is said, what is left behind."""

import errno
import logging
import os

import pytest

from nrt_jax.errors import UserError
from nrt_jax.records import storage
from nrt_jax.records.storage import Storage

FULL = OSError(errno.ENOSPC, "full")


@pytest.fixture
def said():
  return []


@pytest.fixture
def store(tmp_path, said):
  for name in ("2", "4.orbax-checkpoint-tmp", "4.orbax-checkpoint-tmp-17"):
    (tmp_path / name).mkdir()
  return Storage(str(tmp_path), said.append)


def fail(store, error):
  with store.refusing("checkpoint 4 is not saved"):
    raise error


def test_a_refusal_is_said_once(store, said, tmp_path):
  fail(store, FULL)
  fail(store, ValueError("RESOURCE_EXHAUSTED: no room [os_error_code='28']"))
  assert said == [f"checkpoint 4 is not saved: {tmp_path}: full; the run goes on"]


def test_what_a_refusal_left_is_removed(store, tmp_path, monkeypatch):
  store.clean()
  assert len(os.listdir(tmp_path)) == 3  # of a killed run: Orbax is removing it, and fails if somebody else does
  fail(store, FULL)
  with monkeypatch.context() as several:
    several.setattr(storage.jax, "process_count", lambda: 2)  # others may still be writing
    store.clean()
  assert len(os.listdir(tmp_path)) == 3
  store.clean()
  assert os.listdir(tmp_path) == ["2"]


def test_other_errors_are_none(store, said):
  with pytest.raises(ZeroDivisionError):
    fail(store, ZeroDivisionError())
  with pytest.raises(ValueError, match="RESOURCE_EXHAUSTED"):
    fail(store, ValueError("RESOURCE_EXHAUSTED: out of memory"))
  assert not said


def test_with_several_processes_the_run_ends(store, said, monkeypatch):
  monkeypatch.setattr(storage.jax, "process_count", lambda: 2)
  with pytest.raises(OSError, match="No space left on device"):
    fail(store, ValueError("no room [os_error_code='28']"))
  assert not said


def test_a_directory_that_is_gone_ends_the_run(tmp_path, said):
  with pytest.raises(UserError, match="gone: has been removed while the run was going on"):
    fail(Storage(str(tmp_path / "gone"), said.append), FileNotFoundError(errno.ENOENT, "no such file"))


def test_tracebacks_of_refusals_are_dropped_and_no_others(store, caplog):
  for error in (FULL, OSError("Forbidden: b/o"), FileNotFoundError("b/o"), ZeroDivisionError("ours")):
    try:
      raise error
    except Exception:
      logging.getLogger("absl").exception("a thread has failed")
  logging.getLogger("asyncio").error("Task was destroyed but it is pending!\ntask: <Task at .../orbax/checkpoint/a.py>")
  logging.getLogger("asyncio").error("Task was destroyed but it is pending!\ntask: <Task at ours.py>")
  logging.getLogger("absl").warning("something else")
  assert [record.exc_info and str(record.exc_info[1]) for record in caplog.records] == ["ours", None, None]
