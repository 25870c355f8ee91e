"""A token space that widens: the tokens that a stage uses, and what the rows of new ones start as.

The vocabulary has its final size from the start. Tokens that no stage has used yet (`ModelConfig.vocab_inactive`) have
no probability: `decoder.logits` masks them for sampling, scoring and the update alike, so they have no gradient either,
and their moments are 0 until they are used.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nrt_jax.errors import UserError, require_choice
from nrt_jax.model.architecture import ModelConfig

ACTIVE = ("all", "data")
NEW_ROWS = ("mean", "keep")


@dataclass(frozen=True)
class TokensConfig:
  """The tokens that a stage uses. All others have no probability. The last stage of a run uses all."""

  active: str = "all"  # all | data: those in its training data or that of a stage before, and special tokens
  new_rows: str = "mean"  # of tokens that no stage before used: the mean of the others, plus noise | keep: as they are
  noise: float = 1.0  # of new rows, in standard deviations of the old ones, entry by entry

  def __post_init__(self):
    require_choice("tokens.active", self.active, ACTIVE)
    require_choice("tokens.new_rows", self.new_rows, NEW_ROWS)
    if self.noise < 0:
      raise UserError(f"tokens.noise: found {self.noise}, allowed: 0 or more")


def widened(params, config: ModelConfig, before: tuple, tokens: TokensConfig, key):
  """`params` at the start of a stage whose model is `config`, behind one that did not use the tokens of `before`.

  A new row is mean + noise * deviation * normal, with mean and deviation of each entry over the rows in use before.
  """
  new = sorted({*before} - {*config.vocab_inactive})
  if not new or tokens.new_rows == "keep":
    return params
  rows = config.vocab_size - config.vocab_padding - config.vocab_unused
  old = sorted({*range(rows)} - {*before})

  def fresh(table_VD, key):
    old_nD = table_VD[jnp.asarray(old)]
    spread_nD = jax.random.normal(key, (len(new), table_VD.shape[1])) * old_nD.std(0)[None]
    return table_VD.at[jnp.asarray(new)].set(old_nD.mean(0)[None] + tokens.noise * spread_nD)

  embedding_key, head_key = jax.random.split(key)
  params = {**params, "embedder": {"embedding": fresh(params["embedder"]["embedding"], embedding_key)}}
  if not config.tie_word_embeddings:
    params["head"] = {"kernel": fresh(params["head"]["kernel"].T, head_key).T}
  return params
