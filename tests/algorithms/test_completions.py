"""RLPR and NOVER, which put the gradient on whole completions: each against its paper's equations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy

from nrt_jax import rows
from nrt_jax.algorithms import completions as completions_page
from nrt_jax.algorithms import policy_gradient as pg
from nrt_jax.algorithms import verifier_free
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.arrays import Rollouts, repeat_rows
from nrt_jax.objectives import rewards
from nrt_jax.rollout import scoring
from nrt_jax.step import programs
from nrt_jax.step.state import States, TrainState

MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)
MARKER_IDS = (toy.MARKER, toy.SECOND_MARKER)
B, G = 6, 4
PROMPTS = toy.prompts(B, answer_width=3)


# ------------------------------------------------------------------------------------------- whole completions


def test_find_marker_wants_all_of_it_within_the_length():
  m, s = MARKER_IDS
  token_NR = jnp.array([[1, m, s, 2], [m, s, m, s], [m, 1, m, s], [1, 2, m, s], [1, 2, 3, m], [m, s, 0, 0]])
  length_N = jnp.array([4, 4, 4, 3, 4, 2])
  np.testing.assert_array_equal(rows.find_marker(token_NR, length_N, MARKER_IDS), [1, 0, 2, 4, 4, 0])
  np.testing.assert_array_equal(rows.find_marker(token_NR, length_N, (m,)), [1, 0, 0, 2, 3, 0])


@functools.cache
def completions():
  # 8, 18 are two words that the toy model happens to write one after the other: a marker that some completions have.
  form = toy.form((8, 18), (8, toy.EOS))
  setup = toy.setup(model=MODEL, prompt_format=form, samples_per_prompt=G, sampling__max_trace_length=9)
  tools, params = programs.make_tools(setup), toy.params(MODEL)
  return tools, params, jax.jit(tools.complete)(params, PROMPTS, jax.random.key(3))


def test_the_reference_answer_is_scored_in_place_of_the_models_own():
  tools, params, (rollouts, scores, _) = completions()
  at_N = np.asarray(rows.find_marker(rollouts.token_NR, rollouts.length_N, tools.marker_ids))
  np.testing.assert_array_equal(rollouts.marker_N, at_N < rollouts.length_N)
  for each_N in (rollouts.marker_N, rollouts.ended_N):
    assert each_N.any() and not each_N.all()
  assert (at_N + 2 < rollouts.length_N).any()  # own answers behind the marker, which must be out of sight
  prompts_N = repeat_rows(PROMPTS, G)
  trace_length_N = jnp.minimum(at_N, rollouts.length_N - rollouts.ended_N)
  spliced = rows.splice(
    prompts_N.prompt_BP, prompts_N.prompt_length_B, rollouts.token_NR, trace_length_N, tools.marker_ids,
    prompts_N.answer_BA, prompts_N.answer_length_B, toy.PAD,
  )  # fmt: skip
  whole, _ = scoring.row_log_probs(params, MODEL, spliced.token_NL, spliced.position_NL, 1)
  np.testing.assert_allclose(scores.answer_logp_NA, whole[:, -3:], atol=1e-4)
  np.testing.assert_allclose(scores.marker_logp_NM, whole[:, -5:-3], atol=1e-4)


def test_completion_rows_train_every_sampled_token():
  tools, params, (rollouts, _, _) = completions()
  batch = pg.completion_batch(tools, None, repeat_rows(PROMPTS, G), rollouts)
  for n in range(B * G):
    b, length = n // G, rollouts.length_N[n]
    prompt = PROMPTS.prompt_BP[b][-PROMPTS.prompt_length_B[b] :]
    valid = np.asarray(batch.position_NL[n]) >= 0
    np.testing.assert_array_equal(batch.token_NL[n][valid], [*prompt, *rollouts.token_NR[n, :length]])
    np.testing.assert_array_equal(batch.trace_mask_NL[n][valid], [False] * len(prompt) + [True] * int(length))
    np.testing.assert_array_equal(batch.behaviour_logp_NL[n][valid][len(prompt) :], rollouts.logp_NR[n, :length])
  whole = tools.log_probs(params, batch)[0]
  np.testing.assert_allclose(jnp.where(batch.trace_mask_NL, whole, 0), batch.behaviour_logp_NL, atol=1e-4)


# -------------------------------------------------------------------------------------------------- RLPR, NOVER


def judged(name, c, formatted, lengths, base, G, **over):
  """The rewards of `judge` for rows of probabilities; their magnitudes have a test of their own."""
  config, judge = ALGORITHMS[name].config(**over), ALGORITHMS[name].collect.args[0]
  tools = programs.make_tools(toy.setup(name, samples_per_prompt=G))
  log_NA = lambda x: jnp.log(jnp.asarray(x, jnp.float32))  # noqa: E731
  mask_NA = jnp.ones(np.shape(c), bool)
  scored = verifier_free.Scored(log_NA(c), log_NA(base), log_NA(base), mask_NA)
  length_N = jnp.asarray(lengths, jnp.int32)
  nowhere_N = jnp.zeros(length_N.shape, bool)
  traces = Rollouts(jnp.zeros((len(c), 1), jnp.int32), length_N, jnp.zeros((len(c), 1)), nowhere_N, nowhere_N)
  return judge(tools, config, scored, traces, jnp.asarray(formatted))[0]


def test_rlpr_by_hand():
  # Means .6 .3 .1, .2 without trace: .4 .1 and, clipped, 0; times .9, and .1 for the format. No format: 0, though .9.
  c, base = [[0.8, 0.4], [0.2, 0.4], [0.1, 0.1], [0.9, 0.9]], [[0.1, 0.3]] * 4
  reward_N = judged("rlpr", c, [True, True, True, False], [1] * 4, base, 4)
  np.testing.assert_allclose(reward_N, [0.46, 0.19, 0.1, 0], atol=1e-6)


def test_rlpr_reward_lies_between_0_and_1():
  rng = np.random.default_rng(0)
  c, base = (rng.beta(0.3, 0.3, (400, 5)).clip(1e-6, 1) for _ in range(2))
  c[:4], base[:4] = 1, 1e-6
  reward_N = np.asarray(judged("rlpr", c, rng.random(400) < 0.7, [1] * 400, base, 4))
  assert reward_N.min() == 0 and 0.99 < reward_N.max() <= 1


@pytest.mark.parametrize("ngram,times", [(1, 2), (1, 4), (2, 3), (3, 2), (10, 10)])
def test_repeats_twin(ngram, times):
  rng = np.random.default_rng(ngram)
  token_NR, length_N = rng.integers(0, 3, (60, 24)), rng.integers(0, 25, 60)
  token_NR[:20] = np.tile(rng.integers(0, 3, (20, 2)), 12)  # of period 2
  found = rewards.repeats(jnp.asarray(token_NR, jnp.int32), jnp.asarray(length_N, jnp.int32), ngram, times)
  expected = [reference.repeats(row[:length].tolist(), ngram, times) for row, length in zip(token_NR, length_N)]
  np.testing.assert_array_equal(found, expected)
  assert ngram == 10 or 5 < sum(expected) < 60


def test_ten_tokens_ten_times():
  # 19 equal tokens hold ten windows of ten, 18 hold nine; what stands beyond the length does not count.
  token_NR = jnp.zeros((3, 30), jnp.int32)
  np.testing.assert_array_equal(rewards.repeats(token_NR, jnp.array([18, 19, 30]), 10, 10), [False, True, True])
  assert not rewards.repeats(token_NR[:, :18], jnp.array([18, 18, 18]), 10, 10).any()


def test_rlpr_punishes_repetition():
  """By 1, in its own completion alone, whether it is well formatted or not."""
  tools, params, rolled = completions()
  policy = TrainState(jnp.int32(0), jnp.int32(0), params, (), jax.random.key(0))
  rewards_of = {}
  for penalty in (0.0, 1.0):
    config = ALGORITHMS["rlpr"].config(repetition_penalty=penalty, repetition_ngram=1, repetition_times=3)
    states = States(policy, params, ALGORITHMS["rlpr"].memory(config))
    given = tools._replace(complete=lambda *_: rolled)
    made = ALGORITHMS["rlpr"].collect(given, config, states, PROMPTS, jax.random.key(0))
    rewards_of[penalty] = np.asarray(made.samples["reward"])
  lists = [rolled[0].token_NR[n, : rolled[0].length_N[n]].tolist() for n in range(B * G)]
  expected = np.array([reference.repeats(tokens, 1, 3) for tokens in lists])
  np.testing.assert_allclose(rewards_of[0.0] - rewards_of[1.0], expected, atol=1e-6)
  share = made.sums["completion/repetitive_fraction"]
  assert 2 < expected.sum() < B * G and float(share[0] / share[1]) == pytest.approx(expected.mean())


def test_std_filter_twin():
  rng, config = np.random.default_rng(1), ALGORITHMS["rlpr"].config(std_filter=0.9)
  tools = programs.make_tools(toy.setup("rlpr", samples_per_prompt=G))
  rewards_of_steps = rng.uniform(size=(14, 6 * G)) * np.repeat(rng.uniform(size=(14, 6)), G, axis=1)
  stds = [[np.std(step[b * G : b * G + G], ddof=1) for b in range(6)] for step in rewards_of_steps]
  expected = reference.std_filter(stds, 0.9, 0.99, 6, 11)
  memory = ALGORITHMS["rlpr"].memory(config)
  for step, (kept, average) in zip(rewards_of_steps, expected):
    kept_N, std_sum = completions_page.filter_by_std(config, jnp.asarray(step, jnp.float32), G, memory)
    memory = completions_page.follow_std(tools, config, std_sum, memory)
    np.testing.assert_array_equal(kept_N, np.repeat(kept, G))
    np.testing.assert_allclose(memory["std"], average, rtol=1e-5)
  assert not all(expected[-1][0]) and all(expected[9][0])  # the filter was felt, but not before its start


def test_nover_by_hand():
  # Mean log c = -1 -1 -3, traces of 1, 10, 10 tokens: log P = 1, 1 / 2, 3 / 2. Ranks 2/3 1 1/3 of three valid ones.
  # The first is shorter than the third and less perplexed: 1/2. The second is as long as the third: 0. The third: 0.
  c = np.exp([[-1, -1], [-1.5, -0.5], [-3, -3], [-0.1, -0.1]])
  reward_N = judged("nover", c, [True, True, True, False], [1, 10, 10, 2], np.ones((4, 2)), 4)
  np.testing.assert_allclose(reward_N, [1 + 2 / 3 + 1 / 2, 1 + 1, 1 + 1 / 3, 0], atol=1e-6)


def test_nover_ranks_twin_and_permutation():
  rng = np.random.default_rng(2)
  perplexity, length, valid = rng.integers(0, 5, 24) / 4.0, rng.integers(1, 4, 24), rng.random(24) < 0.7
  valid[:6], valid[6:12] = False, [True, False, False, False, False, False]

  def terms(order):
    arrays = [jnp.asarray(x[order]) for x in (perplexity, length, valid)]
    return [np.asarray(x) for x in completions_page.rank_terms(*arrays, 6)]

  rank, efficiency = terms(np.arange(24))
  for g in range(4):
    group = slice(6 * g, 6 * g + 6)
    expected = reference.nover_terms(perplexity[group], length[group], valid[group])
    np.testing.assert_allclose(np.where(valid, rank, 0)[group], expected[0], rtol=1e-6)
    np.testing.assert_allclose(np.where(valid, efficiency, 0)[group], expected[1], rtol=1e-6)
  order = np.concatenate([6 * g + rng.permutation(6) for g in range(4)])
  for before, after in zip((rank, efficiency), terms(order)):
    np.testing.assert_array_equal(before[order][valid[order]], after[valid[order]])


@pytest.mark.parametrize("name", ["rlpr", "nover"])
def test_the_own_answer_has_the_policy_gradient(name):
  """Every sampled token carries its completion's advantage: trace, marker, own answer, end token."""
  tools, params, rolled = completions()
  tools = tools._replace(complete=lambda *_: rolled)
  config = ALGORITHMS[name].config(normalisation="constant")
  policy = TrainState(jnp.int32(0), jnp.int32(0), params, (), jax.random.key(0))
  states = States(policy, params, ALGORITHMS[name].memory(config))
  made = jax.jit(lambda states: ALGORITHMS[name].collect(tools, config, states, PROMPTS, jax.random.key(0)))(states)
  columns = np.arange(made.batch.token_NL.shape[1])
  for n in range(B * G):
    sampled = columns >= len(columns) - rolled[0].length_N[n]  # rows end with their completion
    expected = np.where(sampled, made.samples["advantage"][n] / (B * G), 0)
    np.testing.assert_allclose(made.batch.trace_coef_NL[n], expected, rtol=1e-6)
  assert not made.batch.answer_coef_NL.any() and not made.batch.format_coef_NL.any()
  if name == "nover":  # its reference is the policy itself here: scored by another pass, the answers are as likely
    np.testing.assert_allclose(made.samples["answer_logp"], rolled[1].answer_logp_NA, atol=1e-4)


def test_rlpr_steps_remember_the_std():
  """The moving average is part of the program's state."""
  over = {"algorithm__std_average_start": 1, "algorithm__std_filter_start": 3}
  setup = toy.setup("rlpr", model=MODEL, samples_per_prompt=G, sampling__max_trace_length=9, **over)
  step = programs.build_train_step(setup)
  states = programs.init_states(setup, jax.tree.map(jnp.copy, toy.params(MODEL)), jax.random.key(2))
  prompts, averages = toy.prompts(8, answer_width=3), []
  for _ in range(3):
    states, metrics, _ = step(states, prompts)
    averages.append(float(metrics["reward/std_average"]))
    assert all(np.isfinite(v) for v in metrics.values())
  assert int(states.memory["steps"]) == 3 and len(set(averages)) == 3
  np.testing.assert_allclose(states.memory["std"], averages[-1], rtol=1e-6)
