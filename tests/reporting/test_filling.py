"""Runs in tables: which cell they fill, with what, and what is said of those that fill none."""

import csv
import io
import json
import shlex
import statistics

import pytest

from nrt_jax import __main__
from nrt_jax.commands import flags
from nrt_jax.commands.configs import load_config
from nrt_jax.files import write_json
from nrt_jax.records.metrics import LoggingConfig, MetricsWriter
from nrt_jax.reporting import filling, results

CONFIG = """\
from nrt_jax.commands.configs import base_config

def get_config():
  config = base_config("nrt")
  config.total_steps = 4
  config.data.source = "rows.jsonl"
  return config
"""
TABLES = """\
from nrt_jax.reporting.tables import Column, Row, Source, Table, percent

def get_tables():
  gsm8k = percent("GSM8K", "eval/gsm8k/accuracy", evaluate=("--config.evaluation.name=gsm8k",))
  bbh = percent("BBH", "eval/bbh/accuracy", absent="nobody grades it")
  table = Table(
    "toy",
    "A title",
    (gsm8k, bbh, Column("mean", mean_of=(gsm8k, bbh), absent="BBH is lacking")),
    (
      Row("base", "10.0 - -", "config.py", untrained=True),
      Row("NRT", "50.5 ? 40", "config.py"),
      Row("NRT, AM", "? ? ?", "config.py", ("algorithm.reward=arithmetic_mean",)),
      Row("SFT", "40.0 30.0 35.0", "config.py", ("algorithm.name=sft",)),
      Row("closed", "99 ? ?", absent="a closed model"),
    ),
    Source("arXiv 0000.00000", "full text", "2"),
    "Tiny-1B",
  )
  return [table]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "config.py").write_text(CONFIG)
  (tmp_path / "papers.py").write_text(TABLES)
  return tmp_path


def make_run(name: str, *overrides: str, seed=0, model="models/Tiny-1B", steps=4, **metrics) -> str:
  """A workdir as a run leaves it."""
  over = [f"--config.{one}" for one in (*overrides, f"seed={seed}", f"model.path={model}")]
  writer = MetricsWriter(name, LoggingConfig(tensorboard=False, progress=False), 4)
  writer.write(0, {f"eval/{key}/accuracy": 0.0 for key in metrics})
  writer.write(steps, {"loss/total": 1.0, **{f"eval/{key}/accuracy": value for key, value in metrics.items()}})
  writer.close()
  write_json(f"{name}/config.json", load_config("config.py", over))
  return name


def report(capsys, *arguments: str) -> dict:
  """(row, column) -> line of the CSV; what was said of runs under "notes"."""
  capsys.readouterr()
  assert __main__.main(["report", "--table", "papers.py", "--format", "csv", *arguments]) == 0
  out, err = capsys.readouterr()
  lines = {(line["row"], line["column"]): line for line in csv.DictReader(io.StringIO(out))}
  assert len(lines) == 15
  return {**lines, "notes": err}


def filled(found: dict) -> set:
  return {key for key, line in found.items() if key != "notes" and line["ours"]}


def test_a_run_fills_its_cell_and_no_other(place, capsys):
  make_run("runs/nrt", gsm8k=0.525)
  found = report(capsys, "runs/nrt")
  assert filled(found) == {("NRT", "GSM8K")}
  line = found["NRT", "GSM8K"]
  assert float(line["ours"]) == pytest.approx(52.5) and line["seeds"] == "1" and line["runs"] == "runs/nrt"
  assert line["paper"] == "50.5" and line["source"] == "arXiv 0000.00000" and line["source_table"] == "2"
  assert "GSM8K of runs/nrt is of the last evaluation during its training" in found["notes"]
  assert found["NRT", "BBH"]["paper"] == "" and found["NRT", "BBH"]["missing"] == "nobody grades it"


def test_seeds_are_a_mean_and_a_deviation(place, capsys):
  make_run("runs/0", "algorithm.name=sft", seed=0, gsm8k=0.4, bbh=0.2)
  make_run("runs/1", "algorithm.name=sft", seed=1, gsm8k=0.5, bbh=0.4)
  found = report(capsys, "runs")  # whatever is below it
  assert filled(found) == {("SFT", "GSM8K"), ("SFT", "BBH"), ("SFT", "mean")}
  for column, values in {"GSM8K": (40, 50), "BBH": (20, 40), "mean": (30, 45)}.items():
    line = found["SFT", column]
    assert float(line["ours"]) == pytest.approx(sum(values) / 2) and line["seeds"] == "2"
    assert float(line["deviation"]) == pytest.approx(statistics.stdev(values)) and line["low"] == ""
  capsys.readouterr()
  assert __main__.main(["report", "--table", "papers.py", "runs"]) == 0
  assert "45.0 ± 7.1 (2)" in capsys.readouterr().out


def test_the_same_seed_counts_once(place, capsys):
  make_run("runs/a", gsm8k=0.4)
  make_run("runs/b", gsm8k=0.6)
  found = report(capsys, "runs/a", "runs/b", "runs/a/../a")
  assert found["NRT", "GSM8K"]["seeds"] == "1" and float(found["NRT", "GSM8K"]["ours"]) == pytest.approx(40)
  assert "runs/b is left out of NRT: runs/a has the same seed, 0" in found["notes"]


def test_an_evaluation_of_built_in_sets_counts_for_its_run(place, capsys):
  make_run("runs/nrt", gsm8k=0.4)
  parts = {name: {"metrics": {f"eval/{name}/accuracy": value}} for name, value in (("gsm8k", 0.75), ("bbh", 0.5))}
  parts["gsm8k"]["intervals"] = {"eval/gsm8k/accuracy": [0.7, 0.8]}
  write_json("runs/nrt/sets.json", {"checkpoint": "runs/nrt", "step": 4, "samples": 1, "sets": parts})
  found = report(capsys, "runs")
  assert filled(found) == {("NRT", "GSM8K"), ("NRT", "BBH"), ("NRT", "mean")}
  assert [float(found["NRT", "GSM8K"][key]) for key in ("ours", "low", "high")] == pytest.approx([75, 70, 80])
  assert float(found["NRT", "BBH"]["ours"]) == pytest.approx(50) and found["NRT", "BBH"]["low"] == ""


def test_an_evaluation_counts_for_its_run(place, capsys):
  make_run("runs/nrt", gsm8k=0.4)
  values = {"checkpoint": "runs/nrt", "step": 4, "metrics": {"eval/gsm8k/accuracy": 0.75}}
  (place / "elsewhere").mkdir()
  write_json("elsewhere/gsm8k.json", {**values, "intervals": {"eval/gsm8k/accuracy": [0.7, 0.8]}})
  found = report(capsys, "elsewhere")
  line = found["NRT", "GSM8K"]
  assert [float(line[key]) for key in ("ours", "low", "high")] == pytest.approx([75, 70, 80])
  assert "GSM8K of" not in found["notes"]
  write_json("elsewhere/gsm8k.json", {**values, "step": 2})
  assert "elsewhere/gsm8k.json is of step 2; its run has come to 4" in report(capsys, "elsewhere")["notes"]
  write_json("elsewhere/gsm8k.json", {**values, "checkpoint": "runs/gone"})
  found = report(capsys, "runs", "elsewhere")
  assert "elsewhere/gsm8k.json is left out: its checkpoint runs/gone is in no workdir" in found["notes"]


def test_built_in_sets_are_asked_together_and_read(place, capsys):
  several = 'set="gsm8k", evaluate=("--config.evaluation.samples=2",)'
  text = TABLES.replace('evaluate=("--config.evaluation.name=gsm8k",)', several)
  (place / "papers.py").write_text(text.replace('absent="nobody grades it"', several.replace("gsm8k", "bbh")))
  train, evaluate = report(capsys)["NRT", "BBH"]["commands"].splitlines()
  args = flags.parse(shlex.split(evaluate)[1:])
  assert (args.sets, args.sets_directory) == (["gsm8k", "bbh"], "DATA")
  assert load_config(args.config, args.overrides)["evaluation"]["samples"] == 2
  make_run(flags.parse(shlex.split(train)[1:]).workdir, model="MODELS/Tiny-1B")
  sets = {name: {"metrics": {f"eval/{name}/accuracy": 0.5}, "intervals": {}} for name in args.sets}
  (place / args.output).parent.mkdir()
  write_json(args.output, {"checkpoint": args.checkpoint, "step": 4, "samples": 2, "sets": sets})
  assert filled(report(capsys, "runs")) == {("NRT", "GSM8K"), ("NRT", "BBH"), ("NRT", "mean")}


def test_what_the_harness_wrote_counts_too(place, capsys):
  make_run("runs/nrt", gsm8k=0.4)
  task = {"alias": "bbh", "exact_match,get-answer": 0.5, "exact_match_stderr,get-answer": 0.1, "sample_len": 9}
  plain = {"acc,none": 0.25, "acc_stderr,none": "N/A"}
  (place / "runs/nrt/evaluations").mkdir()
  output = {"checkpoint": "runs/nrt", "step": None, "results": {"bbh": task, "csqa": plain}, "config": {"model": "x"}}
  write_json("runs/nrt/evaluations/harness_bbh.json", output)
  ((one,), notes) = results.read(["runs/nrt"])
  assert one.metrics == {
    "eval/gsm8k/accuracy": 0.4,
    "harness/bbh/exact_match,get-answer": 0.5,
    "harness/csqa/acc,none": 0.25,
  }
  assert one.intervals == {"harness/bbh/exact_match,get-answer": pytest.approx([0.304, 0.696])} and not notes
  (place / "papers.py").write_text(TABLES.replace('absent="nobody grades it"', 'harness="bbh"').replace(
    "eval/bbh/accuracy", "harness/bbh/exact_match,get-answer"))  # fmt: skip
  found = report(capsys, "runs")
  assert filled(found) == {("NRT", "GSM8K"), ("NRT", "BBH"), ("NRT", "mean")}
  assert [float(found["NRT", "BBH"][key]) for key in ("ours", "low", "high")] == pytest.approx([50, 30.4, 69.6])
  command = found["base", "BBH"]["commands"].splitlines()[-1]
  args = flags.parse(shlex.split(command)[1:])
  assert (args.command, args.model, args.tasks) == ("harness", "MODELS/Tiny-1B", "bbh") and args.output


def test_a_model_as_it_is_fills_its_own_row(place, capsys):
  (place / "base").mkdir()
  for i, model in enumerate(("hub/models--lab--tiny-1b/snapshots/0a", "models/Tiny-1B-Instruct")):
    write_json(f"base/{i}.json", {"model": model, "metrics": {"eval/gsm8k/accuracy": 0.125}})
  found = report(capsys, "base")
  assert filled(found) == {("base", "GSM8K")} and float(found["base", "GSM8K"]["ours"]) == 12.5
  assert "models/Tiny-1B-Instruct fits no cell; the nearest is base, but for model.path" in found["notes"]


@pytest.mark.parametrize(
  "settings, said",
  [
    ({"overrides": ("samples_per_prompt=4",)}, "the nearest is NRT, but for samples_per_prompt (4, not 8)"),
    ({"overrides": ("total_steps=3",)}, "the nearest is NRT, but for total_steps (3, not 4)"),
    ({"overrides": ("data.source=other.jsonl",)}, 'but for data.source ("other.jsonl", not "rows.jsonl")'),
    ({"model": "models/Other-7B"}, 'the nearest is NRT, but for model.path ("models/Other-7B", not Tiny-1B)'),
    ({"steps": 2}, "runs/one is left out of NRT: it is at step 2 of 4"),
  ],
)
def test_a_run_that_fits_nowhere_is_named(place, capsys, settings, said):
  others = {key: value for key, value in settings.items() if key != "overrides"}
  make_run("runs/one", *settings.get("overrides", ()), gsm8k=0.4, **others)
  found = report(capsys, "runs/one")
  assert not filled(found) and said in found["notes"]


def test_what_does_not_matter_may_differ(place, capsys):
  free = (
    "logging.every_steps=2", "parallel.fsdp=4", "checkpoint.every_steps=1", "data.source=/far/away/rows.parquet",
    "evaluation.batch_prompts=7", "model.remat=full", "sampling.wave_prompts=8",
  )  # fmt: skip
  make_run("runs/one", *free, gsm8k=0.4)
  assert filled(report(capsys, "runs/one")) == {("NRT", "GSM8K")}


def test_a_run_that_cannot_be_read_is_named(place, capsys):
  make_run("runs/old", gsm8k=0.4)
  values = json.loads((place / "runs/old/config.json").read_text())
  write_json("runs/old/config.json", {**values, "of_an_older_version": 1})
  make_run("runs/bare", gsm8k=0.4)
  (place / "runs/bare/config.json").unlink()
  found = report(capsys, "runs")
  assert not filled(found)
  assert "runs/old is left out: runs/old/config.json: config: unknown key" in found["notes"]
  assert "runs/bare is left out: runs/bare/config.json: unreadable" in found["notes"]


def test_commands_are_those_that_would_fill_the_cell(place, capsys):
  make_run("runs/nrt", bbh=0.4)
  found = report(capsys, "runs/nrt")
  train, evaluate = found["NRT, AM", "GSM8K"]["commands"].splitlines()
  args = flags.parse(shlex.split(train)[1:])
  assert (args.command, args.config) == ("train", "config.py") and args.workdir.endswith("seed_0")
  again = load_config(args.config, args.overrides)
  assert again["algorithm"]["reward"] == "arithmetic_mean" and again["model"]["path"] == "MODELS/Tiny-1B"
  assert found["NRT, AM", "mean"]["commands"].splitlines() == [train, evaluate]  # its other part has no command
  args = flags.parse(shlex.split(evaluate)[1:])
  assert args.command == "evaluate" and args.output.endswith("evaluations/gsm8k.json")
  assert load_config(args.config, args.overrides)["evaluation"]["name"] == "gsm8k"
  # A run that is there need not be trained again, a model as it is not at all, and a closed one can't be.
  assert found["NRT", "GSM8K"]["commands"].startswith("nrt-jax evaluate --config config.py --checkpoint runs/nrt ")
  assert found["base", "GSM8K"]["commands"].startswith("nrt-jax evaluate --config config.py --model MODELS/Tiny-1B ")
  assert found["closed", "GSM8K"]["commands"] == "" and found["closed", "GSM8K"]["missing"] == "a closed model"


def test_the_command_s_own_run_fills_the_cell(place, capsys):
  """What the printed command trains is taken for what it was printed for."""
  train = report(capsys)["NRT, AM", "GSM8K"]["commands"].splitlines()[0]
  args = flags.parse(shlex.split(train)[1:])
  overrides = [one.removeprefix("--config.") for one in args.overrides]
  make_run(args.workdir, *overrides, model="MODELS/Tiny-1B", gsm8k=0.25)
  assert filled(report(capsys, "runs")) == {("NRT, AM", "GSM8K")}


@pytest.mark.parametrize(
  "path, same",
  [
    ("models/Tiny-1B", True),
    ("models/tiny-1b/", True),
    ("cache/models--lab--Tiny-1B/snapshots/12ab", True),
    ("models/Tiny-1B-Instruct", False),
    ("models/not-Tiny-1B", False),
    (None, False),
  ],
)
def test_models_are_known_by_the_names_of_their_directories(path, same):
  assert filling.same_model("lab/Tiny-1B", path) is same


@pytest.mark.parametrize(
  "argv, said",
  [
    (["--table", "nothing"], "--table: found 'nothing', allowed: FILE.py, get_go, likelihood, nft, nrt, raro"),
    (["--table", "nothing.py"], "--table: nothing.py: no such file"),
    (["--table", "config.py"], "config.py: defines no function get_tables()"),
    (["--table", "bad.py"], "bad.py: get_tables() returned str, allowed: a list of one or more Table"),
    (["--table", "papers.py", "nowhere"], "RUN: nowhere: no such file or directory"),
    (["--table", "papers.py", "empty"], "RUN: empty: holds neither a run nor what `nrt-jax evaluate --output` or"),
    (["--table", "papers.py", "config.py"], "RUN: config.py: found another file"),
    (["--table", "papers.py", "--format", "html"], "invalid choice: 'html'"),
    (["--table", "papers.py", "--metric", "loss/total"], "--metric: found loss/total with --table"),
  ],
)
def test_mistakes_are_one_line(place, capsys, argv, said):
  (place / "empty").mkdir()
  (place / "bad.py").write_text("def get_tables():\n  return 'tables'\n")
  assert __main__.main(["report", *argv]) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1 and said in err
