"""The second half of a step: gradients summed over micro-batches, and one optimizer step for each minibatch.

An update whose gradient is not finite is skipped: the parameters and the optimizer stay as they were, bit for bit.

Rows may go into micro-batches by length. Each is then run at one of a few static widths, the narrowest that holds its
rows, so that short traces don't pay for the longest one; one `lax.switch` inside of the accumulating scan picks it.
Rows that share a prompt may besides be packed, one behind the other: then the width is what they need together.
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax

from nrt_jax import rows
from nrt_jax.algorithms.interface import Tools
from nrt_jax.model import lora
from nrt_jax.optimizers.update_rule import learning_rate, make_optimizer
from nrt_jax.sharding import batch_ways
from nrt_jax.step import offload
from nrt_jax.step.setup import Setup
from nrt_jax.step.state import TrainState
from nrt_jax.step.tools import needed_columns, packs, shares_prompts, slots_run

FIRST_MINIBATCH = ("policy/mismatch",)  # metrics that compare with the sampler, before any update has moved the policy
PACKED_RATIO = 0.8  # of one static width of packed rows to the next: sums of lengths lie far below the widest


def update(setup: Setup, tools: Tools, state: TrainState, batch) -> tuple[TrainState, dict]:
  """One optimizer step per minibatch of the rollout; returns the new state and the metric sums."""
  run = setup.run
  optimizer = make_optimizer(run.optimizer, run.total_steps)
  trainable, frozen = lora.split(state.params, setup.model)

  def move(grads, trainable, opt_state):
    changes, opt_state = optimizer.update(grads, opt_state, trainable)
    return optax.apply_updates(trainable, changes), opt_state

  def keep(trainable, opt_state):
    return trainable, opt_state

  def one_update(carry, minibatch):
    trainable, waiting, done = carry
    with jax.named_scope("gradients"):
      grads, sums = gradients(setup, tools, trainable, frozen, minibatch)
    grads = tools.all_sum(grads)
    norm, limit = optax.tree.norm(grads), run.optimizer.max_grad_norm
    with jax.named_scope("optimizer"):
      opt_state = offload.fetch(setup, "optimizer", waiting)
      good = jnp.isfinite(norm)
      # A branch works in place; choosing between two results would need room for both.
      trainable, opt_state = jax.lax.cond(good, functools.partial(move, grads), keep, trainable, opt_state)
      waiting = offload.store(setup, "optimizer", opt_state)
    sums = gather_sums(setup, sums)
    sums["optimizer/grad_norm"] = (norm, 1.0)
    sums["optimizer/clipped"] = (jnp.float32(norm > limit) if limit else jnp.float32(0), 1.0)
    sums["optimizer/lr"] = (jnp.float32(learning_rate(run.optimizer, run.total_steps)(done)), 1.0)
    sums["optimizer/skipped"] = (jnp.float32(~good), 1.0)
    return (trainable, waiting, done + good), sums

  carry = (trainable, offload.store(setup, "optimizer", state.opt_state), state.updates)
  if run.optimizer.minibatches == 1:
    carry, sums = one_update(carry, batch)
  else:
    minibatches = rows.cut_groups(batch, run.optimizer.minibatches, setup.rows_per_prompt)
    carry, each = jax.lax.scan(one_update, carry, minibatches)
    sums = {name: over_minibatches(name, value) for name, value in each.items()}
  trainable, opt_state, updates = carry
  return TrainState(state.step + 1, updates, lora.join(trainable, frozen), opt_state, state.key), sums


def choose(first: jax.Array, left, right):
  """The tree `left` if `first`, else `right`, bit for bit."""
  return jax.tree.map(lambda a, b: jnp.where(first, a, b), left, right)


def gradients(setup: Setup, tools: Tools, trainable, frozen, minibatch):
  """The gradient of the minibatch's loss, and its metric sums, micro-batch after micro-batch."""

  def loss(trainable, piece):
    sums = setup.algorithm.loss(tools, setup.run.algorithm, lora.join(trainable, frozen), piece)
    slots, valid = slots_run(setup, piece)
    return sums.total, {**sums.metrics, "update/padded_fraction": (slots - valid, slots)}

  grad = functools.partial(jax.grad(loss, has_aux=True), trainable)
  pieces, widths = setup.micro_batches, bucket_widths(setup, minibatch)

  def at_width(piece, width):
    return piece.replace(packed=width) if packs(setup, piece) else rows.last_columns(piece, width)

  def narrow(piece):
    """`grad` at the narrowest width that holds every row."""
    if len(widths) == 1:
      return grad(piece)
    needed = jnp.max(needed_columns(setup, piece))
    index = jnp.searchsorted(jnp.asarray(widths), needed)
    return jax.lax.switch(index, [lambda piece, w=w: grad(at_width(piece, w)) for w in widths], piece)

  if pieces == 1:
    return narrow(minibatch)
  if len(widths) == 1:
    micro_batches = rows.cut_groups(minibatch, pieces, setup.rows_together)
  else:
    together = (pieces, setup.rows_together, batch_ways())
    micro_batches = rows.cut_by_length(minibatch, needed_columns(setup, minibatch), *together)

  def accumulate(carry, piece):
    grads, sums = narrow(piece)
    return (jax.tree.map(jnp.add, carry[0], grads), add_sums(carry[1], sums)), None

  # The sums start from nothing, not from a first micro-batch of its own: the program would hold its body twice.
  shapes = jax.eval_shape(grad, jax.tree.map(lambda a: a[0], micro_batches))
  return jax.lax.scan(accumulate, (jax.tree.map(jnp.zeros_like, trainable), no_sums(shapes[1])), micro_batches)[0]


def bucket_widths(setup: Setup, batch) -> list[int]:
  """Static widths of micro-batches, rising in equal parts to that of whole rows; a shared prompt is not cut.

  Those of packed rows rise by a constant ratio to that of all rows that share a prompt, without the prompt.
  """
  L, count = batch.token_NL.shape[1], setup.run.parallel.length_buckets
  if count == 1 or batch.example_NL is not None:  # packed rows are full
    return [L]
  P = batch.prompt_NP.shape[1] if shares_prompts(setup, batch) else 0
  if packs(setup, batch):
    return sorted({math.ceil(setup.shared_rows * (L - P) * PACKED_RATIO**i) for i in range(count)})
  return sorted({P + -(-(L - P) * i // count) for i in range(1, count + 1)})


# ----------------------------------------------------------------------------------------------------------- metrics


def no_sums(shapes: dict) -> dict:
  """What `add_sums` starts from, of the given shapes."""

  def start(name, value):
    return jax.tree.map(lambda a: jnp.full(a.shape, -jnp.inf if name.endswith("_max") else 0, a.dtype), value)

  return {name: start(name, value) for name, value in shapes.items()}


def add_sums(left: dict, right: dict) -> dict:
  """Adds metrics: pairs and plain numbers by sum, names that end in "_max" by max."""
  return {
    name: jnp.maximum(left[name], right[name])
    if name.endswith("_max")
    else jax.tree.map(jnp.add, left[name], right[name])
    for name in left
  }


def over_minibatches(name: str, each):
  """One sum of those of each minibatch, stacked: all of them, or the first alone, whose weights are the step's own."""
  if name in FIRST_MINIBATCH:
    return jax.tree.map(lambda values: values[0], each)
  return jnp.max(each) if name.endswith("_max") else jax.tree.map(jnp.sum, each)


def gather_sums(setup: Setup, sums: dict) -> dict:
  """Metrics over all devices of a pmap, plain sums turned into (sum, 1) pairs; nothing to gather under jit."""
  axis = setup.axis_name
  gathered = {}
  for name, value in sums.items():
    if name.endswith("_max"):
      gathered[name] = jax.lax.pmax(value, axis) if axis else value
    else:
      value = jax.tree.map(lambda v: jax.lax.psum(jnp.float32(v), axis), value) if axis else value
      gathered[name] = value if isinstance(value, tuple) else (value, 1.0)
  return gathered
