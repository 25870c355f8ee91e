"""What collectives move between slices, over the data-center network.

For several slices, libtpu compiles one program for each of them. A collective that spans slices becomes one inside of
the slice and, for what is left on each device, a transfer by the host (a send and a recv of "xla_megascale_runtime").
In programs for other devices the groups of a collective span slices (groups.py).
"""

import re

from nrt_jax.performance.planning.hlo import Instruction, shapes

KINDS = {
  "ALL_REDUCE": "all-reduce", "ALL_GATHER": "all-gather", "REDUCE_SCATTER": "reduce-scatter",
  "ALL_TO_ALL": "all-to-all", "ONE_TO_ONE": "collective-permute",
}  # fmt: skip


def kind_of(instruction: Instruction) -> str | None:
  """The collective whose part between slices this instruction receives; None if it receives none."""
  found = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
  return KINDS.get(found[1], found[1].lower()) if instruction.op == "recv" and found else None


def name_of(instruction: Instruction) -> str:
  """What a transfer's send and recv have in common."""
  return re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.attributes)[1]


def slices_of(instruction: Instruction) -> int:
  """Slices that a transfer joins, from "{1,2}x{0:3}" (slices x devices), lists of devices, or pairs of them."""
  target = re.search(r'_xla_megascale_target="?(.*?)"?,_xla_megascale_transfer_type', instruction.attributes)[1]
  return 2 if "->" in target else len(re.search(r"\{([\d,]+)\}", target)[1].split(","))


def arrays_of(instruction: Instruction) -> list:
  """What a recv returns, without its context and token."""
  return [array for array in shapes(instruction.type) if array[1]]


def scope_of(computation: dict, transfer: Instruction, around: str) -> str:
  """The scope of what is sent, as a transfer has none itself: the nearest within `around`, the computation's own."""
  sends = [i for i in computation.values() if i.op == "send" and name_of(i) == name_of(transfer)]
  waiting, seen = [name for send in sends for name in send.operands], set()
  while waiting:
    name = waiting.pop(0)
    made = computation.get(name)
    if made is None or name in seen:
      continue
    if made.scope and made.scope.startswith(around):  # constants come from anywhere
      return made.scope
    seen.add(name)
    waiting += made.operands
  return around


def network_bytes(kind: str, size: int, slices: int, devices: int) -> float:
  """The fewest bytes that one of a group's `devices` in a slice receives from other slices, for a result of `size`.

  What a slice needs from outside comes once, spread over its devices.
  """
  others = (slices - 1) / slices
  factors = {
    "all-reduce": 2 * others / devices,
    "all-gather": others / devices,
    "reduce-scatter": slices - 1,
    "collective-permute": 1 if slices > 1 else 0,
  }
  return size * factors.get(kind, others)
