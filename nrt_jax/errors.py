"""The exception for invalid user input, and helpers for its messages."""

import contextlib
import difflib
import sys


class UserError(Exception):
  """A mistake in a config, a file or a flag. Commands print its one-line message and exit with code 2."""


class Unfinished(Exception):
  """Work that ended early, in order, and that the same command continues: one line, and exit code 1."""


def printable(text: str) -> str:
  """The text with control characters escaped: names in files of others may hold what a terminal obeys."""
  return "".join(c if c.isprintable() or c in "\t " else repr(c)[1:-1] for c in text)


def warn(text: str) -> None:
  """Writes one line to stderr, if there still is one."""
  with contextlib.suppress(OSError, ValueError):
    print("nrt-jax: warning:", printable(" ".join(text.split())), file=sys.stderr, flush=True)


def choices(found, allowed, suggest: bool = True) -> str:
  """The end of an error message: the value found, the allowed ones and, if `suggest`, the nearest of them."""
  allowed = sorted(str(a) for a in allowed)
  near = difflib.get_close_matches(str(found), allowed, n=1) if suggest else ()
  hint = f" (did you mean {near[0]!r}?)" if near else ""
  return f"found {found!r}, allowed: {', '.join(allowed)}{hint}"


def require_choice(where: str, found, allowed, suggest: bool = True) -> None:
  """Raises UserError naming `where`, the value and the choices, unless `found` is one of `allowed`.

  suggest: whether the message proposes the nearest choice. Not for names where a similar spelling means nothing.
  """
  if found not in allowed:
    raise UserError(f"{where}: {choices(found, allowed, suggest)}")


def pairs(where: str, found) -> tuple:
  """Converts a mapping or (name, value) pairs to sorted pairs, for frozen configs. UserError for anything else."""
  items = tuple(found.items() if hasattr(found, "items") else found)
  if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in items):
    raise UserError(f"{where}: found {found!r}, allowed: a mapping")
  return tuple(sorted((str(key), value) for key, value in items))


@contextlib.contextmanager
def at(where: str | None):
  """Prefixes UserErrors raised inside the context with `where`, unless it is empty."""
  try:
    yield
  except UserError as error:
    raise UserError(f"{where}: {error}" if where else str(error)) from error
