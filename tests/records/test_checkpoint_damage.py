"""Checkpoints that storage has damaged: what is lost is named, and no changed bit is ever restored."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoints import SYNC, abstract, array_files, assert_same_bits, make_state, save_all

from nrt_jax.errors import UserError
from nrt_jax.records.checkpoint import CheckpointConfig, Checkpoints


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
  """(directory, states of step 1, states of step 2)."""
  directory = tmp_path_factory.mktemp("two_steps")
  states = [{"policy": make_state(seed), "mu": jax.random.normal(jax.random.key(seed), (64, 64))} for seed in (1, 2)]
  writer = Checkpoints(directory, SYNC)
  for step, state in enumerate(states, 1):
    writer.save(step, state, {"step": step})
  writer.close()
  return directory, *states


def newest(directory, like, **options):
  """(step, tree, record) that a run which starts again gets."""
  checkpoints = Checkpoints(directory, SYNC, **options)
  step, (tree, record) = checkpoints.newest(lambda step: checkpoints.restore(step, abstract(like)))
  checkpoints.close()
  return step, tree, record


def flip(path, position, bit):
  content = bytearray(path.read_bytes())
  content[position] ^= 1 << bit
  path.write_bytes(content)


def check_found(directory, first, second, reader):
  """The step that is found, which has the very bits that were saved, and how many warnings there were."""
  step, tree, record = newest(directory, first, read_only=reader)
  assert record == {"step": step}
  assert_same_bits(tree, {1: first, 2: second}[step])
  return step


def test_no_flipped_bit_is_ever_restored(two_steps, tmp_path, capsys):
  """40 flips at random places of the array files: a flip is harmless (an unused byte), or the step before is used."""
  original, first, second = two_steps
  rng, found = np.random.default_rng(0), []
  for case in range(40):
    directory = tmp_path / str(case)
    shutil.copytree(original, directory)
    files = array_files(directory / "2")
    sizes = np.array([path.stat().st_size for path in files])
    path = files[rng.choice(len(files), p=sizes / sizes.sum())]
    flip(path, int(rng.integers(path.stat().st_size)), int(rng.integers(8)))
    found.append(check_found(directory, first, second, reader=True))
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == (found[-1] == 1), warnings
  assert found.count(1) > 30


def test_a_changed_bit_is_named_with_its_array(tmp_path, monkeypatch, capsys):
  """As storage that returns other bits without an error would have it."""
  writer = Checkpoints(tmp_path, SYNC)
  for step in (1, 2):
    writer.save(step, {"w": jnp.full(4, step), "v": jnp.ones(2)}, {"step": step})
  read = ocp.PyTreeCheckpointHandler.restore

  def flipped(self, path, **how):
    found = read(self, path, **how)
    if path == tmp_path / "2" / "state" and "v" in found:
      found["v"] = found["v"].at[1].set(1 + 2.0**-23)
    return found

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", flipped)
  like = {"w": jnp.zeros(4, jnp.int32), "v": jnp.zeros(2)}
  tree, record = Checkpoints(tmp_path, SYNC, read_only=True).restore(None, like)
  assert record == {"step": 1} and (tree["w"] == 1).all()
  (line,) = capsys.readouterr().err.splitlines()
  assert "2: damaged checkpoint (v: its bits are not those that were saved); step 1 is used" in line
  part, _ = Checkpoints(tmp_path, SYNC, read_only=True).restore(2, {"w": like["w"]}, partial=True)
  assert (part["w"] == 2).all()  # what is not read is not judged


@pytest.mark.parametrize("how", ["emptied", "halved", "missing"])
def test_any_file_may_be_damaged(two_steps, tmp_path, how, capsys):
  """Each file of the newest step in turn: what is restored is whole, with one warning if it is the step before."""
  original, first, second = two_steps
  names = [path.relative_to(original / "2") for path in (original / "2").rglob("*") if path.is_file()]
  assert len(names) > 8
  found = {}
  for number, name in enumerate(names):
    directory = tmp_path / str(number)
    shutil.copytree(original, directory)
    path = directory / "2" / name
    if how == "missing":
      path.unlink()
    else:
      os.truncate(path, 0 if how == "emptied" else path.stat().st_size // 2)
    found[str(name)] = check_found(directory, first, second, reader=False)
    err = capsys.readouterr().err
    assert err.count("\n") == (found[str(name)] == 1), err
  assert found["metrics/metrics"] == 2 and found["record/metadata"] == 1 and 1 in found.values(), found


@pytest.mark.parametrize("content", ["", "[1]", '{"eval/acc": "x"}', None])
@pytest.mark.parametrize("step", [2, 4, 5])
def test_the_metrics_of_a_kept_step_never_matter(tmp_path, content, step):
  """A step whose metrics are lost counts as not measured."""
  config = CheckpointConfig(keep_last=2, keep_best="eval/acc", async_save=False)
  save_all(tmp_path, config, [(1, 0.5), (2, 0.9), (3, 0.1), (4, 0.2), (5, 0.3)])
  path = tmp_path / str(step) / "metrics" / "metrics"
  path.unlink() if content is None else path.write_text(content)
  best = {2: 5, 4: 2, 5: 2}[step]
  assert Checkpoints(tmp_path, config, read_only=True).best_step() == best
  writer = Checkpoints(tmp_path, config)
  assert writer.all_steps() == [2, 4, 5] and writer.best_step() == best
  writer.save(6, {"w": jnp.full(3, 6)}, {"step": 6}, {"eval/acc": 0.0})
  assert writer.all_steps() == sorted({best, 5, 6})


def test_a_damaged_step_is_set_aside_and_its_number_used_again(two_steps, tmp_path, capsys):
  original, first, second = two_steps
  directory = tmp_path / "checkpoints"
  shutil.copytree(original, directory)
  (directory / "2" / "record" / "metadata").write_text("{")
  with pytest.raises(UserError, match=r"2: damaged checkpoint \(.*\)$"):
    Checkpoints(directory, SYNC).restore(2, abstract(first))  # who names a step gets that one or none
  assert newest(directory, first)[0] == 1
  place = directory / "damaged" / "2"
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"nrt-jax: warning: {directory}/2: damaged checkpoint (")
  assert line.endswith(f"); step 1 is used, and the damaged one is now in {place.parent}")
  assert place.is_dir() and Checkpoints(directory, SYNC).all_steps() == [1]
  writer = Checkpoints(directory, SYNC)
  writer.save(2, second, {"step": 2})
  writer.close()
  assert check_found(directory, first, second, reader=True) == 2


def test_a_checkpoint_without_digests_is_still_read(two_steps, tmp_path):
  """Those of earlier versions."""
  original, first, second = two_steps
  shutil.copytree(original, tmp_path / "old")
  (tmp_path / "old" / "2" / "record" / "metadata").write_text('{"step": 2}')
  assert check_found(tmp_path / "old", first, second, reader=True) == 2


def test_memory_that_runs_out_is_no_damage(two_steps, monkeypatch):
  original, first, _ = two_steps

  def full(self, *_, **__):
    raise MemoryError("no room")

  checkpoints = Checkpoints(original, SYNC, read_only=True)
  monkeypatch.setattr(type(checkpoints._reader), "restore", full)
  with pytest.raises(MemoryError):
    checkpoints.newest(lambda step: checkpoints.restore(step, abstract(first)))


def test_a_reader_looks_again_when_a_step_is_deleted_under_its_hands(tmp_path, capsys):
  """A run that keeps one checkpoint goes on while it is read."""
  config = CheckpointConfig(keep_last=1, async_save=False)
  writer = Checkpoints(tmp_path, config)
  states = lambda step: {"w": jnp.full(3, step)}
  writer.save(1, states(1), {"step": 1})
  reader = Checkpoints(tmp_path, config, read_only=True)
  tried = []

  def read(step):
    tried.append(step)
    if step < 3:
      writer.save(step + 1, states(step + 1), {"step": step + 1})  # deletes the step that is about to be read
    return reader.restore(step, states(0))

  step, (tree, record) = reader.newest(read)
  assert tried == [1, 2, 3] and step == 3 and record == {"step": 3} and (tree["w"] == 3).all()
  assert capsys.readouterr().err == ""
