"""Programs graded in the loop against the task's own grader, which runs them by the interpreter in Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.environments.program import Program, ProgramConfig
from nrt_jax.environments.words import integers_of
from nrt_jax.errors import UserError
from nrt_jax.tasks import table as tasks

TASKS = [
  ("brainfuck", "copy", {}),
  ("brainfuck", "reverse", {"convention": "swapped"}),
  ("brainfuck", "print", {}),
  ("befunge", "add", {"n_tests": 5}),
]
EACH = 30  # programs of a task


@functools.cache
def opened(language, kind, options):
  """(task, tokenizer, environment) with the task's limits."""
  task = tasks.make_task(language, "train", {"kind": kind, "direction": "write", **dict(options)})
  tokenizer, limits = word_tokenizer((*task.words, "<m>", "<n>")), task.limits
  sizes = {"tape": limits.tape, "cell_values": limits.cells} if language == "brainfuck" else {}
  sizes |= {} if language == "brainfuck" else {"width": limits.width, "height": limits.height, "stack": limits.stack}
  config = ProgramConfig(language, task.convention, cases=len(task.cases(0)), step_limit=limits.steps, **sizes)
  marker_ids = tuple(tokenizer.convert_tokens_to_ids(["<m>", "<n>"]))
  ids = (tokenizer.eos_token_id,)
  form = toy.form(marker_ids, stop_ids=(marker_ids[0], *ids), pad_id=tokenizer.pad_token_id)
  return task, tokenizer, Program.open(config, tokenizer, form)


def row(tokenizer, world):
  """A row of Prompts with this world, padded on the left."""
  ids = tokenizer(world)["input_ids"]
  padded = jnp.asarray([tokenizer.pad_token_id] * (160 - len(ids)) + ids, jnp.int32)
  one = jax.tree.map(lambda a: jnp.asarray(a[0]), toy.prompts(1))
  return one.replace(hint_BQ=padded, hint_length_B=jnp.int32(len(ids)))


def answers(task, rng, count):
  """Example numbers with programs: right ones, right ones with one instruction exchanged or lost, and what is none."""
  words = [word for word in task.characters if word]
  for i in range(count):
    program = task.example(i)[1].split()
    change = i % 4
    if change == 1:
      program[rng.integers(len(program))] = str(rng.choice(words))
    elif change == 2:
      del program[rng.integers(len(program))]
    elif change == 3:
      program = [str(word) for word in rng.choice([*words, "write"], size=rng.integers(0, 9))]
    yield i, " ".join(program)


@pytest.mark.parametrize("language,kind,options", TASKS)
def test_verdicts_are_those_of_the_tasks_grader(language, kind, options):
  task, tokenizer, program = opened(language, kind, tuple(options.items()))
  given, rng = list(answers(task, np.random.default_rng(0), EACH)), np.random.default_rng(1)
  rows, sequences = [], []
  for i, text in given:
    world = task.world(i)
    ids = tokenizer(world)["input_ids"]
    assert program.check_world(ids) is None
    rows.append(row(tokenizer, world))
    trace = " ".join(rng.choice(["1", "<m>", "[", "write"], size=rng.integers(0, 4)))  # half a marker is none
    sequences.append(tokenizer(f"{trace} <m> <n> {text}")["input_ids"] + [tokenizer.eos_token_id])
  width = max(map(len, sequences))

  @jax.jit
  @jax.vmap
  def play(prompts, token_T, length):
    def one(state, token_t):
      token, t = token_t
      after = program.step(state, token).state
      return jax.tree.map(lambda new, old: jnp.where(t < length, new, old), after, state), None

    return program.verdict(jax.lax.scan(one, program.init(prompts), (token_T, jnp.arange(width)))[0])

  padded = np.array([ids + [0] * (width - len(ids)) for ids in sequences], np.int32)
  stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *rows)
  found = play(stacked, padded, np.array(list(map(len, sequences))))
  expected = [task.grade(text, task.example(i)[1]) for i, text in given]
  np.testing.assert_array_equal(found, expected)
  assert EACH // 4 <= sum(expected) < EACH


def test_shares_too_long_programs_and_rows_without_a_marker():
  task, tokenizer, program = opened("brainfuck", "copy", ())
  share = Program.__new__(Program)
  share.__dict__ |= program.__dict__ | {"config": ProgramConfig(share=True, step_limit=task.limits.steps)}
  short = Program.__new__(Program)
  short.__dict__ |= program.__dict__ | {"config": ProgramConfig(max_length=4, step_limit=task.limits.steps)}

  def verdict(environment, text, given=task.world(0)):
    state = environment.init(row(tokenizer, given))
    for token in tokenizer(text)["input_ids"]:
      state = environment.step(state, jnp.int32(token)).state
    return float(environment.verdict(state))

  ones = [len(given) == 1 for given, _ in task.cases(0)]
  assert 0 < sum(ones) < len(ones)
  assert verdict(share, "<m> <n> , .") == pytest.approx(np.mean(ones)) and verdict(program, "<m> <n> , .") == 0
  assert verdict(program, "<m> <n> , [ . , ]") == verdict(share, "<m> <n> , [ . , ]") == 1
  assert verdict(program, ", [ . , ]") == verdict(program, "<m> , [ . , ]") == 0
  assert verdict(short, "<m> <n> , [ . , ]") == 0
  # Another example's cases decide: what copies one number is right where all are of one.
  single = " ".join(["3 gives 3 ;"] * 16)
  assert verdict(program, "<m> <n> , .", single) == 1


@pytest.mark.parametrize(
  "world,said",
  [
    ("1 gives 1 ;", "found 1 whole test cases, allowed: environment.cases, 16"),
    ("1 gives 1 ; " * 15 + "1 gives 1", "found 15 whole test cases"),
    ("1 gives 1 2 3 4 ; " * 16, "found a test case of 4 outputs, allowed: environment.outputs, 3"),
    ("1 2 3 4 gives 1 ; " * 16, "found a test case of 4 inputs"),
    ("1 gives [ ; " * 16, "found another word in the test cases"),
    ("1 gives 1 gives 1 ; " * 16, "found another word in the test cases, or one out of place"),
  ],
)
def test_worlds_that_are_no_test_cases(world, said):
  _, tokenizer, program = opened("brainfuck", "copy", ())
  assert program.check_world(tokenizer(world)["input_ids"]).startswith(said)


def test_bad_keys_are_one_line():
  for key in ("max_length", "step_limit", "cases", "inputs", "outputs", "max_world_length", "tape", "height", "stack"):
    with pytest.raises(UserError, match=f"^environment.{key}: found 0, allowed: 1 or more"):
      ProgramConfig(**{key: 0})
  with pytest.raises(UserError, match="^environment.language: found 'brainfork', .*did you mean 'brainfuck'"):
    ProgramConfig(language="brainfork")
  with pytest.raises(UserError, match="^environment: .*cells: found 1"):
    ProgramConfig(cell_values=1)


def test_numbers_are_words_of_digits():
  tokenizer = word_tokenizer(("0", "17", "x1", "-3", "٣"))
  assert integers_of(tokenizer) == {0: 0, 1: 17}
