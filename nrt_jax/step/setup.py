"""All that is fixed when a program is built, and the sizes that follow from it."""

import dataclasses
from typing import NamedTuple

import jax

from nrt_jax import sharding
from nrt_jax.algorithms import raro_settings
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.config import RunConfig
from nrt_jax.data.critic_prompts import CriticForm
from nrt_jax.data.prompts import PromptFormat
from nrt_jax.environments.interface import Environment
from nrt_jax.model import kernels, lora
from nrt_jax.model.architecture import ModelConfig

DEVICES = "devices"  # the axis of pmap
CACHED = 2**21  # activations of the MLP that one micro-batch has on a CPU: faster by a quarter than all rows at once


class Setup(NamedTuple):
  """All that is fixed when a program is built."""

  run: RunConfig
  model: ModelConfig
  form: PromptFormat
  mesh: jax.sharding.Mesh | None  # None: one device, or pmap
  critic: CriticForm | None = None  # where the algorithm has a critic
  role: str | None = None  # whose rows alone a batch holds, where each role has its own: policy | critic
  environment: Environment | None = None  # whose worlds the policy's rows live in

  @property
  def algorithm(self):
    return ALGORITHMS[self.run.algorithm_name]

  @property
  def decoder(self) -> ModelConfig:
    """The architecture of `rollout_weights`: adapters are merged into their matrices.

    On a GPU its layers are unrolled unless the config says otherwise: a scan copies each layer's weights out of their
    stack for every token (docs/results/gpu.md).
    """
    decoder = lora.without(self.model)
    unroll = decoder.layer_loop == "auto" and decoder.target == "gpu"
    return dataclasses.replace(decoder, layer_loop="unroll") if unroll else decoder

  @property
  def axis_name(self) -> str | None:
    return DEVICES if self.run.parallel.kind == "pmap" else None

  @property
  def grades_on_host(self) -> bool:
    """Whether a step is two programs, with a Python grader between them."""
    return getattr(self.run.algorithm, "grades_on_host", False)

  @property
  def max_draws(self) -> int:
    """How many draws of prompts_per_step prompts a step may make: it is given so many times as many prompts."""
    return getattr(self.run.algorithm, "max_draws", 1)

  @property
  def waves(self) -> int:
    """In how many waves of `sampling.wave_prompts` prompts a draw is sampled and scored."""
    return self.run.prompts_per_step // self.run.sampling.wave_prompts if self.run.sampling.wave_prompts else 1

  @property
  def samples_per_prompt(self) -> int:
    return self.run.samples_per_prompt if self.algorithm.samples_traces else 1

  @property
  def episodes(self) -> int:
    """Rows that the policy samples in a step."""
    return self.run.prompts_per_step * self.samples_per_prompt

  @property
  def rows_per_prompt(self) -> int:
    """Rows of a TrainBatch that belong to one prompt."""
    if self.algorithm.has_critic:
      return raro_settings.rows_per_prompt(self.run.algorithm, self.samples_per_prompt, self.role)
    return 2 if self.algorithm.pairs else self.samples_per_prompt

  @property
  def rows_together(self) -> int:
    """Adjacent rows that no micro-batch may part: the loss reads them together, or they share their prompt."""
    return max(2 if self.algorithm.pairs else 1, self.shared_rows)

  @property
  def ways(self) -> int:
    """Data-parallel devices."""
    if self.mesh is None:
      return jax.device_count() if self.axis_name else 1
    return sharding.data_parallel_ways(self.mesh)

  @property
  def _row_columns(self) -> int:
    """Columns of a TrainBatch's rows, as the config has them."""
    run = self.run
    if self.algorithm.has_critic:
      rest = (run.sampling.max_trace_length, run.algorithm.critic.max_length)
      return self._prompt_columns + {None: max(rest), "policy": rest[0], "critic": rest[1]}[self.role]
    R = run.sampling.max_trace_length if self.algorithm.samples_traces else run.data.max_trace_length
    unpacked = run.prompt.max_prompt_length + R + len(self.form.marker_ids) + run.prompt.max_answer_length
    return run.data.packing or unpacked

  @property
  def _prompt_columns(self) -> int:
    """Of these, those of the prompt."""
    policy = self.run.prompt.max_prompt_length
    if not self.algorithm.has_critic or self.critic is None:
      return policy
    critic = self.critic.prompt_width
    return {None: max(policy, critic), "policy": policy, "critic": critic}[self.role]

  @property
  def _groups_per_update(self) -> int:
    """Groups of rows with the same prompt, in a minibatch on one device: prompts, and those of a critic."""
    prompts = self.run.prompts_per_step // (self.ways * self.run.optimizer.minibatches)
    return prompts * self.rows_per_prompt // self._rows_of_group

  @property
  def _rows_of_group(self) -> int:
    """Adjacent rows that have the same prompt."""
    if self.algorithm.has_critic:
      return raro_settings.rows_that_share(self.run.algorithm, self.samples_per_prompt, self.role)
    return self.rows_per_prompt

  @property
  def micro_batches(self) -> int:
    """Pieces of a minibatch. By default one, and on CPUs as many as keep the MLP's activations in its caches."""
    if self.run.parallel.micro_batches or self.model.target != "cpu":
      return self.run.parallel.micro_batches or 1
    groups = max(1, self._groups_per_update)
    size = groups * self._rows_of_group * self._row_columns * self.model.mlp_columns
    return next(p for p in range(1, groups + 1) if p == groups or (groups % p == 0 and size <= p * CACHED))

  @property
  def shared_rows(self) -> int:
    """Adjacent rows of a TrainBatch whose prompt the update runs once; 1: each row runs its own.

    By default where that leaves out an eighth of the slots or more, unless micro-batches would part such rows, or an
    attention kernel runs them: kernels take rows that see nothing but themselves.
    """
    shared, choice = self._rows_of_group, self.run.parallel.share_prompts
    if choice == "auto":
      pays = 8 * self._prompt_columns * (shared - 1) >= self._row_columns * shared
      kernel = kernels.choose(self.model, (self.ways, self._row_columns)) in ("cudnn", "splash")  # whole mesh or none
      return shared if pays and not kernel and self._groups_per_update % self.micro_batches == 0 else 1
    return 1 if choice == "off" else shared
