"""Tables as Markdown, LaTeX and CSV: awkward names survive, columns line up, and what is unknown says so."""

import csv
import io
import pathlib
import re

import pytest

from nrt_jax.errors import UserError
from nrt_jax.reporting import filling, rendering, tables
from nrt_jax.reporting.tables import Column, Row, Source, Table

AWKWARD = "50 % of a_b & c|d # ~x^2 {$y} \\z [e] <f>, \"g\" 'h'"
SOURCE = Source("arXiv 0000.00000", AWKWARD, "2")


def make(*rows: Row, notes=(AWKWARD,), **more) -> filling.Report:
  columns = (Column(AWKWARD, ("eval/a/accuracy",), scale=100.0, **more), Column("b"))
  table = Table("toy", AWKWARD, columns, rows or (Row(AWKWARD, "? -", absent=AWKWARD),), SOURCE, notes=notes)
  return filling.fill([table], pathlib.Path("papers.py"), [], None)


def valued(value: filling.Value, digits=1) -> str:
  cell = Table("toy", "t", (Column("a", digits=digits),), (Row("r", "1", absent="no"),), SOURCE).cells()[0][0]
  return rendering.ours_text(filling.Filled(cell, value, None), [])


def split_markdown(line: str) -> list[str]:
  """Cells of a row, with the escapes of Markdown taken back."""
  cells = re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]
  return [re.sub(r"\\([\\|*_`<])", r"\1", cell.strip()) for cell in cells]


def test_markdown_escapes_and_lines_up():
  lines = [line for line in rendering.render(make(), "markdown").splitlines() if line.startswith("| ")]
  assert len({len(line) for line in lines}) == 1
  rows = [split_markdown(line) for line in lines]
  assert {len(row) for row in rows} == {4} and rows[0][2] == rows[2][0] == AWKWARD
  assert rows[2][2:] == ["unknown", ""] and rows[3] == ["", "ours", "[a]", "[a]"]


def test_latex_has_no_bare_special_character():
  text = rendering.render(make(), "latex")
  assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
  assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{llrr}"))
  body = re.search(r"\\midrule\n(.*?)\\bottomrule", text, re.DOTALL).group(1)
  rows = body.strip().split("\n")
  assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [3, 3] and all(row.endswith(r" \\") for row in rows)
  plain = re.sub(r"^% .*$", "", text, flags=re.MULTILINE)
  for escape in (r"\\textbackslash\{\}", r"\\textascii\w+\{\}", r"\\[%&#_{}$]", r"\$(<|>|\||\\pm)\$", r"\{[\[\]]\}"):
    plain = re.sub(escape, "", plain)
  rows = re.sub(r"\\begin\{tabular\}\{ll(r+)\}|\\\w+(\{\w+(:\w+)?\}|\{\\linewidth\})?|\\\\|&", "", plain)
  assert not re.search(r"[%&#_$\\^~|\[\]<>]", rows)
  assert plain.count("{") == plain.count("}")
  assert "a\\_b \\& c$|$d \\# " in text and r"50 \% of" in text


def test_csv_gives_names_back_as_they_are():
  rows = list(csv.DictReader(io.StringIO(rendering.render(make(), "csv"))))
  assert [row["column"] for row in rows] == [AWKWARD, "b"] and rows[0]["row"] == rows[0]["missing"] == AWKWARD
  assert {row["paper"] for row in rows} == {""} and set(rows[0]) == set(rendering.HEADER)


def test_numbers_keep_the_paper_s_digits_and_name_their_source():
  report = make(Row("a", "41.60 ~7", absent="x"), Row("b", "? 65|71", absent="x", source=Source("arXiv 1", "notes")))
  rows = list(csv.DictReader(io.StringIO(rendering.render(report, "csv"))))
  assert [row["paper"] for row in rows] == ["41.60", "~7", "", "65|71"]
  assert [row["source"] for row in rows] == ["arXiv 0000.00000", "arXiv 0000.00000", "", "arXiv 1"]
  text = rendering.render(report, "markdown")
  assert "Paper's numbers: arXiv 0000.00000, table: 2; read in" in text
  assert "Of b: arXiv 1, table: number unknown; read in notes." in text


def test_a_table_without_any_number_says_so():
  assert "No number of the paper is known" in rendering.render(make(), "markdown")


@pytest.mark.parametrize(
  "value, text",
  [
    (filling.Value(52.46, 1.04, 3, None, ()), "52.5 ± 1.0 (3)"),
    (filling.Value(52.46, None, 1, (50.0, 55.06), ()), "52.5 [50.0, 55.1]"),
    (filling.Value(52.46, None, 1, None, ()), "52.5 (1)"),
  ],
)
def test_ours_has_its_spread(value, text):
  assert valued(value) == text


def test_many_reasons_have_letters():
  assert [rendering.letter(i) for i in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]


@pytest.mark.parametrize(
  "rows, said",
  [
    ([Row("a", "1 2 3", absent="x")], "row a: paper: found 3 numbers, allowed: 2"),
    ([Row("a", "1 2")], "row a: allowed: either a config, or in `absent` why there is none"),
    ([Row("a", "1 2", "config.py", absent="x")], "row a: allowed: either a config"),
    ([Row("a", "1 2", absent="x")] * 2, "rows: found ['a'], allowed: one or more, each once"),
  ],
)
def test_tables_that_are_no_tables(rows, said):
  with pytest.raises(UserError, match=re.escape(said)):
    make(*rows)


def test_tables_of_a_file_have_names_of_their_own():
  table = make().tables[0].table
  assert tables.require([table], "f") == [table]
  for found in (None, [], [1], [table, table]):
    with pytest.raises(UserError, match="get_tables"):
      tables.require(found, "f")
