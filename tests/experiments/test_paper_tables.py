"""experiments/tables: every config loads with its overrides, every number has a source, and sums are right.

Numbers are not copied here. Those that depend on one another, averages above all, must agree as they do in the papers.
"""

import csv
import io
import re
import shlex

import pytest
from paths import EXPERIMENTS

from nrt_jax import config
from nrt_jax.commands import configs, flags
from nrt_jax.reporting import filling, rendering, tables

NAMES = ("nrt", "raro", "nft", "get_go", "likelihood")


def load(path, overrides):
  return config.stages_of(configs.load_config(path, overrides))


@pytest.fixture(scope="module")
def reports():
  """Name -> the report without any run; filling it loads the config of every cell."""
  found = {}
  for name in NAMES:
    file = EXPERIMENTS / "tables" / f"{name}.py"
    found[name] = filling.fill(tables.require(configs.call(file, "get_tables", "--table"), name), file, [], load)
  return found


def numbers(report, table: str, row: str) -> list:
  """A row's numbers; None where there is none."""
  (found,) = [one.table for one in report.tables if one.table.name == table]
  (text,) = [one.paper for one in found.rows if one.name == row]
  return [float(part) if re.fullmatch(r"-?[\d.]+", part) else None for part in text.split()]


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source_and_every_cell_a_config_or_a_reason(reports, name):
  for filled in reports[name].tables:
    assert filled.table.source.paper.startswith("arXiv ") and filled.table.source.read_in
    for one in (one for cells in filled.rows for one in cells):
      paper = one.cell.paper
      assert paper.text is None or re.fullmatch(r"-|[~+-]?\d+(\.\d+)?([|-]\d+)?", paper.text), paper
      assert not paper.known or (
        paper.source.paper.startswith("arXiv ") and paper.source.read_in and paper.source.table
      )
      assert one.value is None and (one.number is not None or one.cell.absent)
      assert one.cell.row.config is None or one.cell.model, f"{one.cell.row.name}: of which model?"


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_read_by_our_own_flags(reports, name):
  commands = [line for entry in reports[name].commands for line in entry.lines]
  assert len(commands) == len(set(commands)) > 5
  measured = [line.split(" --output ")[0] for line in commands if " evaluate " in line]
  assert len(measured) == len(set(measured)), "columns of one evaluation share it"
  read = set()
  for line in commands:
    program, *argv = shlex.split(line)
    args = flags.parse(argv)
    assert program == "nrt-jax" and args.command in ("train", "evaluate", "harness")
    if args.command == "harness":
      continue
    named = tuple(one for one in args.overrides if one.startswith("--config.evaluation"))
    if (args.config, named) not in read:  # training's are read by the fixture
      read.add((args.config, named))
      load(args.config, args.overrides)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_unknown_says_so(reports, name):
  unknown = sum(one.cell.paper.text is None for filled in reports[name].tables for row in filled.rows for one in row)
  page = rendering.render(reports[name], "markdown")
  assert len(re.findall(r"(?<=[|&]) *unknown(?= )", page)) == unknown
  lines = list(csv.DictReader(io.StringIO(rendering.render(reports[name], "csv"))))
  assert all(line["source"] and line["read_in"] for line in lines if line["paper"])
  assert not any(line["source"] for line in lines if not line["paper"])
  assert rendering.render(reports[name], "latex").count(r"\begin{tabular}") == len(reports[name].tables)


def test_averages_are_those_of_their_rows(reports):
  """An independent check of what was copied: NFT's averages are means of its six, or four, sets."""
  checked = 0
  for table, exceptions in {"nft_7b": (), "nft_32b": (), "nft_released": ("Qwen-Math-7B",)}.items():
    (found,) = [one.table for one in reports["nft"].tables if one.table.name == table]
    for row in found.rows:
      *parts, average = numbers(reports["nft"], table, row.name)
      assert (abs(sum(parts) / len(parts) - average) < 0.1) == (row.name not in exceptions), row.name
      checked += 1
  assert checked == 18


def test_tables_that_show_the_same_number_agree(reports):
  nrt, raro = reports["nrt"], reports["raro"]
  for row, aggregation in (("NRT-GM", "GM"), ("NRT-WS(-log p)", "WS(-log p)")):
    assert numbers(nrt, "nrt_main", row)[-1] == numbers(nrt, "nrt_aggregations", aggregation)[0]
  assert numbers(raro, "raro_countdown", "RARO")[0] == numbers(raro, "raro_budgets", "RARO")[1]
  best = numbers(raro, "raro_deepmath", "best of these baselines")[2]
  assert numbers(raro, "raro_deepmath", "RARO")[2] - best == pytest.approx(8.2)
  one, other = (
    numbers(reports["nft"], table, row) for table, row in (("nft_7b", "NFT"), ("nft_released", "NFT-7B-Zero"))
  )
  assert [one[0], one[5], one[4], one[1]] == other[:4]


def test_nrt_s_average_leaves_room_for_the_columns_that_are_not_known(reports):
  """9 x the average less the seven known columns is what PopQA and TruthfulQA make together, at most 200."""
  for row in ("SFT", "RLPR*", "VeriFree*", "NRT-GM", "NRT-WS(-log p)"):
    *nine, average = numbers(reports["nrt"], "nrt_main", row)
    assert nine[3:5] == [None, None] and 80 < 9 * average - sum(filter(None, nine)) < 110


def test_the_anchor_is_there(reports):
  """CoVRL's comparison: VeriFree, JLB, LaTRO and RLPR from one model, differing in the method alone."""
  (table,) = [one.table for one in reports["likelihood"].tables if one.table.name == "covrl"]
  rows = {row.name: row for row in table.rows}
  assert table.model == "Qwen2.5-7B" and "2512.12576" in table.source.paper
  runs = [load(str(EXPERIMENTS / "tables" / rows[n].config), [f"--config.{o}" for o in rows[n].overrides])[0]
          for n in ("VeriFree", "JLB", "LaTRO", "RLPR")]  # fmt: skip
  assert [run.algorithm_name for run in runs] == ["verifree", "jepo", "latro", "rlpr"]
  for run in runs:
    assert (run.prompts_per_step, run.samples_per_prompt, run.sampling.max_trace_length) == (192, 8, 2048)
    assert (run.optimizer.learning_rate, run.optimizer.schedule, run.optimizer.warmup_steps) == (1e-6, "cosine", 64)
    assert run.optimizer == runs[0].optimizer and run.data == runs[0].data and run.prompt == runs[0].prompt
    assert all(numbers(reports["likelihood"], "covrl", "RLPR")) and all(numbers(reports["likelihood"], "covrl", "JLB"))
