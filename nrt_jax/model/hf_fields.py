"""Values of JSON files, read and checked one by one."""

import json
from pathlib import Path

from nrt_jax.errors import UserError

REQUIRED = object()
LARGEST = 2**31 - 1
POSITIVE = "a positive integer"
_KINDS = {int: POSITIVE, float: "a finite number", bool: "true or false"}
FINITE = 1.7e308  # of what a float can hold


def shown(value) -> str:
  """A value for a message, cut where it is long."""
  text = repr(value)
  return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


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
  except (ValueError, RecursionError) as e:  # an integer of thousands of digits; nesting beyond Python's stack
    raise UserError(f"{path}: not JSON that can be read: {e}") from None
  if not isinstance(raw, dict):
    raise UserError(f"{path}: found a JSON {type(raw).__name__}, allowed: an object")
  return raw


def read_field(raw: dict, where: str, key: str, kind: type, default=REQUIRED, most: int = LARGEST):
  """raw[key] as an int from 1 to `most`, a finite float or a bool; null counts as absent. UserError otherwise."""
  value = raw.get(key)
  if value is None:
    if default is REQUIRED:
      raise UserError(f"{where}: the key {key!r} is missing")
    return default
  fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
  if not fits or (kind is int and not 1 <= value <= most) or (kind is float and not abs(value) <= FINITE):
    limit = f", at most {most}" if kind is int else ""
    raise UserError(f"{where}: {key}: found {shown(value)}, allowed: {_KINDS[kind]}{limit}")
  return kind(value)
