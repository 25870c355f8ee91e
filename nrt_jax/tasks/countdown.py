"""Countdown, the 24 game: combine all given numbers with + - * / and parentheses to reach a target.

  question  "make 24 from 3 8 3 8"      answer  "8 / ( 3 - 8 / 3 )"
  trace     "8 / 3 = ( 8 / 3 ) ; 3 - ( 8 / 3 ) = ( 1 / 3 ) ; 8 / ( 1 / 3 ) = 24"

As in RARO (arXiv 2511.21667), whose number range and expert are not public; those here are our own. The expert finds
all solutions with exact rationals and shows one at random, in random order and without redundant parentheses, so that
its form doesn't give it away. Many answers are correct, so `grade` evaluates them, exactly.
"""

import dataclasses
import functools
import itertools
import math

from nrt_jax.tasks import expressions, splits

MAX_TRIES = 20000  # draws until a solvable puzzle of the split appears
BINDS = expressions.PRECEDENCE


@dataclasses.dataclass(frozen=True)
class Countdown:
  """Puzzles of `n_numbers` numbers. The split depends on the multiset of numbers, not on their order or the target."""

  split: str = "train"  # "train" or "test": no multiset of numbers is in both, for any seed
  seed: int = 0  # different seeds give different lists of examples
  n_numbers: int = 4  # 2 to 4
  low: int = 1  # smallest number given
  high: int = 50  # largest number given
  target: int = 24  # 0: drawn for each puzzle from the values its numbers can reach
  max_target: int = 100  # largest drawn target; unused when `target` is given
  fractions: bool = True  # whether the expert may use fractions in between (the grader always allows them)
  max_value: int = 2500  # largest numerator or denominator in the expert's intermediate values; bounds `words`
  trace_share: float = 0.0  # fraction of the examples that show their trace

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    splits.require(self, "n_numbers", 2 <= self.n_numbers <= 4, "2 to 4")
    splits.require(self, "low", self.low >= 1, "1 or more")
    splits.require(self, "high", self.high >= self.low, f"low ({self.low}) or more")
    largest = max(self.high, self.target or self.max_target)
    splits.require(self, "target", self.target >= 0, "0 (drawn) or more")
    splits.require(self, "max_target", self.max_target >= 1, "1 or more")
    splits.require(self, "max_value", self.max_value >= largest, f"the largest number or target ({largest}) or more")

  @property
  def words(self) -> tuple[str, ...]:
    """Numbers first, so that a number's id is its value."""
    return (*(str(i) for i in range(self.max_value + 1)), "+", "-", "*", "/", "(", ")", "=", ";", "make", "from")

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng = splits.generator(self, index)
    shows_trace = rng.random() < self.trace_share
    where = f"n_numbers: {self.n_numbers} numbers from {self.low} to {self.high} leave no puzzle for {self.split}"
    numbers, target = splits.draw(lambda: self._propose(rng), MAX_TRIES, where)
    found = reachable(numbers, self.fractions, self.max_value)
    tree = shuffled(grown(found, self._all, (target, 1), rng), rng)
    question = f"make {target} from {splits.words_of(rng.permutation(numbers))}"
    return question, written(tree), steps(tree) if shows_trace else None

  @property
  def _all(self):
    return (1 << self.n_numbers) - 1

  def _propose(self, rng):
    """Sorted numbers and a target that they reach; None if they belong to another split or reach none."""
    numbers = tuple(sorted(rng.integers(self.low, self.high + 1, size=self.n_numbers).tolist()))
    if splits.split_of(splits.words_of(numbers)) != self.split:
      return None
    found = reachable(numbers, self.fractions, self.max_value)
    target = self.target or self._draw_target(found, rng)
    solvable = target and (not self.target or ways_to(found, self._all, (target, 1)))
    return (numbers, target) if solvable else None

  def _draw_target(self, found, rng):
    """The value of a random last step, if it may be a target: values with many solutions are drawn more often."""
    left, right = pick(list(parts(self._all)), rng)
    result = pick(results(pick(list(found[left]), rng), pick(list(found[right]), rng)), rng)
    value, rest = divmod(*result) if result[1] else (0, 0)
    return value if rest == 0 and 1 <= value <= self.max_target else None

  def chance(self) -> None:
    """Not known: answers differ in length, and solutions in number."""

  def grade(self, completion: str, reference: str) -> bool:
    """See `grade`."""
    return grade(completion, reference)

  def normal_form(self, completion: str) -> str | None:
    """See `normal_form`."""
    return normal_form(completion)


@dataclasses.dataclass(frozen=True)
class SmallCountdown(Countdown):
  """Countdown for models of a few thousand parameters: three small numbers, drawn targets, no fractions, 82 numbers."""

  n_numbers: int = 3
  high: int = 9
  target: int = 0
  max_target: int = 30
  fractions: bool = False
  max_value: int = 81


def grade(completion: str, reference: str) -> bool:
  """Whether `completion` uses exactly the numbers of the expression `reference`, each once, and has its value.

  The reference is any solution of the puzzle, so it has both the numbers and the target. Completions with signs, powers
  or concatenated numbers, which are not basic operations, are wrong; "= target" may follow.
  """
  try:
    return expressions.read(completion) == expressions.read(reference)
  except (ValueError, ZeroDivisionError):
    return False


def normal_form(completion: str) -> str | None:
  """The numbers and the value of an expression, which is all that `grade` looks at; None for what is no expression."""
  try:
    numbers, value = expressions.read(completion)
  except (ValueError, ZeroDivisionError):
    return None
  return f"{numbers} = {value}"


# ---- The expert ----------------------------------------------------------------------------------------------------
#
# A value is a pair (numerator, denominator) in lowest terms, never negative: any way through negative values to a
# positive target has an equivalent without them (if a - b is negative, use b - a and flip the sign around it).
# A subset of the numbers is a bit mask. A way is (left subset, left value, operation, right subset, right value).


def pick(options, rng):
  """A random element of a list; None if it is empty."""
  return options[rng.integers(len(options))] if options else None


def lowest(numerator: int, denominator: int) -> tuple[int, int]:
  """A fraction in lowest terms."""
  divisor = math.gcd(numerator, denominator)
  return numerator // divisor, denominator // divisor


def results(a, b) -> tuple:
  """(numerator, denominator), not in lowest terms, of a + b, |a - b|, a * b, a / b and b / a."""
  (p, q), (r, s) = a, b
  ps, rq, qs = p * s, r * q, q * s
  return (ps + rq, qs), (abs(ps - rq), qs), (p * r, qs), (ps, rq), (rq, ps)


def parts(mask: int):
  """Yields every split of a subset into two parts, each once."""
  lowest_bit = mask & -mask
  part = (mask - 1) & mask
  while part:
    if part & lowest_bit:
      yield part, mask ^ part
    part = (part - 1) & mask


@functools.lru_cache(maxsize=4096)
def reachable(numbers: tuple, fractions: bool, max_value: int) -> dict:
  """Every proper subset of `numbers` with the values that it can make, as a dict, for a fixed order."""
  found = {1 << i: {(number, 1): None} for i, number in enumerate(numbers)}
  for size in range(2, len(numbers)):
    for chosen in itertools.combinations(range(len(numbers)), size):
      mask = sum(1 << i for i in chosen)
      pairs = (pair for left, right in parts(mask) for pair in itertools.product(found[left], found[right]))
      values = (lowest(*result) for a, b in pairs for result in results(a, b) if result[1])
      found[mask] = {v: None for v in values if max(v) <= max_value and (fractions or v[1] == 1)}
  return found


def ways_to(found: dict, mask: int, target: tuple) -> list:
  """Every last step by which a subset makes `target`: its parts, their values, and the operation between them."""
  ways = []
  for left, right in parts(mask):
    if len(found[left]) > len(found[right]):
      left, right = right, left  # iterate over the smaller one, look up its counterparts
    for a in found[left]:
      for name, b_first, b in _counterparts(a, target, found[right]):
        if b in found[right]:
          ways.append((right, b, name, left, a) if b_first else (left, a, name, right, b))
  return ways


def _counterparts(a, target, others):
  """Yields (operation, whether b is the left operand, b) for each b that makes `target` with a."""
  (p, q), (t, u) = a, target
  difference = t * q - p * u
  if difference >= 0:
    yield "+", False, lowest(difference, q * u)
  if difference <= 0:
    yield "-", False, lowest(-difference, q * u)  # a - b
  yield "-", True, lowest(t * q + p * u, q * u)  # b - a
  if p:
    yield "*", False, lowest(t * q, p * u)
    yield "/", True, lowest(t * p, q * u)  # b / a
    if t:
      yield "/", False, lowest(p * u, q * t)  # a / b
  elif t == 0:
    yield from (("*", False, b) for b in others)
    yield from (("/", False, b) for b in others if b[0])


def grown(found: dict, mask: int, value: tuple, rng):
  """A random tree of a subset with this value: a number, or (operation, left tree, right tree)."""
  if mask & (mask - 1) == 0:
    return value[0]
  left, a, name, right, b = pick(ways_to(found, mask, value), rng)
  return name, grown(found, left, a, rng), grown(found, right, b, rng)


def shuffled(tree, rng):
  """The tree with the operands of sums and products in random order."""
  if isinstance(tree, int):
    return tree
  name, left, right = tree[0], shuffled(tree[1], rng), shuffled(tree[2], rng)
  return (name, right, left) if name in "+*" and rng.random() < 0.5 else (name, left, right)


def written(tree, above: int = 0) -> str:
  """The tree as an expression with the fewest parentheses. `above` = precedence of the enclosing operator."""
  if isinstance(tree, int):
    return str(tree)
  name, left, right = tree
  binds = BINDS[name]
  text = f"{written(left, binds)} {name} {written(right, binds + (name in '-/'))}"
  return f"( {text} )" if binds < above else text


def steps(tree) -> str:
  """The tree as a sequence of equations, innermost first."""
  lines = []

  def value_of(node):
    if isinstance(node, int):
      return node, 1
    name, left, right = node[0], value_of(node[1]), value_of(node[2])
    # Operands in the tree's order, a - b and a / b: the first of each kind in `results`.
    value = lowest(*results(left, right)["+-*/".index(name)])
    lines.append(f"{_number(left)} {name} {_number(right)} = {_number(value)}")
    return value

  value_of(tree)
  return " ; ".join(lines)


def _number(value) -> str:
  return str(value[0]) if value[1] == 1 else f"( {value[0]} / {value[1]} )"
