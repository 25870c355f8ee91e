"""One battery for every row of the table of methods, and the coefficients of each row against lists in plain Python."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy

from nrt_jax import programs, rows
from nrt_jax.algorithms import ALGORITHMS
from nrt_jax.arrays import AnswerScores, Rollouts, TrainBatch
from nrt_jax.errors import UserError
from nrt_jax.state import States, TrainState

PAPER = {}  # the defaults: nrt.md section 3a
RELEASED = {"baseline": "none", "answer_weight": "one", "train_forced_marker": True, "normalisation_constant": 64.0}
CASES = {
  "nrt_paper": ("nrt", PAPER),
  "nrt_released": ("nrt", RELEASED),
  "nrt_geometric_ppo": (
    "nrt", {"reward": "geometric_mean", "baseline": "subtract", "trace_loss": "ppo_clip", "normalisation": "sequence"}
  ),
  "verifree": (
    "nrt",
    {"reward": "prob", "baseline": "none", "center": "leave_one_out", "scale": "none", "trace_loss": "reinforce"},
  ),
  "jepo": ("nrt", {"reward": "log_prob", "baseline": "none", "center": "leave_one_out", "answer_weight": "one"}),
  "rlpr": ("nrt", {"reward": "arithmetic_mean", "answer_weight": "none", "normalisation": "token"}),
  "nrt_inverse_scaled_frozen": (
    "nrt",
    {
      "reward": "weighted_sum_inverse_prob", "answer_weight": "scaled", "base_policy": "reference",
      "reference": "frozen", "kl_coef": 0.1, "entropy_coef": 0.01,
    },
  ),
  "sft": ("sft", {}),
  "sft_prompt": ("sft", {"train_prompt": True, "train_marker": False, "normalisation": "sequence"}),
}  # fmt: skip
MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)
B, G = 8, 4
PROMPTS = toy.prompts(B, trace_width=3)


def test_the_battery_covers_the_table():
  assert {name for name, _ in CASES.values()} == set(ALGORITHMS)


# ------------------------------------------------------------------------------------------------- the battery


@functools.cache
def real_rollouts():
  """What one compiled rollout returns for PROMPTS; every case is given the same."""
  tools = programs.make_tools(toy.setup(model=MODEL, samples_per_prompt=G))
  return jax.jit(tools.rollout)(toy.params(MODEL), PROMPTS, jax.random.key(0))


def off_policy_params():
  """Close to the sampling policy, so that ratios lie on both sides of the trust region's bounds."""
  keys = iter(jax.random.split(jax.random.key(5), 99))
  return jax.tree.map(lambda p: p + 0.05 * jax.random.normal(next(keys), p.shape), toy.params(MODEL))


class Case:
  """A method with its compiled `collect` (on given rollouts) and the gradient of its loss."""

  def __init__(self, name):
    algorithm, over = CASES[name]
    setup = toy.setup(algorithm, model=MODEL, **{f"algorithm__{key}": value for key, value in over.items()})
    self.config, self.algorithm, self.G = setup.run.algorithm, setup.algorithm, setup.samples_per_prompt
    tools = programs.make_tools(setup)

    @jax.jit
    def collect(rolled, states, prompts):
      given = tools._replace(rollout=lambda *_: rolled)
      return self.algorithm.collect(given, self.config, states, prompts, jax.random.key(0))

    @jax.jit
    def gradient(params, batch):
      def loss(params):
        sums = self.algorithm.loss(tools, self.config, params, batch)
        return sums.total, sums.metrics

      return jax.grad(loss, has_aux=True)(params)

    self.gradient, self._collect = gradient, collect
    reference = toy.params(MODEL, seed=7)
    self.states = States(TrainState(jnp.int32(0), jnp.int32(0), toy.params(MODEL), (), jax.random.key(0)), reference)
    self.rolled = real_rollouts() if self.algorithm.samples_traces else None

  def collect(self, prompts=PROMPTS, rolled=None):
    return self._collect(self.rolled if rolled is None else rolled, self.states, prompts)


@functools.cache
def case_of(name):
  return Case(name)


@pytest.fixture(params=CASES)
def case(request):
  return case_of(request.param)


@pytest.fixture
def grads(case):
  return case.gradient(off_policy_params(), case.collect().batch)[0]


def assert_same(left, right, tolerance=1e-4):
  """Float32 sums in another order: 1e-4 of the largest entry leaves room for some hundred additions."""
  assert toy.largest_difference(left, right) < tolerance * toy.largest(right) and toy.largest(right) > 1e-3


def test_finite(case, grads):
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)) and toy.largest(grads) > 1e-3
  collected = case.collect()
  metrics = case.gradient(off_policy_params(), collected.batch)[1]
  for name, value in {**collected.sums, **metrics}.items():
    assert all(np.isfinite(v) for v in jax.tree.leaves(value)), name
    assert name.endswith("_max") or not isinstance(value, tuple) or value[1] >= 0
  if case.algorithm.samples_traces:
    assert metrics["policy/clip_fraction"][0] > 0 or case.config.trace_loss == "reinforce"


def no_supervision(batch: TrainBatch) -> TrainBatch:
  """Without the terms that have no advantage in them: answer, format, KL and entropy."""
  zero = jnp.zeros_like(batch.answer_coef_NL)
  return batch.replace(answer_coef_NL=zero, format_coef_NL=zero, trace_weight_NL=zero)


def test_zero_advantage_gives_zero_trace_gradient(case):
  """Where all traces of a prompt make the answer equally likely, there is nothing to learn from the traces."""
  if not case.algorithm.samples_traces:
    assert not case.collect().batch.trace_coef_NL.any()  # supervised: no trace loss at all
    return
  rollouts, scores, empty = case.rolled
  flat = case.collect(rolled=(rollouts, scores.replace(answer_logp_NA=empty.answer_logp_NA.repeat(G, 0)), empty))
  np.testing.assert_array_equal(flat.samples["advantage"], 0)
  assert toy.largest(case.gradient(off_policy_params(), no_supervision(flat.batch))[0]) == 0
  uneven = case.gradient(off_policy_params(), no_supervision(case.collect().batch))[0]
  assert toy.largest(uneven) > 1e-3


def pad_right(x, columns, fill):
  return np.pad(np.asarray(x), ((0, 0), (0, columns)), constant_values=fill)


def widened(prompts, rolled):
  """More columns everywhere, filled with what must not be looked at."""
  prompts = prompts.replace(
    prompt_BP=np.pad(prompts.prompt_BP, ((0, 0), (2, 0)), constant_values=4),
    answer_BA=pad_right(prompts.answer_BA, 3, 4),
    trace_BR=pad_right(prompts.trace_BR, 2, 4),
  )
  if rolled is None:
    return prompts, None
  rollouts, scores, empty = rolled
  rollouts = rollouts.replace(token_NR=pad_right(rollouts.token_NR, 2, 4), logp_NR=pad_right(rollouts.logp_NR, 2, 0))
  longer = [s.replace(answer_logp_NA=pad_right(s.answer_logp_NA, 3, 0)) for s in (scores, empty)]
  return prompts, (rollouts, *longer)


def test_padding(case, grads):
  wider = case.collect(*widened(PROMPTS, case.rolled))
  assert wider.batch.token_NL.shape[1] > case.collect().batch.token_NL.shape[1]
  assert_same(case.gradient(off_policy_params(), wider.batch)[0], grads)


def reordered(prompts, rolled, order_B, order_G):
  """Prompts in another order, and the samples of each in another order."""
  pick = jax.tree.map(lambda a: a[order_B], prompts)
  if rolled is None:
    return pick, None

  def groups(a):
    return a.reshape(-1, G, *a.shape[1:])[order_B][:, order_G].reshape(-1, *a.shape[1:])

  rollouts, scores, empty = rolled
  return pick, (*jax.tree.map(groups, (rollouts, scores)), jax.tree.map(lambda a: a[order_B], empty))


def test_row_order(case, grads):
  moved = case.collect(*reordered(PROMPTS, case.rolled, np.array([3, 1, 7, 0, 2, 6, 5, 4]), np.array([2, 0, 3, 1])))
  assert_same(case.gradient(off_policy_params(), moved.batch)[0], grads)


def test_batch_composition(case):
  """Rewards and advantages of a prompt do not depend on which others are in the step; nor do its rows."""
  subset = np.array([6, 2])
  part = case.collect(*reordered(PROMPTS, case.rolled, subset, np.arange(G)))
  whole = case.collect()
  rows_of_subset = (subset[:, None] * case.G + np.arange(case.G)[None]).reshape(-1)
  for name, value in part.samples.items():
    np.testing.assert_allclose(value, whole.samples[name][rows_of_subset], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(part.batch.token_NL, whole.batch.token_NL[rows_of_subset])
  for name in ("trace_coef_NL", "answer_coef_NL", "format_coef_NL"):
    mine, its = getattr(part.batch, name), getattr(whole.batch, name)[rows_of_subset]
    np.testing.assert_array_equal(np.sign(mine), np.sign(its))


def test_micro_batches(case, grads):
  """Trap 3: token counts differ between micro-batches, and a mean of their means would not be the mean."""
  batch = case.collect().batch
  pieces = rows.cut_rows(batch, 4)
  lengths = (pieces.position_NL >= 0).sum((1, 2))
  assert len(set(lengths.tolist())) > 1
  each = [case.gradient(off_policy_params(), jax.tree.map(lambda a, i=i: a[i], pieces))[0] for i in range(4)]
  assert_same(jax.tree.map(lambda *g: sum(g), *each), grads)


# --------------------------------------------------------------- coefficients against lists in plain Python


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
    bases = {kind: rng.uniform(0.02, 0.9, (HAND_B, HAND_A)) for kind in ("current", "reference")}
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
    setup = toy.setup(prompt_format=toy.form(MARKER_IDS), samples_per_prompt=HAND_G, optimizer__minibatches=minibatches)
    return programs.make_tools(setup)._replace(
      rollout=lambda *_: rolled,
      score_empty_trace=lambda *_: jax.tree.map(jnp.asarray, self.empty["reference"]),
      log_probs=None,
      score_batch=lambda *_: jnp.asarray(self.reference_NL),
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
      sums = algorithm.loss(tools._replace(log_probs=lambda *_, **__: (logp_NL, -logp_NL)), config, {}, batch)
      return sums.total, sums.metrics

    slope_NL, metrics = jax.grad(loss, has_aux=True)(logp_NL)
    return collected, logp_NL, slope_NL, metrics


@functools.cache
def hand():
  return Hand()


HAND_CASES = [
  (name, over, minibatches)
  for name, over, minibatches in [
    ("nrt_paper", {}, 1),
    ("nrt_released", {}, 4),
    ("nrt_geometric_ppo", {"trace_coef": 0.5, "answer_coef": 2.0, "format_coef": 0.7}, 2),
    ("verifree", {}, 1),
    ("jepo", {"normalisation": "token", "scale": "none"}, 2),
    ("rlpr", {"answer_weight": "derived", "train_forced_marker": True}, 1),
    ("nrt_inverse_scaled_frozen", {"normalisation": "token", "kl_coef": 0.0, "entropy_coef": 0.0}, 1),
  ]
]


@pytest.mark.parametrize("name,over,minibatches", HAND_CASES, ids=[case[0] for case in HAND_CASES])
def test_coefficients_and_loss_by_hand(name, over, minibatches):
  """Every token's coefficient and the loss of every term, against lists: emitted and forced markers, all ends."""
  config = ALGORITHMS["nrt"].config(**{**CASES[name][1], **over})
  collected, logp_NL, slope_NL, metrics = hand().outcome("nrt", config, minibatches)
  samples = [{**s, "base": s["bases"][config.base_policy]} for s in hand().lists]
  expected = reference.verifier_free_rows(config, samples, HAND_G, minibatches, MARKER_IDS)
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


def test_emitted_marker_is_trained():
  """Trap 4: were the token that ends a trace dropped, the policy would never learn when to stop."""
  config = ALGORITHMS["nrt"].config(baseline="none", clip_low=0.0, clip_high=99.0)
  collected, _, slope_NL, _ = hand().outcome("nrt", config)
  batch, marker_column = collected.batch, 5 + HAND_R
  emitted = np.array([end == "marker" for end, _ in HAND_ENDS])
  at_marker = np.asarray(batch.trace_coef_NL[:, marker_column])
  np.testing.assert_array_equal(batch.trace_mask_NL[:, marker_column], emitted)
  pushed = emitted & (np.arange(len(emitted)) // HAND_G != HAND_FLAT)
  assert pushed.sum() > 3 and (at_marker[pushed] != 0).all() and (at_marker[~pushed] == 0).all()
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
  "trace_loss": ({}, "reinforce"),
  "clip_low": ({"baseline": "none", "trace_loss": "ppo_clip", "clip_low": 0.0}, 1.0),
  "clip_high": ({}, 1.05),
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
    "answer_weight": ({}, "one"),
    "answer_coef": ({}, 0.5),
    "format_coef": ({}, 0.5),
    "train_forced_marker": ({"baseline": "none"}, True),
  },
  "sft": {
    "train_prompt": ({}, True),
    "train_marker": ({}, False),
    "normalisation": ({}, "sequence"),
    "normalisation_constant": ({"normalisation": "constant"}, 2.0),
  },
}
OF_THE_PROGRAM = {"reference", "reference_decay"}  # read by programs.py: see test_programs.py


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_key_is_read(name):
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
    ({"normalisation_constant": 0.0}, "algorithm.normalisation_constant: found 0.0, allowed: above 0"),
    ({"answer_weight": "two"}, "algorithm.answer_weight: found 'two'"),
  ],
)
def test_errors(over, text):
  with pytest.raises(UserError, match=text):
    ALGORITHMS["nrt"].config(**over)
