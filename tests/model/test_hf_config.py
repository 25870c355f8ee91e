"""config.json: published files are read correctly or rejected, and exported ones mean the same to others."""

import json
import sys

import pytest
from paths import GOLDEN

from nrt_jax.errors import UserError
from nrt_jax.model import hf_config, hf_families, hf_weights
from nrt_jax.model.architecture import FAMILIES, ModelConfig, RopeScaling

sys.path.insert(0, str(GOLDEN))
from make_hf_golden import CASES  # noqa: E402

# As published: the keys that decide something, in the spelling of transformers 4.
LLAMA31_8B = dict(
  architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", vocab_size=128256, hidden_size=4096,
  intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, rms_norm_eps=1e-5,
  max_position_embeddings=131072, tie_word_embeddings=False, attention_bias=False, mlp_bias=False, rope_theta=500000.0,
  initializer_range=0.02, torch_dtype="bfloat16", eos_token_id=128001,
  rope_scaling=dict(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_type="llama3",
  ),
)  # fmt: skip
MISTRAL_7B = {
  **LLAMA31_8B, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32000,
  "max_position_embeddings": 32768, "rope_theta": 10000.0, "rope_scaling": None, "sliding_window": 4096,
}  # fmt: skip
QWEN25_05B = dict(
  architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_act="silu", vocab_size=151936, hidden_size=896,
  intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, rms_norm_eps=1e-6,
  max_position_embeddings=32768, tie_word_embeddings=True, rope_theta=1000000.0, initializer_range=0.02,
  use_sliding_window=False, sliding_window=32768, max_window_layers=21,
)  # fmt: skip


def read(tmp_path, raw, **overrides):
  (tmp_path / "config.json").write_text(raw if isinstance(raw, str) else json.dumps(raw))
  return hf_weights.read_model_config(tmp_path, **overrides)


def test_published_configs(tmp_path):
  llama = read(tmp_path, LLAMA31_8B, compute_dtype="bfloat16")
  assert llama == ModelConfig(
    family="llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5, rope_theta=500000.0,
    rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192), max_position_embeddings=131072, compute_dtype="bfloat16",
  )  # fmt: skip
  mistral = read(tmp_path, MISTRAL_7B)
  assert (mistral.sliding_window, mistral.sliding_layers, mistral.rope_scaling) == (4096, None, None)
  assert read(tmp_path, {**MISTRAL_7B, "sliding_window": None}).sliding_window is None
  qwen = read(tmp_path, QWEN25_05B)
  assert (qwen.head_dim, qwen.qkv_bias, qwen.output_bias, qwen.tie_word_embeddings) == (64, True, False, True)
  assert qwen.sliding_window is None and qwen.rope_theta == 1e6
  windowed = read(tmp_path, {**QWEN25_05B, "use_sliding_window": True})
  assert windowed.sliding_window == 32768 and windowed.sliding_layers == (False,) * 21 + (True,) * 3
  types = ["sliding_attention", "full_attention"] * 12
  windowed = read(tmp_path, {**QWEN25_05B, "use_sliding_window": True, "layer_types": types})
  assert windowed.sliding_layers == (True, False) * 12
  llama2 = {key: value for key, value in LLAMA31_8B.items() if not key.startswith(("rope", "num_key", "mlp", "att"))}
  llama2 = read(tmp_path, llama2)
  assert (llama2.num_key_value_heads, llama2.rope_theta, llama2.rope_scaling) == (32, 10000.0, None)


def test_both_spellings_of_rope_agree(tmp_path):
  old = read(tmp_path, LLAMA31_8B)
  raw = {key: value for key, value in LLAMA31_8B.items() if not key.startswith("rope")}
  assert read(tmp_path, {**raw, "rope_parameters": {**LLAMA31_8B["rope_scaling"], "rope_theta": 500000.0}}) == old
  kind = {**LLAMA31_8B["rope_scaling"], "type": "llama3"}
  assert read(tmp_path, {**raw, "rope_theta": 500000.0, "rope_scaling": {**kind, "rope_type": "llama3"}}) == old
  kind.pop("rope_type")
  assert read(tmp_path, {**raw, "rope_theta": 500000.0, "rope_scaling": kind}) == old


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(model_type="gpt2"), "model_type: found 'gpt2', allowed: g[a-z0-9_, ]*$"),
    (dict(model_type=None), "model_type: found None"),
    (dict(architectures=["LlamaForSequenceClassification"]), "architectures: found 'LlamaForSequenceClassification'"),
    (dict(rope_scaling=dict(rope_type="ntk", factor=4.0)), "rope_scaling.rope_type: found 'ntk', allowed: default"),
    (dict(rope_scaling=dict(type="dynamic")), "rope_scaling: the key 'factor' is missing"),
    (dict(rope_scaling=dict(type="longrope", long_factor=[1.0])), "short_factor: found None, allowed: a list"),
    (dict(rope_scaling=dict(type="longrope", long_factor=[1], short_factor=[2])), "found 1 numbers, allowed: 64"),
    (dict(rope_scaling=dict(type="default", mrope_section=[1, 2])), r"rope_scaling.mrope_section: found \[1, 2\]"),
    (dict(rope_scaling=dict(rope_type="llama3", factor=4.0)), "rope_scaling: the key 'low_freq_factor' is missing"),
    (dict(rope_scaling=dict(full_attention=dict(rope_type="default"))), "allowed: one set of parameters"),
    (dict(rope_scaling=dict(rope_type="default", partial_rotary_factor=0.5)), "rotary_factor: found 0.5, allowed: 1"),
    (dict(hidden_act="gelu"), "hidden_act: found 'gelu'"),
    (dict(hidden_size=None), "the key 'hidden_size' is missing"),
    (dict(hidden_size="4096"), "hidden_size: found '4096', allowed: a positive integer"),
    (dict(num_hidden_layers=0), "num_hidden_layers: found 0"),
    (dict(tie_word_embeddings=1), "tie_word_embeddings: found 1, allowed: true or false"),
    (dict(hidden_size=4100), "hidden_size 4100 is not a multiple of num_attention_heads 32, and no head_dim"),
    (dict(num_key_value_heads=5), "num_attention_heads: 32 is not a multiple of num_key_value_heads 5"),
    (dict(quantization_config=dict(bits=4)), "quantization_config: quantised weights"),
    (dict(num_hidden_layers=10**9), "num_hidden_layers: found 1000000000, allowed: a positive integer, at most 10000"),
    (dict(head_dim=10**9), "head_dim: found 1000000000, allowed: a positive integer, at most 65536"),
    (dict(vocab_size=2**32), "vocab_size: found 4294967296, allowed: a positive integer, at most 67108864"),
    (dict(max_position_embeddings=10**400), "max_position_embeddings: found 1000.* allowed: a positive integer, at most 2"),
    (dict(rms_norm_eps=float("nan")), "rms_norm_eps: found nan, allowed: a finite number"),
    (dict(rms_norm_eps=10**400), "rms_norm_eps: found 1000.*, allowed: a finite number"),
    (dict(rope_theta=0), "rope_theta: found 0.0, allowed: a number above 0"),
    (dict(rope_theta=float("inf")), "rope_theta: found inf, allowed: a finite number"),
    (dict(rope_scaling=dict(rope_type="linear", factor=0.0)), "factor: found 0.0, allowed: a number above 0"),
    (
      dict(rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=4.0, high_freq_factor=4.0)),
      "low_freq_factor: found 4.0, allowed: below high_freq_factor",
    ),
    (dict(rope_scaling=dict(type="longrope", long_factor=[1.0], short_factor=[0])), "short_factor: found .*above 0"),
  ],
)
def test_config_errors(tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    read(tmp_path, {**LLAMA31_8B, **change})


def test_config_errors_of_windows_and_files(tmp_path):
  windowed = {**QWEN25_05B, "use_sliding_window": True}
  with pytest.raises(UserError, match="layer_types: found 'chunked_attention'"):
    read(tmp_path, {**windowed, "layer_types": ["chunked_attention"] * 24})
  with pytest.raises(UserError, match="config.json: text_config: found None, allowed: an object"):
    read(tmp_path, {"model_type": "gemma3"})
  with pytest.raises(UserError, match="config.json: text_config: the key 'hidden_size' is missing"):
    read(tmp_path, {"model_type": "gemma3", "text_config": {}})
  with pytest.raises(UserError, match="layer_types: found 3 entries, allowed: num_hidden_layers = 24"):
    read(tmp_path, {**windowed, "layer_types": ["full_attention"] * 3})
  with pytest.raises(UserError, match="config.json: not JSON that can be read: Exceeds the limit"):
    read(tmp_path, '{"vocab_size": ' + "9" * 5000 + "}")
  with pytest.raises(UserError, match="config.json: not JSON that can be read: maximum recursion depth"):
    read(tmp_path, '{"a": ' + "[" * 10_000 + "]" * 10_000 + "}")
  with pytest.raises(UserError, match=r"config.json:3: not valid JSON"):
    read(tmp_path, '{\n"model_type": "llama",\n}')
  with pytest.raises(UserError, match="allowed: an object"):
    read(tmp_path, "[]")
  with pytest.raises(UserError, match=r"nowhere/config.json: no such file"):
    hf_weights.read_model_config(tmp_path / "nowhere")
  with pytest.raises(UserError, match=r"model: found 'compute_type'.*did you mean 'compute_dtype'"):
    read(tmp_path, QWEN25_05B, compute_type="bfloat16")


def test_absent_keys_have_the_defaults_of_transformers(tmp_path):
  """The values of the config classes in transformers 5.24, which the next test compares where it is installed."""
  needed = {key: LLAMA31_8B[key] for key in hf_config.SIZES}
  seen = {}
  for family in FAMILIES:
    found = read(tmp_path, {"model_type": family, **needed})
    seen[family] = (found.num_key_value_heads, found.head_dim, found.max_position_embeddings, found.rms_norm_eps)
    null = read(tmp_path, {"model_type": family, **needed, "num_key_value_heads": None})
    assert null.num_key_value_heads == needed["num_attention_heads"]
  assert seen["llama"] == (32, 128, 2048, 1e-6) and seen["mistral"] == (8, 128, 131072, 1e-6)
  assert seen["qwen2"] == seen["qwen3"] == (32, 128, 32768, 1e-6)
  assert read(tmp_path, {"model_type": "qwen3", **needed, "hidden_size": 2048}).head_dim == 128  # not D / H


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family, tmp_path):
  transformers = pytest.importorskip("transformers")
  sizes = dict(vocab_size=40, hidden_size=512, intermediate_size=24, num_hidden_layers=8, num_attention_heads=32)
  theirs = transformers.AutoConfig.for_model(family, **sizes)
  ours, known = read(tmp_path, {"model_type": family, **sizes}), hf_families.FAMILIES[family]
  same = "max_position_embeddings", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "initializer_range"
  for key in same:
    assert getattr(ours, key) == getattr(theirs, key), key
  assert ours.head_dim == (getattr(theirs, "head_dim", None) or 16)
  assert type(theirs).__name__.removesuffix("Config").removesuffix("Text") + "ForCausalLM" == known.architecture
  if known.windows != "all":
    slides = [window is not None for window in hf_config.windows_of(ours)]
    assert slides == [name == "sliding_attention" for name in getattr(theirs, "layer_types", [None] * 8)]
  if "final_logit_softcapping" in known.reads:
    assert ours.final_logit_softcapping == theirs.final_logit_softcapping
  if "attn_logit_softcapping" in known.reads:
    assert ours.attn_logit_softcapping == theirs.attn_logit_softcapping
  assert ours.rope_layers == (tuple(map(bool, theirs.no_rope_layers)) if family == "smollm3" else None)
  ropes = theirs.rope_parameters
  assert ours.rope_theta == ropes.get("full_attention", ropes)["rope_theta"]
  local = ropes.get("sliding_attention", {"rope_theta": ours.rope_theta})["rope_theta"]
  assert (ours.local_rope_theta or ours.rope_theta) == local


@pytest.mark.parametrize(
  "model_type", ["llama4_text", "qwen2_moe", "mixtral", "gemma", "gemma3n", "phi", "olmo", "deepseek_v3"]
)
def test_other_architectures_are_refused_without_a_hint(model_type, tmp_path):
  """Who changed model_type to the nearest name would load such a model, and compute something else."""
  with pytest.raises(UserError, match=f"model_type: found '{model_type}', allowed: [a-z0-9_, ]*$"):
    read(tmp_path, {**LLAMA31_8B, "model_type": model_type})


@pytest.mark.parametrize(
  "key, value, neutral",
  [
    ("no_rope_layers", [1, 1, 0, 1], [1] * 32),
    ("embedding_multiplier", 12.0, 1.0),
    ("logits_scaling", 8, 1),
    ("attention_multiplier", 0.1, None),
    ("attn_logit_softcapping", 50.0, None),
    ("partial_rotary_factor", 0.5, 1.0),
    ("num_local_experts", 16, 1),
    ("use_qk_norm", True, False),
  ],
)
def test_keys_that_a_family_does_not_read_are_refused(key, value, neutral, tmp_path):
  with pytest.raises(UserError, match=f"config.json: {key}: found .*, allowed with model_type 'llama': None"):
    read(tmp_path, {**LLAMA31_8B, key: value})
  assert read(tmp_path, {**LLAMA31_8B, key: neutral}) == read(tmp_path, LLAMA31_8B)


MOE = dict(
  LLAMA31_8B, model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], rope_scaling=None, num_experts=16,
  num_experts_per_tok=4, moe_intermediate_size=64, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
)  # fmt: skip


def test_experts(tmp_path):
  config = read(tmp_path, MOE)
  assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (16, 4, 64)
  assert config.norm_topk_prob and config.qk_norm and not config.mlp_bias and config.sliding_window is None
  renamed = {key: value for key, value in MOE.items() if key != "num_experts"} | {"num_local_experts": 16}
  training_only = dict(router_aux_loss_coef=0.01, output_router_logits=True)
  assert read(tmp_path, {**renamed, **training_only}) == config  # transformers 5's name; keys of pretraining
  windowed = read(tmp_path, {**MOE, "use_sliding_window": True, "sliding_window": 9})
  assert (windowed.sliding_window, windowed.sliding_layers) == (9, None)
  for found in (config, windowed):
    hf_config.write_config(found, tmp_path)
    assert hf_weights.read_model_config(tmp_path) == found


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(mlp_only_layers=[0]), r"mlp_only_layers: found \[0\], allowed: \[\]: layers without experts"),
    (dict(decoder_sparse_step=2), "decoder_sparse_step: found 2, allowed: 1: layers without experts"),
    (dict(num_experts_per_tok=17), "num_experts_per_tok: found 17, allowed: 1 to num_experts = 16"),
    (dict(num_experts=0), "num_experts: found 0, allowed: a positive integer"),
    (dict(num_local_experts=8), "num_local_experts: found 8 with num_experts 16, allowed: the same"),
    (dict(moe_intermediate_size=0), "moe_intermediate_size: found 0, allowed: a positive integer"),
    (dict(norm_topk_prob="yes"), "norm_topk_prob: found 'yes', allowed: true or false"),
  ],
)
def test_config_errors_of_experts(tmp_path, change, message):
  with pytest.raises(UserError, match=f"config.json: {message}"):
    read(tmp_path, {**MOE, **change})


@pytest.mark.parametrize("case", CASES)
def test_config_round_trip(case, tmp_path):
  config = hf_weights.read_model_config(GOLDEN / case)
  hf_weights.write_config(config, tmp_path, source=GOLDEN / case, token_ids={"eos_token_id": 5})
  assert hf_weights.read_model_config(tmp_path) == config
  raw = json.loads((tmp_path / "config.json").read_text())
  assert (raw["bos_token_id"], raw["eos_token_id"], raw["pad_token_id"]) == (1, 5, None)
  rope = config.rope_scaling
  assert raw["rope_theta"] == config.rope_theta and (raw["rope_scaling"] is None) == (rope is None)


def test_end_tokens_are_those_of_both_files(tmp_path):
  def read_ids(generation, config):
    for name, ids in (("generation_config.json", generation), ("config.json", config)):
      (tmp_path / name).write_text(json.dumps({} if ids is None else {"eos_token_id": ids}))
    return hf_config.read_end_ids(tmp_path)

  assert read_ids(None, None) == hf_config.read_end_ids(tmp_path / "nowhere") == ()
  assert read_ids([5, 7], 7) == (5, 7) and read_ids(5, [7, 5]) == (5, 7) and read_ids(None, [3]) == (3,)
  for bad in ("</s>", [1, "2"], True, -1, {"id": 1}, [[1]], 2**32, 10**400):
    with pytest.raises(UserError, match="generation_config.json: eos_token_id: found .*, allowed: a token's id, or a list"):
      read_ids(bad, 1)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(family="llama", qkv_bias=True), "model.output_bias: found False, allowed with LlamaForCausalLM: True"),
    (dict(family="llama", sliding_window=4), "model.sliding_window: LlamaForCausalLM cannot slide"),
    (dict(family="mistral", sliding_window=4, sliding_layers=(True, False)), "MistralForCausalLM cannot slide"),
    (dict(family="qwen2"), "model.qkv_bias: found False, allowed with Qwen2ForCausalLM: True"),
    (dict(family="qwen2", qkv_bias=True, qk_norm=True), "model.qk_norm: found True"),
    (dict(family="llama", hidden_size=130), "model.hidden_size: found 130"),
    (
      dict(family="qwen3", qk_norm=True, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8),
      "model.moe_intermediate_size: found 8, allowed with Qwen3ForCausalLM: 0",
    ),
  ],
)
def test_a_model_that_transformers_cannot_express_is_refused(options, message):
  with pytest.raises(UserError, match=message):
    hf_weights.hf_config(ModelConfig(**options))
