"""The training state: plain trees, so that checkpoints, shardings and donation need no special cases."""

import jax
from flax import struct


@struct.dataclass
class TrainState:
  """What a step changes."""

  step: jax.Array  # int32 [], training steps done, all stages together
  updates: jax.Array  # int32 [], optimizer updates done in this stage
  params: dict  # float32 master parameters (with adapters: those, and frozen weights in the compute dtype)
  opt_state: tuple  # of the stage's optimizer
  key: jax.Array  # typed key of the run; each step folds its number in, so a resumed run draws the same numbers


@struct.dataclass
class States:
  """Every state that an algorithm may read: the policy that is trained, and what it is compared with."""

  policy: TrainState
  reference: dict | None = None  # trainable parameters to compare with: the stage's start, or a moving average
  memory: dict = struct.field(default_factory=dict)  # numbers that a method carries from step to step
  average: dict | None = None  # trainable parameters averaged over the stage's steps, where `optimizer.ema_decay` is on
