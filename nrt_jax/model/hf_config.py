"""config.json of Hugging Face models <-> ModelConfig. What a family leaves out and implies is in hf_families.py."""

import dataclasses
import functools
import json
from pathlib import Path

from nrt_jax.errors import UserError, require_choice
from nrt_jax.files import write_json
from nrt_jax.model.architecture import ModelConfig, RopeScaling
from nrt_jax.model.hf_families import FAMILIES, Family, refuse_unread

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
GENERATION_FILE = "generation_config.json"

# Fields that some family implies, and what they are elsewhere.
UNLESS_IMPLIED = {
  f.name: f.default for f in dataclasses.fields(ModelConfig) if any(f.name in known.fields for known in FAMILIES.values())
}
_REQUIRED = object()
_KINDS = {int: "a positive integer", float: "a number", bool: "true or false"}


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


def _field(raw: dict, where: str, key: str, kind: type, default=_REQUIRED):
  """raw[key], checked; null counts as absent."""
  value = raw.get(key)
  if value is None:
    if default is _REQUIRED:
      raise UserError(f"{where}: the key {key!r} is missing")
    return default
  fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
  if not fits or (kind is int and value < 1):
    raise UserError(f"{where}: {key}: found {value!r}, allowed: {_KINDS[kind]}")
  return kind(value)


def _parse_rope(raw: dict, where: str, family: Family) -> dict:
  """rope_theta and rope_scaling, from `rope_parameters` (transformers 5) or the two older keys."""
  key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
  rope, where_rope = raw.get(key) or {}, f"{where}: {key}"
  if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
    raise UserError(f"{where_rope}: found {rope!r}, allowed: one set of parameters for all layers")
  theta = _field(rope, where_rope, "rope_theta", float, _field(raw, where, "rope_theta", float, family.rope_theta))
  if rope.get("partial_rotary_factor") not in (None, 1):
    raise UserError(f"{where_rope}.partial_rotary_factor: found {rope['partial_rotary_factor']!r}, allowed: 1")
  rope_type = rope.get("rope_type", rope.get("type", "default"))
  require_choice(f"{where_rope}.rope_type", rope_type, ("default", "linear", "llama3"))
  scaling = None
  if rope_type == "linear":
    scaling = RopeScaling("linear", factor=_field(rope, where_rope, "factor", float))
  if rope_type == "llama3":
    factors = {k: _field(rope, where_rope, k, float) for k in ("factor", "low_freq_factor", "high_freq_factor")}
    length = "original_max_position_embeddings"
    length = _field(rope, where_rope, length, int, raw.get("max_position_embeddings") or family.max_position_embeddings)
    scaling = RopeScaling("llama3", **factors, original_max_position_embeddings=length)
  return {"rope_theta": theta, "rope_scaling": scaling}


def _parse_window(raw: dict, where: str, family: Family, layers: int) -> dict:
  """sliding_window and sliding_layers: of no layer, all layers, or those that layer_types names."""
  none, field = {"sliding_window": None, "sliding_layers": None}, functools.partial(_field, raw, where)
  if family.windows == "none" or (family.windows == "switched" and not field("use_sliding_window", bool, False)):
    return none
  # An explicit null means no window.
  window = field("sliding_window", int, None if "sliding_window" in raw else family.sliding_window)
  if window is None or family.windows == "all":
    return {**none, "sliding_window": window}
  slides = tuple(name == "sliding_attention" for name in _layer_types(raw, where, layers))
  return {"sliding_window": window, "sliding_layers": None if all(slides) else slides} if any(slides) else none


def _layer_types(raw: dict, where: str, layers: int) -> list:
  types = raw.get("layer_types")
  if types is None:
    first = raw.get("max_window_layers", 28)  # may be 0
    types = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
  for name in types:
    require_choice(f"{where}: layer_types", name, ("full_attention", "sliding_attention"))
  if len(types) != layers:
    raise UserError(f"{where}: layer_types: found {len(types)} entries, allowed: num_hidden_layers = {layers}")
  return types


def _parse_heads(raw: dict, where: str, family: Family, width: int, heads: int) -> dict:
  """num_key_value_heads and head_dim; a null stands for what follows from the other sizes, an absent key need not."""
  found = {}
  follows = {"num_key_value_heads": heads, "head_dim": width // heads}
  for key, value in follows.items():
    default = value if key in raw else getattr(family, key) or value
    found[key] = _field(raw, where, key, int, default)
  if width % heads and raw.get("head_dim") is None and found["head_dim"] == follows["head_dim"]:
    raise UserError(f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}, and no head_dim")
  return found


def _parse_config(raw: dict, where: str) -> dict:
  """The fields of ModelConfig that config.json decides."""
  field = functools.partial(_field, raw, where)
  name = raw.get("model_type")
  require_choice(f"{where}: model_type", name, FAMILIES, suggest=False)
  family = FAMILIES[name]
  for architecture in raw.get("architectures") or ():
    require_choice(f"{where}: architectures", architecture, (family.architecture,), suggest=False)
  refuse_unread(raw, where, name)
  require_choice(f"{where}: hidden_act", raw.get("hidden_act", "silu"), ("silu", "swish"), suggest=False)
  if raw.get("quantization_config"):
    raise UserError(f"{where}: quantization_config: quantised weights are not supported; use the original checkpoint")
  fields = {key: field(key, int) for key in SIZES}
  biases = {key: key in family.reads and field(key, bool, False) for key in ("attention_bias", "mlp_bias")}
  return {
    **fields,
    **_parse_heads(raw, where, family, fields["hidden_size"], fields["num_attention_heads"]),
    **_parse_rope(raw, where, family),
    **_parse_window(raw, where, family, fields["num_hidden_layers"]),
    "family": name,
    "max_position_embeddings": field("max_position_embeddings", int, family.max_position_embeddings),
    "rms_norm_eps": field("rms_norm_eps", float, family.rms_norm_eps),
    "initializer_range": field("initializer_range", float, 0.02),
    "tie_word_embeddings": field("tie_word_embeddings", bool, family.tie_word_embeddings),
    **UNLESS_IMPLIED,
    "qkv_bias": biases["attention_bias"],
    "output_bias": biases["attention_bias"],
    "mlp_bias": biases["mlp_bias"],
    **family.fields,
  }


def read_model_config(directory, **overrides) -> ModelConfig:
  """ModelConfig of `directory`/config.json; `overrides` are fields of ModelConfig, such as compute_dtype or remat.

  Raises UserError on a missing file or key, and on an architecture, rope type or activation that the model lacks.
  """
  path = Path(directory) / "config.json"
  for name in overrides:
    require_choice("model", name, [f.name for f in dataclasses.fields(ModelConfig)])
  return ModelConfig(**{**_parse_config(read_json(path), str(path)), **overrides})


def _windows(config) -> tuple:
  slides = config.sliding_layers or (True,) * config.num_hidden_layers
  return tuple(config.sliding_window if slide else None for slide in slides)


PLAIN = (
  *SIZES, "max_position_embeddings", "num_key_value_heads", "head_dim", "rms_norm_eps", "initializer_range",
  "tie_word_embeddings", "rope_theta",
)  # fmt: skip


def hf_config(config: ModelConfig) -> dict:
  """The config.json of a model, readable by transformers 4 and 5.

  Raises UserError naming the field that the family's transformers class cannot express; a run that is to be exported
  calls it early.
  """
  family = FAMILIES[config.family]
  raw = {key: getattr(config, key) for key in PLAIN}
  raw |= {"model_type": config.family, "architectures": [family.architecture], "hidden_act": "silu"}
  rope = None if config.rope_scaling is None else dataclasses.asdict(config.rope_scaling)
  if rope and rope["rope_type"] == "linear":
    rope = {"rope_type": "linear", "factor": rope["factor"]}
  raw["rope_scaling"] = rope
  raw["rope_parameters"] = {**(rope or {"rope_type": "default"}), "rope_theta": config.rope_theta}
  biases = {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
  raw |= {key: value for key, value in biases.items() if key in family.reads} | _windows_in_file(config, family)
  _require_expressible(config, raw)
  return raw


def _windows_in_file(config: ModelConfig, family: Family) -> dict:
  if family.windows == "none":
    return {}
  windows, raw = _windows(config), {"sliding_window": config.sliding_window}
  if family.windows == "switched":
    raw["use_sliding_window"] = any(windows)
    raw["max_window_layers"] = next((i for i, window in enumerate(windows) if window), len(windows))
  if family.windows != "all":
    raw["layer_types"] = ["sliding_attention" if window else "full_attention" for window in windows]
  return raw


def _require_expressible(config: ModelConfig, raw: dict) -> None:
  architecture = raw["architectures"][0]
  fields = _parse_config(raw, "model")
  if _windows(ModelConfig(**fields)) != _windows(config):
    raise UserError(f"model.sliding_window: {architecture} cannot slide in the chosen layers, {_windows(config)}")
  for name in sorted(fields.keys() - {"sliding_window", "sliding_layers", "rope_scaling"}):
    if fields[name] != getattr(config, name):
      raise UserError(f"model.{name}: found {getattr(config, name)!r}, allowed with {architecture}: {fields[name]!r}")
  if config.family == "llama" and config.hidden_size % config.num_attention_heads:
    raise UserError(
      f"model.hidden_size: found {config.hidden_size}, allowed with {architecture}: multiples of "
      f"num_attention_heads {config.num_attention_heads}"
    )


def read_end_ids(directory) -> tuple:
  """The tokens that end a model's text by generation_config.json, then by config.json; () where neither says.

  Raises UserError where one says something else than an id or a list of ids.
  """
  found = []
  for name in (GENERATION_FILE, "config.json"):
    path = Path(directory) / name
    ids = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    for i in ids:
      if not isinstance(i, int) or isinstance(i, bool) or i < 0:
        raise UserError(f"{path}: eos_token_id: found {i!r}, allowed: a token's id, or a list of ids")
    found += ids
  return tuple(dict.fromkeys(found))


def write_generation_config(source, directory, end_ids) -> None:
  """Writes `source`/generation_config.json, if there is one, into `directory`, with these end tokens."""
  path = Path(source) / GENERATION_FILE
  if path.is_file():
    write_json(Path(directory) / GENERATION_FILE, {**read_json(path), "eos_token_id": one_or_list(end_ids)})


def one_or_list(ids):
  """Ids as config files hold them: a single one without a list."""
  return ids[0] if len(ids) == 1 else list(ids)


def write_config(config: ModelConfig, directory, dtype: str = "float32", source=None, token_ids: dict | None = None):
  """Writes `directory`/config.json. `dtype` says how the weights beside it are stored.

  The ids of the bos, eos and pad tokens come from `token_ids`, else from `source`/config.json, else they are null.
  """
  ids = dict.fromkeys(TOKEN_IDS)
  if source is not None and (Path(source) / "config.json").is_file():
    ids |= {key: value for key, value in read_json(Path(source) / "config.json").items() if key in TOKEN_IDS}
  for name in token_ids or {}:
    require_choice("token_ids", name, TOKEN_IDS)
  raw = {**hf_config(config), **ids, **(token_ids or {}), "torch_dtype": dtype}
  write_json(Path(directory) / "config.json", raw)
