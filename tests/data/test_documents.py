"""Plain texts as examples: cut at tokens, by seed and index alone, within the widths."""

import json

import numpy as np
import pytest

from nrt_jax.data import batches, documents, prompts
from nrt_jax.data.prompts import PromptConfig
from nrt_jax.data.sources import DataConfig
from nrt_jax.errors import UserError

TEXTS = [" ".join(f"w{(7 * i + k) % 30}" for k in range(2 + 3 * i)) for i in range(8)]  # 2 to 23 words


@pytest.fixture(scope="module")
def opened():
  """Tokenizer and form of prompts that end with "open"."""
  tokenizer = prompts.word_tokenizer([*(f"w{i}" for i in range(30)), "open", "close"])
  config = PromptConfig(marker="close", trace_open="open", max_prompt_length=30, max_answer_length=4)
  return tokenizer, prompts.make_format(tokenizer, config), config


def load(opened, tmp_path, texts=TEXTS, prompt=(), **data):
  tokenizer, form, config = opened
  path = tmp_path / "texts.jsonl"
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  config = PromptConfig(**{**vars(config), **dict(prompt)})
  return batches.load_dataset(DataConfig(str(path), document_column="text", **data), config, tokenizer, form)


@pytest.mark.parametrize("horizon", [1, 3])
def test_context_and_continuation_are_the_documents_own_tokens(opened, tmp_path, horizon):
  tokenizer, form, _ = opened
  found = load(opened, tmp_path, horizon=horizon)
  (opens,) = form.open_ids
  assert tokenizer.convert_ids_to_tokens(opens) == "open" and not any(found.counts.values())
  for text, example, prompt, answer in zip(TEXTS, found.examples, found.prompts, found.answers):
    ids = tokenizer(text)["input_ids"]
    place = len(prompt) - 1
    assert prompt.tolist() == [*ids[:place], opens] and answer.tolist() == ids[place : place + horizon]
    assert len(answer) == min(horizon, len(ids) - 1) and form.eos_id not in answer
    assert example.where.endswith(f", token {place}")
    assert f"{example.question} {example.answer}".split() == text.split()[: place + horizon]


def test_places_depend_on_seed_and_index_alone(opened, tmp_path):
  places = [example.where for example in load(opened, tmp_path).examples]
  assert [example.where for example in load(opened, tmp_path, offset=3).examples] == places[3:]
  shuffled = load(opened, tmp_path, shuffle_seed=1).examples
  assert {example.where for example in shuffled} != set(places)
  drawn = [documents.place_of(6, 2, 0, index) for index in range(400)]
  assert set(drawn) == {1, 2, 3, 4} and min(np.bincount(drawn)[1:]) > 60  # all of them, about equally often


def test_a_long_context_loses_its_start(opened, tmp_path):
  whole = load(opened, tmp_path)
  cut = load(opened, tmp_path, prompt={"max_prompt_length": 5, "overlong_prompt": "cut_left"})
  assert cut.counts["prompts_cut"] == sum(len(prompt) > 5 for prompt in whole.prompts) > 0
  for full, short in zip(whole.prompts, cut.prompts):
    np.testing.assert_array_equal(short, full[-5:])
  with pytest.raises(UserError, match="prompts over prompt.max_prompt_length dropped"):
    load(opened, tmp_path, prompt={"max_prompt_length": 1, "overlong_prompt": "cut_left"})


def test_errors(opened, tmp_path):
  with pytest.raises(UserError, match="texts.jsonl:1: the document has 1 token, allowed: 2 or more"):
    load(opened, tmp_path, ["w1"])
  with pytest.raises(UserError, match="^data.horizon: found 0, allowed: 1 or more"):
    DataConfig("x.jsonl", document_column="text", horizon=0)
  with pytest.raises(UserError, match="^data.document_column: found 'text' with a task"):
    DataConfig("task:parity", document_column="text")
  with pytest.raises(UserError, match="^data.document_column: found 'text' with data.messages_column, allowed: null"):
    DataConfig("x.jsonl", document_column="text", messages_column="m")
  tokenizer, _, config = opened
  form = prompts.make_format(tokenizer, PromptConfig(marker="close", template="Q: {question}"))
  with pytest.raises(UserError, match="^data.document_column: found 'text' with prompt.template 'Q: {question}'"):
    documents.cut(tokenizer, form, DataConfig("x.jsonl", document_column="text"), config, [])
