"""The table of a study: an arm a row, with means and deviations over its seeds, at equal tokens and at equal FLOPs.

And its curves, over both. They need the extra `[report]`.
"""

import numpy as np

from nrt_jax.files import write_text
from nrt_jax.reporting import charts

AXES = {"over thousands of sampled tokens": ("sampled", 1e3), "over GFLOP": ("flops", 1e9)}
GRID = 25  # points of a drawn curve


def at_budget(curve: list, key: str, budget: float) -> float:
  """Accuracy on the test set where the count `key` reaches `budget`, linear between points; nan where it does not.

  Points of a given start, which count nothing, are the curve's beginning.
  """
  counts, values = ([point[name] for point in curve if "test" in point] for name in (key, "test"))
  if counts[-1] < budget:
    return float("nan")
  return float(np.interp(budget, counts, values))


def band(lines: list, key: str, unit: float) -> list:
  """[(count / unit, mean, deviation)] of the test accuracy over seeds, where all of them have been; [] if nowhere."""
  curves = [[point for point in line["curve"] if "test" in point] for line in lines]
  # Phases that do not count have many points at one count: the last of them is where the next phase begins.
  curves = [list({point[key]: point for point in curve}.values()) for curve in curves]
  low, high = max(curve[0][key] for curve in curves), min(curve[-1][key] for curve in curves)
  if low >= high:
    return []
  found = []
  for count in np.linspace(low, high, GRID):
    values = [at_budget(curve, key, count) for curve in curves]
    found.append((count / unit, float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0))
  return found


def draw(path: str, title: str, rows: list) -> None:
  """Saves curves as SVG. rows: (label, {name of a curve: its lines, a seed each}); two panels a row, see AXES."""
  drawn = []
  for label, curves in rows:
    panels = {}
    for head, (key, unit) in AXES.items():
      bands = {name: band(lines, key, unit) for name, lines in curves.items()}
      bands = {name: points for name, points in bands.items() if points}
      panels |= {head: bands} if bands else {}
    drawn += [(label, panels)] if panels else []
  write_text(path, charts.figure(title, drawn, along=""))


def budgets(lines: list) -> dict:
  """The largest numbers of FLOPs, and of sampled tokens, that all arms that sample have used: {count: number}."""
  ends = [line["curve"][-1] for line in lines]
  sampling = [end for end in ends if end["sampled"]] or ends
  return {key: min(end[key] for end in sampling) for key in ("sampled", "flops")}


def mean_std(values) -> str:
  """Mean and unbiased deviation."""
  found = [value for value in values if not np.isnan(value)]
  if not found:
    return ""
  spread = f" ± {np.std(found, ddof=1):.3f}" if len(found) > 1 else ""
  return f"{np.mean(found):.3f}{spread}"


def table(lines: list) -> str:
  """A Markdown table, an arm a row: means and deviations over seeds."""
  limits, extra = budgets(lines), [key for key in lines[0]["end"] if f"{key}_trace" in lines[0]["end"]]
  first = [f"{key}, greedy" for key in extra]
  equal = [f"test at {limits['sampled'] / 1e3:,.0f}k sampled", f"test at {limits['flops'] / 1e12:.2f} TFLOP"]
  probes = [*(key for key in lines[0]["end"] if key.startswith("pass_")), "entropy", "kl_start", "test_trace"]
  known = {*probes, *extra, *(f"{key}_trace" for key in extra)}
  probes += [key for key in lines[0]["end"] if key not in known]
  head = ["arm", "seeds", *first, *equal, *probes, "sampled", "TFLOP", "CPU s"]
  rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  for arm in dict.fromkeys(line["arm"] for line in lines):
    own = [line for line in lines if line["arm"] == arm]
    cells = [arm, str(len(own)), *(mean_std([line["end"][key] for line in own]) for key in extra)]
    for key in ("sampled", "flops"):
      samples = own[0]["curve"][-1]["sampled"] > 0
      cells.append(mean_std([at_budget(line["curve"], key, limits[key]) for line in own]) if samples else "")
    cells += [mean_std([line["end"][key] for line in own]) for key in probes]
    last = [line["curve"][-1] for line in own]
    cells.append(f"{np.mean([end['sampled'] for end in last]) / 1e3:,.0f}k")
    cells.append(f"{np.mean([end['flops'] for end in last]) / 1e12:.2f}")
    cells.append(f"{np.mean([line['cpu_seconds'] for line in own]):.0f}")
    rows.append("| " + " | ".join(cells) + " |")
  return "\n".join(rows)
