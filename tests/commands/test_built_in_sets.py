"""`nrt-jax evaluate --sets` end to end, on an untrained model: one table, and no question asked twice."""

import json

import benchmarks
import jax
import places
import pytest
import reference

from nrt_jax import __main__, config
from nrt_jax.commands import configs, evaluate
from nrt_jax.evaluation.store import Store
from nrt_jax.files import digest

CONFIG = """\
from nrt_jax.commands.configs import base_config

def get_config():
  config = base_config("sft")
  config.model.path = {model!r}
  config.prompt.max_answer_length = 6
  config.sampling.max_trace_length = 6
  config.parallel.kind = "pmap"  # so that evaluations have one device
  config.evaluation.batch_prompts = 2
  config.evaluation.samples = 2
  config.evaluation.temperature = 1.0
  config.evaluation.shots = 0
  config.logging.progress = False
  return config
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  path = tmp_path_factory.mktemp("built_in_sets")
  places.make_chat_model(path / "model")
  (path / "config.py").write_text(CONFIG.format(model=str(path / "model")))
  benchmarks.write(path / "data")
  return path


@pytest.fixture(scope="module")
def built():
  """Programs of these tests, each compiled once."""
  return {}


@pytest.fixture(autouse=True)
def runs(monkeypatch, built):
  """How often the program ran."""
  seen, build = [], evaluate.build_generate

  def counting(setup):
    how = (setup.model, setup.form, evaluate.sampling_of(setup), setup.run.evaluation.samples)
    generate = built.setdefault(how, build(setup))
    return lambda *arguments: seen.append(1) or generate(*arguments)

  monkeypatch.setattr(evaluate, "build_generate", counting)
  return seen


def ask(place, *flags) -> int:
  return __main__.main(arguments(place, *flags))


def arguments(place, *flags) -> list[str]:
  common = ["evaluate", "--config", place / "config.py", "--model", place / "model", "--sets_directory", place / "data"]
  return [*map(str, common), *map(str, flags)]


def lines(path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_sets_are_one_table(place, tmp_path, capsys):
  """Against the completions themselves."""
  own = "--config.evaluation.grader=none"  # of evaluation.data: sets have graders of their own
  flags = ["--sets", "gsm8k", "mmlu_stem", "bbh", "--limit", 3, own]
  assert ask(place, *flags, "--output", tmp_path / "x.json", "--completions", tmp_path / "x.jsonl") == 0
  out, err = capsys.readouterr()
  head, *table = [line.split() for line in out.splitlines()]
  assert head == ["set", "questions", "metric", "value", "95", "%", "interval"]
  report, rows = json.loads((tmp_path / "x.json").read_text()), lines(tmp_path / "x.jsonl")
  sizes = {name: part["questions"] for name, part in report["sets"].items()}
  assert sizes == {"gsm8k": 3, "mmlu_stem": 6, "bbh": 6} and report["samples"] == 2
  assert "bbh: 2 of its 27 tasks are there" in err and "gsm8k: 3 examples, each behind 0 worked ones" in err
  shown = {(name, metric): value for name, _, metric, value, *_ in table}
  for name, part in report["sets"].items():
    own = [row for row in rows if row["set"] == name]
    accuracy = sum(row["correct"] for row in own) / len(own)
    assert part["metrics"][f"eval/{name}/accuracy"] == accuracy and shown[name, "accuracy"] == f"{accuracy:.4f}"
    assert len(part["intervals"][f"eval/{name}/answer_logp"]) == 2 and part["licence"] and part["source"]
    for group, found in part.get("groups", {}).items():
      flags = [row["correct"] for row in own if row["group"] == group]
      assert found["metrics"][f"eval/{name}/accuracy"] == sum(flags) / 6 and found["questions"] == 3
      assert shown[f"{name}/{group}", "accuracy"] == f"{sum(flags) / 6:.4f}"
  assert list(report["sets"]["bbh"]["groups"]) == ["dates", "navigate"] and "groups" not in report["sets"]["gsm8k"]
  flags = [[row["correct"] for row in rows if row["group"] == group] for group in ("algebra", "biology")]
  shares = [[sum(six[i : i + 2]) / 2 for i in (0, 2, 4)] for six in flags]
  stem = report["sets"]["mmlu_stem"]
  found = [stem["metrics"]["eval/mmlu_stem/macro_accuracy"], *stem["intervals"]["eval/mmlu_stem/macro_accuracy"]]
  assert found == pytest.approx(reference.macro_interval(shares))


def test_an_interrupted_evaluation_goes_on_as_if_it_had_not_been(place, tmp_path, monkeypatch, runs):
  """At a temperature, bit for bit; what was interrupted in the middle of a batch is asked again as that batch."""
  sets = ["--sets", "gsm8k", "svamp"]
  assert ask(place, *sets, "--completions", tmp_path / "whole.jsonl") == 0 and len(runs) == 5
  add, left = Store.add, [5]  # 4 + 1: the third batch has been asked, and half of it is written

  def add_some(store, *one):
    left[0] -= 1
    if left[0] < 0:
      raise KeyboardInterrupt
    add(store, *one)

  with monkeypatch.context() as patch:
    patch.setattr(Store, "add", add_some)
    assert ask(place, *sets, "--cache", tmp_path / "cache", "--completions", tmp_path / "cut.jsonl") == 130
  assert not (tmp_path / "cut.jsonl").exists() and len(runs) == 5 + 3
  assert ask(place, *sets, "--cache", tmp_path / "cache", "--completions", tmp_path / "rest.jsonl") == 0
  assert len(runs) == 8 + 3  # of the five batches, two are known
  assert (tmp_path / "rest.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
  assert ask(place, *sets, "--cache", tmp_path / "cache", "--completions", tmp_path / "again.jsonl") == 0
  assert len(runs) == 11  # nothing is asked again
  assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
  assert ask(place, "--sets", "gsm8k", "--limit", 4, "--cache", tmp_path / "cache") == 0 and len(runs) == 11


def test_another_seed_is_asked_again_another_width_is_not(place, tmp_path, runs):
  base = ["--sets", "gsm8k", "--limit", 2, "--cache", tmp_path]
  assert ask(place, *base) == 0 and len(runs) == 1
  assert ask(place, *base, "--config.prompt.max_prompt_length=7") == 0 and len(runs) == 1  # sets have their own widths
  assert ask(place, *base, "--config.seed=1") == 0 and len(runs) == 2


@pytest.mark.parametrize(
  "change",
  ["seed=1", "evaluation.temperature=0.5", "evaluation.samples=3", "evaluation.max_completion_length=9",
   "prompt.marker=<|response_start|>red", "prompt.answer_in=completion", "prompt.answer_template=so {answer}",
   "model.compute_dtype=bfloat16"],
)  # fmt: skip
def test_whatever_determines_what_is_written_names_the_file(place, change):
  """What puts a question in another way changes its tokens, which name its line: see test_store.py."""
  stages = [
    config.stages_of(configs.load_config(str(place / "config.py"), overrides))[0]
    for overrides in ([], [], [f"--config.{change}"])
  ]
  same, again, other = (evaluate.determines(evaluate.prepare(stage)[0]) for stage in stages)
  assert digest(same) == digest(again) != digest(other)


def test_programs_are_run_where_that_is_allowed(place, tmp_path, capsys, monkeypatch):
  sets = ["--sets", "humaneval", "--output", tmp_path / "x.json", "--completions", tmp_path / "x.jsonl"]
  assert ask(place, *sets) == 2
  out, err = capsys.readouterr()
  assert out == "" and err == (
    "nrt-jax: evaluation.sets (--sets): found 'humaneval', whose grading runs programs that the model writes, allowed: "
    "with --run_code\n"
  )
  read = evaluate.held_out.read_completion
  answers = iter(["return side * side", "return side", None, "```\ndef area(s):\n  return s**2\n```"])

  def written(tokenizer, form, ids, example, grade, normal):
    made, answer = read(tokenizer, form, ids, example, grade, normal), next(answers)
    return evaluate.dataclasses.replace(made, answer=answer, vote=answer and normal(answer))

  monkeypatch.setattr(evaluate.held_out, "read_completion", written)  # an untrained model writes no programs
  assert ask(place, *sets, "--run_code") == 0
  found = json.loads((tmp_path / "x.json").read_text())["sets"]["humaneval"]
  assert [row["correct"] for row in lines(tmp_path / "x.jsonl")] == [True, False, False, True]
  metrics = {name.rpartition("/")[2]: value for name, value in found["metrics"].items()}
  assert (metrics["accuracy"], metrics["pass@1"], metrics["pass@2"], found["questions"]) == (0.5, 0.5, 1.0, 2)


def test_a_config_may_name_them(place, capsys):
  keys = ['--config.evaluation.sets=["svamp"]', f"--config.evaluation.sets_directory={place / 'data'}"]
  argv = ["evaluate", "--config", str(place / "config.py"), "--model", str(place / "model"), *keys]
  assert __main__.main([*argv, "--config.evaluation.shots=1"]) == 0
  out, err = capsys.readouterr()
  assert out.splitlines()[1].split()[:2] == ["svamp", "1"] and "svamp: 1 examples, each behind 1 worked ones" in err


@pytest.mark.parametrize(
  "flags,message",
  [
    ("--sets gsm9k", "found 'gsm9k', allowed: "),
    ("--sets gsm8k --limit 0", "--limit: found '0', allowed: a whole number, 1 or more"),
    ("--sets gsm8k --tournament 2", "--tournament: found 2 with built-in sets, allowed: with evaluation.data"),
    ("--sets bbh --config.evaluation.shots=4", "evaluation.shots: found 4, but dates has 4 examples, allowed: up to 3"),
    ("--sets gsm8k --cache {data}/bbh/dates.json", "dates.json: is a file, allowed: a directory"),
    ("--sets gsm8k --config.evaluation.max_completion_length=120", "max_completion_length: found 120 tokens of a"),
  ],
)
def test_mistakes_are_one_line(place, capsys, flags, message):
  capsys.readouterr()
  assert ask(place, *flags.format(data=place / "data").split()) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.startswith("nrt-jax: ") and err.count("\n") == 1 and message in err


def test_a_rate_is_that_of_what_was_asked(capsys):
  """Two known batches of 10 s, the first of the program with its compiling, then 5 s for two examples."""
  clock = iter([10.0, 20.0, 80.0, 85.0, 90.0])
  watch = evaluate.Reporter(True, 10, clock=lambda: next(clock))
  for done, new in ((2, 0), (4, 0), (6, 2), (8, 4), (10, 6)):
    watch(done, new)
  said = capsys.readouterr().err.splitlines()
  assert [line.partition(", ")[2] for line in said] == ["ETA --", "ETA --", "ETA --", "ETA 5s", ""]
  assert said[3] == "evaluated 8 of 10 examples, ETA 5s"
  evaluate.Reporter(False, 10)(2, 2)
  assert capsys.readouterr().err == ""


def test_weights_are_told_apart():
  one = {"a": {"b": jax.numpy.ones(3)}, "c": jax.numpy.zeros(2)}
  assert evaluate.weights(one) == evaluate.weights({"c": one["c"], "a": {"b": jax.numpy.ones(3)}})
  for other in ({"a": {"b": jax.numpy.ones(3)}, "d": one["c"]}, {**one, "c": jax.numpy.array([0.0, 1e-30])}):
    assert evaluate.weights(one) != evaluate.weights(other)
