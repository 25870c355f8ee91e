"""Tables and curves of RARO in miniature, from the lines of results.jsonl. Runs nothing."""

import methods_report as curves
import numpy as np

WRONG, RIGHT = "critic/tie_rate_policy_wrong", "critic/tie_rate_policy_right"
SHOWN = ("critic/accuracy_policy_wrong", WRONG, RIGHT, "critic/win_rate", "reward/mean", "completion/accuracy")
# head, key in a point of the curve; a critic's are shown of methods that have one
PANELS = (
  ("accuracy, sampled", "sampled"),
  ("accuracy, greedy", "greedy"),
  ("critic right, policy wrong", SHOWN[0]),
  ("ties, policy wrong", WRONG),
)


def report(lines: list[dict], methods) -> None:
  """Prints Markdown: accuracies at the start and the end of each seed, what the critic did, and each curve of RARO."""
  groups = {name: [line for line in lines if line["method"] == name] for name in methods}
  groups = {name: own for name, own in groups.items() if own}
  head = (
    "method",
    "seeds",
    "greedy, start",
    "end",
    "sampled, start",
    "end",
    "by seed",
    "gain ± std",
    "tokens sampled",
    "trained",
  )
  rows = [[name, str(len(own)), *accuracies(own), *tokens(own)] for name, own in groups.items()]
  print("\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)))
  judged = {name: own for name, own in groups.items() if SHOWN[0] in own[0]["curve"][-1]}
  head = ("method", "step", "greedy", "sampled", *SHOWN)
  rows = [row for name, own in judged.items() for row in course(name, own)]
  print("\n" + "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)))


def accuracies(own: list[dict]) -> list[str]:
  """Means over the seeds at the start and the end; the sampled accuracies of each seed; what it gained."""
  cells = []
  for how in ("greedy", "sampled"):
    cells += [f"{np.mean([line['curve'][place][how] for line in own]):.3f}" for place in (0, -1)]
  ends = [line["curve"][-1]["sampled"] for line in own]
  gains = np.array(ends) - [line["curve"][0]["sampled"] for line in own]
  spread = f" ± {gains.std(ddof=1):.3f}" if len(own) > 1 else ""
  return [*cells, " / ".join(f"{end:.2f}" for end in ends), f"{gains.mean():+.3f}{spread}"]


def tokens(own: list[dict]) -> list[str]:
  return [f"{np.mean([line[key] for line in own]) / 1000:,.0f}k" for key in ("sampled", "trained")]


def course(name: str, own: list[dict]) -> list[list[str]]:
  """Rows of a method with a critic, one for each point of its curve: means over the seeds."""
  rows = []
  for points in zip(*(line["curve"] for line in own), strict=True):
    keys = ("greedy", "sampled", *SHOWN)
    cells = [f"{np.mean([point[key] for point in points]):.3f}" if key in points[0] else "" for key in keys]
    rows.append([name, str(points[0]["step"]), *cells])
  return rows


def panels(lines: list[dict], rows) -> list[tuple]:
  """A row for each of `rows`, (label, methods), as `charts.figure` takes it: a panel for each metric that some have."""
  methods, found = curves.by_method(lines), []
  for label, names in rows:
    group = {name: methods[name] for name in names if name in methods}
    shown = {}
    for head, key in PANELS:
      own = {name: curves.series(having(lines, key), key) for name, lines in group.items()}
      own = {name: series for name, series in own.items() if series}
      shown |= {head: own} if own else {}
    if shown:
      found.append((label, shown))
  return found


def having(own: list[dict], key: str) -> list[dict]:
  """The lines with those points of their curves that have the key."""
  return [{"curve": [point for point in line["curve"] if key in point]} for line in own]
