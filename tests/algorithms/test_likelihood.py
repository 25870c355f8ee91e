"""Methods rewarded by the likelihood of the reference answer: each against its paper's equations."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from likelihoods import given, split, varies

from nrt_jax.algorithms import verifier_free
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.errors import UserError
from nrt_jax.objectives import advantages, rewards
from nrt_jax.step import programs
from nrt_jax.step.state import States, TrainState

MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)
MARKER_IDS = (toy.MARKER, toy.SECOND_MARKER)
B, G = 6, 4
PROMPTS = toy.prompts(B, answer_width=3)


# --------------------------------------------------------------------------- hand-made values of each method


def on_answer(collected, width):
  """Weights of the answer's tokens in the mean over samples: s_ki, from coefficients that hold 1 / G."""
  return np.asarray(collected.batch.answer_coef_NL[:, -width:]) * len(collected.batch.answer_coef_NL)


def on_trace(collected):
  """The coefficient of each row's trace tokens times G, which must be the same for all of a row's tokens."""
  batch = collected.batch
  coef_NL, mask_NL = np.asarray(batch.trace_coef_NL) * len(batch.token_NL), np.asarray(batch.trace_mask_NL)
  each = [row[mask] for row, mask in zip(coef_NL, mask_NL)]
  assert all(len(row) >= 2 and np.ptp(row) == 0 for row in each) and not coef_NL[~mask_NL].any()
  return [row[0] for row in each]


def test_jepo_by_hand():
  # log p = -1 -2 -3 -6; less the mean of the others: 8/3 4/3 0 -4; their std sqrt((64/9 + 16/9 + 16) / 3) = 2.880329.
  made = given("jepo", [split(x) for x in (-1, -2, -3, -6)], split(-4))
  np.testing.assert_allclose(on_trace(made), [0.925820, 0.462910, 0, -1], atol=1e-5)  # the last: -1.388730, clipped
  np.testing.assert_allclose(made.samples["advantage"], on_trace(made), atol=1e-6)
  np.testing.assert_allclose(on_answer(made, 2), np.ones((4, 2)), rtol=1e-6)


@pytest.mark.parametrize("bad_end", ["other", None])
def test_jepo_leaves_badly_formatted_samples_to_the_penalty(bad_end):
  # Bound: -1 -2 -3 alone, 1.5 0 -1.5 over std 1.5. Penalty: 0 0 0 -10, 10/3 10/3 10/3 -10 over sqrt(400/9) = 6.666667.
  made = given("jepo", [split(x) for x in (-1, -2, -3, -6)], split(-4), ends=["marker"] * 3 + [bad_end])
  np.testing.assert_allclose(on_trace(made), [1.5, 0.5, -0.5, -1], atol=1e-5)  # the penalty's -1.5 is clipped
  np.testing.assert_allclose(on_answer(made, 2), [[1, 1]] * 3 + [[0, 0]], rtol=1e-6)


def test_filtering_flat_groups_leaves_the_penalty_on_the_format():
  """Equal likelihoods, but one trace without marker: JEPO's other advantage is one, and its rows count."""
  c = [split(-1)] * 3
  ends = ["marker", "marker", None]
  made = given("jepo", c, split(-1), ends=ends, filter_flat_groups=True, normalisation="token")
  plain = given("jepo", c, split(-1), ends=ends, normalisation="token")
  np.testing.assert_array_equal(made.batch.trace_coef_NL, plain.batch.trace_coef_NL)
  assert np.asarray(made.batch.trace_coef_NL).any(axis=1).all()
  flat = given("jepo", c, split(-1), filter_flat_groups=True, normalisation="token")
  assert not flat.batch.trace_weight_NL.any()


# What is no difference of traces: probabilities that agree to float32's digits, whatever the reward makes of them.
ROUNDED = {
  "rlpr without a share for format": ("rlpr", {"format_share": 0.0, "std_filter": 0.0}, 0.3, 1.0),
  "rlpr": ("rlpr", {"std_filter": 0.0}, 0.3, 1.0),
  "nrt": ("nrt", {"baseline": "subtract"}, 0.3, 1.0),
  "log p near 0": ("rl_logit", {"scale": "std"}, 1 - 1e-6, 1.0),
  "mean log p near 0": ("rl_logit", {"scale": "std", "reward": "mean_log_prob"}, 1 - 1e-6, 1.0),
  "log p less a far baseline": ("dro", {"kl_coef": 0.0, "reference": "none"}, 0.9, 1e-30),
  "ranks of perplexities near 0": ("nover", {"kl_coef": 0.0, "score_policy": "current"}, 1 - 1e-6, 1.0),
}


@pytest.mark.parametrize("case", ROUNDED)
def test_rounding_is_never_an_advantage(case):
  name, over, c, base = ROUNDED[case]
  rows_ = [[c * (1 + sign * 6e-8)] * 2 for sign in (0, 1, -1, 2)]
  bases = {"reference_c": [c * base] * 2} if name in ("rlpr", "nover") else {}
  made = given(name, rows_, [c * base] * 2, **bases, **over)
  assert len(set(np.asarray(made.samples["answer_logp"]).sum(1).tolist())) > 1
  np.testing.assert_array_equal(made.samples["advantage"], 0)
  far = given(name, [[0.9 * c] * 2, *rows_[1:]], [c * base] * 2, **bases, **over)
  assert np.abs(far.samples["advantage"]).max() > 1e-3 or base == 1.0 and name in ("nrt", "rlpr")


FLAT, APART = [[0.5, 0.5]] * 3, [[0.5, 0.5], [0.5, 0.6], [0.4, 0.5]]
LOW = [0.1, 0.1]
WHAT_VARIES = [
  # name, c, base, other settings, does the group teach anything?
  ("nrt", FLAT, LOW, {}, False),
  ("nrt", APART, LOW, {}, True),
  ("nrt", APART, [0.9, 0.9], {}, False),  # none is better than no trace
  ("nrt", APART, [0.9, 0.9], {"baseline": "none"}, True),
  ("nrt", FLAT, LOW, {"ends": ["marker", "marker", None], "unmarked": "zero"}, True),
  ("nrt", APART, LOW, {"ends": ["marker", None, None], "mask_unended": True}, False),  # one alone
  ("jepo", FLAT, LOW, {}, False),
  ("jepo", FLAT, LOW, {"ends": ["marker", "other", "marker"]}, True),  # the penalty on its format
  ("jepo", FLAT, LOW, {"ends": ["marker", "other", "marker"], "format_penalty": 0.0}, False),
  ("rl_logit", FLAT, LOW, {"trace_lengths": [1, 2, 2]}, False),
  ("rl_logit", FLAT, LOW, {"trace_lengths": [1, 2, 2], "short_penalty": 1.0, "short_target": 3}, True),
  ("rl_logit", FLAT, LOW, {"trace_lengths": [1, 2, 2], "long_penalty": 1.0, "long_buffer": 2}, True),
  ("latro", FLAT, LOW, {"surplus": [1.0, 1.0, 1.0]}, False),
  ("latro", FLAT, LOW, {"surplus": [1.0, 2.0, 1.0]}, True),  # the KL in its reward
  ("latro", FLAT, LOW, {"surplus": [1.0, 2.0, 1.0], "kl_place": "loss"}, False),
  ("rlpr", FLAT, LOW, {"std_filter": 0.0}, False),
  ("rlpr", APART, LOW, {"std_filter": 0.0}, True),
  ("rlpr", FLAT, LOW, {"std_filter": 0.0, "trace_lengths": [1, 2, 2], "long_penalty": 1.0, "long_buffer": 2}, True),
  ("rlpr", FLAT, LOW, {"std_filter": 0.0, "surplus": [1.0, 2.0, 1.0], "kl_coef": 0.1, "kl_place": "reward"}, True),
  ("rlpr", FLAT, LOW, {}, True),  # with its filter, which keeps all in the first steps
  ("nover", FLAT, LOW, {"trace_lengths": [2, 2, 2], "kl_coef": 0.0, "score_policy": "current"}, False),
  ("nover", APART, LOW, {"trace_lengths": [2, 2, 2], "kl_coef": 0.0, "score_policy": "current"}, True),
  ("nft", FLAT, LOW, {"verifier": "likelihood"}, False),
  ("nft", APART, LOW, {"verifier": "likelihood"}, True),
  ("nft", [[0.5, 0.5], [0.5, 0.5000001]], LOW, {"verifier": "likelihood"}, False),  # rounding
  ("nft", APART, LOW, {"verifier": "likelihood", "ends": ["marker", None, None], "mask_unended": True}, False),
]


@pytest.mark.parametrize("case", range(len(WHAT_VARIES)))
def test_what_varies_is_what_has_an_advantage(case):
  """A group that `max_draws` would draw again has none, one that it keeps has some, and all that makes one is seen."""
  name, c, base, over, expected = WHAT_VARIES[case]
  bases = {"reference_c": base} if name == "rlpr" else {}
  assert varies(name, c, base, **bases, **over) == expected
  if over != {}:
    return
  advantage_N = given(name, c, base, **bases, **over).samples["advantage"]
  assert name == "rlpr" or np.asarray(advantage_N).any() == expected


def test_jepo_multi_by_hand():
  # p = 1/2 1/4: 2 log(.375 / .25) = .810930, 2 log(.375 / .5) = -.575364; std .980258; shares 2/3 1/3.
  c = [split(np.log(p)) for p in (0.5, 0.25)]
  raw = given("jepo_multi", c, split(-1), scale="none", advantage_clip=0.0)
  np.testing.assert_allclose(on_trace(raw), [0.810930, -0.575364], atol=1e-5)
  np.testing.assert_allclose(on_trace(given("jepo_multi", c, split(-1))), [0.827262, -0.586952], atol=1e-5)
  np.testing.assert_allclose(on_answer(raw, 2), [[4 / 3] * 2, [2 / 3] * 2], rtol=1e-5)


def test_jepo_of_one_sample_is_the_likelihood():
  """With n = 1, log mean_k p_k = log p: the answer's weight is 1, as in JEPO with one sample."""
  config = ALGORITHMS["jepo_multi"].config()
  c = jnp.array([[-1.0, -2.0], [-0.1, 0.0], [-50.0, -150.0]])
  mask_NA = jnp.ones((3, 2), bool)
  scored = verifier_free.Scored(c, c, c, mask_NA)
  weights = verifier_free.answer_weights(config, jnp.zeros((3, 2)), scored, jnp.ones(3, bool), 1)
  np.testing.assert_allclose(weights, np.ones((3, 2)), rtol=1e-6)


def test_verifree_by_hand():
  # R = .5 .25 .125, and 0 without marker, however likely the answer; less the mean of the others on the trace alone.
  c = [split(np.log(p)) for p in (0.5, 0.25, 0.125, 0.9)]
  made = given("verifree", c, split(-1), ends=["marker"] * 3 + ["other"])
  np.testing.assert_allclose(on_trace(made), [0.375, 0.041667, -0.125, -0.291667], atol=1e-5)
  np.testing.assert_allclose(on_answer(made, 2), [[0.5] * 2, [0.25] * 2, [0.125] * 2, [0, 0]], atol=1e-6)
  np.testing.assert_allclose(made.batch.behaviour_logp_NL[:, -2:], np.log(c), rtol=1e-5)  # for the clip on the answer


def test_the_answers_trust_region():
  """VeriFree's PPO clip on the answer's tokens: s > 0 always, so that only ratios above the upper bound stop."""
  made = given("verifree", [split(np.log(p)) for p in (0.5, 0.25)], split(-1))
  behaviour_NL, coef_NL = np.asarray(made.batch.behaviour_logp_NL), np.asarray(made.batch.answer_coef_NL)
  shift_NL = np.resize([0.3, -0.3, 0.1], behaviour_NL.shape)
  slopes = {}
  for clip_answer in (True, False):
    config = ALGORITHMS["verifree"].config(clip_answer=clip_answer, ratio_base="sampler")

    def answer_loss(logp_NL):
      found = (logp_NL, -logp_NL, logp_NL)
      tools = programs.make_tools(toy.setup("verifree"))._replace(log_probs=lambda *_, **__: found)
      return ALGORITHMS["verifree"].loss(tools, config, {}, made.batch).metrics["loss/answer"]

    slopes[clip_answer] = jax.grad(answer_loss)(jnp.asarray(behaviour_NL + shift_NL))
  np.testing.assert_allclose(slopes[False], -coef_NL, rtol=1e-6)
  expected = [
    [reference.ppo_clip(b + d, b, a, 0.8, 1.2)[1] for b, d, a in zip(*row)]
    for row in zip(behaviour_NL, shift_NL, coef_NL)
  ]
  np.testing.assert_allclose(slopes[True], expected, rtol=1e-4, atol=1e-7)
  assert (np.asarray(slopes[True])[:, -2:] == 0).any() and np.asarray(slopes[True])[:, -2:].any()


def test_latro_by_hand():
  # log p less .05 of the surplus: -1.1 -1.8 -4.5; the third lacks its marker and gets 2 * (-7.4 / 3) = -4.933333.
  ends = ["marker", "marker", None]
  made = given("latro", [split(x) for x in (-1, -2, -4)], split(-4), ends=ends, surplus=[2, -4, 10])
  np.testing.assert_allclose(on_trace(made), [2.266667, 1.216667, -3.483333], atol=1e-5)
  assert not on_answer(made, 2).any()  # the released code's default
  theory = given("latro", [split(x) for x in (-1, -2)], split(-4), answer_coef=1.0)
  np.testing.assert_allclose(on_answer(theory, 2), np.ones((2, 2)), rtol=1e-6)


@pytest.mark.parametrize(
  "reward,advantage,weight", [("log_prob", [2, -2], [1, 1]), ("mean_log_prob", [1, -1], [0.5, 0.5])]
)
def test_rl_logit_by_hand(reward, advantage, weight):
  made = given("rl_logit", [split(-1), split(-3)], split(-4), reward=reward)
  np.testing.assert_allclose(on_trace(made), advantage, rtol=1e-5)
  np.testing.assert_allclose(on_answer(made, 2), [weight] * 2, rtol=1e-5)


def test_dro_by_hand():
  # log c = (-1, -1), (-1, -3): σ = 0, 1, w = 0, 2. Less log c = (-2, -4) of the masked trace: R3 = 2 * 3, 2 * 1.
  c, base = np.exp([[-1, -1], [-1, -3]]).tolist(), np.exp([-2, -4]).tolist()
  made = given("dro", c, base, scale="none", center="none", normalisation="constant")
  np.testing.assert_allclose(on_trace(made), [6, 2], rtol=1e-5)
  np.testing.assert_allclose(given("dro", c, base).samples["advantage"], [0.707107, -0.707107], rtol=1e-5)
  assert not made.batch.answer_coef_NL.any()


def test_spread_weights_twin():
  rng = np.random.default_rng(3)
  lengths, groups = (5, 1, 3), 3
  logps = [np.log(rng.uniform(0.01, 0.99, (4, n))) for n in lengths]
  logps[2][:, 1] = np.log(0.3)  # a token that no trace moves
  padded, mask = reference.padded([row for group in logps for row in group], 6, fill=np.nan)
  weights = np.asarray(rewards.spread_weights(jnp.asarray(padded), jnp.asarray(mask), 4))
  for g in range(groups):
    expected = reference.spread_weights(logps[g])
    for row in weights[4 * g : 4 * g + 4]:
      np.testing.assert_allclose(row[: lengths[g]], expected, rtol=1e-4, atol=1e-6)
      assert not row[lengths[g] :].any()
  np.testing.assert_array_equal(rewards.spread_weights(jnp.full((4, 2), -0.1), jnp.ones((4, 2), bool), 4), 1)
  rounded = jnp.full((4, 2), -1.0).at[0, 0].set(-1.0000001)  # one token's rounding is no spread
  np.testing.assert_array_equal(rewards.spread_weights(rounded, jnp.ones((4, 2), bool), 4), 1)


# ------------------------------------------------------------------------ exact gradients on an enumerable policy


def bound(policy, theta, n):
  """E[log mean_k p_k] over n traces, JEPO's bound."""
  chosen = [policy.chosen(k) for k in range(9)]
  q, p = ([policy.probability(tokens, theta).prod() for tokens in part] for part in zip(*chosen))
  return sum(
    np.prod([q[k] for k in ks]) * np.log(np.mean([p[k] for k in ks])) for ks in itertools.product(range(9), repeat=n)
  )


@pytest.mark.parametrize(
  "name,n,objective",
  [
    ("verifree", 2, lambda policy, theta: policy.objective("prob", theta)),
    ("rl_logit", 2, lambda policy, theta: policy.objective("log_prob", theta)),
    ("jepo", 2, lambda policy, theta: bound(policy, theta, 1)),
    ("jepo_multi", 2, lambda policy, theta: bound(policy, theta, 2)),
    ("jepo_multi", 3, lambda policy, theta: bound(policy, theta, 3)),
  ],
)
def test_two_terms_are_unbiased(name, n, objective):
  """The expectation of trace term and answer term over every draw of n traces is the gradient of the objective."""
  policy = reference.ToyPolicy()
  config = ALGORITHMS[name].config(scale="none", advantage_clip=0.0, format_penalty=0.0)
  draws = list(itertools.product(range(9), repeat=n))
  rows_ = np.array(draws).reshape(-1)
  parts = [policy.chosen(k) for k in range(9)]
  c = np.array([policy.probability(answer, policy.theta) for _, answer in parts])[rows_]
  logp_NA, base_NA = (jnp.log(jnp.asarray(x, jnp.float32)) for x in (c, np.broadcast_to(policy.base, c.shape)))
  mask_NA, every_N = jnp.ones(c.shape, bool), jnp.ones(len(rows_), bool)
  scored = verifier_free.Scored(logp_NA, base_NA, base_NA, mask_NA)
  _, gain_N, derived_NA, _ = verifier_free.likelihood_rewards(config, scored, n)
  advantage_N = np.asarray(advantages.group_advantages(gain_N, n, config.center, config.scale))
  s_NA = np.asarray(verifier_free.answer_weights(config, derived_NA, scored, every_N, n))
  trace_scores = np.array([policy.scores(trace, policy.theta).sum(axis=0) for trace, _ in parts])[rows_]
  answer_scores = np.array([policy.scores(answer, policy.theta) for _, answer in parts])[rows_]
  q = np.array([policy.probability(trace, policy.theta).prod() for trace, _ in parts])
  weight_N = np.repeat([np.prod(q[list(ks)]) for ks in draws], n) / n
  estimate = weight_N @ (advantage_N[:, None] * trace_scores + np.einsum("na,nap->np", s_NA, answer_scores))
  exact = reference.central_difference(lambda theta: objective(policy, theta), policy.theta)
  np.testing.assert_allclose(estimate, exact, rtol=2e-4, atol=2e-5)


def test_the_reference_can_be_the_scorer():
  """`score_policy` reference is the reference's likelihood of the answer after the policy's traces."""
  setup = toy.setup("dro", model=MODEL, samples_per_prompt=G, algorithm__score_policy="reference")
  tools, params, other = programs.make_tools(setup), toy.params(MODEL), toy.params(MODEL, seed=7)
  policy = TrainState(jnp.int32(0), jnp.int32(0), params, (), jax.random.key(0))
  collect = functools.partial(setup.algorithm.collect, tools, setup.run.algorithm)
  made = jax.jit(collect)(States(policy, other), PROMPTS, jax.random.key(0))
  whole = tools.log_probs(other, made.batch)[0]
  expected = np.where(made.batch.answer_mask_NL, whole, 0)[:, -3:]
  settled = np.asarray(made.batch.trace_mask_NL).sum(1) > 1  # empty traces have the empty trace's scores
  assert settled.sum() > 5
  np.testing.assert_allclose(made.samples["answer_logp"][settled], expected[settled], atol=1e-4)


@pytest.mark.parametrize(
  "name,over,text",
  [
    ("rlpr", {"format_share": 1.5}, "algorithm.format_share: found 1.5, allowed: 0 to 1"),
    ("rlpr", {"repetition_penalty": -1.0}, "algorithm.repetition_penalty: found -1.0, allowed: 0"),
    ("rlpr", {"repetition_times": 1}, "algorithm.repetition_ngram, repetition_times: found 10, 1"),
    ("rlpr", {"std_filter_start": 6}, "algorithm.std_average_start, std_filter_start: found 6, 6"),
    ("rlpr", {"reference": "none"}, "algorithm.base_policy: found 'reference' with algorithm.reference 'none'"),
    ("nover", {"score_policy": "old"}, "algorithm.score_policy: found 'old', allowed: current, reference"),
    ("jepo", {"unmarked": "drop"}, "algorithm.unmarked: found 'drop'"),
    ("jepo", {"format_penalty": -10.0}, "algorithm.format_penalty: found -10.0"),
    ("dro", {"token_weight": "std"}, "algorithm.token_weight: found 'std', allowed: one, spread"),
  ],
)
def test_errors(name, over, text):
  with pytest.raises(UserError, match=text):
    ALGORITHMS[name].config(**over)
