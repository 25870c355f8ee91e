"""What a run starts with: architecture and parameters that fit tokenizer and mesh, and how they are exported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
import toy

from nrt_jax import sharding
from nrt_jax.config import ModelSource
from nrt_jax.data.prompts import PromptConfig
from nrt_jax.errors import UserError
from nrt_jax.model import hf_weights
from nrt_jax.model.decoder import decoding_params, forward, init_params, logits
from nrt_jax.rollout import sampler, scoring
from nrt_jax.step import policy


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def directory(request, tmp_path_factory):
  """A model of 21 rows: a tokenizer with 24 tokens needs three more, a tensor axis of 5 one more again."""
  path = tmp_path_factory.mktemp("model")
  config = dataclasses.replace(toy.MODEL, vocab_size=21, tie_word_embeddings=request.param)
  hf_weights.save_params(init_params(config, jax.random.key(0)), config, path / "model")
  return path / "model"


def load(directory, like=(), ways=1, **over):
  source = ModelSource(str(directory), **over)
  form = dataclasses.replace(toy.form(), eos_id=20, like_ids=like)
  config = policy.read_architecture(source, form, ways)
  return policy.load_policy(source, config, form, seed=0), config


@pytest.mark.parametrize("like", [(), (20,), (3, 5, 5)], ids=["mean", "end_token", "description"])
def test_new_tokens_start_as_the_mean_of_others(directory, like):
  params, config = load(directory, like)
  assert (config.vocab_size, config.vocab_padding) == (24, 0)
  tables = [params["embedder"]["embedding"], *([] if config.tie_word_embeddings else [params["head"]["kernel"].T])]
  for table in map(np.asarray, tables):
    expected = table[list(like) or range(21)].mean(axis=0)
    np.testing.assert_allclose(table[21:], np.stack([expected] * 3), rtol=1e-5, atol=1e-7)


def test_the_config_chooses_what_new_rows_are_like(tmp_path):
  """By default an added marker ties with no token; the released code's copy of the end token is a choice."""
  path = places.make_chat_model(tmp_path / "model")
  found = {}
  for kind in ("mean", "end_token", "description"):
    source = ModelSource(str(path), new_rows=kind, new_rows_description="the colour of the")
    tokenizer, form = policy.open_tokenizer(source, PromptConfig())
    params = policy.load_policy(source, policy.read_architecture(source, form), form, seed=0)
    assert form.marker_ids == form.added_ids
    found[kind] = np.asarray(params["head"]["kernel"].T)
  ids = tokenizer.convert_tokens_to_ids(["the", "colour", "of", "the"])
  (marker,), stored = form.added_ids, found["mean"][:-1]
  assert all(marker == len(stored) and np.array_equal(table[:-1], stored) for table in found.values())
  np.testing.assert_allclose(found["mean"][marker], stored.mean(axis=0), atol=1e-6)
  np.testing.assert_array_equal(found["end_token"][marker], stored[form.eos_id])
  np.testing.assert_allclose(found["description"][marker], stored[ids].mean(axis=0), atol=1e-6)
  assert np.abs(found["mean"][marker] - stored).max(axis=1).min() > 0.05
  with pytest.raises(UserError, match="model.new_rows_description: found ''"):
    policy.open_tokenizer(ModelSource(str(path), new_rows="description", new_rows_description=""), PromptConfig())
  with pytest.raises(UserError, match="model.new_rows: found 'copy', allowed: description, end_token, mean"):
    ModelSource(str(path), new_rows="copy")


def test_padding_rows_are_never_sampled_and_never_exported(directory, tmp_path):
  params, config = load(directory, ways=5)
  assert (config.vocab_size, config.vocab_padding) == (25, 1)
  token, position = jnp.arange(6)[None], jnp.arange(6)[None]
  out = logits(params, config, forward(params, config, token, position)[0])
  assert (out[..., 24] < -1e29).all() and (out[..., :24] > -1e3).all()
  settings = sampler.SamplingConfig(max_trace_length=40, temperature=50.0)  # all but uniform
  weights = decoding_params(params, config)
  rollouts, _ = sampler.sample(weights, config, settings, (99,), 0, toy.prompts(8), jax.random.key(0), 8)
  counts = np.bincount(np.asarray(rollouts.token_NR).ravel(), minlength=25)
  # 2,560 draws: a row that is left out by chance has odds of about 24 * exp(-100).
  assert counts[24] == 0 and (counts[:24] > 0).all()
  held, bare = policy.without_padding(params, config)
  hf_weights.save_params(held, bare, tmp_path / "export")
  again = hf_weights.load_params(tmp_path / "export", hf_weights.read_model_config(tmp_path / "export"))
  assert again["embedder"]["embedding"].shape == (24, 16)
  np.testing.assert_array_equal(again["embedder"]["embedding"], params["embedder"]["embedding"][:24])


@pytest.mark.parametrize("ways", [1, 5])
def test_rows_beyond_the_tokenizer_are_never_drawn_and_stay_in_the_export(directory, ways):
  """A tokenizer of 17 tokens for 21 rows: what the sampler draws, and what it and the update say of it."""
  source, form = ModelSource(str(directory)), dataclasses.replace(toy.form(), vocab_size_needed=17, eos_id=16)
  config = policy.read_architecture(source, form, ways)
  params = policy.load_policy(source, config, form, seed=0)
  assert (config.vocab_size, config.vocab_unused) == ({1: 21, 5: 25}[ways], 4)
  settings = sampler.SamplingConfig(max_trace_length=40, temperature=50.0)
  weights, prompts = decoding_params(params, config), toy.prompts(8)
  prompts = prompts.replace(prompt_BP=prompts.prompt_BP % 17)
  rollouts, _ = sampler.sample(weights, config, settings, (99,), 0, prompts, jax.random.key(0), 8)
  counts = np.bincount(np.asarray(rollouts.token_NR).ravel(), minlength=21)
  assert not counts[17:].any() and (counts[:17] > 0).all()
  # One distribution in the sampler and in the update, over the tokens alone.
  token, P = jnp.concatenate([prompts.prompt_BP.repeat(8, 0), rollouts.token_NR], 1), prompts.prompt_BP.shape[1]
  position = jnp.arange(token.shape[1])[None] - (P - prompts.prompt_length_B.repeat(8))[:, None]
  scaled = jnp.full(token.shape, 1 / 50.0)
  logp, _ = scoring.row_log_probs(params, config, token, jnp.maximum(position, -1), P, scaled)
  np.testing.assert_allclose(logp[:, -40:], rollouts.logp_NR, atol=1e-4)
  out = logits(params, config, forward(params, config, token[:1], jnp.maximum(position, -1)[:1])[0])
  np.testing.assert_allclose(np.exp(jax.nn.log_softmax(out))[..., :17].sum(-1), 1, rtol=1e-5)
  held, bare = policy.without_padding(params, config)
  assert held["embedder"]["embedding"].shape == (21, 16) and bare.vocab_size == 21


@pytest.mark.parametrize(
  "rows,ways,padding",
  [(128_257, 1, 0), (128_257, 8, 767), (128_256, 4, 256), (25, 2, 1), (24, 2, 0), (50_000, 4, 176), (60_000, 8, 416),
   (40_000, 8, 0)],  # the last: 960 rows would be above 1 %
)  # fmt: skip
def test_large_vocabularies_are_cut_into_whole_blocks(rows, ways, padding):
  assert policy.vocabulary_padding(rows, ways) == padding


def test_parameters_land_where_the_mesh_wants_them(directory):
  source = ModelSource(str(directory))
  form = dataclasses.replace(toy.form(), eos_id=20)
  mesh = sharding.make_mesh(sharding.ParallelConfig(fsdp=2, tensor=2))
  config = policy.read_architecture(source, form, 2, mesh)
  assert config.platform == "cpu" and policy.read_architecture(source, form, 2).platform is None
  params = policy.load_policy(source, config, form, 0, mesh)
  plain, _ = load(directory)
  assert params["embedder"]["embedding"].sharding.spec == jax.P("tensor", "fsdp")
  assert toy.largest_difference(params, plain) == 0


def test_random_weights_follow_the_seed(directory):
  left, right = (load(directory, weights="random")[0] for _ in range(2))
  assert toy.largest_difference(left, right) == 0
  source, form = ModelSource(str(directory), weights="random"), toy.form()
  other = policy.load_policy(source, policy.read_architecture(source, form), form, seed=1)
  assert toy.largest_difference(left, other) > 0.1


def test_random_weights_do_not_depend_on_the_mesh(directory):
  """24 rows on one device, 25 over five: padding takes no part in what is drawn."""
  (plain, config), (padded, wide) = (load(directory, ways=ways, weights="random") for ways in (1, 5))
  assert (config.vocab_padding, wide.vocab_padding) == (0, 1)
  assert toy.largest_difference(policy.repad(padded, wide, config), plain) == 0
  assert not np.asarray(padded["embedder"]["embedding"])[24:].any()


def test_a_run_without_a_model_is_told_which_key_to_set():
  with pytest.raises(UserError, match="model.path: found null"):
    policy.read_architecture(ModelSource(), toy.form())


def test_rollout_and_update_apply_norms_alike_in_bfloat16(directory):
  """The decoding copy is cast to bfloat16, its norms are not: cast scales moved log-probabilities twice as far."""
  params, config = load(directory, compute_dtype="bfloat16")
  scales = jax.tree_util.tree_map_with_path(
    lambda path, p: p * 1.2345 if path[-1].key == "scale" else p, params
  )
  weights = decoding_params(scales, config)
  dtypes = {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]}
  assert {d for path, d in dtypes.items() if "scale" in path} == {jnp.dtype("float32")}
  assert {d for path, d in dtypes.items() if "scale" not in path} == {jnp.dtype("bfloat16")}
  token, position = jnp.arange(12).reshape(2, 6), jnp.broadcast_to(jnp.arange(6)[None], (2, 6))
  left = forward(scales, config, token, position)[0].astype(jnp.float32)
  right = forward(weights, config, token, position)[0].astype(jnp.float32)
  np.testing.assert_array_equal(left, right)
