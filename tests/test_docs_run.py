"""Every command that the docs show is run: at tiny size, in a directory with the models and data that they name.

Of commands that say the same but for names of runs and the method, one is run. NOT_HERE lists those that are not run at
all, each with its reason. test_docs_commands.py checks all, run or not, by their parsers.
"""

import json
import math
import pathlib
import re

import judges
import pytest
from pages import SHOWN, Command, config_named, config_text, filled
from paths import ROOT
from readers import Reader, fill, small

from nrt_jax import config
from nrt_jax.commands import flags
from nrt_jax.commands.configs import load_config

# How a command begins -> why it is not run here.
NOT_HERE = {
  "nrt-jax plan": "compiles for TPUs, with libtpu: performance/planning/ has its tests",
  "nrt-jax report": "test_docs_commands.py runs it, on runs with every metric",
  "nrt-jax quickstart": "four minutes: experiments/test_files.py runs it with fewer steps",
  "nrt-jax harness --checkpoint runs/my_run --tasks gsm8k,arc_easy": "fetches data from the network",
  "nrt-jax train --config my_run.py --workdir runs/my_run --distributed": "is one process of several on a TPU pod",
  "nrt-jax train --config experiments/FILE": "a full-size run: experiments/test_files.py tries it small",
  "python -m nrt_jax.harness": "fetches data from the network",
  "python -m tpu_launch": "starts machines: launch/test_run.py plans those of the page, without starting them",
  "python -m pytest": "is this test run, or a part of it",
  "python3 -m venv": "an installation: docs/results/packaging.md says where it was tried",
  "pip install": "an installation: docs/results/packaging.md says where it was tried",
  "pip wheel": "an installation: docs/results/packaging.md says where it was tried",
  "mkdocs": "test_site.py builds the site",
  "python3.11 -m venv peers": "another framework's environment",
  "peers": "another framework's environment",
  "python experiments/quickstart.py": "four minutes: experiments/test_files.py runs it with fewer steps",
  "python experiments/gsm8k_tiny.py": "hours: experiments/test_files.py runs it on forty problems",
  "python experiments/smollm2_gsm8k.py": "hours: experiments/test_files.py runs it for two steps",
  "python experiments/get_go/": "hours: experiments/test_get_go_*.py run arms of each",
  "python experiments/miniature/": "hours: experiments/test_*miniature.py and test_long_answers.py run them small",
  "python experiments/benchmarks/": "minutes, on a quiet machine: experiments/test_benchmarks.py and test_peers.py",
}


def text_of(command: Command) -> str:
  return " ".join(command.words).removeprefix(".venv/bin/")


def after(words: list, flag: str) -> str | None:
  """The value of a flag, if it is given."""
  return words[words.index(flag) + 1] if flag in words else None


def why_not(command: Command) -> list[str]:
  return [start for start in NOT_HERE if text_of(command).startswith(start)]


NAMES = ("--workdir", "--checkpoint", "--model", "--output", "--json")  # flags of which the value is no matter


def said(command: Command) -> tuple:
  """(command and config, the method aside; flags and values, names aside): what differs between two commands' runs."""
  words, text = command.words, ""
  if "--config" in words and not (ROOT / after(words, "--config")).is_file():
    text = re.sub(r"base_config\(\"\w+\"", "base_config(", config_named(command.page, after(words, "--config")))
  elif words[1] == "sample":  # from the export of the page's run
    text = config_text(command.page)
  return (words[1], text), {word for flag, word in zip(words[1:], words[2:]) if flag not in (*NAMES, "--config")}


def distinct(shown: list) -> list:
  """Without those that say no more than another one; of several that say the same the first one is kept."""
  kept = []
  for command in shown:
    head, flags_ = said(command)
    others = [said(other) for other in kept]
    if not any(head == h and flags_ <= f for h, f in others):
      kept = [c for c, (h, f) in zip(kept, others) if not (head == h and f < flags_)]
      kept.append(command)
  return kept


RUN = distinct([command for command in SHOWN if not why_not(command)])


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
  root = tmp_path_factory.mktemp("reader") / "given"
  root.mkdir()
  fill(root)
  reader = Reader(root)
  yield reader
  reader.close()


@pytest.fixture(scope="module")
def endpoint():
  """A judge's URL."""
  with judges.serving(lambda body, number: "Both are fine.\nScore: 7\nVerdict: A") as (url, _):
    yield url


def flags_for(path: pathlib.Path, finished: bool = False) -> list[str]:
  """What makes a run of a config small. finished: it is trained to be found by commands for finished runs."""
  last = config.stages_of(load_config(str(path)))[-1]
  flags_ = small(last.algorithm_name)
  if finished and last.evaluation.data:
    flags_ = [*flags_, "--config.checkpoint.keep_best=eval/heldout/accuracy"]
  if finished and ROOT in path.resolve().parents:  # a full-size run, on the data that its page evaluates it on
    flags_ = [*flags_, "--config.model.path=my_model", "--config.data.source=ROWS.jsonl"]
  return flags_


def prepare(reader: Reader, command: Command, place: pathlib.Path, endpoint: str) -> list[str]:
  """The arguments of a command, made small; what it takes as given is put in place."""
  words = [word.replace("ROWS", "ROWS.jsonl") for word in filled(command.words)[1:]]
  name, given = words[0], after(words, "--config") or "my_run.py"
  if not (ROOT / given).is_file():
    own = config_named(command.page, given) if "--config" in words else config_text(command.page)
    given = "my_run.py"
    (place / given).write_text(own)
  if "--config" in words:
    words[words.index("--config") + 1] = given
    words += flags_for(place / given)
  if name == "export" and after(words, "--step"):
    words[words.index("--step") + 1] = "1"
  for run in (after(words, "--checkpoint"), (after(words, "--model") or "").removesuffix("/export")):
    if run and not (place / run).exists():
      reader.give_run(place, run, place / given, flags_for(place / given, finished=True))
  if name == "judge":
    words = [endpoint if before == "--endpoint" else word for before, word in zip(["", *words], words)]
    for file in (word for word in words[1:3] if word.endswith(".jsonl") and not (place / word).exists()):
      judges.write(place / file, {"what is red": ["red", file], "what is green": ["green", "blue"]})
  more = {"evaluate": ["--limit", "8"], "harness": ["--limit", "2"], "benchmark": ["--repeats", "1"]}
  return [*words, *more.get(name, ())]


def require_result(page: str, words: list, place: pathlib.Path, out: str, err: str) -> None:
  """What the command is for is there."""
  args = flags.parse(words)
  if args.command in ("train", "evaluate", "sample") and 'start="instruct"' in config_text(page):
    assert "prompts: chat template; marker '<|response_start|>" in err
  for flag in ("output", "completions", "json", "profile", "samples"):
    made = getattr(args, flag, None)
    if isinstance(made, str):
      assert (place / made).exists(), flag
  if args.command == "train":
    lines = [json.loads(line) for line in (place / args.workdir / "metrics.jsonl").read_text().splitlines()]
    assert math.isfinite(next(line["loss/total"] for line in reversed(lines) if "loss/total" in line))
    assert (place / args.workdir / "export" / "config.json").is_file()
  elif args.command == "sample":
    assert len(re.findall(r"^prompt: ", out, re.MULTILINE)) == args.samples
  elif args.command == "evaluate" and not args.sets:
    assert "eval/heldout/answer_logp_gain" in out
  elif args.command != "export":
    assert len(out.splitlines()) > 2


@pytest.mark.parametrize("page", sorted({command.page for command in RUN}))
def test_commands_run(page, reader, endpoint):
  place = reader.directory(re.sub(r"\W+", "_", page))
  for command in RUN:
    if command.page == page:
      if "harness" in command.words:
        pytest.importorskip("lm_eval", reason="lm-eval is not installed")
      words = prepare(reader, command, place, endpoint)
      code, out, err = reader.run(place, words)
      assert code == 0, f"{text_of(command)}\n{err}"
      require_result(page, words, place, out, err)


def test_what_is_not_run_is_shown():
  """No reason outlives its command, and none speaks of one that another does."""
  assert {start for command in SHOWN for start in why_not(command)} == set(NOT_HERE)
  assert all(len(why_not(command)) <= 1 for command in SHOWN)
  assert {text_of(command).split()[0] for command in RUN} == {"nrt-jax"}
