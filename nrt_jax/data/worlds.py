"""The worlds of an environment's examples, as `batches.tokenize` asks for a second text of each example."""

import dataclasses

from nrt_jax.data import prompts
from nrt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Worlds:
  """What an environment knows of each example, as token ids. The policy is not shown it."""

  tokenizer: object
  environment: object  # environments.interface.Environment: its check_world is asked of every world
  width: int  # tokens

  kind = "world"  # of overlong.LIMITS

  def encode(self, examples) -> list:
    """Token ids of each world, uncut. UserErrors begin with the example's place."""
    for example in examples:
      if not example.world:
        raise UserError(
          f"{example.where}: found no world, which the environment reads, allowed: data.world_column, "
          "or a task with worlds"
        )
    rows = prompts.encode_data(self.tokenizer, [example.world for example in examples])
    for example, ids in zip(examples, rows, strict=True):
      problem = self.environment.check_world(ids)
      if problem:
        raise UserError(f"{example.where}: {problem}")
    return rows

  def cut(self, example) -> None:
    """No part of a world is one: an example whose world is too long is dropped."""
    return None
