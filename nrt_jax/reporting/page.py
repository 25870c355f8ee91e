"""The HTML report: one file with curves, final values, configs and a sample browser. It loads nothing when opened.

What is computed, is computed here and in groups.py and samples.py; the page's script shows it.
"""

import pathlib

import jinja2
from markupsafe import Markup

import nrt_jax
from nrt_jax.reporting import charts, groups, runs, samples

TEMPLATES = pathlib.Path(__file__).with_name("templates")
METRICS = (  # patterns, in the page's order
  "reward/mean", "answer/logp_gain", "answer/logp", "answer/logp_empty_trace", "completion/accuracy", "eval/*",
  "trace/length_mean", "trace/marker_fraction", "policy/entropy", "policy/kl", "policy/kl_reference", "loss/total",
  "critic/accuracy", "optimizer/grad_norm", "throughput/generated_tokens_per_s", "throughput/trained_tokens_per_s",
)  # fmt: skip
MOST_SAMPLES = 10_000


def build(directories, patterns=None, last: int = 1, ignored=(), most_samples: int = MOST_SAMPLES) -> str:
  """The page of some workdirs. patterns: of the metrics that are shown, METRICS if None; last: see `runs.summarise`;
  ignored: see `groups.grouped`. Raises UserError for files that are no run's.
  """
  found = [groups.read(directory) for directory in directories]
  together = groups.grouped(found, ignored)
  known = dict.fromkeys(name for run in found for name in run.series)
  names = list(dict.fromkeys(name for pattern in patterns or METRICS for name in runs.matching(known, pattern)))
  looks = [charts.look(number) for number in range(len(together))]
  browser = browsed([run for group in together for run in group.runs], together, most_samples)
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  return environment.get_template("report.html").render(
    version=nrt_jax.__version__,
    groups=[{"label": group.label, "seeds": len(group.runs), "look": look} for group, look in zip(together, looks)],
    charts=plots(together, names),
    heads=names,
    finals=finals(together, names, last),
    last=last,
    configs=compared(together, ignored),
    browser=browser,
    style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
    script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
    library=Markup(charts.library()),
  )


def plots(together: list[groups.Group], names: list[str]) -> list[dict]:
  """A plot for each metric: its name and its specification, as JSON that may stand in a page."""
  steps = [step for group in together for run in group.runs for name in names for step, _ in run.series.get(name, ())]
  made = []
  for name in names:
    lines = [groups.curve(group, name, max(steps)) for group in together]
    points = [{"g": g, **_short(point)} for g, line in enumerate(lines) for point in line]
    spec = charts.lines(name, points, [group.label for group in together])
    made.append({"name": name, "spec": Markup(samples.encoded(spec))})
  return made


def _short(point: dict) -> dict:
  """A point with six significant digits: more cannot be seen, and the page has thousands."""
  return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in point.items()}


def finals(together: list[groups.Group], names: list[str], last: int) -> list[dict]:
  """The table of final values: a row for each group, with the rows of its runs below where it has several."""

  rows = []
  for group in together:
    values = [_range(groups.spread(group, name, last), len(group.runs)) for name in names]
    seeds = []
    for run in group.runs:
      own = [_number(groups.final(run, name, last)) for name in names]
      seeds.append({"name": run.directory, "seed": run.seed, "step": _last_step(run), "cells": own})
    rows.append({"label": group.label, "cells": values, "runs": seeds})
  return rows


def _range(spread, count: int) -> str:
  """`mean (lowest to highest)`, of a single run its value."""
  mean, low, high = map(_number, spread or (None,) * 3)
  return mean if count == 1 or spread is None else f"{mean} ({low} to {high})"


def _number(value: float | None) -> str:
  return groups.ABSENT if value is None else f"{value:.4g}"


def _last_step(run: groups.Run) -> int:
  return max((values[-1][0] for values in run.series.values()), default=0)


def compared(together: list[groups.Group], ignored) -> dict:
  """What differs between the configs: keys that all of them have, and keys that only some have."""
  firsts = [group.runs[0] for group in together]
  rows = {"shared": [], "other": []}
  for key in groups.differing(firsts, ignored):
    where = "shared" if all(key in run.config for run in firsts) else "other"
    rows[where].append({"key": key, "cells": [groups.shown(run.config, key) for run in firsts]})
  return rows


def browsed(found: list[groups.Run], together: list[groups.Group], most: int) -> dict | None:
  """What the sample browser is given: an index, and the samples as lines of JSON in its order. None without samples."""
  read = [(run, sorted(samples.read(run.directory), key=lambda line: line["step"])) for run in found]
  read = [(run, own) for run, own in read if own]
  if not read:
    return None
  kept, every = samples.thinned([own for _, own in read], most)
  label = {run.directory: group.label for group in together for run in group.runs}
  listed = [
    {"name": run.directory, "label": label[run.directory], "seed": run.seed, "steps": samples.index(own)}
    for (run, _), own in zip(read, kept)
  ]
  index = {"runs": listed, "nats": samples.NATS, "shares": samples.SHARES}
  lines = "\n".join(samples.encoded(samples.compact(line)) for own in kept for line in own)
  measured = any("trace_moved" in line for own in kept for line in own)
  return {
    "index": Markup(samples.encoded(index)),
    "lines": Markup(lines),
    "runs": listed,
    "nats": samples.NATS,
    "shares": samples.SHARES,
    "every": every,
    "count": sum(map(len, kept)),
    "measured": measured,
  }
