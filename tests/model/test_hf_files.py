"""Model directories: errors name broken tensors, and exports are complete or absent."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDEN
from safetensors.numpy import load_file, save_file

from nrt_jax import sharding
from nrt_jax.errors import UserError
from nrt_jax.model import hf_weights
from nrt_jax.model.axes import logical_axes


@pytest.fixture
def golden(tmp_path):
  """A copy of a golden model directory, to be spoilt."""

  def copy(case):
    return Path(shutil.copytree(GOLDEN / case, tmp_path / case))

  return copy


# ---- tensors --------------------------------------------------------------------------------------------------------


def rewrite(directory, change, name=hf_weights.SINGLE_FILE):
  """Applies `change` to the dict of tensors in a file."""
  tensors = load_file(directory / name)
  change(tensors)
  save_file(tensors, directory / name, metadata={"format": "pt"})


def load(directory, **overrides):
  return hf_weights.load_params(directory, hf_weights.read_model_config(directory, **overrides))


def shard(directory):
  """Turns a golden directory into three shards and an index; returns their names."""
  config = hf_weights.read_model_config(directory)
  hf_weights.save_params(load(directory), config, directory.with_name("sharded"), max_shard_bytes=12000)
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
  index = json.loads((directory / hf_weights.INDEX_FILE).read_text())["weight_map"]
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
  file = directory / hf_weights.SINGLE_FILE
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(UserError, match="model.safetensors: not a whole safetensors file"):
    load(directory)
  file.rename(directory / "pytorch_model.bin")
  with pytest.raises(UserError, match="pytorch_model.bin is a pickle, which is never loaded"):
    load(directory)
  directory, names = shard(golden("qwen3"))
  (directory / names[1]).unlink()
  with pytest.raises(UserError, match=rf"{names[1]}: no such file, though {hf_weights.INDEX_FILE} names it"):
    load(directory)
  (directory / hf_weights.INDEX_FILE).write_text('{"weight_map": []}')
  with pytest.raises(UserError, match="weight_map: found list"):
    load(directory)


def test_known_buffers_and_tied_heads_are_ignored(golden):
  directory = golden("qwen2_tied")
  expected = load(directory)
  embedding = load_file(directory / hf_weights.SINGLE_FILE)["model.embed_tokens.weight"]
  buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32), "lm_head.weight": embedding}
  rewrite(directory, lambda tensors: tensors.update(buffers))
  jax.tree.map(np.testing.assert_array_equal, load(directory), expected)
  rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
  with pytest.raises(UserError, match="lm_head.weight differs from model.embed_tokens.weight"):
    load(directory)
  untied = load(directory, tie_word_embeddings=False)
  np.testing.assert_array_equal(untied["head"]["kernel"], embedding.T + 1)


@pytest.mark.parametrize("case", ["qwen2_tied", "llama3_scaling_tied"])
def test_tied_weights_are_read_under_either_name(golden, case):
  directory = golden(case)
  expected = load(directory)
  rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
  jax.tree.map(np.testing.assert_array_equal, load(directory), expected)
  with pytest.raises(UserError, match="missing tensor model.embed_tokens.weight"):
    load(directory, tie_word_embeddings=False)
  rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"][:-1]}))
  with pytest.raises(UserError, match="wrong shape of tensor lm_head.weight"):
    load(directory)
  rewrite(directory, lambda tensors: tensors.pop("lm_head.weight"))
  with pytest.raises(UserError, match="missing tensor model.embed_tokens.weight"):
    load(directory)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
@pytest.mark.parametrize("case", ["llama", "phi3_longrope"])  # whole tensors, and pieces of fused ones
def test_half_precision_becomes_float32(golden, case, dtype):
  directory = golden(case)
  full = load(directory)
  rewrite(directory, lambda tensors: tensors.update({k: v.astype(dtype) for k, v in tensors.items()}))
  half = load(directory)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(half))
  jax.tree.map(lambda h, f: np.testing.assert_array_equal(h, f.astype(dtype).astype(np.float32)), half, full)


def test_experts_are_read_one_by_one_or_stacked(golden):
  """The second form by hand, from the first; and a mistake in either is named."""
  directory = golden("qwen3_moe")
  expected, experts = load(directory), "model.layers.{}.mlp.experts"

  def stack(tensors):
    for layer in map(experts.format, (0, 1)):
      gate, up, down = (
        np.stack([tensors.pop(f"{layer}.{e}.{name}_proj.weight") for e in range(5)]) for name in ("gate", "up", "down")
      )
      tensors |= {f"{layer}.gate_up_proj": np.concatenate([gate, up], 1), f"{layer}.down_proj": down}

  rewrite(directory, stack)
  jax.tree.map(np.testing.assert_array_equal, load(directory), expected)
  stacked = experts.format(1) + ".gate_up_proj"
  rewrite(directory, lambda tensors: tensors.update({stacked: tensors[stacked][:4]}))
  message = rf"wrong shape of tensor {stacked}: found \(4, 16, 16\), by config.json: \(5, 16, 16"
  with pytest.raises(UserError, match=message):
    load(directory)
  config = hf_weights.read_model_config(GOLDEN / "qwen3_moe")
  hf_weights.save_params(expected, config, directory.with_name("again"))
  last = experts.format(0) + ".4.up_proj.weight"
  rewrite(directory.with_name("again"), lambda tensors: tensors.pop(last))
  with pytest.raises(UserError, match=f"missing tensor {last}"):
    load(directory.with_name("again"))


def test_shardings(golden):
  directory, _ = shard(golden("llama"))
  config, expected = hf_weights.read_model_config(directory), load(directory)
  mesh = sharding.make_mesh(sharding.ParallelConfig(fsdp=2, tensor=2), jax.devices()[:4])
  wanted = sharding.shardings_for(mesh, expected, logical_axes(expected))
  for shardings in (wanted, sharding.replicated(mesh)):
    params = hf_weights.load_params(directory, config, shardings)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert params["layers"]["q"]["kernel"].sharding.device_set == set(jax.devices()[:4])
  params = hf_weights.load_params(directory, config, wanted)
  assert params["layers"]["o"]["kernel"].addressable_shards[0].data.shape == (2, 2, 6, 8)
  hf_weights.save_params(params, config, directory.with_name("again"))
  jax.tree.map(np.testing.assert_array_equal, load(directory.with_name("again")), expected)
  # Donation must not reach memory that replicas share with the host array they came from.
  params = hf_weights.load_params(directory, config, sharding.replicated(mesh))
  plus_one = jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)(params)
  for found, old in zip(jax.tree.leaves(plus_one), jax.tree.leaves(expected)):
    for piece in found.addressable_shards:
      np.testing.assert_array_equal(piece.data, np.asarray(old) + 1)


# ---- export ---------------------------------------------------------------------------------------------------------


def test_bfloat16_export_and_shard_sizes(golden, tmp_path):
  params, config = load(golden("llama")), hf_weights.read_model_config(GOLDEN / "llama")
  hf_weights.save_params(params, config, tmp_path / "out", dtype="bfloat16", max_shard_bytes=4000)
  files = sorted((tmp_path / "out").glob("*.safetensors"))
  contents = [load_file(file) for file in files]
  assert len(files) > 2 and all(sum(t.nbytes for t in content.values()) <= 4000 for content in contents)
  index = json.loads((tmp_path / "out" / hf_weights.INDEX_FILE).read_text())
  assert index["weight_map"] == {name: file.name for file, content in zip(files, contents) for name in content}
  assert index["metadata"]["total_size"] == sum(t.nbytes for content in contents for t in content.values())
  assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
  jax.tree.map(
    lambda new, old: np.testing.assert_array_equal(new, old.astype(jnp.bfloat16)), load(tmp_path / "out"), params
  )
  with pytest.raises(UserError, match="export dtype: found 'float64'"):
    hf_weights.save_params(params, config, tmp_path / "out", dtype="float64")


def test_tokenizer_files_are_carried_along_and_others_are_not(golden, tmp_path):
  source = golden("llama")
  (source / "additional_chat_templates").mkdir()
  carried = ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "additional_chat_templates/rag.jinja"]
  for name in (*carried, "README.md", "pytorch_model.bin"):
    (source / name).write_text(name)
  config, settings = hf_weights.read_model_config(source), {"prompt": {"marker": "</think>"}}
  hf_weights.save_params(load(source), config, tmp_path / "out", source=source, settings=settings)
  found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
  assert found == {*carried, "config.json", hf_weights.SINGLE_FILE, hf_weights.SETTINGS_FILE}
  assert json.loads((tmp_path / "out" / hf_weights.SETTINGS_FILE).read_text()) == settings
  assert (tmp_path / "out" / "tokenizer.model").read_text() == "tokenizer.model"
  with pytest.raises(UserError, match="no such directory to copy the tokenizer from"):
    hf_weights.copy_tokenizer(tmp_path / "nowhere", tmp_path / "out")


def test_an_export_goes_through_a_link(golden, tmp_path):
  params, config = load(golden("llama")), hf_weights.read_model_config(GOLDEN / "llama")
  (tmp_path / "disk").mkdir()
  (tmp_path / "out").symlink_to(tmp_path / "disk" / "model")  # to nothing yet
  for dtype in ("float32", "bfloat16"):
    hf_weights.save_params(params, config, tmp_path / "out", dtype=dtype)
    assert (tmp_path / "out").is_symlink() and not (tmp_path / "disk" / "model").is_symlink()
    assert json.loads((tmp_path / "disk" / "model" / "config.json").read_text())["torch_dtype"] == dtype
  assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]


def test_an_export_goes_into_a_mount(golden, tmp_path, monkeypatch):
  """A mount can't be renamed, nor is anything beside it on the same disk."""
  params, config, out = load(golden("llama")), hf_weights.read_model_config(GOLDEN / "llama"), tmp_path / "out"
  out.mkdir()
  monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
  rename = Path.rename

  def checked(path, target):
    assert path != out and Path(target) != out and path.is_relative_to(out) == Path(target).is_relative_to(out)
    return rename(path, target)

  monkeypatch.setattr(Path, "rename", checked)
  hf_weights.save_params(params, config, out, max_shard_bytes=4000)
  (out / ".out.partial").mkdir()  # as a killed export leaves it
  hf_weights.save_params(params, config, out, dtype="bfloat16")
  assert sorted(path.name for path in out.iterdir()) == ["config.json", hf_weights.SINGLE_FILE]
  assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
  (out / "thesis.tex").touch()
  with pytest.raises(UserError, match="holds thesis.tex, which is no part of an export"):
    hf_weights.save_params(params, config, out)


def test_links_out_of_a_model_are_not_followed(golden, tmp_path):
  """Its tokenizer files are copied into whatever is made from it. The hub's cache is made of links, and allowed."""
  secret = tmp_path / "secret"
  secret.write_text("key")
  source = golden("llama")
  (source / "tokenizer.json").write_text("{}")
  (source / "chat_template.jinja").symlink_to(secret)
  with pytest.raises(UserError, match="chat_template.jinja: is a link out of the model's directory, allowed: a file"):
    hf_weights.copy_tokenizer(source, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  (source / "chat_template.jinja").unlink()
  (source / "chat_template.jinja").symlink_to("tokenizer.json")
  hf_weights.copy_tokenizer(source, tmp_path / "out")
  cached = tmp_path / "models--a--b" / "snapshots" / "0123"
  for path in (cached, cached.parent.parent / "blobs"):
    path.mkdir(parents=True)
  (cached.parent.parent / "blobs" / "ab12").write_text("{}")
  (cached / "tokenizer.json").symlink_to("../../blobs/ab12")
  hf_weights.copy_tokenizer(cached, tmp_path / "other")
  assert (tmp_path / "other" / "tokenizer.json").read_text() == "{}"


def test_export_replaces_only_exports_and_leaves_nothing_half_written(golden, tmp_path, monkeypatch):
  source, out = golden("llama"), tmp_path / "exports" / "out"
  params, config = load(source), hf_weights.read_model_config(source)
  hf_weights.save_params(params, config, out, max_shard_bytes=4000)
  before = {path.name: path.read_bytes() for path in out.iterdir()}
  with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
    patch.setattr(hf_weights, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    hf_weights.save_params(params, config, out)
  assert {path.name: path.read_bytes() for path in out.iterdir()} == before
  hf_weights.save_params(params, config, out)
  assert sorted(path.name for path in out.iterdir()) == ["config.json", hf_weights.SINGLE_FILE]
  assert [path.name for path in out.parent.iterdir()] == ["out"]
  (out / "thesis.tex").write_text("ten years of work")
  with pytest.raises(UserError, match="holds thesis.tex, which is no part of an export"):
    hf_weights.save_params(params, config, out)
  assert (out / "thesis.tex").is_file()
  with pytest.raises(UserError, match="would replace the model it takes the tokenizer from"):
    hf_weights.save_params(params, config, source, source=source)
