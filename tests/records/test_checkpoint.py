"""Checkpoints: bit-exact, across meshes, the last k and the best. Complete or absent: test_checkpoint_kill.py."""

import dataclasses
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from checkpoints import SYNC, raw
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nrt_jax.errors import UserError
from nrt_jax.records.checkpoint import CheckpointConfig, Checkpoints


@struct.dataclass
class State:
  """Stands for state.TrainState: a dataclass with nested dicts, optax's NamedTuples, a step and a typed key."""

  step: jax.Array
  params: dict
  opt_state: tuple
  key: jax.Array


def mesh(*shape):
  return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def shardings_of(state, on):
  """Kernels over fsdp and tensor, the rest replicated."""
  cut = NamedSharding(on, PartitionSpec("fsdp", "tensor"))
  return jax.tree.map(lambda x: cut if x.ndim == 2 else NamedSharding(on, PartitionSpec()), state)


def make_state(seed, on=None):
  """Values with every awkward bit pattern: NaNs with payload, negative zero, infinities, denormals, bfloat16."""
  rng = np.random.default_rng(seed)
  bits = rng.integers(0, 2**32, size=(8, 16), dtype=np.uint32).view(np.float32)  # about 1 in 256 is a NaN
  bits[0, :4] = [np.float32("nan"), -0.0, np.inf, 1e-42]
  params = {
    "layers": {"q": {"kernel": jnp.asarray(bits), "bias": jnp.asarray(rng.normal(size=16), jnp.bfloat16)}},
    "norm": {"scale": jnp.asarray(rng.normal(size=8), jnp.float32)},
  }
  opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
  state = State(step=jnp.int32(seed), params=params, opt_state=opt_state, key=jax.random.key(seed))
  return state if on is None else jax.device_put(state, shardings_of(state, on))


def abstract(state, on=None):
  shapes = jax.eval_shape(lambda: state)
  if on is None:
    return shapes
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings_of(state, on)
  )


def assert_same_bits(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


def test_round_trip_is_bit_exact_with_typed_keys(tmp_path):
  states = {"policy": make_state(3), "reference": make_state(4).params}
  record = {"position": [1, 7], "config": {"seed": 0}, "reward": 0.1}
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  checkpoints.save(5, states, record)
  checkpoints.close()
  found, found_record = Checkpoints(tmp_path / "checkpoints").restore(None, abstract(states))
  assert_same_bits(found, states)
  assert found_record == record
  assert jax.random.key_impl(found["policy"].key) == jax.random.key_impl(states["policy"].key)
  assert raw(jax.random.split(found["policy"].key)) == raw(jax.random.split(states["policy"].key))


def test_per_row_keys_of_another_kind_round_trip(tmp_path):
  states = {"key_N": jax.random.split(jax.random.key(1, impl="rbg"), 3)}
  checkpoints = Checkpoints(tmp_path, SYNC)
  checkpoints.save(1, states, {})
  assert_same_bits(checkpoints.restore(1, abstract(states))[0], states)


@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 2, 2), (8, 1, 1), (1, 1, 8)], ids=str)
def test_restores_onto_another_mesh(tmp_path, shape):
  """Saved from (data, fsdp, tensor) = (1, 4, 2)."""
  states = {"policy": make_state(2, mesh(1, 4, 2))}
  assert len(states["policy"].params["layers"]["q"]["kernel"].sharding.device_set) == 8
  checkpoints = Checkpoints(tmp_path, SYNC)
  checkpoints.save(1, states, {})
  wanted = abstract(states, mesh(*shape))
  found, _ = checkpoints.restore(1, wanted)
  assert_same_bits(found, states)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert a.sharding == b.sharding


def test_without_shardings_arrays_land_on_the_first_device(tmp_path):
  states = {"policy": make_state(2, mesh(1, 4, 2))}
  checkpoints = Checkpoints(tmp_path, SYNC)
  checkpoints.save(1, states, {})
  found, _ = checkpoints.restore(1, abstract(states))
  assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(found))


def test_arrays_may_be_donated_while_the_save_is_running(tmp_path):
  """On CPU the save reads the very buffer, and JAX must then not write into it; elsewhere it is copied first."""
  step = jax.jit(lambda states: jax.tree.map(lambda x: x * 0 - 1, states), donate_argnums=0)
  make = lambda: {"w": jnp.arange(2**22, dtype=jnp.float32)}
  other = make()
  jax.block_until_ready(step(other))
  assert other["w"].is_deleted()  # the step does donate where nobody else holds the array
  states = make()
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, states, {})
  for _ in range(4):
    states = jax.block_until_ready(step(states))
  assert np.all(np.asarray(states["w"]) == -1)
  found, _ = checkpoints.restore(1, abstract(states))
  np.testing.assert_array_equal(found["w"], np.arange(2**22, dtype=np.float32))


def save_all(directory, config, values):
  """One checkpoint per (step, metric), reopened in between, as after a restart."""
  for step, value in values:
    checkpoints = Checkpoints(directory, config)
    checkpoints.save(step, {"w": jnp.full(3, step)}, {"step": step}, None if value is None else {"eval/acc": value})
    checkpoints.close()
  return checkpoints


@pytest.mark.parametrize("async_save", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
  "mode, values, kept, best",
  [
    ("max", [(1, 0.5), (2, 0.9), (3, 0.1), (4, 0.2), (5, 0.3)], [2, 4, 5], 2),
    ("min", [(1, 0.5), (2, 0.9), (3, 0.1), (4, 0.2), (5, 0.3)], [3, 4, 5], 3),
    ("max", [(1, None), (2, 0.9), (3, None), (4, float("nan")), (5, None)], [2, 4, 5], 2),
    ("max", [(1, float("inf")), (2, 0.9), (3, None), (4, float("inf")), (5, None)], [2, 4, 5], 2),
    ("max", [(1, 0.5), (2, 0.9), (3, 0.1), (4, 0.2), (5, 0.95)], [4, 5], 5),
    ("max", [(1, None), (2, None), (3, None)], [2, 3], 3),
  ],
  ids=["max", "min", "unmeasured", "infinite", "new_best", "never_measured"],
)
def test_keeps_the_last_and_the_best(tmp_path, mode, values, kept, best, async_save):
  config = CheckpointConfig(keep_last=2, keep_best="eval/acc", best_mode=mode, async_save=async_save)
  checkpoints = save_all(tmp_path, config, values)
  assert checkpoints.all_steps() == kept
  assert checkpoints.best_step() == best
  assert sorted(os.listdir(tmp_path)) == [str(step) for step in kept]  # nothing temporary, no trash
  reader = Checkpoints(tmp_path, config, read_only=True)
  assert (reader.all_steps(), reader.best_step(), reader.latest_step()) == (kept, best, values[-1][0])
  assert reader.record(best) == {"step": best}


@pytest.mark.parametrize("late", [0.9, 0.1, float("nan")])
def test_a_step_can_be_ranked_after_it_was_saved(tmp_path, late):
  """It then counts as if the metric had been there: for the best, for what is kept, and for who reads it later."""
  config = CheckpointConfig(keep_last=2, keep_best="eval/acc", async_save=False)
  save_all(tmp_path, config, [(1, 0.5), (2, None)])
  checkpoints = Checkpoints(tmp_path, config)
  checkpoints.amend(2, {"step": 2, "late": True}, {"eval/acc": late, "eval/other": 1.0})
  best = 2 if late == 0.9 else 1
  assert checkpoints.best_step() == best
  for step in (3, 4):
    checkpoints.save(step, {"w": jnp.full(3, step)}, {"step": step})
  assert checkpoints.all_steps() == [best, 3, 4]
  checkpoints.close()
  assert Checkpoints(tmp_path, config, read_only=True).best_step() == best
  tree, record = Checkpoints(tmp_path, config, read_only=True).restore(best, {"w": jnp.zeros(3, jnp.int32)})
  assert (tree["w"] == best).all() and record == ({"step": 2, "late": True} if best == 2 else {"step": 1})


def test_keeps_only_the_last_without_a_metric(tmp_path):
  checkpoints = save_all(tmp_path, SYNC, [(1, 0.9), (2, 0.1), (3, 0.2)])
  assert checkpoints.all_steps() == [2, 3]


def test_a_saved_step_is_left_alone(tmp_path):
  checkpoints = Checkpoints(tmp_path, SYNC)
  checkpoints.save(1, {"w": jnp.zeros(2)}, {"first": True})
  checkpoints.save(1, {"w": jnp.ones(2)}, {"first": False})
  assert checkpoints.record() == {"first": True}


@pytest.mark.parametrize("every, due", [(2, [2, 4, 6]), (4, [4]), (0, [])])
def test_due(tmp_path, every, due):
  checkpoints = Checkpoints(tmp_path, CheckpointConfig(every_steps=every))
  assert [step for step in range(1, 7) if checkpoints.due(step)] == due


def test_a_part_is_restored_without_the_rest(tmp_path):
  states = {"policy": make_state(3)}
  checkpoints = Checkpoints(tmp_path, SYNC)
  checkpoints.save(1, states, {})
  params_only = {"policy": struct.dataclass(type("Part", (), {"__annotations__": {"params": dict}}))(
    params=abstract(states)["policy"].params
  )}
  found, _ = checkpoints.restore(1, params_only, partial=True)
  assert_same_bits(found["policy"].params, states["policy"].params)
  with pytest.raises(UserError, match="policy/key: found in the checkpoint, not in the state to be restored"):
    checkpoints.restore(1, params_only)


@pytest.mark.parametrize(
  "change, says",
  [
    (lambda p: p["norm"].update(scale=jnp.zeros(9)), r"norm/scale: found float32\[8\] .*, allowed: float32\[9\]"),
    (lambda p: p["norm"].update(scale=jnp.zeros(8, jnp.bfloat16)), r"norm/scale: found float32\[8\] .*bfloat16\[8\]"),
    (lambda p: p.update(head=jnp.zeros(2)), r"params/head: found nothing in the checkpoint, allowed: float32\[2\]"),
    (lambda p: p.pop("norm"), "params/norm/scale: found in the checkpoint, not in the state to be restored"),
    (lambda p: p["norm"].update(scale=jax.random.key(0)), r"norm/scale: found float32\[8\] .*, allowed: uint32\[2\]"),
  ],
  ids=["shape", "dtype", "missing", "left_over", "key"],
)
def test_a_tree_that_does_not_fit_is_named(tmp_path, change, says):
  checkpoints = Checkpoints(tmp_path, SYNC)
  checkpoints.save(7, {"params": make_state(1).params}, {})
  params = make_state(1).params
  change(params)
  with pytest.raises(UserError, match=f"7: .*{says}"):
    checkpoints.restore(7, abstract({"params": params}))


def test_missing_steps_and_directories_are_named(tmp_path):
  with pytest.raises(UserError, match="nowhere: no such checkpoint directory"):
    Checkpoints(tmp_path / "nowhere", read_only=True)
  checkpoints = Checkpoints(tmp_path, SYNC)
  assert checkpoints.latest_step() is None
  with pytest.raises(UserError, match="holds no checkpoint"):
    checkpoints.restore(None, {})
  checkpoints.save(1, {"w": jnp.zeros(2)}, {})
  with pytest.raises(UserError, match="found no checkpoint 9, allowed: 1"):
    checkpoints.record(9)


def test_a_damaged_checkpoint_is_one_line(tmp_path):
  states = {"w": jnp.zeros(4096)}
  Checkpoints(tmp_path, SYNC).save(1, states, {})
  for path in array_files(tmp_path / "1"):
    os.truncate(path, 3)
  for step, says in ((1, "1: damaged checkpoint"), (None, "holds no checkpoint that is whole: .*1: damaged")):
    with pytest.raises(UserError, match=says) as error:
      Checkpoints(tmp_path, SYNC).restore(step, abstract(states))
    assert "\n" not in str(error.value)
  assert Checkpoints(tmp_path, SYNC).all_steps() == [1]  # nothing is moved while there is nothing better


def test_a_reader_leaves_a_running_save_alone(tmp_path):
  save_all(tmp_path, SYNC, [(1, None)])
  half, trash = tmp_path / "2.orbax-checkpoint-tmp", tmp_path / "trash"
  half.mkdir(), trash.mkdir()
  reader = Checkpoints(tmp_path, read_only=True)
  assert reader.all_steps() == [1]
  reader.close()
  assert half.exists() and trash.exists()
  with pytest.raises(ValueError, match="opened for reading"):
    reader.save(3, {"w": jnp.zeros(1)}, {})
  save_all(tmp_path, SYNC, [(3, None)])  # a writer cleans up
  assert not half.exists() and not trash.exists()


# ---- Damage --------------------------------------------------------------------------------------------------------


def array_files(step):
  return sorted(path for path in (step / "state").rglob("*") if path.is_file() and path.parent.name == "d")


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


@pytest.mark.parametrize(
  "key, value, says",
  [
    ("keep_last", 0, "checkpoint.keep_last: found 0, allowed: 1 or more"),
    ("every_steps", -1, "checkpoint.every_steps: found -1, allowed: 0 or more"),
    ("best_mode", "maximum", "checkpoint.best_mode: found 'maximum', allowed: max, min (did you mean 'max'?)"),
  ],
)
def test_wrong_values_name_key_value_and_choices(key, value, says):
  with pytest.raises(UserError) as error:
    dataclasses.replace(SYNC, **{key: value})
  assert str(error.value) == says
