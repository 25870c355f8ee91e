"""config.json of Hugging Face models <-> ModelConfig. What a family leaves out and implies is in hf_families.py."""

import dataclasses
import functools
from pathlib import Path

from nrt_jax.errors import UserError, require_choice
from nrt_jax.files import write_json
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.hf_families import FAMILIES, WHOLES, Family, refuse_unread
from nrt_jax.model.hf_fields import POSITIVE, REQUIRED, read_field, read_json, shown
from nrt_jax.model.hf_rope import LAYER_TYPES, parse_rope, rope_in_file

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# The largest sizes that are read, far above any model's: a wrong one must not cost hours or all memory.
MOST = {
  "vocab_size": 2**26, "hidden_size": 2**20, "intermediate_size": 2**22, "num_hidden_layers": 10_000,
  "num_attention_heads": 2**16, "num_key_value_heads": 2**16, "head_dim": 2**16, "num_experts": 2**16,
  "moe_intermediate_size": 2**22,
}  # fmt: skip
# activation -> the key of config.json that says it, and the values that mean it.
ACTIVATIONS = {
  "silu": ("hidden_act", ("silu", "swish")),
  "gelu_tanh": ("hidden_activation", ("gelu_pytorch_tanh",)),
}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
GENERATION_FILE = "generation_config.json"

# What is computed and that a family implies or its config.json says: what it is elsewhere.
SWITCHES = {
  f.name: f.default
  for f in dataclasses.fields(ModelConfig)
  if f.name in (
    "qk_norm", "qk_norm_joint", "norms", "norm_offset", "activation", "attention_multiplier", "embedding_multiplier",
    "residual_multiplier", "logits_scaling", "final_logit_softcapping", "attn_logit_softcapping", "rope_layers",
    "num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
  )
}  # fmt: skip
# Numbers that ModelConfig has under the same name, with their default where a family has them.
SCALARS = {
  "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0, "logits_scaling": 1.0,
  "final_logit_softcapping": None, "attn_logit_softcapping": None,
}  # fmt: skip


def _parse_window(raw: dict, where: str, family: Family, layers: int) -> dict:
  """sliding_window and sliding_layers: of no layer, all layers, or those that layer_types names."""
  none, field = {"sliding_window": None, "sliding_layers": None}, functools.partial(read_field, raw, where)
  if family.windows == "none":
    return none
  if family.windows.startswith("switched") and not field("use_sliding_window", bool, False):
    return none
  # An explicit null means no window.
  window = field("sliding_window", int, None if "sliding_window" in raw else family.sliding_window)
  if family.windows in ("all", "switched_all") or (window is None and family.windows == "switched"):
    return {**none, "sliding_window": window}
  slides = tuple(name == "sliding_attention" for name in _layer_types(raw, where, family, layers))
  if any(slides) and window is None:
    raise UserError(f"{where}: sliding_window: found None with sliding_attention layers, allowed: {POSITIVE}")
  return {"sliding_window": window, "sliding_layers": None if all(slides) else slides} if any(slides) else none


def _layer_types(raw: dict, where: str, family: Family, layers: int) -> list:
  types = raw.get("layer_types")
  if types is None:
    types = [LAYER_TYPES[slides] for slides in _default_slides(raw, where, family, layers)]
  for name in types:
    require_choice(f"{where}: layer_types", name, LAYER_TYPES)
  if len(types) != layers:
    raise UserError(f"{where}: layer_types: found {len(types)} entries, allowed: num_hidden_layers = {layers}")
  return types


def _default_slides(raw: dict, where: str, family: Family, layers: int) -> list:
  """Which layers slide where layer_types is absent, as in the families' config classes."""
  if "no_rope_layers" in family.reads:
    turns = _parse_rope_layers(raw, where, family, layers)
    return [turns is not None and not turn for turn in turns or (True,) * layers]
  if family.full_every:
    every = read_field(raw, where, "sliding_window_pattern", int, family.full_every)
    return [(i + 1) % every != 0 for i in range(layers)]
  first = raw.get("max_window_layers", 28)  # may be 0
  return [i >= first for i in range(layers)]


def _parse_rope_layers(raw: dict, where: str, family: Family, layers: int) -> tuple | None:
  """Which layers rotate queries and keys; None: all."""
  if "no_rope_layers" not in family.reads:
    return None
  turns = raw.get("no_rope_layers")  # 1 where a layer rotates, in spite of its name
  if turns is None:
    interval = read_field(raw, where, "no_rope_layer_interval", int, 4)
    turns = [int((i + 1) % interval != 0) for i in range(layers)]
  if not isinstance(turns, list) or len(turns) != layers or any(turn not in (0, 1) for turn in turns):
    raise UserError(f"{where}: no_rope_layers: found {turns!r}, allowed: 0 or 1 for each of the {layers} layers")
  return None if all(turns) else tuple(map(bool, turns))


def _parse_heads(raw: dict, where: str, family: Family, width: int, heads: int) -> dict:
  """num_key_value_heads and head_dim; a null stands for what follows from the other sizes, an absent key need not."""
  found = {}
  follows = {"num_key_value_heads": heads, "head_dim": width // heads}
  for key, value in follows.items():
    default = value if key in raw else getattr(family, key) or value
    found[key] = read_field(raw, where, key, int, default, MOST[key])
  if width % heads and raw.get("head_dim") is None and found["head_dim"] == follows["head_dim"]:
    raise UserError(f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}, and no head_dim")
  return found


def _parse_config(raw: dict, where: str) -> dict:
  """The fields of ModelConfig that config.json decides."""
  field = functools.partial(read_field, raw, where)
  name = raw.get("model_type")
  require_choice(f"{where}: model_type", name, (*FAMILIES, *WHOLES), suggest=False)
  if name in WHOLES:
    return _parse_config(_text_part(raw, where, WHOLES[name]), f"{where}: text_config")
  family = FAMILIES[name]
  for architecture in raw.get("architectures") or ():
    require_choice(f"{where}: architectures", architecture, (family.architecture,), suggest=False)
  refuse_unread(raw, where, name)
  key, allowed = ACTIVATIONS[family.fields.get("activation", "silu")]
  require_choice(f"{where}: {key}", raw.get(key, allowed[0]), allowed, suggest=False)
  if raw.get("quantization_config"):
    raise UserError(f"{where}: quantization_config: quantised weights are not supported; use the original checkpoint")
  fields = {key: field(key, int, family.sizes.get(key, REQUIRED), MOST[key]) for key in SIZES}
  layers = fields["num_hidden_layers"]
  biases = {key: key in family.reads and field(key, bool, False) for key in ("attention_bias", "mlp_bias")}
  return {
    **fields,
    **_parse_heads(raw, where, family, fields["hidden_size"], fields["num_attention_heads"]),
    **parse_rope(raw, where, family),
    **_parse_window(raw, where, family, layers),
    **SWITCHES,
    "rope_layers": _parse_rope_layers(raw, where, family, layers),
    "family": name,
    "max_position_embeddings": field("max_position_embeddings", int, family.max_position_embeddings),
    "rms_norm_eps": field("rms_norm_eps", float, family.rms_norm_eps),
    "initializer_range": field("initializer_range", float, 0.02),
    "tie_word_embeddings": field("tie_word_embeddings", bool, family.tie_word_embeddings),
    "qkv_bias": biases["attention_bias"],
    "output_bias": biases["attention_bias"],
    "mlp_bias": biases["mlp_bias"],
    **(_gemma_scales(raw, where, fields["hidden_size"]) if "query_pre_attn_scalar" in family.reads else {}),
    **_parse_scalars(raw, where, family),
    **(_parse_experts(raw, where) if "num_experts" in family.reads else {}),
    **family.fields,
  }


def _parse_scalars(raw: dict, where: str, family: Family) -> dict:
  """The numbers of SCALARS that a family has; a null means the value that changes nothing."""
  found = {}
  for key, neutral in SCALARS.items():
    if key in family.reads:
      default = neutral if key in raw else family.scalars.get(key, neutral)
      found[key] = read_field(raw, where, key, float, default)
  return found


def _parse_experts(raw: dict, where: str) -> dict:
  """Router and experts, which every layer must have. router_aux_loss_coef is of pretraining: no loss here has it."""
  field = functools.partial(read_field, raw, where)
  count = field("num_experts", int, field("num_local_experts", int, 128, MOST["num_experts"]), MOST["num_experts"])
  for key, all_layers in (("decoder_sparse_step", (1, None)), ("mlp_only_layers", ([], None))):
    if raw.get(key) not in all_layers:
      found = f"{shown(raw[key])}, allowed: {all_layers[0]}"
      raise UserError(f"{where}: {key}: found {found}: layers without experts beside others are not supported")
  if raw.get("num_local_experts") not in (None, count):  # transformers 5 has the number under this name
    found = f"{shown(raw['num_local_experts'])} with num_experts {count}"
    raise UserError(f"{where}: num_local_experts: found {found}, allowed: the same number")
  chosen = field("num_experts_per_tok", int, 8)
  if chosen > count:
    raise UserError(f"{where}: num_experts_per_tok: found {chosen}, allowed: 1 to num_experts = {count}")
  return {
    "num_experts": count,
    "num_experts_per_tok": chosen,
    "moe_intermediate_size": field("moe_intermediate_size", int, 768, MOST["moe_intermediate_size"]),
    "norm_topk_prob": field("norm_topk_prob", bool, False),
  }


def _text_part(raw: dict, where: str, name: str) -> dict:
  """The config.json of the text part of a model that reads images, too."""
  text = raw.get("text_config")
  if not isinstance(text, dict):
    raise UserError(f"{where}: text_config: found {text!r}, allowed: an object")
  return {**text, "model_type": name, "architectures": None, "quantization_config": raw.get("quantization_config")}


def _gemma_scales(raw: dict, where: str, width: int) -> dict:
  """The two multipliers that Gemma derives from sizes."""
  scalar = read_field(raw, where, "query_pre_attn_scalar", int, 256)
  return {"attention_multiplier": scalar**-0.5, "embedding_multiplier": width**0.5}


def read_model_config(directory, **overrides) -> ModelConfig:
  """ModelConfig of `directory`/config.json; `overrides` are fields of ModelConfig, such as compute_dtype or remat.

  Raises UserError on a missing file or key, and on an architecture, rope type or activation that the model lacks.
  """
  path = Path(directory) / "config.json"
  for name in overrides:
    require_choice("model", name, [f.name for f in dataclasses.fields(ModelConfig)])
  return ModelConfig(**{**_parse_config(read_json(path), str(path)), **overrides})


def windows_of(config: ModelConfig) -> tuple:
  """The sliding window of each layer, or None."""
  slides = config.sliding_layers or (True,) * config.num_hidden_layers
  return tuple(config.sliding_window if slide else None for slide in slides)


PLAIN = (
  *SIZES, "max_position_embeddings", "num_key_value_heads", "head_dim", "rms_norm_eps", "initializer_range",
  "tie_word_embeddings",
)  # fmt: skip


def hf_config(config: ModelConfig) -> dict:
  """The config.json of a model, readable by transformers 4 and 5.

  Raises UserError naming the field that the family's transformers class cannot express; a run that is to be exported
  calls it early.
  """
  family = FAMILIES[config.family]
  raw = {key: getattr(config, key) for key in PLAIN}
  raw |= {"model_type": config.family, "architectures": [family.architecture]}
  key, spellings = ACTIVATIONS[config.activation]
  raw[key] = spellings[0]
  values = {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
  values |= {key: getattr(config, key) for key in SCALARS}
  values["query_pre_attn_scalar"] = round(config.score_multiplier**-2)
  values["no_rope_layers"] = [int(turn) for turn in config.rope_layers or (1,) * config.num_hidden_layers]
  raw |= {key: value for key, value in values.items() if key in family.reads}
  raw |= _experts_in_file(config) if "num_experts" in family.reads else {}
  raw |= rope_in_file(config, family) | _windows_in_file(config, family)
  _require_expressible(config, raw)
  return raw


def _experts_in_file(config: ModelConfig) -> dict:
  keys = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
  raw = {key: getattr(config, key) for key in keys}
  return {**raw, "num_local_experts": config.num_experts, "decoder_sparse_step": 1, "mlp_only_layers": []}


def _windows_in_file(config: ModelConfig, family: Family) -> dict:
  if family.windows == "none":
    return {}
  windows, raw = windows_of(config), {"sliding_window": config.sliding_window}
  if family.windows.startswith("switched"):
    raw["use_sliding_window"] = any(windows)
    if family.windows == "switched" and "no_rope_layers" not in family.reads:
      raw["max_window_layers"] = next((i for i, window in enumerate(windows) if window), len(windows))
  if family.windows in ("typed", "switched"):
    raw["layer_types"] = [LAYER_TYPES[window is not None] for window in windows]
  return raw


def _require_expressible(config: ModelConfig, raw: dict) -> None:
  architecture = raw["architectures"][0]
  fields = _parse_config(raw, "model")
  if windows_of(ModelConfig(**fields)) != windows_of(config):
    raise UserError(f"model.sliding_window: {architecture} cannot slide in the chosen layers, {windows_of(config)}")
  for name in sorted(fields.keys() - {"sliding_window", "sliding_layers", "rope_scaling"}):
    if fields[name] != getattr(config, name):
      raise UserError(f"model.{name}: found {getattr(config, name)!r}, allowed with {architecture}: {fields[name]!r}")
  if config.family in ("llama", "gemma2", "gemma3_text") and config.hidden_size % config.num_attention_heads:
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
      if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < MOST["vocab_size"]:
        raise UserError(f"{path}: eos_token_id: found {shown(i)}, allowed: a token's id, or a list of ids")
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
