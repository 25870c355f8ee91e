"""Sweeps over layouts of a step on a slice: ranks all that divide by an estimate, and compiles the best few."""

import dataclasses
from typing import NamedTuple

from nrt_jax import sharding
from nrt_jax.config import RunConfig
from nrt_jax.errors import UserError
from nrt_jax.model.architecture import REMATS
from nrt_jax.performance.planning import guess, program, report, roofline
from nrt_jax.performance.planning.topology import Topology
from nrt_jax.step import programs


class Layout(NamedTuple):
  """What a sweep varies, with its estimates."""

  data: int
  fsdp: int
  tensor: int
  micro_batches: int
  wave_prompts: int
  remat: str
  seconds: float  # roofline of a step
  bytes: float  # needed per device, roughly

  def __str__(self):
    waves = f", sampling.wave_prompts {self.wave_prompts}" if self.wave_prompts else ""
    mesh = f"data {self.data} x fsdp {self.fsdp} x tensor {self.tensor}"
    return f"{mesh}, remat {self.remat}, micro_batches {self.micro_batches}{waves}"


def divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]


def meshes(devices: int) -> list[tuple[int, int, int]]:
  """Every (data, fsdp, tensor) mesh of `devices` devices."""
  return [(devices // inner, inner // t, t) for inner in divisors(devices) for t in divisors(inner)]


def layouts(run: RunConfig, topology: Topology, devices: list) -> list[Layout]:
  """The layouts that divide, most promising first: those that should fit, by time; then the others, by memory.

  For each mesh and each `model.remat`, takes the fewest micro-batches and the largest waves that should fit. UserError
  if no mesh can run the step.
  """
  found, rows, reasons, room = [], None, [], usable(topology)
  for mesh in meshes(len(devices)):
    try:
      opened = _first_that_divides(run, devices, *mesh)
    except UserError as error:  # of this mesh, or of the run on any
      reasons.append(f"{error} (on data {mesh[0]} x fsdp {mesh[1]} x tensor {mesh[2]})")
      continue
    rows = rows or program.trained_rows(opened[0])  # the same on every mesh
    found += [_of_mesh(*opened, rows, topology, remat) for remat in REMATS]
  if not found:
    raise UserError(f"--sweep: no mesh of {len(devices)} devices can run this step: {reasons[0]}")
  return sorted(found, key=lambda x: (x.bytes > room, x.seconds if x.bytes <= room else x.bytes, x.micro_batches))


def usable(topology: Topology) -> float:
  """The largest estimate, in bytes per device, that counts as fitting: leaves a tenth for what the estimate misses."""
  return 0.9 * topology.chip.per_device().hbm_bytes


def _first_that_divides(run: RunConfig, devices: list, data: int, fsdp: int, tensor: int):
  """(Setup, all numbers of micro-batches that may divide) on a mesh; UserError: why the last of them does not."""
  rows = run.prompts_per_step * run.samples_per_prompt // (data * fsdp) // run.optimizer.minibatches
  pieces = divisors(max(rows, 1))  # with no row for each device, the setup says so
  for micro_batches in pieces:
    try:
      return program.open_setup(program.with_layout(run, data, fsdp, tensor, micro_batches, 0), devices)[0], pieces
    except UserError as error:
      reason = error
  raise reason


def _of_mesh(setup: programs.Setup, pieces: list, rows, topology: Topology, remat: str) -> Layout:
  """The layout with the fewest micro-batches, then the largest waves, that should fit; else the smallest."""
  B, ways = setup.run.prompts_per_step, sharding.data_parallel_ways(setup.mesh)
  waves = [0]
  if setup.algorithm.samples_traces:
    waves += [w for w in reversed(divisors(B)) if w % ways == 0 and w < B]
  start, state = pieces.index(setup.run.parallel.micro_batches), guess.state_bytes(setup)
  smallest = None
  for micro_batches in pieces[start:]:
    for wave in waves:
      layout = _guess(setup, rows, topology, state, micro_batches, wave, remat)
      if layout.bytes <= usable(topology):
        return layout
      smallest = layout if smallest is None or layout.bytes < smallest.bytes else smallest
  return smallest


def _guess(setup, rows, topology: Topology, state: float, micro_batches: int, wave: int, remat: str) -> Layout:
  layout = (*(setup.mesh.shape[axis] for axis in sharding.MESH_AXES), micro_batches, wave, remat)
  run, model = program.with_layout(setup.run, *layout), dataclasses.replace(setup.model, remat=remat)
  setup = setup._replace(run=run, model=model)
  flops = {"gradients": guess.update_flops(setup, rows) / setup.mesh.size}
  moved = guess.wire(setup, rows), guess.network(setup)
  phases = roofline.estimate(setup, rows, topology.chip.per_device(), flops, *moved)
  return Layout(*layout, sum(p.seconds for p in phases), state + guess.working_bytes(setup, rows))


def plan(run: RunConfig, topology: Topology, devices: list, say=lambda text: None) -> report.Plan:
  """Compiles one layout, the run's own, and analyzes its programs."""
  setup, placeholder = program.open_setup(run, devices)
  say(f"{topology}: {len(devices)} devices, mesh {dict(setup.mesh.shape)}")
  rows = program.trained_rows(setup)
  return report.analyse(topology, setup, rows, placeholder, program.compile_all(setup, say))


def sweep(run: RunConfig, topology: Topology, devices: list, count: int, say=lambda text: None) -> list[dict]:
  """The plans of the `count` most promising layouts as data: first those that fit, by time, then those that do not."""
  ranked = layouts(run, topology, devices)
  divide = len({layout[:3] for layout in ranked})
  say(f"{divide} meshes divide; the likeliest layouts, with guesses of time and memory:")
  for layout in ranked[: 2 * count]:
    say(f"  {layout}: {layout.seconds:.3g} s, {layout.bytes / report.GIB:.1f} GiB")
  plans = []
  for layout in ranked[:count]:
    say(f"compiling {layout}")
    tried = program.with_layout(run, *layout[:6])
    plans.append({"layout": layout._asdict(), **report.as_data(plan(tried, topology, devices, say))})
    say(outcome(plans[-1]))  # a sweep takes long: report each result at once
  return sorted(plans, key=lambda p: (not p["fits"], p["roofline"]["step_seconds"] if p["fits"] else needed(p)))


def outcome(one: dict) -> str:
  """A one-line summary of a compiled layout."""
  layout, gib = Layout(**one["layout"]), f"{needed(one) / report.GIB:.2f} GiB"
  if one["fits"]:
    return f"{layout}: {one['roofline']['step_seconds']:.3g} s, {gib}"
  return f"{layout}: does not fit, {gib}"


def needed(one: dict) -> int:
  """Bytes per device of the largest program of a plan."""
  return max(p["overflow"]["used"] if "overflow" in p else p["memory"]["total"] for p in one["programs"])


def as_flags(layout: Layout) -> str:
  """The overrides that give a run this layout."""
  keys = [f"parallel.{name}" for name in ("data", "fsdp", "tensor", "micro_batches")]
  keys += ["sampling.wave_prompts", "model.remat"]
  return " ".join(f"--config.{key}={value}" for key, value in zip(keys, layout))


def as_text(plans: list[dict]) -> str:
  """The ranking, and the best plan in full."""
  lines = ["rank  layout: step at least, HBM per device"]
  lines += [f"{number:>4}  {outcome(one)}" for number, one in enumerate(plans, 1)]
  lines.append(f"best  {as_flags(Layout(**plans[0]['layout']))}")
  return "\n".join([*lines, "", report.as_text(plans[0])])
