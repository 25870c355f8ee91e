"""Hand-made completions for methods that train on whole ones: as lists for the twins, as arrays for the library."""

import jax
import jax.numpy as jnp
import numpy as np
import toy

from nrt_jax.algorithms.interface import Tools
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.arrays import Rollouts
from nrt_jax.step.state import States, TrainState

B, G, R = 4, 4, 9
MARKER_IDS = (toy.MARKER, toy.SECOND_MARKER)
PROMPTS = toy.prompts(B, answer_width=3)

# Group 0 is mixed, group 1 all wrong, group 2 mixed only by a completion that ran into the limit, group 3 all right.
KINDS = [
  ["right", "other token", "no marker", "one token more"],
  ["half a marker", "unended", "no marker", "second try"],
  ["right", "right", "right", "unended"],
  ["right", "right", "right", "right"],
]


def completion(kind, answer, rng):
  """(Sampled tokens, does it have the whole marker?): a trace of 1 to 3 words, marker, own answer."""
  trace, marker, word = rng.integers(0, 5, rng.integers(1, 4)).tolist(), list(MARKER_IDS), 19
  if kind == "right":
    return trace + marker + answer, True
  if kind == "other token":
    return trace + marker + ([word] + answer[1:] if len(answer) > 1 else [word, toy.EOS]), True
  if kind == "one token more":
    return trace + marker + answer[:-1] + [word, toy.EOS], True
  if kind == "no marker":
    return trace + answer, False
  if kind == "half a marker":
    return trace + marker[:1] + answer, False
  if kind == "second try":
    return [1] + marker + [word] + marker + answer, True  # the first marker counts
  return (trace + marker + answer[:-1] + [word] * R)[:R], True  # ran into the limit


def make_samples(seed=0):
  """A dict for each row: sampled, logp (of those), right, ended, marker."""
  rng = np.random.default_rng(seed)
  samples = []
  for b, kinds in enumerate(KINDS):
    answer = PROMPTS.answer_BA[b, : PROMPTS.answer_length_B[b]].tolist()
    for kind in kinds:
      sampled, marker = completion(kind, answer, rng)
      assert len(sampled) <= R
      logp = rng.uniform(-3, -0.1, len(sampled))
      ended = kind != "unended"
      samples.append({"sampled": sampled, "logp": logp, "right": kind == "right", "ended": ended, "marker": marker})
  return samples


SAMPLES = make_samples()


def rollouts() -> Rollouts:
  token_NR, logp_NR = np.full((B * G, R), toy.PAD, np.int32), np.zeros((B * G, R), np.float32)
  for n, s in enumerate(SAMPLES):
    token_NR[n, : len(s["sampled"])], logp_NR[n, : len(s["sampled"])] = s["sampled"], s["logp"]
  length_N = np.array([len(s["sampled"]) for s in SAMPLES], np.int32)
  ended_N, marker_N = (np.array([s[key] for s in SAMPLES]) for key in ("ended", "marker"))
  return jax.tree.map(jnp.asarray, Rollouts(token_NR, length_N, logp_NR, ended_N, marker_N))


def tools(minibatches=1, **over) -> Tools:
  """Tools whose `complete` returns the completions above."""
  fixed = dict.fromkeys(("rollout", "score_empty_trace", "log_probs", "score_batch"))
  fixed |= dict(score_start=lambda params, batch: batch, trace_limit=R)
  fixed |= dict(samples_per_prompt=G, minibatches=minibatches, marker_ids=MARKER_IDS, pad_id=toy.PAD)
  return Tools(**{**fixed, "complete": lambda *_: (rollouts(), None, None), "all_sum": lambda x: x, **over})


def collected(name, config, **over):
  """What `collect` of a method makes of them."""
  states = States(TrainState(jnp.int32(0), jnp.int32(0), {}, (), jax.random.key(0)))
  prompts = jax.tree.map(jnp.asarray, PROMPTS)
  return ALGORITHMS[name].collect(tools(**over), config, states, prompts, jax.random.key(0))
