"""Which worked examples stand in front of a question: some of the training split, or of the questions themselves."""

import dataclasses

import numpy as np

from nrt_jax.errors import UserError

KEY = "evaluation.shots"


def add(examples: list, count: int, seed: int, training: list | None = None) -> list:
  """The examples with `count` worked ones (Example.shots) in front of each; 0 leaves them as they are.

  They are the same for all examples of a group. Without a training split they are taken out of the group, and are no
  questions any more. UserError where a group, or the training split, has too few.
  """
  if not count:
    return examples
  if training is not None:
    shots = tuple(_drawn(training, count, seed, "the training split")[0])
    return [dataclasses.replace(one, shots=shots) for one in examples]
  found = []
  for group in dict.fromkeys(one.group for one in examples):
    members = [one for one in examples if one.group == group]
    shots, others = _drawn(members, count, seed, group or "the questions")
    found += [dataclasses.replace(one, shots=tuple(shots)) for one in others]
  return found


def _drawn(examples: list, count: int, seed: int, what: str) -> tuple[list, list]:
  """(some of the examples in the order in which they were drawn, all others in their own order)."""
  if count >= len(examples):
    most = len(examples) - 1
    raise UserError(f"{KEY}: found {count}, but {what} has {most + 1} examples, allowed: up to {most}")
  drawn = np.random.default_rng(seed).permutation(len(examples))[:count].tolist()
  return [examples[i] for i in drawn], [one for i, one in enumerate(examples) if i not in set(drawn)]


def first(examples: list, limit: int | None) -> list:
  """The first `limit` examples of each group; None: all."""
  if limit is None:
    return examples
  seen, kept = {}, []
  for one in examples:
    seen[one.group] = seen.get(one.group, 0) + 1
    if seen[one.group] <= limit:
      kept.append(one)
  return kept
