"""What samples.jsonl says of each trace token: a part of the step that runs only where samples are written."""

import jax
import jax.numpy as jnp

from nrt_jax import rows
from nrt_jax.rollout import movement
from nrt_jax.sharding import batch_ways
from nrt_jax.step.setup import Setup
from nrt_jax.step.state import States
from nrt_jax.step.tools import rollout_weights


def add(setup: Setup, states: States, samples: dict) -> dict:
  """The samples of a step with the Movement of their traces under the policy before the update, if it is asked for.

  In steps whose samples nobody sees it is 0 and costs nothing. Where the method itself scored the answer, its own
  numbers stay.
  """
  logging = setup.run.logging
  if not (logging.trace_moved_every and logging.samples_every_steps and logging.samples_per_step):
    return samples
  with jax.named_scope("trace_movement"):
    number = states.policy.step + 1  # as training.py counts
    whole = lambda: measure(setup, states.policy.params, samples)
    empty = lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(whole))
    found = jax.lax.cond(number % logging.samples_every_steps == 0, whole, empty)
  return {**found, **samples}


def measure(setup: Setup, params, samples: dict) -> dict:
  """The Movement of samples, `[N, ...]` arrays by name: how each trace moved, and the answer behind it and without."""
  form, every = setup.form, setup.run.logging.trace_moved_every
  N = len(samples["trace_length"])
  more = -N % batch_ways()  # rows are cut by the mesh
  names = (f"{part}{what}" for part in ("prompt", "trace", "answer") for what in ("", "_length"))
  prompt, prompt_length, trace, trace_length, answer, answer_length = (
    jnp.pad(samples[name], ((0, more),) + ((0, 0),) * (samples[name].ndim - 1), mode="edge") for name in names
  )
  length = text_length(trace, trace_length, form)
  pairs = ((prompt, prompt_length), (trace, length), (answer, answer_length))
  found = movement.measure(rollout_weights(setup, params), setup.decoder, form.marker_ids, every, *pairs)
  named = {
    "trace_moved": found.moved_NC,
    "trace_moved_length": length,
    "trace_moved_every": jnp.full(N + more, every, jnp.int32),
    "answer_logp": found.answer_logp_NA,
    "answer_logp_empty_trace": found.empty_logp_NA,
  }
  return {name: value[:N] for name, value in named.items()}


def text_length(trace_NR, length_N, form):
  """Tokens of a trace before its stop token, or before the marker of a whole completion: int32 `[N]`."""
  if not trace_NR.shape[1]:
    return length_N
  last_N1 = jnp.take_along_axis(trace_NR, jnp.maximum(length_N - 1, 0)[:, None], 1)
  stopped_N = jnp.isin(last_N1[:, 0], jnp.asarray(form.stop_ids)) & (length_N > 0)
  return jnp.minimum(rows.find_marker(trace_NR, length_N, form.marker_ids), length_N - stopped_N)
