"""Data: sources and their errors, overlong policies, and an order that (epoch, index) alone fixes."""

import csv
import json
import pathlib

import jax
import numpy as np
import pytest

from nrt_jax import data, errors, prompts
from nrt_jax.data import DataConfig, Position
from nrt_jax.prompts import PromptConfig

GSM8K = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "gsm8k"
PAIRS = [{"question": f"q{i} + {i} ?", "answer": f"a{i}"} for i in range(5)]
WORDS = [f"{kind}{i}" for kind in "qat" for i in range(40)] + ["+", "?", "w"]


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
  return [(e.question, e.answer, e.trace) for e in data.load_examples(DataConfig(source=source, **options))]


WANTED = [(row["question"], row["answer"], None) for row in PAIRS]


# ---- Sources


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
  examples = data.load_examples(config)
  assert len(examples) == 6 and all(len(e.trace.split()) == 5 for e in examples)
  test = data.load_examples(DataConfig(split="test", examples=6, task_options=(("n_digits", 5),)))
  assert not {e.question for e in examples} & {e.question for e in test}
  with pytest.raises(errors.UserError, match="^data.source: task: found 'sums', allowed: countdown, .*running_sum"):
    data.load_examples(DataConfig(source="task:sums"))


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
  good = {"prompt": turns, "reward_model": {"style": "rule", "ground_truth": "42"}}
  write_jsonl(path, [good])
  assert pairs_of(str(path), **columns) == [(tuple(turns), "42", None)]
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


# ---- Token ids


@pytest.fixture(scope="module")
def words():
  tokenizer = prompts.word_tokenizer(WORDS)
  return tokenizer, prompts.make_format(tokenizer, PromptConfig(marker="w"))


def make_dataset(words, examples, data_options=(), **prompt_options):
  config = PromptConfig(**({"max_prompt_length": 6, "max_answer_length": 4} | prompt_options))
  return data.tokenize(examples, DataConfig(**dict(data_options)), config, *words)


def make_examples(lengths):
  """Examples of (prompt, answer, trace) lengths in words."""
  texts = [[" ".join([f"{kind}{i}"] * n) for kind, n in zip("qat", length)] for i, length in enumerate(lengths)]
  return [data.Example(q, a, t or None, f"x.jsonl:{i + 1}") for i, (q, a, t) in enumerate(texts)]


def test_columns_are_aligned_and_padded_with_the_tokenizers_pad(words):
  tokenizer, form = words
  dataset = make_dataset(words, make_examples([(2, 1, 3), (6, 3, 0)]), {"max_trace_length": 3})
  rows, _ = next(data.eval_batches(dataset, 2))
  pad, eos = form.pad_id, form.eos_id
  assert pad != 0
  q0, q1, a0, a1, t0 = (tokenizer.convert_tokens_to_ids(w) for w in ("q0", "q1", "a0", "a1", "t0"))
  np.testing.assert_array_equal(rows.prompt_BP, [[pad] * 4 + [q0] * 2, [q1] * 6])
  np.testing.assert_array_equal(rows.answer_BA, [[a0, eos, pad, pad], [a1] * 3 + [eos]])
  np.testing.assert_array_equal(rows.trace_BR, [[t0] * 3, [pad] * 3])
  np.testing.assert_array_equal(rows.prompt_length_B, [2, 6])
  np.testing.assert_array_equal(rows.answer_length_B, [2, 4])
  np.testing.assert_array_equal(rows.trace_length_B, [3, 0])
  np.testing.assert_array_equal(rows.example_B, [0, 1])
  assert all(column.dtype == np.int32 for column in jax.tree.leaves(rows))


def test_traces_are_left_out_where_no_column_is_given_to_them(words):
  dataset = make_dataset(words, make_examples([(2, 1, 3)]))
  rows, _ = next(data.eval_batches(dataset, 1))
  assert rows.trace_BR.shape == (1, 0) and rows.trace_length_B.tolist() == [0]


def test_overlong_examples_are_dropped_and_counted_once(words):
  # With its end token, an answer of 4 words is one too long. The last example is over in all three, counted as prompt.
  examples = make_examples([(6, 3, 3), (7, 1, 0), (1, 4, 0), (1, 1, 4), (7, 4, 4)])
  dataset = make_dataset(words, examples, {"max_trace_length": 3})
  assert dataset.examples == examples[:1] and len(dataset) == 1
  assert dataset.counts == {
    "prompts_dropped": 2,
    "answers_dropped": 1,
    "traces_dropped": 1,
    "prompts_cut": 0,
    "answers_cut": 0,
    "traces_cut": 0,
  }


def test_overlong_examples_are_cut_and_counted(words):
  tokenizer, form = words
  example = data.Example("q0 q1 q2 q3 q4 q5 q6 q7", "a0 a1 a2 a3 a4", "t0 t1 t2", "x:1")
  options = {"overlong_prompt": "cut_left", "overlong_answer": "cut"}
  dataset = make_dataset(words, [example], {"max_trace_length": 2, "overlong_trace": "cut"}, **options)
  texts = [prompts.decode(tokenizer, ids[0]) for ids in (dataset.prompts, dataset.answers, dataset.traces)]
  # The newest of the prompt stays; a cut answer must not teach to stop there, so it has no end token.
  assert texts == ["q2 q3 q4 q5 q6 q7", "a0 a1 a2 a3", "t0 t1"]
  kinds = ("prompts", "answers", "traces")
  assert dataset.counts == {f"{kind}_cut": 1 for kind in kinds} | {f"{kind}_dropped": 0 for kind in kinds}


def test_a_cut_prompt_keeps_its_first_token_where_the_tokenizer_puts_one():
  assert data._cut_left([1, 5, 6, 7, 8], 3, (1,)) == [1, 7, 8]
  assert data._cut_left([5, 6, 7, 8], 3, ()) == [6, 7, 8]
  assert data._cut_left([1, 5, 6], 1, (1,)) == [1]


@pytest.mark.parametrize("kind,lengths", [("prompt", (7, 1, 0)), ("answer", (1, 4, 0)), ("trace", (1, 1, 4))])
def test_overlong_examples_are_errors_where_asked(words, kind, lengths):
  examples = make_examples([(1, 1, 1), lengths])
  options = {} if kind == "trace" else {f"overlong_{kind}": "error"}
  with pytest.raises(errors.UserError, match=f"^x.jsonl:2: the {kind} has [457].* tokens, .*max_{kind}_length allows"):
    make_dataset(words, examples, {"max_trace_length": 3, "overlong_trace": "error"}, **options)


def test_a_data_set_of_which_nothing_is_left_is_an_error(words):
  with pytest.raises(errors.UserError, match="^data.source: none of the 2 examples .*'prompts_dropped': 2"):
    make_dataset(words, make_examples([(7, 1, 0)] * 2))


# ---- Order


@pytest.fixture(scope="module")
def seven(words):
  return make_dataset(words, make_examples([(1 + i % 3, 1, 0) for i in range(7)]))


def walk(dataset, position, steps, batch_size=3, seed=0):
  """The example each row holds, per batch, and the stream numbers; and the position after them."""
  rows, streams = [], []
  for _ in range(steps):
    batch, position = data.batch(dataset, position, batch_size, seed)
    rows.append([int(row[-1]) - WORDS.index("q0") for row in batch.prompt_BP])
    streams.append(batch.example_B.tolist())
  return rows, streams, position


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
def test_epochs_wrap_without_losing_or_repeating(seven, batch_size):
  rows, streams, position = walk(seven, Position(), 7, batch_size)  # batch_size whole epochs
  flat = sum(rows, [])
  assert len(flat) == 7 * batch_size and position == (batch_size, 0)
  epochs = [flat[i : i + 7] for i in range(0, len(flat), 7)]
  assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
  assert sum(streams, []) == list(range(7 * batch_size))
  if batch_size > 1:
    assert epochs[0] != epochs[1] and epochs[0] != list(range(7))  # shuffled, and anew in each epoch


def test_the_stream_does_not_depend_on_the_batch_size(seven):
  assert sum(walk(seven, Position(), 14, 1)[0], []) == sum(walk(seven, Position(), 2, 7)[0], [])


def test_resuming_from_any_position_replays_the_same_batches(seven):
  whole, streams, end = walk(seven, Position(), 12)
  position = Position()
  for step in range(12):
    resumed = json.loads(json.dumps(position))  # as a checkpoint's record gives it back
    assert walk(seven, resumed, 12 - step) == (whole[step:], streams[step:], end)
    position = walk(seven, position, 1)[2]


def test_seeds_fix_the_order(seven):
  assert walk(seven, Position(), 7, seed=1) == walk(seven, Position(), 7, seed=1)
  assert walk(seven, Position(), 7, seed=1)[0] != walk(seven, Position(), 7, seed=2)[0]


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_hosts_rows_together_are_one_hosts_batch(seven, hosts):
  for position in (Position(), Position(0, 5), Position(3, 6)):
    whole, after = data.batch(seven, position, 8, 0)
    parts = [data.batch(seven, position, 8, 0, h, hosts) for h in range(hosts)]
    assert all(next_position == after for _, next_position in parts)
    assert parts[0][0].prompt_BP.shape == (8 // hosts, 6)
    joined = jax.tree.map(lambda *columns: np.concatenate(columns), *(part for part, _ in parts))
    jax.tree.map(np.testing.assert_array_equal, joined, whole)
  with pytest.raises(errors.UserError, match="a batch of 8 prompts can't be divided among 3 hosts"):
    data.batch(seven, Position(), 8, 0, 0, 3)


def test_stream_numbers_stay_within_int32(seven):
  batch, _ = data.batch(seven, Position((2**31 - 1) // 7, 0), 7, 0)
  start = (2**31 - 1) // 7 * 7
  assert batch.example_B.tolist() == [(start + i) % (2**31 - 1) for i in range(7)]
  assert min(batch.example_B) == 0 and batch.example_B.dtype == np.int32


def test_a_position_of_another_data_set_is_an_error(seven):
  for position in (Position(0, 7), Position(-1, 0), Position(0, -1)):
    with pytest.raises(errors.UserError, match="lies outside of a data set of 7 examples"):
      data.batch(seven, position, 2, 0)


@pytest.mark.parametrize("batch_size,hosts", [(1, 1), (4, 1), (7, 1), (9, 1), (2, 2), (4, 2), (8, 4)])
def test_evaluation_sees_every_example_once(seven, batch_size, hosts):
  seen, batches = [], 0
  for host in range(hosts):
    for rows, valid_B in data.eval_batches(seven, batch_size, host, hosts):
      assert valid_B.dtype == bool and rows.prompt_BP.shape == (batch_size // hosts, 6)
      for example, row, valid in zip(rows.example_B, rows.prompt_BP, valid_B):
        assert row[-1] == WORDS.index(f"q{example}")
        seen += [int(example)] if valid else []
      batches += 1
  assert sorted(seen) == list(range(7)) and batches == hosts * -(-7 // batch_size)


# ---- Real data


@pytest.mark.skipif(not (GSM8K / "test.jsonl").exists(), reason="../shared/data/gsm8k is not on this machine")
def test_gsm8k_goes_through_whole():
  config = DataConfig(source=str(GSM8K / "test.jsonl"), limit=200)
  examples = data.load_examples(config)
  assert len(examples) == 200 and examples[0].question.startswith("Janet’s ducks")
  tokenizer = prompts.byte_pair_tokenizer([f"{e.question}\n{e.answer}" for e in examples], 600)
  prompt = PromptConfig(template="Question: {question}\nAnswer:", max_prompt_length=150, max_answer_length=160)
  form = prompts.make_format(tokenizer, prompt)
  dataset = data.load_dataset(config, prompt, tokenizer, form)
  assert len(dataset) + dataset.counts["prompts_dropped"] + dataset.counts["answers_dropped"] == 200
  assert 100 < len(dataset) < 200
  for example, ids, answer in zip(dataset.examples, dataset.prompts, dataset.answers):
    assert prompts.decode(tokenizer, ids) == f"Question: {example.question}\nAnswer:"
    assert prompts.decode(tokenizer, answer) == example.answer + "<eos>"
