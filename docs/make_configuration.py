"""Writes docs/configuration.md from the config dataclasses: every key, its default, and the comment beside it.

    python docs/make_configuration.py

The comments in the code are the only place where a key is explained; tests/test_docs.py fails where the page is behind.
"""

import dataclasses
import inspect
import io
import pathlib
import sys
import tokenize

PAGE = pathlib.Path(__file__).resolve().parent / "configuration.md"
if __name__ == "__main__":
  sys.path.insert(0, str(PAGE.parent.parent))

from nrt_jax.algorithms.table import ALGORITHMS  # noqa: E402  (the path comes first)
from nrt_jax.config import STAGE_KEYS, RunConfig  # noqa: E402
from nrt_jax.tasks import table as tasks  # noqa: E402

HEAD = """\
# Configuration

<!-- Written by docs/make_configuration.py from the dataclasses. Change the comments in the code, then run it again. -->

Every key with its default. A config file is Python with `get_config()`; `nrt_jax.commands.configs.base_config(NAME)`
gives it all keys of one algorithm with these defaults, locked. On the command line,
`--config.optimizer.learning_rate=1e-5` overrides one key. A key that does not exist, or a value that is not allowed, is
an error that names it.

A run may be a list of `stages`, each with a `name` of its own. A stage may set
{stage_keys}
and takes the rest from the top level. The top-level `total_steps` caps every stage. Every stage starts with a fresh
optimizer and at the beginning of its data; parameters, key and step number go on.

`algorithm.name` (default `"nrt"`) picks which keys `algorithm` has. `evaluation.data` is null or has the keys of
`data`. Training needs `sampling.temperature` above 0. Tables write "/" between choices.
"""


def comments(cls) -> dict:
  """Field -> the comment on the line where it is declared."""
  fields, found = {field.name for field in dataclasses.fields(cls)}, {}
  for parent in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
    first = {}  # row -> its first word
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(parent)).readline):
      if token.type == tokenize.NAME:
        first.setdefault(token.start[0], token.string)
      elif token.type == tokenize.COMMENT and first.get(token.start[0]) in fields:
        found[first[token.start[0]]] = token.string.lstrip("# ")
  return found


def shown(value, kind) -> str:
  """A default of that type as one writes it in a config file or in JSON."""
  if isinstance(value, tuple) and not value:
    return "`[]`" if kind == tuple[str, ...] else "`{}`"
  names = {None: "null", True: "true", False: "false"}
  return f"`{names[value]}`" if value is None or isinstance(value, bool) else f"`{value!r}`".replace("'", '"')


def table(cls, prefix: str, skip=()) -> str:
  """The keys of a dataclass; nested dataclasses have tables of their own."""
  said = comments(cls)
  rows = ["| key | default | meaning |", "|---|---|---|"]
  for field in dataclasses.fields(cls):
    if field.name in skip or field.default is dataclasses.MISSING:
      continue
    meaning = said.get(field.name, "").replace("|", "/").replace("<", "&lt;")
    rows.append(f"| `{prefix}{field.name}` | {shown(field.default, field.type)} | {meaning} |")
  return "\n".join(rows)


def section(title: str, cls, prefix: str, skip=()) -> str:
  return f"## {title}\n\n{inspect.getdoc(cls)}\n\n{table(cls, prefix, skip)}\n"


def page() -> str:
  """The whole text of docs/configuration.md."""
  parts = [HEAD.format(stage_keys=", ".join(f"`{key}`" for key in STAGE_KEYS))]
  parts.append(f"## The run\n\n{table(RunConfig, '', skip=('stage',))}\n")
  factories = {field.name: field.default_factory for field in dataclasses.fields(RunConfig)}
  nested = {name: cls for name, cls in factories.items() if dataclasses.is_dataclass(cls)}
  for name, row in ALGORITHMS.items():
    parts.append(section(f"algorithm, with `algorithm.name = \"{name}\"`", row.config, "algorithm."))
  for name, cls in nested.items():
    parts.append(section(name, cls, f"{name}."))
  for name, cls in tasks.TASKS.items():
    title = f"data.task_options, with `data.source = \"task:{name}\"`"
    parts.append(section(title, cls, "data.task_options.", skip=("split",)))
  return "\n".join(parts)


if __name__ == "__main__":
  PAGE.write_text(page(), encoding="utf-8")
