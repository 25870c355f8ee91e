"""A critic's part of the step, on the device: its prompts from sampled answers, and its verdicts from its tokens.

Axes, beside those of arrays.py: K pairs of a prompt, O orders in which a pair is shown, V verdicts on a pair (all
orders together), X = B * K pairs in a step. A pair is an expert's answer and the policy's to the same question.
"""

import jax
import jax.numpy as jnp
from flax import struct

from nrt_jax import rows
from nrt_jax.algorithms.interface import Tools
from nrt_jax.arrays import Prompts
from nrt_jax.data.critic_prompts import CriticForm

FIRST, SECOND, TIE, UNPARSED = 0, 1, 2, -1  # what a verdict says; the first three are places in CriticForm.label_ids


@struct.dataclass
class Pairs:
  """Pairs to be judged. Answers are left-aligned, without end token, and show nothing that speaks to the critic."""

  head_XQ: jax.Array  # int32, padded on the left: the critic's prompt up to the first answer
  head_length_X: jax.Array  # int32
  expert_XA: jax.Array  # int32
  expert_length_X: jax.Array  # int32
  answer_XA: jax.Array  # int32, the policy's
  answer_length_X: jax.Array  # int32
  valid_X: jax.Array  # bool, whether there is such a pair: False where the policy gave no answer

  @property
  def equal_X(self):
    """Whether both answers are the same, token by token: nobody can tell whose is whose."""
    column = jnp.arange(self.expert_XA.shape[1])[None]
    same = (self.expert_XA == self.answer_XA) | (column >= self.expert_length_X[:, None])
    return same.all(axis=1) & (self.expert_length_X == self.answer_length_X)


def own_answers(tools: Tools, rollouts):
  """The policy's answers, what stands behind the first marker: token `[N, A]`, length `[N]`, whether there is one.

  One that was cut at the limit, or is empty, is none. A long one is shown up to the critic's answer width.
  """
  marker_N = rows.find_marker(rollouts.token_NR, rollouts.length_N, tools.marker_ids)
  start_N = marker_N + len(tools.marker_ids)
  length_N = rollouts.length_N - 1 - start_N  # without the end token
  valid_N = rollouts.marker_N & rollouts.ended_N & (length_N > 0)
  return *_window(rollouts.token_NR, start_N, jnp.where(valid_N, length_N, 0), tools.critic), valid_N


def _window(token_NR, start_N, length_N, form: CriticForm):
  """`length_N` tokens from `start_N` on, at most as many as the critic is shown, without what may not be shown."""
  column_NA = start_N[:, None] + jnp.arange(form.answer_width)[None]
  token_NA = jnp.take_along_axis(token_NR, jnp.clip(column_NA, 0, token_NR.shape[1] - 1), axis=1)
  length_N = jnp.minimum(length_N, form.answer_width)
  return neutralise(form, token_NA, length_N), length_N


def expert_answers(tools: Tools, prompts: Prompts):
  """The reference answers as the critic sees them, without their end token: token `[B, A]`, length `[B]`."""
  last_B1 = jnp.maximum(prompts.answer_length_B - 1, 0)[:, None]
  last_B = jnp.take_along_axis(prompts.answer_BA, last_B1, axis=1)[:, 0]
  ended_B = jnp.isin(last_B, jnp.asarray(tools.critic.end_ids, jnp.int32))  # a cut one has none
  return _window(prompts.answer_BA, jnp.zeros_like(last_B), prompts.answer_length_B - ended_B, tools.critic)


def neutralise(form: CriticForm, token_NA, length_N):
  """Answers in which whatever could speak to the critic is replaced, token by token; 0 behind their end.

  That is control tokens, markers, and the words that stand before an answer in the critic's prompt. Text that only
  looks like them in other tokens cannot be told, and stays.
  """
  valid_NA = jnp.arange(token_NA.shape[1])[None] < length_N[:, None]
  hidden_NA = jnp.isin(token_NA, jnp.asarray(form.forbidden_ids, jnp.int32))
  for sequence in form.forbidden:
    ahead = jnp.pad(jnp.where(valid_NA, token_NA, -1), ((0, 0), (0, len(sequence) - 1)), constant_values=-1)
    found_NA = jnp.stack([ahead[:, i : i + token_NA.shape[1]] == t for i, t in enumerate(sequence)]).all(0)
    for i in range(len(sequence)):
      hidden_NA |= jnp.pad(found_NA, ((0, 0), (i, 0)))[:, : token_NA.shape[1]]
  return jnp.where(valid_NA, jnp.where(hidden_NA, form.neutral_id, token_NA), 0)


def corrupt(key_B, expert_BA, length_B, count: int):
  """`count` wrong versions of each expert's answer `[B, count, A]`: two different tokens change places.

  An answer of equal tokens stays as it is, and such a pair is equal.
  """
  A = expert_BA.shape[1]

  def one(key, expert, length):
    def once(key):
      first, second = jax.random.split(key)
      i = jax.random.randint(first, (), 0, jnp.maximum(length, 1))
      others = (jnp.arange(A) < length) & (expert != expert[i])
      j = jnp.where(others.any(), jax.random.categorical(second, jnp.where(others, 0.0, -jnp.inf)), i)
      return expert.at[i].set(expert[j]).at[j].set(expert[i])

    return jax.vmap(once)(jax.random.split(key, count))

  return jax.vmap(one)(key_B, expert_BA, length_B)


def shown_first(key_X, form: CriticForm, orders: int):
  """Whether the expert's answer is answer 1, for each pair and order: bool `[X, O]`.

  With both orders it is once; with one at a time, the expert's is shown by itself, then the policy's.
  """
  if orders == 2:
    return jnp.broadcast_to(jnp.array([True, False])[None], (len(key_X), 2))
  return jax.vmap(jax.random.bernoulli)(key_X)[:, None]


def build_prompts(form: CriticForm, pairs: Pairs, expert_first_XO, example_X, pad_id: int) -> Prompts:
  """The critic's prompts `[X * O]`, put together from tokens. example_X: a number of its own for each pair."""
  X, orders = expert_first_XO.shape
  repeat = lambda a: a.repeat(orders, axis=0)
  every, first_M = jax.tree.map(repeat, pairs), expert_first_XO.reshape(-1)
  first_M1 = first_M[:, None]
  constant = lambda ids: jnp.broadcast_to(jnp.asarray(ids, jnp.int32), (X * orders, len(ids)))
  expert, answer = (every.expert_XA, every.expert_length_X), (every.answer_XA, every.answer_length_X)
  one, other = (
    (jnp.where(first_M1, a[0], b[0]), jnp.where(first_M, a[1], b[1])) for a, b in ((expert, answer), (answer, expert))
  )
  length = lambda ids: jnp.full(X * orders, len(ids), jnp.int32)
  pieces = [(every.head_XQ, every.head_length_X, True), (*one, False)]
  if form.kind != "single":
    pieces += [(constant(form.middle_ids), length(form.middle_ids), False), (*other, False)]
  pieces.append((constant(form.tail_ids), length(form.tail_ids), False))
  prompt, prompt_length = rows.concatenate(pieces, form.prompt_width, pad_id)
  nothing = (jnp.zeros((X * orders, 1), jnp.int32), jnp.zeros(X * orders, jnp.int32))  # no answer, no given trace
  example = (example_X[:, None] * orders + jnp.arange(orders)[None]).reshape(-1)
  return Prompts(prompt, prompt_length, *nothing, *nothing, example)


def read_verdicts(form: CriticForm, rollouts):
  """What each completion says in the end, `[marker | label | end token]`: FIRST, SECOND, TIE or UNPARSED, int32 `[n]`.

  Nothing but a label may stand between the last marker and the end; one that was cut at the limit says nothing.
  """
  token_NR, end_N = rollouts.token_NR, rollouts.length_N - 1  # the end token's column

  def stands_before(ids, stop_N):
    column = stop_N[:, None] - len(ids) + jnp.arange(len(ids))[None]
    found = jnp.take_along_axis(token_NR, jnp.clip(column, 0, token_NR.shape[1] - 1), axis=1)
    return ((found == jnp.asarray(ids, jnp.int32)[None]) & (column >= 0)).all(axis=1)

  verdict_N = jnp.full(end_N.shape, UNPARSED, jnp.int32)
  for label, ids in enumerate(form.label_ids):
    start_N = end_N - len(ids)
    opened_N = stands_before(form.marker_ids, start_N) if form.reasoning else start_N == 0
    verdict_N = jnp.where(stands_before(ids, end_N) & opened_N & rollouts.ended_N, label, verdict_N)
  return verdict_N


def forced(form: CriticForm, rollouts, label_N):
  """Where a verdict's reasoning ends, and what should stand behind it, for the supervised warm-up.

  Returns the reasoning's length `[N]`, the marker's ids (none where the prompt holds it), and label and end token,
  `[N, W]` and their length `[N]`. label_N: FIRST, SECOND or TIE.
  """
  width = max(map(len, form.label_ids)) + 1
  table = [[*ids, form.end_ids[0], *[0] * (width - 1 - len(ids))] for ids in form.label_ids]
  length_N = rollouts.length_N - rollouts.ended_N
  if form.reasoning:
    length_N = jnp.minimum(rows.find_marker(rollouts.token_NR, rollouts.length_N, form.marker_ids), length_N)
  else:
    length_N = jnp.zeros_like(length_N)
  lengths = jnp.asarray([len(ids) + 1 for ids in form.label_ids], jnp.int32)
  marker_ids = form.marker_ids if form.reasoning else ()
  return length_N, marker_ids, jnp.asarray(table, jnp.int32)[label_N], lengths[label_N]
