"""Data: token ids, overlong policies, and an order determined by (epoch, index) alone. Sources: test_sources.py."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from paths import DATA

from nrt_jax import errors
from nrt_jax.data import batches, overlong, prompts, sources
from nrt_jax.data.batches import Position
from nrt_jax.data.prompts import PromptConfig
from nrt_jax.data.sources import DataConfig

GSM8K = DATA / "gsm8k"
WORDS = [f"{kind}{i}" for kind in "qat" for i in range(40)] + ["+", "?", "w"]


# ---- Token ids


@pytest.fixture(scope="module")
def words():
  tokenizer = prompts.word_tokenizer(WORDS)
  return tokenizer, prompts.make_format(tokenizer, PromptConfig(marker="w"))


def make_dataset(words, examples, data_options=(), **prompt_options):
  config = PromptConfig(**({"max_prompt_length": 6, "max_answer_length": 4} | prompt_options))
  return batches.tokenize(examples, DataConfig(**dict(data_options)), config, *words)


def make_examples(lengths):
  """Examples of (prompt, answer, trace) lengths in words."""
  texts = [[" ".join([f"{kind}{i}"] * n) for kind, n in zip("qat", length)] for i, length in enumerate(lengths)]
  return [sources.Example(q, a, t or None, f"x.jsonl:{i + 1}") for i, (q, a, t) in enumerate(texts)]


def test_columns_are_aligned_and_padded_with_the_tokenizers_pad(words):
  tokenizer, form = words
  dataset = make_dataset(words, make_examples([(2, 1, 3), (6, 3, 0)]), {"max_trace_length": 3})
  rows, _ = next(batches.eval_batches(dataset, 2))
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
  rows, _ = next(batches.eval_batches(dataset, 1))
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
  example = sources.Example("q0 q1 q2 q3 q4 q5 q6 q7", "a0 a1 a2 a3 a4", "t0 t1 t2", "x:1")
  options = {"overlong_prompt": "cut_left", "overlong_answer": "cut"}
  dataset = make_dataset(words, [example], {"max_trace_length": 2, "overlong_trace": "cut"}, **options)
  texts = [prompts.decode(tokenizer, ids[0]) for ids in (dataset.prompts, dataset.answers, dataset.traces)]
  # The newest of the prompt stays; a cut answer must not teach to stop there, so it has no end token.
  assert texts == ["q2 q3 q4 q5 q6 q7", "a0 a1 a2 a3", "t0 t1"]
  kinds = ("prompts", "answers", "traces")
  assert dataset.counts == {f"{kind}_cut": 1 for kind in kinds} | {f"{kind}_dropped": 0 for kind in kinds}


def test_a_prompt_of_which_the_template_alone_is_left_is_dropped(words):
  examples = [sources.Example(f"q0{' q1' * count}", "a0", None, f"x:{count}") for count in (1, 6)]
  words = words[0], dataclasses.replace(words[1], template="? ? ? {question} + +")
  cut = make_dataset(words, examples, overlong_prompt="cut_left")
  assert [prompts.decode(words[0], ids) for ids in cut.prompts] == ["? ? ? q1 + +"] * 2
  assert (cut.counts["prompts_cut"], cut.counts["prompts_dropped"]) == (2, 0)
  with pytest.raises(errors.UserError, match="none of the 2 examples .* 2 prompts over prompt.max_prompt_length dropped"):
    make_dataset(words, examples, overlong_prompt="cut_left", max_prompt_length=5)
  assert overlong.summary(1200, {"prompts_dropped": 2, "answers_cut": 1}) == (
    "1,200 of 1,202 examples (2 prompts over prompt.max_prompt_length dropped, 1 answers over prompt.max_answer_length cut)"
  )


@pytest.mark.parametrize("kind,lengths", [("prompt", (7, 1, 0)), ("answer", (1, 4, 0)), ("trace", (1, 1, 4))])
def test_overlong_examples_are_errors_where_asked(words, kind, lengths):
  examples = make_examples([(1, 1, 1), lengths])
  options = {} if kind == "trace" else {f"overlong_{kind}": "error"}
  with pytest.raises(errors.UserError, match=f"^x.jsonl:2: the {kind} has [457].* tokens, .*max_{kind}_length allows"):
    make_dataset(words, examples, {"max_trace_length": 3, "overlong_trace": "error"}, **options)


def test_a_data_set_of_which_nothing_is_left_is_an_error(words):
  with pytest.raises(errors.UserError, match="^data.source: none of the 2 examples .* is left: 2 prompts over prompt.max_prompt"):
    make_dataset(words, make_examples([(7, 1, 0)] * 2))


# ---- Order


@pytest.fixture(scope="module")
def seven(words):
  return make_dataset(words, make_examples([(1 + i % 3, 1, 0) for i in range(7)]))


def walk(dataset, position, steps, batch_size=3, seed=0):
  """The example each row holds, per batch, and the stream numbers; and the position after them."""
  rows, streams = [], []
  for _ in range(steps):
    batch, position = batches.batch(dataset, position, batch_size, seed)
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
    whole, after = batches.batch(seven, position, 8, 0)
    parts = [batches.batch(seven, position, 8, 0, h, hosts) for h in range(hosts)]
    assert all(next_position == after for _, next_position in parts)
    assert parts[0][0].prompt_BP.shape == (8 // hosts, 6)
    joined = jax.tree.map(lambda *columns: np.concatenate(columns), *(part for part, _ in parts))
    jax.tree.map(np.testing.assert_array_equal, joined, whole)
  with pytest.raises(errors.UserError, match="a batch of 8 prompts can't be divided among 3 hosts"):
    batches.batch(seven, Position(), 8, 0, 0, 3)


def test_stream_numbers_stay_within_int32(seven):
  batch, _ = batches.batch(seven, Position((2**31 - 1) // 7, 0), 7, 0)
  start = (2**31 - 1) // 7 * 7
  assert batch.example_B.tolist() == [(start + i) % (2**31 - 1) for i in range(7)]
  assert min(batch.example_B) == 0 and batch.example_B.dtype == np.int32


def test_a_position_of_another_data_set_is_an_error(seven):
  for position in (Position(0, 7), Position(-1, 0), Position(0, -1)):
    with pytest.raises(errors.UserError, match="lies outside of a data set of 7 examples"):
      batches.batch(seven, position, 2, 0)


@pytest.mark.parametrize("batch_size,hosts", [(1, 1), (4, 1), (7, 1), (9, 1), (2, 2), (4, 2), (8, 4)])
def test_evaluation_sees_every_example_once(seven, batch_size, hosts):
  seen, count = [], 0
  for host in range(hosts):
    for rows, valid_B in batches.eval_batches(seven, batch_size, host, hosts):
      assert valid_B.dtype == bool and rows.prompt_BP.shape == (batch_size // hosts, 6)
      for example, row, valid in zip(rows.example_B, rows.prompt_BP, valid_B):
        assert row[-1] == WORDS.index(f"q{example}")
        seen += [int(example)] if valid else []
      count += 1
  assert sorted(seen) == list(range(7)) and count == hosts * -(-7 // batch_size)


# ---- Real data


@pytest.mark.skipif(not (GSM8K / "test.jsonl").exists(), reason="../shared/data/gsm8k is not on this machine")
def test_gsm8k_goes_through_whole():
  config = DataConfig(source=str(GSM8K / "test.jsonl"), limit=200)
  examples = sources.load_examples(config)
  assert len(examples) == 200 and examples[0].question.startswith("Janet’s ducks")
  tokenizer = prompts.byte_pair_tokenizer([f"{e.question}\n{e.answer}" for e in examples], 600)
  prompt = PromptConfig(template="Question: {question}\nAnswer:", max_prompt_length=150, max_answer_length=160)
  form = prompts.make_format(tokenizer, prompt)
  dataset = batches.load_dataset(config, prompt, tokenizer, form)
  assert len(dataset) + dataset.counts["prompts_dropped"] + dataset.counts["answers_dropped"] == 200
  assert 100 < len(dataset) < 200
  for example, ids, answer in zip(dataset.examples, dataset.prompts, dataset.answers):
    assert prompts.decode(tokenizer, ids) == f"Question: {example.question}\nAnswer:"
    assert prompts.decode(tokenizer, answer) == example.answer + "<eos>"
