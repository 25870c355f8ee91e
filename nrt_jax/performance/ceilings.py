"""Peak rates of the devices: from the data sheet if step/hardware.py has the chip, else measured."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nrt_jax.step import hardware

REPEATS = 5  # the fastest counts: a ceiling excludes interference
MATRIX = {"cpu": 2048}  # rows and columns of the matrices; large enough to keep a device of that platform busy
COPIED = {"cpu": 2**27}  # bytes that are read and written back
BIG_MATRIX, BIG_COPIED = 8192, 2**30  # on other platforms


class Ceilings(NamedTuple):
  """Peak rates of all devices together."""

  flops: float  # per second
  bandwidth: float  # bytes of memory per second, reads plus writes
  source: str  # where the rates come from


def find(dtype: str) -> Ceilings:
  """The ceilings of a run whose layers are computed in `dtype`. FLOPs from the table are always those of bfloat16."""
  devices = jax.devices()
  chip = hardware.lookup(devices[0].device_kind)
  if chip is not None:
    count = len(devices)
    return Ceilings(chip.flops * count, chip.hbm_bandwidth * count, f"{chip.name}'s data sheet, bfloat16")
  return measure(dtype)


def measure(dtype: str) -> Ceilings:
  """Times a matrix product and an in-place copy on all local devices at once, and multiplies by the process count."""
  platform = jax.default_backend()
  n, copied = MATRIX.get(platform, BIG_MATRIX), COPIED.get(platform, BIG_COPIED)
  flops, bandwidth = matmul_rate(n, dtype), copy_rate(copied, dtype)
  source = f"measured: {n} x {n} matrices, a copy of {copied / 2**20:.0f} MiB, {dtype}"
  return Ceilings(flops * jax.process_count(), bandwidth * jax.process_count(), source)


def matmul_rate(n: int, dtype: str) -> float:
  """FLOP/s of n x n matrix products, one on each local device at the same time."""
  multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
  matrices = [jax.device_put(jnp.ones((n, n), dtype), device) for device in jax.local_devices()]
  return len(matrices) * 2 * n**3 / fastest(lambda: [multiply(a, a) for a in matrices])


def copy_rate(size: int, dtype: str) -> float:
  """Bytes/s of reading and writing arrays of `size` bytes in place, one on each local device at the same time."""
  change = jax.jit(lambda x: -x, donate_argnums=0)  # an identity would not copy; allocation would cost more
  count = size // jnp.dtype(dtype).itemsize
  arrays = [jax.device_put(jnp.ones(count, dtype), device) for device in jax.local_devices()]

  def once():
    arrays[:] = [change(x) for x in arrays]
    return arrays

  return len(arrays) * 2 * size / fastest(once)


def fastest(run) -> float:
  """Seconds of the fastest of REPEATS runs, after one that compiles."""
  jax.block_until_ready(run())
  seconds = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(run())
    seconds.append(time.perf_counter() - start)
  return min(seconds)
