"""Columns of a source's row as checked text, and conversations split into question and answer."""

from nrt_jax import errors
from nrt_jax.data import prompts


def column(row, name, where: str):
  """The row's column; "reward_model.ground_truth" reaches into one that holds an object. UserError without it."""
  if name in row:
    return row[name]
  outer, dot, inner = name.partition(".")
  if dot and isinstance(row.get(outer), dict):
    return column(row[outer], inner, f"{where}: column {outer!r}")
  raise errors.UserError(f"{where}: no column {name!r}; columns found: {', '.join(map(str, row))}")


def missing(row, name) -> bool:
  """Whether the row has no such column, or nothing in it."""
  if name in row:
    return row[name] in (None, "")
  outer, dot, inner = name.partition(".")
  return not (dot and isinstance(row.get(outer), dict)) or missing(row[outer], inner)


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


def question(row, name, where: str):
  """A question as text, or as the turns of a conversation that ends with the user's: a tuple of role and content."""
  messages = column(row, name, where)
  if not isinstance(messages, list):
    return text(row, name, where)
  roles = [message["role"] for message in _turns(messages, where)]
  if roles[-1:] != ["user"] or "system" in roles[1:]:
    found = ", ".join(roles) or "none"
    raise errors.UserError(f"{where}: column {name!r}: found the turns {found}; allowed: [system,] user, ..., user")
  return tuple({"role": m["role"], "content": text(m, "content", where)} for m in messages)


def _turns(messages, where: str):
  """The messages, each checked to be an object with a known role."""
  if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
    raise errors.UserError(f"{where}: messages must be a list of objects with role and content")
  for message in messages:
    errors.require_choice(f"{where}: role", message.get("role"), prompts.ROLES)
  return messages


def split_messages(messages, where: str):
  """The turns before the last assistant turn, and that turn's text. Turns after it are left out."""
  roles = [m["role"] for m in _turns(messages, where)]
  if "assistant" not in roles:
    raise errors.UserError(f"{where}: no assistant turn, so there is no answer")
  last = len(roles) - 1 - roles[::-1].index("assistant")
  if last == 0 or roles[last - 1] != "user" or "system" in roles[1:last]:
    found = ", ".join(roles)
    raise errors.UserError(f"{where}: found the turns {found}; allowed: [system,] user, ..., user, assistant")
  turns = [{"role": m["role"], "content": text(m, "content", where)} for m in messages[: last + 1]]
  return tuple(turns[:-1]), turns[-1]["content"]


def weight(row, name, where: str) -> float:
  """A column that must hold a number of 0 or more, as text in CSV files. UserError otherwise."""
  value = column(row, name, where)
  try:
    number = -1.0 if isinstance(value, bool) else float(value)
  except (TypeError, ValueError):
    number = -1.0
  if not 0 <= number < float("inf"):
    raise errors.UserError(f"{where}: column {name!r}: found {value!r}, allowed: a number, 0 or more")
  return number
