"""A plan as plain data, for JSON, and as text."""

import math
from typing import NamedTuple

import jax

from nrt_jax import sharding
from nrt_jax.model import kernels
from nrt_jax.performance.planning import collectives, guess, hlo, program, roofline
from nrt_jax.performance.planning.topology import Topology
from nrt_jax.step import hardware, programs

GIB = hardware.GIB


class Plan(NamedTuple):
  """A step on a slice."""

  topology: Topology
  setup: programs.Setup
  rows: program.Rows
  placeholder: bool  # no tokenizer was found
  compiled: list  # program.Compiled, in order
  found: dict  # program name -> its collectives, [] if the text can't be read
  flops: dict  # program name -> FLOPs by phase, of one device


def analyse(topology: Topology, setup, rows, placeholder: bool, compiled: list) -> Plan:
  """Analyzes the texts of the compiled programs."""
  found, flops = {}, {}
  for one in compiled:
    if one.text is None:
      found[one.name], flops[one.name] = [], {}
      continue
    module = hlo.parse(one.text)
    runs = hlo.runs(module)
    slices = sharding.slices_of(setup.mesh, setup.run.parallel)
    found[one.name] = collectives.collectives(module, runs, setup.mesh.size, slices)
    flops[one.name] = hlo.flops_by_phase(module, runs)
  return Plan(topology, setup, rows, placeholder, compiled, found, flops)


def device_chip(plan: Plan) -> hardware.Chip:
  return plan.topology.chip.per_device()


def as_data(plan: Plan) -> dict:
  """Everything in the text and more, in bytes, seconds and FLOPs of one device."""
  setup, chip = plan.setup, device_chip(plan)
  run, mesh = setup.run, dict(setup.mesh.shape)
  programs_ = [_program_data(plan, one, chip) for one in plan.compiled]
  data = {
    "topology": str(plan.topology), "chips": plan.topology.chips * plan.topology.slices, "devices": setup.mesh.size,
    "chip": chip.name, "slices": sharding.slices_of(setup.mesh, run.parallel), "dcn_bandwidth": chip.dcn_bandwidth,
    "mesh": mesh, "stage": run.stage, "algorithm": run.algorithm_name,
    "prompts_per_step": run.prompts_per_step, "samples_per_prompt": setup.samples_per_prompt,
    "wave_prompts": run.sampling.wave_prompts, "minibatches": run.optimizer.minibatches,
    "micro_batches": roofline.pieces_of(run), "remat": setup.model.remat,
    "attention": attention_of(plan),
    "trained_rows": plan.rows.count, "row_length": plan.rows.length,
    "placeholder_tokenizer": plan.placeholder,
    "fits": all(one["fits"] for one in programs_), "programs": programs_,
  }  # fmt: skip
  if all(one.overflow is None for one in plan.compiled):
    data["roofline"] = _roofline_data(plan, chip)
  return data


def attention_of(plan: Plan) -> str:
  """The attention of a micro-batch's rows: kernels.choose, ignoring packed rows and shared prompts."""
  run = plan.setup.run
  together = plan.rows.count // (run.optimizer.minibatches * roofline.pieces_of(run))
  with jax.sharding.use_abstract_mesh(plan.setup.mesh.abstract_mesh):
    return kernels.choose(plan.setup.model, (together, plan.rows.length))


def _program_data(plan: Plan, one, chip) -> dict:
  data = {"name": one.name, "compile_seconds": one.seconds, "readable": one.text is not None}
  if one.overflow is not None:
    return {**data, "fits": False, "overflow": one.overflow._asdict()}
  found = plan.found[one.name]
  weights = collectives.weight_gathers(found, plan.setup.model, plan.setup.mesh.shape)
  return {
    **data,
    "fits": one.memory.total <= chip.hbm_bytes,
    "memory": {**one.memory._asdict(), "total": one.memory.total, "hbm": chip.hbm_bytes},
    "flops": sum(plan.flops[one.name].values()),
    "flops_by_phase": plan.flops[one.name],
    "xla_once": {"flops": one.flops_once, "bytes": one.bytes_once},
    "collectives": _collective_rows([c for c in found if c.wire_bytes or c.slices == 1]),
    "between_slices": _network_rows([c for c in found if c.slices > 1], chip),
    "weights_in_token_loop": [{"kind": c.kind, "bytes": c.bytes, "times": c.times, "scope": c.scope} for c in weights],
    "loops_of_unknown_length": any(c.guessed for c in found),
  }


def _collective_rows(found: list) -> list:
  """One row per phase, kind and group size, largest first."""
  rows = {}
  for c in found:
    key = (c.phase, c.kind, c.group)
    row = rows.setdefault(key, {"phase": c.phase, "kind": c.kind, "group": c.group, "in_token_loop": c.in_token_loop})
    row["times"] = row.get("times", 0) + c.times
    row["bytes"] = row.get("bytes", 0) + c.bytes * c.times
    row["wire_bytes"] = row.get("wire_bytes", 0) + c.wire_bytes * c.times
  return sorted(rows.values(), key=lambda row: -row["wire_bytes"])


def _network_rows(found: list, chip) -> list:
  """One row per phase, kind and number of slices, largest first; seconds are null without a figure for the network."""
  rows = {}
  for c in found:
    key = (c.phase, c.kind, c.slices, c.in_token_loop)
    names = ("phase", "kind", "slices", "in_token_loop")
    row = rows.setdefault(key, dict(zip(names, key), times=0, bytes=0, network=0))
    row["times"] += c.times
    row["bytes"] += c.bytes * c.times
    row["network"] += c.network * c.times
  for row in rows.values():
    row["seconds"] = row["network"] / chip.dcn_bandwidth if chip.dcn_bandwidth else None
  return sorted(rows.values(), key=lambda row: -row["network"])


def estimates(plan: Plan) -> list:
  """roofline.Estimate of each phase, over all programs of the step."""
  flops, wire, network = {}, {}, {}
  for one in plan.compiled:
    for phase, value in plan.flops[one.name].items():
      flops[phase] = flops.get(phase, 0) + value
    for c in plan.found[one.name]:
      wire[c.phase] = wire.get(c.phase, 0) + c.wire_bytes * c.times
      network[c.phase] = network.get(c.phase, 0) + c.network * c.times
  if all(one.text is None for one in plan.compiled):
    wire, network = guess.wire(plan.setup, plan.rows), guess.network(plan.setup)
  return roofline.estimate(plan.setup, plan.rows, device_chip(plan), flops, wire, network)


def _roofline_data(plan: Plan, chip) -> dict:
  phases = estimates(plan)
  seconds = sum(phase.seconds for phase in phases)
  model = roofline.model_flops(plan.setup, plan.rows)
  data = {
    "step_seconds": seconds,
    "bottleneck": max(phases, key=lambda phase: phase.seconds).phase,
    "mfu": sum(model.values()) / plan.setup.mesh.size / chip.flops / seconds,
    "model_flops": model,
    "phases": [{**p._asdict(), "seconds": p.seconds, "bottleneck": p.bottleneck} for p in phases],
  }
  if plan.setup.algorithm.samples_traces:
    tokens = plan.setup.run.sampling.max_trace_length * plan.setup.waves
    data["seconds_per_token_step"] = next(p.seconds for p in phases if p.phase == "decode") / tokens
  return data


# ---- Text ----------------------------------------------------------------------------------------------------------


def as_text(data: dict) -> str:
  """The plan as text for users."""
  mesh = " x ".join(f"{name} {size}" for name, size in data["mesh"].items())
  waves = data["wave_prompts"] or data["prompts_per_step"]
  step = f"{data['prompts_per_step']} prompts x {data['samples_per_prompt']} samples in waves of {waves} prompts"
  pieces = f"{data['minibatches']} x {data['micro_batches']} pieces"
  how = f"remat {data['remat']}, attention {data['attention']}"
  lines = [
    f"{data['topology']}: {data['chips']} chips, {data['devices']} devices, mesh {mesh}",
    f"stage {data['stage']} ({data['algorithm']}): {step},",
    f"  {data['trained_rows']} rows of {data['row_length']} tokens in {pieces}, {how}",
  ]
  if data["placeholder_tokenizer"]:
    lines.append("no tokenizer: the vocabulary of config.json and the marker")
  for one in data["programs"]:
    lines += ["", f"{one['name']}: compiled in {one['compile_seconds']:.0f} s"]
    lines += _overflow_lines(one) if "overflow" in one else [*_memory_lines(one), *_network_lines(one, data)]
  if "roofline" in data:
    lines += ["", *_roofline_lines(data["roofline"], data["slices"])]
  lines += ["", "fits" if data["fits"] else "DOES NOT FIT"]
  return "\n".join(lines)


def _memory_lines(one: dict) -> list:
  memory = one["memory"]
  margin = memory["hbm"] - memory["total"]
  parts = ", ".join(f"{name} {_gib(memory[name])}" for name in ("arguments", "outputs", "temporaries", "code"))
  lines = [
    f"  HBM per device  {_gib(memory['total'])} of {_gib(memory['hbm'])}: {parts}",
    f"  margin          {_gib(margin)} ({margin / memory['hbm']:.0%})",
  ]
  if memory["peak"]:
    lines.append(f"  peak            {_gib(memory['peak'])} without code: not all temporaries are in use at once")
  if memory["host"]:
    lines.append(f"  on its host     {_gib(memory['host'])} of the state")
  if not one["readable"]:
    return [*lines, "  the program's text can't be read back (libtpu newer than jaxlib): no collectives"]
  lines.append(f"  FLOPs           {one['flops']:.3g} of matrix products, loops counted")
  once = one["xla_once"]
  lines.append(f"  XLA's counts    {once['flops']:.3g} FLOPs, {once['bytes']:.3g} bytes: each loop's body once")
  if one["loops_of_unknown_length"]:
    lines.append("  a loop's length can't be read from the program: taken as 1")
  lines.append("  collectives     phase, kind, devices together: times, bytes of results, bytes received at least")
  for row in one["collectives"]:
    if row["bytes"] >= 2**20:
      name = f"{row['phase']} {row['kind']} over {row['group']}"
      lines.append(f"    {name:<44}{row['times']:>12,}{_gib(row['bytes']):>14}{_gib(row['wire_bytes']):>14}")
  for c in one["weights_in_token_loop"]:
    lines.append(
      f"  WARNING: a weight moves between chips for every token: {c['kind']} of {c['bytes'] / 2**20:.1f} MiB, "
      f"{c['times']:,} times, at {c['scope']}"
    )
  return lines


def _network_lines(one: dict, data: dict) -> list:
  """What moves between slices, if there are several."""
  if data["slices"] == 1 or not one["readable"]:
    return []
  rate = data["dcn_bandwidth"]
  known = f"{rate * 8 / 1e9:.3g} Gbit/s for each device" if rate else f"no public figure for {data['chip']}, no times"
  lines = [f"  between slices  over DCN ({known}): times, bytes of results, bytes received at least, seconds"]
  for row in one["between_slices"]:
    name = f"{row['phase']} {row['kind']} over {row['slices']}" + ", for every token" * row["in_token_loop"]
    seconds = "?" if row["seconds"] is None else _short(row["seconds"])
    sizes = f"{_gib(row['bytes']):>14}{_gib(row['network']):>14}{seconds:>10}"
    lines.append(f"    {name:<44}{row['times']:>12,}{sizes}")
  waits = sum(row["times"] for row in one["between_slices"] if row["in_token_loop"])
  if waits:
    lines.append(f"  slices wait for one another {waits:,} times in the loop over tokens; latency is not in the bound")
  return lines


def _overflow_lines(one: dict) -> list:
  over = one["overflow"]
  lines = [f"  DOES NOT FIT: {_gib(over['used'])} of {_gib(over['limit'])} per device"]
  return lines + ([f"  largest: {over['reason']}"] if over["reason"] else [])


def _roofline_lines(data: dict, slices: int) -> list:
  columns = ["seconds", "compute", "memory", "links"] + ["network"] * (slices > 1)
  least = f"{data['step_seconds']:.3g} s for a step at least"
  lines = [
    f"roofline: {least}, model FLOPs utilisation at most {data['mfu']:.0%}; longest: {data['bottleneck']}",
    f"  {'phase':<20}{''.join(f'{name:>10}' for name in columns)}  bottleneck",
  ]
  for p in sorted(data["phases"], key=lambda p: -p["seconds"]):
    if p["seconds"] >= 1e-4 * data["step_seconds"]:
      times = "".join(f"{_short(p[key]):>10}" for key in columns)
      lines.append(f"  {p['phase']:<20}{times}  {p['bottleneck']}")
  if "seconds_per_token_step" in data:
    lines.append(f"  one token of every row of a wave: {data['seconds_per_token_step'] * 1e3:.3g} ms")
  return lines


def _short(seconds: float) -> str:
  return "0" if not seconds else f"{seconds:.3g}"


def _gib(count: float) -> str:
  return f"{count / GIB:.2f} GiB" if math.isfinite(count) else "?"
