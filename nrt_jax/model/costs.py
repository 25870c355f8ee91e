"""FLOPs and bytes of a step, from the architecture and the lengths alone: the numerators of MFU and rooflines.

A multiplication and an addition are 2 FLOPs. Only matrix products and attention count, the usual convention (PaLM,
arXiv 2204.02311, appendix B); recomputation to save memory is not a model FLOP, and neither is what experts compute for
tokens that did not choose them. `config` is a ModelConfig.
"""

from dataclasses import dataclass

import numpy as np

from nrt_jax.model.architecture import EXPERT_MATRICES, ModelConfig


@dataclass(frozen=True)
class Lengths:
  """The tokens of a step: all columns for a worst case, means over rows for measurements."""

  prompts: int  # B
  samples: int  # G
  prompt: float  # tokens of a prompt
  trace: float
  marker: float
  answer: float
  rows: int | None = None  # rows that are trained on; None: B * G

  @property
  def row(self) -> float:
    return self.prompt + self.trace + self.marker + self.answer

  @property
  def trained_rows(self) -> int:
    return self.prompts * self.samples if self.rows is None else self.rows


def matrix_shapes(config: ModelConfig) -> dict:
  """(inputs, outputs) of each matrix of a layer; of an expert's where there are experts."""
  D, F = config.hidden_size, config.moe_intermediate_size if config.num_experts else config.intermediate_size
  heads, kv_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
  router = {"router": (D, config.num_experts)} if config.num_experts else {}
  return {
    **router, "q": (D, heads), "k": (D, kv_heads), "v": (D, kv_heads), "o": (heads, D),
    "gate": (D, F), "up": (D, F), "down": (F, D),
  }  # fmt: skip


def _layer_sum(config: ModelConfig, size, names, experts: float | None) -> float:
  """The sum of size(inputs, outputs) over matrices of a layer, with so many of its experts; None: all."""
  experts, total = config.num_experts if experts is None else experts, 0
  for name, shape in matrix_shapes(config).items():
    if name in names:
      total += size(*shape) * (experts if config.num_experts and name in EXPERT_MATRICES else 1)
  return total


def layer_matrix_size(config: ModelConfig, experts: float | None = None) -> float:
  """Entries of one layer's matrices, without biases, norms and adapters, with so many of its experts (None: all)."""
  return _layer_sum(config, lambda a, b: a * b, matrix_shapes(config), experts)


def adapter_size(config: ModelConfig, experts: float | None = None) -> float:
  """Entries of the low-rank adapters of one layer, with those of so many experts (None: all)."""
  return config.lora_rank * _layer_sum(config, lambda a, b: a + b, config.lora_targets, experts)


def added_row_size(config: ModelConfig) -> int:
  """Entries of the rows of embedding and head that are trained beside adapters."""
  return len(config.lora_rows) * config.hidden_size * (1 if config.tie_word_embeddings else 2)


def head_size(config: ModelConfig) -> int:
  return config.hidden_size * config.vocab_size


def parameter_count(config: ModelConfig) -> int:
  """The number of parameters, including adapters, rows beside them, and padding rows of the vocabulary."""
  c, shapes = config, matrix_shapes(config)
  biases = sum(shapes[name][1] for name in ("q", "k", "v") if c.qkv_bias) + c.output_bias * c.hidden_size
  biases += c.mlp_bias * (2 * c.intermediate_size + c.hidden_size)
  norms = (4 if c.norms == "both" else 2) * c.hidden_size
  normed_heads = c.num_attention_heads + c.num_key_value_heads if c.qk_norm_joint else 2
  norms += c.qk_norm * normed_heads * c.head_dim
  layer = layer_matrix_size(c) + adapter_size(c) + biases + norms
  vocabulary = head_size(c) * (1 if c.tie_word_embeddings else 2) + added_row_size(c)
  return c.num_hidden_layers * layer + c.hidden_size + vocabulary


def active_parameter_count(config: ModelConfig) -> int:
  """The parameters that take part in one token: all but the experts that it did not choose."""
  c = config
  idle = layer_matrix_size(c) + adapter_size(c) - layer_matrix_size(c, c.num_experts_per_tok)
  return parameter_count(c) - c.num_hidden_layers * (idle - adapter_size(c, c.num_experts_per_tok))


def expected_experts(config: ModelConfig, tokens: float) -> float:
  """The experts of a layer that `tokens` tokens choose, each as likely as another: E (1 - (1 - k / E)^tokens)."""
  count = config.num_experts
  return count and count * (1 - (1 - config.num_experts_per_tok / count) ** tokens)


def seen_tokens(config: ModelConfig, start: float, count: float) -> float:
  """Total slots that `count` tokens after `start` others attend to, including themselves; mean over layers.

  Each token sees those before it, at most `sliding_window` in layers with a sliding window.
  """
  full = count * start + count * (count + 1) / 2
  window = config.sliding_window
  if window is None:
    return full
  free = float(np.clip(window - start, 0, count))  # tokens not yet limited by the window
  cut = free * start + free * (free + 1) / 2 + (count - free) * window
  slides = config.sliding_layers or (True,) * config.num_hidden_layers
  share = sum(slides) / len(slides)
  return share * cut + (1 - share) * full


def forward_flops(config: ModelConfig, start: float, count: float, heads: float) -> float:
  """FLOPs of one row's forward pass: `count` tokens after `start` cached ones, `heads` of them through the head."""
  c = config
  attention = 4 * c.num_attention_heads * c.head_dim * seen_tokens(c, start, count)  # scores, weighted sums of values
  matrices = layer_matrix_size(c, c.num_experts_per_tok)
  return c.num_hidden_layers * (2 * matrices * count + attention) + 2 * head_size(c) * heads


def train_flops(config: ModelConfig, count: float, heads: float) -> float:
  """FLOPs of forward and backward of one row of `count` tokens: three times the forward pass.

  With adapters, frozen matrices (head included) have no weight gradients: they count twice, adapters three times.
  """
  forward = forward_flops(config, 0, count, heads)
  if not config.lora_rank:
    return 3 * forward
  layers, chosen = config.num_hidden_layers, config.num_experts_per_tok
  weights = layers * 2 * layer_matrix_size(config, chosen) * count + 2 * head_size(config) * heads
  adapters = layers * 2 * adapter_size(config, chosen) * count
  return 3 * (forward + adapters) - weights


def step_flops(config: ModelConfig, lengths: Lengths) -> dict:
  """Model FLOPs of a step that samples and scores on caches: by phase, over all devices."""
  n, B = lengths, lengths.prompts
  N = B * n.samples
  closing = n.marker + n.answer
  return {
    "prefill": B * forward_flops(config, 0, n.prompt, 0),  # decoding runs the head on the last state
    "decode": N * forward_flops(config, n.prompt, n.trace, n.trace),
    "score_answer": N * forward_flops(config, n.prompt + n.trace, closing - 1, closing),
    "score_empty_trace": B * forward_flops(config, n.prompt, closing - 1, closing),
    "update": n.trained_rows * train_flops(config, n.row, n.row - n.prompt),
  }


def cache_bytes_per_token(config: ModelConfig, bytes_each: float = 2) -> float:
  """Bytes of one token's keys and values in all layers."""
  return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bytes_each


def weight_bytes(config: ModelConfig, tokens: float, bytes_each: float = 2) -> float:
  """Bytes of the matrices that a pass over `tokens` tokens reads: of experts, those expected to be chosen."""
  layer = layer_matrix_size(config, expected_experts(config, tokens))
  return bytes_each * (config.num_hidden_layers * layer + head_size(config))


def decode_bytes(config: ModelConfig, rows: float, prompts: float, lengths: Lengths, bytes_each: float = 2) -> dict:
  """Bytes that decoding must read for one token of each row, averaged over the lengths of the growing trace.

  `weights`: read once for all rows; `prompt_cache`: read once for all samples of a prompt.
  """
  token = cache_bytes_per_token(config, bytes_each)
  seen = seen_tokens(config, lengths.prompt, lengths.trace) / max(lengths.trace, 1)
  prompt = min(lengths.prompt, seen)
  return {
    "weights": weight_bytes(config, rows),
    "prompt_cache": prompts * prompt * token,
    "trace_cache": rows * (seen - prompt) * token,
  }


def state_bytes(config: ModelConfig, compute_bytes: float = 2, moments: int = 2) -> dict:
  """Bytes of the training state over all devices: float32 masters and moments, with LoRA only of what it trains."""
  total = parameter_count(config)
  trained = config.num_hidden_layers * adapter_size(config) + added_row_size(config) if config.lora_rank else total
  return {"params": 4 * trained + compute_bytes * (total - trained), "optimizer": 4 * moments * trained}
