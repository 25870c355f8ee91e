"""Meshes of several slices. Equal numbers on them: tests/step/test_programs.py; on TPUs: planning/test_layouts.py."""

import types

import jax
import numpy as np
import pytest

from nrt_jax.errors import UserError
from nrt_jax.sharding import ParallelConfig, by_slice, make_mesh, rows_sharding, slices_of


def tpus(*slice_numbers):
  """What is read of the devices before there is a mesh."""
  return [types.SimpleNamespace(platform="tpu", slice_index=number) for number in slice_numbers]


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_a_slice_is_a_part_of_the_data_axis(slices):
  """Of devices that do not say where they belong, those that follow one another are a slice."""
  config = ParallelConfig(data=4, fsdp=1, tensor=2, slices=slices)
  mesh = make_mesh(config)
  assert mesh.shape == {"data": 4, "fsdp": 1, "tensor": 2} and slices_of(mesh, config) == slices
  size = 8 // slices
  parts = mesh.devices.reshape(slices, size)
  for number, part in enumerate(parts):
    assert set(part) == set(jax.devices()[number * size : (number + 1) * size])
  plain = make_mesh(ParallelConfig(data=4, fsdp=1, tensor=2))
  assert plain == mesh and slices_of(plain, ParallelConfig()) == 1


@pytest.mark.parametrize(
  "over, devices, says",
  [
    ({"slices": 3}, None, "parallel.slices: found 3, allowed: a divisor of the 8 devices"),
    ({"slices": 4, "fsdp": 4}, None, "parallel.slices: found 4 with data=2 x fsdp=4 x tensor=1, allowed: a divisor of"),
    ({"slices": -1}, None, "parallel.slices: found -1, allowed: 1 or more, or 0"),
    ({"slices": 2, "kind": "pmap"}, None, "parallel.slices: found 2 with parallel.kind 'pmap', allowed: 1"),
    ({"slices": 2}, tpus(0, 0, 1, 1, 2, 2), "parallel.slices: found 2, allowed: 3, the slices that the devices are of"),
    ({"fsdp": 2, "tensor": 2}, tpus(0, 0, 1, 1), "parallel.slices: found 2 with data=1 x fsdp=2 x tensor=2, allowed"),
  ],
)
def test_what_does_not_fit_is_one_line(over, devices, says):
  with pytest.raises(UserError) as error:
    make_mesh(ParallelConfig(**over), devices)
  assert says in str(error.value) and "\n" not in str(error.value)


def test_tpus_of_a_single_slice_need_not_say_so():
  devices = [types.SimpleNamespace(platform="tpu") for _ in range(4)]
  assert by_slice(devices, 0) == by_slice(devices, 1) == [devices]
  with pytest.raises(UserError, match="parallel.slices: found 2, allowed: 1, the slices"):
    by_slice(devices, 2)


def test_hosts_hold_rows_of_their_own_slice():
  """Rows lie over data and fsdp, data first: a slice's devices hold a contiguous part of a batch."""
  mesh = make_mesh(ParallelConfig(data=4, fsdp=2, slices=2))
  places = rows_sharding(mesh).devices_indices_map((16,))
  first = sorted(places[device][0].start for device in jax.devices()[:4])
  np.testing.assert_array_equal(first, [0, 2, 4, 6])
