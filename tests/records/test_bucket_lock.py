"""The lock of a workdir in a bucket: who has it, who finds it, and whether it beats."""

import concurrent.futures
import json
import time

import bucket as helper
import pytest

from nrt_jax.errors import UserError
from nrt_jax.records import bucket_lock

RUN, OBJECT = "gs://bucket/runs/one", "runs/one/run.lock"


@pytest.fixture
def cloud(monkeypatch, tmp_path):
  monkeypatch.setattr(bucket_lock, "BEAT", 0.05)
  monkeypatch.setattr(bucket_lock, "PATIENCE", 1.0)
  for name in ("here", "there"):
    (tmp_path / name).mkdir()
  return helper.emptied(monkeypatch, tmp_path)


def held(tmp_path, name="here"):
  return bucket_lock.held(RUN, str(tmp_path / name))


def holder(cloud):
  return json.loads(cloud.objects[OBJECT][0])


def leave(cloud, tmp_path, name):
  """What a killed run on that machine leaves."""
  lock = bucket_lock.Lock(f"{RUN}/run.lock", str(tmp_path / name))
  lock.take()
  return lock


def test_a_run_that_beats_keeps_others_out(cloud, tmp_path, capsys):
  with held(tmp_path) as (left, require):
    assert left is None
    with pytest.raises(UserError, match=f"^--workdir: {RUN}: in use by process .* on host .*; allowed: one run at a"):
      held(tmp_path, "there").__enter__()
    require()
    assert holder(cloud)["beat"] > 0
  assert OBJECT not in cloud.objects
  assert capsys.readouterr().err.count("looking for 1 s whether it still is") == 1


def test_a_lock_that_does_not_beat_is_void(cloud, tmp_path):
  leave(cloud, tmp_path, "there")
  start = time.monotonic()
  with held(tmp_path) as (left, require):
    assert left.startswith("the run before, process ") and left.endswith("its lock is void")
    assert time.monotonic() - start >= 1.0
    require()


def test_a_run_that_was_killed_on_this_machine_is_not_waited_for(cloud, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(bucket_lock, "PATIENCE", 1000.0)
  leave(cloud, tmp_path, "here")
  with held(tmp_path) as (left, _):
    assert left.endswith("its lock is void")
  assert capsys.readouterr().err == ""


def test_a_lock_that_says_nothing_is_waited_for(cloud, tmp_path):
  cloud.put(OBJECT, b"{")
  with held(tmp_path) as (left, _):
    assert left == "the run before, process unknown on host unknown, ended without a word; its lock is void"


def test_who_was_taken_for_dead_ends_and_leaves_the_lock_alone(cloud, tmp_path):
  with held(tmp_path) as (_, require):
    cloud.put(OBJECT, json.dumps({"host": "h", "pid": 7, "token": "x", "beat": 0, "place": "p"}).encode())
    time.sleep(0.2)
    with pytest.raises(UserError, match=f"^--workdir: {RUN}: taken over by process 7 on host h; allowed: one run at a"):
      require()
  assert holder(cloud)["token"] == "x" and holder(cloud)["beat"] == 0


def test_a_workdir_that_is_removed_ends_the_run(cloud, tmp_path):
  with held(tmp_path) as (_, require):
    cloud.objects.clear()
    time.sleep(0.2)
    with pytest.raises(UserError, match=f"^--workdir: {RUN}: has been removed while the run was going on"):
      require()
  assert not cloud.objects


def test_of_several_at_once_one_has_it(cloud, tmp_path):
  for name in "abcd":
    (tmp_path / name).mkdir()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda name: try_one(tmp_path, name), "abcd"))
  (lock,) = filter(None, found)
  lock.__exit__(None, None, None)
  assert OBJECT not in cloud.objects


def try_one(tmp_path, name):
  lock = held(tmp_path, name)
  try:
    lock.__enter__()
  except UserError:
    return None
  return lock
