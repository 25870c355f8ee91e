"""Published models by their config.json: the parameters that their cards count, and the switches that they set."""

import json

import pytest
from paths import ROOT

from nrt_jax.model import costs, hf_config

NO_SWITCHES = dict(attention_bias=False, hidden_act="silu", rms_norm_eps=1e-6, rope_scaling=None)
FIVE_OF_SIX = (True,) * 5 + (False,)

# The keys that decide something, as published, and what must follow from them.
MODELS = {
  "SmolLM3-3B": (
    dict(
      NO_SWITCHES, model_type="smollm3", architectures=["SmolLM3ForCausalLM"], hidden_size=2048, vocab_size=128256,
      intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=4,
      max_position_embeddings=65536, no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9, rope_theta=5e6,
      layer_types=["full_attention"] * 36, use_sliding_window=False, sliding_window=None,
    ),
    3_075_098_624,
    dict(rope_layers=(True, True, True, False) * 9, tie_word_embeddings=True, sliding_window=None, head_dim=128),
  ),
  "OLMo-2-1124-7B": (
    dict(
      NO_SWITCHES, model_type="olmo2", architectures=["Olmo2ForCausalLM"], hidden_size=4096, intermediate_size=11008,
      num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=4096, rope_theta=5e5, vocab_size=100352,
    ),
    7_298_617_344,
    dict(norms="post", qk_norm_joint=True, rms_norm_eps=1e-6),
  ),
  "Olmo-3-7B": (
    dict(
      NO_SWITCHES, model_type="olmo3", architectures=["Olmo3ForCausalLM"], hidden_size=4096, intermediate_size=11008,
      num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=65536, rope_theta=5e5, vocab_size=100278,
      rope_scaling=dict(
        rope_type="yarn", factor=8.0, beta_fast=32, beta_slow=1, attention_factor=1.2079441541679836,
        original_max_position_embeddings=8192,
      ),
      sliding_window=4096,
    ),
    7_298_011_136,
    dict(sliding_layers=(True, True, True, False) * 8, local_rope_theta=5e5),
  ),
  "gemma-2-2b": (
    dict(
      model_type="gemma2", architectures=["Gemma2ForCausalLM"], hidden_size=2304, intermediate_size=9216, head_dim=256,
      num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4, vocab_size=256000, rms_norm_eps=1e-6,
      hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256,
      attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=4096, max_position_embeddings=8192,
    ),
    2_614_341_888,
    dict(sliding_layers=(True, False) * 13, attn_logit_softcapping=50.0, embedding_multiplier=48.0),
  ),
  "gemma-3-1b": (
    dict(
      model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], hidden_size=1152, intermediate_size=6912,
      head_dim=256, num_hidden_layers=26, num_attention_heads=4, num_key_value_heads=1, vocab_size=262144,
      hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256, attn_logit_softcapping=None,
      final_logit_softcapping=None, rope_theta=1000000, rope_local_base_freq=10000, rope_scaling=None,
      sliding_window=512, sliding_window_pattern=6, max_position_embeddings=32768, rms_norm_eps=1e-6,
    ),
    999_885_952,
    dict(
      sliding_layers=FIVE_OF_SIX * 4 + (True, True), local_rope_theta=1e4, rope_theta=1e6, attention_multiplier=1 / 16,
      norms="both", norm_offset=1.0,
    ),
  ),
  "gemma-3-4b": (
    dict(
      model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"], text_config=dict(
        model_type="gemma3_text", hidden_size=2560, intermediate_size=10240, num_hidden_layers=34, sliding_window=1024,
        rope_scaling=dict(factor=8.0, rope_type="linear"),
      ),
    ),
    3_880_263_168,  # without the 420 million of the tower for images
    dict(num_attention_heads=8, num_key_value_heads=4, head_dim=256, sliding_layers=FIVE_OF_SIX * 5 + (True,) * 4),
  ),
  "Phi-4-mini": (
    dict(
      model_type="phi3", architectures=["Phi3ForCausalLM"], hidden_size=3072, intermediate_size=8192, vocab_size=200064,
      num_hidden_layers=32, num_attention_heads=24, num_key_value_heads=8, max_position_embeddings=131072,
      original_max_position_embeddings=4096, partial_rotary_factor=0.75, rms_norm_eps=1e-5, rope_theta=1e4,
      rope_scaling=dict(type="longrope", short_factor=[1.0] * 48, long_factor=[2.0] * 48), sliding_window=262144,
      tie_word_embeddings=True, attention_bias=False, hidden_act="silu",
    ),
    3_836_021_760,
    dict(longest_row=4096, partial_rotary_factor=0.75, sliding_window=262144),
  ),
  "phi-4": (
    dict(
      model_type="phi3", architectures=["Phi3ForCausalLM"], hidden_size=5120, intermediate_size=17920,
      vocab_size=100352, num_hidden_layers=40, num_attention_heads=40, num_key_value_heads=10, rope_theta=250000,
      max_position_embeddings=16384, original_max_position_embeddings=16384, rms_norm_eps=1e-5, rope_scaling=None,
      sliding_window=None, hidden_act="silu",
    ),
    14_659_507_200,
    dict(longest_row=None, sliding_window=None, rope_scaling=None),
  ),
  "granite-3.3-2b": (
    dict(
      NO_SWITCHES, model_type="granite", architectures=["GraniteForCausalLM"], hidden_size=2048, vocab_size=49159,
      intermediate_size=8192, num_hidden_layers=40, num_attention_heads=32, num_key_value_heads=8, rope_theta=1e7,
      max_position_embeddings=131072, attention_multiplier=0.015625, embedding_multiplier=12.0, logits_scaling=8.0,
      residual_multiplier=0.22, tie_word_embeddings=True, mlp_bias=False,
    ),
    2_533_539_840,
    dict(attention_multiplier=1 / 64, embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22),
  ),
  "Qwen3-30B-A3B": (
    json.loads((ROOT / "experiments" / "architectures" / "qwen3_30b_a3b" / "config.json").read_text()),
    30_532_122_624,
    dict(
      num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True, head_dim=128,
      sliding_window=None, qk_norm=True,
    ),
  ),
}  # fmt: skip


def test_active_parameters_of_qwen3_30b_a3b():
  config = hf_config.read_model_config(ROOT / "experiments" / "architectures" / "qwen3_30b_a3b")
  assert costs.active_parameter_count(config) == 3_353_032_704  # the card has 3.3 billion


@pytest.mark.parametrize("name", MODELS)
def test_published_models(name, tmp_path):
  raw, parameters, expected = MODELS[name]
  (tmp_path / "config.json").write_text(json.dumps(raw))
  config = hf_config.read_model_config(tmp_path)
  assert costs.parameter_count(config) == parameters
  assert {key: getattr(config, key) for key in expected} == expected
  hf_config.write_config(config, tmp_path)
  assert hf_config.read_model_config(tmp_path) == config
