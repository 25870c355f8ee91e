"""NFT against its equations: the loss by hand, its equality with GRPO on-policy, its optimum, labels and rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from completions import PROMPTS, SAMPLES, B, G, collected, tools

from nrt_jax.algorithms import nft
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.arrays import AnswerScores, Rollouts
from nrt_jax.errors import UserError
from nrt_jax.objectives import losses
from nrt_jax.step.state import States, TrainState

RATIOS = np.array([0.5, 0.8, 1.0, 1.2, 2.0, 3.5])


def at_ratios(ratios, label, rate, **settings):
  """Loss of each token of one row, and its derivative by log π, at these ratios."""
  behaviour_logp_NL = jnp.full((1, len(ratios)), -1.5)
  logp_NL = behaviour_logp_NL + jnp.log(jnp.asarray(ratios, jnp.float32))[None]
  rows = (behaviour_logp_NL, jnp.ones_like(logp_NL), jnp.array([label]), jnp.array([rate]))

  def loss(logp_NL):
    return losses.nft(logp_NL, *rows, **settings)

  return loss(logp_NL)[0], jax.grad(lambda logp_NL: loss(logp_NL).sum())(logp_NL)[0]


# ----------------------------------------------------------------------------------------------------------- the loss


def test_negatives_by_hand():
  """r̂ = 1/4. At R = 1/2: V = (1 - 1/8) / (3/4) = 7/6, slope (1/6) / (7/6) = 1/7. Above R = 1 the floor 1 holds."""
  value, slope = at_ratios(RATIOS, 0.0, 0.25)
  np.testing.assert_allclose(slope, [1 / 7, 0.25, 1 / 3, 0.4, 2 / 3, 3.5 / 3], rtol=1e-5)
  np.testing.assert_allclose(value, [-np.log(7 / 6), -np.log(16 / 15), 0, 0, 0, 0], rtol=1e-5, atol=1e-6)
  # A lower floor: at R = 2, V = 2/3 and the slope is (2/3) / (2/3); at 3.5, V = 1/6; at R = 4 it would be 0.
  value, slope = at_ratios(RATIOS, 0.0, 0.25, floor=0.1)
  np.testing.assert_allclose(slope[4:], [1.0, 7.0], rtol=1e-5)
  np.testing.assert_allclose(value[4:], [-np.log(2 / 3), -np.log(1 / 6)], rtol=1e-5)


@pytest.mark.parametrize("floor", [1.0, 0.1, 2.0])
def test_negatives_beyond_the_pole_are_finite(floor):
  """R > 1 / r̂, where V < 0: the value is -log ε, the slope r̂ R / ((1 - r̂) ε), and not 0 though the floor holds."""
  ratios = np.array([2.0, 2.5, 100.0, 2e4])
  value, slope = at_ratios(ratios, 0.0, 0.5, floor=floor)
  np.testing.assert_allclose(value, np.full(4, -np.log(floor)), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(slope, ratios / floor, rtol=1e-4)
  value, slope = at_ratios([np.exp(10.5), np.exp(40.0)], 0.0, 0.98, floor=floor)  # cut at e^10: no slope beyond
  assert np.isfinite(value).all() and not slope.any()


def test_positives_carry_no_ratio():
  value, slope = at_ratios(RATIOS, 1.0, 0.25)
  np.testing.assert_allclose(slope, -np.ones(6), rtol=1e-6)
  np.testing.assert_allclose(value, -np.log(RATIOS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ratio", losses.NFT_RATIOS)
@pytest.mark.parametrize("floor,negative_weight", [(1.0, 1.0), (0.2, 0.5), (2.0, 0.0)])
def test_twin(ratio, floor, negative_weight):
  rng = np.random.default_rng(0)
  lengths, label, rate = [5, 2, 4, 1, 3], np.array([1.0, 0.0, 0.3, 0.0, 0.9]), np.array([0.4, 0.7, 0.5, 0.02, 0.98])
  behaviour = -rng.exponential(size=(5, 5))
  logp, weight = behaviour + rng.normal(0, 0.8, (5, 5)), np.zeros((5, 5))
  logp[3, 0] = behaviour[3, 0] + 11  # beyond the cut
  for n, length in enumerate(lengths):
    weight[n, :length] = 1 / length
  arrays = [jnp.asarray(x, jnp.float32) for x in (logp, behaviour, weight, label, rate)]
  settings = {"floor": floor, "negative_weight": negative_weight, "ratio": ratio}
  value = losses.nft(*arrays, **settings)
  slope = jax.grad(lambda x: losses.nft(x, *arrays[1:], **settings).sum())(arrays[0])
  for n, length in enumerate(lengths):
    expected = reference.nft(logp[n, :length], behaviour[n, :length], label[n], rate[n], *settings.values())
    np.testing.assert_allclose(value[n, :length] * length, expected[0], rtol=1e-4, atol=1e-5)
    by_token = 1 if ratio == "token" else length  # the sequence's slope reaches each token whole
    np.testing.assert_allclose(slope[n, :length] * length, np.asarray(expected[1]) * by_token, rtol=1e-4, atol=1e-5)
    assert not slope[n, length:].any() and not value[n, length:].any()


def test_stats():
  behaviour_NL = jnp.zeros((2, 3)) - 1
  logp_NL = behaviour_NL + jnp.log(jnp.array([[0.5, 2.0, 3.0], [2.0, 0.5, 9.0]]))
  weight_NL = jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
  rows = (logp_NL, behaviour_NL, weight_NL, jnp.array([0.0, 1.0]), jnp.array([0.5, 0.5]))
  stats = losses.nft_stats(*rows)
  np.testing.assert_allclose(stats["policy/ratio_max"], 3.0, rtol=1e-6)
  assert stats["policy/floor_fraction"] == (2, 5)  # the two tokens of the negative whose ratio is above 1
  assert losses.nft_stats(*rows, negative_weight=0.0)["policy/floor_fraction"] == (0, 5)  # RFT has no negatives


# ------------------------------------------------------------------------------------------ equality with GRPO


def slope_on_policy(name, **over):
  """The derivative of the loss by each token's log-probability at the sampling policy, and what was collected."""
  constant = {"normalisation": "constant", "normalisation_constant": 1.0}
  config = ALGORITHMS[name].config(reference="none", kl_coef=0.0, **constant, **over)
  made = collected(name, config)
  behaviour_NL = made.batch.behaviour_logp_NL

  def loss(logp_NL):
    given = tools()._replace(log_probs=lambda *_, **__: (logp_NL, -logp_NL, logp_NL))
    return ALGORITHMS[name].loss(given, config, {}, made.batch).total

  return np.asarray(jax.grad(loss)(behaviour_NL)), made


@pytest.mark.parametrize("floor", [1e-6, 0.5, 1.0])
def test_on_policy_it_is_dr_grpo_or_grpo(floor):
  """Propositions 4.1 and 4.2. GRPO's std here is the sample's, theirs the population's: √(G / (G - 1)) larger."""
  dr_grpo, _ = slope_on_policy("dr_grpo")
  grpo, _ = slope_on_policy("grpo")
  assert np.abs(dr_grpo).max() > 0.01
  slope, made = slope_on_policy("nft", floor=floor, prompt_weight="negative_rate")
  np.testing.assert_allclose(slope, dr_grpo, rtol=1e-5, atol=1e-8)
  weight = np.asarray(made.batch.trace_weight_NL)
  np.testing.assert_allclose(slope, -weight * np.asarray(made.samples["advantage"])[:, None], rtol=1e-5, atol=1e-8)
  slope, _ = slope_on_policy("nft", floor=floor, prompt_weight="negative_odds_root")
  np.testing.assert_allclose(slope, grpo * np.sqrt(G / (G - 1)), rtol=1e-5, atol=1e-8)


SOFT = [[0.001, 0.002, 0.004, 0.001], [0.999, 0.998, 0.996, 0.999], [1e-5, 2e-5, 3e-5, 4e-5], [0.3, 0.9, 0.5, 0.3]]


@pytest.mark.parametrize("how", ["negative_rate", "negative_odds_root"])
def test_soft_labels_of_any_size_push_by_their_distance_from_the_mean(how):
  """ω (s - r̂) / (1 - r̂) to the last digits, with no bound on r̂: every group's pushes add up to 0."""
  label_N = jnp.asarray(SOFT, jnp.float32).reshape(-1)
  config = ALGORITHMS["nft"].config(verifier="host", prompt_weight=how, normalisation_constant=1.0)
  made = collected("nft", config, host_label_N=label_N)

  def loss(logp_NL):
    given = tools()._replace(log_probs=lambda *_, **__: (logp_NL, -logp_NL, logp_NL))
    return ALGORITHMS["nft"].loss(given, config, {}, made.batch).total

  slope_NL = np.asarray(jax.grad(loss)(made.batch.behaviour_logp_NL))
  label = np.array(SOFT)
  rate = label.mean(1, keepdims=True)
  expected = label - rate if how == "negative_rate" else (label - rate) / np.sqrt(rate * (1 - rate))
  np.testing.assert_allclose(made.samples["advantage"].reshape(4, 4), expected, rtol=2e-3, atol=1e-7)
  first_N1 = np.argmax(made.batch.trace_mask_NL, axis=1)[:, None]  # all tokens of a row alike
  pushed = -np.take_along_axis(slope_NL, first_N1, 1).reshape(4, 4) * B * G
  np.testing.assert_allclose(pushed, expected, rtol=2e-3, atol=1e-7)


def test_a_floor_above_one_breaks_the_equality():
  dr_grpo, _ = slope_on_policy("dr_grpo")
  slope, _ = slope_on_policy("nft", floor=2.0)
  assert np.abs(slope - dr_grpo).max() > 0.1 * np.abs(dr_grpo).max()


def test_rft_is_the_likelihood_of_the_right_ones():
  right = np.array([s["right"] for s in SAMPLES])
  for slope, made in (slope_on_policy("rft"), slope_on_policy("nft", prompt_weight="one", negative_weight=0.0)):
    expected = -1.0 * right[:, None] * np.asarray(made.batch.trace_weight_NL)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)
  rows = np.abs(slope_on_policy("rft")[0]).sum(axis=1) > 0
  np.testing.assert_array_equal(rows, right)  # group 3 too, whose completions are all right
  assert not (np.abs(slope_on_policy("nft")[0]).sum(axis=1) > 0)[3 * G :].any()


# ----------------------------------------------------------------------------------------------------- the optimum


def expected_gradient(theta, floor):
  """E over the sampling policy of the loss's gradient by the logits, at θ: six actions, one token, exact. float64."""
  old = jax.nn.softmax(jnp.array([0.3, -0.2, 0.8, 0.0, -1.0, 0.5]))
  label = jnp.array([0.9, 0.5, 0.75, 0.3, 0.8, 0.6])
  rate = (old * label).sum()

  def loss(theta):
    logp_NL = jax.nn.log_softmax(theta)[:, None]
    return losses.nft(logp_NL, jnp.log(old)[:, None], old[:, None], label, jnp.full(6, rate), floor=floor).sum()

  return jax.grad(loss)(theta), jnp.log(old * label / rate), (1 - label.max()) / (1 - rate), label


def test_soft_labels_have_the_posterior_as_optimum_only_below_a_floor():
  """The bias that nft.py documents: at π⁺ = π_old s / r̂ the gradient is 0 for ε <= min V there, but not for ε = 1."""
  with jax.enable_x64(True):
    _, posterior, least_v, label = expected_gradient(jnp.zeros(6), 1.0)
    exact = expected_gradient(posterior, float(least_v) * 0.99)[0]
    np.testing.assert_allclose(exact, np.zeros(6), atol=1e-12)
    assert np.abs(expected_gradient(posterior, float(least_v) * 1.5)[0]).max() > 1e-3
    biased = -expected_gradient(posterior, 1.0)[0]
    # With ε = 1 a step of descent from the posterior raises the expected label: sharper.
    mean_label = lambda theta: (jax.nn.softmax(theta) * label).sum()
    assert mean_label(posterior + 0.01 * biased) > mean_label(posterior) + 1e-5


# ------------------------------------------------------------------------------------------------ labels and rows


def test_weights_rates_and_labels_by_hand():
  made = collected("nft", ALGORITHMS["nft"].config(normalisation="token"))
  label = np.array([s["right"] for s in SAMPLES], np.float32)
  np.testing.assert_array_equal(made.batch.extra["label_N"], label)
  rate = label.reshape(B, G).mean(1).repeat(G)
  np.testing.assert_allclose(made.batch.extra["rate_N"], rate, rtol=1e-6)
  counted = reference.counted_groups(label.tolist(), [True] * len(label), G)
  tokens = sum(len(s["sampled"]) for s, c in zip(SAMPLES, counted) if c)
  for n, s in enumerate(SAMPLES):
    row = np.asarray(made.batch.trace_coef_NL[n])
    expected = np.full(len(s["sampled"]) * counted[n], (1 - rate[n]) / tokens)
    np.testing.assert_allclose(row[row != 0], expected, rtol=1e-5)


class Likelihood:
  """Given traces, with the log-probabilities of a reference answer of two tokens after each."""

  def __init__(self, answer_logp_NA):
    n, a = answer_logp_NA.shape
    token_NR = jnp.arange(n * 3, dtype=jnp.int32).reshape(n, 3) % 19  # all different
    ended_N = jnp.ones(n, bool)
    rollouts = Rollouts(token_NR.at[:, 2].set(toy.MARKER), jnp.full(n, 3), jnp.full((n, 3), -1.0), ended_N, ended_N)
    scores = AnswerScores(jnp.full((n, 2), -0.5), answer_logp_NA)
    empty = AnswerScores(jnp.zeros((n // G, 2)), jnp.zeros((n // G, a)))
    self.tools = tools()._replace(rollout=lambda *_: (rollouts, scores, empty))
    length_B = np.full(n // G, a, np.int32)
    answer_BA = np.full((n // G, a), 3, np.int32)
    self.prompts = jax.tree.map(lambda x: x[: n // G], PROMPTS).replace(answer_BA=answer_BA, answer_length_B=length_B)

  def collect(self, **over):
    config = ALGORITHMS["nft"].config(verifier="likelihood", normalisation_constant=1.0, **over)
    return nft.collect(self.tools, config, States(TrainState(0, 0, {}, (), None)), self.prompts, jax.random.key(0))


def test_labels_from_the_likelihood():
  c = np.array([[0.2, 0.8], [0.9, 0.4], [0.5, 0.5], [0.1, 0.1]] + [[0.3, 0.3]] * 4)
  made = Likelihood(jnp.log(jnp.asarray(c, jnp.float32)))
  batch = made.collect().batch
  label = np.sqrt(c.prod(axis=1))  # 0.4, 0.6, 0.5, 0.1: mean 0.4
  np.testing.assert_allclose(batch.extra["label_N"], label, rtol=1e-5)
  np.testing.assert_allclose(batch.extra["rate_N"][:G], np.full(G, 0.4), rtol=1e-5)
  assert not np.asarray(batch.trace_coef_NL[G:]).any() and np.asarray(batch.trace_coef_NL[:G]).any()  # flat: no vote
  assert not batch.answer_coef_NL.any() and not batch.format_coef_NL.any()
  # Affine and clipped: deviations 0, 0.2, 0.1, -0.3 and four of 0, whose root mean square is √(0.14 / 8) = 0.132288.
  batch = made.collect(label_map="affine_clip").batch
  expected = [0.5, 1.0, 0.5 + 0.05 / 0.132288, 0.0] + [0.5] * 4
  np.testing.assert_allclose(batch.extra["label_N"], expected, rtol=1e-4)
  batch = made.collect(label_map="affine_clip", label_scale=0.4, answer_coef=2.0, format_coef=0.5).batch
  np.testing.assert_allclose(batch.extra["label_N"], [0.5, 0.75, 0.625, 0.125] + [0.5] * 4, rtol=1e-4)
  np.testing.assert_allclose(batch.answer_coef_NL.sum(), 2.0 * 2, rtol=1e-5)  # two tokens a row, over the rows
  np.testing.assert_allclose(batch.format_coef_NL.sum(), 0.5, rtol=1e-5)  # the second marker token of each


def test_flat_likelihoods_make_no_signal_of_rounding():
  made = Likelihood(jnp.full((8, 2), -1.1) + jnp.arange(8)[:, None] * 1e-8)
  batch = made.collect(label_map="affine_clip").batch
  np.testing.assert_array_equal(batch.extra["label_N"], np.full(8, 0.5))
  assert not batch.trace_coef_NL.any()


def test_unended_completions_can_be_left_out():
  """Two completions ran into the limit: without them, a group's rate is the mean of its others."""
  config = ALGORITHMS["nft"].config(mask_unended=True, filter_flat_groups=False)
  batch = collected("nft", config).batch
  for b in range(B):
    group = SAMPLES[b * G : (b + 1) * G]
    rate = np.mean([s["right"] for s in group if s["ended"]])
    np.testing.assert_allclose(batch.extra["rate_N"][b * G : (b + 1) * G], np.full(G, rate), rtol=1e-6)
  has_signal = np.asarray(batch.trace_coef_NL != 0).any(axis=1)
  rate_N = np.asarray(batch.extra["rate_N"])  # where all are right, ω = 1 - r̂ is 0
  np.testing.assert_array_equal(has_signal, [s["ended"] and rate < 1 for s, rate in zip(SAMPLES, rate_N)])


@pytest.mark.parametrize(
  "over,text",
  [
    ({"prompt_weight": "two"}, "algorithm.prompt_weight: found 'two'"),
    ({"floor": 0.0}, "algorithm.floor: found 0.0, allowed: above 0"),
    ({"ratio": "sequence"}, "algorithm.normalisation: found 'constant' with ratio 'sequence', allowed: sequence"),
    ({"verifier": "likelihood", "reward": "log_prob"}, "algorithm.label_map: found 'identity' with reward 'log_prob'"),
    ({"negative_weight": -1.0}, "algorithm.negative_weight: found -1.0"),
    ({"verifier": "hots"}, "algorithm.verifier: found 'hots', allowed: .*did you mean 'host'"),
  ],
)
def test_errors(over, text):
  with pytest.raises(UserError, match=text):
    ALGORITHMS["nft"].config(**over)


def test_what_runs_on_the_host():
  config = ALGORITHMS["nft"].config
  where = {"token_match": False, "likelihood": False, "host": True, "gsm8k": True}
  assert {verifier: config(verifier=verifier).grades_on_host for verifier in where} == where
