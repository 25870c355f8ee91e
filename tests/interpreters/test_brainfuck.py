"""Brainf**k: programs with known outputs, adversarial ones, and JAX = Python on ten thousand random ones."""

import collections
import random

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nrt_jax import errors
from nrt_jax.interpreters import batching, brainfuck, brainfuck_jax, outcome

WIDE = brainfuck.Limits(steps=20_000, outputs=40, tape=64)
SMALL = brainfuck.Limits(steps=200, outputs=8, tape=8, cells=16)
TINY = brainfuck.Limits(steps=3, outputs=1, tape=1, cells=2)

HELLO = "++++++++[>+++++++++<-]>." + "".join(  # H is 72 = 8 * 9; then the way from each letter to the next
  ("+" if b > a else "-") * abs(b - a) + "." for a, b in zip(b"Hello, world", b"ello, world!")
)
# Counts each value in the third of the tape's threes that it reaches by steps of its own size; then counts upwards.
SORT = ">>>,[[-[->>>+<<<]+>>>]>+<<<<[-<<<]>>>,]>>>+++++++++>>+<<[>[>.<-]>[->>>+<<<]>>>+<<<<<-[->>>+<<<]>>>]"

# name -> (program, inputs, outputs)
KNOWN = {
  "hello world": (HELLO, (), tuple(b"Hello, world!")),
  "cat": (",[.,]", (7, 3, 255, 1), (7, 3, 255, 1)),
  "cat of nothing": (",[.,]", (), ()),
  "cat up to a zero": (",[.,]", (7, 0, 3), (7,)),
  "reverse": (">,[>,]<[.<]", (5, 1, 4, 2), (2, 4, 1, 5)),
  "sort": (SORT, (5, 1, 9, 2, 5), (1, 2, 5, 5, 9)),
  "add": (",>,[-<+>]<.", (30, 12), (42,)),
  "add, wrapping": (",>,[-<+>]<.", (200, 100), (44,)),
  "multiply": (",>,<[->[->+>+<<]>>[-<<+>>]<<<]>>.", (12, 11), (132,)),
  "squares": ("+++++++++>+<[->[->+>+<<]>>[-<<+>>]<.<++<]", (), tuple(i * i for i in range(1, 10))),
  "fibonacci": ("++++++++++>>+<<[->>.[->+<]<[->+<]>>[-<+<+>>]<<<]", (), (1, 1, 2, 3, 5, 8, 13, 21, 34, 55)),
  "factorial": (",>+<[>[->+<]>[-<<[->+>>+<<<]>>>[-<<<+>>>]<]<<-]>.", (5,), (120,)),
  "comments": ("read, add one + and write .", (4,), (5,)),
  "empty": ("", (1, 2), ()),
  "below zero": ("-.", (), (255,)),
  "inputs in a circle": (",.,.,.", (-1, 256, 257), (255, 0, 1)),
  "left of the first cell": ("<+.>>.<<.", (), (1, 0, 1)),
  "once round the tape": ("+" + ">" * 64 + ".", (), (1,)),
}

# name -> (program, status, steps, outputs), with SMALL
ADVERSARIAL = {
  "for ever": ("+[]", outcome.UNFINISHED, 200, ()),
  "writes for ever": ("+[.]", outcome.OUTPUT_FULL, 18, (1,) * 8),
  "as much as fits": ("+" + "." * 8, outcome.FINISHED, 9, (1,) * 8),
  "one more than fits": ("+" + "." * 9, outcome.OUTPUT_FULL, 9, (1,) * 8),
  "its last step": ("+" * 200, outcome.FINISHED, 200, ()),
  "one step more": ("+" * 201, outcome.UNFINISHED, 200, ()),
  "a full output in the last step": ("+" * 192 + "." * 9, outcome.UNFINISHED, 200, (0,) * 8),
  "deep and skipped": ("[" * 90 + "]" * 90, outcome.FINISHED, 1, ()),
  "deep and entered": ("+" + "[" * 90 + "-" + "]" * 90, outcome.FINISHED, 182, ()),
  "reads beyond the end": ("," * 50 + ".", outcome.FINISHED, 51, (0,)),
  "opens": ("+.[", outcome.INVALID, 0, ()),
  "closes": ("+.]", outcome.INVALID, 0, ()),
  "the wrong way round": ("][", outcome.INVALID, 0, ()),
  "one too many": ("[[]]]", outcome.INVALID, 0, ()),
  "one too few": ("[[[]]", outcome.INVALID, 0, ()),
}


def both(texts, inputs, limits):
  """Python's outcomes, after JAX's, of all rows at once, have been found to be equal."""
  ids = [brainfuck.encode(text) if isinstance(text, str) else text for text in texts]
  expected = [brainfuck.run(program, given, limits) for program, given in zip(ids, inputs)]
  run = jax.jit(jax.vmap(lambda *row: brainfuck_jax.run(*row, limits)))
  for one, other in zip(programs.outcomes(run(*programs.rows(ids, inputs))), expected, strict=True):
    assert one == other
  return expected


def test_known_programs():
  texts, inputs, outputs = zip(*KNOWN.values())
  for name, found, expected in zip(KNOWN, both(texts, inputs, WIDE), outputs):
    assert (name, found.output, found.status) == (name, expected, outcome.FINISHED)


def test_adversarial_programs():
  texts = [row[0] for row in ADVERSARIAL.values()] + [[8], [-1], [2, 3, 100]]
  found = both(texts, [(3,)] * len(texts), SMALL)
  for name, one, (_, status, steps, output) in zip(ADVERSARIAL, found, ADVERSARIAL.values()):
    assert (name, one) == (name, (output, len(output), status, steps))
  assert [one.status for one in found[-3:]] == [outcome.INVALID] * 3


def test_smallest_limits():
  found = both([">+.", "+.-", "<-.", ".", "..", "", "+-+", "+-+-", ",.,"], [(3,)] * 9, TINY)
  assert found[:3] == [((1,), 1, 0, 3)] * 3  # the only cell is its own neighbour
  assert [one.status for one in found[3:]] == [
    outcome.FINISHED, outcome.OUTPUT_FULL, outcome.FINISHED, outcome.FINISHED, outcome.UNFINISHED, outcome.FINISHED
  ]  # fmt: skip


def test_ten_thousand_random_programs():
  draw = random.Random(0)
  ids = [programs.brainfuck_program(draw, draw.randrange(25)) for _ in range(10_000)]
  inputs = [[draw.randrange(-3, 20) for _ in range(draw.randrange(6))] for _ in ids]
  found = both(ids, inputs, SMALL)
  mix = collections.Counter(outcome.NAMES[one.status] for one in found)
  print(f"\nBrainf**k: {dict(mix)}, {np.mean([one.steps for one in found]):.0f} steps a program")
  assert min(mix[name] for name in ("finished", "unfinished", "output full", "invalid")) > 300
  assert sum(one.length > 0 for one in found) > 3000 and sum(one.steps > 50 for one in found) > 1000


# ---- Rows, cases and grades -----------------------------------------------------------------------------------------

ADDS = [((3, 4), (7,)), ((0, 5), (5,)), ((15, 2), (1,)), ((), (0,))]


@pytest.mark.parametrize("count", [None, 8])
def test_grades_are_the_share_of_right_cases(count):
  texts = [",>,[-<+>]<.", ",.", ",>,.", "+[]", "]", "", ",>,[-<+>]<..", ".", ",>,[-<+>]<.+[]"]
  cases = batching.cases_of(ADDS, SMALL.outputs, count=count)
  ids = [brainfuck.encode(text) for text in texts]
  graded = jax.jit(jax.vmap(lambda ids, n: brainfuck_jax.grade_ids(ids, n, cases, SMALL)))
  found = np.asarray(graded(*batching.padded(ids, 14)))
  assert found.dtype == np.float32
  assert found.tolist() == [brainfuck.grade(one, ADDS, SMALL) for one in ids]
  assert found.tolist() == [1, 0.25, 0.5, 0, 0, 0, 0, 0.25, 0]


def test_one_row_alone_and_inside_a_loop():
  """Not only under vmap, and with lengths beyond the arrays'."""
  program, inputs, none = jnp.asarray(brainfuck.encode(",[.,]")), jnp.asarray([4, 5, 6]), jnp.zeros(0, jnp.int32)

  @jax.jit
  def runs():
    shorter = jax.lax.map(lambda n: brainfuck_jax.run(program, 5, inputs, n, SMALL), jnp.arange(4))
    one_by_one = [brainfuck_jax.run(program, 99, inputs, 99, SMALL), brainfuck_jax.run(none, 0, none, 0, SMALL)]
    return shorter, jax.tree.map(lambda *a: jnp.stack(a), *one_by_one)

  shorter, alone = map(programs.outcomes, runs())
  assert alone == [((4, 5, 6), 3, outcome.FINISHED, 11), ((), 0, outcome.FINISHED, 0)]
  assert [one[0] for one in shorter] == [(), (4,), (4, 5), (4, 5, 6)]


def test_rows_over_devices():
  """Rows that the compiler shards, that a shard_map cuts, and pmap's: the same outcomes."""
  texts = [",[.,]", "+[>]", ".", "+[.]", ",>,[-<+>]<.", "]", "++.", ",."] * 2
  rows = programs.rows([brainfuck.encode(text) for text in texts], [(1, 2)] * len(texts))
  each = jax.vmap(lambda *row: brainfuck_jax.run(*row, SMALL))
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
  by_rows = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data")))
  cut = jax.shard_map(each, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"), check_vma=False)
  stacked = jax.tree.map(lambda a: a.reshape(4, 4, *a.shape[1:]), rows)
  found = [jax.jit(each)(*by_rows), jax.jit(cut)(*by_rows)]
  found.append(jax.tree.map(lambda a: a.reshape(16, *a.shape[2:]), jax.pmap(each, devices=jax.devices()[:4])(*stacked)))
  expected = [brainfuck.run(brainfuck.encode(text), (1, 2), SMALL) for text in texts]
  assert all(programs.outcomes(one) == expected for one in found)


def test_a_step_does_not_touch_the_whole_memory():
  """Under vmap too: nothing but the one scatter makes an array as large as all rows' memories."""
  rows = programs.rows([brainfuck.encode("+[]")] * 3, [(1, 2)] * 3)
  each = jax.vmap(jax.vmap(lambda *row: brainfuck_jax.run(*row, SMALL)))
  traced = jax.make_jaxpr(each)(*jax.tree.map(lambda a: np.stack([a] * 2), rows))
  assert programs.makers_in_loops(traced.jaxpr, (6, 8 + 2 + 8 + 2)) == ["scatter"]


# ---- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "key,value",
  [("steps", 0), ("outputs", 0), ("tape", 0), ("cells", 1), ("steps", 2.5), ("tape", True), ("tape", 2**31)],
)
def test_bad_limits(key, value):
  with pytest.raises(errors.UserError, match=f"^brainfuck limits: {key}: found {value}, allowed: [12] to 1073741824$"):
    brainfuck.Limits(**{key: value})


def test_bad_cases():
  with pytest.raises(errors.UserError, match="^test cases: found none, allowed: 1 or more$"):
    batching.cases_of([], 3)
  with pytest.raises(errors.UserError, match="^test cases: output: found 2 values, allowed: 1 or fewer$"):
    batching.cases_of([((1,), (1, 2))], 1)
  with pytest.raises(errors.UserError, match="^test cases: input: found 3 values, allowed: 2 or fewer$"):
    batching.cases_of([((1, 2, 3), ())], 1, input_size=2)


def test_text_and_ids():
  assert brainfuck.decode(brainfuck.encode("a>b<+-.,[]")) == brainfuck.ALPHABET == "><+-.,[]"
  assert brainfuck.decode([2, 8, -1]) == "+??"
  path = []
  brainfuck.run(brainfuck.encode(",[.,]"), (7, 8), SMALL, path=path)
  assert brainfuck.decode(path) == ",[.,].,]"
