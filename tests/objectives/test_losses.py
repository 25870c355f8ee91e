import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from nrt_jax.errors import UserError
from nrt_jax.objectives import losses, rewards

LOW, HIGH = 0.8, 1.28
RATIOS = np.array([0.5, 1.0, 1.2, 1.5])


def at_ratios(ratios, advantage):
  """One row of tokens of probability ratio * 0.25 that were sampled with 0.25, all of the same advantage."""
  behaviour_logp_NL = jnp.full((1, len(ratios)), jnp.log(0.25))
  logp_NL = behaviour_logp_NL + jnp.log(jnp.asarray(ratios, jnp.float32))[None]
  return logp_NL, behaviour_logp_NL, jnp.full(logp_NL.shape, advantage)


def value_and_gradient(loss, logp_NL, *arguments):
  gradient = jax.grad(lambda logp_NL: loss(logp_NL, *arguments).sum())(logp_NL)
  return loss(logp_NL, *arguments), gradient


def random_tokens(seed=0, shape=(4, 6)):
  rng = np.random.default_rng(seed)
  behaviour_logp_NL = -rng.exponential(size=shape)
  return behaviour_logp_NL + rng.normal(0, 0.4, shape), behaviour_logp_NL, rng.normal(size=shape)


def test_ppo_clip_by_hand():
  # A = 1: clip bites above (1.5 -> 1.28, no gradient). A ratio bound of 1 - 0.8 = 0.2 would not change 0.5 for A = -1.
  value, gradient = value_and_gradient(losses.ppo_clip, *at_ratios(RATIOS, 1.0), LOW, HIGH)
  np.testing.assert_allclose(value, [[-0.5, -1, -1.2, -1.28]], rtol=1e-6)
  np.testing.assert_allclose(gradient, [[-0.5, -1, -1.2, 0]], rtol=1e-6)
  # A = -1: it bites below; max for min would give 0.5 and 1.28.
  value, gradient = value_and_gradient(losses.ppo_clip, *at_ratios(RATIOS, -1.0), LOW, HIGH)
  np.testing.assert_allclose(value, [[0.8, 1, 1.2, 1.5]], rtol=1e-6)
  np.testing.assert_allclose(gradient, [[0, 1, 1.2, 1.5]], rtol=1e-6)


def test_cispo_by_hand():
  logp = np.log(0.25 * RATIOS)
  value, gradient = value_and_gradient(losses.cispo, *at_ratios(RATIOS, 1.0), LOW, HIGH)
  np.testing.assert_allclose(gradient, [[-0.8, -1, -1.2, 0]], rtol=1e-6)  # without the mask: -1.28 at the end
  np.testing.assert_allclose(value, [np.array([-0.8, -1, -1.2, 0]) * logp], rtol=1e-6)
  value, gradient = value_and_gradient(losses.cispo, *at_ratios(RATIOS, -1.0), LOW, HIGH)
  # With the ratio's own gradient, 1.2 would become 1.2 (1 + log 0.3).
  np.testing.assert_allclose(gradient, [[0, 1, 1.2, 1.28]], rtol=1e-6)
  np.testing.assert_allclose(value, [np.array([0, 1, 1.2, 1.28]) * logp], rtol=1e-6)


def test_truncated_importance_by_hand():
  logp = np.log(0.25 * RATIOS)
  for advantage in (1.0, -1.0):
    value, gradient = value_and_gradient(losses.truncated_importance, *at_ratios(RATIOS, advantage), LOW, HIGH)
    expected = -advantage * np.array([0.5, 1, 1.2, 1.28])  # a lower bound would make 0.8 of 0.5; a mask 0 of 1.5
    np.testing.assert_allclose(gradient, [expected], rtol=1e-6)
    np.testing.assert_allclose(value, [expected * logp], rtol=1e-6)


def test_sequence_clip_by_hand():
  """Ratios 4 and 1/2 of two tokens: the sequence's is (4 / 2) ** (1/2) = 1.414, for both tokens."""
  logp_NL, behaviour_logp_NL, _ = at_ratios([4.0, 0.5, 7.0], 1.0)
  coef_NL = jnp.array([[0.5, 0.5, 0.0]])  # the last token is not the completion's: no share in the ratio, no loss
  value, gradient = value_and_gradient(losses.sequence_clip, logp_NL, behaviour_logp_NL, coef_NL, 0.8, 2.0)
  np.testing.assert_allclose(value.sum(), -1.414214, rtol=1e-6)
  np.testing.assert_allclose(gradient, [[-0.707107, -0.707107, 0]], rtol=1e-6)  # A s / |y| for each token
  value, gradient = value_and_gradient(losses.sequence_clip, logp_NL, behaviour_logp_NL, coef_NL, 0.8, 1.28)
  np.testing.assert_allclose(value.sum(), -1.28, rtol=1e-6)  # by tokens: -(1.28 + 0.5) / 2
  assert not gradient.any()
  value, gradient = value_and_gradient(losses.sequence_clip, logp_NL, behaviour_logp_NL, -coef_NL, 0.8, 1.28)
  np.testing.assert_allclose(gradient, [[0.707107, 0.707107, 0]], rtol=1e-6)  # A < 0 is not stopped above


def test_sequence_clip_twin():
  logp, behaviour_logp, _ = random_tokens(shape=(8, 6))
  lengths, advantage = [6, 1, 3, 4, 5, 2, 6, 3], [1.0, -2.0, 0.5, -0.5, 3.0, -1.0, -1.5, 0.7]
  coef = np.array([[a / n if t < n else 0 for t in range(6)] for a, n in zip(advantage, lengths)])
  arrays = [jnp.asarray(x, jnp.float32) for x in (logp, behaviour_logp, coef)]
  value, gradient = value_and_gradient(losses.sequence_clip, *arrays, 0.95, 1.05)
  stopped = 0
  for n, length in enumerate(lengths):
    loss, slope = reference.gspo(logp[n, :length], behaviour_logp[n, :length], advantage[n], 0.95, 1.05)
    np.testing.assert_allclose(value[n].sum(), loss, rtol=1e-5)
    np.testing.assert_allclose(gradient[n], [*slope, *[0] * (6 - length)], rtol=1e-5)
    stopped += not slope.any()
  assert 1 <= stopped <= 6
  mask_NL = arrays[2] != 0
  stats = losses.ratio_stats("sequence_clip", *arrays[:2], mask_NL, arrays[2], 0.95, 1.05)
  expected = sum(n for n, row in zip(lengths, np.asarray(gradient)) if not row.any())
  assert stats["policy/clip_fraction"] == (expected, sum(lengths))


@pytest.mark.parametrize("name", ["ppo_clip", "cispo", "truncated_importance"])
def test_trace_losses_twins(name):
  logp, behaviour_logp, advantage = random_tokens()
  arrays = [jnp.asarray(x, jnp.float32) for x in (logp, behaviour_logp, advantage)]
  value, gradient = value_and_gradient(losses.TRACE_LOSSES[name], *arrays, LOW, HIGH)
  twin = getattr(reference, name)
  expected = [twin(*token, LOW, HIGH) for token in zip(logp.flat, behaviour_logp.flat, advantage.flat)]
  assert 3 < sum(g == 0 for _, g in expected) < 20 or name == "truncated_importance"  # both sides of the clip are seen
  np.testing.assert_allclose(value.reshape(-1), [v for v, _ in expected], rtol=1e-5)
  np.testing.assert_allclose(gradient.reshape(-1), [g for _, g in expected], rtol=1e-5)


@pytest.mark.parametrize("name", losses.TRACE_LOSSES)
def test_on_policy_every_trace_loss_is_the_policy_gradient(name):
  logp, _, advantage = random_tokens()
  logp_NL = jnp.asarray(logp, jnp.float32)
  coef_NL = jnp.broadcast_to(jnp.asarray(advantage[:, :1], jnp.float32), logp.shape)  # all tokens of a row have its A
  _, gradient = value_and_gradient(losses.TRACE_LOSSES[name], logp_NL, logp_NL, coef_NL, LOW, HIGH)
  np.testing.assert_allclose(gradient, -coef_NL, rtol=1e-6)


def test_reinforce_and_supervised_by_hand():
  logp_NL, coef_NL = jnp.array([[-1.0, -2.0]]), jnp.array([[0.5, -3.0]])
  for loss in (losses.reinforce, losses.supervised):
    value, gradient = value_and_gradient(loss, logp_NL, coef_NL)
    np.testing.assert_array_equal(value, [[0.5, -6.0]])
    np.testing.assert_array_equal(gradient, [[-0.5, 3.0]])


@pytest.mark.parametrize("name", losses.TRACE_LOSSES)
def test_extreme_log_probs_and_masked_tokens(name):
  logp_NL = jnp.array([[-1e4, 0.0, -1e4, 0.0]])
  behaviour_logp_NL = jnp.array([[0.0, -1e4, 0.0, -1e4]])
  for coef in (1.0, -1.0, 0.0):
    coef_NL = jnp.full((1, 4), coef)
    value, gradient = value_and_gradient(losses.TRACE_LOSSES[name], logp_NL, behaviour_logp_NL, coef_NL, LOW, HIGH)
    assert jnp.isfinite(value).all() and jnp.isfinite(gradient).all()
    if coef == 0:
      assert not value.any() and not gradient.any()


def test_losses_of_bfloat16_are_float32():
  half, single = jnp.full((1, 2), -1.0, jnp.bfloat16), jnp.ones((1, 2))
  for loss in losses.TRACE_LOSSES.values():
    assert loss(half, half, single, LOW, HIGH).dtype == jnp.float32
  for estimator in losses.KL_ESTIMATORS.values():
    assert estimator(half, half).dtype == jnp.float32


def test_kl_estimators_by_hand():
  logp, ref_logp = jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.25]]))
  np.testing.assert_allclose(losses.kl_k1(logp, ref_logp), [[0.693147]], rtol=1e-5)
  np.testing.assert_allclose(losses.kl_k2(logp, ref_logp), [[0.240227]], rtol=1e-5)
  # r = 1/2: 0.5 - 1 + 0.693147. With the ratio upside down: 2 - 1 - 0.693147 = 0.306853.
  np.testing.assert_allclose(losses.kl_k3(logp, ref_logp), [[0.193147]], rtol=1e-5)


def test_kl_estimators_in_expectation():
  theta, ref_logp = jnp.array([0.3, -1.0, 0.8, 0.1]), jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
  logp = jax.nn.log_softmax(theta)
  kl = lambda theta: (jax.nn.softmax(theta) * (jax.nn.log_softmax(theta) - ref_logp)).sum()
  for estimator in (losses.kl_k1, losses.kl_k3):
    np.testing.assert_allclose((jnp.exp(logp) * estimator(logp, ref_logp)).sum(), kl(theta), rtol=1e-5)
  # As a loss on samples of π, k2's expected gradient is that of KL(π ‖ π_ref).
  as_loss = lambda theta: (jnp.exp(logp) * losses.kl_k2(jax.nn.log_softmax(theta), ref_logp)).sum()
  np.testing.assert_allclose(jax.grad(as_loss)(theta), jax.grad(kl)(theta), rtol=1e-5, atol=1e-6)
  # k3's is that of KL(π_ref ‖ π), and k1's is nothing, whatever the reference: no loss may hold it.
  as_loss = lambda theta: (jnp.exp(logp) * losses.kl_k3(jax.nn.log_softmax(theta), ref_logp)).sum()
  np.testing.assert_allclose(jax.grad(as_loss)(theta), jnp.exp(logp) - jnp.exp(ref_logp), rtol=1e-5, atol=1e-6)
  as_loss = lambda theta: (jnp.exp(logp) * losses.kl_k1(jax.nn.log_softmax(theta), ref_logp)).sum()
  np.testing.assert_allclose(jax.grad(as_loss)(theta), np.zeros(4), atol=1e-6)
  assert set(losses.KL_ESTIMATORS) == {"k2", "k3"}


def test_k3_near_zero_and_far_away():
  # exp(d) - d - 1 in float32 gives 4.8e-07 or 6.0e-07 here, and infinity at 1e4.
  np.testing.assert_allclose(losses.kl_k3(jnp.zeros((1, 1)), jnp.full((1, 1), 1e-3)), [[5.001667e-07]], rtol=1e-3)
  for logp, sign in ((-1e4, -1), (-25.0, -1), (0.0, 1)):
    ref_logp_NL = jnp.full((1, 1), -1e4 if logp == 0 else 0.0)
    value, gradient = value_and_gradient(losses.kl_k3, jnp.full((1, 1), logp), ref_logp_NL)
    assert jnp.isfinite(value).all() and value > 0
    assert jnp.isfinite(gradient).all() and jnp.sign(gradient) == sign  # a descent step goes towards the reference


def mask_of(lengths, width):
  return jnp.arange(width)[None] < jnp.asarray(lengths)[:, None]


def test_normaliser_by_hand():
  # Two prompts of two rows: 1, 3, 2 and 0 tokens.
  mask_NL = mask_of([1, 3, 2, 0], 3)
  np.testing.assert_allclose(losses.normaliser(mask_NL, "token", 1, 2), np.full((4, 1), 1 / 6), rtol=1e-6)
  sequence_N1 = losses.normaliser(mask_NL, "sequence", 1, 2)
  np.testing.assert_allclose(sequence_N1[:3], [[1 / 3], [1 / 9], [1 / 6]], rtol=1e-6)  # counting the empty row: 1/4
  np.testing.assert_allclose(losses.normaliser(mask_NL, "constant", 1, 2, 10), np.full((4, 1), 1 / 40), rtol=1e-6)
  token_N1 = losses.normaliser(mask_NL, "token", 2, 2)  # prompt 0 alone, prompt 1 alone
  np.testing.assert_allclose(token_N1, [[1 / 4], [1 / 4], [1 / 2], [1 / 2]], rtol=1e-6)


def test_minibatches_are_strided_over_prompts():
  # Four prompts, two minibatches: {0, 2} with 4 tokens and {1, 3} with 6. In blocks it would be 1/3 and 1/7.
  weight_N1 = losses.normaliser(mask_of([1, 2, 3, 4], 4), "token", 2, 1)
  np.testing.assert_allclose(weight_N1, [[1 / 4], [1 / 6], [1 / 4], [1 / 6]], rtol=1e-6)


def ragged_losses(seed=0, rows=16):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=n) for n in [0, 3, 5, 0, *rng.integers(1, 6, rows - 4)]]


@pytest.mark.parametrize("minibatches", [1, 2, 4])
@pytest.mark.parametrize("how", losses.NORMALISATIONS)
def test_normalised_loss_twin_for_any_padding_and_split(how, minibatches):
  rows, group_size = ragged_losses(), 2
  expected = reference.normalised_losses(rows, how, minibatches, group_size, 7.0)
  minibatch_N = np.arange(len(rows)) // group_size % minibatches
  for width, fill in ((6, 0.0), (11, 100.0)):
    loss_NL, mask_NL = reference.padded(rows, width, fill)
    weight_N1 = losses.normaliser(jnp.asarray(mask_NL), how, minibatches, group_size, 7.0)
    assert weight_N1.shape == (len(rows), 1) and jnp.isfinite(weight_N1).all()
    sum_N = np.where(mask_NL, loss_NL * weight_N1, 0).sum(axis=-1)
    # A sum over rows: any order and any split into micro-batches gives the same.
    np.testing.assert_allclose([sum_N[minibatch_N == m].sum() for m in range(minibatches)], expected, rtol=1e-5)


def test_unequal_micro_batches_do_not_change_the_token_mean():
  # Rows of 4 tokens of loss 2 and 1 token of loss 1: mean 9/5. A mean of the micro-batches' means would be 1.5.
  loss_NL, mask_NL = reference.padded([[2.0] * 4, [1.0]], 4)
  weight_N1 = losses.normaliser(jnp.asarray(mask_NL), "token", 1, 1)
  micro = [float((mask_NL[n] * loss_NL[n] * weight_N1[n]).sum()) for n in range(2)]
  assert sum(micro) == pytest.approx(1.8)


@pytest.mark.parametrize("how", losses.NORMALISATIONS)
def test_normaliser_is_the_same_on_devices_as_on_one(how):
  mask_NL = mask_of([1, 2, 3, 4, 5, 0, 2, 1, 4, 4, 1, 1, 0, 2, 3, 5], 5)
  whole = losses.normaliser(mask_NL, how, 2, 2, 3.0)
  assert len(np.unique(np.round(whole, 6))) > (1 if how != "constant" else 0)

  def on_device(mask_NL):
    return losses.normaliser(mask_NL, how, 2, 2, 3.0, all_sum=lambda x: jax.lax.psum(x, "devices"))

  shards = jax.vmap(on_device, axis_name="devices")(mask_NL.reshape(4, 4, 5))
  np.testing.assert_allclose(shards.reshape(16, 1), whole, rtol=1e-6)


def test_batches_without_any_token_have_finite_weights():
  for how in losses.NORMALISATIONS:
    assert jnp.isfinite(losses.normaliser(jnp.zeros((4, 3), bool), how, 2, 2, 5.0)).all()


def test_normaliser_errors():
  mask_NL = jnp.ones((6, 2), bool)
  with pytest.raises(UserError, match="'tokens'.*did you mean 'token'"):
    losses.normaliser(mask_NL, "tokens", 1, 2)
  with pytest.raises(UserError, match="optimizer.minibatches: found 2, allowed: a divisor of the 3 prompts"):
    losses.normaliser(mask_NL, "token", 2, 2)
  for constant in (None, 0, -1.0):
    with pytest.raises(UserError, match="positive constant"):
      losses.normaliser(mask_NL, "constant", 1, 2, constant)


def test_ratio_stats_by_hand():
  logp_NL, behaviour_logp_NL, _ = at_ratios([0.5, 1.5, 0.5, 1.5, 8.0], 1.0)
  coef_NL = jnp.array([[1.0, 1.0, -1.0, -1.0, 1.0]])  # stopped: 1.5 with A > 0 and 0.5 with A < 0
  mask_NL = jnp.array([[True, True, True, True, False]])
  rows = (behaviour_logp_NL, mask_NL, coef_NL, LOW, HIGH)
  for name in ("ppo_clip", "cispo"):
    stats = losses.ratio_stats(name, logp_NL, *rows)
    np.testing.assert_allclose(stats["policy/ratio_max"], 1.5, rtol=1e-6)
    assert stats["policy/clip_fraction"] == (2, 4)  # counting every ratio outside of the bounds: 4
  for name in ("reinforce", "truncated_importance"):  # they stop nothing
    assert set(losses.ratio_stats(name, logp_NL, *rows)) == {"policy/ratio_max"}
  empty = losses.ratio_stats("cispo", logp_NL, behaviour_logp_NL, mask_NL & False, coef_NL, LOW, HIGH)
  assert empty == {"policy/ratio_max": 0, "policy/clip_fraction": (0, 0)}
  stat_sum = lambda logp_NL: sum(jax.tree.leaves(losses.ratio_stats("cispo", logp_NL, *rows)))
  assert not jax.grad(stat_sum)(logp_NL).any()


def test_sampler_stats_by_hand():
  logp_NL, sampled_logp_NL, _ = at_ratios([0.5, 1.5, 0.5, 1.5, 8.0], 1.0)
  mask_NL = jnp.array([[True, True, True, True, False]])
  stats = losses.sampler_stats(logp_NL, sampled_logp_NL, mask_NL)
  # KL of the sampling policy: ρ - 1 - log ρ, twice 0.193147 and twice 0.094535.
  np.testing.assert_allclose(stats["policy/kl"], (0.575364, 4), rtol=1e-5)
  np.testing.assert_allclose(stats["policy/mismatch"], (2 * 0.693147 + 2 * 0.405465, 4), rtol=1e-5)
  stat_sum = lambda x: sum(jax.tree.leaves(losses.sampler_stats(x, sampled_logp_NL, mask_NL)))
  assert not jax.grad(stat_sum)(logp_NL).any()


def test_entropy_drift_is_the_derivative_of_the_entropy():
  """Every action of a state once, weighed by its probability: the expectation over what is sampled."""
  rng = np.random.default_rng(0)
  logits, advantages = rng.normal(size=7), rng.normal(size=7)
  entropy = lambda logits: -np.sum(reference.softmax(logits) * np.log(reference.softmax(logits)))
  step = lambda size: entropy(logits + size * advantages)  # natural gradient: the logits move by A
  derivative = (step(1e-5) - step(-1e-5)) / 2e-5
  np.testing.assert_allclose(reference.entropy_drift(logits, advantages), derivative, rtol=1e-6)

  p = reference.softmax(logits)
  logp_NL, entropy_NL = jnp.log(jnp.array([p])), jnp.full((1, 7), entropy(logits))
  rows = (jnp.array([p * advantages]), jnp.array([p]))
  drift, weight = losses.entropy_drift(logp_NL, entropy_NL, *rows, jnp.ones((1, 7), bool))
  np.testing.assert_allclose((drift, weight), (derivative, 1), rtol=1e-5)
  # A baseline changes nothing, and what is off the mask counts for nothing.
  shifted, _ = losses.entropy_drift(logp_NL, entropy_NL, rows[0] + 3 * rows[1], rows[1], jnp.ones((1, 7), bool))
  np.testing.assert_allclose(shifted, drift, rtol=1e-4, atol=1e-6)
  assert losses.entropy_drift(logp_NL * jnp.nan, entropy_NL, *rows, jnp.zeros((1, 7), bool)) == (0, 0)
  total = lambda logp_NL: sum(losses.entropy_drift(logp_NL, entropy_NL, *rows, jnp.ones((1, 7), bool)))
  assert not jax.grad(total)(logp_NL).any()


@pytest.mark.parametrize("name", reference.AGGREGATION_NAMES)
def test_two_term_gradient_of_an_enumerable_policy(name):
  toy = reference.ToyPolicy()
  exact = reference.central_difference(lambda theta: toy.objective(name, theta), toy.theta, step=1e-5)
  trace_term, answer_term = toy.two_terms(name, toy.theta)
  np.testing.assert_allclose(trace_term + answer_term, exact, atol=1e-6)
  # Neither term alone is the gradient: the test would see one missing.
  assert np.abs(trace_term - exact).max() > 1e-3 and np.abs(answer_term - exact).max() > 1e-3


@pytest.mark.parametrize("name", reference.AGGREGATION_NAMES)
def test_our_losses_have_that_gradient(name):
  """Rewards, weights and losses put together, differentiated by jax over all traces, against differences of J."""
  toy = reference.ToyPolicy()
  exact = reference.central_difference(lambda theta: toy.objective(name, theta), toy.theta, step=1e-5)
  tokens = [toy.chosen(k) for k in range(9)]

  def log_probs(theta, part):
    log_softmax = lambda features, symbol: jax.nn.log_softmax(features @ theta)[symbol]
    return jnp.stack([jnp.stack([log_softmax(*token) for token in row[part]]) for row in tokens])

  def loss(theta):
    trace_logp_NR, answer_logp_NA = log_probs(theta, 0), log_probs(theta, 1)
    p_N1 = jax.lax.stop_gradient(jnp.exp(trace_logp_NR.sum(axis=-1, keepdims=True)))
    scores = (jax.lax.stop_gradient(answer_logp_NA), jnp.ones((9, 3), bool), jnp.log(toy.base)[None].repeat(9, 0))
    trace_coef_NR = (p_N1 * rewards.aggregate(name, *scores)[:, None]).repeat(2, axis=1)
    answer_coef_NA = p_N1 * rewards.answer_weights(name, *scores)
    trace_loss_NR = losses.reinforce(trace_logp_NR, trace_coef_NR)
    return trace_loss_NR.sum() + losses.supervised(answer_logp_NA, answer_coef_NA).sum()

  with jax.enable_x64(True):
    np.testing.assert_allclose(-jax.grad(loss)(jnp.asarray(toy.theta)), exact, atol=1e-6)
