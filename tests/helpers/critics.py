"""Critics that follow a script, in place of a sampled one, as `Tools.sample`."""

import jax.numpy as jnp
import numpy as np
import toy

from nrt_jax.algorithms.critic import FIRST, SECOND, TIE, UNPARSED
from nrt_jax.arrays import Rollouts

LABELS = (FIRST, SECOND, TIE, UNPARSED)


def scripted(form, say, reasoning=3, logp=-0.5):
  """A `Tools.sample` that says `say(prompts, sample) -> label [M]` for each prompt and sample, after some reasoning.

  UNPARSED is a completion without label, of which the odd ones are cut at the limit.
  """

  def sample(params, prompts, key, role):
    limit, M = role.sampling.max_trace_length, len(prompts.prompt_length_B)
    labels = jnp.stack([jnp.broadcast_to(say(prompts, k), M) for k in range(role.samples)], axis=1).reshape(-1)
    marker = form.marker_ids if form.reasoning else ()
    table, lengths = np.full((4, limit), toy.PAD, np.int32), np.zeros(4, np.int32)
    for place, label in enumerate(LABELS):
      said = [7] if label == UNPARSED else form.label_ids[label] if label < len(form.label_ids) else [8]
      text = [*[5] * (reasoning if form.reasoning else 0), *marker, *said, form.end_ids[0]]
      table[place, : len(text)], lengths[place] = text, len(text)
    place = jnp.where(labels == UNPARSED, 3, labels)
    cut = (labels == UNPARSED) & (jnp.arange(len(labels)) % 2 == 1)
    token, length = jnp.asarray(table)[place], jnp.where(cut, limit, jnp.asarray(lengths)[place])
    token = jnp.where(cut[:, None], 6, token)
    inside = jnp.arange(limit)[None] < length[:, None]
    return Rollouts(token, length, jnp.where(inside, logp, 0.0), ~cut, ~cut & (place < 3))

  return sample


def by_content(labels=LABELS):
  """A script that depends on what stands in the prompt, and on the sample, but on nothing else."""

  def say(prompts, sample):
    column = jnp.arange(prompts.prompt_BP.shape[1])[None] - (
      prompts.prompt_BP.shape[1] - prompts.prompt_length_B[:, None]
    )
    weight = jnp.where(column >= 0, (column % 7 + 1) * (prompts.prompt_BP + 1), 0).sum(axis=1)
    return jnp.asarray(labels)[(weight + sample) % len(labels)]

  return say
