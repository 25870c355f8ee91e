"""Sources of examples: files, hub ids, tasks, conversations; each error names file and line."""

import csv
import json

import pytest

from nrt_jax import errors
from nrt_jax.data import sources
from nrt_jax.data.sources import DataConfig

PAIRS = [{"question": f"q{i} + {i} ?", "answer": f"a{i}"} for i in range(5)]


def write_jsonl(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def write_csv(path, rows):
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return str(path)


def write_parquet(path, rows):
  import pyarrow
  import pyarrow.parquet

  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  return str(path)


def pairs_of(source, **options):
  return [(e.question, e.answer, e.trace) for e in sources.load_examples(DataConfig(source=source, **options))]


WANTED = [(row["question"], row["answer"], None) for row in PAIRS]


@pytest.mark.parametrize("write,name", [(write_jsonl, "x.jsonl"), (write_csv, "x.csv"), (write_parquet, "x.parquet")])
def test_files_give_their_pairs_in_order(tmp_path, write, name):
  assert pairs_of(write(tmp_path / name, PAIRS)) == WANTED


def test_json_is_a_list_or_an_object_with_one(tmp_path):
  path = tmp_path / "x.json"
  for content in (PAIRS, {"canary": "c", "examples": PAIRS}):
    path.write_text(json.dumps(content, indent=1))
    assert pairs_of(str(path)) == WANTED
  for content in ("a", {"a": [1], "b": [2]}):
    path.write_text(json.dumps(content))
    with pytest.raises(errors.UserError, match="holds no list of objects"):
      pairs_of(str(path))


def test_a_hub_id_is_loaded_through_datasets(tmp_path, monkeypatch):
  # `datasets` takes a local folder where a hub id stands, so the real path runs without a network.
  monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
  import datasets

  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  (tmp_path / "set").mkdir()
  write_jsonl(tmp_path / "set" / "train.jsonl", PAIRS)
  assert pairs_of(f"hub:{tmp_path / 'set'}") == WANTED
  with pytest.raises(errors.UserError, match=r"row 1: no column 'q'; columns found: question, answer"):
    pairs_of(f"hub:{tmp_path / 'set'}", question_column="q")
  with pytest.raises(errors.UserError, match="hub:.*missing: can't be loaded: ") as caught:
    pairs_of(f"hub:{tmp_path / 'missing'}")
  assert "\n" not in str(caught.value)


def test_a_task_is_a_source():
  config = DataConfig(source="task:running_sum", examples=6, task_options={"trace_share": 1.0, "n_digits": 5})
  hash(config)
  examples = sources.load_examples(config)
  assert len(examples) == 6 and all(len(e.trace.split()) == 5 for e in examples)
  test = sources.load_examples(DataConfig(split="test", examples=6, task_options=(("n_digits", 5),)))
  assert not {e.question for e in examples} & {e.question for e in test}
  with pytest.raises(errors.UserError, match="^data.source: task: found 'sums', allowed: befunge, .*running_sum"):
    sources.load_examples(DataConfig(source="task:sums"))


def test_the_column_map_and_numbers(tmp_path):
  path = write_jsonl(tmp_path / "x.jsonl", [{"problem": "6 * 7", "target": 42, "why": "so", "x": None}] * 2)
  columns = {"question_column": "problem", "answer_column": "target"}
  assert pairs_of(path, **columns, trace_column="why") == [("6 * 7", "42", "so")] * 2
  assert pairs_of(path, **columns) == [("6 * 7", "42", None)] * 2
  with pytest.raises(errors.UserError, match="^data.trace_column: no example of .* has a 'x'"):
    pairs_of(path, **columns, trace_column="x")


def test_rows_of_verl_are_read_as_they_are(tmp_path):
  """A conversation in one column, the answer inside of another: how RLPR's and DAPO's data sets are published."""
  turns = [{"content": "be brief", "role": "system"}, {"content": "6 * 7", "role": "user"}]
  path = tmp_path / "x.jsonl"
  columns = {"question_column": "prompt", "answer_column": "reward_model.ground_truth"}
  good = {"prompt": turns, "reward_model": {"style": "rule", "ground_truth": "42"}, "extra": {"why": "so"}}
  write_jsonl(path, [good])
  assert pairs_of(str(path), **columns) == [(tuple(turns), "42", None)]
  assert pairs_of(str(path), **columns, trace_column="extra.why") == [(tuple(turns), "42", "so")]
  with pytest.raises(errors.UserError, match="^data.trace_column: no example of .* has a 'extra.x'"):
    pairs_of(str(path), **columns, trace_column="extra.x")
  bad = {
    "column 'reward_model': no column 'ground_truth'; columns found: style": {
      **good,
      "reward_model": {"style": "rule"},
    },
    "no column 'reward_model.ground_truth'; columns found: prompt": {"prompt": turns},
    "column 'prompt': found the turns system; allowed: .system,. user": {**good, "prompt": turns[:1]},
    "column 'prompt': found the turns none; allowed": {**good, "prompt": []},
    "messages must be a list of objects": {**good, "prompt": ["6 * 7"]},
  }
  for message, row in bad.items():
    write_jsonl(path, [good, row])
    with pytest.raises(errors.UserError, match=f"x.jsonl:2: {message}"):
      pairs_of(str(path), **columns)


def test_messages_end_at_the_last_assistant_turn(tmp_path):
  def turn(role, content):
    return {"content": content, "role": role}

  said = [("system", "s"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2")]
  turns = [turn(*words) for words in said]
  path = tmp_path / "x.jsonl"
  config = {"messages_column": "messages"}
  for rows in (turns, [*turns, turn("user", "left out")]):
    write_jsonl(path, [{"id": 1, "messages": rows}])
    assert pairs_of(str(path), **config) == [(tuple(turns[:4]), "a2", None)]
  bad = {
    "no assistant turn": turns[:2],
    "found the turns system, assistant; allowed": [turns[0], turns[2]],
    "found the turns assistant; allowed": [turns[2]],
    "found the turns user, system, user, assistant; allowed": [turns[1], turns[0], turns[1], turns[2]],
    "role: found 'tool'": [turn("tool", "x"), *turns],
    "column 'content' holds NoneType": [turn("user", None), turns[2]],
    "messages must be a list of objects": "hello",
  }
  for message, rows in bad.items():
    write_jsonl(path, [{"messages": turns}, {"messages": rows}])
    with pytest.raises(errors.UserError, match=f"x.jsonl:2: {message}"):
      pairs_of(str(path), **config)


def test_conversations_as_others_write_them(tmp_path):
  """ShareGPT's names, OpenAI's developer, text in parts; a system turn without text is none."""
  path, wanted = tmp_path / "x.jsonl", (("system", "s"), ("user", "uv"), ("assistant", "a"))
  turns = [{"role": role, "content": content} for role, content in wanted]
  parts = [{"type": "text", "text": "u"}, {"type": "text", "text": "v"}]
  same = [
    [{"from": name, "value": text} for name, (_, text) in zip(("system", "human", "gpt"), wanted)],
    [{"role": "developer", "content": "s"}, *turns[1:]],
    [turns[0], {"role": "user", "content": parts}, turns[2]],
    [turns[0], {"role": "user", "content": ["u", "v"]}, turns[2]],
  ]
  for messages in (turns, *same):
    write_jsonl(path, [{"messages": messages, "prompt": messages[:-1], "answer": "a"}])
    expected = [(tuple(turns[:2]), "a", None)]
    assert pairs_of(str(path), messages_column="messages") == pairs_of(str(path), question_column="prompt") == expected
  for empty in ("", " ", None, []):
    write_jsonl(path, [{"messages": [{"role": "system", "content": empty}, *turns[1:]]}])
    assert pairs_of(str(path), messages_column="messages") == [((turns[1],), "a", None)]
  bad = {
    "role: found 'tool', allowed: assistant, developer, gpt, human, system, user": {"role": "tool", "content": "x"},
    "role: found 'function_call'": {"from": "function_call", "value": "x"},
    "role: found None": {"content": "x"},
    "role: found .'user'.": {"role": ["user"], "content": "x"},
    "type of content: found 'image_url', allowed: text": {"role": "user", "content": [{"type": "image_url"}]},
    "found NoneType as a part of content, allowed: a text": {"role": "user", "content": ["u", None]},
    "no column 'text'": {"role": "user", "content": [{"type": "text"}]},
    "column 'content' is empty": {"role": "user", "content": []},
  }
  for message, row in bad.items():
    write_jsonl(path, [{"messages": turns}, {"messages": [row, *turns[1:]]}])
    with pytest.raises(errors.UserError, match=f"x.jsonl:2: {message}"):
      pairs_of(str(path), messages_column="messages")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("column", ["question", "answer", "why", "choices"])
def test_numbers_that_are_none_are_refused_like_null(tmp_path, column, number):
  path, row = tmp_path / "x.jsonl", {"question": '"q"', "answer": '"a"', "why": '"w"'}
  options, row = {"trace_column": "why"}, {**row, column: number}
  if column == "choices":
    options, row = {"choices_column": "choices"}, {"question": '"q"', "answer": number, "choices": '["a", "b"]'}
  path.write_text("{" + ", ".join(f'"{key}": {value}' for key, value in row.items()) + "}\n")
  with pytest.raises(errors.UserError, match="x.jsonl:1: ") as caught:
    pairs_of(str(path), **options)
  assert "\n" not in str(caught.value) and ("nan" in str(caught.value) or "inf" in str(caught.value))


def test_the_number_behind_a_mark_is_the_answer(tmp_path):
  """As GSM8K has it: a worked solution, whose last line is "#### 1,080"; in a column or in the assistant's turn."""
  worked = "48 + 24 = <<48+24=72>>72 #### no\nSo 72 * 15 = 1,080.\n#### 1,080 "
  turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": worked}]
  path = write_jsonl(tmp_path / "x.jsonl", [{"question": "q", "answer": worked, "messages": turns}])
  assert pairs_of(path, answer_after="####") == [("q", "1,080", None)]
  assert pairs_of(path, answer_after="####", messages_column="messages")[0][1] == "1,080"
  assert pairs_of(path)[0][1] == worked
  for answer in ("72", "so 72 #### "):
    path = write_jsonl(tmp_path / "y.jsonl", [{"question": "q", "answer": worked}, {"question": "q", "answer": answer}])
    with pytest.raises(errors.UserError, match="y.jsonl:2: data.answer_after: found no text behind '####' in "):
      pairs_of(path, answer_after="####")
  for wrong in ({"answer_after": ""}, {"choices_column": "c"}, {"source": "task:x"}):
    with pytest.raises(errors.UserError, match="^data.answer_after: found '#?' with source"):
      DataConfig(**{"source": "x.jsonl", "answer_after": "#", **wrong})


def test_missing_numbers_of_a_table_are_refused(tmp_path):
  path = write_parquet(tmp_path / "x.parquet", [{"question": "q", "answer": 1.5}, {"question": "q", "answer": float("nan")}])
  with pytest.raises(errors.UserError, match="x.parquet: row 2: column 'answer' holds nan, allowed: text or a finite"):
    pairs_of(path)


@pytest.mark.parametrize(
  "name,content,message",
  [
    ("x.jsonl", b'{"question": "q", "answer": "a"}\n\n{"question": "q", \n', "x.jsonl:3: not JSON: "),
    ("x.jsonl", b'{"question": "q", "answer": "a"}\n[1]\n', "x.jsonl:2: found a JSON list"),
    ("x.jsonl", b'{"question": "q", "answer": "a"}\n{"question": "\xff"}\n', "x.jsonl:2: not UTF-8"),
    ("x.jsonl", b'{"question": "q", "answer": "a"}\n' + b"[" * 10**6 + b"\n", "x.jsonl:2: not JSON that can be read"),
    ("x.jsonl", b'{"question": ' + b"1" * 10**4 + b"}\n", "x.jsonl:1: not JSON that can be read"),
    ("x.jsonl", b'{"question": "q", "answer": true}\n', "x.jsonl:1: column 'answer' holds bool, allowed: text or a"),
    ("x.jsonl", b'{"question": "q", "answer": " "}\n', "x.jsonl:1: column 'answer' is empty"),
    ("x.jsonl", b'{"question": "\\ud83d", "answer": "a"}\n', "x.jsonl:1: column 'question' holds half a character"),
    ("x.jsonl", b'{"q": "q", "a": "a"}\n', "x.jsonl:1: no column 'question'; columns found: q, a"),
    ("x.json", b'[\n{"question": "q"},\n{"answer"}]', "x.json:3: not JSON: "),
    ("x.json", b'[{"question": "q", "answer": "a"}, 3]', "x.json: item 2: found a JSON int"),
    ("x.csv", b'question,answer\n"q\nr",a\n\nq\n', "x.csv:5: has another number of fields"),
    ("x.csv", b"question,answer\nq,a,b\n", "x.csv:2: has another number of fields"),
    ("x.csv", b'question,answer\nq,a\n"q,a\n', "x.csv:3: not CSV: "),
    ("x.csv", b"question,answer\nq,\xff\n", "x.csv:2: not UTF-8"),
    ("x.csv", b'question,answer\nq,a\n"q\nr",\n', "x.csv:3: column 'answer' is empty"),
    ("x.csv", b"question,reply\nq,a\n", "x.csv:2: no column 'answer'; columns found: question, reply"),
    ("x.parquet", b"PAR1 no", "x.parquet: not Parquet: "),
    ("x.txt", b"q", "file type: found '.txt', allowed: .csv, .json, .jsonl, .parquet"),
  ],
)
def test_malformed_files_name_file_and_line(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(errors.UserError) as caught:
    pairs_of(str(path))
  assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_long_csv_field_and_a_byte_order_mark_are_read(tmp_path):
  path = tmp_path / "x.csv"
  path.write_bytes(b"\xef\xbb\xbfquestion,answer\nq," + b"a" * 200_000 + b"\n")
  assert pairs_of(str(path)) == [("q", "a" * 200_000, None)]


def test_missing_and_empty_sources_are_errors(tmp_path):
  with pytest.raises(errors.UserError, match="^data.source: .*x.jsonl: no such file"):
    pairs_of(str(tmp_path / "x.jsonl"))
  for name, content in (("x.jsonl", "\n"), ("x.json", "[]"), ("x.csv", "question,answer\n"), ("y.csv", "")):
    (tmp_path / name).write_text(content)
    with pytest.raises(errors.UserError, match="is an empty data set"):
      pairs_of(str(tmp_path / name))


def test_offset_and_limit_cut_a_shuffled_source_into_splits(tmp_path):
  path = write_jsonl(tmp_path / "x.jsonl", PAIRS)
  assert pairs_of(path, offset=1, limit=2) == WANTED[1:3]
  train = pairs_of(path, shuffle_seed=3, limit=3)
  test = pairs_of(path, shuffle_seed=3, offset=3)
  assert train != WANTED[:3] and sorted(train + test) == WANTED
  with pytest.raises(errors.UserError, match="^data.offset: found 5, but .* holds 5 examples"):
    pairs_of(path, offset=5)


def test_configs_name_their_keys():
  for key, value in (("limit", 0), ("offset", -1), ("max_trace_length", -1), ("examples", 0), ("overlong_trace", "x")):
    with pytest.raises(errors.UserError, match=f"^data.{key}: found '?{value}"):
      DataConfig(**{key: value})
