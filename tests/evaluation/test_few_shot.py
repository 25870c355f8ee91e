"""Worked examples are drawn by a seed, never asked, and the same for all questions of a group."""

import pytest

from nrt_jax import errors
from nrt_jax.data import prompts
from nrt_jax.data.sources import DataConfig, Example
from nrt_jax.evaluation import few_shot, held_out
from nrt_jax.evaluation.held_out import EvaluationConfig
from nrt_jax.tasks.running_sum import RunningSum

EXAMPLES = [Example(f"q{i}", f"a{i}", None, f"x:{i}", group="ab"[i % 2]) for i in range(12)]
TRAINING = [Example(f"t{i}", f"a{i}", "so", f"t:{i}") for i in range(5)]


def test_none_are_asked_for():
  assert few_shot.add(EXAMPLES, 0, 3) == EXAMPLES and few_shot.add(EXAMPLES, 0, 3, TRAINING) == EXAMPLES


def test_they_are_taken_out_of_their_group():
  found = few_shot.add(EXAMPLES, 2, 3)
  assert len(found) == 8 and few_shot.add(EXAMPLES, 2, 3) == found
  for group in "ab":
    own = [one for one in found if one.group == group]
    (shots,) = {tuple(shot.question for shot in one.shots) for one in own}
    asked = [one.question for one in own]
    assert sorted([*shots, *asked]) == sorted(one.question for one in EXAMPLES if one.group == group)
    assert asked == [one.question for one in EXAMPLES if one.question in asked]  # in their own order
  drawn = {tuple(one.shots[0].question for one in few_shot.add(EXAMPLES, 2, seed)[::4]) for seed in range(8)}
  assert len(drawn) > 3


def test_a_training_split_leaves_all_questions():
  found = few_shot.add(EXAMPLES, 3, 0, TRAINING)
  assert [one.question for one in found] == [one.question for one in EXAMPLES]
  assert len({one.shots for one in found}) == 1 and set(found[0].shots) < set(TRAINING)


def test_a_limit_is_one_of_each_group():
  assert few_shot.first(EXAMPLES, None) == EXAMPLES
  assert [one.question for one in few_shot.first(EXAMPLES, 2)] == ["q0", "q1", "q2", "q3"]
  assert [one.question for one in few_shot.first(EXAMPLES[::2], 2)] == ["q0", "q2"]


def test_too_many_are_an_error():
  with pytest.raises(errors.UserError, match="^evaluation.shots: found 6, but a has 6 examples, allowed: up to 5"):
    few_shot.add(EXAMPLES, 6, 0)
  with pytest.raises(errors.UserError, match="found 5, but the training split has 5 examples"):
    few_shot.add(EXAMPLES, 5, 0, TRAINING)
  with pytest.raises(errors.UserError, match="^evaluation.shots: found -1, allowed: 0 or more"):
    EvaluationConfig(shots=-1)
  with pytest.raises(errors.UserError, match=r"^evaluation.sets \(--sets\): found 'gsm9k', .*did you mean 'gsm8k'"):
    EvaluationConfig(sets=("gsm9k",))


def test_the_data_of_a_config_has_them_too():
  tokenizer = prompts.word_tokenizer(RunningSum().words)
  config = prompts.PromptConfig(max_prompt_length=64)
  form = prompts.make_format(tokenizer, config)
  data = DataConfig(source="task:running_sum", split="test", examples=6)
  found = held_out.load_dataset(EvaluationConfig(data=data, shots=2), config, tokenizer, form)
  none = held_out.load_dataset(EvaluationConfig(data=data), config, tokenizer, form)
  assert (len(none), len(found)) == (6, 4)
  assert all(form.marker_ids[0] in ids for ids in found.prompts)
  assert not any(form.marker_ids[0] in ids for ids in none.prompts)
