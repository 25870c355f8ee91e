"""Rotary positions in config.json <-> the fields of ModelConfig, as transformers 5 spells them and as it was before.

transformers 5 has everything in `rope_parameters`, one dict or one for each type of layers; before, there were
`rope_theta`, `rope_scaling` and keys of single families.
"""

import dataclasses
import math

from nrt_jax.errors import UserError, require_choice
from nrt_jax.model.architecture import ModelConfig, RopeScaling
from nrt_jax.model.hf_families import Family
from nrt_jax.model.hf_fields import LARGEST, read_field, shown

LAYER_TYPES = ("full_attention", "sliding_attention")
# Keys of each type besides rope_type: those that must be there, and those that a scaling has in its file.
NEEDED = {
  "linear": ("factor",),
  "dynamic": ("factor",),
  "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
  "yarn": ("factor",),
  "longrope": (),
}
WRITTEN = {
  "linear": ("factor",),
  "dynamic": ("factor",),
  "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
  "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "truncate", "original_max_position_embeddings"),
  "longrope": ("factor", "attention_factor", "short_factor", "long_factor", "original_max_position_embeddings"),
}
UNKNOWN = ("mrope_section", "alpha")  # keys of rotations that we lack
ORIGINAL, PARTIAL = "original_max_position_embeddings", "partial_rotary_factor"


def parse_rope(raw: dict, where: str, family: Family) -> dict:
  """rope_theta, rope_scaling, local_rope_theta and partial_rotary_factor of a config.json. Raises UserError."""
  rope, local, where_rope = _dicts(raw, where, family)
  for key in UNKNOWN:
    if rope.get(key) is not None:
      raise UserError(f"{where_rope}.{key}: found {rope[key]!r}, allowed: null")

  def either(key: str, default: float) -> float:
    return read_field(rope, where_rope, key, float, read_field(raw, where, key, float, default))

  theta, partial = either("rope_theta", family.rope_theta), either(PARTIAL, 1.0)
  require_positive(where_rope, {"rope_theta": theta})
  if partial != 1 and PARTIAL not in family.reads or not 0 < partial <= 1:
    allowed = "above 0, up to 1" if PARTIAL in family.reads else "1"
    raise UserError(f"{where_rope}.{PARTIAL}: found {partial!r}, allowed: {allowed}")
  scaling = _parse_scaling(rope, raw, where, where_rope, family)
  found = {"rope_theta": theta, "rope_scaling": scaling, PARTIAL: partial, "local_rope_theta": None}
  if family.local_rope_theta is None:
    return found
  default = theta if family.local_rope_theta == "same" else family.local_rope_theta
  default = read_field(raw, where, "rope_local_base_freq", float, default)
  local_theta = read_field(local, where_rope, "rope_theta", float, default)
  return {**found, "local_rope_theta": None if scaling is None and local_theta == theta else local_theta}


def _dicts(raw: dict, where: str, family: Family) -> tuple[dict, dict, str]:
  """The parameters of layers that see everything, those of layers that slide, and where they are."""
  rope, scaling = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
  key = "rope_scaling" if scaling else "rope_parameters"
  for name, value in (("rope_parameters", rope), ("rope_scaling", scaling)):
    if not isinstance(value, dict):
      raise UserError(f"{where}: {name}: found {value!r}, allowed: an object")
  if family.local_rope_theta is None:
    rope = scaling or rope
    if any(isinstance(value, dict) for value in rope.values()):
      raise UserError(f"{where}: {key}: found {rope!r}, allowed: one set of parameters for all layers")
    return rope, {}, f"{where}: {key}"
  nested = {name: rope.get(name) or {} for name in LAYER_TYPES}
  if rope.keys() - set(LAYER_TYPES) or not all(isinstance(value, dict) for value in nested.values()):
    raise UserError(f"{where}: rope_parameters: found {rope!r}, allowed: one set for each of {', '.join(LAYER_TYPES)}")
  full, local = ({**nested["full_attention"], **scaling}, nested["sliding_attention"])
  if _type_of(local) != "default":
    key = "rope_parameters.sliding_attention.rope_type"
    raise UserError(f"{where}: {key}: found {_type_of(local)!r}, allowed: default")
  return full, local, f"{where}: {key}"


def _type_of(rope: dict) -> str:
  return rope.get("rope_type", rope.get("type", "default"))


def _parse_scaling(rope: dict, raw: dict, where: str, where_rope: str, family: Family) -> RopeScaling | None:
  kind = family.rope_aliases.get(_type_of(rope), _type_of(rope))
  require_choice(f"{where_rope}.rope_type", kind, ("default", *family.rope_types), suggest=False)
  if kind == "default":
    return None
  positions = read_field(raw, where, "max_position_embeddings", int, family.max_position_embeddings)
  original = read_field(raw, where, ORIGINAL, int, family.original_max_position_embeddings)
  original = read_field(rope, where_rope, ORIGINAL, int, positions) if original is None else original
  values = {name: read_field(rope, where_rope, name, float) for name in NEEDED[kind]}
  require_positive(where_rope, values)
  if kind == "llama3" and values["low_freq_factor"] >= values["high_freq_factor"]:
    found = values["low_freq_factor"]
    raise UserError(f"{where_rope}.low_freq_factor: found {found}, allowed: below high_freq_factor")
  if kind == "longrope":
    values |= {name: _numbers(rope, where_rope, name) for name in ("short_factor", "long_factor")}
    values["factor"] = factor = read_field(rope, where_rope, "factor", float, positions / original)
    require_positive(where_rope, {"factor": factor})
    default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    values["attention_factor"] = read_field(rope, where_rope, "attention_factor", float, default)
  if kind == "yarn":
    values |= {name: read_field(rope, where_rope, name, float, 32.0 if name == "beta_fast" else 1.0)
               for name in ("beta_fast", "beta_slow")}  # fmt: skip
    values["truncate"] = read_field(rope, where_rope, "truncate", bool, True)
    default = _yarn_factor(rope, values["factor"])
    values["attention_factor"] = read_field(rope, where_rope, "attention_factor", float, default)
  return RopeScaling(kind, **values, **({ORIGINAL: original} if ORIGINAL in WRITTEN[kind] else {}))


def require_positive(where: str, values: dict) -> None:
  """Raises UserError at a number that frequencies are divided by, and that is not above 0."""
  for name, value in values.items():
    if value <= 0:
      raise UserError(f"{where}.{name}: found {value!r}, allowed: a number above 0")


def _yarn_factor(rope: dict, factor: float) -> float:
  """What YaRN multiplies cos and sin by, 0.1 ln(factor) + 1, or DeepSeek's quotient of two of these."""

  def scale(weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

  weights = [rope.get(name) for name in ("mscale", "mscale_all_dim")]
  return scale(weights[0]) / scale(weights[1]) if all(weights) else scale(1.0)


def _numbers(rope: dict, where: str, key: str) -> tuple:
  found = rope.get(key)
  if not isinstance(found, list) or not found or any(type(x) not in (int, float) or not 0 < x < LARGEST for x in found):
    raise UserError(f"{where}: {key}: found {shown(found)}, allowed: a list of numbers above 0")
  return tuple(map(float, found))


def rope_in_file(config: ModelConfig, family: Family) -> dict:
  """The keys of config.json about rotary positions, for transformers 4 and 5 alike."""
  scaling, raw = None, {"rope_theta": config.rope_theta}
  if config.rope_scaling is not None:
    kind, values = config.rope_scaling.rope_type, dataclasses.asdict(config.rope_scaling)
    scaling = {"rope_type": kind} | {name: values[name] for name in WRITTEN[kind]}
    scaling = {name: list(value) if isinstance(value, tuple) else value for name, value in scaling.items()}
  rope = {**(scaling or {"rope_type": "default"}), "rope_theta": config.rope_theta}
  if PARTIAL in family.reads:
    raw[PARTIAL] = rope[PARTIAL] = config.partial_rotary_factor
  if family.original_max_position_embeddings and scaling:
    raw[ORIGINAL] = scaling[ORIGINAL]
  raw |= {"rope_scaling": scaling, "rope_parameters": rope}
  if family.local_rope_theta is not None:
    local = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    sliding = {"rope_type": "default", "rope_theta": local}
    raw["rope_parameters"] = {"full_attention": rope, "sliding_attention": sliding}
    if "rope_local_base_freq" in family.reads:
      raw["rope_local_base_freq"] = local
  return raw
