"""What config.json says and leaves out for each family: the one place where a family is more than its switches.

Hugging Face writes only the keys that differ from a config class's defaults, and ignores keys that a class does not
know. `FAMILIES` therefore has the defaults of transformers' classes, and `NEUTRAL` the keys that change the mathematics
of some model: a family that does not read one must not find it set.
"""

from dataclasses import dataclass, field

from nrt_jax.errors import UserError
from nrt_jax.model.architecture import FAMILIES as NAMES
from nrt_jax.model.architecture import ROPE_TYPES


@dataclass(frozen=True)
class Family:
  """A family's class in transformers, that class's defaults for keys that may be absent, and what it implies."""

  architecture: str
  max_position_embeddings: int
  num_key_value_heads: int | None = None  # None: as many as there are heads
  head_dim: int | None = None  # None: hidden_size / num_attention_heads
  rms_norm_eps: float = 1e-6
  rope_theta: float = 10000.0
  tie_word_embeddings: bool = False
  reads: tuple[str, ...] = ()  # keys of NEUTRAL that it has, and of the two biases
  # none | all | switched_all: all by use_sliding_window | typed: by layer_types | switched: by both
  windows: str = "none"
  full_every: int | None = None  # with typed, where layer_types is absent: every so many layers one does not slide
  sliding_window: int | None = None
  rope_types: tuple[str, ...] = ROPE_TYPES
  rope_aliases: dict = field(default_factory=dict)  # other names of a type, in older files
  local_rope_theta: float | str | None = None  # of layers that slide: a default | same: as the others, not scaled
  original_max_position_embeddings: int | None = None  # default of that key outside of the rope's parameters
  fused: bool = False  # whether files have query, key and value in one tensor, and gate and up in another
  whole: str | None = None  # model_type of models with images whose text part this is
  sizes: dict = field(default_factory=dict)  # defaults of sizes that such a part leaves out
  scalars: dict = field(default_factory=dict)  # defaults of numbers that are 1 or null in other families
  fields: dict = field(default_factory=dict)  # fields of ModelConfig that it implies


GEMMA = {"norms": "both", "norm_offset": 1.0, "activation": "gelu_tanh"}
OLMO = {"qk_norm": True, "qk_norm_joint": True, "norms": "post"}
FAMILIES = {
  "llama": Family("LlamaForCausalLM", 2048, reads=("attention_bias", "mlp_bias")),
  "mistral": Family("MistralForCausalLM", 131072, num_key_value_heads=8, windows="all", sliding_window=4096),
  "qwen2": Family(
    "Qwen2ForCausalLM", 32768, num_key_value_heads=32, windows="switched", sliding_window=4096,
    fields={"qkv_bias": True},
  ),
  "qwen3": Family(
    "Qwen3ForCausalLM", 32768, num_key_value_heads=32, head_dim=128, reads=("attention_bias",), windows="switched",
    sliding_window=4096, fields={"qk_norm": True},
  ),
  "smollm3": Family(
    "SmolLM3ForCausalLM", 32768, num_key_value_heads=4, rope_theta=2e6, tie_word_embeddings=True, windows="switched",
    reads=("attention_bias", "mlp_bias", "no_rope_layers"),
  ),
  "granite": Family(
    "GraniteForCausalLM", 2048,
    reads=(
      "attention_bias", "mlp_bias", "embedding_multiplier", "residual_multiplier", "attention_multiplier",
      "logits_scaling",
    ),
  ),
  "olmo2": Family("Olmo2ForCausalLM", 2048, rms_norm_eps=1e-5, reads=("attention_bias",), fields=OLMO),
  "olmo3": Family(
    "Olmo3ForCausalLM", 2048, rms_norm_eps=1e-5, rope_theta=5e5, reads=("attention_bias",), windows="typed",
    sliding_window=4096, full_every=4, local_rope_theta="same", fields=OLMO,
  ),
  "gemma2": Family(
    "Gemma2ForCausalLM", 8192, num_key_value_heads=4, head_dim=256, tie_word_embeddings=True,
    reads=("attention_bias", "query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping"),
    windows="typed", sliding_window=4096, full_every=2,
    scalars={"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}, fields=GEMMA,
  ),
  "gemma3_text": Family(
    "Gemma3ForCausalLM", 131072, num_key_value_heads=4, head_dim=256, rope_theta=1e6, tie_word_embeddings=True,
    reads=("attention_bias", "query_pre_attn_scalar", "final_logit_softcapping", "rope_local_base_freq"),
    windows="typed", sliding_window=4096, full_every=6, local_rope_theta=1e4, whole="gemma3",
    sizes={"vocab_size": 262208, "num_attention_heads": 8},
    fields={**GEMMA, "qk_norm": True},
  ),
  "phi3": Family(
    "Phi3ForCausalLM", 4096, rms_norm_eps=1e-5, reads=("partial_rotary_factor",), windows="all",
    rope_types=("longrope",), rope_aliases={"su": "longrope", "yarn": "longrope"},
    original_max_position_embeddings=4096, fused=True,
  ),
  "qwen3_moe": Family(
    "Qwen3MoeForCausalLM", 32768, num_key_value_heads=4, windows="switched_all", sliding_window=4096,
    reads=("attention_bias", "num_experts", "num_local_experts"), fields={"qk_norm": True},
  ),
}  # fmt: skip
assert tuple(FAMILIES) == NAMES
WHOLES = {family.whole: name for name, family in FAMILIES.items() if family.whole}

# Keys that change what some model computes -> the values with which they change nothing.
NEUTRAL = {
  "no_rope_layers": (),
  "embedding_multiplier": (1,),
  "residual_multiplier": (1,),
  "attention_multiplier": (),
  "logits_scaling": (1,),
  "lm_head_multiplier": (1,),
  "logit_scale": (1,),
  "scale_emb": (1,),
  "scale_depth": (),
  "dim_model_base": (),
  "final_logit_softcapping": (),
  "attn_logit_softcapping": (),
  "query_pre_attn_scalar": (),
  "partial_rotary_factor": (1,),
  "rope_local_base_freq": (),
  "use_bidirectional_attention": (False,),
  "is_causal": (True,),
  "attention_chunk_size": (),
  "attn_temperature_tuning": (False, 0),
  "use_qk_norm": (False,),
  "qk_layernorm": (False,),
  "clip_qkv": (),
  "parallel_residual": (False,),
  "num_local_experts": (0, 1),
  "num_experts": (0, 1),
  "n_routed_experts": (0, 1),
  "kv_lora_rank": (),
}


def refuse_unread(raw: dict, where: str, name: str) -> None:
  """UserError for a key that would change the mathematics of a model, and that this family does not have."""
  for key, neutral in NEUTRAL.items():
    value = raw.get(key)
    if value is None or key in FAMILIES[name].reads or value in neutral:
      continue
    if key == "no_rope_layers" and isinstance(value, list) and all(value):
      continue
    allowed = " or ".join(map(repr, (None, *neutral)))
    raise UserError(f"{where}: {key}: found {value!r}, allowed with model_type {name!r}: {allowed}")
