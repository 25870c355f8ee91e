"""What a program needs of a device's memory."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from paths import ROOT

from nrt_jax.performance import memory


def stats(**sizes):
  names = ("argument", "output", "alias", "temp", "generated_code", "host_argument")
  parts = {f"{name}_size_in_bytes": sizes.get(name, 0) for name in names}
  return SimpleNamespace(**parts, peak_memory_in_bytes=sizes["peak"])


def test_on_a_tpu_the_peak_counts_and_elsewhere_the_parts():
  found = stats(argument=30, output=31, alias=30, temp=46, generated_code=5, peak=60)
  assert memory.read(found, "tpu").total == 60 + 5
  assert memory.read(found, "cpu").total == memory.read(found, "gpu").total == 30 + 1 + 46 + 5
  assert memory.read(stats(argument=30, temp=20, peak=99), "tpu").total == 50  # never more than the parts


def test_what_waits_on_the_host_is_not_in_the_peak():
  found = memory.read(stats(argument=10, output=20, alias=10, temp=20, host_argument=10, peak=40), "tpu")
  assert (found.host, found.peak, found.total) == (10, 30, 30)


FOR_A_TPU = """
import json, jax, jax.numpy as jnp
from nrt_jax.performance import memory
from nrt_jax.performance.planning import program, topology

def loss(weights, x):
  return jnp.sum(jnp.float32(jax.lax.scan(lambda h, w: (jnp.tanh(h @ jnp.bfloat16(w)), None), x, weights)[0]) ** 2)

def step(weights, moments, batch):
  def add(sums, x):
    return sums + jax.grad(loss)(weights, x), None
  sums = jax.lax.scan(add, jnp.zeros_like(weights), batch)[0]
  moments = 0.9 * moments + sums / jnp.linalg.norm(sums)
  return weights - moments, moments

topology.prepare()
where = jax.sharding.SingleDeviceSharding(topology.devices(topology.parse("v5p:2x2x1"))[0])
def lower(layers):
  shapes = ((layers, 4096, 4096), jnp.float32), ((4, 128, 4096), jnp.bfloat16)
  weights, batch = (jax.ShapeDtypeStruct(*shape, sharding=where) for shape in shapes)
  return jax.jit(step, donate_argnums=(0, 1)).lower(weights, weights, batch)

taken, refused = (program.compile_one("step", lower(layers), "tpu") for layers in (256, 320))
print(json.dumps([taken.memory._asdict(), taken.memory.total, refused.overflow.used, refused.overflow.limit]))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_tpus_compiler_refuses_by_the_peak():
  """It takes a program whose parts sum to more than its limit; what it says of a larger one is that one's peak."""
  env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
  done = subprocess.run([sys.executable, "-c", FOR_A_TPU], check=False, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  parts, total, used, limit = json.loads(done.stdout.splitlines()[-1])
  assert total < limit < parts["arguments"] + parts["temporaries"]
  assert used == pytest.approx(parts["peak"] * 320 / 256, rel=0.01)
