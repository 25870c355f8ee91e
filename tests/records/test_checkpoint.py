"""Checkpoints: bit-exact, across meshes, the last k and the best. Complete or absent: test_checkpoint_kill.py.

Damaged ones: test_checkpoint_damage.py.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import SYNC, abstract, array_files, assert_same_bits, make_state, mesh, raw, save_all
from flax import struct

from nrt_jax.errors import UserError
from nrt_jax.records.checkpoint import CheckpointConfig, Checkpoints


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
