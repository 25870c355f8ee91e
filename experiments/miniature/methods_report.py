"""Tables and curves of the miniature study, from results.jsonl. Runs nothing; curves need the extra `[report]`.

A table is inserted between `<!-- table TASK -->` and `<!-- end -->` of a page; a figure is saved as methods_TASK.svg in
the page's directory.
"""

import math
import os
import re
import statistics
import sys
from collections.abc import Iterable

from nrt_jax.errors import UserError
from nrt_jax.files import write_text
from nrt_jax.reporting import charts

# heading, key in a point of the curve (the last point is shown), digits
COLUMNS = (
  ("accuracy", "accuracy", 3),
  ("log p(answer)", "logp", 3),
  ("of hard tokens", "hard_logp", 3),
  ("gain", "gain", 3),
  ("trace", "trace", 1),
  ("entropy", "entropy", 2),
)
PANELS = (("accuracy", "accuracy"), ("log p(answer)", "logp"), ("trace length", "trace"), ("entropy", "entropy"))
ROWS = (
  ("NRT, by aggregation", ("nrt",)),
  ("NRT, advantages not scaled by the group's deviation", ("unscaled",)),
  ("other likelihood methods on traces", ("relative",)),
  ("whole completions by likelihood; offline", ("completion", "offline")),
  ("with a verifier", ("verified",)),
  ("with a verifier, 16 updates of each rollout", ("reused",)),
)
CONTROL = "sft"  # drawn in every panel, grey and dashed
START = "start"  # the row of the common starting point


# ------------------------------------------------------------------------------------------------------------ figures


def mean_std(values: Iterable[float]) -> tuple[float, float]:
  """Mean and unbiased standard deviation; the deviation of a single value is NaN."""
  values = list(values)
  return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def by_method(lines: list[dict]) -> dict:
  """Groups lines by method, in order of first occurrence."""
  found = {}
  for line in lines:
    found.setdefault(line["method"], []).append(line)
  return found


def cell(values, digits: int) -> str:
  """`mean ± std`, or just the mean for a single value."""
  mean, std = mean_std(values)
  return f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}")


def table(lines: list[dict]) -> str:
  """A Markdown table of one task: the starting point, then one row per method at the last point of its curve."""
  columns = [column for column in COLUMNS if column[1] in lines[0]["curve"][0]]
  first, last = lines[0]["curve"][1]["step"], lines[0]["curve"][-1]["step"]
  heads = ["method", f"accuracy, step {first}", f"step {last}", "by seed", *(head for head, _, _ in columns[1:])]
  heads.append("generated tokens")
  rows = [row_of(START, list(starts(lines).values()), columns, "", "0")]
  for method, own in by_method(lines).items():
    generated, _ = mean_std(line["generated"] for line in own)
    early = cell([line["curve"][1]["accuracy"] for line in own], 3)
    rows.append(row_of(f"`{method}`", [line["curve"][-1] for line in own], columns, early, f"{generated:,.0f}"))
  return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows))


def row_of(name: str, points: list[dict], columns, early: str, generated: str) -> list[str]:
  accuracy, *cells = (cell([point[key] for point in points], digits) for _, key, digits in columns)
  by_seed = " / ".join(f"{point['accuracy']:.2f}" for point in points)
  return [name, early, accuracy, by_seed, *cells, generated]


def starts(lines: list[dict]) -> dict:
  """Maps each seed to the starting point of its runs."""
  return {line["seed"]: line["curve"][0] for line in lines}


def series(lines: list[dict], key: str) -> list[tuple]:
  """[(step, mean, std)] over a method's lines; std is 0 for a single seed."""
  points = {}
  for line in lines:
    for point in line["curve"]:
      points.setdefault(point["step"], []).append(point[key])
  found = ((step, *mean_std(values)) for step, values in sorted(points.items()))
  return [(step, mean, 0.0 if math.isnan(std) else std) for step, mean, std in found]


# ------------------------------------------------------------------------------------------------------------- curves


def panels(lines: list[dict], families: dict) -> list[tuple]:
  """A row for each family of methods, as `charts.figure` takes it: a panel per metric, the control in all of them."""
  methods, rows = by_method(lines), []
  control = {CONTROL: methods[CONTROL]} if CONTROL in methods else {}
  for label, names in ROWS:
    group = {name: methods[name] for name in methods if families[name] in names}
    if group:
      shown = {**group, **control}
      rows.append((label, {head: {name: series(own, key) for name, own in shown.items()} for head, key in PANELS}))
  return rows


# --------------------------------------------------------------------------------------------------------------- page


def fill(page: str, name: str, content: str) -> str:
  """Puts `content` between `<!-- name -->` and the next `<!-- end -->`. Raises UserError if there is no such place."""
  place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
  if not place.search(page):
    raise UserError(f"--page: found no place '<!-- {name} -->' ... '<!-- end -->' in the page")
  return place.sub(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", page, count=1)


def report(lines: list[dict], families: dict, page: str | None, directory: str) -> None:
  """Prints the tables of finished runs, inserts them into `page`, and saves the curves next to it or in `directory`."""
  for task in dict.fromkeys(line["task"] for line in lines):
    own = [line for line in lines if line["task"] == task]
    seconds = sum(line["seconds"] for line in own)
    print(f"\n### {task}: {len(own)} runs, {seconds / 60:.0f} min\n\n{table(own)}")
    where = os.path.dirname(page) if page else directory
    os.makedirs(where or ".", exist_ok=True)
    if charts.installed():
      title = f"{task}: mean and deviation over seeds, by training step"
      write_text(os.path.join(where, f"methods_{task}.svg"), charts.figure(title, panels(own, families), CONTROL))
    else:
      print('curves are left out: pip install "nrt_jax[report]", then --report_only', file=sys.stderr)
    if page:
      with open(page, encoding="utf-8") as file:
        filled = fill(file.read(), f"table {task}", table(own))
      write_text(page, filled)
  if not lines:
    print("no finished runs", file=sys.stderr)
