"""Shared by the generators: disjoint splits, seeded draws, and checks of options."""

import zlib

import numpy as np

from nrt_jax import errors

SPLITS = ("train", "test")
TEST_SHARE = 10  # one key in ten belongs to the test split
DIGIT_TRIES = 1000  # draws until digits of the split appear; a non-empty split fails with odds below 1e-40


def split_of(key: str) -> str:
  """The split of a question's key, by checksum: the same in every run, for any seed."""
  return "test" if zlib.crc32(key.encode()) % TEST_SHARE == 0 else "train"


def generator(task, index: int):
  """The random generator of example `index`: depends on the task's seed and split, and on the index."""
  return np.random.default_rng((task.seed, SPLITS.index(task.split), index))


def draw(propose, tries: int, where: str):
  """The first value of `propose()` that is not None. Raises UserError naming `where` after `tries` failures."""
  for _ in range(tries):
    found = propose()
    if found is not None:
      return found
  raise errors.UserError(f"data.task_options.{where}")


def require(task, key: str, holds: bool, allowed: str) -> None:
  """Raises UserError naming the option `key` and its value, unless `holds`."""
  if not holds:
    raise errors.UserError(f"data.task_options.{key}: found {getattr(task, key)!r}, allowed: {allowed}")


def require_common(task) -> None:
  """Checks the options that every generator has: split, seed, trace_share."""
  errors.require_choice("data.split", task.split, SPLITS)
  require(task, "seed", task.seed >= 0, "0 or more")
  require(task, "trace_share", 0 <= task.trace_share <= 1, "0 to 1")


def words_of(numbers) -> str:
  """Numbers as words separated by spaces."""
  return " ".join(str(i) for i in numbers)


def symbols(first: int, count: int) -> tuple[str, ...]:
  """The words of `count` numbers from `first` on."""
  return tuple(str(i) for i in range(first, first + count))


def digits(number: int, size: int, base: int) -> list[int]:
  """A number below `size` digit by digit, highest first; all such numbers have the same number of digits."""
  found = []
  while size > 1:
    number, digit = divmod(number, base)
    size = -(-size // base)
    found.append(digit)
  return found[::-1]


def draw_digits(rng, split: str, n_digits: int, min_digits: int, base: int, key: str = "n_digits"):
  """Draws digits [n_digits] of the split, the leading ones 0. Raises UserError if the split has none.

  `key` is the option that a message names.
  """

  def propose():
    digits = rng.integers(base, size=n_digits)
    digits[: n_digits - rng.integers(min_digits, n_digits + 1)] = 0
    return digits if split_of(words_of(digits)) == split else None

  where = f"{key}: {n_digits} digits in base {base} leave no question for the {split} split"
  return draw(propose, DIGIT_TRIES, where)
