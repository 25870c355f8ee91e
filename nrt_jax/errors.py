"""The one exception that means "the user's input is wrong", and helpers that word it alike everywhere."""

import difflib


class UserError(Exception):
  """A mistake in a config, a file or a flag. Commands print its one line and exit with code 2."""


def choices(found, allowed) -> str:
  """Words the tail of an error: what was found, what is allowed, and the nearest allowed name."""
  allowed = sorted(str(a) for a in allowed)
  near = difflib.get_close_matches(str(found), allowed, n=1)
  hint = f" (did you mean {near[0]!r}?)" if near else ""
  return f"found {found!r}, allowed: {', '.join(allowed)}{hint}"


def require_choice(where: str, found, allowed) -> None:
  """Raises UserError naming `where`, the value and the choices unless `found` is one of `allowed`."""
  if found not in allowed:
    raise UserError(f"{where}: {choices(found, allowed)}")
