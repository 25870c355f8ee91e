"""Filled tables as Markdown, LaTeX and CSV. Pure text: nothing is read or run here."""

import csv
import io
import string

from nrt_jax.reporting.filling import Filled, FilledTable, Report
from nrt_jax.reporting.tables import NONE, Cell

FORMATS = ("markdown", "latex", "csv")
LEGEND = (
  "Of each method, first the paper's number, then ours: the mean over seeds ± their standard deviation (how many), "
  "or of one seed the value [its 95 % interval, where there is one]. [1]: missing, and made by the commands of that "
  "number. [a]: no command makes it, or not all of it; the note of that letter says why."
)
HEADER = (
  "table", "row", "column", "paper", "source", "source_table", "read_in", "ours", "deviation", "seeds", "low", "high",
  "runs", "missing", "commands",
)  # fmt: skip
MARKDOWN = {c: f"\\{c}" for c in "\\|*_`<"}
LATEX = {
  "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
  "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", "±": r"$\pm$",
  "[": "{[}", "]": "{]}",  # behind the end of a row, a bracket would be that command's argument
}  # fmt: skip


def render(report: Report, form: str) -> str:
  """The text of a report in one of FORMATS, without a line end."""
  return {"markdown": markdown, "latex": latex, "csv": as_csv}[form](report)


def escaped(text: str, characters: dict) -> str:
  return "".join(characters.get(c, c) for c in text)


# ---- What both kinds of page show ----------------------------------------------------------------------------------


def paper_text(cell: Cell) -> str:
  """The paper's number; "unknown" where nobody told us, nothing where it has none."""
  text = cell.paper.text
  return "unknown" if text is None else "" if text == NONE else text


def ours_text(one: Filled, reasons: list) -> str:
  """Our number with its spread, or the mark of what would make it. Collects reasons, which are marked by letters."""
  value, digits = one.value, one.cell.column.digits
  if value is None:
    marks = [] if one.number is None else [str(one.number)]
    if one.cell.absent:
      if one.cell.absent not in reasons:
        reasons.append(one.cell.absent)
      marks.append(letter(reasons.index(one.cell.absent)))
    return f"[{', '.join(marks)}]"
  if value.deviation is not None:
    return f"{value.mean:.{digits}f} ± {value.deviation:.{digits}f} ({value.seeds})"
  if value.interval is not None:
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(value.mean, *value.interval, d=digits)
  return f"{value.mean:.{digits}f} (1)"


def letter(index: int) -> str:
  """a to z, then aa, ab, ..."""
  more, own = divmod(index, 26)
  return (letter(more - 1) if more else "") + string.ascii_lowercase[own]


def grid(filled: FilledTable, escape) -> tuple[list, list]:
  """(rows of escaped texts, the head first; reasons): two rows of a method, the paper's and ours."""
  reasons, rows = [], [["method", "of", *(escape(column.name) for column in filled.table.columns)]]
  for cells in filled.rows:
    ours = [ours_text(one, reasons) for one in cells]
    rows.append([escape(cells[0].cell.row.name), "paper", *(escape(paper_text(one.cell)) for one in cells)])
    rows.append(["", "ours", *(escape(text) for text in ours)])
  return rows, reasons


def sources(filled: FilledTable) -> list[str]:
  """Where the table's numbers come from, and which rows have them from elsewhere."""
  table, lines = filled.table, []
  others = {}
  for row in table.rows:
    if row.source is not None and row.source != table.source:
      others.setdefault(str(row.source), []).append(row.name)
  known = any(one.cell.paper.known and not one.cell.row.source for cells in filled.rows for one in cells)
  lines += [f"Paper's numbers: {table.source}."] if known else []
  lines += [f"Of {', '.join(names)}: {source}." for source, names in others.items()]
  return lines or [f"No number of the paper is known: {table.source}."]


def footnotes(filled: FilledTable, reasons: list) -> list[str]:
  marked = [f"[{letter(i)}] {reason}" for i, reason in enumerate(reasons)]
  return [*sources(filled), *filled.table.notes, *marked]


# ---- The formats ---------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
  def escape(text):
    return escaped(text, MARKDOWN)

  blocks = [LEGEND]
  for filled in report.tables:
    rows, reasons = grid(filled, escape)
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, [":" + "-" * (width - 1) if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)])
    pad = [str.ljust, str.ljust] + [str.rjust] * (len(widths) - 2)
    lines = ["| " + " | ".join(fit(text, width) for fit, text, width in zip(pad, row, widths)) + " |" for row in rows]
    blocks += [f"## {escape(filled.table.title)}", "\n".join(lines)]
    blocks.append("\n".join(f"- {escape(text)}" for text in footnotes(filled, reasons)))
  if report.commands:
    listed = [f"# [{one.number}] {one.title}\n" + "\n".join(one.lines) for one in report.commands]
    blocks += ["## Commands of what is missing", places(report), "```bash\n" + "\n\n".join(listed) + "\n```"]
  if report.notes:
    blocks += ["## Runs", "\n".join(f"- {escape(note)}" for note in report.notes)]
  return "\n\n".join(blocks)


def places(report: Report) -> str:
  """What capital names in the commands stand for."""
  text = "\n".join(line for one in report.commands for line in one.lines)
  data = ", `DATA` that of data sets (docs/evaluation.md)" if "DATA" in text else ""
  return f"`MODELS` is your directory of models{data}. More seeds: another `--config.seed` and `--workdir`."


def latex(report: Report) -> str:
  """Tables for the package booktabs. Commands and notes on runs are comments."""

  def escape(text):
    return escaped(text, LATEX)

  blocks = ["% needs \\usepackage{booktabs}", comment(LEGEND)]
  for filled in report.tables:
    rows, reasons = grid(filled, escape)
    head, *body = [" & ".join(row) + r" \\" for row in rows]
    body = [line if i % 2 or not i else r"\addlinespace" + "\n" + line for i, line in enumerate(body)]
    small = "\n\n".join(escape(text) for text in footnotes(filled, reasons))
    blocks.append(
      "\n".join(
        [
          r"\begin{table}", r"\centering", rf"\caption{{{escape(filled.table.title)}}}",
          rf"\label{{tab:{filled.table.name}}}", rf"\begin{{tabular}}{{ll{'r' * len(filled.table.columns)}}}",
          r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", "",
          r"\begin{minipage}{\linewidth}\footnotesize", small, r"\end{minipage}", r"\end{table}",
        ]
      )
    )  # fmt: skip
  for one in report.commands:
    blocks.append(comment("\n".join([f"[{one.number}] {one.title}", *one.lines])))
  blocks += [comment("\n".join(report.notes))] if report.notes else []
  return "\n\n".join(blocks)


def comment(text: str) -> str:
  return "\n".join(f"% {line}" for line in text.split("\n"))


def as_csv(report: Report) -> str:
  """A line for each cell. Empty fields: unknown, or not there."""
  commands = {one.number: one.lines for one in report.commands}
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(HEADER)
  for filled in report.tables:
    for one in (one for cells in filled.rows for one in cells):
      cell, value, paper = one.cell, one.value, one.cell.paper
      where = [paper.source.paper, paper.source.table, paper.source.read_in] if paper.known else [""] * 3
      ours = [""] * 6
      if value is not None:
        low, high = value.interval or ("", "")
        ours = [value.mean, "" if value.deviation is None else value.deviation, value.seeds, low, high]
        ours.append(";".join(value.places))
      lacks = "" if value is not None else cell.absent or "the commands have not been run"
      made = "\n".join(commands.get(one.number, ()))
      names = [filled.table.name, cell.row.name, cell.column.name]
      writer.writerow([*names, paper.text if paper.known else "", *where, *ours, lacks, made])
  return out.getvalue().removesuffix("\n")
