"""Coefficients of NRT and sft, token by token, against plain Python lists; every config key has an effect."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from cases import CASES

from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.arrays import AnswerScores, Rollouts
from nrt_jax.errors import UserError
from nrt_jax.step import programs
from nrt_jax.step.state import States, TrainState

MARKER_IDS = (toy.MARKER, toy.SECOND_MARKER)
HAND_B, HAND_G, HAND_R, HAND_A = 4, 3, 4, 3
# How each row's trace ends: emitted at once, emitted later, another stop token, the limit.
HAND_ENDS = [("marker", 1), ("marker", 3), (None, 4), ("other", 1), ("other", 4), ("marker", 4)] * 2


HAND_FLAT = 0  # the group of which no trace makes the answer any likelier


class Hand:
  """A batch made by hand, with random log-probabilities: as arrays for the library, as lists for the twin."""

  def __init__(self, seed=0):
    rng = np.random.default_rng(seed)
    self.prompts = toy.prompts(HAND_B, seed=seed, answer_width=HAND_A, trace_width=2)
    self.lists = []
    token_NR = np.full((HAND_B * HAND_G, HAND_R), toy.PAD, np.int32)
    logp_NR = np.zeros(token_NR.shape, np.float32)
    answer_NA = np.zeros((HAND_B * HAND_G, HAND_A), np.float32)
    marker_NM = rng.uniform(-3, -0.1, (HAND_B * HAND_G, 2)).astype(np.float32)
    bases = {kind: rng.uniform(0.02, 0.9, (HAND_B, HAND_A)) for kind in ("current", "reference", "prompt")}
    for n, (stop, length) in enumerate(HAND_ENDS):
      b = n // HAND_G
      answer = self.prompts.answer_BA[b, : self.prompts.answer_length_B[b]].tolist()
      sampled = rng.integers(0, toy.MARKER, length).tolist()
      if stop:
        sampled[-1] = toy.MARKER if stop == "marker" else toy.EOS
      logp, c = rng.uniform(-3, -0.1, length), rng.uniform(0.05, 0.95, len(answer))
      if (stop and length == 1) or b == HAND_FLAT:
        c = bases["current"][b, : len(answer)]  # an empty trace gains nothing; in one group no trace does
      token_NR[n, :length], logp_NR[n, :length], answer_NA[n, : len(answer)] = sampled, logp, np.log(c)
      prompt = self.prompts.prompt_BP[b][-self.prompts.prompt_length_B[b] :].tolist()
      bases_of_row = {kind: base[b, : len(answer)] for kind, base in bases.items()}
      self.lists.append({
        "prompt": prompt, "sampled": sampled, "logp": logp, "stop": stop, "answer": answer, "c": c,
        "marker_logp": marker_NM[n], "bases": bases_of_row,
      })  # fmt: skip
    ends, lengths = zip(*HAND_ENDS)
    ended_N, marker_N = np.array([e is not None for e in ends]), np.array([e == "marker" for e in ends])
    self.rollouts = Rollouts(token_NR, np.array(lengths, np.int32), logp_NR, ended_N, marker_N)
    self.scores = AnswerScores(marker_NM, answer_NA)
    valid = np.arange(HAND_A)[None] < self.prompts.answer_length_B[:, None]
    self.empty = {
      kind: AnswerScores(np.zeros((HAND_B, 2), np.float32), np.where(valid, np.log(base), 0).astype(np.float32))
      for kind, base in bases.items()
    }
    width = 5 + HAND_R + 2 + HAND_A
    self.shift_NL = rng.uniform(-0.6, 0.6, (HAND_B * HAND_G, width)).astype(np.float32)  # how far the policy has moved
    self.reference_NL = rng.uniform(-3, -0.1, (HAND_B * HAND_G, width)).astype(np.float32)
    self.fresh_NL = rng.uniform(-3, -0.1, (HAND_B * HAND_G, width)).astype(np.float32)

  def tools(self, minibatches=1):
    rolled = jax.tree.map(jnp.asarray, (self.rollouts, self.scores, self.empty["current"]))
    over = {"samples_per_prompt": HAND_G, "optimizer__minibatches": minibatches}
    setup = toy.setup(prompt_format=toy.form(MARKER_IDS), sampling__max_trace_length=HAND_R, **over)
    return programs.make_tools(setup)._replace(
      rollout=lambda *_: rolled,
      score_empty_trace=lambda *_: jax.tree.map(jnp.asarray, self.empty["reference"]),
      score_bare=lambda *_: jax.tree.map(jnp.asarray, self.empty["prompt"]),
      log_probs=None,
      score_batch=lambda *_: jnp.asarray(self.reference_NL),
      score_start=lambda _, batch: batch,
    )

  def policy_logp(self, batch):
    """Log-probabilities of an updated policy: near the behaviour policy's on trace tokens, anything elsewhere."""
    moved = batch.behaviour_logp_NL + self.shift_NL[: len(batch.token_NL)]
    return jnp.where(batch.behaviour_logp_NL != 0, moved, self.fresh_NL[: len(batch.token_NL), : moved.shape[1]])

  def outcome(self, name, config, minibatches=1):
    """The batch of `collect`, the metrics of `loss`, and the derivative of the loss by each log-probability."""
    algorithm, tools = ALGORITHMS[name], self.tools(minibatches)
    if not algorithm.samples_traces:
      tools = tools._replace(samples_per_prompt=1)
    prompts = jax.tree.map(jnp.asarray, self.prompts)
    policy = TrainState(jnp.int32(0), jnp.int32(0), {}, (), jax.random.key(0))
    collected = algorithm.collect(tools, config, States(policy, {}), prompts, jax.random.key(0))
    batch = collected.batch
    logp_NL = self.fresh_NL[: len(batch.token_NL), : batch.token_NL.shape[1]]
    logp_NL = self.policy_logp(batch) if algorithm.samples_traces else jnp.asarray(logp_NL)

    def loss(logp_NL):
      sums = algorithm.loss(tools._replace(log_probs=lambda *_, **__: (logp_NL, -logp_NL, logp_NL)), config, {}, batch)
      return sums.total, sums.metrics

    slope_NL, metrics = jax.grad(loss, has_aux=True)(logp_NL)
    return collected, logp_NL, slope_NL, metrics


@functools.cache
def hand():
  return Hand()


RLP = {  # arXiv 2510.01265
  "reward": "log_prob", "baseline": "subtract", "base_policy": "reference", "base_place": "prompt",
  "reference": "moving_average", "center": "leave_one_out", "scale": "none", "answer_weight": "none",
  "format_coef": 0.0, "trace_loss": "ppo_clip", "normalisation": "sequence",
}  # fmt: skip
HAND_CASES = [
  (name, over, minibatches)
  for name, over, minibatches in [
    ("nrt_paper", {}, 1),
    ("nrt_released", {}, 4),
    ("nrt_geometric_ppo", {"trace_coef": 0.5, "answer_coef": 2.0, "format_coef": 0.7}, 2),
    ("nrt_product_reinforce", {}, 1),
    ("nrt_log_prob_one", {"normalisation": "token", "scale": "none"}, 2),
    ("nrt_arithmetic_token", {"answer_weight": "derived", "train_forced_marker": True}, 1),
    ("nrt_inverse_scaled_frozen", {"normalisation": "token", "kl_coef": 0.0, "entropy_coef": 0.0}, 1),
    ("nrt_paper", RLP, 1),
    ("nrt_log_prob_one", {"center": "mean", "scale": "none", "positive_only": True}, 1),
  ]
]


@pytest.mark.parametrize("name,over,minibatches", HAND_CASES, ids=[case[0] for case in HAND_CASES])
def test_coefficients_and_loss_by_hand(name, over, minibatches):
  """Every token's coefficient and the loss of every term, against lists: emitted and forced markers, all ends."""
  config = ALGORITHMS["nrt"].config(**{**CASES[name][1], **over, "ratio_base": "sampler"})
  collected, logp_NL, slope_NL, metrics = hand().outcome("nrt", config, minibatches)
  kind = "prompt" if config.base_place == "prompt" else config.base_policy
  samples = [{**s, "base": s["bases"][kind]} for s in hand().lists]
  expected = reference.verifier_free_rows(config, samples, HAND_G, minibatches, MARKER_IDS, HAND_R)
  batch, totals = collected.batch, {"trace": 0.0, "answer": 0.0, "format": 0.0}
  np.testing.assert_allclose(collected.samples["reward"], [row["reward"] for row in expected], rtol=2e-5)
  advantages = [row["advantage"] for row in expected]
  np.testing.assert_allclose(collected.samples["advantage"], advantages, rtol=1e-4, atol=1e-5)
  for n, row in enumerate(expected):
    valid = np.asarray(batch.position_NL[n]) >= 0
    np.testing.assert_array_equal(batch.token_NL[n][valid], row["tokens"])
    arrays = {
      "trace": batch.trace_coef_NL, "behaviour": batch.behaviour_logp_NL,
      "answer": batch.answer_coef_NL, "format": batch.format_coef_NL,
    }  # fmt: skip
    for term, array in arrays.items():
      np.testing.assert_allclose(array[n][valid], row[term], rtol=1e-4, atol=1e-6, err_msg=f"row {n}: {term}")
      assert not np.asarray(array[n])[~valid].any()
    for t, logp in enumerate(np.asarray(logp_NL[n], np.float64)[valid]):
      bounds = (config.clip_low, config.clip_high)
      loss, slope = reference.trace_loss(config.trace_loss, logp, row["behaviour"][t], row["trace"][t], *bounds)
      totals["trace"] += loss
      totals["answer"] -= row["answer"][t] * logp
      totals["format"] -= row["format"][t] * logp
      slope -= row["answer"][t] + row["format"][t]
      np.testing.assert_allclose(slope_NL[n][valid][t], slope, rtol=1e-4, atol=1e-6, err_msg=f"row {n}, token {t}")
  for term, total in totals.items():
    np.testing.assert_allclose(metrics[f"loss/{term}"], total, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(metrics["loss/total"], sum(totals.values()), rtol=1e-4)


def test_every_token_that_ends_a_trace_is_trained():
  """Trap 4: were it dropped, the policy would never learn when to stop, or that another stop token is no marker."""
  config = ALGORITHMS["nrt"].config(baseline="none", clip_low=0.0, clip_high=99.0)
  collected, _, slope_NL, _ = hand().outcome("nrt", config)
  batch, marker_column = collected.batch, 5 + HAND_R
  emitted, ended = (np.array([end in kinds for end, _ in HAND_ENDS]) for kinds in (["marker"], ["marker", "other"]))
  at_marker = np.asarray(batch.trace_coef_NL[:, marker_column])
  np.testing.assert_array_equal(batch.trace_mask_NL[:, marker_column], ended)
  np.testing.assert_array_equal(batch.sampled_mask_NL[:, marker_column], ended)
  pushed = ended & (np.arange(len(ended)) // HAND_G != HAND_FLAT)
  assert pushed.sum() > 5 and (at_marker[pushed] != 0).all() and (at_marker[~pushed] == 0).all()
  expected = np.where(ended & ~emitted, toy.EOS, toy.MARKER)
  np.testing.assert_array_equal(batch.target_NL[:, marker_column], expected)
  others = np.arange(batch.token_NL.shape[1]) != marker_column
  np.testing.assert_array_equal(batch.target_NL[:, others], batch.token_NL[:, others])
  assert (np.asarray(slope_NL[:, marker_column])[pushed] != 0).all()
  np.testing.assert_array_equal(np.asarray(batch.format_coef_NL[:, marker_column]) != 0, ~emitted)
  np.testing.assert_array_equal(batch.token_NL[:, marker_column], toy.MARKER)
  assert (np.asarray(batch.format_coef_NL[:, marker_column + 1]) > 0).all()  # the second piece is never sampled


def test_sft_coefficients_by_hand():
  """Given traces, markers and answers, each token with weight 1 over the number of learnt tokens."""
  prompts = hand().prompts
  trained = ALGORITHMS["sft"].config(train_prompt=True)
  for config, kinds in [
    (ALGORITHMS["sft"].config(), ("trace", "marker", "answer")),
    (ALGORITHMS["sft"].config(train_marker=False), ("trace", "answer")),
    (trained, ("prompt", "trace", "marker", "answer")),
  ]:
    collected, logp_NL, slope_NL, metrics = hand().outcome("sft", config)
    rows_ = []
    for b in range(HAND_B):
      prompt = prompts.prompt_BP[b][-prompts.prompt_length_B[b] :].tolist()
      trace = prompts.trace_BR[b][: prompts.trace_length_B[b]].tolist()
      answer = prompts.answer_BA[b][: prompts.answer_length_B[b]].tolist()
      rows_.append(reference.spliced_row(prompt, trace, MARKER_IDS, answer))
    learnt = [[kind in kinds and t > 0 for t, kind in enumerate(row[1])] for row in rows_]
    count = sum(sum(row) for row in learnt)
    total = 0.0
    for b, (tokens, _) in enumerate(rows_):
      valid = np.asarray(collected.batch.position_NL[b]) >= 0
      np.testing.assert_array_equal(collected.batch.token_NL[b][valid], tokens)
      np.testing.assert_allclose(collected.batch.answer_coef_NL[b][valid], np.array(learnt[b]) / count, rtol=1e-5)
      total -= (np.asarray(logp_NL[b])[valid] * learnt[b]).sum() / count
    np.testing.assert_allclose(metrics["loss/total"], total, rtol=1e-5)
    np.testing.assert_allclose(slope_NL, -collected.batch.answer_coef_NL, rtol=1e-5)


# For each key of each method: a base config, and the change that must be felt there.
WITH_KL = {"reference": "frozen", "kl_coef": 0.3}
SAMPLED_KEYS = {
  "center": ({"scale": "none"}, "leave_one_out"),
  "scale": ({}, "none"),
  "advantage_clip": ({}, 0.5),
  "positive_only": ({}, True),
  "trace_loss": ({"ratio_base": "sampler"}, "reinforce"),
  "ratio_base": ({}, "sampler"),
  "clip_low": ({"baseline": "none", "trace_loss": "ppo_clip", "clip_low": 0.0, "ratio_base": "sampler"}, 1.0),
  "clip_high": ({"ratio_base": "sampler"}, 1.05),
  "trace_coef": ({}, 0.5),
  "entropy_coef": ({}, 0.1),
  "kl_coef": (WITH_KL, 0.1),
  "kl_estimator": (WITH_KL, "k2"),
  "kl_place": (WITH_KL, "reward"),
  "long_penalty": ({"long_buffer": 3}, 0.5),
  "long_buffer": ({"long_penalty": 0.5, "long_buffer": 1}, 3),
  "short_penalty": ({"short_target": 3}, 0.5),
  "short_target": ({"short_penalty": 0.5}, 3),
  "mask_unended": ({}, True),
  "filter_flat_groups": ({"normalisation": "token"}, True),
  "normalisation": ({}, "token"),
  "normalisation_constant": ({}, 2.0),
}
KEY_CHANGES = {
  "nrt": {
    **SAMPLED_KEYS,
    "reward": ({}, "geometric_mean"),
    "baseline": ({"scale": "none"}, "none"),
    "base_policy": ({"reference": "frozen"}, "reference"),
    "base_place": ({}, "prompt"),
    "token_weight": ({}, "spread"),
    "score_policy": ({"reference": "frozen"}, "reference"),
    "unmarked": ({"baseline": "none"}, "zero"),
    "format_penalty": ({}, 1.0),
    "clip_answer": ({"ratio_base": "sampler"}, True),
    "answer_weight": ({}, "one"),
    "answer_coef": ({}, 0.5),
    "format_coef": ({}, 0.5),
    "train_forced_marker": ({"baseline": "none", "trace_loss": "reinforce"}, True),
  },
  "sft": {
    "train_prompt": ({}, True),
    "train_marker": ({}, False),
    "normalisation": ({}, "sequence"),
    "normalisation_constant": ({"normalisation": "constant"}, 2.0),
  },
}
OF_THE_PROGRAM = {"reference", "reference_decay", "max_draws"}  # see step/test_programs.py and rollout/test_draws.py


@pytest.mark.parametrize("name", KEY_CHANGES)
def test_every_key_is_felt(name):
  """Trap 5: a key that is declared and never read. Changing any key changes the slope of the loss."""
  config = ALGORITHMS[name].config
  keys = {field.name for field in dataclasses.fields(config)} - OF_THE_PROGRAM
  assert set(KEY_CHANGES[name]) == keys, "a new key needs an entry in KEY_CHANGES"
  for key, (base, value) in KEY_CHANGES[name].items():
    slopes = [np.asarray(hand().outcome(name, config(**{**base, **over}))[2]) for over in ({}, {key: value})]
    assert np.abs(slopes[0] - slopes[1]).max() > 1e-4, key


@pytest.mark.parametrize(
  "over,text",
  [
    ({"reward": "prop"}, r"algorithm.reward: found 'prop', allowed: .*did you mean 'prob'"),
    ({"clip_low": 1.2}, "algorithm.clip_low, clip_high: found 1.2, 1.28"),
    ({"normalisation_constant": -1.0}, r"algorithm.normalisation_constant: found -1.0, allowed: 0 \(the longest trace"),
    ({"kl_estimator": "k1"}, "algorithm.kl_estimator: found 'k1', allowed: k2, k3"),
    ({"ratio_base": "reference"}, "algorithm.ratio_base: found 'reference', allowed: sampler, update"),
    ({"answer_weight": "two"}, "algorithm.answer_weight: found 'two'"),
    ({"base_place": "marker"}, "algorithm.base_place: found 'marker', allowed: empty_trace, prompt"),
  ],
)
def test_errors(over, text):
  with pytest.raises(UserError, match=text):
    ALGORITHMS["nrt"].config(**over)
