"""What the sample browser is given: read with care, thinned evenly, and safe inside a page."""

import json

import pytest

from nrt_jax import errors
from nrt_jax.reporting import samples

LINE = {
  "step": 10, "question": "q </script>", "trace": "ab", "trace_tokens": ["a", "b"], "answer_tokens": ["y", "<eos>"],
  "c": [0.5, 0.123456], "c_empty_trace": [0.25, None], "trace_moved": [0.5, -1.25], "trace_moved_every": 1,
  "reward": 1.5, "advantage": -0.5,
}  # fmt: skip


def test_samples_are_read_up_to_a_line_that_is_being_written(tmp_path):
  assert samples.read(str(tmp_path)) == []
  (tmp_path / "samples.jsonl").write_text(json.dumps(LINE) + "\n" + json.dumps(LINE)[:20])
  assert samples.read(str(tmp_path)) == [LINE]


@pytest.mark.parametrize(
  "line,says",
  [
    ("{", "samples.jsonl:2: not JSON"),
    ("3", "samples.jsonl:2: found '3', allowed"),
    ({"step": "1"}, "samples.jsonl:2: found .*, allowed"),
    ({"question": ["turn"]}, "samples.jsonl:2: question: found .*, allowed: text"),
    ({"trace_tokens": "ab"}, "samples.jsonl:2: trace_tokens: found 'ab', allowed: a list of texts"),
    ({"c": ["x"]}, "samples.jsonl:2: c: found .*, allowed: a list of numbers"),
    ({"trace_moved_every": 0}, "samples.jsonl:2: trace_moved_every: found 0, allowed: 1 or more"),
  ],
)
def test_lines_that_are_no_samples(tmp_path, line, says):
  text = line if isinstance(line, str) else json.dumps({**LINE, **line})
  (tmp_path / "samples.jsonl").write_text(json.dumps(LINE) + "\n" + text + "\n")
  with pytest.raises(errors.UserError, match=says):
    samples.read(str(tmp_path))


def test_a_sample_in_short():
  assert samples.compact(LINE) == {
    "q": "q </script>", "t": ["a", "b"], "a": ["y", "<eos>"], "m": [0.5, -1.25], "e": 1,
    "c": [0.5, 0.1235], "b": [0.25, None], "r": 1.5, "v": -0.5,
  }  # fmt: skip
  old = {"step": 1, "question": "q", "trace": "a b", "answer_tokens": ["y"]}  # of a version that wrote no pieces
  assert samples.compact(old) == {"q": "q", "t": ["a b"], "a": ["y"]}


def test_json_inside_a_script_element():
  value = {"text": "</script><!-- <script>", "line": "\u2028\n", "null": float("nan")}
  text = samples.encoded(value)
  assert "<" not in text and "\n" not in text and "\u2028" not in text
  assert json.loads(text) == {**value, "null": None}


def test_many_samples_are_thinned_by_whole_steps():
  """Every k-th step of each run, counted from its last."""
  long = [{"step": step, "i": i} for step in range(1, 11) for i in range(2)]
  short = [{"step": step} for step in (5, 10)]
  assert samples.thinned([long, short], 22) == ([long, short], 1)
  kept, every = samples.thinned([long, short], 12)
  assert every == 2 and [line["step"] for line in kept[0]] == [2, 2, 4, 4, 6, 6, 8, 8, 10, 10]
  assert [line["step"] for line in kept[1]] == [10]
  kept, every = samples.thinned([long, short], 1)
  assert [[line["step"] for line in own] for own in kept] == [[10, 10], [10]]
  assert samples.thinned([], 5) == ([], 1)


def test_the_index_counts_the_samples_of_each_step():
  assert samples.index([{"step": 5}, {"step": 5}, {"step": 10}]) == [[5, 2], [10, 1]]
