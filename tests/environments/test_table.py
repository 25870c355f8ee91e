"""Environments in a config: their keys, the methods that may live in them, and worlds read from data."""

import json

import jax.numpy as jnp
import pytest
import toy

from nrt_jax import config
from nrt_jax.data import batches
from nrt_jax.data.prompts import PromptConfig, make_format, word_tokenizer
from nrt_jax.environments.fixed_length import FixedLength, FixedLengthConfig
from nrt_jax.environments.memory import MemoryConfig
from nrt_jax.environments.table import ENVIRONMENTS
from nrt_jax.errors import UserError
from nrt_jax.step import opening, policy
from nrt_jax.tasks.facts import Facts


def stage(algorithm="nrt", environment=None, stages=None, **over):
  values = config.defaults(algorithm)
  values["environment"] = environment
  values |= over | ({"stages": stages} if stages else {})
  return config.stages_of(values)


def test_the_config_of_a_run_names_its_environment():
  run = stage(environment={"name": "memory", "slots": 5})[0]
  assert run.environment_name == "memory" and run.environment == MemoryConfig(slots=5)
  assert stage()[0].environment is None
  changes = ({}, {"environment": {"slots": 7}}, {"environment": {"name": "fixed_length"}}, {"environment": None})
  stages = [{"name": name, **change} for name, change in zip("abcd", changes)]
  found = [run.environment for run in stage(environment={"name": "memory", "read_cost": 1}, stages=stages)]
  assert found == [MemoryConfig(read_cost=1), MemoryConfig(slots=7, read_cost=1), FixedLengthConfig(), None]


@pytest.mark.parametrize(
  "environment,said",
  [
    ({"name": "memroy"}, "environment.name: found 'memroy', .*did you mean 'memory'"),
    ({"slots": 3}, "environment.name: found ''"),
    ({"name": "memory", "slotz": 3}, "environment: unknown key: found 'slotz'"),
    ({"name": "memory", "slots": 0}, "environment.slots: found 0, allowed: 1 or more"),
    ({"name": "fixed_length", "tokens": 0}, "environment.tokens: found 0, allowed: 1 or more"),
    ("memory", "environment: found 'memory', allowed: a mapping"),
  ],
)
def test_mistakes_are_one_line(environment, said):
  with pytest.raises(UserError, match=f"^{said}"):
    stage(environment=environment)


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "rationalization", "raro", "nft"])
def test_methods_that_cannot_live_in_an_environment_say_so(algorithm):
  with pytest.raises(
    UserError, match=f"environment.name: found 'memory' with algorithm.name '{algorithm}', allowed: null"
  ):
    stage(algorithm, {"name": "memory"})


def test_only_what_judges_is_a_verifier():
  with pytest.raises(UserError, match="algorithm.verifier: found 'environment' with environment.name 'memory'"):
    toy.run_config("grpo", algorithm__verifier="environment", environment={"name": "memory"})
  with pytest.raises(UserError, match="algorithm.verifier: found 'environment' with environment.name None"):
    toy.run_config("grpo", algorithm__verifier="environment")


def test_worlds_are_tokens_of_each_example_that_no_prompt_shows():
  task = Facts()
  tokenizer = word_tokenizer(task.words)
  form = make_format(tokenizer, PromptConfig())
  run = toy.run_config("nrt", environment={"name": "memory", "key_tokens": 2, "max_world_length": 40},
                       data__source="task:facts", data__examples=3)  # fmt: skip
  setup = opening.open_setup(run, toy.MODEL, tokenizer, form)
  data = batches.load_dataset(run.data, run.prompt, tokenizer, form, opening.second_texts(setup, tokenizer))
  batch = batches.batch(data, batches.Position(), 3, seed=0)[0]
  assert batch.hint_BQ.shape == (3, 40)
  for b in range(3):
    world = tokenizer.decode(batch.hint_BQ[b, 40 - batch.hint_length_B[b] :])
    example = next(e for e in data.examples if e.world == world)
    assert example.question in tokenizer.decode(batch.prompt_BP[b]) and "r0 e0" not in example.question


def test_worlds_come_from_a_column_too_and_are_missed(tmp_path):
  tokenizer = word_tokenizer(("a", "b", "read", "write", "none"))
  form = make_format(tokenizer, PromptConfig())
  path = tmp_path / "data.jsonl"
  lines = [{"question": "a", "answer": "b", "facts": "a b"}, {"question": "b", "answer": "a", "facts": "a b b a"}]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))

  def load(column, length=4):
    environment = {"name": "memory", "max_world_length": length}
    run = toy.run_config("nrt", environment=environment, data__source=str(path), data__world_column=column)
    setup = opening.open_setup(run, toy.MODEL, tokenizer, form)
    return batches.load_dataset(run.data, run.prompt, tokenizer, form, opening.second_texts(setup, tokenizer))

  assert [world.tolist() for world in load("facts").hints] == [[0, 1], [0, 1, 1, 0]]
  assert load("facts", 2).counts["worlds_dropped"] == 1
  with pytest.raises(UserError, match=r"data.jsonl:1: found no world, which the environment reads"):
    load(None)
  with pytest.raises(UserError, match=r"data.jsonl:1: column 'answer'|data.jsonl:1: found a world of 1 tokens"):
    load("answer")


def test_fixed_length_writes_the_marker():
  environment = FixedLength.open(FixedLengthConfig(2), None, toy.form(marker_ids=(toy.MARKER, toy.SECOND_MARKER)))
  state, counts = environment.init(None), []
  for token in (5, 6, 7):
    turn = environment.step(state, jnp.int32(token))
    state = turn.state
    counts.append(int(turn.count))
    assert turn.forced_F.tolist() == [toy.MARKER, toy.SECOND_MARKER]
  assert counts == [0, 2, 0]


def test_every_environment_of_the_table_says_what_it_is():
  for name, row in ENVIRONMENTS.items():
    assert row.environment.__doc__ and f"`{name}`" in row.config.__doc__
    assert policy.open_environment(toy.run_config("nrt"), None, toy.form()) is None
