"""Which devices a collective joins, and which slices they are of."""

import math
import re

import numpy as np

MESH = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]*)\](?:T\(([\d,]+)\))?\))? *\{([^}]*)\}"


def groups_of(attributes: str, devices: int) -> list[list[int]]:
  """The groups of devices of a collective, in any notation."""
  pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes)
  if pairs:
    return [[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
  cut = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
  if cut:
    return _arranged(cut[2], cut[3]).reshape(_numbers(cut[1])).tolist()
  listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes)
  if listed:
    return [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", listed[1])]
  mesh = re.search(MESH, attributes)
  return _mesh_groups(*mesh.groups()) if mesh else [list(range(devices))]


def _mesh_groups(axes: str, dims: str | None, order: str | None, chosen: str) -> list[list[int]]:
  """Groups along some axes of a mesh of devices; "b:(2)4" is a part of axis b, the 4 of 2 x 4 x the rest."""
  sizes = {name: int(size) for name, size in re.findall(r"'?(\w+)'?=(\d+)", axes)}
  wanted = re.findall(r"'?([a-zA-Z_]\w*)'?(?::\((\d+)\)(\d+))?", chosen)
  shape, moved = [], []
  for name, size in sizes.items():
    before = 1
    for start, part in sorted((int(w[1] or 1), int(w[2] or size)) for w in wanted if w[0] == name):
      shape += [start // before, part]
      moved.append(len(shape) - 1)
      before = start * part
    shape.append(size // before)
  kept = [axis for axis in range(len(shape)) if axis not in moved]
  grid = _arranged(dims or str(math.prod(shape)), order).reshape(shape)
  return grid.transpose(kept + moved).reshape(-1, math.prod(shape[axis] for axis in moved)).tolist()


def _arranged(dims: str, order: str | None) -> np.ndarray:
  """The device numbers of "[8,2]T(1,0)", in order."""
  sizes = _numbers(dims)
  numbers = np.arange(math.prod(sizes)).reshape(sizes)
  return numbers.transpose(_numbers(order)).ravel() if order else numbers.ravel()


def _numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(",") if n]


def spread(groups: list[list[int]], per_slice: int) -> tuple[int, int]:
  """(slices that a group spans, its devices in each of them) for the group that spans most; slices of equal size."""
  counts = [np.unique(np.asarray(group) // per_slice, return_counts=True)[1] for group in groups]
  widest = max(counts, key=len)
  return len(widest), int(widest.max())
