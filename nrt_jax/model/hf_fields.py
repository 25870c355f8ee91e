"""Values of JSON files, read and checked one by one."""

import json
from pathlib import Path

from nrt_jax.errors import UserError

REQUIRED = object()
POSITIVE = "a positive integer"
_KINDS = {int: POSITIVE, float: "a number", bool: "true or false"}


def read_json(path: Path) -> dict:
  """The object in a JSON file. Raises UserError with file and line where there is none."""
  if not path.is_file():
    raise UserError(f"{path}: no such file")
  try:
    raw = json.loads(path.read_text(encoding="utf-8"))
  except json.JSONDecodeError as e:
    raise UserError(f"{path}:{e.lineno}: not valid JSON: {e.msg}") from None
  except UnicodeDecodeError:
    raise UserError(f"{path}: not a UTF-8 text file") from None
  if not isinstance(raw, dict):
    raise UserError(f"{path}: found a JSON {type(raw).__name__}, allowed: an object")
  return raw


def read_field(raw: dict, where: str, key: str, kind: type, default=REQUIRED):
  """raw[key] as an int of 1 or more, a float or a bool; null counts as absent. UserError otherwise."""
  value = raw.get(key)
  if value is None:
    if default is REQUIRED:
      raise UserError(f"{where}: the key {key!r} is missing")
    return default
  fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
  if not fits or (kind is int and value < 1):
    raise UserError(f"{where}: {key}: found {value!r}, allowed: {_KINDS[kind]}")
  return kind(value)
