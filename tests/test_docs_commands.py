"""Every command and every code block of the docs is one of a known kind, and is tried as far as that kind can be.

Commands of nrt-jax and of our scripts go through their own parsers; configs are loaded with the overrides shown.
Reports are run here, and what trains in test_docs_run.py.
"""

import argparse
import ast
import importlib
import json
import pathlib
import re
import runpy
import sys

import pytest
from pages import PAGES, SHOWN, Command, blocks, config_named, config_text, filled, split
from paths import DOCS, EXPERIMENTS, ROOT

from nrt_jax import __main__ as program
from nrt_jax import config
from nrt_jax.commands import flags
from nrt_jax.commands.configs import load_config
from nrt_jax.harness.opening import Source
from tpu_launch import __main__ as launcher

BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN_PAGES = {  # test_docs.py runs all their python blocks and compares what they print
  f"docs/{name}.md"
  for name in (
    "one_step", "add_a_method", "add_a_task", "add_a_model", "environments", "families", "interpreters", "stages",
  )
}  # fmt: skip
LISTINGS = {  # language of a block -> pages on which other tests read it
  "json": {"docs/equations.md"},
  "yaml": {"docs/launch.md"},
}


# ---- Configs -------------------------------------------------------------------------------------------------------


def config_file(page: str, name: str, place: pathlib.Path) -> str:
  """The path of the config that a command names: one of the repository, or one written down from the pages."""
  if (ROOT / name).is_file():
    return str(ROOT / name)
  (place / "shown.py").write_text(config_named(page, name))
  return str(place / "shown.py")


# ---- Commands ------------------------------------------------------------------------------------------------------


def nrt_jax(command: Command, words: list, place: pathlib.Path) -> None:
  args = flags.parse(words[1:])
  if "config" in args:
    assert config.stages_of(load_config(config_file(command.page, args.config, place), args.overrides))


class Parsed(Exception):
  """A script's flags were accepted; nothing further is run."""


def script(command: Command, words: list, monkeypatch) -> None:
  """A script of experiments/, up to the end of its flags. One that parses none must be given none."""
  path = ROOT / words[1]
  if not words[2:] and "argparse" not in path.read_text():
    assert path.is_file()
    return
  parse = argparse.ArgumentParser.parse_args

  def parse_only(self, *args, **kwargs):
    parse(self, *args, **kwargs)
    raise Parsed

  monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
  monkeypatch.setattr(sys, "argv", words[1:])
  monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])  # as Python does for a script
  before = set(sys.modules)
  try:
    with pytest.raises(Parsed):
      runpy.run_path(str(path), run_name="__main__")
  finally:
    for name in set(sys.modules) - before:  # `common` is another module for other scripts
      if str(getattr(sys.modules[name], "__file__", None)).startswith(str(EXPERIMENTS)):
        del sys.modules[name]


def pytest_call(words: list) -> None:
  """The tests that a command names are there."""
  for word in words[3:]:
    path, _, name = word.partition("::")
    if not word.startswith("-") and not word.isdigit() and word != "loadfile":
      assert (ROOT / path).exists(), word
      assert not name or f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), word


def pip(words: list) -> None:
  """An installation of this repository, with extras that there are; or a wheel of it."""
  extras = re.search(r"extras_require=\{(.*?)\n  \},", (ROOT / "setup.py").read_text(), re.DOTALL).group(1)
  there = set(re.findall(r'^    "(\w+)": \[', extras, re.MULTILINE))
  *_, what = (word for word in words if not word.startswith("-"))
  named = re.fullmatch(r"\.(?:\[([\w,]+)\])?", what)
  assert named and words[1] in ("install", "wheel"), words
  assert set((named[1] or "").split(",")) - {""} <= there, words


def harness(words: list, monkeypatch) -> None:
  """The harness's own command line takes it, and our model class its arguments."""
  cli = pytest.importorskip("lm_eval._cli.harness", reason="lm-eval is not installed")
  monkeypatch.setattr(sys, "argv", ["lm_eval", *words])
  args = cli.HarnessCLI().parse_args()
  assert args.model == "nrt_jax" and Source(**args.model_args)


def elsewhere(words: list) -> bool:
  """Calls of other programs, which are not ours to try: environments of the peers, Google's, the site's server."""
  peers = any(name in word for word in words for name in ("peers-trl", "peers-tunix"))
  return peers or words[1:3] == ["-m", "venv"] or words[0].removeprefix(".venv/bin/") == "mkdocs"


def check_command(command: Command, place: pathlib.Path, monkeypatch) -> None:
  """Tries a command as its kind can be; fails for one of no kind."""
  words = filled(command.words)
  program_name = words[0].removeprefix(".venv/bin/")
  if elsewhere(words):
    return
  if words[1:3] == ["-m", "nrt_jax"]:
    program_name, words = "nrt-jax", ["nrt-jax", *words[3:]]
  if program_name == "nrt-jax":
    nrt_jax(command, words, place)
  elif program_name == "pip":
    pip(words)
  elif not re.fullmatch(r"python[\d.]*", program_name):
    pytest.fail(f"{command.page}: {' '.join(words)}: a command of no known kind")
  elif words[1:3] == ["-m", "pytest"]:
    pytest_call(words)
  elif words[1:3] == ["-m", "tpu_launch"]:
    launcher.parse(words[3:])
  elif words[1:3] == ["-m", "nrt_jax.harness"]:
    harness(words[3:], monkeypatch)
  elif re.fullmatch(r"docs/make_\w+\.py", words[1]):
    assert (ROOT / words[1]).is_file()  # test_docs.py and algorithms/test_table.py run them
  elif words[1].startswith("experiments/"):
    script(command, words, monkeypatch)
  else:
    pytest.fail(f"{command.page}: {' '.join(words)}: a command of no known kind")


@pytest.mark.parametrize("page", sorted({command.page for command in SHOWN}))
def test_commands_are_understood(page, tmp_path, monkeypatch):
  for command in SHOWN:
    if command.page == page:
      with monkeypatch.context() as patch:
        check_command(command, tmp_path, patch)


def test_there_are_commands_of_each_kind():
  """So that a change of the pages' form can't leave nothing to test."""
  first = [" ".join(filled(command.words)).removeprefix(".venv/bin/") for command in SHOWN]
  for kind, least in (
    ("nrt-jax train", 8), ("nrt-jax evaluate", 8), ("nrt-jax report", 4), ("nrt-jax plan", 5), ("nrt-jax sample", 4),
    ("nrt-jax export", 2), ("nrt-jax benchmark", 2), ("nrt-jax quickstart", 3), ("python -m tpu_launch", 5),
    ("python experiments/", 60), ("python -m pytest", 3), ("pip ", 4),
  ):  # fmt: skip
    assert sum(text.startswith(kind) for text in first) >= least, kind


def test_reports_run(tmp_path, monkeypatch, capsys):
  """Every `nrt-jax report` of the pages, on runs with a line of every metric that index.md lists.

  The page of --html is made once: the commands differ in their runs alone, and drawing it takes seconds.
  """
  names = re.findall(r"^\| (`[^|]*`) \|", (DOCS / "index.md").read_text().split("\n## Metrics")[1], re.MULTILINE)
  named = {n.replace("<name>", "heldout") for row in names for n in re.findall(r"`([\w/@<>]+)`", row)}
  reports = [command for command in SHOWN if command.words[:2] == ("nrt-jax", "report")]
  monkeypatch.chdir(tmp_path)
  for command in reports:
    words = filled(command.words)[1:]
    if "--html" in words and list(tmp_path.glob("*.html")):
      at = words.index("--html")
      del words[at : at + 2]
    args = flags.parse(words)
    for run in args.runs:
      pathlib.Path(run).mkdir(parents=True, exist_ok=True)
      line = {"step": 1, **dict.fromkeys(sorted(named), 0.5)}
      (pathlib.Path(run) / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert program.main(words) == 0, command
    shown = "paper" if args.table else "0.5"  # the runs are of no cell
    assert shown in capsys.readouterr().out, command
  assert len(reports) >= 4 and list(tmp_path.glob("*.html"))


# ---- Blocks --------------------------------------------------------------------------------------------------------


def names_in(tree: ast.AST) -> list[tuple]:
  """(module, attribute) of every import of a block, and of every attribute that it reads of an imported module."""
  found, modules = [], {}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      found += [(node.module, alias.name) for alias in node.names]
      modules.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    elif isinstance(node, ast.Import):
      found += [(alias.name, None) for alias in node.names]
      modules.update({alias.asname or alias.name: alias.name for alias in node.names})
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
      found.append((modules[node.value.id], node.attr))
  return found


def resolve(name: str, attribute: str | None):
  """A module or an attribute of one, however deep. Raises AttributeError, ModuleNotFoundError."""
  parts = [*name.split("."), *([attribute] if attribute else [])]
  found = importlib.import_module(parts[0])
  for i, part in enumerate(parts[1:], 2):
    try:
      found = getattr(found, part)
    except AttributeError:
      found = importlib.import_module(".".join(parts[:i]))
  return found


def check_python(page: str, place: pathlib.Path) -> None:
  """The python blocks of a page that test_docs.py does not run.

  A config file is loaded; lines that change a config change the one before. Of programs that need a device or a
  network, imports and what they use of modules are looked up.
  """
  shown = config_text("README.md")
  for block in (b for b in BLOCKS if b.page == page and b.language == "python"):
    tree = ast.parse(block.text)  # it is Python, whatever else it is
    assigned = [n for n in ast.walk(tree) if isinstance(n, ast.Assign) and ast.unparse(n).startswith("config.")]
    if "def get_config" in block.text:
      shown = block.text
    elif assigned and not names_in(tree):
      lines = "".join(f"  {line}\n" for line in block.text.splitlines())
      shown = shown.partition("  return config")[0] + lines + "  return config\n"
    else:
      for name, attribute in names_in(tree):
        resolve(name, attribute)
      continue
    path = place / "shown.py"
    path.write_text(shown)
    assert config.stages_of(load_config(str(path)))


@pytest.mark.parametrize("page", sorted({b.page for b in BLOCKS if b.language == "python"} - RUN_PAGES))
def test_python_blocks_are_true(page, tmp_path):
  check_python(page, tmp_path)


def test_pages_that_run_are_run():
  tests = (ROOT / "tests" / "test_docs.py").read_text()
  assert all(f'run_blocks((DOCS / "{pathlib.Path(page).name}")' in tests for page in RUN_PAGES)


def test_blocks_are_of_known_languages():
  """Output is text, and nothing has to be said of it here; a block without a language would be of no kind."""
  for block in BLOCKS:
    known = block.language in ("bash", "python", "text") or block.page in LISTINGS.get(block.language, ())
    image = block.language == "dockerfile" and [pip(words[1:]) for words in split(block.text) if words[0] == "RUN"]
    assert known or image, f"{block.page}: a block of language {block.language!r}:\n{block.text}"


# ---- The checks themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "line",
  [
    "nrt-jax trian --config my_run.py --workdir runs/x",
    "nrt-jax train --config my_run.py --workdir runs/x --steps 3",
    "nrt-jax train --config my_run.py --workdir runs/x --config.total_step=3",
    "nrt-jax train --config your_run.py --workdir runs/x",
    "python experiments/miniature/raro.py --sead 0",
    "python experiments/none.py",
    "python -m pytest tests/test_docs.py::test_of_nothing",
    "python -m tpu_launch local run.yaml --dry",
    'pip install -e ".[tpus]"',
    "pip install nrt_jax",
    "make",
  ],
)
def test_a_stale_command_fails(line, tmp_path, monkeypatch):
  (words,) = split(line)
  with pytest.raises((Exception, SystemExit, pytest.fail.Exception)) as caught:
    check_command(Command("README.md", words), tmp_path, monkeypatch)
  assert not isinstance(caught.value, (TypeError, NameError, KeyError)), caught.value


def test_a_stale_name_fails():
  for text in ("from nrt_jax import configs", "from nrt_jax import config\nconfig.default('nrt')"):
    with pytest.raises((AttributeError, ModuleNotFoundError)):
      [resolve(*name) for name in names_in(ast.parse(text))]
