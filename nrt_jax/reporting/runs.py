"""What runs wrote: metrics.jsonl of workdirs, also while a run goes on."""

import fnmatch
import json
import pathlib

from nrt_jax.errors import UserError


def matching(names, pattern: str) -> list:
  return [name for name in names if fnmatch.fnmatch(name, pattern)]


def summarise(directory: str, patterns, last: int) -> dict:
  """One run's last step, all metric names, and name -> mean of the last `last` values, ignoring nulls."""
  lines = read_metrics(directory)
  names = list(dict.fromkeys(name for line in lines for name in line if name != "step"))
  wanted = dict.fromkeys(name for pattern in patterns for name in matching(names, pattern))
  metrics = {}
  for name in wanted:
    values = [value for value in [line[name] for line in lines if name in line][-last:] if value is not None]
    metrics[name] = sum(values) / len(values) if values else None
  return {"run": directory, "step": max(line["step"] for line in lines), "names": names, "metrics": metrics}


def read_metrics(directory: str) -> list[dict]:
  """The lines of a run's metrics.jsonl, without a line that is still being written."""
  path = pathlib.Path(directory) / "metrics.jsonl"
  if not path.is_file():
    raise UserError(f"RUN: {directory}: holds no metrics.jsonl, allowed: workdirs of runs")
  lines = [read_line(f"{path}:{number}", text) for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1)]
  if not lines:
    raise UserError(f"RUN: {path} has no line yet")
  return lines


def read_line(where: str, text: bytes) -> dict:
  """One line's numbers and nulls by name, including its step."""
  try:
    line = json.loads(text)
  except json.JSONDecodeError as error:
    raise UserError(f"{where}: not JSON: {error.msg}, column {error.colno}") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{where}: not UTF-8 text") from error
  fits = isinstance(line, dict) and isinstance(line.get("step"), int)
  if not fits or not all(value is None or isinstance(value, (int, float)) for value in line.values()):
    raise UserError(f'{where}: found {text.decode()[:60]!r}, allowed: {{"step": NUMBER, NAME: NUMBER or null, ...}}')
  return line
