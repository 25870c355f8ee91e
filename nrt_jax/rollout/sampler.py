"""Sampling traces: one prefill per prompt, then one `lax.while_loop` that stops as soon as every row has ended.

The G samples of a prompt share its keys and values `[B]`; each row appends to its own trace cache `[B * G]`. Random
numbers come from one key per row, so a row's tokens do not depend on the rest of the batch.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from nrt_jax.arrays import Prompts, Rollouts, repeat_rows
from nrt_jax.environments.interface import Environment
from nrt_jax.errors import UserError, require_choice
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.attention import KVCache, empty_cache, grow_cache, store_cache
from nrt_jax.model.decoder import forward, logits
from nrt_jax.rollout import episodes
from nrt_jax.rollout.episodes import Episodes
from nrt_jax.sharding import constrain

MIN_TEMPERATURE = 1e-6
BLOCK = 128  # vocabulary columns summed at once when inverting the cumulative distribution


@dataclass(frozen=True)
class SamplingConfig:
  """How traces are drawn."""

  max_trace_length: int = 64  # tokens, including the stop token (R)
  temperature: float = 1.0  # 0 = greedy, else 1e-6 or more
  top_k: int = 0  # 0 = off
  top_p: float = 1.0  # 1 = off
  cache_stages: int = 0  # stages in which the trace cache grows, so that short traces attend to few slots; 0 = auto
  wave_prompts: int = 0  # prompts sampled and scored at a time, to bound the cache; 0 = all prompts of a step
  cache_dtype: str = "auto"  # of keys and values in sampling and scoring: auto (compute dtype) | bfloat16 | int8
  slots: int = 0  # rows decoded at a time in training; a row that ends is replaced by the next; 0 = all, no refill

  def __post_init__(self):
    if self.max_trace_length < 1:
      raise UserError(f"sampling.max_trace_length: found {self.max_trace_length}, allowed: 1 or more")
    check_temperature("sampling.temperature", self.temperature)
    if self.top_k < 0:
      raise UserError(f"sampling.top_k: found {self.top_k}, allowed: 0 (off) or more")
    if not 0 < self.top_p <= 1:
      raise UserError(f"sampling.top_p: found {self.top_p}, allowed: above 0, up to 1 (off)")
    require_choice("sampling.cache_dtype", self.cache_dtype, ("auto", "bfloat16", "int8"))
    for key in ("cache_stages", "wave_prompts", "slots"):
      if getattr(self, key) < 0:
        raise UserError(f"sampling.{key}: found {getattr(self, key)}, allowed: 0 (chosen for you) or more")
    if self.slots and self.wave_prompts:
      raise UserError(f"sampling.slots: found {self.slots} with wave_prompts {self.wave_prompts}, allowed: one of them")


def check_temperature(name: str, value: float) -> None:
  """Raises UserError unless it is 0 or keeps logits divided by it finite in every dtype."""
  if value != 0 and not value >= MIN_TEMPERATURE:
    raise UserError(f"{name}: found {value}, allowed: 0 (greedy), or {MIN_TEMPERATURE} or more")


@struct.dataclass
class Context:
  """The model's state when sampling ends: enough to continue any row without a second pass."""

  prompt_cache: KVCache  # B rows
  trace_cache: KVCache  # N rows; the stop token is not in it
  prompt_hidden_BD: jax.Array  # final hidden state of the last prompt token
  hidden_ND: jax.Array  # final hidden state of the last trace token, or of the last prompt token if the trace is empty


@struct.dataclass
class LoopState:
  step: jax.Array  # int32 [], tokens sampled so far
  token_NR: jax.Array
  logp_NR: jax.Array
  length_N: jax.Array
  ended_N: jax.Array  # bool, a stop token was sampled
  hidden_ND: jax.Array  # predicts the next token
  cache: KVCache
  forced_NR: jax.Array | None = None  # bool, tokens that an environment wrote
  episodes: Episodes | None = None


def row_keys(key, example_B, samples_per_prompt: int):
  """One key per row, from (step key, example, sample)."""

  def one(example, sample):
    return jax.random.fold_in(jax.random.fold_in(key, example), sample)

  example_N = repeat_rows(example_B, samples_per_prompt)
  return jax.vmap(one)(example_N, jnp.arange(example_N.shape[0]) % samples_per_prompt)


def filter_logits(logits_NV, top_k: int, top_p: float):
  """Sets to -inf what top-k, then nucleus sampling (arXiv 1904.09751 section 3.1) exclude; ties at the edge stay."""
  if 0 < top_k < logits_NV.shape[-1]:
    kth = jax.lax.top_k(logits_NV, top_k)[0][:, -1:]
    logits_NV = jnp.where(logits_NV >= kth, logits_NV, -jnp.inf)
  if top_p < 1:
    descending = -jnp.sort(-logits_NV, axis=-1)
    probability = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability  # mass of likelier tokens; the likeliest is always kept
    edge = jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
    logits_NV = jnp.where(logits_NV >= edge, logits_NV, -jnp.inf)
  return logits_NV


def _first_above(weight_NC, target_N):
  """Index of the first column whose cumulative weight exceeds the target, and the cumulative weight before it."""
  cumulative = jnp.cumsum(weight_NC, axis=-1)
  # Rounding may put the target at or above the total; then use the last column with any weight.
  last = weight_NC.shape[-1] - 1 - jnp.argmax(weight_NC[:, ::-1] > 0, axis=-1)
  above = cumulative > target_N[:, None]
  index = jnp.where(above.any(-1), jnp.argmax(above, axis=-1), last)
  before = jnp.take_along_axis(cumulative - weight_NC, index[:, None], -1)[:, 0]
  return index, before


def draw(logits_NV, uniform_N):
  """Samples softmax(logits) by inverting its cumulative distribution, with one uniform number per row.

  Two levels (blocks, then columns of one block) read the logits once; a Gumbel draw would need N * V random numbers.
  If `tensor` shards the vocabulary into whole blocks (policy.vocabulary_padding), only the block sums and the chosen
  block move between devices.
  """
  N, V = logits_NV.shape
  weight = jnp.exp(logits_NV - logits_NV.max(-1, keepdims=True))
  weight = jnp.pad(weight, ((0, 0), (0, -V % BLOCK))).reshape(N, -1, BLOCK)
  block_sum = constrain(weight.sum(-1), "batch", None)
  target_N = uniform_N * block_sum.sum(-1)
  block, before = _first_above(block_sum, target_N)
  inside = jnp.take_along_axis(weight, block[:, None, None], axis=1)[:, 0]
  column, _ = _first_above(inside, target_N - before)
  return (block * BLOCK + column).astype(jnp.int32)


def uniforms(keys_N, step):
  """The uniform number `[N]` that draws each row's next token; step: int32 [] or [N], tokens sampled so far."""
  fold = jax.vmap(jax.random.fold_in, in_axes=(0, 0 if jnp.ndim(step) else None))
  return jax.vmap(jax.random.uniform)(fold(keys_N, step))


def choose(logits_NV, uniform_N, sampling: SamplingConfig):
  """The next token of each row and its log-probability at the sampling temperature (before top-k and top-p)."""
  greedy = sampling.temperature == 0
  scaled = logits_NV if greedy else logits_NV / sampling.temperature
  if greedy:
    token = jnp.argmax(scaled, -1).astype(jnp.int32)
  else:
    token = draw(filter_logits(scaled, sampling.top_k, sampling.top_p), uniform_N)
  logp = jnp.take_along_axis(scaled, token[:, None], -1)[:, 0] - jax.nn.logsumexp(scaled, -1)
  return token, logp


def cache_sizes(trace_length: int, stages: int) -> list[int]:
  """Slots of the trace cache in each stage of the loop, increasing to `trace_length`; one program runs all stages."""
  stages = stages or (4 if trace_length >= 128 else 1)
  return sorted({-(-trace_length * i // stages) for i in range(1, stages + 1)})


def constrain_cache(cache: KVCache) -> KVCache:
  def one(x):
    return constrain(x, *(None,) * (x.ndim - 4), "batch", "kv_heads", None, None)

  return cache.replace(key=jax.tree.map(one, cache.key), value=jax.tree.map(one, cache.value))


def cache_dtype(config: ModelConfig, sampling: SamplingConfig):
  """The dtype in which keys and values are stored."""
  return jnp.dtype(config.compute_dtype if sampling.cache_dtype == "auto" else sampling.cache_dtype)


def prefill(params, config: ModelConfig, prompts: Prompts, dtype=None):
  """Runs the prompts once. Returns the final hidden state of their last tokens `[B, D]`, and their cache.

  dtype: that of the cache; None keeps the compute dtype.
  """
  P = prompts.prompt_BP.shape[1]
  position_BP = jnp.arange(P)[None] - (P - prompts.prompt_length_B[:, None])
  hidden_BPD, cache = forward(params, config, prompts.prompt_BP, jnp.maximum(position_BP, -1))
  return hidden_BPD[:, -1], cache if dtype is None else store_cache(cache, dtype)


def sample(
  params,
  config: ModelConfig,
  sampling: SamplingConfig,
  stop_ids,
  pad_id,
  prompts: Prompts,
  key,
  samples: int,
  environment: Environment | None = None,
):
  """Samples `samples` traces for each prompt until a stop token or the length limit.

  Args: stop_ids: tuple of token ids that end a trace; pad_id: fills token_NR after them; key: the step's key;
  environment: an Environment whose worlds the rows live in, or None.
  Returns: Rollouts (marker_N: the stop token was stop_ids[0]) and the Context for scoring on the same caches.
  """
  R = sampling.max_trace_length
  with jax.named_scope("prefill"):
    dtype = cache_dtype(config, sampling)
    prompt_hidden_BD, prompt_cache = prefill(params, config, prompts, dtype)
  prompt_length_N = repeat_rows(prompts.prompt_length_B, samples)
  N = prompt_length_N.shape[0]
  # Drawn for all steps at once: the few numbers of one step cost more to launch than to compute.
  uniform_RN = jax.vmap(uniforms, (None, 0))(row_keys(key, prompts.example_B, samples), jnp.arange(R))
  stops = jnp.asarray(stop_ids, jnp.int32)

  def keep_going(slots):
    return lambda state: (state.step < slots) & ~jnp.all(state.ended_N)

  def one_token(state: LoopState) -> LoopState:
    with jax.named_scope("sample_token"):
      token, logp = choose(logits(params, config, state.hidden_ND), uniform_RN[state.step], sampling)
    alive, forced = ~state.ended_N, None
    if environment is not None:
      token, logp, forced = episodes.write(state.episodes, token, logp)
    stop = alive & (token[:, None] == stops[None]).any(-1)
    if environment is not None:
      state, done = _follow(environment, state, token, forced, alive)
      stop |= done
    grows = alive & ~stop
    position = jnp.where(grows, prompt_length_N + state.step, -1)
    with jax.named_scope("decode"):
      caches = (prompt_cache, state.cache)
      hidden, cache = forward(params, config, token[:, None], position[:, None], caches, slot=state.step)
    put = jax.lax.dynamic_update_slice_in_dim
    return state.replace(
      step=state.step + 1,
      token_NR=put(state.token_NR, jnp.where(alive, token, pad_id)[:, None], state.step, 1),
      logp_NR=put(state.logp_NR, jnp.where(alive, logp, 0.0)[:, None], state.step, 1),
      length_N=state.length_N + alive,
      ended_N=state.ended_N | stop,
      hidden_ND=jnp.where(grows[:, None], hidden[:, 0], state.hidden_ND),
      cache=cache,
    )

  state = LoopState(
    step=jnp.int32(0),
    token_NR=jnp.full((N, R), pad_id, jnp.int32),
    logp_NR=jnp.zeros((N, R)),
    length_N=jnp.zeros(N, jnp.int32),
    ended_N=jnp.zeros(N, bool),
    hidden_ND=repeat_rows(prompt_hidden_BD, samples),
    cache=constrain_cache(empty_cache(config, N, 0, dtype)),
  )
  if environment is not None:
    started = repeat_rows(episodes.begin(environment, prompts), samples)
    state = state.replace(forced_NR=jnp.zeros((N, R), bool), episodes=started)
  for slots in cache_sizes(R, sampling.cache_stages):
    state = state.replace(cache=grow_cache(state.cache, slots))
    state = jax.lax.while_loop(keep_going(slots), one_token, state)
  last = jnp.take_along_axis(state.token_NR, jnp.maximum(state.length_N - 1, 0)[:, None], 1)[:, 0]
  rollouts = Rollouts(
    token_NR=state.token_NR,
    length_N=state.length_N,
    logp_NR=state.logp_NR,
    ended_N=state.ended_N,
    marker_N=state.ended_N & (last == stop_ids[0]),
  )
  if environment is not None:
    rollouts = episodes.finish(environment, state.episodes, rollouts, state.forced_NR)
  return rollouts, Context(prompt_cache, state.cache, prompt_hidden_BD, state.hidden_ND)


def _follow(environment, state: LoopState, token_N, forced_N, alive_N):
  """(The state with the worlds after these tokens, the next column's: bool `[N]`: the row is done)."""
  after, done_N = episodes.follow(environment, state.episodes, token_N, forced_N, alive_N)
  column_N1 = (forced_N & alive_N)[:, None]
  forced_NR = jax.lax.dynamic_update_slice_in_dim(state.forced_NR, column_N1, state.step, 1)
  return state.replace(episodes=after, forced_NR=forced_NR), done_N
