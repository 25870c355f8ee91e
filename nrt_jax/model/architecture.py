"""The architecture of a decoder, with the names of Hugging Face's config.json, and settings of its computation."""

from dataclasses import dataclass

import jax

from nrt_jax.errors import UserError, require_choice
from nrt_jax.model.kernels import ATTENTION

REMATS = ("none", "dots", "full")  # saved for the backward pass: everything | matrix products | layer inputs
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ADAPTABLE = ("q", "k", "v", "o", "gate", "up", "down")  # matrices that may have a low-rank adapter
LORA = "_lora"  # suffix of an adapter's name: "q_lora" adapts "q"


@dataclass(frozen=True)
class RopeScaling:
  """`rope_type="llama3"` of Hugging Face configs (Llama 3.1 and 3.2), or "linear"."""

  rope_type: str = "llama3"
  factor: float = 8.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position_embeddings: int = 8192

  def __post_init__(self):
    require_choice("model.rope_scaling.rope_type", self.rope_type, ("llama3", "linear"))


@dataclass(frozen=True)
class ModelConfig:
  """The architecture, with the names of Hugging Face's config.json, and settings of its computation."""

  family: str = "llama"  # determines the tensor names of an export
  vocab_size: int = 512  # rows of embedding and head
  vocab_padding: int = 0  # last rows, not tokens, added to divide over a mesh: never sampled, never exported
  vocab_unused: int = 0  # rows before those that the tokenizer has no token for: never sampled, exported as they were
  hidden_size: int = 128
  intermediate_size: int = 512
  num_hidden_layers: int = 2
  num_attention_heads: int = 4
  num_key_value_heads: int = 4
  head_dim: int = 32
  rms_norm_eps: float = 1e-5
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | None = None
  max_position_embeddings: int = 2048
  sliding_window: int | None = None  # tokens that a query sees, including itself
  sliding_layers: tuple[bool, ...] | None = None  # which layers use the window; None = all
  qkv_bias: bool = False
  output_bias: bool = False  # bias of the attention output projection
  mlp_bias: bool = False
  qk_norm: bool = False  # RMSNorm over each head of q and k (Qwen3)
  tie_word_embeddings: bool = False
  initializer_range: float = 0.02
  compute_dtype: str = "float32"  # float32 | bfloat16; parameters stay float32
  remat: str = "none"  # none | dots (save matrix products) | full (recompute each layer)
  layer_loop: str = "auto"  # scan: small programs | unroll: faster on CPU | auto: by platform
  platform: str | None = None  # cpu | gpu | tpu: the compilation target; None: the default backend
  attention: str = "auto"  # kernel for whole rows: xla | cudnn | splash | auto: by platform; decoding always uses xla
  attention_block: int = 512  # with xla, queries of a row whose scores are in memory at once; longer rows run in blocks
  head_chunk: int = 2048  # tokens per device whose logits are in memory at once
  lora_rank: int = 0  # rank of the adapters (nrt_jax/model/lora.py); 0 = no adapters, all parameters are trained
  lora_alpha: float = 16.0  # adapters are scaled by alpha / rank
  lora_targets: tuple[str, ...] = ADAPTABLE

  def __post_init__(self):
    require_choice("model.family", self.family, FAMILIES)
    require_choice("model.compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
    require_choice("model.remat", self.remat, REMATS)
    require_choice("model.layer_loop", self.layer_loop, ("auto", "scan", "unroll"))
    require_choice("model.attention", self.attention, ATTENTION)
    if self.attention_block < 1:
      raise UserError(f"model.attention_block: found {self.attention_block}, allowed: 1 or more")
    for target in self.lora_targets:
      require_choice("model.lora_targets", target, ADAPTABLE)
    if self.lora_rank < 0 or (self.lora_rank and not self.lora_targets):
      found = f"{self.lora_rank} with {len(self.lora_targets)} lora_targets"
      raise UserError(f"model.lora_rank: found {found}, allowed: 0, or above 0 with one target or more")
    if self.num_attention_heads % self.num_key_value_heads:
      raise UserError(
        f"model.num_attention_heads: {self.num_attention_heads} is not a multiple of "
        f"num_key_value_heads {self.num_key_value_heads}"
      )
    if self.sliding_layers is not None and len(self.sliding_layers) != self.num_hidden_layers:
      raise UserError(
        f"model.sliding_layers: found {len(self.sliding_layers)} entries, allowed: one for each of the "
        f"{self.num_hidden_layers} layers"
      )

  @property
  def target(self) -> str:
    """The platform that programs are compiled for, which may differ from the one that compiles them."""
    return self.platform or jax.default_backend()

  @property
  def scan_layers(self) -> bool:
    if self.layer_loop == "auto":
      return self.target != "cpu"
    return self.layer_loop == "scan"
