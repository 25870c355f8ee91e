"""Formats the benchmark's report as text."""

NOTE = """\
Phases are timed as programs of their own, made of the functions that the step is made of, on a batch of the run; XLA
can neither fuse nor overlap anything across their borders, so their sum may differ from the step. decode is sampling
less prefill. host_batch is read while the devices work; host_grading is not. Seconds: median (lowest to highest)."""

LABELS = {
  "host_grading": "grading (host)",
  "rollout_weights": "rollout weights",
  "decode_in_slots": "decode in slots",
  "score_answer": "score answers",
  "score_empty_trace": "score empty trace",
  "score_batch": "score reference",
  "score_start": "score start",
  "host_batch": "read batch (host)",
}


def text(report: dict) -> str:
  """The report as lines of text."""
  return "\n".join([*header(report), "", *table(report), "", NOTE])


def header(report: dict) -> list[str]:
  run, step, lengths = report["run"], report["step"], report["run"]["lengths"]
  peaks, compiling, padded = report["ceilings"], report["compile"], report["step"]["padded_fraction"]
  cached = f", {compiling['read_from_cache']} from the cache" if compiling["read_from_cache"] else ""
  sizes = f"{run['prompts_per_step']} prompts x {run['samples_per_prompt']} samples"
  most = ", ".join(f"{name} {length}" for name, length in lengths.items())
  how = ", ".join([run["parallel"]["kind"], run["model"]["compute_dtype"], f"jax {run['jax']}", run["date"]])
  again = f"programs compiled after the first step: {compiling['recompiles']}"
  rates = [
    f"{name} {step[name + '_tokens_per_s']:,.0f}" for name in ("generated", "trained") if name + "_tokens" in step
  ]
  share = "unknown" if padded is None else f"{padded:.1%}"
  return [
    f"run       {run['algorithm']}, stage {run['stage']}: {sizes}; at most {most} tokens",
    f"devices   {run['devices']} x {run['device_kind']}, {how}",
    f"ceilings  {quantity(peaks['flops'])}FLOP/s, {quantity(peaks['bandwidth'])}B/s ({peaks['source']})",
    f"compile   {compiling['seconds']:.1f} s, {counted(compiling['programs'], 'program')}{cached}; {again}",
    f"memory    {memory(report['memory'])}",
    f"tokens/s  {', '.join(rates)}; padded share of the update: {share}",
  ]


def memory(found: dict) -> str:
  planned, peak, parts = found["planned_bytes"], found["peak_bytes"], []
  if planned is not None:
    sizes = ", ".join(f"{name} {mebibytes(size)}" for name, size in planned.items() if name != "total")
    parts.append(f"{mebibytes(planned['total'])} MiB per device by the compiler's plan ({sizes})")
  parts.append("measured peak: " + ("this backend doesn't tell" if peak is None else f"{mebibytes(peak)} MiB"))
  return "; ".join(parts)


def mebibytes(size: float) -> str:
  return f"{size / 2**20:,.1f}"


def table(report: dict) -> list[str]:
  """One line for the step, and one per phase."""
  whole = report["step"]["seconds"]["median"]
  rows = [("", "seconds", "of the step", "tokens/s", "MFU", "memory bandwidth")]
  for entry in ({"name": "step", **report["step"]}, *report["phases"]):
    seconds = entry["seconds"]
    rows.append(
      (
        LABELS.get(entry["name"], entry["name"]),
        f"{seconds['median']:.4f} ({seconds['low']:.4f} to {seconds['high']:.4f})",
        f"{seconds['median'] / whole:.1%}",
        f"{entry['tokens_per_s']:,.0f}" if "tokens_per_s" in entry else "",
        f"{entry['mfu']:.1%}" if "mfu" in entry else "",
        f"{entry['bandwidth_share']:.1%}" if "bandwidth_share" in entry else "",
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows)]
  return ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) for row in rows]


def counted(number: int, noun: str) -> str:
  return f"{number} {noun}{'s' * (number != 1)}"


def quantity(number: float) -> str:
  """Formats a number with an SI prefix from a million on: 12.3 G."""
  for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
    if number >= size:
      return f"{number / size:.4g} {prefix}"
  return f"{number:.4g} "
