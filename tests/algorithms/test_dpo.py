"""Iterative DPO: the loss against its equation, the choice and weighting of pairs, and that pairs are never split."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy

from nrt_jax import rows
from nrt_jax.algorithms import dpo
from nrt_jax.arrays import AnswerScores, Rollouts
from nrt_jax.errors import UserError
from nrt_jax.objectives import losses
from nrt_jax.step import programs, sizes
from nrt_jax.step.state import States, TrainState

MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)
RNG = np.random.default_rng(3)

# ---------------------------------------------------------------------------------------------------------- the loss


def test_loss_by_hand():
  """Two pairs of weight 1/2 with β = 1/2; the first: m = (1) - (-1) = 2, so L = 1/2 log(1 + e^-1) = 0.156631."""
  logp_NL = jnp.array([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0], [-1.0, -1.0, -1.0], [-1.0, -2.0, -9.0]])
  ref_NL = jnp.array([[-1.5, -2.5, -1.0], [-2.0, -1.0, -1.0], [-1.0, -1.0, -1.0], [-1.0, -2.0, -1.0]])
  coef_NL = 0.5 * jnp.array([[1, 1, 0], [-1, 0, 0], [1, 1, 1], [-1, -1, 0.0]])
  np.testing.assert_allclose(losses.dpo(logp_NL, ref_NL, coef_NL, 0.5), [0.15663084, 0.5 * np.log(2)], rtol=1e-6)
  slope_NL = jax.grad(lambda x: losses.dpo(x, ref_NL, coef_NL, 0.5).sum())(logp_NL)
  # -w β σ(-1) = -0.25 * 0.26894142; the second pair has m = 0: -w β / 2 = -0.125.
  expected = [[-0.06723536] * 2 + [0], [0.06723536, 0, 0], [-0.125] * 3, [0.125, 0.125, 0]]
  np.testing.assert_allclose(slope_NL, expected, rtol=1e-6)


def test_loss_against_the_twin():
  logp_NL, ref_NL = RNG.uniform(-3, 0, (2, 6, 5))
  length_N, weight_P = [5, 1, 3, 4, 0, 2], [0.3, 0.5, 0.2]
  coef_NL = np.zeros((6, 5))
  for n, length in enumerate(length_N):
    coef_NL[n, :length] = weight_P[n // 2] * (-1) ** n
  arrays = [jnp.asarray(x, jnp.float32) for x in (logp_NL, ref_NL, coef_NL)]
  found_P, slope_NL = losses.dpo(*arrays, 2.0), jax.grad(lambda x: losses.dpo(x, *arrays[1:], 2.0).sum())(arrays[0])
  for p in range(3):
    lists = [x[n, : length_N[n]].tolist() for n in (2 * p, 2 * p + 1) for x in (logp_NL, ref_NL)]
    value, slopes = reference.dpo(*lists, 2.0)
    np.testing.assert_allclose(found_P[p], weight_P[p] * value, rtol=1e-5)
    for n, slope in zip((2 * p, 2 * p + 1), slopes):
      np.testing.assert_allclose(slope_NL[n], weight_P[p] * slope * (np.arange(5) < length_N[n]), rtol=1e-5)


def test_on_policy_gradient_is_a_policy_gradient():
  """Where π = π_ref, DPO is REINFORCE with the advantages β/2 and -β/2, whatever the log-probabilities are."""
  logp_NL, coef_NL = jnp.asarray(RNG.uniform(-3, 0, (4, 3)), jnp.float32), jnp.array([[1.0], [-1], [0.5], [-0.5]])
  coef_NL = jnp.broadcast_to(coef_NL, (4, 3))
  slope_NL = jax.grad(lambda x: losses.dpo(x, logp_NL, coef_NL, 0.3).sum())(logp_NL)
  expected_NL = jax.grad(lambda x: losses.reinforce(x, 0.15 * coef_NL).sum())(logp_NL)
  np.testing.assert_allclose(slope_NL, expected_NL, rtol=1e-6)


def test_far_from_the_reference_stays_finite():
  logp_NL = jnp.array([[-300.0], [0.0]])
  value, slope = jax.value_and_grad(lambda x: losses.dpo(x, jnp.zeros((2, 1)), jnp.array([[1.0], [-1]]), 1.0).sum())(
    logp_NL
  )
  np.testing.assert_allclose([value, *slope[:, 0]], [300, -1, 1], rtol=1e-6)


# --------------------------------------------------------------------------------------------------------- the pairs

B, G, R, A = 4, 3, 4, 2
PROMPTS = toy.prompts(B, answer_width=A, trace_width=3)
# Rewards by likelihood: the first group has a clear order, the second a tie, the third a gap of 0.4, the fourth of 2.
LOG_C = np.array([[-1.0, -3, -2], [-2, -2, -2], [-1, -1.2, -1.4], [-4, -5, -3]])
BEST, WORST = [0, None, 0, 2], [1, None, 2, 1]


def sampled(token_NR=None):
  token_NR = RNG.integers(0, toy.MARKER, (B * G, R)) if token_NR is None else token_NR
  length_N = np.array([2, 3, 4] * B)
  ended_N = length_N < 4
  token_NR = np.where(np.arange(R)[None] == length_N[:, None] - 1, np.where(ended_N, toy.MARKER, 5)[:, None], token_NR)
  logp_NR = np.where(np.arange(R)[None] < length_N[:, None], RNG.uniform(-3, -0.1, (B * G, R)), 0)
  arrays = (token_NR.astype(np.int32), length_N.astype(np.int32), logp_NR.astype(np.float32), ended_N, ended_N)
  return Rollouts(*jax.tree.map(jnp.asarray, arrays))


def collect(config, rollouts, minibatches=1, prompts=PROMPTS, score=None):
  """The method's `collect` on given rollouts; the reference answer's likelihood is LOG_C's, on its first token."""
  setup = toy.setup("dpo", samples_per_prompt=G, prompts_per_step=B, optimizer__minibatches=minibatches)
  answer_NA = jnp.asarray(np.stack([LOG_C.reshape(-1), np.zeros(B * G)], 1), jnp.float32)
  scores = AnswerScores(jnp.full((B * G, 1), -1.0), answer_NA)
  rolled = (rollouts, scores, AnswerScores(jnp.zeros((B, 1)), jnp.full((B, A), -9.0)))
  given = {"rollout": lambda *_: rolled, "complete": lambda *_: (rollouts, None, None)}
  tools = programs.make_tools(setup)._replace(**given, score_batch=score, score_start=lambda _, batch: batch)
  states = States(TrainState(jnp.int32(0), jnp.int32(0), "policy", (), jax.random.key(0)), "reference")
  prompts = jax.tree.map(jnp.asarray, prompts)
  return dpo.collect(tools, config, states, prompts, jax.random.key(0)), tools


def text(batch, n):
  return np.asarray(batch.token_NL[n])[np.asarray(batch.position_NL[n]) >= 0].tolist()


def prompt_of(b):
  return PROMPTS.prompt_BP[b][-PROMPTS.prompt_length_B[b] :].tolist()


def answer_of(b):
  return PROMPTS.answer_BA[b][: PROMPTS.answer_length_B[b]].tolist()


def trace_of(rollouts, n):
  return np.asarray(rollouts.token_NR[n])[: rollouts.length_N[n] - rollouts.ended_N[n]].tolist()


def test_pairs_of_traces_by_hand():
  """Best and worst of each group side by side, ±1 / (pairs that there are) on what was sampled, nothing on a tie."""
  rollouts = sampled()
  collected, _ = collect(dpo.DpoConfig(), rollouts)
  batch = collected.batch
  assert batch.token_NL.shape[0] == 2 * B
  for b in range(B):
    for side, sample in enumerate((BEST[b], WORST[b])):
      row, n = 2 * b + side, b * G + (sample or 0)
      coef_L, valid_L = np.asarray(batch.trace_coef_NL[row]), np.asarray(batch.position_NL[row]) >= 0
      if sample is None:
        assert not coef_L.any()
        continue
      trace = trace_of(rollouts, n)
      assert text(batch, row) == [*prompt_of(b), *trace, toy.MARKER, *answer_of(b)]
      compared = len(trace) + bool(rollouts.ended_N[n])  # the marker counts where the model wrote it
      expected = np.zeros(valid_L.sum())
      expected[len(prompt_of(b)) :][:compared] = (1 - 2 * side) / 3
      np.testing.assert_allclose(coef_L[valid_L], expected, rtol=1e-6)
      assert not coef_L[~valid_L].any()
  assert not batch.answer_coef_NL.any()
  roles = [[1, -1, 0], [0, 0, 0], [1, 0, -1], [0, -1, 1]]
  np.testing.assert_array_equal(collected.samples["advantage"].reshape(B, G), roles)
  np.testing.assert_allclose(collected.sums["preference/pairs"], (3, 4))
  np.testing.assert_allclose(collected.sums["preference/gap"], (2 + 0.4 + 2, 3), rtol=1e-5)


def test_pairs_are_counted_by_minibatch():
  """Minibatch 0 holds the prompts 0 and 2, both with a pair; minibatch 1 the prompts 1 and 3: one pair."""
  batch = collect(dpo.DpoConfig(), sampled(), minibatches=2)[0].batch
  largest = np.abs(np.asarray(batch.trace_coef_NL)).max(1)
  np.testing.assert_allclose(largest, [0.5, 0.5, 0, 0, 0.5, 0.5, 1, 1])


def test_min_gap():
  batch = collect(dpo.DpoConfig(min_gap=0.5), sampled())[0].batch
  np.testing.assert_allclose(np.abs(np.asarray(batch.trace_coef_NL)).max(1), [0.5, 0.5, 0, 0, 0, 0, 0.5, 0.5])


def test_no_pair_at_all_is_no_gradient():
  collected, tools = collect(dpo.DpoConfig(min_gap=99.0, chosen_coef=1.0), sampled())
  tools = tools._replace(log_probs=lambda *_: (jnp.full(collected.batch.token_NL.shape, -1.0),) * 3)
  sums = dpo.loss(tools, dpo.DpoConfig(chosen_coef=1.0), {}, collected.batch)
  assert float(sums.total) == 0 and sums.metrics["preference/accuracy"][1] == 0


def test_chosen_cross_entropy():
  """As in 2404.19733: the log-likelihood of the chosen row per token; trace, marker and answer are its tokens."""
  batch = collect(dpo.DpoConfig(chosen_coef=0.5), sampled())[0].batch
  for b in range(B):
    assert not batch.answer_coef_NL[2 * b + 1].any()
    valid_L = np.asarray(batch.position_NL[2 * b]) >= 0
    tokens = valid_L.sum() - len(prompt_of(b))
    expected = np.zeros(valid_L.sum())
    expected[len(prompt_of(b)) :] = 0 if BEST[b] is None else 0.5 / 3 / tokens
    np.testing.assert_allclose(np.asarray(batch.answer_coef_NL[2 * b])[valid_L], expected, rtol=1e-6)


def right_and_wrong():
  """Completions of which samples 1 and 2 of prompt 0, none of 1, all of 2 and sample 0 of 3 hold the right answer."""
  width, right = 6, {0: (1, 2), 1: (), 2: (0, 1, 2), 3: (0,)}
  token_NR, length_N = np.full((B * G, width), toy.PAD, np.int32), np.zeros(B * G, np.int32)
  for n in range(B * G):
    b, g = divmod(n, G)
    answer = answer_of(b) if g in right[b] else [19, toy.EOS]
    tokens = [g, toy.MARKER, *answer]
    token_NR[n, : len(tokens)], length_N[n] = tokens, len(tokens)
  logp_NR = np.where(np.arange(width)[None] < length_N[:, None], -0.5, 0).astype(np.float32)
  every = np.ones(B * G, bool)
  return Rollouts(*jax.tree.map(jnp.asarray, (token_NR, length_N, logp_NR, every, every)))


def test_pairs_of_completions():
  """The first right one against the first wrong one; all of a completion is compared, its end token too."""
  rollouts = right_and_wrong()
  batch = collect(dpo.DpoConfig(verifier="token_match"), rollouts)[0].batch
  pairs = {0: (1, 0), 3: (0, 1)}
  for b in range(B):
    for side in (0, 1):
      coef_L = np.asarray(batch.trace_coef_NL[2 * b + side])
      if b not in pairs:
        assert not coef_L.any()
        continue
      n = b * G + pairs[b][side]
      sampled_tokens = np.asarray(rollouts.token_NR[n])[: rollouts.length_N[n]].tolist()
      assert text(batch, 2 * b + side) == [*prompt_of(b), *sampled_tokens]
      np.testing.assert_array_equal(np.asarray(batch.token_NL[2 * b + side])[coef_L != 0], sampled_tokens)
      np.testing.assert_allclose(coef_L[coef_L != 0], 0.5 * (-1) ** side)


@pytest.mark.parametrize("verifier,rejected", [("none", [0, 0, 0, 0]), ("token_match", [0, 0, None, 1])])
def test_demonstrations(verifier, rejected):
  """Given trace, marker and answer against the first sample, or the first wrong one, both at temperature 1."""
  rollouts = right_and_wrong()
  config = dpo.DpoConfig(chosen="demonstration", verifier=verifier)
  batch = collect(config, rollouts)[0].batch
  assert not batch.sampled_mask_NL.any()
  for b in range(B):
    given = PROMPTS.trace_BR[b][: PROMPTS.trace_length_B[b]].tolist()
    n = b * G + (rejected[b] or 0)
    sides = ([*given, toy.MARKER, *answer_of(b)], np.asarray(rollouts.token_NR[n])[: rollouts.length_N[n]].tolist())
    for side, tokens in enumerate(sides):
      coef_L = np.asarray(batch.trace_coef_NL[2 * b + side])
      if rejected[b] is None:
        assert not coef_L.any()
        continue
      assert text(batch, 2 * b + side) == [*prompt_of(b), *tokens]
      np.testing.assert_array_equal(np.asarray(batch.token_NL[2 * b + side])[coef_L != 0], tokens)
      np.testing.assert_array_equal(np.sign(coef_L[coef_L != 0]), (-1) ** side)


def test_another_reference_is_asked():
  asked = []

  def score(params, batch):
    asked.append(params)
    return jnp.zeros(batch.token_NL.shape)

  collect(dpo.DpoConfig(reference="frozen"), sampled(), score=score)
  assert asked == ["reference"]


# --------------------------------------------------------------------------------------------------------- the step


def step(**over):
  """One training step from the same start: (parameters, metrics)."""
  setup = toy.setup("dpo", model=MODEL, algorithm__beta=1.0, algorithm__chosen_coef=0.1, **over)
  states = programs.init_states(setup, jax.tree.map(jnp.copy, toy.params(MODEL)), jax.random.key(2))
  states, metrics, _ = programs.build_train_step(setup)(states, toy.prompts(8))
  return states.policy.params, metrics


def test_no_micro_batch_parts_a_pair():
  """Were pairs cut like single rows, micro-batches would hold the chosen ones of some prompts against each other."""
  (whole, metrics), (pieces, again) = (step(optimizer__minibatches=2, parallel__micro_batches=m) for m in (1, 4))
  assert toy.largest_difference(whole, toy.params(MODEL)) > 1e-3
  assert toy.largest_difference(whole, pieces) < 1e-5
  for name in ("loss/total", "preference/margin", "preference/accuracy", "preference/pairs"):
    np.testing.assert_allclose(metrics[name], again[name], rtol=1e-4, atol=1e-5, err_msg=name)
  assert metrics["preference/pairs"] > 0.5
  # The second minibatch is trained off-policy: the margin is no longer 0, and the loss no longer log 2.
  assert abs(metrics["preference/margin"]) > 1e-4

  batch = collect(dpo.DpoConfig(), sampled())[0].batch
  logp_NL = jnp.asarray(RNG.uniform(-3, 0, batch.token_NL.shape), jnp.float32)
  compared = (logp_NL, batch.reference_logp_NL, batch.trace_coef_NL)
  total, together, parted = (
    sum(losses.dpo(*jax.tree.map(lambda a, i=i: a[i], pieces), 1.0).sum() for i in range(n))
    for n, pieces in ((1, jax.tree.map(lambda a: a[None], compared)), (2, rows.cut_groups(compared, 2, 2)),
                      (2, rows.cut_rows(compared, 2)))
  )  # fmt: skip
  np.testing.assert_allclose(together, total, rtol=1e-6)
  assert abs(parted - total) > 0.1


def test_pairs_must_divide_into_micro_batches():
  """16 prompts on 8 devices are 4 rows on each, but 2 pairs."""
  sizes.check(toy.setup("dpo", prompts_per_step=16, parallel__micro_batches=2))
  with pytest.raises(UserError, match="parallel.micro_batches: found 4, allowed: a divisor of 2, the pairs of rows"):
    sizes.check(toy.setup("dpo", prompts_per_step=16, parallel__micro_batches=4))


@pytest.mark.parametrize(
  "over,text",
  [
    ({"beta": 0.0}, "algorithm.beta: found 0.0, allowed: above 0"),
    ({"chosen": "first"}, "algorithm.chosen: found 'first', allowed: best, demonstration"),
    ({"verifier": "none"}, "algorithm.verifier: found 'none' with chosen 'best', allowed: likelihood, token_match"),
    ({"chosen": "demonstration"}, "algorithm.verifier: found 'likelihood' with chosen 'demonstration', allowed: none"),
    ({"min_gap": -1.0}, "algorithm.min_gap: found -1.0"),
  ],
)
def test_config_errors(over, text):
  with pytest.raises(UserError, match=text):
    dpo.DpoConfig(**over)
