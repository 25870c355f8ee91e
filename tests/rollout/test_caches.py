"""Key/value caches in fewer bits, and what the decoding loop does with them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from compiled import while_body_copies

from nrt_jax import rows
from nrt_jax.arrays import repeat_rows
from nrt_jax.errors import UserError
from nrt_jax.model.attention import Int8, attend, put_slots, store
from nrt_jax.model.decoder import decoding_params
from nrt_jax.rollout import sampler, scoring
from nrt_jax.rollout.sampler import SamplingConfig

B, G, R = 6, 4, 8
N = B * G


def test_eight_bits_twin():
  x = np.random.default_rng(0).normal(size=(3, 2, 5, 4)).astype(np.float32) * np.array([1e-3, 1, 50], np.float32)[
    :, None, None, None
  ]
  x[1, 0, 2] = 0  # a token of zeros has no scale
  got, (number, scale) = store(jnp.asarray(x), jnp.int8), reference.eight_bits(x)
  np.testing.assert_array_equal(got.number, number)
  np.testing.assert_allclose(got.scale, scale, rtol=1e-6)
  error = np.abs(np.asarray(got.number) * np.asarray(got.scale) - x)
  assert (error <= np.abs(x).max(-1, keepdims=True) / 254 * 1.001).all() and error.max() > 0
  assert np.abs(got.number).max(-1)[x.any(-1)].min() == 127  # each token and head uses the whole range


def test_new_tokens_are_stored_as_the_cache_is():
  rng = np.random.default_rng(1)
  old, new = rng.normal(size=(2, 3, 6, 4)).astype(np.float32), rng.normal(size=(2, 3, 1, 4)).astype(np.float32)
  got = put_slots(store(jnp.asarray(old), jnp.int8), jnp.asarray(new), 4, -2)
  old[:, :, 4:5] = new
  number, scale = reference.eight_bits(old)
  np.testing.assert_array_equal(got.number, number)
  np.testing.assert_allclose(got.scale, scale, rtol=1e-6)


@pytest.mark.parametrize("eight_bits", [False, True])
def test_two_queries_of_a_key_are_multiplied_one_by_one_on_a_cpu(eight_bits):
  """Decoding's products in the order that suits XLA:CPU are those of any platform."""
  rng = np.random.default_rng(3)
  query = jnp.asarray(rng.normal(size=(N, 1, 4, 8)), jnp.float32)
  key, value = (jnp.asarray(rng.normal(size=(N, 2, 7, 8)), jnp.float32) for _ in range(2))
  seen = jnp.asarray(rng.random((N, 1, 1, 7)) < 0.8).at[..., 0].set(True)
  segment = (*(store(x, jnp.int8) if eight_bits else x for x in (key, value)), seen)
  here, text = attend(query, [segment], "cpu"), str(jax.make_jaxpr(lambda q: attend(q, [segment], "cpu"))(query))
  np.testing.assert_allclose(here, attend(query, [segment], "tpu"), atol=1e-6)
  assert text.count("dot_general") == 3 and str(jax.make_jaxpr(attend)(query, [segment])).count("dot_general") == 2


def test_attention_over_eight_bits_is_that_over_their_values():
  """Scales folded into scores and weights: the same as over number * scale, to rounding, for shared segments too."""
  rng = np.random.default_rng(2)
  query = jnp.asarray(rng.normal(size=(N, 2, 4, 8)), jnp.float32)
  segments, wide = [], []
  for M, S in ((B, 5), (N, 7)):
    key, value = rng.normal(size=(2, M, 2, S, 8)) * rng.uniform(0.1, 9, (2, M, 2, S, 1))
    pair = [store(jnp.asarray(x, jnp.float32), jnp.int8) for x in (key, value)]
    seen = jnp.asarray(rng.random((M, N // M, 2, S)) < 0.8).at[..., 0].set(True)
    segments.append((*pair, seen))
    wide.append((*(x.number * x.scale for x in pair), seen))
  np.testing.assert_allclose(attend(query, segments), attend(query, wide), atol=1e-5)
  assert np.abs(attend(query, wide)).max() > 1


@functools.partial(jax.jit, static_argnums=(0, 1))
def sampled(model, cache_dtype, params, prompts, key):
  """Rollouts on such a cache, and the log-probabilities of their tokens from whole rows without any."""
  config = SamplingConfig(max_trace_length=R, cache_dtype=cache_dtype)
  stop_ids = (toy.MARKER, toy.EOS)
  weights = decoding_params(params, model)
  rollouts, context = sampler.sample(weights, model, config, stop_ids, toy.PAD, prompts, key, G)
  prompts_N = repeat_rows(prompts, G)
  length_N = rollouts.length_N - rollouts.ended_N
  prompt, answer = (prompts_N.prompt_BP, prompts_N.prompt_length_B), (prompts_N.answer_BA, prompts_N.answer_length_B)
  spliced = rows.splice(*prompt, rollouts.token_NR, length_N, (toy.MARKER,), *answer, toy.PAD)
  logp_NL, _ = scoring.row_log_probs(params, model, spliced.token_NL, spliced.position_NL, spliced.first)
  mine_NL = rows.align_trace(rollouts.logp_NR, length_N, spliced, 1, answer[0].shape[1])
  return context, jnp.where(spliced.trace_mask_NL, logp_NL - mine_NL, 0.0), spliced.trace_mask_NL


# The toy's weights are far from zero, and its log-probabilities reach -10. A bound on the mean error in nats.
BOUNDS = {"auto": 1e-5, "bfloat16": 0.02, "int8": 0.05}


@pytest.mark.parametrize("loop", ["unroll", "scan"])
def test_error_of_narrow_caches(loop):
  """The sampler's log-probabilities are those of its cache: off the update's by rounding, by more the fewer bits."""
  error, model = {}, dataclasses.replace(toy.MODEL, layer_loop=loop)
  for cache_dtype, bound in BOUNDS.items():
    context, difference, mask = sampled(model, cache_dtype, toy.params(model), toy.prompts(B), jax.random.key(0))
    error[cache_dtype] = float(np.abs(difference)[np.asarray(mask)].mean())
    assert error[cache_dtype] < bound
    kind = {"auto": jnp.float32, "bfloat16": jnp.bfloat16, "int8": jnp.int8}[cache_dtype]
    for cache in (context.prompt_cache, context.trace_cache):
      arrays = jax.tree.leaves((cache.key, cache.value), is_leaf=lambda x: isinstance(x, Int8))
      assert all((x.number if cache_dtype == "int8" else x).dtype == kind for x in arrays)
  assert error["auto"] < 1e-5 < error["bfloat16"] / 10 and 1e-4 < error["int8"]


@pytest.mark.parametrize("loop,cache_dtype", [("unroll", "auto"), ("scan", "auto"), ("scan", "int8")])
def test_decoding_loop_copies_no_cache(loop, cache_dtype):
  """In the optimised program for CPU, no token's step copies keys or values of a layer, or of all of them."""
  model = dataclasses.replace(toy.MODEL, layer_loop=loop)
  config = SamplingConfig(max_trace_length=R, cache_dtype=cache_dtype)

  def run(params, prompts, key):
    weights = decoding_params(params, model)
    return sampler.sample(weights, model, config, (toy.EOS,), toy.PAD, prompts, key, G)[0]

  text = jax.jit(run).lower(toy.params(model), toy.prompts(B), jax.random.key(0)).compile().as_text()
  elements = N * model.num_key_value_heads * R * model.head_dim
  assert not while_body_copies(text, elements)
  if cache_dtype == "int8":  # at most one layer is widened at a time
    stack = (model.num_hidden_layers, N, model.num_key_value_heads, R, model.head_dim)
    assert f"s8[{','.join(map(str, stack))}]" in text and f"f32[{','.join(map(str, stack))}]" not in text


def test_the_look_for_copies_sees_one():
  """A loop whose two arrays change places: XLA has to copy."""

  def swap(x, y):
    return jax.lax.while_loop(lambda s: s[0][0, 0] < 5, lambda s: (s[1], s[0] + 1), (x, y))

  text = jax.jit(swap).lower(jnp.ones((64, 8)), jnp.ones((64, 8))).compile().as_text()
  assert set(while_body_copies(text, 64 * 8)) == {"64,8"} and not while_body_copies(text, 64 * 8 + 1)


def test_errors():
  with pytest.raises(UserError, match="sampling.cache_dtype"):
    SamplingConfig(cache_dtype="int4")
