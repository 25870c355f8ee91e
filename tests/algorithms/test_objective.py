"""The update against the objective itself, for a policy so small that all traces can be enumerated."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import toy

from nrt_jax.arrays import AnswerScores, Prompts, Rollouts
from nrt_jax.model.decoder import forward, logits
from nrt_jax.step import programs

B = 16
VOCAB, MARKER, OTHER, LIMIT = 6, 5, 4, 2  # 1 + 5 + 25 traces: few enough to sum over
# This seed's policy is one whose answer depends much on its trace, and whose traces differ: both terms weigh.
TINY, TINY_SEED = dataclasses.replace(
  toy.MODEL, vocab_size=VOCAB, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_key_value_heads=1,
  initializer_range=1.0,
), 37  # fmt: skip
PROMPT, ANSWER = [1, 3], [2, 0, 4]
REWARDS = reference.AGGREGATION_NAMES
STOPS = {"the marker": (MARKER,), "two stop tokens": (MARKER, OTHER)}


def all_sampled(stops):
  """Every list of tokens that the sampler can draw: ended by a stop token, or as long as the limit."""
  words = [t for t in range(VOCAB) if t not in stops]
  short = [list(z) for n in range(LIMIT) for z in itertools.product(words, repeat=n)]
  return [[*z, s] for s in stops for z in short] + [list(z) for z in itertools.product(words, repeat=LIMIT)]


SAMPLED = all_sampled((MARKER,))
EXACT = {
  "baseline": "none", "center": "none", "scale": "none", "trace_loss": "reinforce", "format_coef": 0.0,
  "normalisation_constant": 1.0,  # the objective itself, undivided
}  # fmt: skip


def tiny_setup(algorithm="nrt", stops=(MARKER,), settings=EXACT, **over):
  return toy.setup(
    algorithm,
    model=TINY,
    prompt_format=toy.form((MARKER,), stops, pad_id=0),
    sampling__max_trace_length=LIMIT,
    parallel__share_prompts="off",  # below the rows are all traces there are, of one prompt or another
    **{f"algorithm__{key}": value for key, value in settings.items()},
    **over,
  )


def tiny_prompts(count):
  def rows_of(tokens):
    return np.array([tokens] * count, np.int32), np.full(count, len(tokens), np.int32)

  none = (np.zeros((count, 0), np.int32), np.zeros(count, np.int32))
  return Prompts(*rows_of(PROMPT), *rows_of(ANSWER), *none, np.arange(count, dtype=np.int32))


def explicit_terms(params, stops=(MARKER,)):
  """log π of each possible trace `[Z]`, log c of its answer `[Z, A]`, and log c after the empty trace `[A]`.

  From whole rows of plain lists: no sampler, no cache, no splice, no scorer. A trace's last token may be a stop token
  that is nowhere in the row, where the marker takes its place.
  """
  sampled_of = all_sampled(stops)
  traces_of = [z[:-1] if z[-1] in stops else z for z in sampled_of]
  texts = [reference.spliced_row(PROMPT, trace, [MARKER], ANSWER)[0] for trace in traces_of]
  width = max(map(len, texts))
  token = jnp.array([text + [0] * (width - len(text)) for text in texts], jnp.int32)
  position = jnp.array([[t if t < len(text) else -1 for t in range(width)] for text in texts], jnp.int32)
  log_p = jax.nn.log_softmax(logits(params, TINY, forward(params, TINY, token, position)[0]))
  traces, answers, markers = [], [], []
  for row, (text, sampled) in enumerate(zip(texts, sampled_of)):
    # What was drawn: a stop token included, a marker that was put in by force not.
    traces.append(sum(log_p[row, len(PROMPT) + t - 1, token] for t, token in enumerate(sampled)))
    answers.append(jnp.stack([log_p[row, t - 1, text[t]] for t in range(len(text) - len(ANSWER), len(text))]))
    markers.append(log_p[row, len(text) - len(ANSWER) - 2, MARKER] * (sampled[-1] != MARKER))
  return jnp.stack(traces), jnp.stack(answers), answers[0], jnp.stack(markers)


def objectives(params, base_A, stops=(MARKER,)):
  """J(θ) = Σ_z π(z) f(c(z)) of each aggregation, with f written out as in the paper's table."""
  trace_Z, answer_ZA, _, _ = explicit_terms(params, stops)
  c_ZA = jnp.exp(answer_ZA)
  rewards = {
    "log_prob": answer_ZA.sum(-1),
    "mean_log_prob": answer_ZA.mean(-1),
    "prob": c_ZA.prod(-1),
    "geometric_mean": c_ZA.prod(-1) ** (1 / len(ANSWER)),
    "arithmetic_mean": c_ZA.mean(-1),
    "weighted_sum_inverse_prob": (c_ZA / jnp.exp(base_A)[None]).mean(-1),
    "weighted_sum_log_prob": (c_ZA * -base_A[None]).mean(-1),
  }
  assert set(rewards) == set(REWARDS)
  return {name: jnp.sum(jnp.exp(trace_Z) * reward_Z) for name, reward_Z in rewards.items()}


@functools.cache
def exact_of(stops):
  """The tiny policy, and for each reward J and its gradient by automatic differentiation (base weights constant)."""
  params = toy.params(TINY, TINY_SEED)
  terms = jax.jit(explicit_terms, static_argnums=1)(params, stops)
  assert len(terms[0]) == {1: 31, 2: 26}[len(stops)]
  assert abs(float(jnp.exp(terms[0]).sum()) - 1) < 1e-5  # all the traces there are
  both = jax.jit(lambda p, base_A: (objectives(p, base_A, stops), jax.jacrev(objectives)(p, base_A, stops)))
  values, gradients = both(params, terms[2])
  return params, terms, {name: (values[name], gradients[name]) for name in REWARDS}


@pytest.fixture(scope="module")
def exact():
  return exact_of((MARKER,))


@pytest.fixture(scope="module")
def row_gradient():
  """(params, batch, weight of each row) -> gradient of the weighted loss; rewards differ in coefficients only."""
  setup = tiny_setup()
  tools = programs.make_tools(setup)

  @jax.jit
  def gradient(params, batch, weight_N):
    batch = batch.replace(
      trace_coef_NL=batch.trace_coef_NL * weight_N[:, None], answer_coef_NL=batch.answer_coef_NL * weight_N[:, None]
    )
    return jax.grad(lambda p: setup.algorithm.loss(tools, setup.run.algorithm, p, batch).total)(params)

  return gradient


def enumerated(setup, stops):
  """What `collect` makes of one prompt whose samples are all the possible traces, each once."""
  params, (_, answer_ZA, base_A, _), _ = exact_of(stops)
  sampled = all_sampled(stops)
  token = np.array([z + [0] * (LIMIT - len(z)) for z in sampled], np.int32)
  ended, marked = np.array([z[-1] in stops for z in sampled]), np.array([z[-1] == MARKER for z in sampled])
  length = np.array([len(z) for z in sampled], np.int32)
  rolled = (
    Rollouts(token, length, np.full(token.shape, -1.0, np.float32), ended, marked),
    AnswerScores(np.zeros((len(sampled), 1), np.float32), answer_ZA),
    AnswerScores(np.zeros((1, 1), np.float32), base_A[None]),
  )
  tools = programs.make_tools(setup)._replace(rollout=lambda *_: jax.tree.map(jnp.asarray, rolled))
  states = programs.init_states(setup, params, jax.random.key(0))
  prompts = jax.tree.map(jnp.asarray, tiny_prompts(1))
  return setup.algorithm.collect(tools, setup.run.algorithm, states, prompts, jax.random.key(0))


def enumerated_batch(name, stops=(MARKER,)):
  count = len(all_sampled(stops))
  return enumerated(tiny_setup(stops=stops, algorithm__reward=name, samples_per_prompt=count), stops).batch


@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("name", REWARDS)
def test_two_terms_are_the_gradient_of_the_objective(row_gradient, name, stops):
  """Σ_z π(z) [R ∇log π(z) + Σ_i s_i ∇log c_i], summed over all traces, is ∇J, for every aggregation."""
  params, (trace_Z, _, _, _), gradients = exact_of(stops)
  weight_Z = jnp.exp(trace_Z) * len(trace_Z)  # in place of the normaliser 1 / N
  batch = enumerated_batch(name, stops)
  got = row_gradient(params, batch, weight_Z)
  expected = jax.tree.map(jnp.negative, gradients[name][1])  # a loss falls where J rises
  assert toy.largest(expected) > 1e-3
  assert toy.largest_difference(got, expected) < 1e-4 * toy.largest(expected)
  for term in ("trace_coef_NL", "answer_coef_NL"):  # and neither term alone is
    half = batch.replace(**{term: jnp.zeros_like(batch.trace_coef_NL)})
    assert toy.largest_difference(row_gradient(params, half, weight_Z), expected) > 0.05 * toy.largest(expected)


# Each method that puts a marker behind traces, on a policy that ends some of them otherwise. No KL: it has other tests.
CLOSING = {
  **{name: (name, {"kl_coef": 0.0, "reference": "none"}) for name in ("jepo", "jepo_multi", "latro", "dro")},
  "verifree": ("verifree", {}),
  "rl_logit": ("rl_logit", {}),
  "nrt": ("nrt", {"baseline": "none"}),
}


@pytest.mark.parametrize("case", CLOSING)
def test_every_stop_token_that_was_sampled_carries_the_advantage(case):
  """The loss of a whole row is -A log π(all that was sampled) - Σ s log c - the marker's cross-entropy, by parameters.

  Dropped, the stop token that gives way to the marker would get π(E) times the push that it should, from the others.
  """
  name, over = CLOSING[case]
  stops, (params, terms, _) = STOPS["two stop tokens"], exact_of(STOPS["two stop tokens"])
  count = len(terms[0])
  setup = tiny_setup(name, stops, over, samples_per_prompt=count, algorithm__normalisation="constant")
  made, tools = enumerated(setup, stops), programs.make_tools(setup)
  batch, config = made.batch, setup.run.algorithm
  batch = batch.replace(behaviour_logp_NL=tools.log_probs(params, batch)[0])  # on the policy
  constant = 1 / np.asarray(batch.trace_weight_NL).max()
  advantage_Z, s_ZA = made.samples["advantage"], batch.answer_coef_NL[:, -len(ANSWER) :] * constant
  of_other = np.array([z[-1] == OTHER for z in all_sampled(stops)])
  assert np.abs(np.asarray(advantage_Z)[of_other]).max() > 0.1 * np.abs(advantage_Z).max()

  def expected(params):
    trace_Z, answer_ZA, _, forced_Z = explicit_terms(params, stops)
    terms = advantage_Z * trace_Z + (s_ZA * answer_ZA).sum(1) + config.format_coef * forced_Z
    return -terms.sum() / constant

  wanted = jax.jit(jax.grad(expected))(params)
  got = jax.jit(jax.grad(lambda p: setup.algorithm.loss(tools, config, p, batch).total))(params)
  assert toy.largest_difference(got, wanted) < 1e-4 * toy.largest(wanted)


def test_objective_by_finite_differences(exact):
  """∇J along its own direction, against the central difference of J: no differentiation at all on one side.

  With a step h = 3e-4 rounding is near 1e-7 J / h, below 0.1 %, and so is curvature, which grows as h² (2 % at 3e-3).
  """
  params, (_, _, base_A, _), gradients = exact
  value = jax.jit(objectives)
  for name in REWARDS:
    gradient = gradients[name][1]
    norm = optax.tree.norm(gradient)
    ends = [jax.tree.map(lambda p, g, s=s: p + s * 3e-4 / norm * g, params, gradient) for s in (1, -1)]
    slope = (value(ends[0], base_A)[name] - value(ends[1], base_A)[name]) / 6e-4
    np.testing.assert_allclose(slope, norm, rtol=3e-3)


def test_sampled_update_points_up_the_objective(exact, row_gradient):
  """The whole compiled step: thousands of sampled rows and one step of plain gradient descent.

  Each parameter's change must lie within 6 standard errors of ∇J, which the enumeration gives exactly: a correct
  program fails with probability under 1e-6 (500 parameters, 2e-9 each). Dropping either term is 20 errors away.
  """
  G = 512
  params, (trace_Z, _, _, _), gradients = exact
  setup = tiny_setup(
    prompts_per_step=B, samples_per_prompt=G, algorithm__reward="geometric_mean", optimizer__name="sgd",
    optimizer__learning_rate=1.0, optimizer__beta1=0.0, optimizer__max_grad_norm=0.0, optimizer__weight_decay=0.0,
  )  # fmt: skip
  states = programs.init_states(setup, jax.tree.map(jnp.copy, params), jax.random.key(11))
  states, metrics, _ = programs.build_train_step(setup)(states, tiny_prompts(B))
  moved = jax.tree.map(jnp.subtract, states.policy.params, params)
  np.testing.assert_allclose(metrics["reward/mean"], gradients["geometric_mean"][0], rtol=0.05)

  batch, Z = enumerated_batch("geometric_mean"), len(SAMPLED)
  each = jax.vmap(lambda weight_Z: row_gradient(params, batch, weight_Z))(jnp.eye(Z) * Z)  # of each trace alone
  p_Z = np.exp(np.asarray(trace_Z, np.float64))

  def in_errors(moved, gradient, each):
    """How far the change is from ∇J, and ∇J from nothing, in standard errors of a mean over the rows."""
    each = -np.asarray(each, np.float64)
    variance = np.tensordot(p_Z, (each - np.asarray(gradient)[None]) ** 2, 1)
    error = np.sqrt(variance / (B * G)) + 1e-6  # and float32's rounding of parameters of order 1
    return np.stack([np.abs(np.asarray(moved) - gradient), np.abs(gradient)]) / error[None]

  scores = jax.tree.leaves(jax.tree.map(in_errors, moved, gradients["geometric_mean"][1], each))
  assert max(score[1].max() for score in scores) > 20
  assert max(score[0].max() for score in scores) < 6
