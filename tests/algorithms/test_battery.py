"""One battery of checks for every entry of ALGORITHMS. test_coefficients.py checks each entry's specifics."""

import ast
import dataclasses
import functools

import critics
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from cases import CASES
from paths import ROOT

from nrt_jax import rows
from nrt_jax.algorithms import interface
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.arrays import TrainBatch
from nrt_jax.rollout import draws, scoring
from nrt_jax.step import programs
from nrt_jax.step.state import States, TrainState

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


# Rows as they are: which of them share a prompt differs from method to method (step/test_update.py).
PLAIN_TOOLS = programs.make_tools(battery_setup(parallel__share_prompts="off"))
log_probs = jax.jit(PLAIN_TOOLS.log_probs, static_argnames="entropy_gradient")
score_batch = jax.jit(PLAIN_TOOLS.score_batch)
score_empty_trace = jax.jit(PLAIN_TOOLS.score_empty_trace)
score_bare = jax.jit(PLAIN_TOOLS.score_bare)


@jax.jit
def pull_back(params, batch, slopes):
  """The gradient by the parameters, from those by (log-probability, entropy) of each token."""
  return jax.vjp(lambda p: PLAIN_TOOLS.log_probs(p, batch, entropy_gradient=True), params)[1](slopes)[0]


class Case:
  """A method with the gradient of its loss. All share the compiled model: methods meet it in log-probabilities only."""

  def __init__(self, name):
    algorithm, over = CASES[name]
    if hasattr(ALGORITHMS[algorithm].config(), "ratio_base"):  # so that the trust region is felt off the policy
      over = {**over, "ratio_base": "sampler"}
    setup = battery_setup(algorithm, **{f"algorithm__{key}": value for key, value in over.items()})
    self.name, self.algorithm, self.config = name, setup.algorithm, setup.run.algorithm
    self.G, self.rows_together = setup.samples_per_prompt, setup.rows_together
    self.tools = programs.make_tools(setup)._replace(
      score_batch=score_batch, score_empty_trace=score_empty_trace, score_bare=score_bare
    )
    policy = TrainState(jnp.int32(0), jnp.int32(0), toy.params(MODEL), (), KEY)
    self.states = States(policy, toy.params(MODEL, seed=7), setup.algorithm.memory(self.config, setup.critic))
    if setup.critic is not None:  # in the case's tools, so that `collect` may be given another
      self.tools = self.tools._replace(sample=critics.scripted(setup.critic, critics.by_content()))

  def collect(self, prompts=None, sampled=None, **over):
    prompts, sampled = (given or own for given, own in zip((prompts, sampled), material()))
    given = {name: lambda *_, value=value: value for name, value in sampled.items()}
    tools, prompts = self.tools._replace(**{**given, **over}), jax.tree.map(jnp.asarray, prompts)
    return self.algorithm.collect(tools, self.config, self.states, prompts, KEY)

  def of_one_mind(self) -> dict:
    """The tools of a critic, if there is one, whose verdicts earn it the same whatever it is shown."""
    form = self.tools.critic
    return {} if form is None else {"sample": critics.scripted(form, lambda prompts, sample: critics.TIE)}

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
  same = {name: (*alike((r, scores)), empty) for name, (r, scores, empty) in sampled.items()}
  flat = case.collect(prompts, same, **case.of_one_mind())
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
  # What samples.jsonl and step/movement.py need of every method.
  assert {f"{part}{of}" for part in ("prompt", "trace", "answer") for of in ("", "_length")} <= part.samples.keys()
  for name, value in part.samples.items():
    if name != "advantage" or case.name not in STEP_STATISTICS:
      np.testing.assert_allclose(value, whole.samples[name][rows_of_subset], rtol=1e-5, atol=1e-6, err_msg=name)


def test_micro_batches(case):
  """Trap 3: token counts differ between micro-batches, and a mean of their means would not be the mean."""
  batch = case.collect().batch
  pieces = rows.cut_groups(batch, 4, case.rows_together)
  lengths = (pieces.position_NL >= 0).sum((1, 2))
  assert len(set(lengths.tolist())) > 1
  each = [case.gradient(jax.tree.map(lambda a, i=i: a[i], pieces))[0] for i in range(4)]
  assert_same(jax.tree.map(lambda *g: sum(g), *each), grads_of(case.name))


def test_groups_are_drawn_again(case):
  """The step that draws half of the prompts, and the others if need be, is the step on the groups that it keeps."""
  if not hasattr(case.config, "max_draws") or case.algorithm.has_critic:
    return  # supervised methods, pairs, and critics, whose verdicts no draw looks at
  prompts, sampled = material()
  half, varies_N = B // 2, []

  def note(prompts, attempt):
    varies_N.append(attempt(prompts).varies_N)
    return interface.draw_once(prompts, attempt)

  case.collect(draw=note)
  varies_B = np.asarray(varies_N[0]).reshape(B, G)[:, 0]
  kept, count, _ = reference.draw_groups([[(b, varies_B[b]) for b in range(first, B, 2)] for first in (0, 1)], half)

  def of(name):
    def sample(_, prompts, __):
      b = prompts.example_B - 100
      rows_ = (b[:, None] * G + jnp.arange(G)[None]).reshape(-1)
      rollouts, scores, empty = sampled[name]
      return *jax.tree.map(lambda a: jnp.asarray(a)[rows_], (rollouts, scores)), jax.tree.map(lambda a: a[b], empty)

    return sample

  again = case.collect(rollout=of("rollout"), complete=of("complete"), draw=functools.partial(draws.draw, 2, G, None))
  plain = case.collect(*reordered(prompts, sampled, np.array(kept), np.arange(G)))
  assert again.sums["draws/count"][0] == count
  for left, right in zip(jax.tree.leaves(again.batch), jax.tree.leaves(plain.batch), strict=True):
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_key_is_read(name):
  """The same for every row by its source: each key is read somewhere other than where it is checked."""
  read = set()
  for path in (ROOT / "nrt_jax").rglob("*.py"):
    tree = ast.parse(path.read_text())
    checks = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name == "__post_init__"]
    inside = {node for check in checks for node in ast.walk(check)}
    read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node not in inside}
    read |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and path.name == "programs.py"}
  fields = dataclasses.fields(ALGORITHMS[name].config)
  nested = [field.type for field in fields if dataclasses.is_dataclass(field.type)]
  assert {field.name for kind in (ALGORITHMS[name].config, *nested) for field in dataclasses.fields(kind)} <= read
