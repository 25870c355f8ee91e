"""Reinforcement learning with verifiable rewards: each method against plain lists."""

import dataclasses
import functools

import completions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from completions import KINDS, MARKER_IDS, PROMPTS, SAMPLES, B, G, R, collected, tools

from nrt_jax.algorithms import rlvr
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.arrays import Rollouts, repeat_rows
from nrt_jax.errors import UserError

ROWS = ("grpo", "dr_grpo", "dapo", "rloo", "gspo")
NO_REFERENCE = {"reference": "none", "kl_coef": 0.0}


def test_token_match():
  found = rlvr.token_match(MARKER_IDS, repeat_rows(jax.tree.map(jnp.asarray, PROMPTS), G), completions.rollouts())
  np.testing.assert_array_equal(found, [kind == "right" for group in KINDS for kind in group])


def test_any_end_token_ends_a_right_answer_and_none_is_wrong():
  """Prompt 1's reference is [4, EOS]; END is another end token of the model."""
  END, word, EOS = 17, 4, toy.EOS
  prompts_N = toy.prompts(1).replace(answer_BA=jnp.array([[word, EOS, 0]]), answer_length_B=jnp.array([2]))
  tails = [[word, EOS], [word, END], [word, word], [word], [END], [EOS, END], [word, word, END]]
  token_NR = np.zeros((len(tails), 8), np.int32)
  for n, tail in enumerate(tails):
    token_NR[n, : 3 + len(tail)] = [1, *MARKER_IDS, *tail]
  ended_N = jnp.array([tail[-1] in (EOS, END) for tail in tails])
  rollouts = Rollouts(jnp.array(token_NR), jnp.array([3 + len(t) for t in tails]), None, ended_N, None)
  match = functools.partial(rlvr.token_match, MARKER_IDS, repeat_rows(prompts_N, len(tails)))
  np.testing.assert_array_equal(match(rollouts, (EOS, END)), [True, True] + [False] * 5)
  np.testing.assert_array_equal(match(rollouts), [True] + [False] * 6)
  assert not match(rollouts.replace(ended_N=jnp.zeros_like(ended_N)), (EOS, END)).any()
  cut = repeat_rows(prompts_N.replace(answer_BA=jnp.array([[word, word, 0]])), len(tails))  # prompt.overlong_answer
  assert not rlvr.token_match(MARKER_IDS, cut, rollouts, (EOS, END)).any()


def test_token_prefix():
  """References with and without an end token; own answers that are shorter, as long, longer, wrong, or not there."""
  END, EOS = 17, toy.EOS
  references = [[4, 5, EOS], [4, 5, 6]]
  tails = [[4], [4, 5], [4, 5, 6], [5], [4, 6], [], [4, 5, EOS]]
  completions = [(ids, tail, end) for ids in references for tail in tails for end in (EOS, END, None)]
  prompts_N, N = toy.prompts(1), len(completions)
  token_NR, length_N = np.full((N, 9), 4, np.int32), np.zeros(N, np.int32)
  for n, (_, tail, end) in enumerate(completions):
    text = [1, *MARKER_IDS, *tail, *([] if end is None else [end])]
    token_NR[n, : len(text)], length_N[n] = text, len(text)
  prompts_N = repeat_rows(prompts_N, N).replace(
    answer_BA=jnp.array([c[0] for c in completions]), answer_length_B=jnp.full(N, 3)
  )
  ended_N = jnp.array([end is not None for *_, end in completions])
  found = rlvr.token_prefix(MARKER_IDS, prompts_N, Rollouts(token_NR, length_N, None, ended_N, None), (EOS, END))
  expected = [reference.begins(tail, end is not None, ids, (EOS, END)) for ids, tail, end in completions]
  np.testing.assert_array_equal(found, expected)
  assert 8 <= sum(expected) <= N - 8
  nowhere = Rollouts(np.full((N, 9), 4, np.int32), length_N, None, ended_N, None)
  assert not rlvr.token_prefix(MARKER_IDS, prompts_N, nowhere, (EOS, END)).any()


@pytest.mark.parametrize(
  "name,over,minibatches",
  [
    *((name, {}, 1) for name in ROWS),
    ("grpo", {"format_reward": 0.25, "wrong_reward": -0.5, "scale": "none"}, 2),
    ("dapo", {"mask_unended": False, "long_buffer": 4}, 1),
    ("dapo", {"normalisation": "sequence"}, 2),
  ],
)
def test_rows_against_lists(name, over, minibatches):
  config = ALGORITHMS[name].config(**NO_REFERENCE, **over)
  made = collected(name, config, minibatches=minibatches)
  expected = reference.rlvr_rows(config, SAMPLES, G, R, minibatches)
  np.testing.assert_allclose(made.samples["reward"], [row["reward"] for row in expected], rtol=1e-6)
  np.testing.assert_allclose(made.samples["advantage"], [row["advantage"] for row in expected], rtol=1e-5, atol=1e-6)
  for n, (row, sample) in enumerate(zip(expected, SAMPLES)):
    columns = np.flatnonzero(np.asarray(made.batch.sampled_mask_NL[n]))
    np.testing.assert_array_equal(made.batch.token_NL[n][columns], sample["sampled"])
    np.testing.assert_allclose(made.batch.behaviour_logp_NL[n][columns], sample["logp"], rtol=1e-6)
    np.testing.assert_allclose(made.batch.trace_coef_NL[n][columns], row["coef"], rtol=1e-5, atol=1e-7)
    assert np.abs(made.batch.trace_coef_NL[n]).sum() == pytest.approx(np.abs(row["coef"]).sum(), rel=1e-5)  # no others
  assert np.abs(made.batch.trace_coef_NL).max() > 1e-3


def test_advantages_by_hand():
  """Group 0 is 1, 0, 0, 0: mean 1/4, unbiased std 1/2. Group 2 is 1, 1, 1, 0; group 3 all right."""
  by_row = {
    "grpo": [[1.5, -0.5, -0.5, -0.5], [0.5, 0.5, 0.5, -1.5]],
    "dr_grpo": [[0.75, -0.25, -0.25, -0.25], [0.25, 0.25, 0.25, -0.75]],
    "rloo": [[1, -1 / 3, -1 / 3, -1 / 3], [1 / 3, 1 / 3, 1 / 3, -1]],
    "gspo": [[1.5, -0.5, -0.5, -0.5], [0.5, 0.5, 0.5, -1.5]],
    # Rewards 1 and -1: mean -1/2, std 1. In group 2 the wrong one hit the limit: left out, and the rest is flat.
    "dapo": [[1.5, -0.5, -0.5, -0.5], [0, 0, 0, 0]],
  }
  for name, (first, third) in by_row.items():
    made = collected(name, ALGORITHMS[name].config(**NO_REFERENCE))
    advantage = np.asarray(made.samples["advantage"]).reshape(B, G)
    np.testing.assert_allclose(advantage[[0, 2]], [first, third], rtol=1e-5, atol=1e-6, err_msg=name)
    assert not advantage[[1, 3]].any()


def test_dapo_normalises_by_the_tokens_that_count():
  """Only group 0 counts: each token weighs 1 over its tokens, whatever else was sampled."""
  made = collected("dapo", ALGORITHMS["dapo"].config())
  tokens = sum(len(s["sampled"]) for s in SAMPLES[:G])
  np.testing.assert_allclose(made.batch.trace_weight_NL.max(), 1 / tokens, rtol=1e-6)
  assert not made.batch.trace_mask_NL[G:].any()
  with_penalty = collected("dapo", ALGORITHMS["dapo"].config(mask_unended=False, long_buffer=4))
  # Penalties differ in the hopeless group 1, but its verdicts don't: no signal. Group 2 has a wrong one now.
  assert not with_penalty.batch.trace_mask_NL[G : 2 * G].any() and with_penalty.batch.trace_mask_NL[2 * G :].any()
  np.testing.assert_array_equal(with_penalty.samples["reward"][:G], [1, -1, -1, -1])


def test_metrics():
  sums = collected("dr_grpo", ALGORITHMS["dr_grpo"].config()).sums
  mean = {name: float(value[0] / value[1]) for name, value in sums.items() if isinstance(value, tuple)}
  assert mean["completion/accuracy"] == pytest.approx(8 / 16)
  assert mean["reward/mean"] == pytest.approx(8 / 16)
  lengths, traces = [], []
  for s in SAMPLES:
    text = s["sampled"][:-1] if s["ended"] else s["sampled"]
    starts = [t for t in range(len(text)) if tuple(text[t : t + 2]) == MARKER_IDS]
    lengths.append(len(text))
    traces.append(starts[0] if starts else len(text))
  assert mean["completion/length_mean"] == pytest.approx(np.mean(lengths))
  assert mean["trace/length_mean"] == pytest.approx(np.mean(traces)) and sums["trace/length_max"] == max(traces)


def test_kl_in_loss_and_in_reward():
  """GRPO's k3 goes to the loss; RLOO's k1, summed over the completion, is subtracted from the reward."""
  shift = 0.3

  def score_batch(params, batch):
    return jnp.where(batch.trace_mask_NL, batch.behaviour_logp_NL - shift, 0)

  grpo = collected("grpo", ALGORITHMS["grpo"].config(), score_batch=score_batch)
  np.testing.assert_allclose(grpo.batch.reference_logp_NL, score_batch(None, grpo.batch))

  def total(config):
    logp_NL = grpo.batch.behaviour_logp_NL
    given = tools(log_probs=lambda *_, **__: (logp_NL, 0 * logp_NL, logp_NL))
    return float(ALGORITHMS["grpo"].loss(given, config, {}, grpo.batch).total)

  base = ALGORITHMS["grpo"].config()
  # k3 = r - 1 - log r with r = e^-0.3; every row has tokens, so that their normalised weights add up to 1.
  expected = 0.04 * (np.exp(-shift) - 1 + shift)
  assert total(base) - total(dataclasses.replace(base, kl_coef=0.0)) == pytest.approx(expected, rel=1e-4)

  config = ALGORITHMS["rloo"].config(reference="frozen", kl_coef=0.1, center="none")
  rloo = collected("rloo", config, score_batch=score_batch)
  expected = [s["right"] - 0.1 * shift * len(s["sampled"]) for s in SAMPLES]
  np.testing.assert_allclose(rloo.samples["advantage"], expected, rtol=1e-4, atol=1e-5)


def test_labels_of_the_host_are_the_reward():
  label_N = jnp.linspace(0, 1, B * G)
  config = ALGORITHMS["rloo"].config(verifier="host", wrong_reward=-1.0)
  made = collected("rloo", config, host_label_N=label_N)
  np.testing.assert_allclose(made.samples["reward"], 2 * label_N - 1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [*ROWS, "nft"])
def test_equal_labels_give_no_gradient(name):
  """Whatever the common label is; off-policy too."""
  over = {"wrong_reward": -0.3} if name != "nft" else {}
  for label in (0.0, 0.7, 1.0):
    config = ALGORITHMS[name].config(verifier="host", **NO_REFERENCE, **over)
    made = collected(name, config, host_label_N=jnp.full(B * G, label))
    np.testing.assert_array_equal(made.samples["advantage"], 0)

    def loss(logp_NL, made=made, config=config):
      given = tools(log_probs=lambda *_, **__: (logp_NL, -logp_NL, logp_NL))
      return ALGORITHMS[name].loss(given, config, {}, made.batch).total

    assert not jax.grad(loss)(made.batch.behaviour_logp_NL * 1.3).any()


@pytest.mark.parametrize(
  "over,text",
  [
    ({"verifier": "none"}, "algorithm.verifier: found 'none', allowed: .*host, .*token_match"),
    ({"wrong_reward": 1.0}, "algorithm.wrong_reward: found 1.0, allowed: below 1"),
    ({"reference": "none"}, "algorithm.kl_coef: above 0 with reference 'none'"),
  ],
)
def test_errors(over, text):
  with pytest.raises(UserError, match=text):
    ALGORITHMS["grpo"].config(**over)


@pytest.mark.parametrize("labels,differ", [((0.5, 0.5000001), False), ((0.5, 0.50001), True), ((0.0, 1e-9), True)])
def test_labels_that_differ_by_rounding_do_not_vary(labels, differ):
  found = rlvr.varies(jnp.array(labels, jnp.float32), jnp.ones(2, bool), 2)
  np.testing.assert_array_equal(found, [differ] * 2)
