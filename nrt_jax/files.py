"""Atomic file writes: to a temporary name, then renamed, so that a reader sees either the old file or the new one."""

import json
import math
import os

import numpy as np


def json_safe(value):
  """Converts arrays and tuples to lists, NumPy and JAX scalars to Python's, NaN and infinities to None."""
  if isinstance(value, dict):
    return {str(key): json_safe(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [json_safe(item) for item in value]
  if hasattr(value, "dtype"):
    return json_safe(np.asarray(value).tolist())
  return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path, value) -> None:
  """Writes indented JSON atomically."""
  text = json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False)
  write_text(path, text + "\n", errors="backslashreplace")


def json_lines(rows) -> str:
  """One line of JSON per row, as text."""
  return "".join(json.dumps(json_safe(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def write_text(path, text: str, errors: str = "strict") -> None:
  """Writes UTF-8 text atomically and flushes it to disk. `errors` as in str.encode."""
  temporary = f"{path}.{os.getpid()}.tmp"
  with open(temporary, "w", encoding="utf-8", errors=errors) as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
