"""`nrt-jax report RUN...`: a table of the metrics of several workdirs, a page to look at them, or a paper's tables."""

import fnmatch

from nrt_jax.commands import output
from nrt_jax.errors import UserError
from nrt_jax.files import write_json, write_text
from nrt_jax.records import mirror
from nrt_jax.reporting import charts, page, runs

METRICS = ("reward/mean", "answer/logp_gain", "trace/length_mean", "completion/accuracy", "eval/*")


def run(args) -> None:
  output.check_file(args.output, "--output")
  output.check_file(args.html, "--html")
  if args.table:
    if args.html:
      raise UserError("--html: found with --table, allowed: one of them")
    from nrt_jax.commands import tables  # it reads configs, and so imports all methods: seconds that others don't need

    return tables.run(args)
  if args.html:
    charts.require("--html")
  if not args.runs:
    raise UserError("required: RUN, a workdir; or --table NAME (see nrt-jax report --help)")
  patterns = args.metric or METRICS
  places = [mirror.local(directory, "RUN") for directory in args.runs]
  found = [{**runs.summarise(place, patterns, args.last), "run": name} for place, name in zip(places, args.runs)]
  for pattern in args.metric or ():
    if not any(fnmatch.fnmatch(name, pattern) for one in found for name in one["names"]):
      names = sorted({name for one in found for name in one["names"]})
      raise UserError(f"--metric: found {pattern!r}, allowed: names of these runs: {', '.join(names)}")
  names = list(
    dict.fromkeys(name for pattern in patterns for one in found for name in runs.matching(one["metrics"], pattern))
  )
  print(table(found, names))
  if args.output:
    shown = [{key: one[key] for key in ("run", "step", "metrics")} for one in found]
    output.make_parent(args.output)
    write_json(args.output, {"last": args.last, "runs": shown})
  if args.html:
    text = page.build(places, args.metric, args.last, args.ignore or (), args.samples)
    output.make_parent(args.html)
    write_text(args.html, text, errors="backslashreplace")


def table(found: list[dict], names: list) -> str:
  """One row per run, one column per metric; "-" if a run has no such metric, or only nulls."""

  def cell(value) -> str:
    return "-" if value is None else f"{value:.4g}"

  rows = [["run", "step", *names]]
  rows += [[one["run"], str(one["step"]), *(cell(one["metrics"].get(name)) for name in names)] for one in found]
  widths = [max(map(len, column)) for column in zip(*rows)]
  return "\n".join(
    "  ".join(text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths)))
    for row in rows
  )
