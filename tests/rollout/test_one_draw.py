"""Draws of one token: fair, filtered, and the same wherever the vocabulary lies. Whole traces: test_sampler.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from jax.scipy.special import gammaincc

from nrt_jax import sharding
from nrt_jax.performance.planning import collectives, hlo
from nrt_jax.rollout import sampler
from nrt_jax.rollout.sampler import SamplingConfig, choose, draw, filter_logits, uniforms

# Every goodness-of-fit test below rejects a correct sampler with this probability; seeds are fixed besides.
FALSE_ALARM = 1e-6


def chi_square_p_value(count_V, probability_V):
  """Pearson's test: the chance of a misfit this large. Rare outcomes are pooled, impossible ones must not occur."""
  total = count_V.sum()
  assert count_V[probability_V == 0].sum() == 0
  rare = total * probability_V < 10
  observed = np.append(count_V[~rare], count_V[rare].sum())
  expected = total * np.append(probability_V[~rare], probability_V[rare].sum())
  observed, expected = observed[expected > 0], expected[expected > 0]
  assert len(expected) > 3
  statistic = ((observed - expected) ** 2 / expected).sum()
  return float(gammaincc((len(expected) - 1) / 2, statistic / 2))


@pytest.mark.parametrize("V", [5, 128, 300])  # under one block of the vocabulary, exactly one, and three
def test_draw_is_fair(V):
  logits_V = np.random.default_rng(V).normal(0, 2, V).astype(np.float32)
  logits_V[V // 2] = -np.inf  # as top-k leaves it
  N = 200_000
  uniform_N = jax.random.uniform(jax.random.key(V), (N,))
  token_N = jax.jit(draw)(jnp.broadcast_to(jnp.asarray(logits_V), (N, V)), uniform_N)
  count = np.bincount(token_N, minlength=V)
  assert chi_square_p_value(count, reference.softmax(logits_V)) > FALSE_ALARM
  tilted = reference.softmax(logits_V * 0.95)  # the test can fail: a temperature 5 % off is seen
  assert chi_square_p_value(count, tilted) < FALSE_ALARM


def test_draw_inverts_the_cumulative_distribution():
  logits_NV = np.random.default_rng(0).normal(0, 3, (400, 300)).astype(np.float32)
  uniform_N = np.random.default_rng(1).random(400).astype(np.float32)
  got = draw(jnp.asarray(logits_NV), jnp.asarray(uniform_N))
  for n in range(400):
    cumulative = np.cumsum(reference.softmax(logits_NV[n]))
    if np.abs(cumulative - uniform_N[n]).min() > 1e-5:  # else float32 may decide either way
      assert got[n] == np.searchsorted(cumulative, uniform_N[n], side="right")


def test_tokens_are_drawn_where_the_vocabulary_lies():
  """No device gathers a row's logits where `tensor` cuts whole blocks: sums of blocks and one block a row move."""
  N, V, mesh = 8, 4 * 8 * sampler.BLOCK, sharding.make_mesh(sharding.ParallelConfig(fsdp=2, tensor=4))
  uniform_N = jax.random.uniform(jax.random.key(0), (N,))
  logits_NV = 3 * jax.random.normal(jax.random.key(1), (N, V))
  run = functools.partial(choose, sampling=SamplingConfig())
  cut = [jax.NamedSharding(mesh, sharding.spec_for(axes)) for axes in (("batch", "vocab"), ("batch",))]
  with jax.set_mesh(mesh):
    compiled = jax.jit(run, in_shardings=tuple(cut)).lower(logits_NV, uniform_N).compile()
    token_N, logp_N = compiled(*jax.device_put((logits_NV, uniform_N), tuple(cut)))
  module = hlo.parse(compiled.as_text())
  found = collectives.collectives(module, hlo.runs(module), mesh.size)
  assert 0 < max(size for c in found for size in c.elements) <= N // 2 * sampler.BLOCK
  token, logp = jax.jit(run)(logits_NV, uniform_N)
  np.testing.assert_array_equal(token_N, token)
  np.testing.assert_allclose(logp_N, logp, rtol=1e-5)


def test_draw_at_the_ends():
  """u = 0 and the largest u below 1 give the first and the last token that has any probability."""
  logits = np.full((2, 300), -np.inf, np.float32)
  logits[:, [7, 150, 290]] = [0.0, 1.0, -30.0]
  ends = jnp.array([0.0, np.nextafter(np.float32(1), np.float32(0))])
  np.testing.assert_array_equal(draw(jnp.asarray(logits), ends)[0], 7)
  assert int(draw(jnp.asarray(logits), ends)[1]) in (150, 290)
  np.testing.assert_array_equal(draw(jnp.asarray(logits), jnp.array([1.5, 1.5])), [290, 290])  # rounding gone wild


@pytest.mark.parametrize("top_k,top_p", [(0, 1.0), (1, 1.0), (5, 1.0), (99, 1.0), (0, 0.7), (0, 1e-6), (8, 0.6)])
def test_filter_twin(top_k, top_p):
  logits_NV = np.random.default_rng(0).normal(0, 2, (50, 24)).astype(np.float32)
  kept = np.isfinite(filter_logits(jnp.asarray(logits_NV), top_k, top_p))
  expected = [reference.kept_tokens(row, top_k, top_p) for row in logits_NV]
  np.testing.assert_array_equal(kept, expected)
  assert kept.any(-1).all() and (kept.sum() < kept.size) == ((top_k, top_p) not in ((0, 1.0), (99, 1.0)))


def test_filter_keeps_ties():
  logits_NV = jnp.array([[1.0, 1.0, 0.0, -1.0]])
  np.testing.assert_array_equal(np.isfinite(filter_logits(logits_NV, 1, 1.0)), [[True, True, False, False]])
  np.testing.assert_array_equal(np.isfinite(filter_logits(logits_NV, 0, 0.1)), [[True, True, False, False]])


@pytest.mark.parametrize("temperature,top_k,top_p", [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.7, 6, 0.9)])
def test_choose_is_fair_over_rows(temperature, top_k, top_p):
  """Rows with keys of their own are independent draws, and log-probabilities are of the unfiltered distribution."""
  N = 30_000
  logits_V = np.random.default_rng(2).normal(0, 2, toy.VOCAB).astype(np.float32)
  keys_N = sampler.row_keys(jax.random.key(0), jnp.arange(N // 4), 4)
  config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
  # Not as a constant of the program: XLA would sort it while it compiles, for minutes.
  logits_NV = jnp.broadcast_to(jnp.asarray(logits_V), (N, toy.VOCAB))
  run = jax.jit(lambda logits_NV, step: choose(logits_NV, uniforms(keys_N, step), config))
  both = functools.partial(run, logits_NV)
  token_N, logp_N = both(3)
  scaled = logits_V / temperature
  kept = reference.kept_tokens(scaled, top_k, top_p)
  expected = reference.softmax(np.where(kept, scaled, -np.inf))
  assert chi_square_p_value(np.bincount(token_N, minlength=toy.VOCAB), expected) > FALSE_ALARM
  np.testing.assert_allclose(logp_N, np.log(reference.softmax(scaled))[token_N], atol=1e-5)
  later, _ = both(4)  # another step of the same rows: agreement only as often as by chance
  agreement, chance = np.mean(later == token_N), (expected**2).sum()
  assert abs(agreement - chance) < 5 * np.sqrt(chance / N)
