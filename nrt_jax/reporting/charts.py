"""Plots as Vega-Lite, and its library as one script for a page. The only module that knows what draws them."""

import functools
import re

from nrt_jax.errors import UserError

try:
  import vl_convert
except ImportError:
  vl_convert = None

VERSION = "6.4"  # of Vega-Lite
# Told apart with every common kind of colour blindness, on white and on black (Okabe and Ito); and by their dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
DASHES = ([1, 0], [6, 3], [2, 2], [10, 3, 2, 3], [1, 4])
# A label of an axis, in Vega's language: tiny numbers without their many zeros.
SHORT = "datum.value != 0 && abs(datum.value) < 0.001 ? format(datum.value, '.2~e') : datum.label"
FEW = 40  # points of a line that are drawn
LOOKS = ("color", "strokeDash")  # scales of a line's look


def installed() -> bool:
  return vl_convert is not None


def require(flag: str) -> None:
  """Raises UserError if the library is not installed."""
  if not installed():
    raise UserError(f'{flag}: needs the package vl-convert-python, allowed: pip install "nrt_jax[report]" first')


@functools.cache
def library() -> str:
  """JavaScript that defines `vegaEmbed`, with everything that it needs."""
  bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VERSION)
  return f"(() => {{\n{bundle}\n}})();"  # its own names stay inside


def look(number: int) -> tuple[str, list]:
  """The colour of a page's line, and its dashes, as lengths of line and gap."""
  return COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]


def lines(title: str, points: list[dict], labels: list[str]) -> dict:
  """The Vega-Lite plot of a metric. points: groups.curve's, and "g", the number of the line, whose name is labels[g].

  A line is a mean over seeds, the band behind it their range.
  """
  numbers = list(range(len(labels)))
  looks = [look(number) for number in numbers]
  few = len({point["s"] for point in points}) <= FEW
  # The name of a line is looked up, not repeated in each point.
  names = [{"g": number, "name": label} for number, label in enumerate(labels)]
  step = {"field": "s", "type": "quantitative", "title": "step", "axis": {"tickMinStep": 1, "tickCount": 6}}
  value = {"type": "quantitative", "title": None, "scale": {"zero": False}, "axis": {"labelExpr": SHORT}}
  said = [("name", "nominal", ""), ("s", "quantitative", "step"), ("m", "quantitative", title)]
  said += [("l", "quantitative", "lowest"), ("h", "quantitative", "highest"), ("n", "quantitative", "seeds")]
  over = {"field": "g", "type": "nominal", "legend": None}
  colour = {**over, "scale": {"domain": numbers, "range": [colour for colour, _ in looks]}}
  dash = {**over, "scale": {"domain": numbers, "range": [dashes for _, dashes in looks]}}
  return {
    "width": "container",
    "height": 170,
    "data": {"values": points},
    "transform": [{"lookup": "g", "from": {"data": {"values": names}, "key": "g", "fields": ["name"]}}],
    "encoding": {"x": step, "color": colour},
    "layer": [
      {"mark": {"type": "area", "opacity": 0.2}, "encoding": {"y": {**value, "field": "l"}, "y2": {"field": "h"}}},
      {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"y": {**value, "field": "m"}, "strokeDash": dash}},
      {
        "mark": {"type": "point", "filled": True, "size": 25, "opacity": 1 if few else 0},
        "encoding": {
          "y": {**value, "field": "m"},
          "tooltip": [
            {"field": field, "type": kind, "title": head, **({"format": ".4g"} if field in "mlh" else {})}
            for field, kind, head in said
          ],
        },
      },
    ],
  }


def figure(title: str, rows: list[tuple], control: str | None = None, along: str = "step") -> str:
  """An SVG, for pages that are no report: a row of panels for each of `rows`, with a legend of its own.

  rows: (label, {head of a panel: {name of a line: [(step, mean, deviation), ...]}}); the band is mean ± deviation, and
  each panel has its own scale. control: the line that is grey and dashed. along: what the lines are drawn over, "" if
  the heads say it.
  """
  spec = {
    "title": {"text": title, "anchor": "start", "fontSize": 14},
    "background": "white",
    "vconcat": [_row(label, panels, control, along) for label, panels in rows],
    "resolve": {"scale": dict.fromkeys(LOOKS, "independent")},
    "config": {
      "view": {"stroke": "#999"},
      "axis": {"grid": False},
      "legend": {"title": None, "symbolStrokeWidth": 2, "symbolSize": 250},
    },
  }
  drawn = vl_convert.vegalite_to_svg(spec, VERSION)
  drawn = re.sub(r' (?:aria-[\w-]+|role|class|pointer-events)="[^"]*"', "", drawn)  # three quarters of the file
  return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", drawn) + "\n"


def _row(label: str, panels: dict, control: str | None, along: str) -> dict:
  names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
  looks = [("#555555", [4, 3]) if name == control else look(number) for number, name in enumerate(names)]
  over = {"field": "name", "type": "nominal"}
  colour = {**over, "scale": {"domain": names, "range": [colour for colour, _ in looks]}}
  dash = {**over, "scale": {"domain": names, "range": [dashes for _, dashes in looks]}}
  shown = [_panel(head, curves, colour, dash, along) for head, curves in panels.items()]
  resolved = {"scale": {"x": "independent", "y": "independent", **dict.fromkeys(LOOKS, "shared")}}
  return {"title": {"text": label, "anchor": "start", "fontSize": 12}, "hconcat": shown, "resolve": resolved}


def _panel(head: str, curves: dict, colour: dict, dash: dict, along: str) -> dict:
  points = [
    {"name": name, "s": step, "m": mean, "l": mean - deviation, "h": mean + deviation}
    for name, curve in curves.items()
    for step, mean, deviation in curve
  ]
  value = {"type": "quantitative", "title": None, "scale": {"zero": False}, "axis": {"tickCount": 5}}
  step = {"field": "s", "type": "quantitative", "title": along or None, "axis": {"tickCount": 4}}
  band = {"y": {**value, "field": "l"}, "y2": {"field": "h"}}
  line = {"y": {**value, "field": "m"}, "strokeDash": dash}
  return {
    "title": {"text": head, "anchor": "start", "fontSize": 11, "fontWeight": "normal"},
    "width": 170,
    "height": 120,
    "data": {"values": points},
    "encoding": {"x": step, "color": {**colour, "legend": {"symbolType": "stroke", "symbolOpacity": 1}}},
    "layer": [
      {"mark": {"type": "area", "opacity": 0.15}, "encoding": band},
      {"mark": {"type": "line", "strokeWidth": 1.5}, "encoding": line},
    ],
  }
