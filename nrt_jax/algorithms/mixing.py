"""One batch of the rows of several roles, each row with its own prompt, temperature, coefficient and KL weight."""

import jax
import jax.numpy as jnp

from nrt_jax.arrays import TrainBatch


def as_role(batch: TrainBatch, is_critic: bool, temperature: float, kl_weight: float) -> TrainBatch:
  """The rows of one role: extra says whose they are, and how much their KL term weighs."""
  N = len(batch.token_NL)
  extra = {"critic_N": jnp.full(N, is_critic), "kl_N": jnp.full(N, kl_weight, jnp.float32)}
  return batch.replace(temperature_N=jnp.full(N, temperature, jnp.float32), extra={**batch.extra, **extra})


def mix(left: TrainBatch, right: TrainBatch, left_rows: int, right_rows: int, pad_id: int) -> TrainBatch:
  """Rows of two roles as one batch in which each prompt has its `left_rows` rows, then its `right_rows`.

  Both are widened on the left to P + R columns, the wider prompt and the longer rest, so that no row's own tokens lie
  below column P, as rows that share a prompt need it.
  """
  P = max(batch.prompt_NP.shape[1] for batch in (left, right))
  R = max(batch.token_NL.shape[1] - batch.prompt_NP.shape[1] for batch in (left, right))
  B = len(left.token_NL) // left_rows

  def widen(batch):
    L, own = batch.token_NL.shape[1], batch.prompt_NP.shape[1]

    def to(a, columns, fill):
      more = ((0, 0), (columns - a.shape[1], 0))
      return jnp.pad(a, more, constant_values=fill)

    wide = {}
    for name, value in vars(batch).items():
      if name.endswith("_NL") and value is not None:
        wide[name] = to(value, P + R, {"token_NL": pad_id, "target_NL": pad_id, "position_NL": -1}.get(name, 0))
    assert L - own <= R
    return batch.replace(**wide, prompt_NP=to(batch.prompt_NP, P, pad_id), first=P)

  def join(a, b):
    a, b = (x.reshape(B, count, *x.shape[1:]) for x, count in ((a, left_rows), (b, right_rows)))
    both = jnp.concatenate([a, b], axis=1)
    return both.reshape(B * (left_rows + right_rows), *both.shape[2:])

  return jax.tree.map(join, widen(left), widen(right))
