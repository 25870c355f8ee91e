"""Device meshes, and the table that maps logical axes to mesh axes.

Model code only names logical axes; how they are sharded is decided here.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nrt_jax.errors import UserError, require_choice

MESH_AXES = ("data", "fsdp", "tensor")
OFFLOADABLE = ("reference", "optimizer", "average")  # parts of the state that may be kept in host memory

# Logical axis -> mesh axis. `batch` is the rows of activations; the others are axes of parameters and caches.
RULES = {
  "batch": ("data", "fsdp"),
  "layers": None,
  "vocab": "tensor",
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_dim": None,
  "mlp": "tensor",
  "expert": None,
  "norm": None,
}

# Decoding reads every weight once per token, so gather weights over `fsdp` once per step instead.
DECODE_RULES = {**RULES, "embed": None}


@dataclass(frozen=True)
class ParallelConfig:
  """How a step is distributed over devices."""

  kind: str = "jit"  # jit: one program over a mesh | pmap: replicated state, gradients summed by lax.psum; one host
  data: int = -1  # devices along the data axis; -1: all that the other two axes leave
  fsdp: int = 1  # devices that share parameters, gradients and optimizer state
  tensor: int = 1  # devices that share heads, mlp and vocabulary
  slices: int = 0  # parts of the data axis that only a slow network joins (DCN); 0: the TPU slices of the devices, or 1
  rollout_weights: str = "gathered"  # gathered over fsdp once per step | sharded: gathered for each generated token
  micro_batches: int = 0  # per minibatch, to bound the memory of the update; 0 = auto: 1, on CPUs more
  length_buckets: int = 1  # static widths of micro-batches: rows are grouped by length, each piece as wide as it needs
  share_prompts: str = "auto"  # on: runs a prompt once for its samples | packed: with these in one row | off | auto
  offload: tuple[str, ...] = ()  # state kept in host memory until it is used: reference, optimizer, average

  def __post_init__(self):
    object.__setattr__(self, "offload", tuple(self.offload))
    require_choice("parallel.kind", self.kind, ("jit", "pmap"))
    require_choice("parallel.rollout_weights", self.rollout_weights, ("gathered", "sharded"))
    require_choice("parallel.share_prompts", self.share_prompts, ("auto", "on", "packed", "off"))
    for name in ("fsdp", "tensor", "length_buckets"):
      if getattr(self, name) < 1:
        raise UserError(f"parallel.{name}: found {getattr(self, name)}, allowed: 1 or more")
    if self.share_prompts == "packed" and self.length_buckets == 1:
      raise UserError("parallel.share_prompts='packed': found parallel.length_buckets 1, allowed: 2 or more")
    if self.micro_batches < 0:
      raise UserError(f"parallel.micro_batches: found {self.micro_batches}, allowed: 0 (chosen for you) or more")
    if self.slices < 0:
      raise UserError(f"parallel.slices: found {self.slices}, allowed: 1 or more, or 0 for those that the devices have")
    if self.kind == "pmap" and self.slices > 1:
      raise UserError(f"parallel.slices: found {self.slices} with parallel.kind 'pmap', allowed: 1, or kind 'jit'")
    if self.data < 1 and self.data != -1:
      raise UserError(f"parallel.data: found {self.data}, allowed: 1 or more, or -1 for all remaining devices")
    for part in self.offload:
      require_choice("parallel.offload", part, OFFLOADABLE)
    if self.kind == "pmap" and self.offload:
      raise UserError(f"parallel.offload: found {self.offload!r} with parallel.kind 'pmap', allowed: (), or kind 'jit'")
    if self.kind == "pmap" and (self.fsdp, self.tensor) != (1, 1):
      raise UserError(
        f"parallel.kind='pmap' replicates the state: found fsdp={self.fsdp}, tensor={self.tensor}, allowed: 1 and 1"
      )


def make_mesh(config: ParallelConfig, devices=None) -> jax.sharding.Mesh:
  """The mesh ("data", "fsdp", "tensor") over `devices` (default: all). UserError if the shape does not fit.

  With several slices, each holds an equal part of the data axis, and `fsdp` and `tensor` stay inside of it.
  """
  devices = jax.devices() if devices is None else devices
  inner = config.fsdp * config.tensor
  data = len(devices) // inner if config.data == -1 else config.data
  if data * inner != len(devices):
    raise UserError(
      f"parallel: mesh data={config.data} x fsdp={config.fsdp} x tensor={config.tensor} does not fit "
      f"{len(devices)} devices (fsdp x tensor must divide them; data=-1 takes the rest)"
    )
  groups = by_slice(devices, config.slices)
  if data % len(groups):
    raise UserError(
      f"parallel.slices: found {len(groups)} with data={data} x fsdp={config.fsdp} x tensor={config.tensor}, allowed: "
      "a divisor of data (fsdp and tensor stay inside a slice)"
    )
  kinds = (AxisType.Auto,) * 3
  parts = [_slice_mesh((data // len(groups), config.fsdp, config.tensor), group, kinds) for group in groups]
  return jax.sharding.Mesh(np.concatenate(parts), MESH_AXES, axis_types=kinds)


def _slice_mesh(shape: tuple, devices: list, kinds: tuple) -> np.ndarray:
  """The devices of one slice as an array of this shape, neighbors next to each other where the links allow it."""
  try:
    return jax.make_mesh(shape, MESH_AXES, axis_types=kinds, devices=devices).devices
  except NotImplementedError:  # a mesh axis that is no product of the slice's axes, such as 2 on 8 x 8: split one
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def by_slice(devices: list, slices: int) -> list[list]:
  """The devices of each slice. UserError if there are no `slices` (0: as many as there are) of equal size.

  TPUs say which slice they belong to. Of all others an equal number that follow one another are a slice, so that
  hosts are not split.
  """
  if devices[0].platform == "tpu":
    own = [getattr(device, "slice_index", 0) for device in devices]  # those of a single slice may lack it
    numbers = sorted(set(own))
    if slices not in (0, len(numbers)):
      raise UserError(f"parallel.slices: found {slices}, allowed: {len(numbers)}, the slices that the devices are of")
    return [[device for device, at in zip(devices, own) if at == number] for number in numbers]
  count = slices or 1
  if len(devices) % count:
    raise UserError(f"parallel.slices: found {count}, allowed: a divisor of the {len(devices)} devices")
  size = len(devices) // count
  return [devices[first : first + size] for first in range(0, len(devices), size)]


def slices_of(mesh, config: ParallelConfig) -> int:
  """The number of slices that a mesh of `config` spans."""
  return len(by_slice(list(mesh.devices.flat), config.slices))


def spec_for(logical_axes: tuple, rules: dict = RULES) -> PartitionSpec:
  """Translates logical axis names (None = not sharded) into a PartitionSpec. Using a mesh axis twice is an error."""
  mesh_axes = [rules[name] if name is not None else None for name in logical_axes]
  used = [a for entry in mesh_axes for a in (entry if isinstance(entry, tuple) else (entry,)) if a is not None]
  if len(used) != len(set(used)):
    raise ValueError(f"logical axes {logical_axes} cut the same mesh axis twice: {mesh_axes}")
  return PartitionSpec(*mesh_axes)


def shardings_for(mesh, abstract_tree, axes_tree, rules: dict = RULES, where: str = "model"):
  """A NamedSharding for each leaf. If an axis does not divide, UserError names the leaf, its size and the mesh axis."""

  def one(path, leaf, axes):
    spec = spec_for(axes, rules)
    for size, name, entry in zip(leaf.shape, axes, spec):
      ways = int(np.prod([mesh.shape[a] for a in (entry if isinstance(entry, tuple) else (entry,)) if a is not None]))
      if size % ways:
        raise UserError(
          f"{where}{jax.tree_util.keystr(path)}: axis {name!r} of size {size} is not divisible by "
          f"{ways}, the size of mesh axis {entry!r}; choose parallel.* so that it is"
        )
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(one, abstract_tree, axes_tree)


def where_it_divides(cut: NamedSharding, shape: tuple) -> NamedSharding:
  """`cut` for an array of this shape, which has the axes of the array it was made for, or none. Axes that no longer
  divide are not sharded."""
  ways = [int(np.prod([cut.mesh.shape[a] for a in np.atleast_1d(entry) if a is not None])) for entry in cut.spec]
  spec = [entry if size % count == 0 else None for size, entry, count in zip(shape, cut.spec, ways)]
  return NamedSharding(cut.mesh, PartitionSpec(*spec))


def replicated(mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def rows_sharding(mesh) -> NamedSharding:
  """Shards the rows of a batch over all data-parallel devices."""
  return NamedSharding(mesh, spec_for(("batch",)))


def place_rows(mesh, tree):
  """Turns batch arrays that every host holds whole into global arrays sharded by rows."""
  by_rows = rows_sharding(mesh)
  return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, by_rows, lambda index: a[index]), tree)


def host_share(mesh) -> tuple[int, int]:
  """(index, count): this host's devices hold the index-th of `count` equal parts of a batch's rows.

  Hosts spanned by a tensor axis hold the same part. (0, 1), the whole batch, if a host's rows are not such a part.
  """
  ways = data_parallel_ways(mesh)
  places = rows_sharding(mesh).addressable_devices_indices_map((ways,)).values()
  held = sorted({range(ways)[index[0]].start for index in places})
  first, size = held[0], len(held)
  return (first // size, ways // size) if held[-1] - first == size - 1 and not first % size else (0, 1)


def place_host_rows(mesh, tree):
  """Turns this host's part of a batch (see `host_share`) into global arrays sharded by rows."""
  if host_share(mesh)[1] == 1:
    return place_rows(mesh, tree)
  by_rows = rows_sharding(mesh)
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(by_rows, a), tree)


def data_parallel_ways(mesh) -> int:
  """The number of shards of a batch's rows."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_ways() -> int:
  """The number of shards of a batch's rows on the current mesh; 1 if none is set."""
  mesh = jax.sharding.get_abstract_mesh()
  ours = not mesh.empty and set(MESH_AXES) <= set(mesh.axis_names) and not mesh.manual_axes
  return data_parallel_ways(mesh) if ours else 1


def constrain(x, *logical_axes, rules: dict = RULES):
  """`with_sharding_constraint` by logical axis names; a no-op if no mesh is set (one device, pmap)."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not set(MESH_AXES) <= set(mesh.axis_names):
    return x
  spec = spec_for(logical_axes, rules)
  if mesh.manual_axes:  # inside `on_own_rows`, where batch axes are no longer sharded
    spec = PartitionSpec(*(None if set(np.atleast_1d(entry)) & set(mesh.manual_axes) else entry for entry in spec))
  return jax.lax.with_sharding_constraint(x, spec)


def lockstep_axes() -> tuple:
  """The mesh axes whose devices must take the same branches inside `on_own_rows`.

  With `tensor` sharding, the program has collectives that all devices take part in. Empty if devices are independent.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return tuple(mesh.manual_axes) if mesh.manual_axes and mesh.shape.get("tensor", 1) > 1 else ()  # pmap has none


def on_own_rows(function, everywhere, rows):
  """function(everywhere, rows), run by each data-parallel device on its own rows, independently of the others.

  Its outputs are sharded by rows too. `everywhere` is gathered over the batch axes of the mesh, not over `tensor`.
  """
  if batch_ways() == 1:
    return function(everywhere, rows)
  by_rows = spec_for(("batch",))
  specs = {"in_specs": (PartitionSpec(), by_rows), "out_specs": by_rows, "axis_names": set(by_rows[0])}
  return jax.shard_map(function, **specs, check_vma=False)(everywhere, rows)


def on_own_parts(function, parts, axes, rows):
  """function(parts, rows), run by each device on its own rows and its own part of `parts` along `tensor`, and summed
  over `tensor`.

  axes: the logical axes of each array of `parts`, which are gathered over the batch axes. Without a mesh (one device,
  pmap), a plain call; inside `on_own_rows`, rows are the device's own already.
  """
  mesh = jax.sharding.get_abstract_mesh()
  ours = not mesh.empty and set(MESH_AXES) <= set(mesh.axis_names)
  free = {axis for axis in MESH_AXES if ours and axis not in mesh.manual_axes}
  if all(mesh.shape[axis] == 1 for axis in free):
    return function(parts, rows)
  by_rows = PartitionSpec() if mesh.manual_axes else spec_for(("batch",))
  along = {name: entry if entry == "tensor" else None for name, entry in RULES.items()}
  cut = jax.tree.map(lambda _, names: spec_for(names, along), parts, axes)
  specs = {"in_specs": (cut, by_rows), "out_specs": PartitionSpec("tensor", *by_rows), "axis_names": free}
  # Parts of the sum leave the devices as an axis: summed outside, they cost one reduction forward and one backward.
  own = jax.shard_map(lambda parts, rows: function(parts, rows)[None], **specs, check_vma=False)
  return own(parts, rows).sum(0)
