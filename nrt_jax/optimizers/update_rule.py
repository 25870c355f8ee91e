"""OptimizerConfig -> Optax transformation: clipping by global norm, preconditioner, decoupled decay, schedule."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nrt_jax.errors import UserError, require_choice
from nrt_jax.optimizers import quantized_moments as quantized

# Names of leaves without weight decay. ndim can't identify them: layers are stacked, so a norm's scale has two axes.
UNDECAYED = ("scale", "bias")


LARGEST, SMALLEST = float(jnp.finfo(jnp.float32).max), float(jnp.finfo(jnp.float32).tiny)  # smaller ones become 0

MOMENT_DTYPES = ("float32", "bfloat16", "int8")

TRAINABLE = ("all", "token_rows")

# What may use the averaged parameters. Sampling, the next stage and `from_checkpoint` use the trained ones.
AVERAGE_USES = ("evaluation", "export")


@dataclass(frozen=True)
class OptimizerConfig:
  """The update rule. Defaults are those of the released NRT code."""

  name: str = "adamw"  # adamw | sgd (heavy ball)
  learning_rate: float = 2e-6  # peak value
  schedule: str = "constant"  # after the warmup: constant | cosine | linear (both decay to end_ratio of the peak)
  warmup_steps: int = 0  # training steps of linear warmup
  warmup_ratio: float = 0.0  # or the warmup as a fraction of all steps, 0 to 1; set one of the two
  end_ratio: float = 0.0  # final learning rate as a fraction of the peak, 0 to 1 (cosine and linear)
  beta1: float = 0.9  # decay of the first moment; the momentum of sgd
  beta2: float = 0.95  # decay of the second moment (adamw)
  eps: float = 1e-15  # added to the square root of the second moment (adamw); 1.2e-38 or more
  moment_dtype: str = "float32"  # of stored moments: float32 | bfloat16 (first moment only) | int8 (both, in blocks)
  weight_decay: float = 0.01  # decoupled, times the learning rate; excludes norms and biases
  max_grad_norm: float = 1.0  # clips gradients to this global norm; 0 = off
  ema_decay: float = 0.0  # per training step, of a moving average of the trained parameters over the stage; 0 = off
  ema_for: tuple[str, ...] = AVERAGE_USES  # what uses the averaged parameters, if there are any: evaluation, export
  trainable: str = "all"  # all | token_rows: embedding and head alone; the rest stays as it is, bit for bit
  carry_moments: bool = False  # True: the policy's go on from the stage before; False: a stage starts without any
  minibatches: int = 1  # optimizer updates per rollout: a step's prompts are split into this many minibatches
  max_skipped_steps: int = 5  # steps in a row with an update that was skipped, not being finite, until the run stops

  def __post_init__(self):
    require_choice("optimizer.name", self.name, PRECONDITIONERS)
    require_choice("optimizer.trainable", self.trainable, TRAINABLE)
    require_choice("optimizer.schedule", self.schedule, DECAYS)
    require_choice("optimizer.moment_dtype", self.moment_dtype, MOMENT_DTYPES)
    for key in ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm"):
      self._require(key, 0 <= getattr(self, key) <= LARGEST, f"0 to {LARGEST:.7g}")
    self._require("eps", SMALLEST <= self.eps <= LARGEST, "1.2e-38 or more, or a moment of 0 gives 0/0")
    self._require("max_skipped_steps", self.max_skipped_steps >= 1, "1 or more")
    for key in ("warmup_ratio", "end_ratio"):
      self._require(key, 0 <= getattr(self, key) <= 1, "0 to 1")
    for use in self.ema_for:
      require_choice("optimizer.ema_for", use, AVERAGE_USES)
    for key in ("beta1", "beta2", "ema_decay"):
      self._require(key, 0 <= getattr(self, key) < 1, "0 to below 1")
    self._require("minibatches", self.minibatches >= 1, "1 or more")
    self._require("warmup_ratio", not (self.warmup_ratio and self.warmup_steps), "0 where warmup_steps is set")

  def _require(self, key: str, good: bool, allowed: str) -> None:
    if not good:
      raise UserError(f"optimizer.{key}: found {getattr(self, key)!r}, allowed: {allowed}")


def stored_in(dtype: str, inner: optax.GradientTransformation, **moments) -> optax.GradientTransformation:
  """`inner` with moments stored in `dtype` between updates; computation is in float32.

  moments: field of the state -> quantized.Code, first moment first.
  """
  if dtype == "int8":
    return in_eight_bits(inner, moments)
  return in_two_bytes(dtype, inner, next(iter(moments)))


def in_two_bytes(dtype: str, inner: optax.GradientTransformation, moment: str) -> optax.GradientTransformation:
  """Stores the field `moment` in `dtype`.

  Optax's own mu_dtype multiplies in bfloat16, where a beta1 of 0.9 is 0.8984: the moment would be 1.6 % too small. The
  second moment stays in float32: it moves by 1 - beta2 of itself, and bfloat16 loses steps below 1/256.
  """

  def cast(state, dtype):
    return state._replace(**{moment: jax.tree.map(lambda a: a.astype(dtype), getattr(state, moment))})

  def update(updates, state, params=None):
    updates, state = inner.update(updates, cast(state, "float32"), params)
    return updates, cast(state, dtype)

  return optax.GradientTransformation(lambda params: cast(inner.init(params), dtype), update)


class EightBits(NamedTuple):
  """State of a transformation whose moments are quantized.Coded."""

  updates: jax.Array  # int32 [], updates so far; rounding depends on it
  inner: tuple


def in_eight_bits(inner: optax.GradientTransformation, codes: dict) -> optax.GradientTransformation:
  """Stores every field of `codes` as quantized.Coded. Norms and biases, which are small, stay in float32."""

  def encode(state, updates):
    moments = {name: getattr(state, name) for name in codes}
    fields = {name: quantized.encode_tree(codes[name], m, decay_mask(m), updates) for name, m in moments.items()}
    return EightBits(updates, state._replace(**fields))

  def update(updates, state, params=None):
    fields = {name: quantized.decode_tree(code, getattr(state.inner, name)) for name, code in codes.items()}
    updates, after = inner.update(updates, state.inner._replace(**fields), params)
    return updates, encode(after, state.updates + 1)

  return optax.GradientTransformation(lambda params: encode(inner.init(params), jnp.int32(0)), update)


PRECONDITIONER = 1  # its place in the chain of `make_optimizer`
# name -> config -> the transformation from gradients to update directions
PRECONDITIONERS = {
  "adamw": lambda config: stored_in(
    config.moment_dtype,
    optax.scale_by_adam(config.beta1, config.beta2, config.eps),
    mu=quantized.FIRST,
    nu=quantized.SECOND,
  ),
  "sgd": lambda config: stored_in(config.moment_dtype, optax.trace(config.beta1), trace=quantized.FIRST),
}

# schedule -> (config, updates after the warmup) -> learning rate as a function of the updates after the warmup
DECAYS = {
  "constant": lambda config, updates: optax.constant_schedule(config.learning_rate),
  "cosine": lambda config, updates: optax.cosine_decay_schedule(config.learning_rate, updates, config.end_ratio),
  "linear": lambda config, updates: optax.linear_schedule(
    config.learning_rate, config.learning_rate * config.end_ratio, updates
  ),
}


def warmup_updates(config: OptimizerConfig, total_steps: int) -> int:
  """Optimizer updates of the warmup, at most those of the run, so that a run cut short still warms up."""
  steps = config.warmup_steps or round(config.warmup_ratio * total_steps)
  return min(steps, total_steps) * config.minibatches


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """Learning rate as a function of the optimizer updates already made (training step t starts at t * minibatches).

  Warmup over W updates is peak * (update + 1) / W, so that the first update is not zero. The decay over the rest would
  reach end_ratio * peak at update total_steps * minibatches.
  """
  warmup = warmup_updates(config, total_steps)
  decay = DECAYS[config.schedule](config, max(1, total_steps * config.minibatches - warmup))
  if not warmup:
    return decay
  rise = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, warmup - 1)
  return optax.join_schedules([rise, decay], [warmup])


def decay_mask(params):
  """A tree of bools, True where weight decay applies: every leaf whose name is not in UNDECAYED."""

  def decayed(path, _):
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return names[-1] not in UNDECAYED

  return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
  """The update rule for a run (or stage) of `total_steps` training steps; `update` needs the params.

  Clipping by global norm, then the preconditioner, then decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2,
  with the decay scaled by the learning rate as in torch.optim.AdamW), then minus the learning rate.
  """
  clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
  return optax.chain(
    clip,
    PRECONDITIONERS[config.name](config),
    optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
    optax.scale_by_learning_rate(learning_rate(config, total_steps)),
  )


def carried(fresh: tuple, old: tuple) -> tuple:
  """The state of `make_optimizer` at the start of a stage with the moments that the stage before ended with.

  A moment goes on where both stages train the parameter, and so does the count that corrects their bias. The schedule
  starts anew.
  """
  stored = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old[PRECONDITIONER])}

  def choose(path, leaf):
    return stored.get(jax.tree_util.keystr(path), leaf)

  moments = jax.tree_util.tree_map_with_path(choose, fresh[PRECONDITIONER])
  return (*fresh[:PRECONDITIONER], moments, *fresh[PRECONDITIONER + 1 :])
