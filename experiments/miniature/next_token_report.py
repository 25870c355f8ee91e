"""The tables of next_token.py: means and deviations over seeds."""

import statistics

from methods_report import cell

COLUMNS = (  # head, measure at the end of an arm, digits
  ("hard, bare: log p", "hard_bare_logp", 3),
  ("right", "hard_bare_right", 3),
  ("hard, thinking: log p", "hard_logp", 3),
  ("right", "hard_right", 3),
  ("easy, bare: log p", "easy_bare_logp", 3),
  ("thinking", "easy_logp", 3),
  ("noise, bare: log p", "noise_bare_logp", 3),
  ("thinking", "noise_logp", 3),
  ("tokens of a thought, hard", "hard_sampled_length", 1),
  ("easy", "easy_sampled_length", 1),
)


def markdown(rows: list) -> str:
  return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def by_arm(lines: list) -> dict:
  """The lines of each arm, in the order in which arms first appear."""
  return {arm: [line for line in lines if line["arm"] == arm] for arm in dict.fromkeys(line["arm"] for line in lines)}


def ends(lines: list) -> str:
  """What was measured at the end of each arm, and what it took."""
  rows = [["arm", "seeds", *(head for head, _, _ in COLUMNS), "of each seed", "sampled", "trained", "TFLOP", "CPU s"]]
  for arm, own in by_arm(lines).items():
    measured = [cell([line["end"][key] for line in own], digits) for _, key, digits in COLUMNS]
    each = ", ".join(f"{line['end']['hard_right']:.2f}" for line in own)
    last = [line["curve"][-1] for line in own]
    used = ("sampled", "trained", "flops")
    sampled, trained, flops = (statistics.fmean(point[key] for point in last) for key in used)
    seconds = statistics.fmean(line["cpu_seconds"] for line in own)
    took = [f"{sampled / 1e3:,.0f}k", f"{trained / 1e3:,.0f}k", f"{flops / 1e12:.3f}", f"{seconds:.0f}"]
    rows.append([f"`{arm}`", str(len(own)), *measured, each, *took])
  return markdown(rows)


def curves(lines: list) -> str:
  """The share of hard places that are right behind a greedy thought, along the last phase of each arm."""
  steps = [point["step"] for point in lines[0]["curve"] if point["phase"] == lines[0]["curve"][-1]["phase"]]
  rows = [["arm", "seeds", "before", *(f"{step} steps" for step in steps)]]
  for arm, own in by_arm(lines).items():
    shown = [[point["test"] for point in line["curve"] if "test" in point][-len(steps) - 1 :] for line in own]
    rows.append([f"`{arm}`", str(len(own)), *(cell(values, 3) for values in zip(*shown))])
  return markdown(rows)
