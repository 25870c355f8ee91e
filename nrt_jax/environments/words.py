"""Words of an environment as single tokens."""

from nrt_jax.data import prompts
from nrt_jax.errors import UserError


def token_of(tokenizer, key: str, word: str) -> int:
  """The id of a word that must be one token. UserError naming `environment.key` otherwise."""
  ids = prompts.encode_data(tokenizer, [word])[0]
  if len(ids) != 1:
    raise UserError(f"environment.{key}: found {word!r}, which is {len(ids)} tokens, allowed: a word that is one token")
  return int(ids[0])


def integers_of(tokenizer) -> dict:
  """Token -> number, of all tokens that are a number of their own, written in digits."""
  words = {token: prompts.decode(tokenizer, [token]).strip() for token in tokenizer.get_vocab().values()}
  return {token: int(word) for token, word in words.items() if word.isascii() and word.isdigit() and len(word) < 10}
