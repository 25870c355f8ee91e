"""`nrt-jax evaluate` and `nrt-jax report` end to end, on one tiny run with evaluation."""

import json

import numpy as np
import places
import pytest
import reference

from nrt_jax import __main__
from nrt_jax.commands import evaluate as command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A directory with a model directory, a config file, and a finished run with its export."""
  path = places.make(
    tmp_path_factory.mktemp("evaluate"),
    "sft",
    data__task_options={"trace_share": 0.0},
    prompts_per_step=8,
    optimizer__learning_rate=0.1,
    optimizer__eps=1e-8,
    optimizer__ema_decay=0.5,
    evaluation__data={"source": "task:running_sum", "split": "test", "examples": 12},
    evaluation__batch_prompts=8,
    evaluation__every_steps=0,
    logging__progress=False,
    total_steps=3,
    stages=[
      {"name": "one", "total_steps": 3},
      {"name": "two", "total_steps": 2, "evaluation": {"samples": 3, "temperature": 1.0}},
    ],
  )
  assert __main__.main(["train", "--config", str(path / "config.py"), "--workdir", str(path / "run")]) == 0
  return path


def evaluate(place, *arguments) -> list[str]:
  return ["evaluate", "--config", str(place / "config.py"), *map(str, arguments)]


def metrics_of(place) -> list[dict]:
  return [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]


def refused(argv, capsys) -> str:
  capsys.readouterr()
  assert __main__.main(argv) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.startswith("nrt-jax: ") and err.count("\n") == 1
  return err


# ---- evaluate ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_evaluated_as_the_run_did(place, tmp_path, capsys):
  output, completions = tmp_path / "heldout.json", tmp_path / "completions.jsonl"
  capsys.readouterr()
  argv = evaluate(place, "--checkpoint", place / "run", "--output", output, "--completions", completions)
  assert __main__.main(argv) == 0
  report = json.loads(output.read_text())
  trained = {name: value for name, value in metrics_of(place)[-1].items() if name.startswith("eval/")}
  assert report["metrics"] == trained and len(trained) >= 3
  assert (report["examples"], report["step"], report["checkpoint"]) == (12, 5, str(place / "run"))
  shown = capsys.readouterr().out
  *lines, last = shown.splitlines()
  assert dict(line.split()[:2] for line in lines) == {name: f"{value:.4f}" for name, value in trained.items()}
  assert last == "12 examples"
  rows = [json.loads(line) for line in completions.read_text().splitlines()]
  assert len(rows) == 36 and rows[0]["question"].startswith("add ")
  assert [row["sample"] for row in rows[:4]] == [0, 1, 2, 0]
  assert sum(row["correct"] for row in rows) / 36 == trained["eval/heldout/accuracy"]


def test_several_samples_are_reported_with_intervals(place, tmp_path, capsys):
  """Against the completions themselves."""
  output, completions = tmp_path / "heldout.json", tmp_path / "completions.jsonl"
  argv = evaluate(place, "--model", place / "run" / "export", "--output", output, "--completions", completions)
  assert __main__.main(argv) == 0
  shown, report = capsys.readouterr().out, json.loads(output.read_text())
  metrics, pairs = report["metrics"], report["intervals"]
  rows = [json.loads(line) for line in completions.read_text().splitlines()]
  questions = [rows[i : i + 3] for i in range(0, 36, 3)]
  assert all(len({(row["question"], row["reference_logp_empty_trace"]) for row in three}) == 1 for three in questions)
  assert any(len({row["reference_logp"] for row in three}) > 1 for three in questions)
  flags = [[row["correct"] for row in three] for three in questions]
  assert (report["examples"], report["samples"]) == (12, 3) and list(pairs) == list(metrics)
  for k in (1, 2, 3):
    expected = np.mean([reference.pass_at_k(one, k) for one in flags])
    assert metrics[f"eval/heldout/pass@{k}"] == pytest.approx(expected)
  assert metrics["eval/heldout/avg@3"] == metrics["eval/heldout/accuracy"]
  tokens = sum(three[0]["reference_tokens"] for three in questions)
  expected = sum(reference.log_mean_exp([row["reference_logp"] for row in three]) for three in questions) / tokens
  assert metrics["eval/heldout/answer_logp@3"] == pytest.approx(expected)
  assert {row["vote"] for row in rows} <= {None, *(" ".join(row["answer"].split()) for row in rows if row["answer"])}
  low, high = pairs["eval/heldout/maj@3"]
  assert f"{metrics['eval/heldout/maj@3']:.4f}  [{low:.4f}, {high:.4f}]\n" in shown


def test_an_evaluation_says_how_far_it_is(place, capsys):
  capsys.readouterr()
  argv = evaluate(place, "--model", place / "run" / "export")
  assert __main__.main([*argv, "--config.logging.progress=true"]) == 0
  _, *lines = capsys.readouterr().err.splitlines()
  assert lines == ["evaluated 8 of 12 examples, ETA --", "evaluated 12 of 12 examples"]
  assert __main__.main(argv) == 0
  (line,) = capsys.readouterr().err.splitlines()
  assert line == "prompts: plain template; marker '<|response_start|>'; end tokens '<eos>'"


def test_a_run_keeps_what_was_written(place, tmp_path, monkeypatch):
  """With weights and seed, not with grades; --limit takes the first questions of it."""
  runs, build = [], command.build_generate

  def counting(setup):
    generate = build(setup)
    return lambda *arguments: runs.append(1) or generate(*arguments)

  monkeypatch.setattr(command, "build_generate", counting)
  own, reports = ["--checkpoint", place / "run", "--config.seed=9", "--output", tmp_path / "x.json"], []
  for flags, ran in (([], 2), (["--config.evaluation.grader=none"], 2), (["--limit", 8], 2), (["--step", 3], 4)):
    assert __main__.main(evaluate(place, *own, *flags)) == 0
    reports.append(json.loads((tmp_path / "x.json").read_text()))
    assert len(runs) == ran, flags
  assert [report["examples"] for report in reports] == [12, 12, 8, 12]
  whole, ungraded, *_ = (report["metrics"] for report in reports)
  assert ungraded == {name: value for name, value in whole.items() if name in ungraded} and len(ungraded) < len(whole)
  assert {path.name.partition(".")[0] for path in (place / "run" / "evaluations").iterdir()} == {"heldout"}


def test_an_export_is_evaluated_like_its_checkpoint(place, tmp_path):
  reports = []
  output = tmp_path / "not" / "there" / "x.json"
  for source in (("--checkpoint", place / "run" / "checkpoints"), ("--model", place / "run" / "export")):
    assert __main__.main(evaluate(place, *source, "--output", output)) == 0
    reports.append(json.loads(output.read_text()))
  assert reports[0]["metrics"] == reports[1]["metrics"]
  assert reports[1]["model"] == str(place / "run" / "export") and "step" not in reports[1]


def test_the_report_says_what_was_dropped_and_why(place, tmp_path, capsys):
  data, output = tmp_path / "x.jsonl", tmp_path / "x.json"
  questions = ["add 1 modulo 5", "add 1 1 modulo 5", "add" + " 1" * 20 + " modulo 5", "add" + " 1" * 30 + " modulo 5"]
  data.write_text("".join(json.dumps({"question": q, "answer": "1"}) + "\n" for q in questions))
  override = "--config.evaluation.data=" + json.dumps({"source": str(data)})
  capsys.readouterr()
  assert __main__.main(evaluate(place, "--model", place / "run" / "export", "--output", output, override)) == 0
  last = capsys.readouterr().out.splitlines()[-1]
  assert last == "2 of 4 examples (2 prompts over prompt.max_prompt_length dropped)"
  report = json.loads(output.read_text())
  assert report["examples"] == 2 and report["overlong"]["prompts_dropped"] == 2


def test_another_mesh_than_the_runs(place, tmp_path):
  """A run over two tensor ways pads its 15 words to 16 rows; evaluated on one, and the other way round."""
  two = ["--config.parallel.tensor=2"]
  argv = ["train", "--config", str(place / "config.py"), "--workdir", str(tmp_path / "run"), *two]
  assert __main__.main([*argv, "--config.total_steps=1", "--config.stages=[]", "--config.evaluation.data=null"]) == 0
  reports = []
  for flags in ([], two):
    argv = evaluate(place, "--stage", "one", "--checkpoint", tmp_path / "run", "--output", tmp_path / "x.json", *flags)
    assert __main__.main(argv) == 0
    reports.append(json.loads((tmp_path / "x.json").read_text())["metrics"])
  assert reports[0] == pytest.approx(reports[1], abs=1e-5)


def test_overrides_choose_other_data_and_grader(place, tmp_path):
  other = ("--config.evaluation.data.examples=8", "--config.evaluation.name=few", "--config.evaluation.grader=none")
  argv = evaluate(place, "--model", place / "run" / "export", "--stage", "one", "--output", tmp_path / "x.json", *other)
  assert __main__.main(argv) == 0
  report = json.loads((tmp_path / "x.json").read_text())
  assert report["examples"] == 8
  assert "eval/few/marker_fraction" in report["metrics"] and "eval/few/accuracy" not in report["metrics"]


@pytest.mark.parametrize(
  "arguments,message",
  [
    ("", "--checkpoint, --model: found neither, allowed: one of them"),
    ("--checkpoint {run} --model {run}", "--model: not allowed with argument --checkpoint"),
    ("--checkpoint {tmp}", "a run's workdir, or the checkpoints directory"),
    ("--checkpoint {run} --step 9", "found no checkpoint 9"),
    ("--checkpoint {run} --stage three", "--stage: found 'three', allowed: one, two"),
    ("--checkpoint {run} --stage one --config.evaluation.samples=4", "samples: found 4 with evaluation.temperature"),
    ("--checkpoint {run} --config.evaluation.data=null", "evaluation.data: found null, allowed: a data set"),
    (
      "--checkpoint {run} --config.evaluation.batch_prompts=3",
      "evaluation.batch_prompts: found 3, allowed: a multiple",
    ),
    ("--checkpoint {run} --output {run}/config.json/x", "config.json: is a file, allowed: a directory"),
    ("--checkpoint {run} --output {run}", "--output: found {run!r}, a directory, allowed: a file"),
    ("--checkpoint {run} --completions {tmp}", "--completions: found {tmp!r}, a directory, allowed: a file"),
    ("--model {run}/export --step 2", "--step: found 2 with --model"),
    ("--model {tmp}", "holds none of tokenizer.json"),
  ],
)
def test_mistakes_are_one_line(place, tmp_path, capsys, arguments, message):
  paths = {"run": str(place / "run"), "tmp": str(tmp_path)}
  arguments, message = arguments.format(**paths).split(), message.format(**paths)
  assert message in refused(evaluate(place, *arguments), capsys)
  assert not list(tmp_path.iterdir())


# ---- report --------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path):
  """Two workdirs with metrics made by hand; the second is still being written."""
  lines = {
    "a": [{"step": s, "reward/mean": s / 10, "eval/x/accuracy": 0.5} for s in (1, 2, 3)] + [{"step": 3, "loss/x": 1.0}],
    "b": [{"step": 1, "reward/mean": 0.25}, {"step": 2, "reward/mean": None}],
  }
  for name, rows in lines.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
    file.write('{"step": 3, "reward')
  return [str(tmp_path / name) for name in lines]


def test_a_report_has_a_row_per_run(runs, tmp_path, capsys):
  output = tmp_path / "new" / "report.json"
  argv = ["report", *runs, "--last", "2", "--output", str(output)]
  assert __main__.main(argv) == 0
  head, a, b = capsys.readouterr().out.splitlines()
  assert head.split() == ["run", "step", "reward/mean", "eval/x/accuracy"]
  assert a.split() == [runs[0], "3", "0.25", "0.5"]  # the mean of 0.2 and 0.3
  assert b.split() == [runs[1], "2", "0.25", "-"]  # a null is no value
  report = json.loads(output.read_text())
  assert report["last"] == 2 and report["runs"][0]["metrics"] == {"reward/mean": 0.25, "eval/x/accuracy": 0.5}


def test_a_report_shows_the_metrics_that_are_named(runs, capsys):
  assert __main__.main(["report", *runs, "--metric", "loss/*", "--metric", "reward/mean"]) == 0
  head, a, b = capsys.readouterr().out.splitlines()
  assert head.split() == ["run", "step", "loss/x", "reward/mean"]
  assert (a.split()[2:], b.split()[2:]) == (["1", "0.3"], ["-", "-"])


def test_mistakes_in_a_report(runs, tmp_path, capsys):
  assert "--metric: found 'reward', allowed: names of these runs: eval/x/accuracy, loss/x" in refused(
    ["report", *runs, "--metric", "reward"], capsys
  )
  assert "holds no metrics.jsonl, allowed: workdirs of runs" in refused(["report", str(tmp_path)], capsys)
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n')
  assert "metrics.jsonl:2: not JSON" in refused(["report", str(tmp_path)], capsys)
  assert "required: RUN" in refused(["report"], capsys)
  argv = ["report", *runs, "--output", str(tmp_path)]
  assert f"--output: found {str(tmp_path)!r}, a directory, allowed: a file" in refused(argv, capsys)


@pytest.mark.parametrize("line", [b"3", b'{"loss": 1}', b'{"step": 2, "loss": "x"}', b'{"step": 2, "\xff": 1}'])
def test_a_report_of_what_is_no_line_of_metrics(tmp_path, capsys, line):
  (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
  assert "metrics.jsonl:2: " in refused(["report", str(tmp_path)], capsys)


def test_a_report_of_a_real_run(place, capsys):
  assert __main__.main(["report", str(place / "run"), "--metric", "loss/total", "--metric", "eval/*"]) == 0
  head, row = capsys.readouterr().out.splitlines()
  cells = dict(zip(head.split(), row.split()))
  last = [line for line in metrics_of(place) if "loss/total" in line][-1]
  assert cells["step"] == "5" and cells["loss/total"] == f"{last['loss/total']:.4g}"
