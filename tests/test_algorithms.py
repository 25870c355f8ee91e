"""One battery for every row of the table of methods, and the coefficients of each row against lists in plain Python."""

import ast
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy

from nrt_jax import programs, rows, scoring
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
  "nrt_product_reinforce": (
    "nrt",
    {"reward": "prob", "baseline": "none", "center": "leave_one_out", "scale": "none", "trace_loss": "reinforce"},
  ),
  "nrt_log_prob_one": (
    "nrt", {"reward": "log_prob", "baseline": "none", "center": "leave_one_out", "answer_weight": "one"}
  ),
  "nrt_arithmetic_token": ("nrt", {"reward": "arithmetic_mean", "answer_weight": "none", "normalisation": "token"}),
  "nrt_inverse_scaled_frozen": (
    "nrt",
    {
      "reward": "weighted_sum_inverse_prob", "answer_weight": "scaled", "base_policy": "reference",
      "reference": "frozen", "kl_coef": 0.1, "entropy_coef": 0.01,
    },
  ),
  "sft_prompt": ("sft", {"train_prompt": True, "train_marker": False, "normalisation": "sequence"}),
  **{name: (name, {}) for name in ALGORITHMS if name != "nrt"},
}  # fmt: skip
MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)
B, G, R = 8, 4, 10
KEY = jax.random.key(0)


def test_the_battery_covers_the_table():
  assert {name for name, _ in CASES.values()} == set(ALGORITHMS)


# ------------------------------------------------------------------------------------------------- the battery


def battery_setup(algorithm="nrt", **over):
  return toy.setup(algorithm, model=MODEL, samples_per_prompt=G, sampling__max_trace_length=R, **over)


def with_good_ones(rollouts, prompts):
  """Completions of which some are put right, and others at least into form, since a random policy never is.

  In prompts 0 to 4, sample b % G gives the right answer and the next one a wrong one; 5 and 6 stay as they were
  sampled, and all of 7 are right. A row's trace is what was sampled, cut to make room.
  """
  token_NR, length_N = np.array(rollouts.token_NR), np.array(rollouts.length_N)
  ended_N, marker_N = np.array(rollouts.ended_N), np.zeros(B * G, bool)
  for n in range(B * G):
    b, k = divmod(n, G)
    text = token_NR[n, : length_N[n]].tolist()
    trace = [t for t in text if t < toy.MARKER][: 1 + n % 4]
    answer = prompts.answer_BA[b, : prompts.answer_length_B[b]].tolist()
    if b == 7 or (b < 5 and k == b % G):
      text, ended_N[n] = trace + [toy.MARKER] + answer, True
    elif b < 5 and k == (b + 1) % G:
      text, ended_N[n] = trace + [toy.MARKER, 19, 19, toy.EOS], True
    marker_N[n], length_N[n], token_NR[n] = toy.MARKER in text, len(text), toy.PAD
    token_NR[n, : len(text)] = text
  return rollouts.replace(token_NR=token_NR, length_N=length_N, ended_N=ended_N, marker_N=marker_N)


def log_probs_of(rollouts, prompts):
  """log π of what stands in the completions `[N, R]`, from whole rows."""
  P, lengths = prompts.prompt_BP.shape[1], prompts.prompt_length_B.repeat(G)[:, None]
  column = np.arange(P + R)[None]
  valid = (column >= P - lengths) & (column < P + rollouts.length_N[:, None])
  token_NL = np.concatenate([prompts.prompt_BP.repeat(G, 0), rollouts.token_NR], 1)
  position_NL = np.where(valid, column - P + lengths, -1)
  score = jax.jit(scoring.row_log_probs, static_argnums=(1, 4))
  return score(toy.params(MODEL), MODEL, token_NL, position_NL, P)[0][:, P:]


@functools.cache
def material():
  """Prompts, and what a compiled rollout of traces and one of completions return for them; every case is given both."""
  tools, params, prompts = programs.make_tools(battery_setup()), toy.params(MODEL), toy.prompts(B, trace_width=3)
  rollouts, *scores = jax.jit(tools.complete)(params, prompts, KEY)
  rollouts = with_good_ones(rollouts, prompts)
  completions = (rollouts.replace(logp_NR=log_probs_of(rollouts, prompts)), *scores)
  return prompts, {"rollout": jax.jit(tools.rollout)(params, prompts, KEY), "complete": completions}


@functools.cache
def off_policy_params():
  """Close to the sampling policy, so that ratios lie on both sides of the trust region's bounds."""
  keys = iter(jax.random.split(jax.random.key(5), 99))
  return jax.tree.map(lambda p: p + 0.05 * jax.random.normal(next(keys), p.shape), toy.params(MODEL))


PLAIN_TOOLS = programs.make_tools(battery_setup())
log_probs = jax.jit(PLAIN_TOOLS.log_probs, static_argnames="entropy_gradient")
score_batch = jax.jit(PLAIN_TOOLS.score_batch)
score_empty_trace = jax.jit(PLAIN_TOOLS.score_empty_trace)


@jax.jit
def pull_back(params, batch, slopes):
  """The gradient by the parameters, from those by (log-probability, entropy) of each token."""
  return jax.vjp(lambda p: PLAIN_TOOLS.log_probs(p, batch, entropy_gradient=True), params)[1](slopes)[0]


class Case:
  """A method with the gradient of its loss. All share the compiled model: methods meet it in log-probabilities only."""

  def __init__(self, name):
    algorithm, over = CASES[name]
    setup = battery_setup(algorithm, **{f"algorithm__{key}": value for key, value in over.items()})
    self.name, self.algorithm, self.config = name, setup.algorithm, setup.run.algorithm
    self.G = setup.samples_per_prompt
    self.tools = programs.make_tools(setup)._replace(score_batch=score_batch, score_empty_trace=score_empty_trace)
    policy = TrainState(jnp.int32(0), jnp.int32(0), toy.params(MODEL), (), KEY)
    self.states = States(policy, toy.params(MODEL, seed=7), setup.algorithm.memory(self.config))

  def collect(self, prompts=None, sampled=None):
    prompts, sampled = (given or own for given, own in zip((prompts, sampled), material()))
    given = {name: lambda *_, value=value: value for name, value in sampled.items()}
    tools, prompts = self.tools._replace(**given), jax.tree.map(jnp.asarray, prompts)
    return self.algorithm.collect(tools, self.config, self.states, prompts, KEY)

  def gradient(self, batch):
    """By the parameters of off_policy_params, and the metrics of the loss."""

    def loss(terms):
      sums = self.algorithm.loss(self.tools._replace(log_probs=lambda *_, **__: terms), self.config, None, batch)
      return sums.total, sums.metrics

    slopes, metrics = jax.grad(loss, has_aux=True)(log_probs(off_policy_params(), batch))
    return pull_back(off_policy_params(), batch, slopes), metrics


@functools.cache
def case_of(name):
  return Case(name)


@pytest.fixture(params=CASES)
def case(request):
  return case_of(request.param)


@functools.cache
def grads_of(name):
  return case_of(name).gradient(case_of(name).collect().batch)[0]


def assert_same(left, right, tolerance=1e-4):
  """Float32 sums in another order: 1e-4 of the largest entry leaves room for some hundred additions."""
  assert toy.largest_difference(left, right) < tolerance * toy.largest(right) and toy.largest(right) > SOME


SOME = 1e-5  # a gradient above this is one: rounding of one that should be 0 is far below


def test_the_material_has_every_kind():
  traces = material()[1]["rollout"][0]
  assert traces.marker_N.any() and (~traces.ended_N).any() and (traces.ended_N & ~traces.marker_N).any()
  rewards = np.asarray(case_of("dr_grpo").collect().samples["reward"]).reshape(B, G)
  assert (rewards[:5].sum(1) == 1).all() and (rewards[5:7] == 0).all() and (rewards[7] == 1).all()


def test_the_shared_pull_back_is_the_gradient():
  case = case_of("nrt_inverse_scaled_frozen")  # entropy and KL as well
  batch = case.collect().batch
  direct = jax.jit(jax.grad(lambda params: case.algorithm.loss(case.tools, case.config, params, batch).total))
  assert_same(case.gradient(batch)[0], direct(off_policy_params()))


def test_finite(case):
  grads, collected = grads_of(case.name), case.collect()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)) and toy.largest(grads) > SOME
  metrics = case.gradient(collected.batch)[1]
  for name, value in {**collected.sums, **metrics}.items():
    assert all(np.isfinite(v) for v in jax.tree.leaves(value)), name
    assert name.endswith("_max") or not isinstance(value, tuple) or value[1] >= 0


def no_supervision(batch: TrainBatch) -> TrainBatch:
  """Without the terms that have no advantage in them: answer, format, KL and entropy."""
  zero = jnp.zeros_like(batch.answer_coef_NL)
  return batch.replace(answer_coef_NL=zero, format_coef_NL=zero, trace_weight_NL=zero)


def alike(tree):
  """All samples of a prompt as its first one."""
  return jax.tree.map(lambda a: a.reshape(B, G, *a.shape[1:])[:, :1].repeat(G, 1).reshape(a.shape), tree)


def test_zero_advantage_gives_zero_trace_gradient(case):
  """Where all samples of a prompt are alike, there is nothing to prefer: the trace's gradient is exactly 0."""
  prompts, sampled = material()
  if not case.algorithm.samples_traces or case.algorithm is ALGORITHMS["rationalization"]:
    assert not case.collect().batch.trace_coef_NL.any()  # supervised: no trace loss at all
    return
  if case.algorithm is ALGORITHMS["rft"]:  # a right completion is a demonstration, whatever the others are
    prompts = prompts.replace(answer_BA=np.full_like(prompts.answer_BA, toy.PAD))
  flat = case.collect(prompts, {name: (*alike((r, scores)), empty) for name, (r, scores, empty) in sampled.items()})
  assert toy.largest(case.gradient(no_supervision(flat.batch))[0]) == 0
  assert toy.largest(case.gradient(no_supervision(case.collect().batch))[0]) > SOME


def pad_right(x, columns, fill):
  return np.pad(np.asarray(x), ((0, 0), (0, columns)), constant_values=fill)


def widened(prompts, sampled):
  """More columns everywhere, filled with what must not be looked at."""
  prompts = prompts.replace(
    prompt_BP=np.pad(prompts.prompt_BP, ((0, 0), (2, 0)), constant_values=4),
    answer_BA=pad_right(prompts.answer_BA, 3, 4),
    trace_BR=pad_right(prompts.trace_BR, 2, 4),
  )

  def widen(rollouts, scores, empty):
    rollouts = rollouts.replace(token_NR=pad_right(rollouts.token_NR, 2, 4), logp_NR=pad_right(rollouts.logp_NR, 2, 0))
    return rollouts, *(s.replace(answer_logp_NA=pad_right(s.answer_logp_NA, 3, 0)) for s in (scores, empty))

  return prompts, {name: jax.tree.map(jnp.asarray, widen(*one)) for name, one in sampled.items()}


def test_padding(case):
  wider = case.collect(*widened(*material()))
  assert wider.batch.token_NL.shape[1] > case.collect().batch.token_NL.shape[1]
  assert_same(case.gradient(wider.batch)[0], grads_of(case.name))


def reordered(prompts, sampled, order_B, order_G):
  """Prompts in another order, and the samples of each in another order."""

  def groups(a):
    return a.reshape(B, G, *a.shape[1:])[order_B][:, order_G].reshape(-1, *a.shape[1:])

  def pick(tree):
    return jax.tree.map(lambda a: a[order_B], tree)

  moved = {name: (*jax.tree.map(groups, (r, scores)), pick(empty)) for name, (r, scores, empty) in sampled.items()}
  return pick(prompts), moved


def test_row_order(case):
  # Of equally good samples DPO takes the first: only its prompts may change places.
  order_G = np.arange(G) if case.algorithm.pairs else np.array([2, 0, 3, 1])
  moved = case.collect(*reordered(*material(), np.array([3, 1, 7, 0, 2, 6, 5, 4]), order_G))
  assert_same(case.gradient(moved.batch)[0], grads_of(case.name))


# LaTRO's penalty of a trace without marker is twice the mean reward of the step: there the others do matter.
STEP_STATISTICS = ("latro",)


def test_batch_composition(case):
  """Rewards and advantages of a prompt do not depend on which others are in the step."""
  subset = np.array([6, 2])
  part, whole = case.collect(*reordered(*material(), subset, np.arange(G))), case.collect()
  rows_of_subset = (subset[:, None] * case.G + np.arange(case.G)[None]).reshape(-1)
  for name, value in part.samples.items():
    if name != "advantage" or case.name not in STEP_STATISTICS:
      np.testing.assert_allclose(value, whole.samples[name][rows_of_subset], rtol=1e-5, atol=1e-6, err_msg=name)


def test_micro_batches(case):
  """Trap 3: token counts differ between micro-batches, and a mean of their means would not be the mean."""
  batch = case.collect().batch
  pieces = rows.cut_groups(batch, 4, 2 if case.algorithm.pairs else 1)
  lengths = (pieces.position_NL >= 0).sum((1, 2))
  assert len(set(lengths.tolist())) > 1
  each = [case.gradient(jax.tree.map(lambda a, i=i: a[i], pieces))[0] for i in range(4)]
  assert_same(jax.tree.map(lambda *g: sum(g), *each), grads_of(case.name))


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
    ("nrt_product_reinforce", {}, 1),
    ("nrt_log_prob_one", {"normalisation": "token", "scale": "none"}, 2),
    ("nrt_arithmetic_token", {"answer_weight": "derived", "train_forced_marker": True}, 1),
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
    "token_weight": ({}, "spread"),
    "score_policy": ({"reference": "frozen"}, "reference"),
    "unmarked": ({"baseline": "none"}, "zero"),
    "format_penalty": ({}, 1.0),
    "clip_answer": ({}, True),
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


@pytest.mark.parametrize("name", KEY_CHANGES)
def test_every_key_is_felt(name):
  """Trap 5: a key that is declared and never read. Changing any key changes the slope of the loss."""
  config = ALGORITHMS[name].config
  keys = {field.name for field in dataclasses.fields(config)} - OF_THE_PROGRAM
  assert set(KEY_CHANGES[name]) == keys, "a new key needs an entry in KEY_CHANGES"
  for key, (base, value) in KEY_CHANGES[name].items():
    slopes = [np.asarray(hand().outcome(name, config(**{**base, **over}))[2]) for over in ({}, {key: value})]
    assert np.abs(slopes[0] - slopes[1]).max() > 1e-4, key


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_key_is_read(name):
  """The same for every row by its source: each key is read somewhere other than where it is checked."""
  read = set()
  for path in pathlib.Path(programs.__file__).parent.rglob("*.py"):
    tree = ast.parse(path.read_text())
    checks = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name == "__post_init__"]
    inside = {node for check in checks for node in ast.walk(check)}
    read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node not in inside}
    read |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and path.name == "programs.py"}
  assert {field.name for field in dataclasses.fields(ALGORITHMS[name].config)} <= read


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
