"""The made-up text of next_token.py: documents of words, and places in them where the next word is to be predicted.

  every cook sings red . add 0 0 3 1 4 2 0 1 gives 1 .

Three kinds of places, by what it takes to predict the word behind them:

  easy   it follows from the words before; so does the second sentence's first, for each comes once
  noise  digits and a colour, drawn at random, so that no thought helps
  hard   the sum modulo 5 behind "gives": the running sums, one word for each digit, make it easy
"""

import os

import numpy as np

from nrt_jax.files import json_lines
from nrt_jax.tasks import splits

BASE, DIGITS, FEWEST = 5, 8, 4  # of a sum; digits that are drawn at least, behind zeros
COLOURS = ("red", "blue", "green", "white")
KINDS = ("hard", "easy", "noise")
THINK = "think"  # ends the prompt where the model is to think: prompt.trace_open
PROMPT = 17  # tokens of the longest context, THINK included
TRACE = DIGITS + 2  # the most that may be sampled, the marker included
HARD_SHARE = 0.8  # of the places where pretraining shows a thought
EMPTY = 0.6  # of the thoughts; the others are running sums at hard places, random digits at all others


def sentence(rng, split: str, kind: str) -> list:
  """(word, kind of its place) pairs of a sentence."""
  if kind == "filler":
    colour = COLOURS[rng.integers(len(COLOURS))]
    return [("every", "easy"), ("cook", "easy"), ("sings", "easy"), (colour, "noise"), (".", "easy")]
  digits = splits.draw_digits(rng, split, DIGITS, FEWEST, BASE)
  numbers = [(str(digit), "noise") for digit in digits]
  return [("add", "easy"), *numbers, ("gives", "easy"), (str(digits.sum() % BASE), "hard"), (".", "easy")]


def document(rng, split: str) -> list:
  """(word, kind of its place) pairs: a sum and another sentence, in an order drawn at random."""
  order = rng.permutation(["filler", "sum"])
  return [pair for kind in order for pair in sentence(rng, split, kind)]


def text_of(pairs: list) -> str:
  return " ".join(word for word, _ in pairs)


def running_sums(words: list) -> list:
  """Of the digits that stand right before "gives" at the end of a context."""
  return (np.cumsum([int(word) for word in words[-DIGITS - 1 : -1]]) % BASE).tolist()


def thought(rng, context: list, kind: str) -> str:
  """Words that pretraining shows between THINK and the marker; "" for none."""
  if rng.random() < EMPTY:
    return ""
  if kind == "hard":
    return splits.words_of(running_sums([word for word, _ in context]))
  return splits.words_of(rng.integers(BASE, size=rng.integers(1, DIGITS + 1)))


def place(rng, pairs: list, kinds=KINDS) -> int:
  """A place whose word is of these kinds, and is not the document's first."""
  return int(rng.choice([i for i, (_, kind) in enumerate(pairs) if i and kind in kinds]))


def cut(rng, split: str, kinds=KINDS, thoughts: bool = False) -> dict:
  """A document up to a place, and the word there; with a thought, if asked for."""
  pairs = document(rng, split)
  i = place(rng, pairs, kinds)
  found = {"question": text_of(pairs[:i]), "answer": pairs[i][0]}
  return {**found, "trace": thought(rng, pairs[:i], pairs[i][1])} if thoughts else found


def pretraining(rng) -> dict:
  """A row of the start's pretraining: text, and a thought behind it."""
  return cut(rng, "train", ("hard",) if rng.random() < HARD_SHARE else KINDS, thoughts=True)


def problem(rng) -> dict:
  """A sum by itself, as a later stage with a verifier asks for it."""
  pairs = sentence(rng, "train", "sum")
  return {"question": text_of(pairs[:-2]), "answer": pairs[-2][0]}


# name of the file -> (its rows from a generator, which of SIZES says how many)
FILES = {
  "pretraining": pretraining,
  # For next-token prediction: also behind THINK and the marker it is the word of the place that follows
  "continued": lambda rng: cut(rng, "train"),
  "documents": lambda rng: {"text": text_of(document(rng, "train"))},
  # What a filter by entropy keeps: a model that cannot add is as uncertain of sums as of noise
  "uncertain": lambda rng: cut(rng, "train", ("hard", "noise")),
  "problems": problem,
}
SIZES = {"pretraining": 30000, "continued": 20000, "documents": 6000, "uncertain": 6000, "problems": 1000, "test": 150}


def words() -> tuple:
  """Digits first, so that a digit's id is its value."""
  digits = splits.symbols(0, BASE)
  return (*digits, *COLOURS, "every", "cook", "sings", ".", "add", "gives", THINK)


def test_places(rng) -> list:
  """SIZES["test"] places of each kind, in the order of KINDS. Each sum is there as often as the others."""
  rows = {kind: [] for kind in KINDS}
  while len(rows["hard"]) < SIZES["test"]:
    row = cut(rng, "test", ("hard",))
    rows["hard"] += [row] if row["answer"] == str(len(rows["hard"]) % BASE) else []
  for kind in KINDS[1:]:
    rows[kind] = [cut(rng, "test", (kind,)) for _ in range(SIZES["test"])]
  return [row for kind in KINDS for row in rows[kind]]


def write(directory: str) -> None:
  """Writes the files of FILES, and test.jsonl."""
  for number, (name, make) in enumerate(FILES.items()):
    rng = np.random.default_rng(number)
    save(directory, name, [make(rng) for _ in range(SIZES[name])])
  save(directory, "test", test_places(np.random.default_rng(len(FILES))))


def save(directory: str, name: str, rows: list) -> None:
  with open(os.path.join(directory, f"{name}.jsonl"), "w") as file:
    file.write(json_lines(rows))
