"""Generates the golden model directories with torch and transformers: `python tests/golden/make_hf_golden.py`.

Each case is a tiny random model of one family with every option that can go wrong switched on. Its directory has
config.json, safetensors and expected.npz: left-padded tokens, their positions, torch's float32 logits, and torch's
greedy continuation. The files change only when this script is run, of all cases or of those it is given. A failing test
means that our model departs from transformers'.
"""

import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent
COMMON = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, rms_norm_eps=1e-3)
LLAMA3 = dict(
  rope_type="llama3", rope_theta=100.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
  original_max_position_embeddings=28,
)  # fmt: skip
YARN = dict(
  rope_type="yarn", rope_theta=100.0, factor=4.0, beta_fast=4.0, beta_slow=0.5, original_max_position_embeddings=28,
)  # fmt: skip
LONGROPE = dict(
  rope_type="longrope", rope_theta=100.0, partial_rotary_factor=0.75, short_factor=[1.0, 1.5, 2.0],
  long_factor=[2.0, 3.0, 8.0],
)  # fmt: skip
ROPE = dict(rope_type="default", rope_theta=500.0)

# name -> (model_type, config). Head counts, head width (never hidden / heads alone), windows and tying all differ.
CASES = {
  "llama": ("llama", dict(
    num_attention_heads=4, num_key_value_heads=2, head_dim=6, rope_parameters=ROPE, attention_bias=True, mlp_bias=True,
  )),
  "llama3_scaling_tied": ("llama", dict(
    num_attention_heads=4, num_key_value_heads=4, head_dim=16, rope_parameters=LLAMA3, tie_word_embeddings=True,
  )),
  "llama_linear_scaling": ("llama", dict(
    num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    rope_parameters=dict(rope_type="linear", rope_theta=50.0, factor=2.5),
  )),
  "mistral_window": ("mistral", dict(
    num_attention_heads=4, num_key_value_heads=1, head_dim=8, rope_parameters=ROPE, sliding_window=5,
  )),
  "qwen2_tied": ("qwen2", dict(
    num_attention_heads=2, num_key_value_heads=2, rope_parameters=ROPE, tie_word_embeddings=True,
  )),
  "qwen2_half_windowed": ("qwen2", dict(
    num_attention_heads=4, num_key_value_heads=2, rope_parameters=ROPE, use_sliding_window=True, sliding_window=4,
    max_window_layers=1,
  )),
  "qwen3": ("qwen3", dict(
    num_attention_heads=4, num_key_value_heads=2, head_dim=10, rope_parameters=ROPE, attention_bias=True,
  )),
  "smollm3": ("smollm3", dict(
    num_attention_heads=4, num_key_value_heads=2, rope_parameters=ROPE, no_rope_layers=[1, 0], use_sliding_window=True,
    sliding_window=6, tie_word_embeddings=False,
  )),
  "granite": ("granite", dict(
    num_attention_heads=4, num_key_value_heads=2, rope_parameters=ROPE, embedding_multiplier=3.0,
    residual_multiplier=0.6, attention_multiplier=0.3, logits_scaling=2.0, tie_word_embeddings=True,
  )),
  "olmo2": ("olmo2", dict(num_attention_heads=4, num_key_value_heads=2, rope_parameters=ROPE)),
  "olmo3_yarn": ("olmo3", dict(
    num_attention_heads=4, num_key_value_heads=2, sliding_window=5, layer_types=["sliding_attention", "full_attention"],
    rope_parameters=dict(full_attention=YARN, sliding_attention=dict(rope_type="default", rope_theta=100.0)),
  )),
  "gemma3": ("gemma3_text", dict(
    num_attention_heads=4, num_key_value_heads=2, head_dim=6, sliding_window=5, query_pre_attn_scalar=9,
    layer_types=["sliding_attention", "full_attention"], final_logit_softcapping=8.0,
    tie_word_embeddings=False,
    rope_parameters=dict(
      full_attention=dict(rope_type="linear", factor=4.0, rope_theta=2000.0),
      sliding_attention=dict(rope_type="default", rope_theta=50.0),
    ),
  )),
  "phi3_longrope": ("phi3", dict(
    num_attention_heads=2, num_key_value_heads=1, sliding_window=9, original_max_position_embeddings=64,
    max_position_embeddings=512, rope_parameters=LONGROPE,
  )),
  "gemma2": ("gemma2", dict(
    num_attention_heads=4, num_key_value_heads=2, head_dim=6, sliding_window=5, query_pre_attn_scalar=3,
    layer_types=["sliding_attention", "full_attention"], attn_logit_softcapping=1.5, final_logit_softcapping=8.0,
    rope_parameters=ROPE, tie_word_embeddings=False,
  )),
  # Widths of experts are multiples of 4: torch's product of groups wants rows of whole 16 bytes.
  "qwen3_moe": ("qwen3_moe", dict(
    num_attention_heads=4, num_key_value_heads=2, head_dim=10, rope_parameters=ROPE, num_experts=5,
    num_experts_per_tok=2, moe_intermediate_size=8, norm_topk_prob=True,
  )),
}  # fmt: skip
LENGTHS = (34, 34, 23, 7)  # of rows of 34 columns: past the 28 positions of LLAMA3, longer than every window
NEW_TOKENS = 10


def make_model(case: str, seed: int):
  """A torch model whose every parameter matters: biases and norm scales are random too."""
  import torch
  from transformers import AutoConfig, AutoModelForCausalLM

  model_type, options = CASES[case]
  config = AutoConfig.for_model(model_type, **COMMON, **options, bos_token_id=1, eos_token_id=None, pad_token_id=None)
  config._attn_implementation = "eager"
  model = AutoModelForCausalLM.from_config(config).float().eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in sorted(model.named_parameters()):
      centre = float("norm" in name and "gemma" not in model_type)  # Gemma's norms multiply by 1 + weight
      parameter.copy_(centre + 0.4 * torch.randn(parameter.shape, generator=generator))
  return model


def make_batch(seed: int):
  """Left-padded token and position arrays, int64; pads have position -1."""
  columns = max(LENGTHS)
  token = np.random.default_rng(seed).integers(0, COMMON["vocab_size"], (len(LENGTHS), columns))
  position = np.arange(columns)[None] - (columns - np.array(LENGTHS))[:, None]
  return token, np.maximum(position, -1)


def torch_outputs(model, token, position):
  """Logits of every column and the greedy continuation, by transformers."""
  import torch

  mask = torch.tensor(position >= 0)
  token = torch.tensor(token)
  with torch.no_grad():
    logits = model(token, attention_mask=mask.long(), position_ids=torch.tensor(np.maximum(position, 0))).logits
    greedy = model.generate(
      token, attention_mask=mask.long(), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
  return logits.numpy(), greedy[:, token.shape[1] :].numpy()


def main():
  token, position = make_batch(seed=0)
  for seed, case in enumerate(CASES):
    if sys.argv[1:] and case not in sys.argv[1:]:
      continue
    model = make_model(case, seed)
    model.save_pretrained(GOLDEN / case)
    (GOLDEN / case / "generation_config.json").unlink(missing_ok=True)
    logits, greedy = torch_outputs(model, token, position)
    np.savez_compressed(GOLDEN / case / "expected.npz", token=token, position=position, logits=logits, greedy=greedy)
    print(f"{case}: logits within {np.abs(logits).max():.1f}, greedy {greedy[0].tolist()}")


if __name__ == "__main__":
  main()
