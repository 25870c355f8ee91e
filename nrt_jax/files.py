"""Files as JSON and text. What is written as a whole goes to a temporary name and is renamed: a reader sees either the
old file or the new one. What is appended is a line, of which a reader skips one that was cut off.
"""

import contextlib
import fcntl
import filecmp
import hashlib
import json
import math
import os
import re
import shutil

import numpy as np

# How libraries in C++ and Rust write the operating system's number of an error: (os error 28), [os_error_code='28'].
OS_ERROR = re.compile(r"os[ _]error(?:_code)?[ ='\"]*(\d+)", re.IGNORECASE)


def json_safe(value):
  """Converts arrays and tuples to lists, NumPy and JAX scalars to Python's, NaN and infinities to None."""
  if isinstance(value, dict):
    return {str(key): json_safe(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [json_safe(item) for item in value]
  if hasattr(value, "dtype"):
    return json_safe(np.asarray(value).tolist())
  return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(value, digits: int = 64) -> str:
  """Hexadecimal digits, 64 at most, that differ where a JSON value does."""
  return hashlib.sha256(json.dumps(json_safe(value), sort_keys=True).encode()).hexdigest()[:digits]


def json_text(value) -> str:
  """Indented JSON."""
  return json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path, value) -> None:
  """Writes indented JSON atomically."""
  write_text(path, json_text(value), errors="backslashreplace")


def json_lines(rows) -> str:
  """One line of JSON per row, as text."""
  return "".join(json.dumps(json_safe(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def write_text(path, text: str, errors: str = "strict") -> None:
  """Writes UTF-8 text atomically and flushes it to disk. `errors` as in str.encode."""
  temporary = f"{path}.{os.getpid()}.tmp"
  with writing(path):
    try:
      with open(temporary, "w", encoding="utf-8", errors=errors) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):
        os.remove(temporary)
      raise


def os_error(error: BaseException | None, path) -> OSError | None:
  """The error of the operating system that `error` is, or tells of in its text; one that names no file gets `path`.

  None for anything else.
  """
  if isinstance(error, OSError) and error.errno is not None:
    return OSError(error.errno, error.strerror, error.filename2 or error.filename or str(path))  # 2: the copy
  found = OS_ERROR.search(str(error))
  return OSError(int(found[1]), os.strerror(int(found[1])), str(path)) if found else None


@contextlib.contextmanager
def writing(path):
  """Gives errors of the operating system that come from libraries, or name no file, their type and `path`."""
  try:
    yield
  except Exception as error:
    found = os_error(error, path)
    if found is None:
      raise
    raise found from error


def cache_directory() -> str:
  """Where files belong that any command may make anew: nrt_jax in the user's cache directory."""
  return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "nrt_jax")


def append_json_line(path, value) -> None:
  """Appends a line of JSON, after ending an incomplete one that an interrupted writer may have left.

  Processes may append to one file at once.
  """
  with open(path, "a+b") as file:
    _lock(file)  # until it is closed
    file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
    broken = file.read(1) not in (b"", b"\n")
    file.write(b"\n" * broken + json_lines([value]).encode())


def read_json_lines(path) -> list:
  """The values of the lines; none without a file, nor of an incomplete line."""
  found = []
  if os.path.exists(path):
    with open(path, encoding="utf-8", errors="replace") as file:  # a line may be cut off within a character
      for text in file:
        with contextlib.suppress(json.JSONDecodeError):
          found.append(json.loads(text))
  return found


def fill_directory(path: str, write) -> None:
  """Makes a directory of files by write(temporary name) and a renaming; one that holds the same files stays as it is.

  Processes may do so at once, and read it afterwards.
  """
  temporary = f"{path}.{os.getpid()}.tmp"
  shutil.rmtree(temporary, ignore_errors=True)
  os.makedirs(temporary)
  write(temporary)
  with open(f"{path}.lock", "ab") as file:
    _lock(file)
    if _same_files(temporary, path):
      shutil.rmtree(temporary)
    else:
      shutil.rmtree(path, ignore_errors=True)
      os.rename(temporary, path)


def _same_files(one: str, other: str) -> bool:
  names = os.listdir(one)
  if not os.path.isdir(other) or sorted(os.listdir(other)) != sorted(names):
    return False
  return filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


def _lock(file) -> None:
  """Waits until no other process has this file locked. Where the file system has no locks, nothing is locked."""
  with contextlib.suppress(OSError):
    fcntl.lockf(file, fcntl.LOCK_EX)
