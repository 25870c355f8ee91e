"""What a run leaves behind of its model: tokens, end tokens, chat template, whoever reads them next."""

import dataclasses
import json

import chats
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from checkpoints import SYNC, raw
from jax.experimental.compilation_cache import compilation_cache
from transformers import AutoTokenizer, GenerationConfig

from nrt_jax import config, workdir
from nrt_jax.data import prompts
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import init_params
from nrt_jax.records.checkpoint import Checkpoints
from nrt_jax.step import policy, programs

GENERATION = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
SIZES = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)


@pytest.fixture
def model(tmp_path):
  """A directory as instruct models have it: more end tokens than the tokenizer names, in both files."""
  directory, tokenizer = tmp_path / "model", chats.tokenizer("llama3")
  architecture = ModelConfig(vocab_size=len(tokenizer), head_dim=4, **SIZES)
  hf_weights.save_params(init_params(architecture, jax.random.key(0)), architecture, directory)
  tokenizer.save_pretrained(directory)
  pad, unk, bos = (tokenizer.convert_tokens_to_ids(name) for name in ("<pad>", "<unk>", "<s>"))
  raw = json.loads((directory / "config.json").read_text())
  (directory / "config.json").write_text(json.dumps({**raw, "bos_token_id": bos, "eos_token_id": [unk]}))
  (directory / "generation_config.json").write_text(json.dumps({**GENERATION, "eos_token_id": [pad, unk]}))
  return directory, (tokenizer.convert_tokens_to_ids("<|eot_id|>"), tokenizer.eos_token_id, pad, unk)


def leave_behind(directory, tmp_path):
  """Describes a run on the model and exports its policy, as training does."""
  run = toy.run_config("nrt", model__path=str(directory), prompt__template="chat")
  tokenizer, form = policy.open_tokenizer(run.model, run.prompt)
  architecture = policy.read_architecture(run.model, form)
  setup, place = programs.Setup(run, architecture, form, None), tmp_path / "run"
  place.mkdir()
  workdir.describe(str(place), tokenizer, setup, {"model": {"path": str(directory)}})
  params = policy.load_policy(run.model, architecture, form, 0)
  workdir.export(params, run, architecture, form, str(place), str(place / "export"))
  return place, form


@pytest.mark.parametrize("generation", [True, False])
def test_an_export_says_of_tokens_what_the_model_said(model, tmp_path, generation):
  directory, ends = model
  if not generation:
    (directory / "generation_config.json").unlink()
    ends = tuple(i for i in ends if i != ends[2])
  place, form = leave_behind(directory, tmp_path)
  assert form.end_ids == ends and form.stop_ids == (form.marker_ids[0], *ends)
  source = AutoTokenizer.from_pretrained(directory)
  for kept in (place / "tokenizer", place / "export"):
    raw = json.loads((kept / "config.json").read_text())
    assert raw["eos_token_id"] == list(ends) and raw["bos_token_id"] == source.bos_token_id
    found = AutoTokenizer.from_pretrained(kept)
    assert found.chat_template == source.chat_template == chats.LLAMA3
    assert (found.bos_token, found.eos_token, found.pad_token) == (source.bos_token, source.eos_token, source.pad_token)
    # Who starts from it, or evaluates it, stops at the same tokens.
    assert policy.open_tokenizer(config.ModelSource(str(kept)), prompts.PromptConfig(template="chat"))[1].end_ids == ends
    assert (kept / "generation_config.json").exists() == generation
    if generation:
      said = GenerationConfig.from_pretrained(kept)
      assert said.eos_token_id == list(ends)
      assert (said.do_sample, said.temperature, said.top_p) == tuple(GENERATION.values())
  settings = json.loads((place / "export" / "nrt_jax.json").read_text())["prompt"]
  assert (settings["template"], settings["tokenizer"], settings["chat_template"]) == ("chat", None, None)


def test_end_tokens_are_the_tokenizers_directorys_before_the_models(model, tmp_path):
  directory, ends = model
  words = tmp_path / "words"
  prompts.word_tokenizer(["a"], words)
  prompt = prompts.PromptConfig(tokenizer=str(words))
  source = config.ModelSource(str(directory))
  assert policy.open_tokenizer(source, prompt)[1].end_ids == (1, *(i for i in ends[2:] if i != 1))
  (words / "generation_config.json").write_text('{"eos_token_id": 2}')
  assert policy.open_tokenizer(source, prompt)[1].end_ids == (1, 2)


def test_a_single_end_token_is_no_list(tmp_path):
  directory, tokenizer = tmp_path / "model", prompts.word_tokenizer(["a"], tmp_path / "model")
  architecture = ModelConfig(vocab_size=len(tokenizer), head_dim=4, **SIZES)
  hf_weights.write_config(architecture, directory)
  run = toy.run_config("nrt", model__path=str(directory))
  tokenizer, form = policy.open_tokenizer(run.model, run.prompt)
  setup = programs.Setup(run, policy.read_architecture(run.model, form), form, None)
  workdir.describe(str(tmp_path), tokenizer, setup, None)
  raw = json.loads((tmp_path / "tokenizer" / "config.json").read_text())
  assert (raw["eos_token_id"], raw["bos_token_id"]) == (tokenizer.eos_token_id, None)
  assert not (tmp_path / "tokenizer" / "generation_config.json").exists()


def test_a_checkpoint_restores_on_any_mesh(tmp_path):
  """8 x 1 -> 4 x 2 -> 1, of 25 tokens, which two tensor devices pad: every bit of parameters and optimizer is kept."""
  plain = dataclasses.replace(toy.MODEL, vocab_size=25)
  meshes = [(0, {"parallel__data": 8}), (1, {"parallel__fsdp": 4, "parallel__tensor": 2}), (0, {})]
  setups = [toy.setup("sft", policy.with_padding(plain, padding), **mesh) for padding, mesh in meshes]
  fresh = programs.init_states(setups[0], toy.params(plain), jax.random.key(3))
  moved = [a + jnp.arange(a.size, dtype=a.dtype).reshape(a.shape) for a in jax.tree.leaves(fresh.policy.opt_state)]
  opt_state = jax.tree.unflatten(jax.tree.structure(fresh.policy.opt_state), moved)
  first = fresh.replace(policy=fresh.policy.replace(opt_state=opt_state))
  checkpoints, states = Checkpoints(tmp_path, SYNC), jax.device_put(first, programs.state_shardings(setups[0]))
  for step, setup in enumerate(setups[1:], 1):
    checkpoints.save(step, states, {})
    states = workdir.restore(setup, checkpoints, step)
    if setup.mesh is not None:
      places = jax.tree.leaves(programs.state_shardings(setup))
      assert all(a.sharding.is_equivalent_to(b, a.ndim) for a, b in zip(jax.tree.leaves(states), places, strict=True))
      table = states.policy.params["embedder"]["embedding"]
      assert table.shape[0] == 26 and not np.asarray(table[25:]).any()
  for found, expected in zip(jax.tree.leaves(states), jax.tree.leaves(first), strict=True):
    assert found.shape == expected.shape and raw(found) == raw(expected)


def test_compiled_programs_are_kept_in_the_workdir(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  try:
    workdir.keep_compiled(str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == before  # a user's own directory is left alone
    jax.config.update("jax_compilation_cache_dir", None)
    workdir.keep_compiled(str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()
