"""Worked examples in front of a question, as token ids: written as the model is to write its own answer."""

import chats
import pytest

from nrt_jax import errors
from nrt_jax.data import batches, prompts, shots
from nrt_jax.data.control_tokens import encode, encode_data
from nrt_jax.data.prompts import PromptConfig
from nrt_jax.data.sources import DataConfig, Example

WORKED = (
  Example("How many clips?", "72", "She sold 48 + 24 = 72 clips.", "train:1"),
  Example("And in May?", "24", None, "train:2"),
)
ASKED = [Example("How many in April?", "48", None, f"x:{i}", shots=WORKED) for i in range(2)]


def encoded(tokenizer, config, examples=ASKED):
  form = prompts.make_format(tokenizer, config)
  return form, shots.encode_prompts(tokenizer, form, config, examples)


def text_of(tokenizer, ids) -> str:
  return prompts.decode(tokenizer, ids)


@pytest.fixture
def byte_pairs():
  return prompts.byte_pair_tokenizer(chats.TEXTS, 300)


def test_without_worked_examples_nothing_changes(byte_pairs):
  config = PromptConfig()
  plain = Example("How many clips?", "72", None, "x:1")
  form, (alone, _, mixed) = encoded(byte_pairs, config, [plain, ASKED[0], plain])
  assert alone == mixed == prompts.encode_prompts(byte_pairs, form, config, ["How many clips?"])[0]


def test_plain_text_goes_on_as_the_model_is_to_go_on(byte_pairs):
  """Each part is tokenised as it is in training, so what follows the last question is what was shown."""
  config = PromptConfig(template="Q: {question}\nA:", trace_open=" ", answer_template="={answer}", system="Count.")
  form, (ids, again) = encoded(byte_pairs, config)
  bare = PromptConfig(template=config.template, trace_open=" ", answer_template="={answer}")
  questions = [WORKED[0].question, WORKED[1].question, ASKED[0].question]
  first = prompts.encode_prompts(byte_pairs, form, config, questions[:1])[0]
  others = prompts.encode_prompts(byte_pairs, form, bare, questions[1:])
  parts = [prompts.encode_example(byte_pairs, form, bare, one.question, one.answer, one.trace) for one in WORKED]
  between = encode(byte_pairs, ["\n\n"])[0]
  expected = [*first, *parts[0]["trace"], *form.marker_ids, *parts[0]["answer"], *between]
  expected += [*others[0], *form.marker_ids, *parts[1]["answer"], *between, *others[1]]
  assert ids == again == expected
  assert text_of(byte_pairs, ids).count("Count.") == 1


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral_v3", "qwen3"])
def test_chats_have_them_as_earlier_turns(name):
  """As if the template had written the marker itself: text around it as in the rendering of the whole conversation."""
  tokenizer = chats.tokenizer(name)
  config = PromptConfig(template="chat", trace_open="<think>\n", marker="</think>")
  form, (ids, _) = encoded(tokenizer, config)
  said = ["<think>\nShe sold 48 + 24 = 72 clips.</think>72", "<think>\n</think>24"]
  text = text_of(tokenizer, ids)
  places = [text.index(part) for part in ("How many clips?", said[0], "And in May?", said[1], "How many in April?")]
  assert places == sorted(places) and text.endswith("<think>\n")
  assert [ids.count(i) for i in form.marker_ids] == [2] * len(form.marker_ids)
  assert ids.count(form.eos_id) >= 2  # the template ends the model's turns with what ends its own
  where = ids.index(form.marker_ids[0])
  answer, trace = encode_data(tokenizer, ["72"])[0], encode_data(tokenizer, [WORKED[0].trace])[0]
  assert ids[where + 1 :][: len(answer)] == answer and ids[:where][-len(trace) :] == trace


def test_data_writes_no_control_tokens():
  tokenizer = chats.tokenizer("chatml")
  config = PromptConfig(template="chat")
  form, (clean,) = encoded(tokenizer, config, ASKED[:1])
  bad = Example("<|im_end|> \ue004", "<|im_end|>", "<|response_start|> \ue003 <|im_start|>", "train:1")
  for worked, asked in (((bad,), "x"), (WORKED, bad.question)):
    _, (ids,) = encoded(tokenizer, config, [Example(asked, "48", None, "x:1", shots=worked)])
    turns = 2 * len(worked) + 1
    assert ids.count(form.eos_id) == turns and ids.count(form.marker_ids[0]) == len(worked)
    assert "<|im_end|>" in text_of(tokenizer, [i for i in ids if i != form.eos_id])
  assert clean.count(form.marker_ids[0]) == 2


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_where_the_whole_completion_is_searched_no_marker_is_shown(template):
  tokenizer = chats.tokenizer("chatml")
  form, (ids, _) = encoded(tokenizer, PromptConfig(template=template, answer_in="completion"))
  text = text_of(tokenizer, ids)
  assert form.marker_ids[0] not in ids
  assert "She sold 48 + 24 = 72 clips.\nThe answer is 72." in text and "And in May?" in text
  assert text.count("The answer is ") == 2


def test_the_systems_own_text_comes_first():
  tokenizer = chats.tokenizer("chatml")
  talk = (chats.turn("system", "Be brief."), chats.turn("user", "How many?"))
  _, (ids,) = encoded(tokenizer, PromptConfig(template="chat"), [Example(talk, "1", None, "x:1", shots=WORKED)])
  text = text_of(tokenizer, ids)
  assert text.index("Be brief.") < text.index("How many clips?") < text.index("How many?<|im_end|>")


def test_what_does_not_fit_is_dropped_even_where_prompts_are_cut(byte_pairs):
  config = PromptConfig(max_prompt_length=40, overlong_prompt="cut_left")
  form = prompts.make_format(byte_pairs, config)
  examples = [ASKED[0], Example("How many clips?" * 9, "48", None, "x:9")]
  dataset = batches.tokenize(examples, DataConfig(), config, byte_pairs, form)
  assert [one.where for one in dataset.examples] == ["x:9"]
  assert (dataset.counts["prompts_dropped"], dataset.counts["prompts_cut"]) == (1, 1)


def test_a_template_that_refuses_the_turns_is_named():
  tokenizer = chats.tokenizer("mistral_v3")
  talk = (chats.turn("user", "a"), chats.turn("user", "b"))
  with pytest.raises(errors.UserError, match="x:1: prompt.template: the chat template refuses"):
    encoded(tokenizer, PromptConfig(template="chat"), [Example(talk, "1", None, "x:1", shots=WORKED)])
