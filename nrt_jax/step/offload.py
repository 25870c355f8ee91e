"""Keeps parts of the training state in host memory until a step needs them (`parallel.offload`).

Their shardings have the memory kind "pinned_host". A step takes them from there, copies them to the device to use them,
and copies them back: `fetch` and `store` around each use. Values do not change. `setup` is a setup.Setup.
"""

import jax
from jax.experimental.layout import Layout, with_layout_constraint

from nrt_jax.errors import UserError
from nrt_jax.sharding import ParallelConfig

HOST = "pinned_host"
LANES = 128  # lanes of a TPU vector register


def check(config: ParallelConfig, devices) -> None:
  """Raises UserError if offloading is configured but the devices have no access to host memory."""
  kinds = [memory.kind for memory in devices[0].addressable_memories()]
  if config.offload and HOST not in kinds:
    raise UserError(
      f"parallel.offload: found {config.offload!r}, allowed: () on {devices[0].platform} devices, whose memories are "
      f"{', '.join(kinds)}"
    )


def waits(setup, part: str, shape: tuple) -> bool:
  """Whether an array of this shape, in that part of the state, is kept in host memory.

  Scalars are not. On TPUs, nor are arrays whose last axis, per device, is not a multiple of a register's lanes: narrow
  ones are laid out by another axis, and libtpu does not compile copies to the host that change the layout.
  """
  if part not in setup.run.parallel.offload or not shape:
    return False
  if setup.model.target != "tpu" or setup.mesh is None:
    return True
  ways = 1 if shape[-1] == setup.model.head_dim else max(setup.mesh.shape["fsdp"], setup.mesh.shape["tensor"])
  return shape[-1] % (LANES * ways) == 0


def shardings(setup, part: str, abstract, cut):
  """`cut`, the shardings of a part of the state, with the memory kind of each array. `abstract`: its shapes."""
  return jax.tree.map(lambda a, s: s.with_memory_kind(HOST) if waits(setup, part, a.shape) else s, abstract, cut)


def fetch(setup, part: str, tree):
  """Copies a part of the state to the device, inside a program."""
  device = jax.memory.Space.Device
  return jax.tree.map(lambda a: _by_rows(jax.device_put(a, device)) if waits(setup, part, a.shape) else a, tree)


def store(setup, part: str, tree):
  """Undoes `fetch`."""
  host = jax.memory.Space.Host
  return jax.tree.map(lambda a: jax.device_put(_by_rows(a), host) if waits(setup, part, a.shape) else a, tree)


def _by_rows(a):
  """The array in row-major layout, that of the host; its producer or consumer may have another."""
  return with_layout_constraint(a, Layout(tuple(range(a.ndim))))
