"""Config files: Python with get_config() -> ConfigDict, and the --config.KEY=VALUE overrides of the command line."""

import ast
import json
import pathlib
import sys
import traceback
import types

from ml_collections import ConfigDict

from nrt_jax import config as library
from nrt_jax.commands.flags import CONFIG_PREFIX
from nrt_jax.errors import UserError, require_choice

LONGEST = 10_000  # bits of an integer: Python writes and reads no more than 4300 digits
MODULE = "nrt_jax_config_file"  # name under which a config file runs


# What a run starts from -> keys that differ from the defaults then. docs/instruct.md says why.
STARTS = {
  "instruct": {
    "prompt.template": "chat",  # refuses a model without chat template; the default would ask it plainly
    "prompt.marker": "<|response_start|>The answer is ",
    "sampling.max_trace_length": 256,
  },
}


def base_config(algorithm: str = "nrt", start: str | None = None) -> ConfigDict:
  """All keys with their defaults, as the base of a config file; locked, so that a misspelled key is an error.

  `start`: a row of STARTS, whose values replace some defaults. With `stages`, set `total_steps` too: it caps every
  stage.
  """
  values = {**library.defaults(algorithm), "stages": [], "curriculum": None}
  if start is not None:
    require_choice("base_config: start", start, STARTS)
    for key, value in STARTS[start].items():
      group, name = key.split(".")
      values[group][name] = value
  config = ConfigDict(values)
  config.lock()
  config.data.task_options.unlock()  # options differ between tasks
  return config


def load_config(path: str, overrides: list[str] = ()) -> dict:
  """Loads a config file and applies the overrides; returns plain dicts, lists, numbers and strings.

  Raises UserError for a missing file, an error inside it (with its line), and an override that can't be applied.
  """
  values = plain(_require_mapping(call(pathlib.Path(path), "get_config", "--config"), path), "")
  _check_caps(path, values)
  pairs = [_read_override(text) for text in overrides]
  for keys, text in sorted(pairs, key=lambda pair: pair[0][-2:] != ["algorithm", "name"]):  # the name before its keys
    override(values, keys, text)
  return values


# ---- The file ------------------------------------------------------------------------------------------------------


def call(path: pathlib.Path, function: str, flag: str):
  """What a function of the file returns. Errors become one-line UserErrors with the line of the file.

  flag: the one that named the file, for messages.
  """
  if not path.is_file():
    raise UserError(f"{flag}: {path}: no such file")
  module = types.ModuleType(MODULE)
  module.__file__ = str(path)
  sys.modules[MODULE] = module
  sys.path.append(str(path.parent.resolve()))  # so that it can import its neighbors, however we were started
  try:
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    if not callable(getattr(module, function, None)):
      raise UserError(f"{path}: defines no function {function}()")
    return getattr(module, function)()
  except SyntaxError as error:
    raise UserError(f"{error.filename or path}:{error.lineno or 1}: {error.msg}") from error
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    raise UserError(f"{path}:{_line(error, path)}: {type(error).__name__}: {_first_sentence(error)}") from error
  finally:
    sys.path.remove(str(path.parent.resolve()))


def _require_mapping(config, path):
  if not hasattr(config, "items"):
    raise UserError(f"{path}: get_config() returned {type(config).__name__}, allowed: ConfigDict or dict")
  return config


def _line(error: Exception, path: pathlib.Path) -> int:
  """The last line of `path` that the error passed through."""
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
  return lines[-1] if lines else 1


def _first_sentence(error: Exception) -> str:
  """The first sentence of an error message: ml_collections appends a list of all other keys."""
  text = str(error.args[0]) if error.args else ""
  return text.removeprefix("'").split(". Other fields present")[0].split("\n")[0]


def plain(value, where: str):
  """Converts mappings to dicts and tuples to lists. Raises UserError for values that JSON cannot represent."""
  if hasattr(value, "items"):
    return {str(key): plain(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
  if isinstance(value, int) and value.bit_length() > LONGEST:
    raise UserError(f"{where}: found an integer of {value.bit_length()} bits, allowed: up to {LONGEST}")
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  raise UserError(f"{where}: found a {type(value).__name__}, allowed: numbers, texts, null, lists and mappings of them")


def _check_caps(path: str, values: dict) -> None:
  """Raises UserError if the file's own top-level total_steps would silently cut a stage short."""
  for number, stage in enumerate(_stages(values)):
    steps, cap = stage.get("total_steps"), values.get("total_steps")
    if isinstance(steps, int) and isinstance(cap, int) and steps > cap:
      raise UserError(
        f"{path}: stages[{number}].total_steps: found {steps}, allowed: at most the top-level total_steps ({cap})"
      )


# ---- Overrides -----------------------------------------------------------------------------------------------------


def _read_override(text: str) -> tuple[list[str], str]:
  name, equals, value = text.removeprefix(CONFIG_PREFIX).partition("=")
  if not equals or not all(name.split(".")):
    raise UserError(f"{text}: allowed: {CONFIG_PREFIX}KEY=VALUE, with KEY like optimizer.learning_rate")
  return name.split("."), value


def override(values: dict, keys: list[str], text: str) -> None:
  """Sets one key, in place. Types and misspelled keys are checked when the config is parsed, not here.

  Raises UserError if the path leads through a value that is not a mapping, or if the override has no effect.
  """
  name = ".".join(keys)
  _require_effect(values, keys)
  node = values
  for depth, key in enumerate(keys[:-1]):
    node = _enter(node, key, ".".join(keys[: depth + 1]))
  if not isinstance(node, dict):
    raise UserError(f"{CONFIG_PREFIX}{name}: allowed: a key inside of a stage, e.g. {name}.total_steps")
  old = node.get(keys[-1], _lookup(values, keys[2:]) if keys[0] == "stages" else None)
  new = parse_value(text, old)
  if keys[-2:] == ["algorithm", "name"] and new != old:
    node.clear()  # a different algorithm has different keys and starts from its own defaults
  node[keys[-1]] = plain(new, name)


def _enter(node, key: str, name: str):
  """The mapping or list under `key`; created if absent or null. A stage is found by its number or its name."""
  if isinstance(node, list):
    found = {str(i): stage for i, stage in enumerate(node)} | {s.get("name"): s for s in node if isinstance(s, dict)}
    if key not in found:
      names = ", ".join(str(s.get("name")) for s in node if isinstance(s, dict))
      raise UserError(f"{CONFIG_PREFIX}{name}: found no such stage, allowed: {names or 'none, there are no stages'}")
    return found[key]
  if node.get(key) is None:
    node[key] = {}
  if not isinstance(node[key], (dict, list)):
    raise UserError(f"{CONFIG_PREFIX}{name}: found {node[key]!r} there, which has no keys inside")
  return node[key]


def parse_value(text: str, old=None):
  """Parses a value: JSON or a Python literal, else the text itself. Numbers stay text if `old` is a string."""
  value = _literal(text)
  return text if isinstance(old, str) and not isinstance(value, (str, type(None))) else value


def _literal(text: str):
  for read in (json.loads, ast.literal_eval):
    try:
      return read(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
      continue
  return text


def _stages(values: dict) -> list[dict]:
  stages = values.get("stages")
  return [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []


def _lookup(values, keys: list[str]):
  """The value at a path of keys, None if there is none."""
  for key in keys:
    values = values.get(key) if isinstance(values, dict) else None
  return values


def _require_effect(values: dict, keys: list[str]) -> None:
  """Raises UserError if every stage sets the key itself, so that a top-level value would have no effect."""
  stages = _stages(values)
  if keys[0] in ("stages", "total_steps") or not stages:
    return
  algorithm = _lookup(values, ["algorithm", "name"])
  for stage in stages:
    other_algorithm = keys[0] == "algorithm" and _lookup(stage, ["algorithm", "name"]) not in (None, algorithm)
    if not other_algorithm and _lookup(stage, keys) is None:
      return
  names = [str(stage.get("name")) for stage in stages]
  key = ".".join(keys)
  raise UserError(
    f"{CONFIG_PREFIX}{key}: every stage sets it for itself; write {CONFIG_PREFIX}stages.{names[-1]}.{key} "
    f"(stages: {', '.join(names)})"
  )
