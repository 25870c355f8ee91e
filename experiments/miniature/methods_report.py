"""Tables and curves of the miniature study, from results.jsonl. Runs nothing and needs no plotting library.

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
)
CONTROL = "sft"  # drawn in every panel, dashed
START = "start"  # the row of the common starting point
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")
WIDTH, HEIGHT, LEFT, TOP, LEGEND = 170, 110, 44, 30, 120  # pixels: panels, the space before them, the legend


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


def figure(title: str, lines: list[dict], families: dict) -> str:
  """An SVG with a row of panels per family of methods and a column per metric; the band is mean ± std."""
  methods = by_method(lines)
  rows = []
  for label, names in ROWS:
    group = {name: methods[name] for name in methods if families[name] in names}
    if group:
      rows.append((label, group))
  control = {CONTROL: methods[CONTROL]} if CONTROL in methods else {}
  width, height = LEFT + len(PANELS) * (WIDTH + LEFT) + LEGEND, TOP + len(rows) * (HEIGHT + 2 * TOP)
  parts = [text(LEFT, 16, title, 13)]
  for number, (label, group) in enumerate(rows):
    y = 2 * TOP + number * (HEIGHT + 2 * TOP)
    parts.append(text(LEFT, y - 18, label, 11))
    for column, (head, key) in enumerate(PANELS):
      curves = {name: series(own, key) for name, own in {**group, **control}.items()}
      parts += panel(LEFT + column * (WIDTH + LEFT), y, head, curves)
    parts += legend(LEFT + len(PANELS) * (WIDTH + LEFT), y, [*group, *control])
  size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
  head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">'
  return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])


def panel(x: float, y: float, head: str, curves: dict) -> list[str]:
  """A panel with its upper left corner at (x, y), scaled to its own curves, since their ranges differ widely."""
  everyone = [point for curve in curves.values() for point in curve]
  low, high = min(m - s for _, m, s in everyone), max(m + s for _, m, s in everyone)
  span, steps = high - low or 1.0, max(step for step, _, _ in everyone) or 1

  def place(step, value):
    return f"{x + WIDTH * step / steps:.1f},{y + HEIGHT * (high - value) / span:.1f}"

  parts = [f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>']
  parts += [text(x + 4, y - 4, head, 9), text(x - 4, y + 8, f"{high:.3g}", 8, "end")]
  parts += [
    text(x - 4, y + HEIGHT, f"{low:.3g}", 8, "end"),
    text(x + WIDTH, y + HEIGHT + 10, f"step {steps}", 8, "end"),
  ]
  for number, (name, curve) in enumerate(curves.items()):
    colour, dash = style(name, number)
    band = [place(t, m + s) for t, m, s in curve] + [place(t, m - s) for t, m, s in reversed(curve)]
    parts.append(f'<polygon points="{" ".join(band)}" fill="{colour}" opacity="0.12"/>')
    line = " ".join(place(t, m) for t, m, _ in curve)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
  return parts


def legend(x: float, y: float, names: list[str]) -> list[str]:
  parts = []
  for number, name in enumerate(names):
    colour, dash = style(name, number)
    at = y + 8 + 13 * number
    parts.append(f'<line x1="{x}" y1="{at}" x2="{x + 16}" y2="{at}" stroke="{colour}" stroke-width="2"{dash}/>')
    parts.append(text(x + 20, at + 3, name, 9))
  return parts


def style(name: str, number: int) -> tuple[str, str]:
  """A curve's color and dash pattern."""
  return ("#555555", ' stroke-dasharray="4 3"') if name == CONTROL else (COLOURS[number % len(COLOURS)], "")


def text(x: float, y: float, content: str, size: int, anchor: str = "start") -> str:
  return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}">{content}</text>'


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
    title = f"{task}: mean and deviation over seeds, by training step"
    write_text(os.path.join(where, f"methods_{task}.svg"), figure(title, own, families))
    if page:
      with open(page, encoding="utf-8") as file:
        filled = fill(file.read(), f"table {task}", table(own))
      write_text(page, filled)
  if not lines:
    print("no finished runs", file=sys.stderr)
