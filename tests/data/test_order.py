"""Example weights: how often each is drawn, in an order determined by (epoch, index) alone."""

import json

import numpy as np
import pytest

from nrt_jax.data import batches, order, prompts, sources
from nrt_jax.data.sources import DataConfig
from nrt_jax.errors import UserError


def test_weighted_epochs_visit_in_proportion():
  """size * w / sum w visits each, rounded up or down, and on average exactly; weight 0 never."""
  weights, size = np.array([0, 1, 2, 5, 0, 8.0]), 6
  visits = np.array([np.bincount(order.order(size, 3, epoch, weights), minlength=size) for epoch in range(2000)])
  expected = size * weights / weights.sum()
  assert (visits.sum(1) == size).all() and (np.abs(visits - expected) < 1).all()
  np.testing.assert_allclose(visits.mean(0), expected, atol=0.05)  # a share has a deviation of 1/2 at most: 0.01
  together = ((visits > expected)[:, 1] & (visits > expected)[:, 2]).mean()
  assert 0.02 < together  # neighbours are rounded up together too: 0.375 + 0.75 + 0.875 = 2 of these three are
  firsts = np.array([order.order(size, 3, epoch, weights)[0] for epoch in range(2000)])
  np.testing.assert_allclose(np.bincount(firsts, minlength=size) / 2000, expected / size, atol=0.05)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_equal_weights_make_no_difference(size):
  for epoch in range(50):
    assert sorted(order.order(size, 1, epoch, np.full(size, 0.1))) == list(range(size))


def weighted_file(tmp_path, weights):
  path = tmp_path / "rows.jsonl"
  rows = [{"question": f"q{i}", "answer": "a", "often": w} for i, w in enumerate(weights)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return DataConfig(source=str(path), weight_column="often")


def test_batches_follow_the_weights_from_any_position(tmp_path):
  """(epoch, index) is still the whole state, hosts still share a batch, and what is dropped takes its weight along."""
  config = weighted_file(tmp_path, [0, 1, 3, 0.5, 2])
  tokenizer = prompts.word_tokenizer(["a", *(f"q{i}" for i in range(5))])
  prompt = prompts.PromptConfig(max_prompt_length=4, max_answer_length=4)
  dataset = batches.load_dataset(config, prompt, tokenizer, prompts.make_format(tokenizer, prompt))
  np.testing.assert_array_equal(dataset.weights, [0, 1, 3, 0.5, 2])
  drawn, position, starts = [], batches.Position(), []
  for _ in range(13):
    starts.append(position)
    batch, position = batches.batch(dataset, position, 4, seed=5)
    drawn.append(batch.prompt_BP)
  again, _ = batches.batch(dataset, starts[7], 4, 5)
  np.testing.assert_array_equal(again.prompt_BP, drawn[7])
  halves = [batches.batch(dataset, starts[7], 4, 5, host, 2)[0].prompt_BP for host in (0, 1)]
  np.testing.assert_array_equal(np.concatenate(halves), drawn[7])
  words = [tokenizer.decode(row[row != dataset.pad_id]).strip() for rows in drawn for row in rows]
  counts = np.array([words.count(f"q{i}") for i in range(5)])
  np.testing.assert_allclose(counts, 52 / 6.5 * dataset.weights, atol=3)


@pytest.mark.parametrize(
  "weights,text",
  [
    ([1, -1], "rows.jsonl:2: column 'often': found -1, allowed: a number, 0 or more"),
    ([1, "much"], "rows.jsonl:2: column 'often': found 'much', allowed: a number"),
    ([1, "nan"], "rows.jsonl:2: column 'often': found 'nan', allowed: a number"),
    ([1, [2]], r"rows.jsonl:2: column 'often': found \[2\], allowed: a number"),
    ([True, 1], "rows.jsonl:1: column 'often': found True"),
  ],
)
def test_weights_are_checked(tmp_path, weights, text):
  with pytest.raises(UserError, match=text):
    sources.load_examples(weighted_file(tmp_path, weights))


def test_weights_of_a_csv_file(tmp_path):
  (tmp_path / "rows.csv").write_text("question,answer,often\nq,a,0.5\nr,b,2\n")
  examples = sources.load_examples(DataConfig(source=str(tmp_path / "rows.csv"), weight_column="often"))
  assert [example.weight for example in examples] == [0.5, 2.0]


def test_weights_that_nothing_can_be_drawn_by(tmp_path):
  tokenizer = prompts.word_tokenizer(["a", "q0", "q1"])
  prompt = prompts.PromptConfig(max_prompt_length=4, max_answer_length=4)
  with pytest.raises(UserError, match="data.weight_column: all 2 examples of .*rows.jsonl that are left weigh 0"):
    batches.load_dataset(weighted_file(tmp_path, [0, 0]), prompt, tokenizer, prompts.make_format(tokenizer, prompt))
  with pytest.raises(UserError, match="data.weight_column: found 'often' with a task"):
    DataConfig(source="task:running_sum", weight_column="often")
  with pytest.raises(UserError, match="data.weight_column: found 'often' with data.packing"):
    DataConfig(source="rows.jsonl", weight_column="often", packing=64)
