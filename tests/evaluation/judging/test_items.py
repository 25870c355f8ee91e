"""Files of completions are read and paired; every mistake names file and line."""

import json

import judges
import pytest

from nrt_jax.errors import UserError
from nrt_jax.evaluation import held_out
from nrt_jax.evaluation.judging import items


def test_pairs_go_by_question_and_sample(tmp_path):
  a = items.read(judges.write(tmp_path / "a", {"q": ["a0", "a1"], "r": ["a2"], "only a": "x"}))
  b = items.read(judges.write(tmp_path / "b", {"r": ["b2", "b3"], "q": ["b0", "b1"]}))
  found, alone = items.pair(a, b)
  assert [(one.question, one.sample, one.answers, one.group) for one in found] == [
    ("q", 0, ("a0", "b0"), 0), ("q", 1, ("a1", "b1"), 0), ("r", 0, ("a2", "b2"), 1)
  ]  # fmt: skip
  assert alone == (1, 1)
  assert items.pair(a, b, limit=1) == (found[:2], (0, 0))


def test_a_question_that_a_data_set_holds_twice_is_two_questions(tmp_path):
  rows = [{"question": "q", "reference": "r", "answer": answer, "sample": 0} for answer in ("first", "second")]
  for name in "ab":
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  found, alone = items.pair(items.read(str(tmp_path / "a")), items.read(str(tmp_path / "b")))
  assert [(one.answers, one.group) for one in found] == [(("first",) * 2, 0), (("second",) * 2, 1)]
  assert alone == (0, 0)


def test_one_file_stands_alone_or_against_its_references(tmp_path):
  rows = items.read(judges.write(tmp_path / "a", {"q": "x", "r": [None, "  "]}))
  assert [one.answers for one in items.pair(rows)[0]] == [("x",), (None,), (None,)]  # blanks are no answer
  against = items.pair(rows, against="reference")[0]
  assert [one.answers[1] for one in against] == ["reference of q", "reference of r", "reference of r"]
  assert [one.group for one in against] == [0, 1, 1]


def test_traces_are_read_only_if_asked_for(tmp_path):
  path = judges.write(tmp_path / "a", {"q": "x", "r": None})
  assert [row.answer for row in items.read(path)] == ["x", None]
  assert [row.answer for row in items.read(path, traces=True)] == ["thought 0\n\nx", None]


def test_conversations_are_shown_turn_by_turn(tmp_path):
  turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
  (tmp_path / "a").write_text(json.dumps({"question": turns, "answer": "hi"}) + "\n")
  (row,) = items.read(str(tmp_path / "a"))
  assert row.question == "system: be kind\n\nuser: hello" and row.reference is None and row.sample == 0


def test_what_is_read_are_fields_of_a_completion():
  assert {"question", "reference", "answer", "sample", "trace"} <= set(held_out.Completion.__dataclass_fields__)


@pytest.mark.parametrize(
  "line,message",
  [
    ('{"question": "q"}', ":2: answer: found nothing, allowed: a text, or null"),
    ('{"question": "q", "answer": 3}', ":2: answer: found 3"),
    ('{"answer": "a"}', ":2: question: found nothing, allowed: a text, or a list of messages"),
    ('{"question": [], "answer": "a"}', ":2: question: found"),
    ('{"question": [{"role": "user"}], "answer": "a"}', ":2: question: found"),
    ('{"question": "q", "answer": "a", "sample": "0"}', ":2: sample: found '0', allowed: a whole number"),
    ('{"question": "q", "answer"', ":2: not JSON"),
    ('["q"]', ":2: found a JSON list"),
  ],
)
def test_mistakes_name_file_and_line(tmp_path, line, message):
  path = judges.write(tmp_path / "a", {"q": "x"})
  path.write_text(path.read_text() + line + "\n")
  with pytest.raises(UserError) as raised:
    items.read(path)
  assert f"{path}{message}" in str(raised.value)


def test_files_that_share_nothing_are_refused(tmp_path):
  a, b = (items.read(judges.write(tmp_path / name, {name: "x"})) for name in "ab")
  with pytest.raises(UserError, match="share no question"):
    items.pair(a, b)
  (tmp_path / "c").write_text('{"question": "q", "answer": "x"}\n')
  with pytest.raises(UserError, match="--against: found reference, but a completion has none"):
    items.pair(items.read(tmp_path / "c"), against="reference")
  (tmp_path / "empty").write_text("\n")
  with pytest.raises(UserError, match="holds no completion"):
    items.read(tmp_path / "empty")
  with pytest.raises(UserError, match="no such file, allowed: a file of nrt-jax evaluate --completions"):
    items.read(tmp_path / "nothing")
