"""Parity with torch's transformers on random tiny models of every family, also with an extended vocabulary.

tests/golden stores some of the expected values as files (see make_hf_golden.py there), so that these tests also run
without torch.
"""

import dataclasses
import functools
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDEN

from nrt_jax.errors import UserError
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.attention import empty_cache
from nrt_jax.model.decoder import forward, init_params, logits

sys.path.insert(0, str(GOLDEN))
from make_hf_golden import CASES, NEW_TOKENS, make_batch, make_model, torch_outputs  # noqa: E402

TOLERANCE = 1e-4  # of float32 logits of size up to 7; never to be relaxed
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="parity with torch needs torch")


# These programs run once each, so compiling them fast matters more than running them fast.
@functools.partial(jax.jit, static_argnums=(1, 4), compiler_options={"xla_backend_optimization_level": 0})
def run(params, config, token, position, new_tokens=NEW_TOKENS):
  """Logits [N, T, V] of a prefill, and from its cache, a token at a time, the greedy continuation [N, new_tokens]."""
  rows, columns = token.shape
  empty = empty_cache(config, rows, columns + new_tokens, jnp.float32)
  hidden_NTD, cache = forward(params, config, token, position, (empty,), slot=0)

  def step(carry, i):
    cache, hidden_ND = carry
    token = jnp.argmax(logits(params, config, hidden_ND), -1).astype(jnp.int32)
    hidden_NTD, cache = forward(params, config, token[:, None], position[:, -1:] + 1 + i, (cache,), slot=columns + i)
    return (cache, hidden_NTD[:, -1]), token

  greedy = jax.lax.scan(step, (cache, hidden_NTD[:, -1]), jnp.arange(new_tokens))[1].T
  return logits(params, config, hidden_NTD), greedy


def assert_logits_close(found, expected, position, tolerance=TOLERANCE):
  real = position >= 0
  assert real.sum() > 90 and found.shape == expected.shape
  np.testing.assert_allclose(np.asarray(found)[real], expected[real], rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layer_loop", ["scan", "unroll"])
def test_golden_logits_and_greedy_tokens(case, layer_loop):
  expected = np.load(GOLDEN / case / "expected.npz")
  product = "sorted" if layer_loop == "scan" else "all"  # of experts, where there are some
  config = hf_weights.read_model_config(GOLDEN / case, layer_loop=layer_loop, expert_product=product)
  params = hf_weights.load_params(GOLDEN / case, config)
  token, position = expected["token"], expected["position"]
  found, greedy = run(params, config, token, position)
  assert_logits_close(found, expected["logits"], position)
  np.testing.assert_array_equal(greedy, expected["greedy"])
  assert len(np.unique(greedy)) > 5  # a model stuck on one token would prove little


SENSITIVE = {
  "llama": dict(rope_theta=10000.0, rms_norm_eps=1e-6),
  "llama3_scaling_tied": dict(rope_scaling=None),
  "llama_linear_scaling": dict(rope_scaling=None),
  "mistral_window": dict(sliding_window=6),
  "qwen2_tied": dict(rope_theta=10000.0),
  "qwen2_half_windowed": dict(sliding_layers=None),
  "qwen3": dict(rms_norm_eps=1e-6),
  "smollm3": dict(rope_layers=None),
  "granite": dict(residual_multiplier=1.0),
  "olmo2": dict(rms_norm_eps=1e-6),
  "olmo3_yarn": dict(local_rope_theta=None),
  "phi3_longrope": dict(long_rope=True),
  "gemma2": dict(attn_logit_softcapping=None),
  "gemma3": dict(local_rope_theta=None, attention_multiplier=None),
  "qwen3_moe": dict(norm_topk_prob=False, num_experts_per_tok=3),
}


@pytest.mark.parametrize("case", CASES)
def test_golden_logits_notice_each_config_field(case):
  expected = np.load(GOLDEN / case / "expected.npz")
  params = hf_weights.load_params(GOLDEN / case, hf_weights.read_model_config(GOLDEN / case))
  for name, value in SENSITIVE[case].items():
    config = hf_weights.read_model_config(GOLDEN / case, **{name: value})
    found, _ = run(params, config, expected["token"], expected["position"], 0)
    with pytest.raises(AssertionError):
      assert_logits_close(found, expected["logits"], expected["position"], tolerance=10 * TOLERANCE)


@needs_torch
@pytest.mark.parametrize("case", CASES)
def test_torch_to_us_and_back(case, tmp_path):
  from transformers import AutoModelForCausalLM

  model = make_model(case, seed=100)
  model.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
  assert (tmp_path / "theirs" / hf_weights.INDEX_FILE).is_file()
  token, position = make_batch(seed=100)
  expected, greedy = torch_outputs(model, token, position)
  config = hf_weights.read_model_config(tmp_path / "theirs", layer_loop="unroll")
  params = hf_weights.load_params(tmp_path / "theirs", config)
  found, found_greedy = run(params, config, token, position)
  assert_logits_close(found, expected, position)
  np.testing.assert_array_equal(found_greedy, greedy)

  hf_weights.save_params(params, config, tmp_path / "ours", max_shard_bytes=6000)
  assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
  reloaded, info = AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours", attn_implementation="eager", output_loading_info=True
  )
  assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  again, again_greedy = torch_outputs(reloaded.eval(), token, position)
  assert_logits_close(again, expected, position, tolerance=1e-6)
  np.testing.assert_array_equal(again_greedy, greedy)


@needs_torch
def test_experts_of_a_layer_in_one_tensor(tmp_path):
  """As transformers 5 holds them, and writes them when told to; all else writes them one by one."""
  model = make_model("qwen3_moe", seed=5)
  model.save_pretrained(tmp_path / "single")
  model.save_pretrained(tmp_path / "stacked", save_original_format=False)
  config = hf_weights.read_model_config(tmp_path / "stacked")
  single, stacked = (hf_weights.load_params(tmp_path / name, config) for name in ("single", "stacked"))
  assert "model.layers.1.mlp.experts.down_proj" in hf_weights.locate_tensors(tmp_path / "stacked", config)
  jax.tree.map(np.testing.assert_array_equal, single, stacked)
  assert stacked["layers"]["down"]["kernel"].shape == (2, 5, 8, 16)


@needs_torch
def test_text_part_of_a_model_with_images(tmp_path):
  """Gemma 3 from 4B on: read as a text model, and written as one."""
  from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

  text = dict(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, head_dim=6,
    num_key_value_heads=2, sliding_window=5, query_pre_attn_scalar=9, initializer_range=0.3, pad_token_id=None,
  )  # fmt: skip
  vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28)
  ids = dict(image_token_index=39, boi_token_index=38, eoi_token_index=37)
  theirs = Gemma3Config(text_config=text, vision_config={**vision, "patch_size": 14}, mm_tokens_per_image=4, **ids)
  model = Gemma3ForConditionalGeneration(theirs).eval()
  model.save_pretrained(tmp_path / "theirs")
  config = hf_weights.read_model_config(tmp_path / "theirs")
  params = hf_weights.load_params(tmp_path / "theirs", config)
  token, position = make_batch(seed=2)
  token %= 37  # no images
  expected = torch_outputs(model, token, position)[0]
  assert_logits_close(run(params, config, token, position, 0)[0], expected, position)
  hf_weights.save_params(params, config, tmp_path / "ours", source=tmp_path / "theirs")
  again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
  assert type(again).__name__ == "Gemma3ForCausalLM"
  assert_logits_close(torch_outputs(again, token, position)[0], expected, position, tolerance=1e-5)


@needs_torch
def test_random_init_exports_to_torch(tmp_path):
  from transformers import AutoModelForCausalLM

  config = ModelConfig(
    family="qwen3", vocab_size=40, hidden_size=16, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2,
    head_dim=6, qk_norm=True, initializer_range=0.3,
  )  # fmt: skip
  params = init_params(config, jax.random.key(0))
  hf_weights.save_params(params, config, tmp_path / "model", token_ids={"eos_token_id": 7})
  model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
  token, position = make_batch(seed=1)
  found, _ = run(params, config, token, position, 0)
  assert_logits_close(found, torch_outputs(model, token, position)[0], position)
  assert model.config.eos_token_id == 7 and model.config.bos_token_id is None


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_a_name_in_the_file(tied):
  config = ModelConfig(qk_norm=True, qkv_bias=True, output_bias=True, mlp_bias=True, tie_word_embeddings=tied)
  tree = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  paths = {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(tree)}
  assert {entry.path for entry in hf_weights.tensor_entries(config)} == paths and len(paths) == 21 - tied


# ---- vocabulary -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["llama", "qwen2_tied"])
def test_new_tokens_start_as_the_given_one(case, tmp_path):
  expected = np.load(GOLDEN / case / "expected.npz")
  token, position = expected["token"], expected["position"]
  config = hf_weights.read_model_config(GOLDEN / case, layer_loop="unroll")
  loaded = hf_weights.load_params(GOLDEN / case, config)
  params, resized = hf_weights.resize_vocabulary(loaded, config, 42, like_ids=(7,))
  assert resized == dataclasses.replace(config, vocab_size=42) and ("head" in params) == (case == "llama")
  found, _ = run(params, resized, token, position, 0)
  found = np.asarray(found)
  assert_logits_close(found[..., :40], expected["logits"], position)
  for new in (40, 41):  # as likely as token 7, and read as token 7
    np.testing.assert_array_equal(found[..., new], found[..., 7])
  swapped, _ = run(params, resized, np.where(token == 7, 41, token), position, 0)
  assert (token == 7).any()
  np.testing.assert_array_equal(swapped, found)
  hf_weights.save_params(params, resized, tmp_path / "out")
  reread = hf_weights.load_params(tmp_path / "out", hf_weights.read_model_config(tmp_path / "out"))
  jax.tree.map(np.testing.assert_array_equal, reread, params)


def test_resize_pads_with_zeros_and_can_set_old_rows():
  config = ModelConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, intermediate_size=8, head_dim=4)
  params = init_params(config, jax.random.key(0))
  new, resized = hf_weights.resize_vocabulary(params, config, 16, like_ids=(2,), token_ids=(9, 10))
  assert resized.vocab_size == 16
  for table, old in (
    (new["embedder"]["embedding"], params["embedder"]["embedding"]),
    (new["head"]["kernel"].T, params["head"]["kernel"].T),
  ):
    np.testing.assert_array_equal(table[:9], old[:9])
    np.testing.assert_array_equal(table[9:11], np.stack([old[2], old[2]]))
    np.testing.assert_array_equal(table[11:], np.zeros((5, 8)))
  same, unchanged = hf_weights.resize_vocabulary(params, config, 10, like_ids=(2,))
  assert unchanged == config
  jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_new_rows_are_the_mean_of_the_given_ones(dtype):
  config = ModelConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, intermediate_size=8, head_dim=4)
  params = jax.tree.map(lambda p: p.astype(dtype), init_params(config, jax.random.key(0)))
  like_ids = [*range(0, 300, 2), 7, 7]  # a token that a description has twice counts twice
  new, _ = hf_weights.resize_vocabulary(params, config, 302, like_ids)
  for table, old in (
    (new["embedder"]["embedding"], params["embedder"]["embedding"]),
    (new["head"]["kernel"].T, params["head"]["kernel"].T),
  ):
    mean = np.asarray(old, np.float64)[like_ids].mean(axis=0)
    assert table.dtype == jnp.dtype(dtype)
    for row in np.asarray(table[300:], np.float64):
      np.testing.assert_allclose(row, mean, rtol={"float32": 1e-5, "bfloat16": 2**-8}[dtype], atol=1e-8)


@pytest.mark.parametrize(
  "size, origin, ids, message",
  [
    (9, 2, None, "found 10 tokens, allowed: at most the new size 9"),
    (12, 10, None, "found token id 10, allowed: 0 to 9"),
    (12, 2, (12,), "found token id 12, allowed: 0 to 11"),
    (12, 2, (-1,), "found token id -1"),
  ],
)
def test_resize_errors(size, origin, ids, message):
  config = ModelConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, intermediate_size=8, head_dim=4)
  with pytest.raises(UserError, match=message):
    hf_weights.resize_vocabulary({}, config, size, (3, origin), ids)
