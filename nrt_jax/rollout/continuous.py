"""Sampling in slots: a row that ends makes room for the next of a queue, inside of the one program.

Plain sampling (sampler.py) decodes all rows until the longest has ended. Here S slots serve N rows:

    while a slot holds a row:
      tokens   for the rows that go on: the loop comes in a few shapes (rows, cache columns), and the smallest is taken
      event    once K rows have ended: score their answers on their caches, write them out, start the next K rows

The slots' trace cache is a ring of W columns; in each step all slots write the same one, `step` modulo W. Attention
goes by position, so rows of any age lie side by side, and a row that starts only clears its positions. A row is scored
before its columns come round again, so no cache of all N rows exists. Each row has a key of its own: its tokens are
those of plain sampling.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from nrt_jax.arrays import AnswerScores, Prompts, Rollouts
from nrt_jax.environments.interface import Environment
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.attention import KVCache, empty_cache, put_slots
from nrt_jax.model.decoder import forward, logits
from nrt_jax.rollout import episodes, sampler
from nrt_jax.rollout.episodes import Episodes
from nrt_jax.rollout.sampler import Context, SamplingConfig
from nrt_jax.sharding import lockstep_axes

FEWEST = 8  # rows: a token loop of fewer is no faster


class Job(NamedTuple):
  """What does not change while N rows are sampled."""

  params: dict
  config: ModelConfig
  sampling: SamplingConfig
  stop_ids: tuple
  pad_id: int
  prompts: Prompts
  samples: int  # per prompt
  prompt_hidden_BD: jax.Array
  prompt_cache: KVCache  # B rows
  keys_N: jax.Array
  slots: int  # S
  columns: int  # W
  score: Callable  # see `sample`
  environment: Environment | None

  @property
  def rows(self) -> int:
    return self.keys_N.shape[0]

  @property
  def together(self) -> int:
    """K: rows that are scored, written out and replaced at once. On average half as many slots are idle."""
    return max(1, self.slots // 8)


@struct.dataclass
class Slots:
  """The row that each slot serves."""

  row_S: jax.Array  # int32, its number; N: none
  start_S: jax.Array  # int32, the step at which it began
  length_S: jax.Array  # int32, tokens sampled so far
  ended_S: jax.Array  # bool, by a stop token or the limit; true where the slot serves none
  stopped_S: jax.Array  # bool, by a stop token
  hidden_SD: jax.Array  # predicts the next token
  episodes: Episodes | None  # of an environment


@struct.dataclass
class Ring:
  """What a step writes: one column of each."""

  token_SW: jax.Array
  logp_SW: jax.Array
  forced_SW: jax.Array | None  # bool, tokens that an environment wrote
  cache: KVCache


@struct.dataclass
class State:
  step: jax.Array  # int32 []
  queue: jax.Array  # int32 [], the row that starts next
  slots: Slots
  prompt_cache: KVCache  # S rows: each slot has a copy of its prompt's
  ring: Ring
  written: tuple[Rollouts, AnswerScores]  # N rows


def shapes(slots: int, columns: int, stages: int) -> list[tuple[int, int]]:
  """(rows, cache columns) of the token loops, small ones first: rows halve, and fewer rows have fewer sizes of cache.

  Every number of rows comes with all columns, so that some shape always fits.
  """
  table = []
  for halvings in range(5):
    rows = -(-slots // 2**halvings)
    if halvings == 0 or rows >= FEWEST:
      table += [(rows, size) for size in sampler.cache_sizes(columns, max(1, stages >> halvings))]
  return sorted(table)


def _slot_axis(x) -> int:
  return max(0, x.ndim - 4)  # caches of scanned layers have the layers first


def _column_axis(x) -> int:
  return 1 if x.ndim < 4 else x.ndim - 2


def take_slots(tree, index_K):
  """The slots `index_K` of each array."""
  return jax.tree.map(lambda x: jnp.take(x, index_K, axis=_slot_axis(x), mode="clip"), tree)


def fill_slots(tree, index_K, new):
  """Each array with `new` in the slots `index_K`; an index behind the last slot writes nothing."""

  def one(old, new):
    return old.at[(slice(None),) * _slot_axis(old) + (index_K,)].set(new, mode="drop")

  return jax.tree.map(one, tree, new)


def _start(job: Job, row_K, step) -> tuple[Slots, KVCache]:
  """Slots at the beginning of these rows, and their prompts' caches; row N stands for no row."""
  row = jnp.minimum(row_K, job.rows - 1)
  prompt, none = row // job.samples, row_K >= job.rows
  slots = Slots(
    row_S=row_K,
    start_S=jnp.full(row.shape, step, jnp.int32),
    length_S=jnp.zeros(row.shape, jnp.int32),
    ended_S=none,
    stopped_S=jnp.zeros(row.shape, bool),
    hidden_SD=job.prompt_hidden_BD[prompt],
    episodes=None,
  )
  if job.environment is not None:
    of_rows = jax.tree.map(lambda x: x[prompt], job.prompts)
    slots = slots.replace(episodes=episodes.begin(job.environment, of_rows))
  return slots, take_slots(job.prompt_cache, prompt)


def _waiting(job: Job, slots: Slots):
  """Which slots hold a row that has ended, and is to be scored."""
  return slots.ended_S & (slots.row_S < job.rows)


def _late(job: Job, slots: Slots, step):
  """Whether the next step would write over a row that is to be scored."""
  return _most(_waiting(job, slots) & (step - slots.start_S >= job.columns))


def _most(x):
  """The maximum, also over the devices that must take the same turns: all where a program cuts single rows, too."""
  axes = lockstep_axes()
  return jax.lax.pmax(jnp.max(x), axes) if axes else jnp.max(x)


def _going(slots: Slots):
  return _most(jnp.sum(~slots.ended_S))


# ---------------------------------------------------------------------------------------------------------- tokens


def _one_token(job: Job, keys_S, prompt_length_S, prompt_cache, step, slots: Slots, ring: Ring):
  with jax.named_scope("sample_token"):
    scores = logits(job.params, job.config, slots.hidden_SD)
    token, logp = sampler.choose(scores, sampler.uniforms(keys_S, slots.length_S), job.sampling)
  alive, forced = ~slots.ended_S, None
  if job.environment is not None:
    token, logp, forced = episodes.write(slots.episodes, token, logp)
  stop = alive & (token[:, None] == jnp.asarray(job.stop_ids, jnp.int32)[None]).any(-1)
  if job.environment is not None:
    after, done = episodes.follow(job.environment, slots.episodes, token, forced, alive)
    slots, stop = slots.replace(episodes=after), stop | done
  grows, column = alive & ~stop, step % job.columns
  position = jnp.where(grows, prompt_length_S + slots.length_S, -1)
  with jax.named_scope("decode"):
    caches = (prompt_cache, ring.cache)
    hidden, cache = forward(job.params, job.config, token[:, None], position[:, None], caches, slot=column)
  slots = slots.replace(
    length_S=slots.length_S + alive,
    ended_S=slots.ended_S | stop | (slots.length_S + 1 >= job.sampling.max_trace_length),
    stopped_S=slots.stopped_S | stop,
    hidden_SD=jnp.where(grows[:, None], hidden[:, 0], slots.hidden_SD),
  )
  put = lambda old, new: None if old is None else put_slots(old, new[:, None], column, 1)
  written = (put(ring.token_SW, token), put(ring.logp_SW, logp), put(ring.forced_SW, forced))
  return step + 1, slots, Ring(*written, cache)


def _token_loop(job: Job, rows: int, columns: int, fewer: int):
  """The token loop in one shape: until an event is due, or another shape fits better (`fewer` rows or more columns)."""

  def cut(ring):
    return jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, columns, axis=_column_axis(x)), ring)

  def run(state: State) -> State:
    going_first = jnp.argsort(state.slots.ended_S, stable=True)[:rows]
    whole = (state.slots, state.prompt_cache, state.ring)
    slots, prompt_cache, ring = whole if rows == job.slots else take_slots(whole, going_first)
    elsewhere = _waiting(job, state.slots).sum() - _waiting(job, slots).sum()
    fewer_now = jnp.where(_most(job.rows - state.queue) > 0, 0, fewer)
    row = jnp.minimum(slots.row_S, job.rows - 1)
    constant = (job.keys_N[row], job.prompts.prompt_length_B[row // job.samples], prompt_cache)

    def go_on(carry):
      step, slots, _ = carry
      fits = (_going(slots) > fewer_now) & ((step < columns) | (columns == job.columns))
      waiting = _most(elsewhere + _waiting(job, slots).sum())
      return fits & (waiting < job.together) & ~_late(job, slots, step)

    one_token = functools.partial(_one_token, job, *constant)
    step, slots, narrow = jax.lax.while_loop(go_on, lambda carry: one_token(*carry), (state.step, slots, cut(ring)))
    if columns < job.columns:
      narrow = jax.tree.map(lambda old, new: put_slots(old, new, 0, _column_axis(old)), ring, narrow)
    if rows < job.slots:
      slots, narrow = fill_slots((state.slots, state.ring), going_first, (slots, narrow))
    return state.replace(step=step, slots=slots, ring=narrow)

  return run


def _tokens(job: Job, state: State) -> State:
  """Runs the token loop in the smallest shape that holds the rows that go on, and all columns written so far."""
  stages = job.sampling.cache_stages or (4 if job.columns >= 128 else 1)
  table = shapes(job.slots, job.columns, stages)
  rows, columns = jnp.asarray(table).T
  fits = (rows >= _going(state.slots)) & ((state.step < columns) | (columns == job.columns))
  loops = [_token_loop(job, n, w, max((m for m, _ in table if m < n), default=0)) for n, w in table]
  return jax.lax.switch(jnp.argmax(fits), loops, state)


# ----------------------------------------------------------------------------------------------------------- events


def _scored(job: Job, slots: Slots, prompt_cache: KVCache, ring: Ring):
  """Rollouts and AnswerScores of the rows in these slots."""
  prompt = jnp.minimum(slots.row_S, job.rows - 1) // job.samples
  column = jnp.arange(job.sampling.max_trace_length)[None]
  place, valid = (slots.start_S[:, None] + column) % job.columns, column < slots.length_S[:, None]
  token = jnp.where(valid, jnp.take_along_axis(ring.token_SW, place, 1), job.pad_id)
  last = jnp.take_along_axis(token, jnp.maximum(slots.length_S - 1, 0)[:, None], 1)[:, 0]
  rollouts = Rollouts(
    token_NR=token,
    length_N=slots.length_S,
    logp_NR=jnp.where(valid, jnp.take_along_axis(ring.logp_SW, place, 1), 0.0),
    ended_N=slots.stopped_S,
    marker_N=slots.stopped_S & (last == job.stop_ids[0]),
  )
  if job.environment is not None:
    forced = valid & jnp.take_along_axis(ring.forced_SW, place, 1)
    rollouts = episodes.finish(job.environment, slots.episodes, rollouts, forced)
  context = Context(prompt_cache, ring.cache, job.prompt_hidden_BD[prompt], slots.hidden_SD)
  return job.score(jax.tree.map(lambda x: x[prompt], job.prompts), rollouts, context)


def _event(job: Job, state: State) -> State:
  """Scores and writes out the oldest K rows that have ended, and starts the next of the queue in their slots."""
  age_S = jnp.where(_waiting(job, state.slots), state.step - state.slots.start_S, -1)
  age_K, index_K = jax.lax.top_k(age_S, job.together)
  ended = age_K >= 0  # there may be fewer than K
  slots, *caches = take_slots((state.slots, state.prompt_cache, state.ring), index_K)
  written = fill_slots(state.written, jnp.where(ended, slots.row_S, job.rows), _scored(job, slots, *caches))

  row_K = jnp.where(ended, jnp.minimum(state.queue + jnp.cumsum(ended) - 1, job.rows), job.rows)
  started, prompt_cache = _start(job, row_K, state.step)
  begins_K = jnp.where(row_K < job.rows, index_K, job.slots)
  cache = state.ring.cache
  return state.replace(
    queue=jnp.minimum(state.queue + ended.sum(), job.rows),
    slots=fill_slots(state.slots, jnp.where(ended, index_K, job.slots), started),
    prompt_cache=fill_slots(state.prompt_cache, begins_K, prompt_cache),
    ring=state.ring.replace(cache=cache.replace(position_MS=cache.position_MS.at[begins_K].set(-1, mode="drop"))),
    written=written,
  )


def _due(job: Job, state: State):
  """Whether rows must be scored before the next token."""
  enough = _most(_waiting(job, state.slots).sum()) >= job.together
  return enough | _late(job, state.slots, state.step) | (_going(state.slots) == 0)


def _first_state(job: Job) -> State:
  slots, prompt_cache = _start(job, jnp.arange(job.slots), 0)
  S, W = job.slots, job.columns
  cache = sampler.constrain_cache(empty_cache(job.config, S, W, sampler.cache_dtype(job.config, job.sampling)))
  forced = None if job.environment is None else jnp.zeros((S, W), bool)
  ring = Ring(jnp.zeros((S, W), jnp.int32), jnp.zeros((S, W)), forced, cache)
  one_row = jax.eval_shape(lambda *slots: _scored(job, *slots), slots, prompt_cache, ring)
  written = jax.tree.map(lambda x: jnp.zeros((job.rows, *x.shape[1:]), x.dtype), one_row)
  return State(jnp.int32(0), jnp.int32(S), slots, prompt_cache, ring, written)


def sample(
  params,
  config: ModelConfig,
  sampling: SamplingConfig,
  slots: int,
  stop_ids,
  pad_id,
  prompts: Prompts,
  key,
  samples: int,
  score: Callable,
  environment: Environment | None = None,
):
  """Samples as sampler.sample does, `slots` rows at a time, and scores each row's answer when it has ended.

  score: (Prompts, Rollouts, Context), all of the same rows -> (Rollouts, AnswerScores).
  Returns: Rollouts [N], AnswerScores [N], and of the prompts the last hidden states [B, D] and the cache.
  """
  with jax.named_scope("prefill"):
    dtype = sampler.cache_dtype(config, sampling)
    prompt_hidden_BD, prompt_cache = sampler.prefill(params, config, prompts, dtype)
  keys_N, R = sampler.row_keys(key, prompts.example_B, samples), sampling.max_trace_length
  S = min(slots, keys_N.shape[0])
  # With a queue the ring is longer than a trace, so that a row at the limit may wait for others to end.
  W = R if S == keys_N.shape[0] else R + max(1, R // 8)
  made = (prompts, samples, prompt_hidden_BD, prompt_cache, keys_N)
  job = Job(params, config, sampling, tuple(stop_ids), pad_id, *made, S, W, score, environment)

  def turn(state: State) -> State:
    state = _tokens(job, state)
    return jax.lax.cond(_due(job, state), lambda s: _event(job, s), lambda s: s, state)

  state = jax.lax.while_loop(lambda s: _most(s.slots.row_S < job.rows), turn, _first_state(job))
  return *state.written, prompt_hidden_BD, prompt_cache
