"""The architecture of a decoder, with the names of Hugging Face's config.json, and settings of its computation."""

from dataclasses import dataclass

import jax

from nrt_jax.errors import UserError, require_choice
from nrt_jax.model.kernels import ATTENTION

NORMS = ("pre", "post", "both")  # where attention and MLP have norms: on their input | on their output | on both
ACTIVATIONS = ("silu", "gelu_tanh")
REMATS = ("none", "dots", "full")  # saved for the backward pass: everything | matrix products | layer inputs
FAMILIES = (
  "llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "olmo2", "olmo3", "gemma2", "gemma3_text", "phi3",
  "qwen3_moe",
)  # fmt: skip
ROPE_TYPES = ("linear", "dynamic", "llama3", "yarn", "longrope")
TRAINED = ("all", "token_rows")
EXPERT_MATRICES = ("gate", "up", "down")  # what each expert has
ADAPTABLE = ("q", "k", "v", "o", *EXPERT_MATRICES)  # matrices that may have a low-rank adapter
EXPERT_PRODUCTS = ("auto", "sorted", "all")
MOST_UNROLLED = 8  # layers that layer_loop "auto" unrolls on a CPU; compiling takes too long for more
LORA = "_lora"  # suffix of the name of what is trained beside frozen weights: "q_lora" adapts "q"


@dataclass(frozen=True)
class RopeScaling:
  """How rotations are slowed for rows longer than those of pretraining: a `rope_type` of Hugging Face configs.

  Two types depend on the length of the row. Here that is decided once for a model: `dynamic` changes nothing up to
  max_position_embeddings, `longrope` has the short factors unless ModelConfig.long_rope; see ModelConfig.longest_row.
  """

  rope_type: str = "llama3"
  factor: float = 8.0
  low_freq_factor: float = 1.0  # of llama3
  high_freq_factor: float = 4.0
  original_max_position_embeddings: int = 8192
  attention_factor: float = 1.0  # of yarn and longrope: of cos and sin
  beta_fast: float = 32.0  # of yarn: turns over the original length from which on a frequency is kept
  beta_slow: float = 1.0  # of yarn: turns below which a frequency is divided by `factor`
  truncate: bool = True  # of yarn: whether these two fall on whole dimensions
  short_factor: tuple[float, ...] = ()  # of longrope: what each frequency is divided by
  long_factor: tuple[float, ...] = ()

  def __post_init__(self):
    require_choice("model.rope_scaling.rope_type", self.rope_type, ROPE_TYPES)


@dataclass(frozen=True)
class ModelConfig:
  """The architecture, with the names of Hugging Face's config.json, and settings of its computation."""

  family: str = "llama"  # determines the tensor names of an export
  vocab_size: int = 512  # rows of embedding and head
  vocab_padding: int = 0  # last rows, not tokens, added to divide over a mesh: never sampled, never exported
  vocab_unused: int = 0  # rows before those that the tokenizer has no token for: never sampled, exported as they were
  vocab_inactive: tuple[int, ...] = ()  # tokens that a stage does not use yet: never sampled; see model/token_rows.py
  hidden_size: int = 128
  intermediate_size: int = 512
  num_hidden_layers: int = 2
  num_attention_heads: int = 4
  num_key_value_heads: int = 4
  head_dim: int = 32
  rms_norm_eps: float = 1e-5
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | None = None
  long_rope: bool = False  # with longrope: the long factors, for all rows; False: the short ones
  max_position_embeddings: int = 2048
  sliding_window: int | None = None  # tokens that a query sees, including itself
  sliding_layers: tuple[bool, ...] | None = None  # which layers use the window; None = all
  rope_layers: tuple[bool, ...] | None = None  # which layers rotate queries and keys (SmolLM3: not all); None = all
  local_rope_theta: float | None = None  # base of the layers that slide, not scaled (Gemma 3); None: as the others
  partial_rotary_factor: float = 1.0  # share of a head that is rotated
  qkv_bias: bool = False
  output_bias: bool = False  # bias of the attention output projection
  mlp_bias: bool = False
  qk_norm: bool = False  # RMSNorm over each head of q and k (Qwen3)
  qk_norm_joint: bool = False  # with qk_norm: one RMSNorm over all heads together (OLMo)
  norms: str = "pre"  # pre | post (OLMo) | both (Gemma)
  norm_offset: float = 0.0  # norms multiply by norm_offset + scale (Gemma: 1)
  activation: str = "silu"  # silu | gelu_tanh
  num_experts: int = 0  # MLPs of each layer, of which a router chooses some for each token; 0: one MLP, for all tokens
  num_experts_per_tok: int = 0  # experts that a token has
  moe_intermediate_size: int = 0  # width of an expert, in place of intermediate_size
  norm_topk_prob: bool = False  # whether the weights of a token's experts are divided by their sum
  attention_multiplier: float | None = None  # of the scores; None: head_dim**-0.5
  attn_logit_softcapping: float | None = None  # c: scores become c tanh(scores / c); XLA's attention alone has it
  embedding_multiplier: float = 1.0
  residual_multiplier: float = 1.0  # of what attention and mlp add
  logits_scaling: float = 1.0  # logits are divided by it
  final_logit_softcapping: float | None = None  # c: logits become c tanh(logits / c)
  tie_word_embeddings: bool = False
  initializer_range: float = 0.02
  compute_dtype: str = "float32"  # float32 | bfloat16; parameters stay float32
  remat: str = "none"  # none | dots (save matrix products) | full (recompute each layer)
  layer_loop: str = "auto"  # scan: one layer is compiled | unroll: all are | auto: scan but for few layers on a CPU
  platform: str | None = None  # cpu | gpu | tpu: the compilation target; None: the default backend
  attention: str = "auto"  # kernel for whole rows: xla | cudnn | splash | auto: by platform; decoding always uses xla
  attention_block: int = 512  # with xla, queries of a row whose scores are in memory at once; longer rows run in blocks
  expert_product: str = "auto"  # sorted: each expert runs its tokens | all: all run all | auto: sorted on TPUs
  head_chunk: int = 2048  # tokens per device whose logits are in memory at once
  lora_rank: int = 0  # rank of the adapters (nrt_jax/model/lora.py); 0 = no adapters, all parameters are trained
  lora_alpha: float = 16.0  # adapters are scaled by alpha / rank
  lora_targets: tuple[str, ...] = ADAPTABLE
  lora_rows: tuple[int, ...] = ()  # tokens whose rows of embedding and head are trained beside the adapters
  trained: str = "all"  # all: what lora_rank leaves | token_rows: embedding and head alone (see lora.split)

  def __post_init__(self):
    require_choice("model.family", self.family, FAMILIES)
    require_choice("model.compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
    require_choice("model.remat", self.remat, REMATS)
    require_choice("model.norms", self.norms, NORMS)
    require_choice("model.activation", self.activation, ACTIVATIONS)
    require_choice("optimizer.trainable", self.trained, TRAINED)
    require_choice("model.layer_loop", self.layer_loop, ("auto", "scan", "unroll"))
    require_choice("model.attention", self.attention, ATTENTION)
    require_choice("model.expert_product", self.expert_product, EXPERT_PRODUCTS)
    self._check_experts()
    if self.attention_block < 1:
      raise UserError(f"model.attention_block: found {self.attention_block}, allowed: 1 or more")
    for target in self.lora_targets:
      require_choice("model.lora_targets", target, ADAPTABLE)
    if self.lora_rank < 0 or (self.lora_rank and not self.lora_targets):
      found = f"{self.lora_rank} with {len(self.lora_targets)} lora_targets"
      raise UserError(f"model.lora_rank: found {found}, allowed: 0, or above 0 with one target or more")
    if self.lora_rows and not (self.lora_rank and 0 <= min(self.lora_rows) <= max(self.lora_rows) < self.vocab_size):
      raise UserError(f"model.lora_rows: found {self.lora_rows}, allowed: with adapters, ids below {self.vocab_size}")
    if self.num_attention_heads % self.num_key_value_heads:
      raise UserError(
        f"model.num_attention_heads: {self.num_attention_heads} is not a multiple of "
        f"num_key_value_heads {self.num_key_value_heads}"
      )
    scaling, pairs = self.rope_scaling, int(self.head_dim * self.partial_rotary_factor) // 2
    if scaling is not None and scaling.rope_type == "longrope":
      for name in ("short_factor", "long_factor"):
        if len(getattr(scaling, name)) != pairs:
          found = f"{len(getattr(scaling, name))} numbers, allowed: {pairs}, half of what is rotated of a head"
          raise UserError(f"model.rope_scaling.{name}: found {found}")
    for name in ("sliding_layers", "rope_layers"):
      layers = getattr(self, name)
      if layers is not None and len(layers) != self.num_hidden_layers:
        raise UserError(
          f"model.{name}: found {len(layers)} entries, allowed: one for each of the {self.num_hidden_layers} layers"
        )

  def _check_experts(self):
    if not self.num_experts:
      return
    chosen, width = self.num_experts_per_tok, self.moe_intermediate_size
    if not 1 <= chosen <= self.num_experts:
      raise UserError(f"model.num_experts_per_tok: found {chosen}, allowed: 1 to num_experts = {self.num_experts}")
    if width < 1:
      raise UserError(f"model.moe_intermediate_size: found {width}, allowed with experts: 1 or more")
    if self.mlp_bias:
      raise UserError("model.mlp_bias: found True, allowed with experts: False")

  @property
  def target(self) -> str:
    """The platform that programs are compiled for, which may differ from the one that compiles them."""
    return self.platform or jax.default_backend()

  @property
  def longest_row(self) -> int | None:
    """Tokens of the longest row that is rotated as transformers would; None: any."""
    scaling = self.rope_scaling
    if scaling is None or scaling.rope_type not in ("dynamic", "longrope"):
      return None
    short = scaling.rope_type == "longrope" and not self.long_rope
    return scaling.original_max_position_embeddings if short else self.max_position_embeddings

  @property
  def score_multiplier(self) -> float:
    return self.head_dim**-0.5 if self.attention_multiplier is None else self.attention_multiplier

  @property
  def dense_experts(self) -> bool:
    """Whether all experts run all tokens. Except on TPUs JAX's product of ragged groups does so, too, at more cost."""
    return self.target != "tpu" if self.expert_product == "auto" else self.expert_product == "all"

  @property
  def mlp_columns(self) -> int:
    """Entries between the matrices of the MLPs that run a token."""
    if not self.num_experts:
      return self.intermediate_size
    return (self.num_experts if self.dense_experts else self.num_experts_per_tok) * self.moe_intermediate_size

  @property
  def scan_layers(self) -> bool:
    if self.layer_loop == "auto":
      return self.target != "cpu" or self.num_hidden_layers > MOST_UNROLLED
    return self.layer_loop == "scan"
