"""How flags are read: one line instead of argparse's usage, and numbers within bounds."""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from nrt_jax import errors


class Command(NamedTuple):
  """What `nrt-jax --help` and `nrt-jax COMMAND --help` show, and how the flags are declared."""

  summary: str
  details: str
  example: str
  add_flags: Callable


class Parser(argparse.ArgumentParser):
  """An argument parser that reports errors as UserErrors: one line, without the usage."""

  def error(self, message):
    raise errors.UserError(f"{message} (see {self.prog} --help)")


def number(kind: type, least, most=float("inf")) -> Callable:
  """A flag type: an int or float within bounds."""
  allowed = f"{least} or more" if most == float("inf") else f"{least} to {most}"

  def read(text: str):
    try:
      value = kind(text)
    except ValueError:
      value = None
    if value is None or not least <= value <= most or value == float("inf"):
      raise argparse.ArgumentTypeError(f"found {text!r}, allowed: {'a whole number, ' * (kind is int)}{allowed}")
    return value

  return read


def checkpoint_step(text: str):
  """A flag type: which checkpoint, a step's number or "best"."""
  return text if text == "best" else number(int, 0)(text)
