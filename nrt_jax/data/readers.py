"""Files of examples as rows: each reader takes a path and gives a list of (where, columns), `where` being "file:line".

A file that isn't what its name says raises UserError with file and line.
"""

import csv
import gzip
import io
import json
import zlib

from nrt_jax import errors


def read_jsonl(path):
  """JSON Lines, packed by gzip if the name ends so: an object on each line; blank lines are skipped."""
  rows, unpack = [], gzip.open if path.suffix == ".gz" else open
  try:
    with unpack(path, "rb") as file:  # bytes: text mode would hide on which line an encoding error is
      for number, line in enumerate(file, 1):
        if line.strip():
          where = f"{path}:{number}"
          rows.append((where, _object(where, _parse_json(path, line.rstrip(), number))))
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise errors.UserError(f"{path}: not packed by gzip, or damaged: {error}") from error
  return rows


def _parse_json(path, text: bytes, first_line=1):
  try:
    return json.loads(text.decode("utf-8-sig"))
  except UnicodeDecodeError as error:
    raise errors.UserError(f"{path}:{_line(text, error) + first_line - 1}: not UTF-8 text") from error
  except json.JSONDecodeError as error:
    where = f"{path}:{error.lineno + first_line - 1}"
    raise errors.UserError(f"{where}: not JSON: {error.msg}, column {error.colno}") from error
  except (ValueError, RecursionError) as error:  # a number of thousands of digits; nesting beyond Python's stack
    raise errors.UserError(f"{path}:{first_line}: not JSON that can be read: {error}") from error


def _line(text: bytes, error: UnicodeDecodeError) -> int:
  return text.count(b"\n", 0, error.start) + 1


def _object(where, value):
  if not isinstance(value, dict):
    raise errors.UserError(f"{where}: found a JSON {type(value).__name__}, allowed: an object of columns")
  return value


def read_json(path):
  """A JSON list of objects, or an object that holds one such list beside other things."""
  content = _parse_json(path, path.read_bytes())
  if isinstance(content, dict):  # {"examples": [...], ...}: the one list is meant
    lists = [value for value in content.values() if isinstance(value, list)]
    content = lists[0] if len(lists) == 1 else content
  if not isinstance(content, list):
    raise errors.UserError(f"{path}: holds no list of objects, nor an object with one such list")
  return [(f"{path}: item {i}", _object(f"{path}: item {i}", row)) for i, row in enumerate(content, 1)]


def read_csv(path):
  """Comma-separated values under a header line; quoted fields may span lines."""
  raw = path.read_bytes()
  try:
    text = raw.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise errors.UserError(f"{path}:{_line(raw, error)}: not UTF-8 text") from error
  csv.field_size_limit(2**31 - 1)  # the default refuses fields over 128 KiB
  reader, rows, last = csv.DictReader(io.StringIO(text, newline=""), strict=True), [], 0
  try:
    for row in reader:
      last = reader.line_num
      if None in row or None in row.values():
        raise errors.UserError(f"{path}:{last}: has another number of fields than the header")
      first = last - sum(field.count("\n") for field in row.values())
      rows.append((f"{path}:{first}", row))
  except csv.Error as error:
    raise errors.UserError(f"{path}:{last + 1}: not CSV: {error}") from error
  return rows


def read_parquet(path):
  """A Parquet file."""
  import pyarrow.parquet

  try:
    rows = pyarrow.parquet.read_table(path).to_pylist()
  except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
    raise errors.UserError(f"{path}: not Parquet: {str(error).splitlines()[0]}") from error
  return [(f"{path}: row {i}", row) for i, row in enumerate(rows, 1)]


READERS = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
