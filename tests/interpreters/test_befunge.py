"""Befunge-93: programs with known outputs, adversarial ones, and JAX = Python on ten thousand random ones."""

import collections
import fractions
import itertools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest

from nrt_jax import errors
from nrt_jax.interpreters import batching, befunge, befunge_jax, outcome

WIDE = befunge.Limits(steps=5000, outputs=80)
SMALL = befunge.Limits(steps=120, outputs=6, stack=5, width=9, height=5)
LINE = befunge.Limits(steps=5, outputs=3, stack=1, width=5, height=1)
QUINE = ":0g,1+:78+-!#@_"
LOW, HIGH = -(2**31), 2**31 - 1


def text(*lines) -> str:
  """A program of (column, text) pairs and of texts in column 0."""
  return "\n".join(line if isinstance(line, str) else " " * line[0] + line[1] for line in lines)


FACTORIAL = text("&v", (1, ">:1-:!#v_"), (8, "$"), (8, r">\:!#v_*"), (13, ">$.@"))
FIBONACCI = text("&00p01v", (6, ">00g1-:00p!#v_:10p+10g\\"), (16, "@.<"))
# Counts how often each value comes in the cells of line 6, which are blank, 32, at first.
SORT = text(r"&:1+!#v_:6g1+\6p", (6, "$"), (6, "1"), (6, r">:6g48*-!#v_:.::6g1-\6p"), (6, "|  -+19:+1<"), (6, "@"))

# name -> (program, inputs, outputs)
KNOWN = {
  "hello world": ('"!dlrow ,olleH">:#,_@', (), tuple(b"Hello, world!")),
  "cat": ("~:1+!#@_,", (72, 105, 300), (72, 105, 44)),
  "reverse": (text("&:1+!#v_", (6, "$"), (6, ">:!#@_.")), (5, 1, 4), (4, 1, 5)),
  "add": ("&&+.@", (30, -42), (-12,)),
  "factorial": (FACTORIAL, (10,), (math.factorial(10),)),
  "factorial of 1": (FACTORIAL, (1,), (1,)),
  "factorial, wrapping": (FACTORIAL, (13,), ((math.factorial(13) + 2**31) % 2**32 - 2**31,)),
  "fibonacci": (FIBONACCI, (10,), (55,)),
  "fibonacci of 1": (FIBONACCI, (1,), (1,)),
  "sort": (SORT, (5, 1, 9, 2, 5), (1, 2, 5, 5, 9)),
  "puts its own end": ('"@"90p5. .', (), (5,)),
  "counts in its own text": ('1.00g1+:00p":"-!#@_', (), tuple(range(1, 10))),
  "down and up": ("v  >.@\n>8v^\n  >^", (), (8,)),
  "left over the edge": ("<@.3", (), (3,)),
  "up over the edge": (text("^", *[""] * 21, "@", ".", "3"), (), (3,)),
}

# name -> (program, inputs, status, steps, outputs), with SMALL
ADVERSARIAL = {
  "nothing": ("", (), outcome.UNFINISHED, 120, ()),
  "lines of nothing": ("\n" * 40, (), outcome.UNFINISHED, 120, ()),
  "to and fro": ("><", (), outcome.UNFINISHED, 120, ()),
  "pushes for ever": ("1", (), outcome.STACK_FULL, 45, ()),
  "reads for ever": ("&&&&&&&", (1,), outcome.STACK_FULL, 5, ()),
  "writes for ever": (".", (), outcome.OUTPUT_FULL, 54, (0,) * 6),
  "one copy too many": ("12345:", (), outcome.STACK_FULL, 5, ()),
  "a copy that fits": ("1234:..@", (), outcome.FINISHED, 8, (4, 4)),
  "a copy of nothing": (":..@", (), outcome.FINISHED, 4, (0, 0)),
  "half a swap": (r"1\..@", (), outcome.FINISHED, 5, (0, 1)),
  "a swap on a full stack": (r"12345\..@", (), outcome.FINISHED, 9, (4, 5)),
  "pops from nothing": ("+.$-._ .@", (), outcome.FINISHED, 9, (0, 0, 0)),
  "puts outside": ("199p.@", (), outcome.FINISHED, 6, (0,)),
  "gets outside": ("99g.@", (), outcome.FINISHED, 5, (0,)),
  "gets left of it": ("01-0g.@", (), outcome.FINISHED, 7, (0,)),
  "a value that is no character": ("&70p   .@", (1000,), outcome.FINISHED, 9, ()),
  "a value that is one": ("&70p    @", (ord("."),), outcome.FINISHED, 9, (0,)),
  "below all characters": ("&70p   .@", (LOW,), outcome.FINISHED, 9, ()),
  "an open string": ('"ab', (), outcome.STACK_FULL, 6, ()),
  "no end inside a string": ('"@".@', (), outcome.FINISHED, 5, (64,)),
  "what was put, in a string": ('&20p"  ".@', (), outcome.INVALID, 0, ()),  # ten characters
  "by zero": ("10/.10%.@", (), outcome.FINISHED, 9, (0, 0)),
  "bridge over the edge": ("1.      #", (), outcome.OUTPUT_FULL, 49, (1, 0, 0, 0, 0, 0)),
  "too many lines": ("\n" * 5 + "@", (), outcome.INVALID, 0, ()),
}


def both(texts, inputs, limits, seeds=None):
  """Python's outcomes, after JAX's, of all rows at once, have been found to be equal."""
  ids = [befunge.encode(one) if isinstance(one, str) else one for one in texts]
  seeds = range(len(ids)) if seeds is None else seeds
  expected = [befunge.run(program, given, limits, seed) for program, given, seed in zip(ids, inputs, seeds)]
  run = jax.jit(jax.vmap(lambda ids, n, given, m, seed: befunge_jax.run(ids, n, given, m, limits, seed)))
  found = run(*programs.rows(ids, inputs), np.array(seeds))
  for one, other in zip(programs.outcomes(found), expected, strict=True):
    assert one == other
  return expected


def test_known_programs():
  texts, inputs, outputs = zip(*KNOWN.values())
  for name, found, expected in zip(KNOWN, both(texts, inputs, WIDE), outputs):
    assert (name, found.output, found.status) == (name, expected, outcome.FINISHED)


def test_a_quine():
  limits = befunge.Limits(steps=300, outputs=20, width=len(QUINE), height=1)
  found = befunge.run(befunge.encode(QUINE), (), limits)
  assert "".join(map(chr, found.output)) == QUINE and found.status == outcome.FINISHED


def test_adversarial_programs():
  texts = [row[0] for row in ADVERSARIAL.values()] + [[96], [-1], [32, 1000]]
  found = both(texts, [row[1] for row in ADVERSARIAL.values()] + [()] * 3, SMALL)
  for name, one, (_, _, status, steps, output) in zip(ADVERSARIAL, found, ADVERSARIAL.values()):
    assert (name, one) == (name, (output, len(output), status, steps))
  assert [one.status for one in found[-3:]] == [outcome.INVALID] * 3


def test_smallest_limits():
  found = both(["    @", "     ", ":", "\\", "1....", "1#1@.", "12"], [()] * 7, LINE)
  assert [(one.status, one.steps) for one in found] == [
    (outcome.FINISHED, 5), (outcome.UNFINISHED, 5), (outcome.STACK_FULL, 0), (outcome.STACK_FULL, 0),
    (outcome.OUTPUT_FULL, 4), (outcome.FINISHED, 3), (outcome.STACK_FULL, 1),
  ]  # fmt: skip
  assert found[4].output == (1, 0, 0)


def test_arithmetic_is_that_of_32_bits():
  values = [LOW, LOW + 1, -7, -3, -1, 0, 1, 2, 7, 65536, HIGH]
  rows = list(itertools.product("+-*/%`", values, values))
  found = both([f"&&{op}.@" for op, _, _ in rows], [pair for _, *pair in rows], SMALL)
  for (op, a, b), one in zip(rows, found):
    x, y = np.int64(a), np.int64(b)
    quotient = math.trunc(fractions.Fraction(a, b)) if b else 0
    exact = {"+": x + y, "-": x - y, "*": x * y, "/": quotient, "%": b and a - quotient * b, "`": int(a > b)}[op]
    assert one.output == (int(np.int64(exact).astype(np.int32)),), (op, a, b)


def test_ten_thousand_random_programs():
  draw = random.Random(0)
  ids = [programs.befunge_program(draw, SMALL.width, SMALL.height) for _ in range(10_000)]
  values = (*range(-3, 20), LOW, HIGH)
  inputs = [draw.choices(values, k=draw.randrange(6)) for _ in ids]
  found = both(ids, inputs, SMALL, [draw.randrange(2**31) for _ in ids])
  mix = collections.Counter(outcome.NAMES[one.status] for one in found)
  print(f"\nBefunge: {dict(mix)}, {np.mean([one.steps for one in found]):.0f} steps a program")
  assert min(mix[name] for name in outcome.NAMES) > 300
  assert sum(one.length > 0 for one in found) > 3000 and sum(one.steps > 50 for one in found) > 1000


def test_random_directions_are_even_and_those_of_the_step():
  seeds, steps = np.meshgrid(np.arange(-50, 50), np.arange(100))
  found = [befunge.direction(int(seed), int(step)) for seed, step in zip(seeds.flat, steps.flat)]
  dx, dy = befunge_jax.direction(jnp.asarray(seeds.ravel()).astype(jnp.uint32), jnp.asarray(steps.ravel()))
  assert list(zip(dx.tolist(), dy.tolist())) == found
  counts = collections.Counter(found)
  assert len(counts) == 4 and all(abs(n - 2500) < 5 * math.sqrt(2500 * 0.75) for n in counts.values())
  again = collections.Counter(zip(found, found[100:]))  # the next step of the same seed
  assert len(again) == 16 and all(abs(n - 9900 / 16) < 5 * math.sqrt(620) for n in again.values())


# ---- Rows, cases and grades -----------------------------------------------------------------------------------------

ADDS = [((3, 4), (7,)), ((0, 5), (5,)), ((-15, 2), (-13,)), ((1, 0), (1,))]


def test_grades_are_the_share_of_right_cases():
  texts = ["&&+.@", "&.@", "&&.@", "<", "\t", "@", "&&+..@", ">&&\n\n\n\n\n+", '"@"80p&&+.']
  ids = [[-1] if one == "\t" else befunge.encode(one) for one in texts]
  cases = batching.cases_of(ADDS, SMALL.outputs)
  graded = jax.jit(jax.vmap(lambda ids, n: befunge_jax.grade_ids(ids, n, cases, SMALL)))
  found = np.asarray(graded(*batching.padded(ids, 12)))
  assert found.dtype == np.float32
  assert found.tolist() == [befunge.grade(one, ADDS, SMALL) for one in ids]
  assert found.tolist() == [1, 0.25, 0.25, 0, 0, 0, 0, 0, 0]


def test_a_step_does_not_touch_the_whole_memory():
  rows = programs.rows([befunge.encode("><")] * 3, [(1, 2)] * 3)
  each = jax.vmap(lambda *row: befunge_jax.run(*row, SMALL))
  traced = jax.make_jaxpr(each)(*rows)
  assert programs.makers_in_loops(traced.jaxpr, (3, 9 * 5 + 5 + 1 + 2 + 1 + 6 + 1)) == ["scatter"]


# ---- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["steps", "outputs", "stack", "width", "height"])
def test_bad_limits(key):
  with pytest.raises(errors.UserError, match=f"^befunge limits: {key}: found 0, allowed: 1 to 1073741824$"):
    befunge.Limits(**{key: 0})


def test_a_grid_too_large_to_count():
  with pytest.raises(errors.UserError, match="height: found 4294967296, allowed: 1073741824 or fewer$"):
    befunge.Limits(width=2**16, height=2**16)


def test_text_and_ids():
  assert befunge.decode(befunge.encode(FACTORIAL)) == FACTORIAL
  assert befunge.decode([0, 95, 96, -1]) == " \n\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
  assert befunge.encode(" !~\n") == [0, 1, 94, 95]
  for other in ("\t", "é", "\x7f"):
    with pytest.raises(ValueError, match="no character of Befunge"):
      befunge.encode("1" + other)
  path = []
  befunge.run(befunge.encode(' "a ",@'), (), SMALL, path=path)
  assert befunge.decode(path) == '"a",@'
