"""An environment's part of the sampling loop: the state of every row's world, and the tokens that it forces.

Both loops (sampler.py, continuous.py) call `write` before a token enters the cache and `follow` behind it. A forced
token takes a turn of the loop, as a sampled one does; what is drawn in its place is thrown away.
"""

import jax
import jax.numpy as jnp
from flax import struct

from nrt_jax.arrays import Prompts, Rollouts
from nrt_jax.environments.interface import Environment


@struct.dataclass
class Episodes:
  """One row each."""

  state: object  # of the environment: a tree of [N, ...]
  forced_NF: jax.Array  # int32, what the last turn forces
  place_N: jax.Array  # int32, how many of them are written
  count_N: jax.Array  # int32, how many there are
  reward_N: jax.Array  # float32, earned so far


def begin(environment: Environment, prompts_N: Prompts) -> Episodes:
  """The rows' worlds before their first token; prompts_N: the prompt of each row."""
  N, none_N = len(prompts_N.prompt_length_B), jnp.zeros(len(prompts_N.prompt_length_B), jnp.int32)
  forced_NF = jnp.zeros((N, max(1, environment.forced)), jnp.int32)
  return Episodes(jax.vmap(environment.init)(prompts_N), forced_NF, none_N, none_N, none_N.astype(jnp.float32))


def write(episodes: Episodes, token_N, logp_N):
  """The rows' next tokens with their log-probabilities, and which are forced: those have log-probability 0."""
  forced_N = episodes.place_N < episodes.count_N
  at_N1 = jnp.minimum(episodes.place_N, episodes.forced_NF.shape[1] - 1)[:, None]
  next_N = jnp.take_along_axis(episodes.forced_NF, at_N1, axis=1)[:, 0]
  return jnp.where(forced_N, next_N, token_N), jnp.where(forced_N, 0.0, logp_N), forced_N


def follow(environment: Environment, episodes: Episodes, token_N, forced_N, alive_N):
  """(Episodes after these tokens, bool `[N]`: the row is done). Rows that are not alive stay as they are."""
  own_N = alive_N & ~forced_N
  turn = jax.vmap(environment.step)(episodes.state, token_N)

  def where_own(new, old):
    return jnp.where(own_N.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

  forced_NF = turn.forced_F
  forced_NF = jnp.pad(forced_NF, ((0, 0), (0, episodes.forced_NF.shape[1] - forced_NF.shape[1])))
  after = Episodes(
    state=jax.tree.map(where_own, turn.state, episodes.state),
    forced_NF=where_own(forced_NF, episodes.forced_NF),
    place_N=jnp.where(own_N, 0, episodes.place_N + (alive_N & forced_N)),
    count_N=jnp.where(own_N, turn.count, episodes.count_N),
    reward_N=episodes.reward_N + jnp.where(own_N, turn.reward, 0),
  )
  return after, own_N & turn.done


def finish(environment: Environment, episodes: Episodes, rollouts: Rollouts, forced_NR) -> Rollouts:
  """The rollouts with what their worlds say of them."""
  verdict_N = None
  if environment.judges:
    verdict_N = jnp.where(rollouts.ended_N, jax.vmap(environment.verdict)(episodes.state), 0.0)
  return rollouts.replace(forced_NR=forced_NR, earned_N=episodes.reward_N, verdict_N=verdict_N)
