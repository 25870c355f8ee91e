"""The training state: plain trees, so that checkpoints, shardings and donation need no special cases."""

import jax
from flax import struct


@struct.dataclass
class TrainState:
  """The state that a step updates."""

  step: jax.Array  # int32 [], training steps done, over all stages
  updates: jax.Array  # int32 [], optimizer updates done in this stage
  params: dict  # float32 master parameters (with adapters: theirs, plus frozen weights in the compute dtype)
  opt_state: tuple  # of the stage's optimizer
  key: jax.Array  # typed key of the run; each step folds in its number, so a resumed run draws the same numbers


@struct.dataclass
class States:
  """All state that an algorithm may read: the trained policy, and what it is compared with."""

  policy: TrainState
  reference: dict | None = None  # trainable parameters to compare with: the stage's start, or a moving average
  memory: dict = struct.field(default_factory=dict)  # values that a method carries from step to step
  critic: TrainState | None = None  # a critic with weights of its own; with adapters, params are theirs alone
  critic_reference: dict | None = None  # as `reference`, of that critic
  average: dict | None = None  # trainable parameters averaged over the stage's steps, if `optimizer.ema_decay` is on
