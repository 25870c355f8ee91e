"""Parses the text of an optimized XLA program: its computations, how often each runs, and its matrix products.

XLA's own cost analysis counts a loop body once, on CPU and TPU alike; here a loop counts as often as its condition
lets it run. The scopes in `op_name` (jax.named_scope) give the phase of an instruction.
"""

import math
import re
from typing import NamedTuple

import numpy as np

# The scopes of step/programs.py, step/tools.py and rollout/sampler.py. An instruction belongs to its innermost scope.
PHASES = (
  "rollout_weights", "prefill", "decode", "sample_token", "score_answer", "score_empty_trace", "score_batch",
  "score_start", "gradients", "optimizer", "collect", "update",
)  # fmt: skip
BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "c64": 64, "c128": 128}

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
COUNTER = re.compile(r"[su]\d+\[\]")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  type: str
  op: str
  operands: tuple[str, ...]
  attributes: str  # everything after the operands
  literal: str  # the text in the parentheses

  @property
  def scope(self) -> str:
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""

  @property
  def phase(self) -> str:
    return phase_of(self.scope)

  def attribute(self, name: str) -> str | None:
    found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
    return found[1] if found else None


class Module(NamedTuple):
  """A program: computations by name, each a dict of instructions in order."""

  entry: str
  computations: dict
  partitions: int | None = None  # devices that run it together, of one slice where libtpu compiled for several


def phase_of(scope: str) -> str:
  """The innermost of PHASES in a path of scopes, else "other". jvp(decode) counts as decode."""
  for part in reversed(scope.split("/")):
    words = re.findall(r"\w+", part)
    for word in reversed(words):
      if word in PHASES:
        return word
  return "other"


def parse(text: str) -> Module:
  """Reads the text of a compiled program."""
  computations, entry, current = {}, None, None
  partitions = re.match(r"HloModule .*\bnum_partitions=(\d+)", text)
  for line in text.splitlines():
    if line[:1] not in (" ", "\t", ""):
      header = HEADER.match(line)
      if header:
        current = computations[header[2]] = {}
        entry = header[2] if header[1] else entry
    elif current is not None:
      instruction = _instruction(line)
      if instruction is not None:
        current[instruction.name] = instruction
  return Module(entry, computations, int(partitions[1]) if partitions else None)


def _instruction(line: str) -> Instruction | None:
  start = START.match(line)
  if not start:
    return None
  at = start.end()
  end = _closing(line, at) + 1 if line[at] == "(" else line.index(" ", at)
  opening = line.index("(", end)
  closing = _closing(line, opening)
  inside = line[opening + 1 : closing]
  names = tuple(re.findall(r"%([\w.\-]+)", inside)) or tuple(re.findall(r"(?:^|[ ,])([a-zA-Z][\w.\-]*)(?=,|$)", inside))
  return Instruction(start[2], line[at:end], line[end:opening].strip(), names, line[closing + 1 :], inside)


def _closing(line: str, opening: int) -> int:
  """Index of the parenthesis that matches the one at `opening`."""
  depth = 0
  for found in re.finditer(r"[()]", line[opening:]):
    depth += 1 if found[0] == "(" else -1
    if not depth:
      return opening + found.start()
  return len(line) - 1


def shapes(type_text: str) -> list:
  """(bits per entry, dimensions) of each array in a type."""
  found = []
  for kind, dims in SHAPE.findall(type_text):
    bits = BITS.get(kind) or int((re.search(r"\d+", kind) or ["0"])[0])  # tokens have no bits
    found.append((bits, tuple(int(d) for d in dims.split(",") if d)))
  return found


def type_bytes(type_text: str) -> int:
  return sum(bits * math.prod(dims) for bits, dims in shapes(type_text)) // 8


# ---- Loops ---------------------------------------------------------------------------------------------------------


class Loop(NamedTuple):
  """A while loop that runs at most while element `counter` of its state, which grows by `step`, is below `bound`."""

  bound: int | None
  counter: int | None = None
  step: int = 1


def loop_of(module: Module, instruction: Instruction) -> Loop:
  """Parses a condition `counter < constant`, ignoring other terms. `bound` is None if there is no such condition."""
  condition = list(module.computations[instruction.attribute("condition")].values())
  inner = [i for c in condition for i in module.computations.get(c.attribute("calls") or "", {}).values()]
  numbers = [int(i.literal) for i in condition + inner if i.op == "constant" and COUNTER.match(i.type)]
  counters = [i for i in condition if i.op == "get-tuple-element" and COUNTER.match(i.type)]
  known = re.search(r"known_trip_count[^\d]*(\d+)", instruction.attributes)
  if known:
    return Loop(int(known[1]))
  bound = numbers[0] if len(numbers) == 1 else None
  if len(counters) != 1:
    return Loop(bound)
  return Loop(
    bound, _index(counters[0]), _step(module.computations[instruction.attribute("body")], _index(counters[0]))
  )


def _step(body: dict, counter: int) -> int:
  """The increment of the counter per iteration; XLA takes two steps at a time in some of its own loops."""
  state = next(reversed(body.values()))
  raised = body.get(state.operands[counter]) if state.op == "tuple" else None
  numbers = (
    [body[name] for name in raised.operands if name in body] if raised is not None and raised.op == "add" else []
  )
  steps = [int(i.literal) for i in numbers if i.op == "constant"]
  return steps[0] if len(steps) == 1 else 1


def _index(instruction: Instruction) -> int:
  return int(re.search(r"index=(\d+)", instruction.attributes)[1])


def trips(module: Module, computation: dict, instruction: Instruction) -> int | None:
  """The most iterations of a while loop: from its counter's initial value to its bound; None if unknown."""
  loop = loop_of(module, instruction)
  if loop.bound is None:
    return None
  state = computation.get(instruction.operands[0])
  start = None if loop.counter is None else _number(module, computation, state, loop.counter)
  return max(-(-(loop.bound - (start or 0)) // loop.step), 0)


def _number(module: Module, computation: dict, state: Instruction | None, index: int) -> int | None:
  """The value of element `index` of a tuple, if it is a constant or the bound of an earlier loop."""
  while state is not None and state.op in ("copy", "bitcast", "opt-barrier"):
    state = computation.get(state.operands[0])
  if state is None:
    return None
  if state.op == "while":
    loop = loop_of(module, state)
    return loop.bound if loop.counter == index else None
  if state.op != "tuple":
    return None
  element = computation.get(state.operands[index])
  while element is not None and element.op in ("copy", "bitcast", "convert", "reshape"):
    element = computation.get(element.operands[0])
  if element is None:
    return None
  if element.op == "constant":
    return int(element.literal) if re.fullmatch(r"-?\d+", element.literal) else None
  if element.op == "get-tuple-element":
    return _number(module, computation, computation.get(element.operands[0]), _index(element))
  return None


class Run(NamedTuple):
  """One computation as reached from the entry."""

  computation: str
  times: int  # executions in one run of the program
  loops: tuple[str, ...]  # bodies of the while loops around it, outermost first; a condition is in its own loop
  guessed: bool  # a loop around it has an unknown trip count, taken as 1
  scope: str = ""  # of the instruction that calls it: a fusion may have a scope when its contents have none


def runs(module: Module) -> list[Run]:
  """Every computation with its executions. Of a conditional only the branch with the most work counts (worst case)."""
  found, work = [], {}

  def weight(name):
    if name not in work:
      work[name] = 0
      computation = module.computations.get(name, {})
      own = sum(product_flops(computation, i) + type_bytes(i.type) for i in computation.values())
      work[name] = own + sum(weight(callee) for i in computation.values() for callee, _ in _callees(i))
    return work[name]

  def visit(name, times, loops, guessed, scope):
    found.append(Run(name, times, loops, guessed, scope))
    computation = module.computations[name]
    for instruction in computation.values():
      callees = _callees(instruction)
      if instruction.op == "conditional":
        callees = [max(callees, key=lambda pair: weight(pair[0]))]
      count = trips(module, computation, instruction) if instruction.op == "while" else 1
      for callee, kind in callees:
        if callee not in module.computations:
          continue
        inside = (*loops, instruction.attribute("body")) if kind in ("body", "condition") else loops
        trips_ = 1 if count is None else count
        visit(callee, times * trips_, inside, guessed or count is None, instruction.scope or scope)

  visit(module.entry, 1, (), False, "")
  return found


def _callees(instruction: Instruction) -> list:
  """(computation, attribute) of everything an instruction calls, except the scalar functions of reductions."""
  if "=" not in instruction.attributes:
    return []
  pairs = [(name, kind) for kind, name in CALLED.findall(instruction.attributes)]
  branches = BRANCHES.search(instruction.attributes)
  pairs += [(name.strip(" %"), "branch") for name in branches[1].split(",")] if branches else []
  return [(name, kind) for name, kind in pairs if kind != "to_apply" or instruction.op in ("call", "async-start")]


# ---- Matrix products -----------------------------------------------------------------------------------------------


def product_flops(computation: dict, instruction: Instruction) -> int:
  """FLOPs of a dot or a convolution (matrix products are convolutions on TPUs); 0 for everything else."""
  if instruction.op not in ("dot", "convolution"):
    return 0
  operands = [shapes(computation[name].type)[0][1] for name in instruction.operands[:2] if name in computation]
  if len(operands) < 2:
    return 0
  result = math.prod(shapes(instruction.type)[0][1])
  if instruction.op == "dot":
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    return 2 * result * math.prod(operands[0][int(a)] for a in axes[1].split(",") if a) if axes else 2 * result
  return 2 * _convolution(instruction, *operands, shapes(instruction.type)[0][1])


def _convolution(instruction: Instruction, left: tuple, right: tuple, out: tuple) -> int:
  """Multiplications of a convolution, not counting those with padding."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
  window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
  lhs, rhs, res = labels[1], labels[2], labels[3]
  options = dict(part.split("=") for part in window[1].split()) if window else {}
  count = out[res.index("b")] * out[res.index("f")] * right[rhs.index("i")]
  spatial = sorted(c for c in res if c.isdigit())
  for place, digit in enumerate(spatial):
    size = (left[lhs.index(digit)], right[rhs.index(digit)], out[res.index(digit)])
    count *= _positions(*size, {key: _entry(text, place) for key, text in options.items()})
  return count


def _entry(text: str, place: int) -> str:
  return text.split("x")[place]


def _positions(size: int, kernel: int, out: int, window: dict) -> int:
  """Pairs of an output and a kernel position, along one spatial axis, that read an entry of the input."""
  low = int(window.get("pad", "0_0").split("_")[0])
  stride, dilate = int(window.get("stride", 1)), int(window.get("lhs_dilate", 1))
  spread = int(window.get("rhs_dilate", 1))
  at = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * spread - low
  return int(((at >= 0) & (at % dilate == 0) & (at // dilate < size)).sum())


def flops_by_phase(module: Module, found_runs: list[Run]) -> dict:
  """FLOPs of all matrix products on one device, including loop iterations, by phase."""
  total = {}
  for run in found_runs:
    computation = module.computations[run.computation]
    for instruction in computation.values():
      flops = product_flops(computation, instruction)
      if flops:
        phase = phase_of(instruction.scope or run.scope)
        total[phase] = total.get(phase, 0) + flops * run.times
  return total
