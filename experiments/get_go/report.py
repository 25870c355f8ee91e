"""The table of a study: an arm a row, with means and deviations over its seeds, at equal tokens and at equal FLOPs."""

import numpy as np


def at_budget(curve: list, key: str, budget: float) -> float:
  """Accuracy on the test set where the count `key` reaches `budget`, linear between points; nan where it does not.

  Points of a given start, which count nothing, are the curve's beginning.
  """
  counts, values = ([point[name] for point in curve if "test" in point] for name in (key, "test"))
  if counts[-1] < budget:
    return float("nan")
  return float(np.interp(budget, counts, values))


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
