"""Tasks: example i is a function of i, answers follow from questions, and splits are disjoint."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
from paths import DATA

from nrt_jax import errors
from nrt_jax.data import prompts, sources
from nrt_jax.tasks import grading, long_answer, running_sum, splits, verse
from nrt_jax.tasks import table as tasks

SHAKESPEARE = DATA / "text" / "tinyshakespeare.txt"


def digits_of(question):
  words = question.split()
  assert words[0] == "add" and words[-2] == "modulo"
  return [int(w) for w in words[1:-2]]


@pytest.mark.parametrize("base,n_digits,min_digits", [(5, 8, 4), (10, 10, 4), (2, 5, 5)])
def test_answer_and_trace_follow_from_the_question(base, n_digits, min_digits):
  task = running_sum.RunningSum(base=base, n_digits=n_digits, min_digits=min_digits, trace_share=1.0)
  leading = []
  for index in range(200):
    question, answer, trace = task.example(index)
    digits = digits_of(question)
    assert len(digits) == n_digits and max(digits) < base
    total, sums = 0, []
    for digit in digits:
      total = (total + digit) % base
      sums.append(total)
    assert [int(w) for w in trace.split()] == sums
    assert answer == f"the sum is {total} modulo {base}"
    leading.append(next((i for i, d in enumerate(digits) if d), n_digits))
  assert (max(leading) > 0) == (min_digits < n_digits or base == 2)  # base 2 draws zeros by itself
  if base > 2:
    assert np.mean(np.array(leading) > n_digits - min_digits) < 0.4  # beyond the padding only by a drawn zero


def test_the_worked_example_of_the_docstring():
  # Digits 0 0 3 1 4 2 0 1: 3, 3+1=4, 4+4=8=3, 3+2=5=0, 0, 0+1=1 (modulo 5).
  digits = np.array([0, 0, 3, 1, 4, 2, 0, 1])
  assert splits.words_of(np.cumsum(digits) % 5) == "0 0 3 4 3 0 0 1"
  assert "0 0 3 4 3 0 0 1" in running_sum.__doc__ and "the sum is 1 modulo 5" in running_sum.__doc__


def test_example_i_is_a_function_of_i_alone():
  task = running_sum.RunningSum(trace_share=0.5)
  forward = [task.example(i) for i in range(20)]
  np.random.seed(1)  # global generators must not matter
  backward = [running_sum.RunningSum(trace_share=0.5).example(i) for i in reversed(range(20))]
  assert forward == backward[::-1]
  assert len({question for question, _, _ in forward}) > 15
  assert [running_sum.RunningSum(seed=1, trace_share=0.5).example(i) for i in range(20)] != forward


def test_no_question_is_in_both_splits():
  # A small space, so that the same question is drawn again and again; and other seeds must not move it over.
  def questions(split, seed):
    task = running_sum.RunningSum(split=split, seed=seed, n_digits=4, min_digits=1, base=5)
    return {task.example(i)[0] for i in range(600)}

  train, test = questions("train", 0) | questions("train", 7), questions("test", 0) | questions("test", 3)
  assert len(train) > 300 and len(test) > 30
  assert not train & test


def test_a_split_holds_all_and_only_its_questions():
  every = [" ".join(map(str, d)) for d in itertools.product(range(3), repeat=4)]
  test = {q for q in every if splits.split_of(q) == "test"}
  task = running_sum.RunningSum(split="test", n_digits=4, min_digits=4, base=3)
  drawn = {" ".join(map(str, digits_of(task.example(i)[0]))) for i in range(400)}
  assert 0 < len(test) < len(every) and drawn == test


def test_the_trace_share_is_kept():
  for share, low, high in ((0.0, 0, 0), (0.2, 0.15, 0.25), (1.0, 1, 1)):
    task = running_sum.RunningSum(trace_share=share)
    shown = np.mean([task.example(i)[2] is not None for i in range(1000)])
    assert low <= shown <= high  # 0.2 +- 4 standard deviations of 0.0126


def test_the_share_of_traces_does_not_change_the_questions():
  shown, hidden = running_sum.RunningSum(trace_share=1.0), running_sum.RunningSum(trace_share=0.0)
  assert [shown.example(i)[:2] for i in range(20)] == [hidden.example(i)[:2] for i in range(20)]


def test_words_cover_every_text():
  task = running_sum.RunningSum(base=7, trace_share=1.0)
  tokenizer = prompts.word_tokenizer(task.words)
  for text in itertools.chain.from_iterable(task.example(i) for i in range(50)):
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
  assert tokenizer("0 3 6")["input_ids"] == [0, 3, 6]


def test_grade():
  grade = running_sum.RunningSum().grade
  right = "the sum is 3 modulo 5"
  assert grade(right, right) and grade("  the  sum is 3 modulo 5\n", right)
  for wrong in ("", "3", "the sum is 4 modulo 5", "the sum is 3 modulo 5 .", "the sum is 33 modulo 5", "x" * 10**6):
    assert not grade(wrong, right)
  assert not grading.exact_match("1 2", "12")


def test_errors_name_the_key_and_the_choices():
  with pytest.raises(errors.UserError, match="^data.source: task: found 'runing_sum', .*did you mean 'running_sum'"):
    tasks.make_task("runing_sum", "train", {})
  with pytest.raises(errors.UserError, match="^data.task_options of running_sum: found 'digits', allowed: base, "):
    tasks.make_task("running_sum", "train", {"digits": 3})
  with pytest.raises(errors.UserError, match="^data.split: found 'validation'"):
    tasks.make_task("running_sum", "validation", {})
  for key, value in (("base", 1), ("n_digits", 0), ("min_digits", 9), ("trace_share", 1.5), ("seed", -1)):
    with pytest.raises(errors.UserError, match=f"^data.task_options.{key}: found {value}"):
      tasks.make_task("running_sum", "train", {key: value})


def test_a_space_too_small_for_its_split_is_an_error_and_not_a_loop():
  with pytest.raises(errors.UserError, match="leave no question for the test split"):
    for index in range(20):
      running_sum.RunningSum(split="test", n_digits=1, min_digits=1, base=2).example(index)


# ---- Long answers --------------------------------------------------------------------------------------------------


def words_by_kind(task, answer):
  found = collections.defaultdict(list)
  for kind, word in zip(task.kinds, answer.split(), strict=True):
    found[kind].append(word)
  return found


@pytest.mark.parametrize(
  "options", [{}, {"n_easy": 3, "n_noisy": 0, "n_hard": 1}, {"n_hard": 3, "n_digits": 4, "base": 3}]
)
def test_hard_words_are_the_last_of_the_trace(options):
  task = long_answer.LongAnswer(trace_share=1.0, **options)
  assert collections.Counter(task.kinds) == {
    kind: count for kind, count in zip(("easy", "noisy", "hard"), (task.n_easy, task.n_noisy, task.n_hard)) if count
  }
  for index in range(50):
    question, answer, trace = task.example(index)
    groups = [group.split() for group in question.removeprefix("sum ").split(" modulo ")[0].split(" and ")]
    assert [len(group) for group in groups] == [task.n_digits] * task.n_hard
    totals = [sum(map(int, group)) % task.base for group in groups]
    assert [int(word) for word in words_by_kind(task, answer)["hard"]] == totals
    assert [int(part.split()[-1]) for part in trace.split(" and ")] == totals
    for group, part in zip(groups, trace.split(" and ")):
      assert [int(w) for w in part.split()] == [sum(map(int, group[: i + 1])) % task.base for i in range(task.n_digits)]


def test_easy_words_never_change_and_noisy_ones_are_pure_chance():
  task = long_answer.LongAnswer(n_noisy=5, n_colours=4)
  answers = [words_by_kind(task, task.example(i)[1]) for i in range(800)]
  assert len({tuple(answer["easy"]) for answer in answers}) == 1
  counts = np.array([[sum(a["noisy"][i] == c for a in answers) for c in long_answer.COLOURS[:4]] for i in range(5)])
  assert counts.sum() == 5 * 800 and np.all(np.abs(counts - 200) < 5 * np.sqrt(800 * 3 / 16))  # 5 standard deviations
  # The same question with other noise: what the question says has no part in it.
  small = long_answer.LongAnswer(n_hard=1, n_digits=2, base=2)
  noise = collections.defaultdict(set)
  for i in range(100):
    question, answer, _ = small.example(i)
    noise[question].add(tuple(words_by_kind(small, answer)["noisy"]))
  assert all(len(seen) > 5 for seen in noise.values())


def test_the_kinds_are_spread_over_the_answer():
  kinds = long_answer.LongAnswer(n_easy=24, n_noisy=6, n_hard=2).kinds
  halves = [collections.Counter(half) for half in (kinds[:16], kinds[16:])]
  assert all(half == {"easy": 12, "noisy": 3, "hard": 1} for half in halves)


def test_long_answers_are_graded_by_what_can_be_known():
  task = long_answer.LongAnswer(n_easy=3, n_noisy=2, n_hard=1)
  question, answer, _ = task.example(0)
  words = answer.split()
  places = {kind: task.kinds.index(kind) for kind in ("easy", "noisy", "hard")}

  def changed(kind, word):
    return " ".join([*words[: places[kind]], word, *words[places[kind] + 1 :]])

  assert task.grade(answer, answer)
  assert all(task.grade(changed("noisy", colour), answer) for colour in long_answer.COLOURS[:4])
  assert not task.grade(changed("noisy", "grey"), answer)  # no colour of this task
  assert not task.grade(changed("noisy", "so"), answer)
  assert not task.grade(changed("easy", "red"), answer)
  assert not task.grade(changed("hard", str((int(words[places["hard"]]) + 1) % 5)), answer)
  for wrong in ("", answer + " so", " ".join(words[:-1]), "x " * 10**6):
    assert not task.grade(wrong, answer)


def test_no_group_of_digits_is_in_both_splits():
  def groups(split, seed):
    task = long_answer.LongAnswer(split=split, seed=seed, n_digits=3)
    texts = (task.example(i)[0].removeprefix("sum ").removesuffix(" modulo 5") for i in range(200))
    return {group for text in texts for group in text.split(" and ")}

  train, test = groups("train", 0) | groups("train", 3), groups("test", 0) | groups("test", 4)
  assert len(train) > 80 and len(test) > 5 and not train & test


# ---- Verse ---------------------------------------------------------------------------------------------------------

POEM = "\n\n".join("\n".join(f"stanza {s} line {i}" for i in range(5)) for s in range(20))


def poem(tmp_path, text=POEM, **options):
  path = tmp_path / "poem.txt"
  path.write_text(text, encoding="utf-8")
  return verse.Verse(path=str(path), **{"question_lines": 2, "answer_lines": 1, **options})


def test_verse_pairs_stay_within_a_stanza(tmp_path):
  task = poem(tmp_path)
  assert task.length == 18  # 5 lines hold one pair of 3 lines; the last 2 stanzas are the test split
  assert task.example(0) == ("stanza 0 line 0\nstanza 0 line 1", "stanza 0 line 2", None)
  assert task.example(17)[1] == "stanza 17 line 2"
  assert [poem(tmp_path, split="test").example(i)[1] for i in range(2)] == ["stanza 18 line 2", "stanza 19 line 2"]
  assert poem(tmp_path, question_lines=1).length == 36  # two pairs of 2 lines each
  assert poem(tmp_path, POEM.replace("\n", " \r\n")).example(0) == task.example(0)
  assert set(task.words) == {"stanza", "line", *map(str, range(18))}


def test_a_refrain_is_not_tested(tmp_path):
  stanzas = POEM.split("\n\n")
  stanzas[18] = "\n".join(["new", "lines", "stanza 3 line 2"])  # its answer is one of the training split's
  test = poem(tmp_path, "\n\n".join(stanzas), split="test")
  assert test.length == 1 and test.example(0)[1] == "stanza 19 line 2"


def test_verse_as_a_source(tmp_path):
  poem(tmp_path)
  options = {"path": str(tmp_path / "poem.txt"), "question_lines": 2, "answer_lines": 1}
  assert len(sources.load_examples(sources.DataConfig(source="task:verse", task_options=options))) == 18
  assert len(sources.load_examples(sources.DataConfig(source="task:verse", task_options=options, examples=4))) == 4
  assert tasks.make_task("verse", "test", options).grade is None


def test_verse_errors(tmp_path):
  with pytest.raises(errors.UserError, match="^data.task_options.path: found '', allowed: a text file"):
    tasks.make_task("verse", "train", {})
  with pytest.raises(errors.UserError, match="^data.task_options.path: .*no.txt: No such file"):
    verse.Verse(path=str(tmp_path / "no.txt")).example(0)
  (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\n")
  with pytest.raises(errors.UserError, match="bytes.txt: not UTF-8 text"):
    verse.Verse(path=str(tmp_path / "bytes.txt")).example(0)
  with pytest.raises(errors.UserError, match="poem.txt: no train stanza has 10 lines"):
    poem(tmp_path, answer_lines=8).example(0)
  with pytest.raises(errors.UserError, match="^data.task_options.answer_lines: found 0"):
    poem(tmp_path, answer_lines=0)


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="real data is absent: ../shared/data/text/tinyshakespeare.txt")
def test_shakespeare():
  train, test = (verse.Verse(split=split, path=str(SHAKESPEARE)) for split in ("train", "test"))
  assert train.length > 1000 and test.length > 50
  lines = SHAKESPEARE.read_text(encoding="utf-8").split("\n")
  halves = {half for task in (train,) for i in range(task.length) for half in task.example(i)[:2]}
  text = "\n".join(lines)
  last = max(text.index("\n".join(train.example(i)[:2])) for i in range(train.length))
  for i in range(test.length):
    question, answer, _ = test.example(i)
    assert not {question, answer} & halves
    assert text.rindex(f"{question}\n{answer}") > last and len(f"{question}\n{answer}".split("\n")) == 8


# ---- All generators ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in tasks.TASKS if name != "verse"])
def test_every_generator_keeps_the_protocol(name):
  task, again = (tasks.make_task(name, "train", {"trace_share": 1.0, "seed": 3}) for _ in range(2))
  assert dataclasses.is_dataclass(task) and hash(task) == hash(again)
  assert task.length is None and task.split == "train"
  words, texts = set(task.words), [text for i in range(20) for text in task.example(i)]
  assert all(set(text.split()) <= words and text == " ".join(text.split()) for text in texts)
  assert len(task.words) == len(words)
  for index in range(20):
    answer = task.example(index)[1]
    assert task.grade(answer, answer) is True
    for wrong in ("", answer + " " + answer, answer[:-1] + "é", "(" * 10**6):
      assert task.grade(wrong, answer) is False
  test, asked = tasks.make_task(name, "test", {"seed": 3}), []
  for one in (task, test):  # what an environment knows is part of the question
    asked.append({(one.example(i)[0], one.world(i) if hasattr(one, "world") else None) for i in range(100)})
  assert not asked[0] & asked[1]
