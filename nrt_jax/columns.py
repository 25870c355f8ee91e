"""Columns of a source's row as checked text, and conversations split into question and answer."""

from nrt_jax import errors, prompts


def column(row, name, where: str):
  """The row's column. UserError, with the columns that there are, where it has none."""
  if name not in row:
    raise errors.UserError(f"{where}: no column {name!r}; columns found: {', '.join(map(str, row))}")
  return row[name]


def text(row, name, where: str) -> str:
  """A column that must hold text, or a number; not empty, and valid Unicode. UserError otherwise."""
  value = column(row, name, where)
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    value = str(value)
  if not isinstance(value, str):
    raise errors.UserError(f"{where}: column {name!r} holds {type(value).__name__}, allowed: text or a number")
  if not value.strip():
    raise errors.UserError(f"{where}: column {name!r} is empty")
  try:
    value.encode()
  except UnicodeEncodeError as error:  # JSON can write these, tokenizers fail on them
    raise errors.UserError(f"{where}: column {name!r} holds half a character (a lone surrogate)") from error
  return value


def split_messages(messages, where: str):
  """The turns before the last assistant turn, and that turn's text. Turns after it are left out."""
  if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
    raise errors.UserError(f"{where}: messages must be a list of objects with role and content")
  for message in messages:
    errors.require_choice(f"{where}: role", message.get("role"), prompts.ROLES)
  roles = [m["role"] for m in messages]
  if "assistant" not in roles:
    raise errors.UserError(f"{where}: no assistant turn, so there is no answer")
  last = len(roles) - 1 - roles[::-1].index("assistant")
  if last == 0 or roles[last - 1] != "user" or "system" in roles[1:last]:
    found = ", ".join(roles)
    raise errors.UserError(f"{where}: found the turns {found}; allowed: [system,] user, ..., user, assistant")
  turns = [{"role": m["role"], "content": text(m, "content", where)} for m in messages[: last + 1]]
  return tuple(turns[:-1]), turns[-1]["content"]
