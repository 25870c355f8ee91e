"""Digests: the formula against its twin, of any sharding, and what they find."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from reference import digest

from nrt_jax.records import digests


def one(array) -> int:
  return int(digests.of_arrays({"a": array})["a"], 16)


RNG = np.random.default_rng(0)
ARRAYS = {
  "float32": RNG.normal(size=(3, 4, 5)).astype(np.float32),
  "bits": RNG.integers(0, 2**32, 64, dtype=np.uint32).view(np.float32),  # NaNs with a payload among them
  "bfloat16": RNG.normal(size=(7, 3)).astype(jnp.bfloat16),
  "int8": RNG.integers(-128, 128, 33, dtype=np.int8),
  "bool": RNG.integers(0, 2, 9).astype(bool),
  "int32": np.int32(-5),
  "empty": np.zeros((0, 4), np.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_the_formula(name):
  assert one(jnp.asarray(ARRAYS[name])) == digest(ARRAYS[name])


def test_keys_count_as_their_data():
  key = jax.random.key(7)
  assert one(key) == digest(np.asarray(jax.random.key_data(key)))


def test_no_mesh_and_no_memory_changes_a_digest():
  array = RNG.normal(size=(8, 16)).astype(np.float32)
  mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
  cuts = [PartitionSpec(), PartitionSpec("fsdp", "tensor"), PartitionSpec(None, ("tensor", "fsdp"))]
  placed = [jax.device_put(array, NamedSharding(mesh, cut)) for cut in cuts]
  placed.append(jax.device_put(array, NamedSharding(mesh, cuts[1], memory_kind="pinned_host")))
  assert {one(a) for a in placed} == {digest(array)}


def test_many_arrays_of_a_mesh_are_summed_one_at_a_time():
  """Programs that sum over devices must not be in flight together: XLA:CPU hangs, within a few rounds of these."""
  mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
  cut = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
  leaves = {str(i): jax.device_put(np.full((32, 8), i, np.float32), cut) for i in range(60)}
  for _ in range(10):
    found = digests.of_arrays(leaves)
  expected = {name: digest(np.asarray(leaf)) for name, leaf in leaves.items()}
  assert {name: int(value, 16) for name, value in found.items()} == expected


def test_every_single_bit_and_every_swap_is_seen():
  array = np.zeros(6, np.uint32)  # the plainest content: that of an optimizer's moments at the start
  found = {one(array)}
  for i in range(6):
    for bit in range(32):
      flipped = array.copy()
      flipped[i] ^= np.uint32(1) << np.uint32(bit)
      found.add(one(flipped))
  assert len(found) == 1 + 6 * 32
  assert one(np.array([1, 2, 3], np.uint32)) != one(np.array([2, 1, 3], np.uint32))


def test_the_first_change_is_named():
  arrays = {"w": jnp.ones(3), "v": jnp.zeros(2)}
  expected = digests.of_arrays(arrays)
  assert digests.changed(arrays, expected) is None and digests.changed(arrays, {}) is None
  assert digests.changed({**arrays, "v": jnp.array([0.0, -0.0])}, expected) == "v"


def test_a_record_comes_back_as_it_was_or_not_at_all():
  record = {"step": 3, "position": [1, 24], "evaluated": True, "share": 0.1}
  sealed = json.loads(json.dumps(digests.seal(record, {"w": "00c0ffee"})))
  assert digests.unseal(sealed) == (record, {"w": "00c0ffee"})
  assert digests.unseal(record) == (record, {})  # from before there were digests
  text = json.dumps(sealed)
  for i in range(0, len(text)):
    try:
      other = json.loads(text[:i] + chr(ord(text[i]) ^ 1) + text[i + 1 :])
    except ValueError:
      continue
    if other != sealed:
      with pytest.raises(ValueError, match="its record is not what was written"):
        digests.unseal(other)
