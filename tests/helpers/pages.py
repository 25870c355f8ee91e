"""The pages of the documentation, their code blocks, and the commands that they show."""

import ast
import pathlib
import re
import shlex
import textwrap
from typing import NamedTuple

from paths import DOCS, EXPERIMENTS, ROOT

from nrt_jax.commands import flags

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *EXPERIMENTS.rglob("*.md")])
FENCED = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"\n\n((?: {4}[^\n]*\n)+)")
STARTS = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:nrt-jax|python[\d.]*|pip|mkdocs)\b")  # of a command's line


class Block(NamedTuple):
  """A fenced code block."""

  page: str  # path from the repository's root
  language: str
  text: str


class Command(NamedTuple):
  """One command of a page, without the variables that are set for it."""

  page: str
  words: tuple


def name_of(page: pathlib.Path) -> str:
  return page.relative_to(ROOT).as_posix()


def blocks(page: pathlib.Path) -> list[Block]:
  found = FENCED.findall(page.read_text(encoding="utf-8"))
  return [Block(name_of(page), language, textwrap.dedent(text)) for _, language, text in found]


def commands(page: pathlib.Path) -> list[Command]:
  """Those of ```bash blocks, whatever they call, and of indented blocks, where a line begins like one."""
  text = page.read_text(encoding="utf-8")
  shown = [block.text for block in blocks(page) if block.language == "bash"]
  shown += indented(FENCED.sub("", text))
  return [Command(name_of(page), words) for block in shown for words in split(block)]


def commands_of_module(path: pathlib.Path) -> list[Command]:
  """Those in the docstring of a module; what is optional there, [in brackets], is given."""
  text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
  shown = indented("\n\n" + re.sub(r"\[(--[^\]]*)\]", r"\1", text) + "\n")
  return [Command(name_of(path), words) for block in shown for words in split(block)]


def indented(text: str) -> list[str]:
  dedented = (textwrap.dedent(block) for block in INDENTED.findall(text))
  return [block for block in dedented if STARTS.match(block)]


def split(text: str) -> list[tuple]:
  """The commands of lines of a shell: continued lines are one, && parts two; comments and variables are left out."""
  found = []
  for line in text.replace("\\\n", " ").splitlines():
    for part in line.split("&&"):
      words = shlex.split(part, comments=True)
      while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
      found += [tuple(words)] if words else []
  return found


SHOWN = [c for page in PAGES for c in commands(page)]
SHOWN += [c for path in sorted(EXPERIMENTS.rglob("*.py")) for c in commands_of_module(path)]
SHOWN += [Command(f"nrt-jax {name} --help", split(row.example)[0]) for name, row in flags.COMMANDS.items()]

# What pages write where a reader has a file, a name or a number of his own.
PLACEHOLDERS = {
  "FILE": "full_size/nrt_llama31_8b_tulu3.py",
  "SEED": "0",
  "METHOD": "nrt",
  "ENGINE": "local",
  "DIR": "runs/my_run",
}


def filled(words: tuple) -> list[str]:
  return [re.sub(r"\b[A-Z]+\b", lambda m: PLACEHOLDERS.get(m[0], m[0]), word) for word in words]


def config_text(page: str) -> str:
  """The config file that a page shows; README's where it shows none."""
  path = ROOT / page
  shown = [b.text for b in blocks(path) if "def get_config" in b.text] if path.suffix == ".md" else []
  return shown[0] if shown else config_text("README.md")


def config_named(page: str, name: str) -> str:
  """The text of the config of the reader's own that a command of a page names."""
  known = pathlib.Path(name).name in ("my_run.py", "my_raro.py", "CONFIG")
  assert known, f"{page}: {name} is no file and no placeholder"
  text = config_text("docs/raro.md" if "raro" in name or name == "CONFIG" else page)
  if page == "docs/families.md":  # whose run is on a task
    data = {"source": "task:modular_chain", "task_options": {}}
    text = text.replace("  return config", f"  config.evaluation.data = {data}\n  return config")
  return text
