"""The collectives of a compiled program: kind, phase, bytes, executions; and which of them move weights per token."""

import math
import re
from typing import NamedTuple

from nrt_jax.model import costs
from nrt_jax.model.architecture import EXPERT_MATRICES, ModelConfig
from nrt_jax.performance.planning.hlo import Instruction, Module, Run, phase_of, shapes, type_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
TOKEN_PHASES = ("decode", "sample_token")  # inside the loop over tokens


class Collective(NamedTuple):
  """A collective of the program, per device."""

  kind: str
  phase: str
  bytes: int  # of its result, per execution
  wire_bytes: float  # that a device must receive per execution, under any algorithm
  times: int
  group: int  # devices that take part
  in_token_loop: bool
  elements: tuple[int, ...]  # of each array of the result
  scope: str
  guessed: bool


def collectives(module: Module, found_runs: list[Run], devices: int) -> list[Collective]:
  """All collectives with their executions.

  A collective that XLA splits over several fusions (same channel) counts once. If XLA marks them as a chain, some may
  be in loops that run concurrently; then those of the outermost loop count.
  """
  token_loops = innermost_token_loops(module, found_runs)
  seen, result = {}, []
  for run in sorted(found_runs, key=lambda run: len(run.loops)):
    for instruction in module.computations[run.computation].values():
      kind = instruction.op.removesuffix("-start")
      if kind not in KINDS:
        continue
      channel = re.search(r"channel_id=(\d+)", instruction.attributes)
      chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
      key = (channel[1] if channel else instruction.name, chain[1] if chain else run.loops)
      if key in seen:
        continue
      seen[key] = True
      if kind == "all-reduce" and run.computation.lstrip("%").startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # a TPU fusion: the sum is sliced before it is returned
        full = type_bytes(instruction.type)
        arrays, size = shapes(instruction.type), full // max(_group_size(instruction.attributes, devices), 1)
      else:
        arrays = _result(instruction)
        size = sum(bits * math.prod(dims) for bits, dims in arrays) // 8
      group = _group_size(instruction.attributes, devices)
      inside = any(loop in token_loops for loop in run.loops)
      elements = tuple(math.prod(dims) for _, dims in arrays)
      scope = instruction.scope or run.scope
      result.append(
        Collective(
          kind, phase_of(scope), size, _wire(kind, size, group), run.times, group, inside, elements, scope, run.guessed
        )
      )
  return result


def _result(instruction: Instruction) -> list:
  """The result arrays of a collective; the start of an asynchronous one also returns its operands, first."""
  arrays = shapes(instruction.type)
  if instruction.op.endswith("-start") and instruction.type.startswith("(") and instruction.op != "all-reduce-start":
    arrays = [a for a in arrays if a[1]]  # without the semaphores
    return arrays[len(arrays) // 2 :]
  return arrays


def _group_size(attributes: str, devices: int) -> int:
  """Devices in one group of a collective, from any notation of replica groups."""
  if "source_target_pairs=" in attributes:
    return 2
  cut = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
  if cut:
    return int(cut[2])
  first = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
  if first:
    return len(first[1].split(","))
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^)]*\)\)?)? *\{([^}]*)\}", attributes)
  if mesh:
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w]+)'?=(\d+)", mesh[1])}
    axes = re.findall(r"'?([a-zA-Z_]\w*)'?(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part) if part else sizes[name] for name, part in axes)
  return devices


def _wire(kind: str, size: int, group: int) -> float:
  """The fewest bytes that a device receives for a result of `size` bytes."""
  others = (group - 1) / group
  factor = {"all-reduce": 2 * others, "reduce-scatter": group - 1, "collective-permute": 1}
  return size * factor.get(kind, others)


def innermost_token_loops(module: Module, found_runs: list[Run]) -> set:
  """Bodies of the loops over tokens: innermost loops that contain decoding, not counting the loops over layers."""
  holds = {}
  for run in found_runs:
    if any(i.phase in TOKEN_PHASES for i in module.computations[run.computation].values()):
      for depth, loop in enumerate(run.loops):
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
