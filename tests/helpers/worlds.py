"""An environment of the toy vocabulary that does all an environment may do, and the same in plain Python."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import toy

from nrt_jax.environments.interface import Environment, Turn

DONE = 7  # ends the row
FORCED = 2


@dataclass(frozen=True)
class EchoConfig:
  """No keys."""


@dataclass(frozen=True)
class Echo(Environment):
  """After a token of 10 to 16: the token less ten, and, if it is even, the prompt's last token; 7 ends the row; a stop
  token pays 0.5, any other its number / 100. A row is right by the share of its tokens that were even.
  """

  forced = FORCED
  judges = True

  @classmethod
  def open(cls, config, tokenizer, form):
    return cls()

  def init(self, row):
    return {"last": row.prompt_BP[-1], "even": jnp.int32(0), "tokens": jnp.int32(0)}

  def step(self, state, token):
    answers = (token >= 10) & (token <= 16)
    return Turn(
      state={**state, "even": state["even"] + (token % 2 == 0), "tokens": state["tokens"] + 1},
      forced_F=jnp.stack([token - 10, state["last"]]),
      count=jnp.where(answers, jnp.where(token % 2 == 0, 2, 1), 0),
      done=token == DONE,
      reward=jnp.where(token >= toy.MARKER, 0.5, token / 100),
    )

  def verdict(self, state):
    return state["even"] / jnp.maximum(state["tokens"], 1)


def replay(token_R, length, last, stop_ids):
  """What Echo does along a row of tokens: (forced bool [R], reward, verdict, whether it ended), token by token.

  Fails where a token that must have been forced is another one.
  """
  forced, queue, reward, own, ended = np.zeros(len(token_R), bool), [], 0.0, [], False
  for r in range(length):
    token = int(token_R[r])
    assert not ended
    if queue:
      assert token == queue.pop(0)
      forced[r] = True
    else:
      own.append(token)
      reward += 0.5 if token >= toy.MARKER else token / 100
      if 10 <= token <= 16:
        queue = [token - 10, last] if token % 2 == 0 else [token - 10]
      ended = token == DONE
    ended |= token in stop_ids
  return forced, reward, (np.mean([t % 2 == 0 for t in own]) if ended else 0.0), ended
