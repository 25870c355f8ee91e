"""`nrt-jax report RUN...`: a table over the metrics of several workdirs."""

import fnmatch
import json
import os
import pathlib

from nrt_jax.commands.train import check_writable
from nrt_jax.errors import UserError
from nrt_jax.files import write_json

METRICS = ("reward/mean", "answer/logp_gain", "trace/length_mean", "completion/accuracy", "eval/*")


def run(args) -> None:
  if args.output:
    check_writable(os.path.dirname(os.path.abspath(args.output)), "--output")
  patterns = args.metric or METRICS
  runs = [summarise(directory, patterns, args.last) for directory in args.runs]
  for pattern in args.metric or ():
    if not any(fnmatch.fnmatch(name, pattern) for one in runs for name in one["names"]):
      names = sorted({name for one in runs for name in one["names"]})
      raise UserError(f"--metric: found {pattern!r}, allowed: names of these runs: {', '.join(names)}")
  names = list(
    dict.fromkeys(name for pattern in patterns for one in runs for name in matching(one["metrics"], pattern))
  )
  print(table(runs, names))
  if args.output:
    shown = [{key: one[key] for key in ("run", "step", "metrics")} for one in runs]
    write_json(args.output, {"last": args.last, "runs": shown})


def matching(names, pattern: str) -> list:
  return [name for name in names if fnmatch.fnmatch(name, pattern)]


def summarise(directory: str, patterns, last: int) -> dict:
  """Of one run: its last step, all metric names, and name -> mean of the last `last` values, nulls left out."""
  lines = read_metrics(directory)
  names = list(dict.fromkeys(name for line in lines for name in line if name != "step"))
  wanted = dict.fromkeys(name for pattern in patterns for name in matching(names, pattern))
  metrics = {}
  for name in wanted:
    values = [value for value in [line[name] for line in lines if name in line][-last:] if value is not None]
    metrics[name] = sum(values) / len(values) if values else None
  return {"run": directory, "step": max(line["step"] for line in lines), "names": names, "metrics": metrics}


def read_metrics(directory: str) -> list[dict]:
  """The lines of a run's metrics.jsonl; one that is still being written is left out."""
  path = pathlib.Path(directory) / "metrics.jsonl"
  if not path.is_file():
    raise UserError(f"RUN: {directory}: holds no metrics.jsonl, allowed: workdirs of runs")
  lines = []
  for number, text in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError as error:
      raise UserError(f"{path}:{number}: not JSON: {error.msg}, column {error.colno}") from error
  if not lines:
    raise UserError(f"RUN: {path} has no line yet")
  return lines


def table(runs: list[dict], names: list) -> str:
  """One row per run, one column per metric; "-" where a run has no such metric, or only nulls."""

  def cell(value) -> str:
    return "-" if value is None else f"{value:.4g}"

  rows = [["run", "step", *names]]
  rows += [[one["run"], str(one["step"]), *(cell(one["metrics"].get(name)) for name in names)] for one in runs]
  widths = [max(map(len, column)) for column in zip(*rows)]
  return "\n".join(
    "  ".join(text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths)))
    for row in rows
  )
