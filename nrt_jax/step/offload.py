"""Parts of the training state that wait in the host's memory until a step needs them (`parallel.offload`).

Their shardings name the memory "pinned_host"; a step takes them as they lie, brings them to the device where it reads
them, and puts them back: `fetch` and `store` around the use. Numbers do not change. `setup` is a tools.Setup.
"""

import jax
from jax.experimental.layout import Layout, with_layout_constraint

from nrt_jax.errors import UserError
from nrt_jax.sharding import ParallelConfig

HOST = "pinned_host"
LANES = 128  # of a TPU's vector register


def check(config: ParallelConfig, devices) -> None:
  """Raises UserError where something is to be offloaded from devices that cannot reach the host's memory."""
  kinds = [memory.kind for memory in devices[0].addressable_memories()]
  if config.offload and HOST not in kinds:
    raise UserError(
      f"parallel.offload: found {config.offload!r}, allowed: () on {devices[0].platform} devices, whose memories are "
      f"{', '.join(kinds)}"
    )


def waits(setup, part: str, shape: tuple) -> bool:
  """Whether an array of this shape, of that part of the state, waits in the host's memory.

  Single numbers do not. Nor do, on a TPU, arrays whose last axis has fewer entries on a device than a register has
  lanes: they are laid out by another axis, and libtpu does not compile copies to the host that change the layout.
  """
  if part not in setup.run.parallel.offload or not shape:
    return False
  if setup.model.target != "tpu" or setup.mesh is None:
    return True
  ways = 1 if shape[-1] == setup.model.head_dim else max(setup.mesh.shape["fsdp"], setup.mesh.shape["tensor"])
  return shape[-1] % (LANES * ways) == 0


def shardings(setup, part: str, abstract, cut):
  """`cut`, the shardings of a part of the state, in the memory where it waits. `abstract`: its shapes."""
  return jax.tree.map(lambda a, s: s.with_memory_kind(HOST) if waits(setup, part, a.shape) else s, abstract, cut)


def fetch(setup, part: str, tree):
  """That part of the state on the device, inside of a program."""
  device = jax.memory.Space.Device
  return jax.tree.map(lambda a: _by_rows(jax.device_put(a, device)) if waits(setup, part, a.shape) else a, tree)


def store(setup, part: str, tree):
  """Undoes `fetch`."""
  host = jax.memory.Space.Host
  return jax.tree.map(lambda a: jax.device_put(_by_rows(a), host) if waits(setup, part, a.shape) else a, tree)


def _by_rows(a):
  """The array in row-major layout, that of the host, which what it was computed from or is used for may not have."""
  return with_layout_constraint(a, Layout(tuple(range(a.ndim))))
