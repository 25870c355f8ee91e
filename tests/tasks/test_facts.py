"""Facts: answers follow from the world, splits do not share worlds, and what is shown is what was asked for."""

import itertools

import numpy as np
import pytest
import reference

from nrt_jax.data import prompts
from nrt_jax.errors import UserError
from nrt_jax.tasks import table as tasks
from nrt_jax.tasks.facts import SHOWN, Facts


def table_of(text):
  words = text.split()
  return {tuple(words[i : i + 2]): words[i + 2] for i in range(0, len(words), 3)}


def followed(table, question):
  """The entities on the way, from the question's last part."""
  words = question.split()
  at, *path = words[words.index("follow") + 1 :]
  way = []
  for relation in path:
    at = table[relation, at]
    way.append(at)
  return way


@pytest.mark.parametrize("shown", SHOWN)
def test_answer_and_trace_follow_from_the_world(shown):
  task = Facts(shown=shown, entities=5, relations=2, hops=3, extra=1, cues=2, trace_share=1.0)
  for i in range(50):
    (question, answer, trace), table = task.example(i), table_of(task.world(i))
    assert len(table) == 15 and "r2" not in question.partition("follow")[2]
    way = followed(table, question)
    assert answer == way[-1]
    if shown == "memory":
      reads = trace.split("read ")[1:]
      assert [read.split()[2] for read in reads] == way and all(
        table[tuple(r.split()[:2])] == r.split()[2] for r in reads
      )
    else:
      assert trace.split() == way
    before, _, _ = question.partition("follow")
    assert len(before.partition(".")[2].split() if "." in before else before.split()) == 2  # the cues
    if shown == "context":
      assert table_of(before.partition(" .")[0]) == table
    if shown == "oracle":
      assert table_of(before.partition(" .")[0]).items() <= table.items()


def test_fixed_facts_are_one_table_and_others_are_not():
  for split in ("train", "test"):
    fixed = {Facts(split=split, fixed=True).world(i) for i in range(20)}
    assert fixed == {Facts(fixed=True).world(0)}
  assert Facts(fixed=True, seed=1).world(0) != Facts(fixed=True).world(0)
  assert len({Facts().world(i) for i in range(20)}) == 20


@pytest.mark.parametrize("fixed", [False, True])
def test_no_world_with_its_question_is_in_both_splits(fixed):
  def drawn(split):
    task = Facts(split=split, entities=3, relations=2, hops=2 if not fixed else 4, fixed=fixed)
    return {(task.world(i), task.example(i)[0]) for i in range(300)}

  train, test = drawn("train"), drawn("test")
  assert len(train) > 20 and test and not train & test


def test_cues_are_the_answer_as_often_as_they_shall():
  for share in (0.0, 0.5, 1.0):
    task = Facts(entities=10, cues=1, cue_share=share)
    same = [question.split()[0] == answer for question, answer, _ in map(task.example, range(400))]
    assert abs(np.mean(same) - (share + (1 - share) / 10)) < 0.08  # four standard deviations
  with_cues, without = Facts(cues=2), Facts()
  assert [with_cues.world(i) for i in range(9)] == [without.world(i) for i in range(9)]


def test_words_cover_every_text_and_grades_are_exact():
  task = Facts(cues=1, shown="context", trace_share=1.0)
  tokenizer = prompts.word_tokenizer(task.words)
  for text in itertools.chain.from_iterable((*task.example(i), task.world(i)) for i in range(9)):
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
  assert task.grade(" e1 ", "e1") and not task.grade("e1 e1", "e1")


def test_the_chance_of_a_random_answer():
  task = Facts(entities=5)
  names = [word for word in task.words if word.startswith("e")]
  assert task.chance() == reference.chance_of_random_answers([names], lambda text: task.grade(text, task.example(0)[1]))


def test_bad_options_are_one_line():
  for key, value in (
    ("entities", 1),
    ("relations", 0),
    ("hops", 0),
    ("extra", -1),
    ("cues", -1),
    ("cue_share", 1.5),
    ("shown", "all"),
  ):
    with pytest.raises(UserError, match=f"^data.task_options.{key}: found '?{value}'?"):
      tasks.make_task("facts", "train", {key: value})
  with pytest.raises(UserError, match="leave no question for the test split"):
    Facts(split="test", entities=2, relations=1, hops=1, fixed=True).example(0)
