"""Programs: predict what one writes, or write one. Shared by brainfuck.py and befunge.py.

  question  "run standard , [ . , ] with 3 1 2"                               answer  "3 1 2"
  question  "write standard sort where 3 1 2 gives 1 2 3 and 2 1 gives 1 2"   answer  a program that sorts

A program reads symbols, numbers from `first` (at least 1) on, up to the end of its input. `print` reads nothing and
writes the symbols of the question; the other kinds are the functions of KINDS, and `random` is any program that ends.
Any program that is right will do: `grade` runs it on `n_tests` inputs, the same for all questions, of the question's
split. The trace is the path of the program on the (first) input: the executed instructions, in their order.

With the convention "swapped", signs that are one another's opposites have changed places: `>` and `<`, `+` and `-`.
"""

import abc
import dataclasses
import functools
import math

import numpy as np

from nrt_jax.interpreters import outcome
from nrt_jax.tasks import chance, splits
from nrt_jax.tasks.grading import exact_match

FEWEST_STEPS, MOST_STEPS = 500, 10**6
MAX_TRIES = 10_000  # draws until a sequence of the split is found, or a program that ends with some output


def fibonacci(n: int) -> int:
  """1 1 2 3 5 ... for n = 1 2 3 4 5 ..."""
  a, b = 0, 1
  for _ in range(n):
    a, b = b, a + b
  return a


KINDS = {
  "copy": list,
  "reverse": lambda values: list(values)[::-1],
  "sort": sorted,
  "add": lambda values: [sum(values)],
  "fibonacci": lambda values: [fibonacci(n) for n in values],  # of each value
  "factorial": lambda values: [math.factorial(n) for n in values],
}
ALL_KINDS = ("print", *KINDS, "random")
DIRECTIONS = ("predict", "write")
CONVENTIONS = ("standard", "swapped")
GIVES, NEXT = "gives", ";"  # words of a world


@dataclasses.dataclass(frozen=True)
class Programs(abc.ABC):
  """Options of both languages; their own come after these."""

  split: str = "train"  # "train" or "test": no symbols that a question reads or prints, no random program is in both
  seed: int = 0  # different seeds give different lists of examples
  kind: str = "copy"  # print | copy | reverse | sort | add | fibonacci | factorial | random (any program, to predict)
  direction: str = "predict"  # predict: the answer is what a program writes | write: the answer is a program
  n_symbols: int = 3  # symbols that are read, or printed; with "write" and where a random program writes, at most
  alphabet: int = 5  # symbols to draw from
  first: int = 1  # symbols are the numbers first to first + alphabet - 1: another value is a new alphabet
  named: bool = True  # whether a question to write a program names its kind; else only the pairs it shows do
  n_shown: int = 2  # pairs of input and output that such a question shows
  n_tests: int = 16  # inputs on which a written program must be right
  n_instructions: int = 12  # length of random programs (of each line in Befunge)
  depth: int = 2  # loops inside one another in random programs (number of lines in Befunge)
  max_length: int = 128  # instructions of a written program; a longer one is wrong
  step_limit: int = 0  # of a run, else it is wrong; 0: four times what the reference program needs, at least 500
  convention: str = "standard"  # standard | swapped: opposites among the instructions have changed places
  max_trace: int = 64  # instructions that a trace shows, from the first
  trace_share: float = 0.0  # fraction of the examples that show their trace

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    splits.require(self, "kind", self.kind in ALL_KINDS, " | ".join(ALL_KINDS))
    splits.require(self, "direction", self.direction in DIRECTIONS, " | ".join(DIRECTIONS))
    splits.require(self, "convention", self.convention in CONVENTIONS, " | ".join(CONVENTIONS))
    splits.require(self, "alphabet", self.alphabet >= 2, "2 or more")
    for key in ("n_symbols", "first", "n_shown", "n_tests", "n_instructions", "max_length", "max_trace"):
      splits.require(self, key, getattr(self, key) >= 1, "1 or more")
    splits.require(self, "depth", self.depth >= 0, "0 or more")
    splits.require(self, "direction", self.kind != "random" or self.direction == "predict", "predict, with random")
    splits.require(self, "named", self.named or self.kind != "print", "true, with print")
    needed = _needed(self)
    fits = self.step_limit == 0 or needed <= self.step_limit <= outcome.MOST
    splits.require(self, "step_limit", fits, f"0, or {needed} to {outcome.MOST}")

  # ---- What a language says ------------------------------------------------------------------------------------------

  signs = ()  # the standard words of a program: id of the interpreter -> word; "" for an id that is not used
  opposites = {}  # word -> the word that stands for it by the convention "swapped"
  memory = ""  # the option that is too small where a reference program runs out of memory

  @abc.abstractmethod
  def limits_of(self, steps: int):
    """The interpreter's limits, with this one of steps."""

  @abc.abstractmethod
  def run_within(self, limits, program, inputs, path=None) -> outcome.Outcome:
    """A run of ids."""

  @abc.abstractmethod
  def kept(self, value: int) -> int:
    """What the language makes of a number that is too large for it."""

  @abc.abstractmethod
  def reference(self) -> list[int]:
    """A program of this kind, not of `print` or `random`."""

  @abc.abstractmethod
  def printing(self, values) -> list[int]:
    """A program that writes these values."""

  @abc.abstractmethod
  def random_program(self, rng) -> list[int]:
    """Any program, that may not end."""

  # ---- Questions and answers -----------------------------------------------------------------------------------------

  @property
  def characters(self) -> tuple[str, ...]:
    """`signs` by the convention."""
    swapped = self.opposites if self.convention == "swapped" else {}
    return tuple(swapped.get(word, word) for word in self.signs)

  @property
  def limits(self):
    """The limits of every run."""
    return self.limits_of(self.step_limit or max(FEWEST_STEPS, 4 * _needed(self)))

  def run(self, program, inputs, path=None) -> outcome.Outcome:
    """A run of ids, within the task's limits."""
    return self.run_within(self.limits, program, inputs, path)

  @property
  def last(self) -> int:
    """The largest symbol."""
    return self.first + self.alphabet - 1

  @property
  def words(self) -> tuple[str, ...]:
    """Numbers first, so that a number's id is its value, as far as symbols go."""
    asks = ("run", "write", "with", "where", GIVES, "and", "program", NEXT, *CONVENTIONS, *ALL_KINDS)
    used = [word for word in self.signs if word]
    return tuple(dict.fromkeys((*splits.symbols(0, self._top + 1), *used, *asks, *self._results(1))))

  @property
  def _top(self) -> int:
    return max(9, self.last)

  def _results(self, shortest: int) -> list[str]:
    """The words that may stand at a place of an output, for inputs of `shortest` symbols or more."""
    symbols = range(self.first, self.last + 1)
    if self.kind == "add":
      return [str(self.kept(n)) for n in range(shortest * self.first, self.n_symbols * self.last + 1)]
    function = KINDS.get(self.kind, list) if self.kind in ("fibonacci", "factorial") else list
    return [str(self.kept(value)) for value in function(symbols)]

  @property
  def places(self) -> tuple | None:
    """The words that may stand at each place of an answer, where all answers have one length."""
    if self.direction == "write" or self.kind == "random":
      return None
    words = tuple(dict.fromkeys(self._results(self.n_symbols)))
    return (words,) * (1 if self.kind == "add" else self.n_symbols)

  def chance(self) -> float | None:
    """Of a predicted output whose length is known. Of a program it is not known: many programs are right."""
    return None if self.places is None else chance.of_places(self.places)

  def shifts(self) -> dict:
    """Options that lead out of the distribution: longer, written with other symbols, the other convention."""
    other = CONVENTIONS[1 - CONVENTIONS.index(self.convention)]
    if self.kind == "random":
      return {"longer": {"n_instructions": 2 * self.n_instructions}, "convention": {"convention": other}}
    found = {"longer": {"n_symbols": 2 * self.n_symbols}, "convention": {"convention": other}}
    new = {"alphabet": {"first": self.first + self.alphabet}}
    return found if self.kind == "factorial" else {**found, **new}  # factorials grow beyond what can be run

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng = splits.generator(self, index)
    shows_trace = rng.random() < self.trace_share
    program, inputs = self._drawn(rng)
    path = []
    output = self.run(program, inputs, path).output
    text = self.written(program)
    trace = self.written(path[: self.max_trace]) if shows_trace else None
    if self.direction == "predict":
      given = f" with {splits.words_of(inputs)}" if inputs else ""
      return f"run {self.convention} {text}{given}", splits.words_of(output), trace
    return self._asks(rng, inputs, output), text, trace

  def _drawn(self, rng) -> tuple[list[int], list[int]]:
    """A program and its input."""
    if self.kind == "random":
      where = f"n_instructions: {self.n_instructions} instructions leave no program for the {self.split} split"
      return splits.draw(lambda: self._propose(rng), MAX_TRIES, where)
    if self.kind == "print":
      return self.printing(self._values(rng, self.n_symbols)), []
    shortest = self.n_symbols if self.direction == "predict" else 1
    return self.reference(), self._values(rng, shortest)

  def _values(self, rng, shortest: int) -> list[int]:
    """`shortest` to n_symbols symbols of the split, which hangs on their places in the alphabet alone."""

    def propose():
      drawn = rng.integers(self.alphabet, size=rng.integers(shortest, self.n_symbols + 1)).tolist()
      return drawn if splits.split_of(splits.words_of(drawn)) == self.split else None

    where = f"n_symbols: {self.n_symbols} symbols out of {self.alphabet} leave no question for the {self.split} split"
    return [self.first + i for i in splits.draw(propose, MAX_TRIES, where)]

  def _propose(self, rng):
    """A random program and its input; None unless it ends and writes a few numbers that are words, not all 0."""
    program = self.random_program(rng)
    inputs = rng.integers(self.first, self.last + 1, size=self.n_symbols).tolist()
    if splits.split_of(splits.words_of(program)) != self.split:
      return None
    found = self.run(program, inputs)
    fits = found.status == outcome.FINISHED and 1 <= found.length <= self.n_symbols and any(found.output)
    return (program, inputs) if fits and all(0 <= value <= self._top for value in found.output) else None

  def _asks(self, rng, inputs, output) -> str:
    """The question to write a program."""
    if self.kind == "print":
      return f"write {self.convention} print {splits.words_of(output)}"
    pairs = [(inputs, output)]
    while len(pairs) < self.n_shown:
      values = self._values(rng, 1)
      pairs.append((values, self.expected(values)))
    shown = " and ".join(f"{splits.words_of(given)} gives {splits.words_of(wanted)}" for given, wanted in pairs)
    return f"write {self.convention} {self.kind if self.named else 'program'} where {shown}"

  def expected(self, values) -> tuple[int, ...]:
    """What a program of this kind must write."""
    return tuple(self.kept(value) for value in KINDS.get(self.kind, list)(values))

  def cases(self, index: int) -> list[tuple]:
    """(inputs, expected output) pairs on which a program written for example `index` must be right."""
    if self.kind != "print":
      return list(_tests(self))
    return [((), self.run(self.read(self.example(index)[1]), ()).output)]

  def world(self, index: int) -> str | None:
    """The cases as environments/program.py reads them; None where there is nothing to run."""
    if self.direction == "predict":
      return None
    cases = ((splits.words_of(given), splits.words_of(wanted)) for given, wanted in self.cases(index))
    return " ".join(f"{given} {GIVES} {wanted} {NEXT}".strip() for given, wanted in cases)

  def written(self, program) -> str:
    """The words of ids."""
    return splits.words_of(self.characters[i] for i in program)

  def read(self, text: str) -> list[int] | None:
    """The ids of words; None if one is no instruction, or there are more than max_length."""
    words = text.split() if len(text) <= 100 * self.max_length else [""]
    table = _ids(self.characters)
    if len(words) > self.max_length or not table.keys() >= set(words):
      return None
    return [table[word] for word in words]

  def grade(self, completion: str, reference: str) -> bool:
    """predict: exact match. write: whether the program is right on every test; `print`: as the reference is."""
    if self.direction == "predict":
      return exact_match(completion, reference)
    program, known = self.read(completion), self.read(reference)
    if program is None or known is None:
      return False
    pairs = [((), self.run(known, ()).output)] if self.kind == "print" else _tests(self)
    return all(outcome.succeeded(self.run(program, given), wanted) for given, wanted in pairs)


@functools.lru_cache(maxsize=64)
def _ids(characters: tuple) -> dict:
  return {word: i for i, word in enumerate(characters) if word}


@functools.lru_cache(maxsize=64)
def _tests(task: Programs) -> tuple:
  """The pairs on which programs of a kind are tested: the same for all questions."""
  rng = np.random.default_rng((task.seed, splits.SPLITS.index(task.split), 0, 1))  # no example has four numbers
  inputs = [tuple(task._values(rng, 1)) for _ in range(task.n_tests)]
  return tuple((values, task.expected(values)) for values in inputs)


@functools.lru_cache(maxsize=64)
def _needed(task: Programs) -> int:
  """The steps of the longest run of the reference programs. UserError where they need more than the options give."""
  if task.kind == "random":
    return 0
  size, symbols = task.n_symbols, range(task.first, task.last + 1)
  sequences = [[task.last] * size, ([task.last, task.first] * size)[:size]]
  if task.kind == "factorial":  # in a circle of values, any of them may have the largest products
    sequences += [[symbol] * size for symbol in symbols]
  longest = 0
  for values in sequences:
    program, given = (task.printing(values), ()) if task.kind == "print" else (task.reference(), values)
    splits.require(task, "max_length", len(program) <= task.max_length, f"{len(program)} or more")
    found = task.run_within(task.limits_of(MOST_STEPS), program, given)
    key = "alphabet" if found.status == outcome.UNFINISHED else task.memory
    allowed = "less" if key == "alphabet" else "more"
    asked = f"{allowed}, for {task.kind} of {splits.words_of(values)}"
    splits.require(task, key, outcome.succeeded(found, task.expected(values)), asked)
    longest = max(longest, found.steps)
  return longest
