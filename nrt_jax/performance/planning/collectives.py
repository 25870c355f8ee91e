"""The collectives of a compiled program: kind, phase, bytes, executions; and which of them move weights per token."""

import math
import re
from collections import Counter
from typing import NamedTuple

from nrt_jax.model import costs
from nrt_jax.model.architecture import EXPERT_MATRICES, ModelConfig
from nrt_jax.performance.planning import transfers
from nrt_jax.performance.planning.groups import groups_of, spread
from nrt_jax.performance.planning.hlo import Instruction, Module, Run, phase_of, shapes, type_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
TOKEN_PHASES = ("decode", "sample_token")  # inside the loop over tokens
LATER_PHASES = ("gradients", "optimizer", "update", "score_start", "score_batch")  # in no loop over tokens


class Collective(NamedTuple):
  """A collective of the program, per device."""

  kind: str
  phase: str
  bytes: int  # of its result, per execution
  wire_bytes: float  # that a device must receive per execution, under any algorithm; 0 for transfers between hosts
  times: int
  group: int  # devices that take part
  in_token_loop: bool
  elements: tuple[int, ...]  # of each array of the result
  scope: str
  guessed: bool
  slices: int = 1  # that its devices belong to
  network: float = 0.0  # bytes that a device must receive from other slices per execution


def collectives(module: Module, found_runs: list[Run], devices: int, slices: int = 1) -> list[Collective]:
  """All collectives with their executions, in a program for `devices` in `slices` of equal size.

  A collective that XLA splits over several fusions (same channel) counts once. If XLA marks them as a chain, some may
  be in loops that run concurrently; then those of the outermost loop count.
  """
  token_loops = innermost_token_loops(module, found_runs)
  seen, result = set(), []
  for run in sorted(found_runs, key=lambda run: len(run.loops)):
    computation = module.computations[run.computation]
    for instruction in computation.values():
      transfer = transfers.kind_of(instruction)
      kind = transfer or instruction.op.removesuffix("-start")
      if kind not in KINDS:
        continue
      key = _identity(instruction, run, transfer is not None)
      if key in seen:
        continue
      seen.add(key)
      made = _transfer if transfer else _collective
      one = made(kind, instruction, run, computation, (module.partitions or devices, devices // slices))
      result.append(one._replace(in_token_loop=any(loop in token_loops for loop in run.loops)))
  return result


def _identity(instruction: Instruction, run: Run, transfer: bool) -> tuple:
  """What is equal where two instructions are parts of one collective."""
  if transfer:  # its channels are numbered apart from those of collectives
    return ("transfer", transfers.name_of(instruction), run.loops)
  channel = re.search(r"channel_id=(\d+)", instruction.attributes)
  chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
  reducer = re.search(r"to_apply=%?([\w.-]+)", instruction.attributes)  # all sums of a shard_map have channel 1
  name = channel[1] if channel else instruction.name
  return (name, reducer and reducer[1], chain[1] if chain else run.loops)


def _collective(kind: str, instruction: Instruction, run: Run, computation: dict, sizes: tuple) -> Collective:
  """A collective between devices. sizes: the devices of the program, and of a slice."""
  groups = groups_of(instruction.attributes, sizes[0])
  group = len(groups[0])
  if kind == "all-reduce" and run.computation.lstrip("%").startswith("all-reduce-scatter"):
    kind = "reduce-scatter"  # a TPU fusion: the sum is sliced before it is returned
    arrays, size = shapes(instruction.type), type_bytes(instruction.type) // max(group, 1)
  else:
    arrays = _result(instruction)
    size = _bytes(arrays)
  spans, together = spread(groups, sizes[1])
  between = transfers.network_bytes(kind, size, spans, together)
  scope = instruction.scope or run.scope
  return _made(kind, scope, size, _wire(kind, size, group), group, arrays, run)._replace(slices=spans, network=between)


def _transfer(kind: str, instruction: Instruction, run: Run, computation: dict, sizes: tuple) -> Collective:
  """What the hosts of a TPU's slices exchange for a collective; nothing of it goes over the links inside a slice."""
  arrays, count = transfers.arrays_of(instruction), transfers.slices_of(instruction)
  between = transfers.network_bytes(kind, _bytes(arrays), count, 1)
  scope = transfers.scope_of(computation, instruction, run.scope)
  return _made(kind, scope, _bytes(arrays), 0.0, count, arrays, run)._replace(slices=count, network=between)


def _made(kind, scope: str, size: int, wire: float, group: int, arrays: list, run: Run) -> Collective:
  elements = tuple(math.prod(dims) for _, dims in arrays)
  return Collective(kind, phase_of(scope), size, wire, run.times, group, False, elements, scope, run.guessed)


def _bytes(arrays: list) -> int:
  return sum(bits * math.prod(dims) for bits, dims in arrays) // 8


def _result(instruction: Instruction) -> list:
  """The result arrays of a collective; the start of an asynchronous one also returns its operands, first."""
  arrays = shapes(instruction.type)
  if instruction.op.endswith("-start") and instruction.type.startswith("(") and instruction.op != "all-reduce-start":
    arrays = [a for a in arrays if a[1]]  # without the semaphores
    return arrays[len(arrays) // 2 :]
  return arrays


def _wire(kind: str, size: int, group: int) -> float:
  """The fewest bytes that a device receives for a result of `size` bytes."""
  others = (group - 1) / group
  factor = {"all-reduce": 2 * others, "reduce-scatter": group - 1, "collective-permute": 1}
  return size * factor.get(kind, others)


def innermost_token_loops(module: Module, found_runs: list[Run]) -> set:
  """Bodies of the loops over tokens: innermost loops that contain decoding, not counting the loops over layers.

  XLA shares some instructions between phases and names them after one of these, so a loop is of the phase of the most.
  """
  phases = {name: [i.phase for i in c.values()] for name, c in module.computations.items()}
  more = Counter()  # instructions in each loop that decode, less those of later phases
  for run in found_runs:
    found = phases[run.computation]
    for loop in run.loops:
      more[loop] += sum(phase in TOKEN_PHASES for phase in found) - sum(phase in LATER_PHASES for phase in found)
  holds = {}
  for run in found_runs:
    if any(phase in TOKEN_PHASES for phase in phases[run.computation]):
      for depth, loop in enumerate(run.loops):
        if more[loop] > 0:
          holds.setdefault(loop, set()).update(run.loops[:depth])
  layers = {
    i.attribute("body") for c in module.computations.values() for i in c.values()
    if i.op == "while" and i.phase in TOKEN_PHASES
  }  # fmt: skip
  outer = {parent for loop, parents in holds.items() if loop not in layers for parent in parents}
  return set(holds) - layers - outer


def weight_gathers(found: list[Collective], config: ModelConfig, mesh_shape: dict) -> list[Collective]:
  """Collectives in the loop over tokens that have the size of a weight or of its fsdp shard."""
  sizes = weight_sizes(config, mesh_shape)
  moving = ("all-gather", "collective-permute", "all-to-all")
  return [c for c in found if c.in_token_loop and c.kind in moving and not sizes.isdisjoint(c.elements)]


def weight_sizes(config: ModelConfig, mesh_shape: dict) -> set:
  """Entries of each matrix, alone, fused as q-k-v and gate-up, or stacked over layers; whole and sharded."""
  shapes_ = costs.matrix_shapes(config)
  experts = {name: config.num_experts if name in EXPERT_MATRICES and config.num_experts else 1 for name in shapes_}
  single = {name: math.prod(shape) * experts[name] for name, shape in shapes_.items()}
  fused = {single["q"] + single["k"] + single["v"], single["k"] + single["v"], single["gate"] + single["up"]}
  layer = {*single.values(), *fused}
  whole = layer | {size * config.num_hidden_layers for size in layer} | {costs.head_size(config)}
  tensor, fsdp = mesh_shape.get("tensor", 1), mesh_shape.get("fsdp", 1)
  return {size // ways for size in whole for ways in (1, tensor, fsdp, tensor * fsdp) if size % ways == 0}
