"""Replies that a judge gave once: a file of JSON Lines, one written as soon as a reply is there.

A key is a digest of who was asked and of the whole request, so another judge, prompt, temperature or seed is another
question. A line that was cut off by a kill is skipped, and its question asked again.
"""

import dataclasses
import os
from dataclasses import dataclass

from nrt_jax.errors import UserError
from nrt_jax.files import append_json_line, digest, read_json_lines


@dataclass(frozen=True)
class Reply:
  """What a judge said."""

  text: str
  finished: bool = True  # False: cut at the limit of tokens
  tokens: int = 0  # of the request and the reply, as the endpoint counts them; 0: it does not say
  probabilities: tuple = ()  # of VERDICTS, where a verdict is read from them


def key_of(identity: dict, request: dict) -> str:
  """24 hexadecimal digits for a question to a judge."""
  return digest([identity, request], 24)


class Cache:
  """The replies of a file; None: of this process alone."""

  def __init__(self, path: str | None):
    self.path, self.replies = path, {}
    lines = [] if path is None else read_json_lines(path)
    if not all(map(_reply, lines)) or (not lines and _holds_lines(path)):  # it would be appended to
      raise UserError(f"--cache: {path}: holds something else than replies of a judge, allowed: a cache, or a new file")
    self.replies = {line["key"]: _reply(line) for line in lines}

  def get(self, key: str) -> Reply | None:
    return self.replies.get(key)

  def put(self, key: str, reply: Reply, judge: str) -> None:
    """Keeps a reply. judge: its name, for people who read the file."""
    self.replies[key] = reply
    if self.path is not None:
      append_json_line(self.path, {"key": key, "judge": judge, **dataclasses.asdict(reply)})


def _holds_lines(path: str | None) -> bool:
  """Whether a file has a whole line: half of one may be all that a killed process left."""
  if path is None or not os.path.exists(path):
    return False
  with open(path, "rb") as file:
    return b"\n" in file.read()


def _reply(line) -> Reply | None:
  """The Reply that a line holds."""
  kinds = {"text": str, "finished": bool, "tokens": int, "probabilities": list}
  if not isinstance(line, dict) or not isinstance(line.get("key"), str):
    return None
  if not all(isinstance(line.get(name), kind) for name, kind in kinds.items()):
    return None
  return Reply(line["text"], line["finished"], line["tokens"], tuple(line["probabilities"]))
