"""FLOPs and bytes of a step, from the architecture and the lengths alone: the numerators of MFU and rooflines.

A multiplication and an addition are 2 FLOPs. Only matrix products and attention count, the usual convention (PaLM,
arXiv 2204.02311, appendix B); recomputation to save memory is not a model FLOP. `config` is a ModelConfig.
"""

from dataclasses import dataclass

import numpy as np

from nrt_jax.model.architecture import ModelConfig


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
  """(inputs, outputs) of each matrix of a layer."""
  D, F = config.hidden_size, config.intermediate_size
  heads, kv_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
  return {
    "q": (D, heads), "k": (D, kv_heads), "v": (D, kv_heads), "o": (heads, D),
    "gate": (D, F), "up": (D, F), "down": (F, D),
  }  # fmt: skip


def layer_matrix_size(config: ModelConfig) -> int:
  """Entries of one layer's matrices, without biases, norms and adapters."""
  return sum(a * b for a, b in matrix_shapes(config).values())


def adapter_size(config: ModelConfig) -> int:
  """Entries of the low-rank adapters of one layer."""
  shapes = matrix_shapes(config)
  return config.lora_rank * sum(sum(shapes[name]) for name in config.lora_targets)


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
  return c.num_hidden_layers * (2 * layer_matrix_size(c) * count + attention) + 2 * head_size(c) * heads


def train_flops(config: ModelConfig, count: float, heads: float) -> float:
  """FLOPs of forward and backward of one row of `count` tokens: three times the forward pass.

  With adapters, frozen matrices (head included) have no weight gradients: they count twice, adapters three times.
  """
  forward = forward_flops(config, 0, count, heads)
  if not config.lora_rank:
    return 3 * forward
  weights = config.num_hidden_layers * 2 * layer_matrix_size(config) * count + 2 * head_size(config) * heads
  adapters = config.num_hidden_layers * 2 * adapter_size(config) * count
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


def decode_bytes(config: ModelConfig, rows: float, prompts: float, lengths: Lengths, bytes_each: float = 2) -> dict:
  """Bytes that decoding must read for one token of each row, averaged over the lengths of the growing trace.

  `weights`: all matrices, read once for all rows; `prompt_cache`: read once for all samples of a prompt.
  """
  weights = config.num_hidden_layers * layer_matrix_size(config) + head_size(config)
  token = cache_bytes_per_token(config, bytes_each)
  seen = seen_tokens(config, lengths.prompt, lengths.trace) / max(lengths.trace, 1)
  prompt = min(lengths.prompt, seen)
  return {
    "weights": 2 * weights,
    "prompt_cache": prompts * prompt * token,
    "trace_cache": rows * (seen - prompt) * token,
  }


def state_bytes(config: ModelConfig, compute_bytes: float = 2, moments: int = 2) -> dict:
  """Bytes of the training state over all devices: float32 masters and moments, with LoRA only of what it trains."""
  total = parameter_count(config)
  trained = config.num_hidden_layers * adapter_size(config) + added_row_size(config) if config.lora_rank else total
  return {"params": 4 * trained + compute_bytes * (total - trained), "optimizer": 4 * moments * trained}
