"""Batches of likelihood-rewarded methods for hand-made traces and answer probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import toy

from nrt_jax.algorithms.interface import draw_once
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.arrays import AnswerScores, Prompts, Rollouts
from nrt_jax.step import programs
from nrt_jax.step.state import States, TrainState


def given(
  name, c, base, ends=None, trace_lengths=None, reference_c=None, surplus=None, minibatches=1, draw=draw_once, **over
):
  """`collect` of a method on one prompt whose G traces make the answer's tokens likely by `c` (lists of equal length).

  ends: "marker", "other" stop token, or None; surplus: Σ_t log π - log π_0 of each trace. Answers after an empty trace
  have `base` under the policy and `reference_c` under the reference. Sums over tokens are divided by nothing.
  """
  G, A = len(c), len(c[0])
  ends, lengths = ends or ["marker"] * G, trace_lengths or [2] * G
  R = max(lengths) + 1
  token_NR, logp_NR = np.full((G, R), toy.PAD, np.int32), np.zeros((G, R), np.float32)
  for n, (end, length) in enumerate(zip(ends, lengths)):
    token_NR[n, :length] = (np.arange(length) + n) % 7  # no two traces are equal
    logp_NR[n, : length + 1] = -1
    token_NR[n, length] = {"marker": toy.MARKER, "other": toy.EOS, None: 0}[end]
  ended_N, marker_N = np.array([e is not None for e in ends]), np.array([e == "marker" for e in ends])
  rollouts = Rollouts(token_NR, np.array(lengths, np.int32) + 1, logp_NR, ended_N, marker_N)
  scores = AnswerScores(np.full((G, 1), -1, np.float32), np.log(np.array(c, np.float32)))
  marker_N1 = np.zeros((1, 1), np.float32)
  empty, of_reference = (AnswerScores(marker_N1, np.log([x]).astype(np.float32)) for x in (base, reference_c or base))
  prompts = Prompts(
    np.array([[5, 6]], np.int32), np.array([2], np.int32), np.full((1, A), 9, np.int32), np.array([A], np.int32),
    np.zeros((1, 0), np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32),
  )  # fmt: skip
  config = ALGORITHMS[name].config(**{"normalisation_constant": 1.0, **over})
  rolled = jax.tree.map(jnp.asarray, (rollouts, scores, empty))

  def score_batch(_, batch):
    """The reference's log-probabilities: each trace's are lower by its surplus, all of it at its first token."""
    first = batch.trace_mask_NL & (jnp.cumsum(batch.trace_mask_NL, axis=1) == 1)
    less_N1 = jnp.asarray(surplus if surplus is not None else np.zeros(G), jnp.float32)[:, None]
    return batch.behaviour_logp_NL - jnp.where(first, less_N1, 0)

  tools = programs.make_tools(toy.setup(name, samples_per_prompt=G, optimizer__minibatches=minibatches))._replace(
    rollout=lambda *_: rolled,
    complete=lambda *_: rolled,
    score_empty_trace=lambda *_: jax.tree.map(jnp.asarray, of_reference),
    score_batch=score_batch,
    draw=draw,
  )
  policy = TrainState(jnp.int32(0), jnp.int32(0), {}, (), jax.random.key(0))
  states = States(policy, {}, ALGORITHMS[name].memory(config))
  return ALGORITHMS[name].collect(tools, config, states, jax.tree.map(jnp.asarray, prompts), jax.random.key(0))


def varies(name, c, base, **over) -> bool:
  """Whether `max_draws` would keep this group: what the method says of it when it has been sampled."""
  found = []

  def draw(prompts, attempt):
    found.append(attempt(prompts).varies_N)
    return draw_once(prompts, attempt)

  given(name, c, base, draw=draw, **over)
  (varies_N,) = found
  assert varies_N.shape == (len(c),) and len(set(np.asarray(varies_N).tolist())) == 1
  return bool(varies_N[0])


def split(log_p):
  """Probabilities of two tokens whose product has this logarithm."""
  return [np.exp(0.25 * log_p), np.exp(0.75 * log_p)]
