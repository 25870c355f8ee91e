"""Meshes of several slices, and over several processes, which are real ones over the loopback.

Equal numbers on several slices: tests/step/test_programs.py; slices of TPUs: performance/planning/test_layouts.py.
"""

import json
import os
import socket
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import toy
from paths import ROOT

from nrt_jax.errors import UserError
from nrt_jax.sharding import ParallelConfig, by_slice, make_mesh, rows_sharding, slices_of
from nrt_jax.step import programs


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


COUNT = 4  # processes, of two devices each
OVER = {"prompts_per_step": 8, "algorithm__normalisation": "token"}
MIXED = {"parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2}  # tensor inside a process, the others between

# One of them: its rows of the prompts, two steps, and what it has of their metrics.
PARTNER = """
import json, sys
import jax
address, count, number, over = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
jax.config.update("jax_num_cpu_devices", 8 // count)
jax.distributed.initialize(address, count, number)
import toy
from nrt_jax import sharding
from nrt_jax.step import programs

setup = toy.setup("sft", **over)
params = jax.device_get(toy.params())
init = lambda: programs.init_states(setup, jax.tree.map(jax.numpy.asarray, params), jax.random.key(3))
states = jax.jit(init, out_shardings=programs.state_shardings(setup))()
index, parts = sharding.host_share(setup.mesh)
step = programs.build_train_step(setup)
for seed in range(2):
  whole = toy.prompts(8, seed, trace_width=2)
  own = jax.tree.map(lambda a: a[len(a) // parts * index : len(a) // parts * (index + 1)], whole)
  with jax.set_mesh(setup.mesh):
    states, metrics, _ = step(states, sharding.place_host_rows(setup.mesh, own))
  print("SAYS", json.dumps([parts, {k: float(v) for k, v in metrics.items()}]))
"""


def partners() -> list:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")])}
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
  command, over = [sys.executable, "-c", PARTNER, address, str(COUNT)], json.dumps({**OVER, **MIXED})
  return [subprocess.Popen([*command, str(number), over], **pipes) for number in range(COUNT)]


def test_four_processes_step_as_one_device_does():
  """4 x 2 devices over data, fsdp and tensor: each process reads its own rows, and has every metric of one device.

  2 x 4 in a whole run, sampling too: commands/test_commands.py.
  """
  running, found = partners(), []
  setup = toy.setup("sft", **OVER)
  states = programs.init_states(setup, jax.tree.map(jax.numpy.copy, toy.params()), jax.random.key(3))
  step = programs.build_train_step(setup)
  for seed in range(2):  # the second step's metrics follow from the parameters after the first
    states, metrics, _ = step(states, toy.prompts(8, seed, trace_width=2))
    found.append({name: float(value) for name, value in metrics.items()})
  outputs = [process.communicate(timeout=200) for process in running]
  assert [process.returncode for process in running] == [0] * COUNT, outputs
  for out, _ in outputs:
    said = [json.loads(line[5:]) for line in out.splitlines() if line.startswith("SAYS")]
    assert [parts for parts, _ in said] == [COUNT] * 2
    for (_, theirs), ours in zip(said, found, strict=True):
      assert theirs == pytest.approx(ours, rel=2e-4, abs=2e-5)
