"""Parity with torch's transformers on random tiny models of every family, and the errors of model directories.

tests/golden holds part of the parity as files (see make_hf_golden.py there), so that it runs without torch too.
"""

import dataclasses
import functools
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nrt_jax import hf, sharding
from nrt_jax.attention import empty_cache
from nrt_jax.errors import UserError
from nrt_jax.model import ModelConfig, RopeScaling, forward, init_params, logical_axes, logits

GOLDEN = Path(__file__).parent / "golden"
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


@pytest.fixture
def golden(tmp_path):
  """A copy of a golden model directory, to be spoilt."""

  def copy(case):
    return Path(shutil.copytree(GOLDEN / case, tmp_path / case))

  return copy


# ---- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layer_loop", ["scan", "unroll"])
def test_golden_logits_and_greedy_tokens(case, layer_loop):
  expected = np.load(GOLDEN / case / "expected.npz")
  config = hf.read_model_config(GOLDEN / case, layer_loop=layer_loop)
  params = hf.load_params(GOLDEN / case, config)
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
}


@pytest.mark.parametrize("case", CASES)
def test_golden_logits_notice_each_config_field(case):
  expected = np.load(GOLDEN / case / "expected.npz")
  params = hf.load_params(GOLDEN / case, hf.read_model_config(GOLDEN / case))
  for name, value in SENSITIVE[case].items():
    config = hf.read_model_config(GOLDEN / case, **{name: value})
    found, _ = run(params, config, expected["token"], expected["position"], 0)
    with pytest.raises(AssertionError):
      assert_logits_close(found, expected["logits"], expected["position"], tolerance=10 * TOLERANCE)


@needs_torch
@pytest.mark.parametrize("case", CASES)
def test_torch_to_us_and_back(case, tmp_path):
  from transformers import AutoModelForCausalLM

  model = make_model(case, seed=100)
  model.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
  assert (tmp_path / "theirs" / hf.INDEX_FILE).is_file()
  token, position = make_batch(seed=100)
  expected, greedy = torch_outputs(model, token, position)
  config = hf.read_model_config(tmp_path / "theirs", layer_loop="unroll")
  params = hf.load_params(tmp_path / "theirs", config)
  found, found_greedy = run(params, config, token, position)
  assert_logits_close(found, expected, position)
  np.testing.assert_array_equal(found_greedy, greedy)

  hf.save_params(params, config, tmp_path / "ours", max_shard_bytes=6000)
  assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
  reloaded, info = AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours", attn_implementation="eager", output_loading_info=True
  )
  assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  again, again_greedy = torch_outputs(reloaded.eval(), token, position)
  assert_logits_close(again, expected, position, tolerance=1e-6)
  np.testing.assert_array_equal(again_greedy, greedy)


@needs_torch
def test_random_init_exports_to_torch(tmp_path):
  from transformers import AutoModelForCausalLM

  config = ModelConfig(
    family="qwen3", vocab_size=40, hidden_size=16, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2,
    head_dim=6, qk_norm=True, initializer_range=0.3,
  )  # fmt: skip
  params = init_params(config, jax.random.key(0))
  hf.save_params(params, config, tmp_path / "model", token_ids={"eos_token_id": 7})
  model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
  token, position = make_batch(seed=1)
  found, _ = run(params, config, token, position, 0)
  assert_logits_close(found, torch_outputs(model, token, position)[0], position)
  assert model.config.eos_token_id == 7 and model.config.bos_token_id is None


# ---- config.json ----------------------------------------------------------------------------------------------------

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
  return hf.read_model_config(tmp_path, **overrides)


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
    (dict(model_type="gpt2"), "model_type: found 'gpt2', allowed: llama, mistral, qwen2, qwen3"),
    (dict(model_type=None), "model_type: found None"),
    (dict(architectures=["LlamaForSequenceClassification"]), "architectures: found 'LlamaForSequenceClassification'"),
    (dict(rope_scaling=dict(rope_type="yarn", factor=4.0)), "rope_scaling.rope_type: found 'yarn'"),
    (dict(rope_scaling=dict(type="dynamic", factor=4.0)), "rope_scaling.rope_type: found 'dynamic'"),
    (dict(rope_scaling=dict(rope_type="llama3", factor=4.0)), "rope_scaling: the key 'low_freq_factor' is missing"),
    (dict(rope_scaling=dict(full_attention=dict(rope_type="default"))), "allowed: one set of parameters"),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor: found 0.5, allowed: 1"),
    (dict(hidden_act="gelu"), "hidden_act: found 'gelu'"),
    (dict(hidden_size=None), "the key 'hidden_size' is missing"),
    (dict(rms_norm_eps=None), "the key 'rms_norm_eps' is missing"),
    (dict(hidden_size="4096"), "hidden_size: found '4096', allowed: a positive integer"),
    (dict(num_hidden_layers=0), "num_hidden_layers: found 0"),
    (dict(tie_word_embeddings=1), "tie_word_embeddings: found 1, allowed: true or false"),
    (dict(hidden_size=4100), "hidden_size 4100 is not a multiple of num_attention_heads 32, and no head_dim"),
    (dict(num_key_value_heads=5), "num_attention_heads: 32 is not a multiple of num_key_value_heads 5"),
    (dict(quantization_config=dict(bits=4)), "quantization_config: quantised weights"),
  ],
)
def test_config_errors(tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    read(tmp_path, {**LLAMA31_8B, **change})


def test_config_errors_of_windows_and_files(tmp_path):
  windowed = {**QWEN25_05B, "use_sliding_window": True}
  with pytest.raises(UserError, match="layer_types: found 'chunked_attention'"):
    read(tmp_path, {**windowed, "layer_types": ["chunked_attention"] * 24})
  with pytest.raises(UserError, match="layer_types: found 3 entries, allowed: num_hidden_layers = 24"):
    read(tmp_path, {**windowed, "layer_types": ["full_attention"] * 3})
  with pytest.raises(UserError, match="the key 'head_dim' is missing"):  # Qwen3's default is 128, not D / H
    read(tmp_path, {**QWEN25_05B, "model_type": "qwen3", "architectures": None})
  with pytest.raises(UserError, match=r"config.json:3: not valid JSON"):
    read(tmp_path, '{\n"model_type": "llama",\n}')
  with pytest.raises(UserError, match="allowed: an object"):
    read(tmp_path, "[]")
  with pytest.raises(UserError, match=r"nowhere/config.json: no such file"):
    hf.read_model_config(tmp_path / "nowhere")
  with pytest.raises(UserError, match=r"model: found 'compute_type'.*did you mean 'compute_dtype'"):
    read(tmp_path, QWEN25_05B, compute_type="bfloat16")


@pytest.mark.parametrize("case", CASES)
def test_config_round_trip(case, tmp_path):
  config = hf.read_model_config(GOLDEN / case)
  hf.write_config(config, tmp_path, source=GOLDEN / case, token_ids={"eos_token_id": 5})
  assert hf.read_model_config(tmp_path) == config
  raw = json.loads((tmp_path / "config.json").read_text())
  assert (raw["bos_token_id"], raw["eos_token_id"], raw["pad_token_id"]) == (1, 5, None)
  rope = config.rope_scaling
  assert raw["rope_theta"] == config.rope_theta and (raw["rope_scaling"] is None) == (rope is None)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(family="llama", qkv_bias=True), "model.output_bias: found False, allowed with LlamaForCausalLM: True"),
    (dict(family="llama", sliding_window=4), "model.sliding_window: LlamaForCausalLM cannot slide"),
    (dict(family="mistral", sliding_window=4, sliding_layers=(True, False)), "MistralForCausalLM cannot slide"),
    (dict(family="qwen2"), "model.qkv_bias: found False, allowed with Qwen2ForCausalLM: True"),
    (dict(family="qwen2", qkv_bias=True, qk_norm=True), "model.qk_norm: found True"),
    (dict(family="llama", hidden_size=130), "model.hidden_size: found 130"),
  ],
)
def test_a_model_that_transformers_cannot_express_is_refused(options, message):
  with pytest.raises(UserError, match=message):
    hf.hf_config(ModelConfig(**options))


# ---- tensors --------------------------------------------------------------------------------------------------------


def rewrite(directory, change, name=hf.SINGLE_FILE):
  """Applies `change` to the dict of tensors in a file."""
  tensors = load_file(directory / name)
  change(tensors)
  save_file(tensors, directory / name, metadata={"format": "pt"})


def load(directory, **overrides):
  return hf.load_params(directory, hf.read_model_config(directory, **overrides))


def shard(directory):
  """Turns a golden directory into three shards and an index; returns their names."""
  config = hf.read_model_config(directory)
  hf.save_params(load(directory), config, directory.with_name("sharded"), max_shard_bytes=12000)
  names = sorted(path.name for path in directory.with_name("sharded").glob("model-*"))
  assert len(names) > 2
  return directory.with_name("sharded"), names


Q1, K0 = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"


def test_unknown_tensor(golden):
  directory = golden("qwen2_tied")
  rewrite(directory, lambda tensors: tensors.update({"model.layers.2.mlp.up_proj.weight": tensors[Q1]}))
  with pytest.raises(UserError, match=r"model.safetensors: unknown tensor model.layers.2.mlp.up_proj.weight"):
    load(directory)


def test_missing_tensor(golden):
  directory = golden("llama")
  rewrite(directory, lambda tensors: (tensors.pop(Q1), tensors.pop("lm_head.weight")))
  with pytest.raises(UserError, match=rf"model.safetensors: missing tensor {Q1} \(and 1 more\)"):
    load(directory)
  directory, names = shard(golden("mistral_window"))
  index = json.loads((directory / hf.INDEX_FILE).read_text())["weight_map"]
  rewrite(directory, lambda tensors: tensors.pop(K0), index[K0])
  with pytest.raises(UserError, match=rf"{index[K0]}: missing tensor {K0}: config.json"):
    load(directory)


def test_duplicate_tensor(golden):
  directory, names = shard(golden("llama"))
  first = "model.embed_tokens.weight"
  rewrite(directory, lambda tensors: tensors.update({first: np.zeros((40, 16), np.float32)}), names[-1])
  with pytest.raises(UserError, match=rf"{names[-1]}: duplicate tensor {first}: {names[0]} holds it too"):
    load(directory)


def test_wrongly_shaped_tensor(golden):
  directory = golden("llama")
  rewrite(directory, lambda tensors: tensors.update({Q1: np.ascontiguousarray(tensors[Q1].T)}))
  with pytest.raises(UserError, match=rf"wrong shape of tensor {Q1}: found \(16, 24\), by config.json: \(24, 16\)"):
    load(directory)


def test_unreadable_files(golden):
  directory = golden("llama")
  rewrite(directory, lambda tensors: tensors.update({Q1: tensors[Q1].astype(np.int8)}))
  with pytest.raises(UserError, match=rf"dtype of tensor {Q1}: found 'I8', allowed: BF16, F16, F32"):
    load(directory)
  file = directory / hf.SINGLE_FILE
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(UserError, match="model.safetensors: not a whole safetensors file"):
    load(directory)
  file.rename(directory / "pytorch_model.bin")
  with pytest.raises(UserError, match="pytorch_model.bin is a pickle, which is never loaded"):
    load(directory)
  directory, names = shard(golden("qwen3"))
  (directory / names[1]).unlink()
  with pytest.raises(UserError, match=rf"{names[1]}: no such file, though {hf.INDEX_FILE} names it"):
    load(directory)
  (directory / hf.INDEX_FILE).write_text('{"weight_map": []}')
  with pytest.raises(UserError, match="weight_map: found list"):
    load(directory)


def test_known_buffers_and_tied_heads_are_ignored(golden):
  directory = golden("qwen2_tied")
  expected = load(directory)
  embedding = load_file(directory / hf.SINGLE_FILE)["model.embed_tokens.weight"]
  buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32), "lm_head.weight": embedding}
  rewrite(directory, lambda tensors: tensors.update(buffers))
  jax.tree.map(np.testing.assert_array_equal, load(directory), expected)
  rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
  with pytest.raises(UserError, match="lm_head.weight differs from model.embed_tokens.weight"):
    load(directory)
  untied = load(directory, tie_word_embeddings=False)
  np.testing.assert_array_equal(untied["head"]["kernel"], embedding.T + 1)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_becomes_float32(golden, dtype):
  directory = golden("llama")
  full = load(directory)
  rewrite(directory, lambda tensors: tensors.update({k: v.astype(dtype) for k, v in tensors.items()}))
  half = load(directory)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(half))
  jax.tree.map(lambda h, f: np.testing.assert_array_equal(h, f.astype(dtype).astype(np.float32)), half, full)


def test_shardings(golden):
  directory, _ = shard(golden("llama"))
  config, expected = hf.read_model_config(directory), load(directory)
  mesh = sharding.make_mesh(sharding.ParallelConfig(fsdp=2, tensor=2), jax.devices()[:4])
  wanted = sharding.shardings_for(mesh, expected, logical_axes(expected))
  for shardings in (wanted, sharding.replicated(mesh)):
    params = hf.load_params(directory, config, shardings)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert params["layers"]["q"]["kernel"].sharding.device_set == set(jax.devices()[:4])
  params = hf.load_params(directory, config, wanted)
  assert params["layers"]["o"]["kernel"].addressable_shards[0].data.shape == (2, 2, 6, 8)
  hf.save_params(params, config, directory.with_name("again"))
  jax.tree.map(np.testing.assert_array_equal, load(directory.with_name("again")), expected)
  # Donation must not reach memory that replicas share with the host array they came from.
  params = hf.load_params(directory, config, sharding.replicated(mesh))
  plus_one = jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)(params)
  for found, old in zip(jax.tree.leaves(plus_one), jax.tree.leaves(expected)):
    for piece in found.addressable_shards:
      np.testing.assert_array_equal(piece.data, np.asarray(old) + 1)


# ---- export ---------------------------------------------------------------------------------------------------------


def test_bfloat16_export_and_shard_sizes(golden, tmp_path):
  params, config = load(golden("llama")), hf.read_model_config(GOLDEN / "llama")
  hf.save_params(params, config, tmp_path / "out", dtype="bfloat16", max_shard_bytes=4000)
  files = sorted((tmp_path / "out").glob("*.safetensors"))
  contents = [load_file(file) for file in files]
  assert len(files) > 2 and all(sum(t.nbytes for t in content.values()) <= 4000 for content in contents)
  index = json.loads((tmp_path / "out" / hf.INDEX_FILE).read_text())
  assert index["weight_map"] == {name: file.name for file, content in zip(files, contents) for name in content}
  assert index["metadata"]["total_size"] == sum(t.nbytes for content in contents for t in content.values())
  assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
  jax.tree.map(
    lambda new, old: np.testing.assert_array_equal(new, old.astype(jnp.bfloat16)), load(tmp_path / "out"), params
  )
  with pytest.raises(UserError, match="export dtype: found 'float64'"):
    hf.save_params(params, config, tmp_path / "out", dtype="float64")


def test_tokenizer_files_are_carried_along_and_others_are_not(golden, tmp_path):
  source = golden("llama")
  (source / "additional_chat_templates").mkdir()
  carried = ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "additional_chat_templates/rag.jinja"]
  for name in (*carried, "README.md", "pytorch_model.bin"):
    (source / name).write_text(name)
  config, settings = hf.read_model_config(source), {"prompt": {"marker": "</think>"}}
  hf.save_params(load(source), config, tmp_path / "out", source=source, settings=settings)
  found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
  assert found == {*carried, "config.json", hf.SINGLE_FILE, hf.SETTINGS_FILE}
  assert json.loads((tmp_path / "out" / hf.SETTINGS_FILE).read_text()) == settings
  assert (tmp_path / "out" / "tokenizer.model").read_text() == "tokenizer.model"
  with pytest.raises(UserError, match="no such directory to copy the tokenizer from"):
    hf.copy_tokenizer(tmp_path / "nowhere", tmp_path / "out")


def test_export_replaces_only_exports_and_leaves_nothing_half_written(golden, tmp_path, monkeypatch):
  source, out = golden("llama"), tmp_path / "exports" / "out"
  params, config = load(source), hf.read_model_config(source)
  hf.save_params(params, config, out, max_shard_bytes=4000)
  before = {path.name: path.read_bytes() for path in out.iterdir()}
  with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
    patch.setattr(hf, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    hf.save_params(params, config, out)
  assert {path.name: path.read_bytes() for path in out.iterdir()} == before
  hf.save_params(params, config, out)
  assert sorted(path.name for path in out.iterdir()) == ["config.json", hf.SINGLE_FILE]
  assert [path.name for path in out.parent.iterdir()] == ["out"]
  (out / "thesis.tex").write_text("ten years of work")
  with pytest.raises(UserError, match="holds thesis.tex, which is no part of an export"):
    hf.save_params(params, config, out)
  assert (out / "thesis.tex").is_file()
  with pytest.raises(UserError, match="would replace the model it takes the tokenizer from"):
    hf.save_params(params, config, source, source=source)


# ---- vocabulary -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["llama", "qwen2_tied"])
def test_new_tokens_start_as_the_given_one(case, tmp_path):
  expected = np.load(GOLDEN / case / "expected.npz")
  token, position = expected["token"], expected["position"]
  config = hf.read_model_config(GOLDEN / case, layer_loop="unroll")
  params, resized = hf.resize_vocabulary(hf.load_params(GOLDEN / case, config), config, 42, init_from_token_id=7)
  assert resized == dataclasses.replace(config, vocab_size=42) and ("head" in params) == (case == "llama")
  found, _ = run(params, resized, token, position, 0)
  found = np.asarray(found)
  assert_logits_close(found[..., :40], expected["logits"], position)
  for new in (40, 41):  # as likely as token 7, and read as token 7
    np.testing.assert_array_equal(found[..., new], found[..., 7])
  swapped, _ = run(params, resized, np.where(token == 7, 41, token), position, 0)
  assert (token == 7).any()
  np.testing.assert_array_equal(swapped, found)
  hf.save_params(params, resized, tmp_path / "out")
  jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "out"), params)


def test_resize_pads_with_zeros_and_can_set_old_rows():
  config = ModelConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, intermediate_size=8, head_dim=4)
  params = init_params(config, jax.random.key(0))
  new, resized = hf.resize_vocabulary(params, config, 16, init_from_token_id=2, token_ids=(9, 10))
  assert resized.vocab_size == 16
  for table, old in (
    (new["embedder"]["embedding"], params["embedder"]["embedding"]),
    (new["head"]["kernel"].T, params["head"]["kernel"].T),
  ):
    np.testing.assert_array_equal(table[:9], old[:9])
    np.testing.assert_array_equal(table[9:11], np.stack([old[2], old[2]]))
    np.testing.assert_array_equal(table[11:], np.zeros((5, 8)))
  same, unchanged = hf.resize_vocabulary(params, config, 10, init_from_token_id=2)
  assert unchanged == config
  jax.tree.map(np.testing.assert_array_equal, same, params)


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
    hf.resize_vocabulary({}, config, size, origin, ids)
