"""The two compiled programs behind the model class: scores of given rows, and completions of prompts."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax import sharding
from nrt_jax.data import batches as token_batches
from nrt_jax.data.prompts import completion_stops
from nrt_jax.errors import UserError
from nrt_jax.harness import batching
from nrt_jax.harness.batching import Row
from nrt_jax.harness.opening import Opened
from nrt_jax.harness.stop_strings import StopStrings
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import forward
from nrt_jax.rollout import sampler
from nrt_jax.rollout.sampler import SamplingConfig
from nrt_jax.rollout.scoring import best_log_probs


def score_rows(config: ModelConfig, weights, token_NL, length_N, final_NK, scored: int):
  """How likely the last `scored` tokens of each row are, the last of which is not in it.

  Args: rows are padded on the left; final_NK: the tokens that may follow the last column.
  Returns: (log-probabilities of the tokens in the last `scored` - 1 columns `[N, scored - 1]`, of the final ones
  `[N, K]`, and the likeliest token in each of the `scored` places, int32 `[N, scored]`).
  """
  L = token_NL.shape[1]
  position_NL = jnp.arange(L)[None] - (L - length_N[:, None])
  hidden_NLD, _ = forward(weights, config, token_NL, jnp.maximum(position_NL, -1))
  before = hidden_NLD[:, L - scored :]
  target = jnp.concatenate([token_NL[:, L - scored + 1 :], final_NK[:, :1]], 1)
  logp, best = best_log_probs(weights, config, before, target)
  others = jnp.broadcast_to(before[:, -1:], (len(token_NL), final_NK.shape[1], before.shape[2]))
  final_logp, _ = best_log_probs(weights, config, others, final_NK)
  return logp[:, :-1], final_logp, best


class Engine:
  """Runs batches of one size on an opened model; each width of rows is a program, compiled when it is first met.

  size: rows of a batch, rounded up to a multiple of the data-parallel devices.
  """

  def __init__(self, opened: Opened, size: int):
    ways = 1 if opened.setup.mesh is None else sharding.data_parallel_ways(opened.setup.mesh)
    if size < 1:
      raise UserError(f"--batch: found {size}, allowed: 1 or more")
    self.opened, self.size, self.config = opened, -(-size // ways) * ways, opened.setup.decoder
    self._score = self._jit(functools.partial(score_rows, self.config), static_argnames="scored")
    self._generate = {}  # sampling -> program

  def _jit(self, program, **how):
    mesh = self.opened.setup.mesh
    return jax.jit(program, **how, **({} if mesh is None else {"out_shardings": sharding.replicated(mesh)}))

  def _place(self, rows):
    mesh = self.opened.setup.mesh
    return rows if mesh is None else sharding.place_rows(mesh, rows)

  def score(self, rows: list[Row]) -> Iterator[tuple[int, float, bool]]:
    """(request, log-probability of its continuation, whether greedy decoding would write it), in any order."""
    most = self.opened.max_length
    for columns, some in batching.batches(rows, lambda row: len(row.input_ids), self.size, most):
      *arrays, scored = batching.pack_rows(some, columns, self.size, self.opened.form.pad_id)
      with self.opened.on_mesh():
        found = self._score(self.opened.weights, *self._place(tuple(arrays)), scored=scored)
      yield from read_scores(some, *map(np.asarray, found))

  def complete(self, prompts: list, sampling: SamplingConfig, key, table_SV=None) -> Iterator[tuple[int, list]]:
    """(index of a prompt, token ids of its completion, with its stop token), in any order.

    prompts: lists of ids; table_SV: of stop strings, see stop_strings.build_table. What is sampled depends on the key
    and the prompt's index alone.
    """
    room = self.opened.max_length - sampling.max_trace_length
    generate = self._program(sampling)
    table_SV = None if table_SV is None else jnp.asarray(table_SV)
    pad_id = self.opened.form.pad_id
    indices = range(len(prompts))
    for columns, some in batching.batches(list(indices), lambda i: len(prompts[i]), self.size, room):
      filled = some + [some[-1]] * (self.size - len(some))
      rows, nothing = [prompts[i] for i in filled], [[]] * self.size
      batch = token_batches.pack(rows, [[pad_id]] * self.size, nothing, filled, (columns, 1, 0), pad_id)
      with self.opened.on_mesh():
        made = generate(self.opened.weights, self._place(batch), key, table_SV)
      token_NR, length_N = map(np.asarray, made)
      for row, index in enumerate(some):
        yield index, token_NR[row, : length_N[row]].tolist()

  def _program(self, sampling: SamplingConfig) -> Callable:
    def generate(weights, prompts, key, table_SV):
      how = (self.config, sampling, completion_stops(self.opened.form), self.opened.form.pad_id)
      watching = None if table_SV is None else StopStrings(table_SV)
      made, _ = sampler.sample(weights, *how, prompts, key, 1, watching)
      return made.token_NR, made.length_N

    if sampling not in self._generate:
      self._generate[sampling] = self._jit(generate)
    return self._generate[sampling]


def read_scores(rows: list[Row], logp_NT, final_logp_NK, best_NT) -> Iterator[tuple[int, float, bool]]:
  """What `score_rows` found of each continuation: see Engine.score."""
  for n, row in enumerate(rows):
    for request, ids in row.members:
      inner = logp_NT[n, logp_NT.shape[1] - (len(ids) - 1) :].sum(dtype=np.float64)
      logp = inner + float(final_logp_NK[n, row.final_ids.index(ids[-1])])
      yield request, float(logp), tuple(best_NT[n, best_NT.shape[1] - len(ids) :].tolist()) == ids
