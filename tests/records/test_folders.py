"""Checkpoints in a bucket, through the real clients, against those in a directory."""

import errno
import json
import os
import socket
import subprocess
import sys

import bucket as buckets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import SYNC, raw
from paths import ROOT

from nrt_jax.records.checkpoint import CheckpointConfig, Checkpoints
from nrt_jax.records.folders import COMMITTED, open_folder

URL = "gs://bucket/runs/one/checkpoints"
BEST = CheckpointConfig(keep_last=1, keep_best="score", async_save=False)


@pytest.fixture
def cloud(monkeypatch, tmp_path):
  return buckets.emptied(monkeypatch, tmp_path / "cache")


def test_json_is_the_same_in_both(cloud, tmp_path):
  """A lone surrogate, of half a character, too: as an escape, which JSON reads back."""
  value = {"texts": ["ä", "\ud800"], "numbers": [1, 0.5]}
  for folder in (open_folder(str(tmp_path)), open_folder(URL)):
    folder.write_json(value, "record")
    assert json.loads(folder.read("record")) == value


def states(step):
  return {"w": jnp.asarray(np.random.default_rng(step).normal(size=(64, 8))), "key": jax.random.key(step)}


def save_all(directory, config, steps):
  writer = Checkpoints(directory, config)
  for step, metrics in steps:
    writer.save(step, states(step), {"step": step}, metrics)
  writer.close()


def newest(directory, read_only=True):
  """The step that is found, with the very bits that were saved."""
  found = Checkpoints(directory, SYNC, read_only=read_only)
  step, (tree, record) = found.newest(lambda step: found.restore(step, states(0)))
  assert record == {"step": step}
  assert {name: raw(leaf) for name, leaf in tree.items()} == {name: raw(leaf) for name, leaf in states(step).items()}
  found.close()
  return step


def names(cloud, step):
  return [name for name in cloud.objects if name.startswith(f"runs/one/checkpoints/{step}/")]


def test_they_are_kept_ranked_amended_and_read_as_in_a_directory(cloud, tmp_path):
  found = {}
  for directory in (URL, str(tmp_path / "checkpoints")):
    save_all(directory, BEST, [(1, {"score": 0.2}), (2, {"score": 0.9}), (3, {"score": 0.1})])
    writer = Checkpoints(directory, BEST)
    kept = writer.all_steps(), writer.best_step()
    writer.save(4, states(4), {"step": 4, "owed": True})
    writer.amend(4, {"step": 4}, {"score": 1.0})
    writer.close()
    reader = Checkpoints(directory, BEST, read_only=True)
    found[directory] = kept, reader.all_steps(), reader.best_step(), reader.record(), newest(directory)
  assert list(found.values()) == [(([2, 3], 2), [2, 4], 4, {"step": 4}, 4)] * 2
  assert not names(cloud, 1) and not names(cloud, 3)


def test_a_step_that_is_not_written_to_the_end_is_none_and_its_number_is_used_again(cloud):
  save_all(URL, SYNC, [(1, None), (2, None)])
  del cloud.objects[f"runs/one/checkpoints/2/{COMMITTED}"]
  assert newest(URL) == 1
  save_all(URL, SYNC, [(2, None)])
  assert newest(URL) == 2


def test_a_changed_byte_is_found_and_the_step_before_it_is_used(cloud, capsys):
  save_all(URL, SYNC, [(1, None), (2, None)])
  arrays = [name for name in names(cloud, 2) if "/d/" in name]
  for name in arrays:
    data, generation = cloud.objects[name]
    cloud.objects[name] = data[:-9] + bytes([data[-9] ^ 4]) + data[-8:], generation
  assert newest(URL) == 1 and names(cloud, 2)  # a reader leaves it where it is
  assert newest(URL, read_only=False) == 1
  assert not names(cloud, 2) and set(cloud.objects) >= {name.replace("/2/", "/damaged/2/") for name in arrays}
  read, moved = capsys.readouterr().err.splitlines()
  assert "checkpoints/2: damaged checkpoint (" in read and read.endswith("step 1 is used")
  assert moved.endswith(f"step 1 is used, and the damaged one is now in {URL}/damaged")
  save_all(URL, SYNC, [(2, None)])
  assert newest(URL) == 2


def test_a_server_that_fails_for_a_while_is_asked_again(cloud):
  """Each kind of object once, written by either client, and read."""
  failed = set()

  def fail(method, name):
    kind = (method, "/d/" in name, name.rsplit("/", 1)[-1] == COMMITTED)
    if len(failed) == 4 or kind in failed:
      return None
    failed.add(kind)
    return 503

  cloud.fail = fail
  save_all(URL, SYNC, [(1, None)])
  assert newest(URL) == 1 and len(failed) == 4


@pytest.mark.parametrize("what", ["state/", "record/", "metrics/"])
def test_a_server_that_refuses_to_be_read_damages_nothing(cloud, what):
  """Whatever it refuses, no step is taken for a damaged one, and none for one without an evaluation."""
  save_all(URL, BEST, [(1, {"score": 0.5})])
  before = dict(cloud.objects)
  cloud.fail = lambda method, name: 403 if what in name and method == "GET" else None
  with pytest.raises(OSError) as error:
    Checkpoints(URL, BEST)
    newest(URL)
  assert error.value.errno == errno.EACCES and error.value.filename.startswith(URL)
  assert cloud.objects == before


def test_a_save_that_is_refused_is_a_warning(cloud):
  said = []
  writer = Checkpoints(URL, CheckpointConfig(keep_last=3))
  writer.storage.warn = said.append
  for step in (1, 2, 3):
    cloud.fail = lambda method, name: 403 if method == "POST" and "checkpoints/2/" in name else None
    writer.save(step, states(step), {"step": step})
  writer.close()
  assert len(said) == 1, said
  (line,) = said
  assert line.startswith(f"checkpoint 2 is not saved: {URL}: Cloud Storage: ") and line.endswith("the run goes on")
  reader = Checkpoints(URL, read_only=True)
  assert reader.all_steps() == [1, 3] and newest(URL) == 3


def test_a_server_that_is_back_gets_the_next_step(cloud):
  """Also where Orbax could not even be opened again in between."""
  said = []
  writer = Checkpoints(URL, CheckpointConfig(keep_last=3))
  writer.storage.warn = said.append
  for step in (1, 2, 3, 4):
    cloud.fail = lambda method, name: 403 if step in (2, 3) else None
    writer.save(step, states(step), {"step": step})
    writer.wait()
  writer.close()
  assert [line.split(" is not saved")[0] for line in said] == ["checkpoint 2", "checkpoint 3"], said
  assert Checkpoints(URL, read_only=True).all_steps() == [1, 4] and newest(URL) == 4


PARTNER = """
import sys
import jax
number = int(sys.argv[2])
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(sys.argv[1], 2, number)
import numpy as np
from nrt_jax.records.checkpoint import CheckpointConfig, Checkpoints
mesh = jax.make_mesh((2,), ("hosts",))
cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("hosts"))
made = jax.make_array_from_callback((4, 8), cut, lambda index: np.arange(32.0, dtype=np.float32).reshape(4, 8)[index])
writer = Checkpoints(sys.argv[3], CheckpointConfig())
writer.save(1, {"w": made}, {"step": 1})
writer.wait()
(tree, record) = writer.restore(None, {"w": made})
writer.close()
print(record, tree["w"].addressable_shards[0].data.sum(), flush=True)
"""


def test_two_hosts_write_their_shards_of_one_step(cloud):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
  how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "PYTHONPATH": path}}
  command = [sys.executable, "-c", PARTNER, address]
  running = [subprocess.Popen([*command, str(number), URL], **how) for number in range(2)]
  outputs = [process.communicate(timeout=120) for process in running]
  assert [process.returncode for process in running] == [0, 0], outputs
  assert [out.splitlines()[-1] for out, _ in outputs] == ["{'step': 1} 120.0", "{'step': 1} 376.0"]
  assert {f"ocdbt.process_{n}" for n in range(2)} <= {part for name in names(cloud, 1) for part in name.split("/")}
  tree, _ = Checkpoints(URL, read_only=True).restore(1, {"w": jax.ShapeDtypeStruct((4, 8), jnp.float32)})
  assert (np.asarray(tree["w"]).ravel() == np.arange(32)).all()
