"""The plots' specifications: valid for the library that draws them, and told apart without colour."""

import xml.etree.ElementTree as xml

import pytest

from nrt_jax import errors
from nrt_jax.reporting import charts

POINTS = [{"g": g, "s": s, "m": s + g, "l": s + g - 0.5, "h": s + g + 0.5, "n": 2} for g in (0, 1) for s in (1, 2, 3)]


def test_a_plot_is_drawn_with_a_band_and_a_line_for_each_label():
  vl_convert = pytest.importorskip("vl_convert", reason='pip install "nrt_jax[report]"')
  spec = charts.lines("reward/mean", POINTS, ["one", "two"]) | {"width": 300}
  drawn = vl_convert.vegalite_to_svg(spec, charts.VERSION)
  paths = [node.attrib for node in xml.fromstring(drawn).iter() if node.tag.endswith("path")]
  for number in (0, 1):
    colour, dashes = charts.look(number)
    assert any(path.get("fill", "").lower() == colour.lower() and path.get("opacity") == "0.2" for path in paths)
    (line,) = [p for p in paths if p.get("stroke", "").lower() == colour.lower() and p.get("stroke-width") == "2"]
    assert line["stroke-dasharray"] == ",".join(map(str, dashes))


def test_a_figure_has_a_panel_for_each_metric_and_a_line_for_each_name():
  pytest.importorskip("vl_convert", reason='pip install "nrt_jax[report]"')
  curve = [(0, 1.0, 0.5), (10, 3.0, 0.25)]
  rows = [("first", {"accuracy": {"a": curve, "sft": curve}, "gain": {"a": curve}})]
  rows.append(("second", {"accuracy": {"b": curve, "c": curve}}))
  root = xml.fromstring(charts.figure("title", rows, "sft"))
  text = [node.text for node in root.iter()]
  assert text.count("accuracy") == 2 and text.count("step") == 3
  assert {"title", "first", "second", "gain", "a", "b", "c", "sft"} <= set(text)
  bare = xml.fromstring(charts.figure("title", rows[1:], along=""))
  assert "step" not in [node.text for node in bare.iter()]
  one, two, control = charts.look(0)[0], charts.look(1)[0], "#555555"  # each row begins with the first colour
  lines = [node.get("stroke") for node in root.iter() if node.get("stroke-width") == "1.5"]
  bands = [node.get("fill") for node in root.iter() if node.get("opacity") == "0.15"]
  assert sorted(lines) == sorted(bands) == sorted([one, control, one, one, two])


def test_lines_differ_in_colour_and_dash():
  looks = [charts.look(number) for number in range(len(charts.COLOURS) * len(charts.DASHES))]
  assert len({(colour, tuple(dashes)) for colour, dashes in looks}) == len(looks)
  assert all(one[1] != other[1] for one, other in zip(looks, looks[1:]))


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(charts, "vl_convert", None)
  with pytest.raises(errors.UserError, match=r'^--html: needs .*, allowed: pip install "nrt_jax\[report\]" first$'):
    charts.require("--html")
