"""Prompts: markers, end tokens, and token sequences that never merge across a boundary. See test_chat_templates.py."""

import json

import chats
import pytest
from chats import CONVERSATIONS, turn

from nrt_jax import errors
from nrt_jax.data import prompts
from nrt_jax.data.prompts import PromptConfig

MARKER = "<|response_start|>"
TEXTS = ["How many clips did Natalia sell altogether in April and May?", "She sold 48 + 24 = 72 clips. #### 72"] * 4

@pytest.fixture
def byte_pairs():
  return prompts.byte_pair_tokenizer(TEXTS, 300)


def test_rendering_leaves_the_messages_alone():
  messages = (turn("user", "48 + 24?"),)
  tokenizer = chats.tokenizer("mistral_v3")
  config = PromptConfig(template="chat", system="Be brief.")
  prompts.encode_prompts(tokenizer, prompts.make_format(tokenizer, config), config, [messages])
  assert messages == (turn("user", "48 + 24?"),)


def test_pieces_are_the_text_of_each_token(byte_pairs):
  """Together they are the text; a character of several tokens is at its last one, half of one at the end is there."""
  words = prompts.word_tokenizer(["the", "sum", "is"])
  assert prompts.pieces(words, words("the sum is")["input_ids"]) == ["the", " sum", " is"]
  assert prompts.pieces(words, []) == []
  for text in ("48 + 24 = 72 clips", "é 好 <script>", " clips\n"):
    ids = byte_pairs(text, add_special_tokens=False)["input_ids"]
    found = prompts.pieces(byte_pairs, ids)
    assert "".join(found) == prompts.decode(byte_pairs, ids) == text and len(found) == len(ids)
  ids = byte_pairs("好", add_special_tokens=False)["input_ids"]
  assert prompts.pieces(byte_pairs, ids) == [""] * (len(ids) - 1) + ["好"] and len(ids) > 1
  assert prompts.pieces(byte_pairs, ids[:1]) == ["\ufffd"]


def test_all_end_tokens_of_the_model_end_a_completion():
  """Those of its config files beside the tokenizer's own, in sampling, in given traces and in what graders see."""
  tokenizer = prompts.word_tokenizer(["a", "b"], special=("</t>", "<end>", "<other>"))
  end, other = (tokenizer.convert_tokens_to_ids(name) for name in ("<end>", "<other>"))
  form = prompts.make_format(tokenizer, PromptConfig(marker="</t>"), (end, tokenizer.eos_token_id, other, end))
  (m,) = form.marker_ids
  assert form.end_ids == (form.eos_id, end, other) and form.stop_ids == (m, form.eos_id, end, other)
  assert prompts.split_completion(form, [0, m, 1, other, 0]) == ([0], [1])
  assert prompts.split_completion(form, [0, end, m, 1]) == ([0], None)
  with pytest.raises(errors.UserError, match="prompt.marker: found '<end>', which is an end token"):
    prompts.make_format(tokenizer, PromptConfig(marker="<end>"), (end,))
  assert prompts.make_format(tokenizer, PromptConfig(marker="</t>")).end_ids == (form.eos_id,)


def test_every_special_token_can_be_a_stop():
  tokenizer = chats.tokenizer("chatml")
  form = prompts.make_format(tokenizer, PromptConfig(stop_at_special=True))
  special = {"<eos>", "<pad>", "<unk>", "<|im_start|>", "<|im_end|>", MARKER}
  assert set(tokenizer.convert_ids_to_tokens(list(form.stop_ids))) == special
  assert len(form.stop_ids) == len(special)
  assert form.stop_ids[:2] == (form.marker_ids[0], form.eos_id)


def test_the_marker_becomes_one_token(byte_pairs):
  size = len(byte_pairs)
  form = prompts.make_format(byte_pairs, PromptConfig())
  assert form.marker_ids == (size,) == form.added_ids
  assert form.vocab_size_needed == size + 1
  assert byte_pairs(f"72{MARKER}72")["input_ids"].count(size) == 1
  again = prompts.make_format(byte_pairs, PromptConfig())
  assert again.marker_ids == form.marker_ids and again.added_ids == ()


def test_think_style_marker_keeps_the_text_after_its_tag(byte_pairs):
  config = PromptConfig(marker="</think>\n\n", trace_open="<think>\n")
  form = prompts.make_format(byte_pairs, config)
  assert form.marker_ids[0] == byte_pairs.convert_tokens_to_ids("</think>") == form.added_ids[0]
  assert prompts.decode(byte_pairs, form.marker_ids) == "</think>\n\n"
  assert len(form.marker_ids) > 1
  ids = prompts.encode_prompts(byte_pairs, form, config, ["How many?"])[0]
  assert prompts.decode(byte_pairs, ids) == "How many?<think>\n"


def test_a_word_of_the_vocabulary_can_be_the_marker():
  tokenizer = prompts.word_tokenizer(["0", "1", "so"])
  form = prompts.make_format(tokenizer, PromptConfig(marker="so"))
  assert form.marker_ids == (2,) and form.added_ids == ()


def test_the_pad_id_is_the_tokenizers_own_or_the_end_token(byte_pairs):
  assert prompts.make_format(byte_pairs, PromptConfig()).pad_id == byte_pairs.pad_token_id != 0
  byte_pairs.pad_token = None
  form = prompts.make_format(byte_pairs, PromptConfig())
  assert form.pad_id == form.eos_id


def test_pieces_never_merge_across_their_borders():
  # "clips" is one token here, so a prompt ending in "cl" and an answer "ips" would merge if tokenised together.
  tokenizer = prompts.byte_pair_tokenizer(["clips"] * 50, 280)
  config = PromptConfig()
  form = prompts.make_format(tokenizer, config)
  assert len(tokenizer("clips")["input_ids"]) == 1
  parts = prompts.encode_example(tokenizer, form, config, "cl", "ips", "cl")
  assert [prompts.decode(tokenizer, parts[k]) for k in ("prompt", "trace", "answer")] == ["cl", "cl", "ips<eos>"]


def test_an_answer_ends_with_the_end_token_and_a_missing_trace_is_empty(byte_pairs):
  config = PromptConfig()
  form = prompts.make_format(byte_pairs, config)
  parts = prompts.encode_example(byte_pairs, form, config, "48 + 24?", "72")
  assert parts["answer"][-1] == byte_pairs.eos_token_id and parts["answer"].count(form.eos_id) == 1
  assert parts["trace"] == []


def test_data_cannot_write_control_tokens_into_answers_and_traces(byte_pairs):
  config = PromptConfig()
  form = prompts.make_format(byte_pairs, config)
  text = f"72 <eos> {MARKER} 7"
  parts = prompts.encode_example(byte_pairs, form, config, "q", text, text)
  assert not set(parts["trace"]) & set(form.stop_ids)
  assert not set(parts["answer"][:-1]) & set(form.stop_ids)
  assert prompts.decode(byte_pairs, parts["trace"]) == text


def test_a_given_trace_ends_at_its_first_stop_token():
  tokenizer = prompts.word_tokenizer(["1", "2", "so"])
  form = prompts.make_format(tokenizer, PromptConfig(marker="so"))
  assert prompts.encode_traces(tokenizer, form, ["1 2 so 1"]) == [[0, 1]]


def test_bos_comes_once_where_the_tokenizer_puts_it():
  from tokenizers import processors

  tokenizer = chats.tokenizer("llama3")
  bos = tokenizer.bos_token_id
  plain = PromptConfig(template="plain")
  assert prompts.make_format(tokenizer, plain).prefix_ids == ()  # this tokenizer adds none
  tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
  )
  form = prompts.make_format(tokenizer, plain)
  assert form.prefix_ids == (bos,)
  for config in (plain, PromptConfig(template="Q: {question}"), PromptConfig(template="chat")):
    form = prompts.make_format(tokenizer, config)
    ids = prompts.encode_prompts(tokenizer, form, config, ["48 + 24?"])[0]
    assert ids[0] == bos and ids.count(bos) == 1
    assert bos not in prompts.encode_answers(tokenizer, form, ["72"])[0]


def test_plain_and_question_templates():
  def render(template, system, messages):
    tokenizer, config = prompts.byte_pair_tokenizer(TEXTS, 300), PromptConfig(template=template, system=system)
    form = prompts.make_format(tokenizer, config)
    return prompts.decode(tokenizer, prompts.encode_prompts(tokenizer, form, config, [messages])[0])

  one, many = CONVERSATIONS["one"], CONVERSATIONS["system"]
  assert render("plain", "", one) == "How many clips?"
  assert render("Question: {question}\nAnswer:", "", one) == "Question: How many clips?\nAnswer:"
  assert render("Q: {question}", "Hi.", one) == "Hi.\n\nQ: How many clips?"
  assert render("{question} {question}", "", one) == "How many clips? How many clips?"
  assert render("plain", "Hi.", many) == "Be brief. \n\n48 + 24?\n\n72\n\n72 / 2?"


def test_split_completion_cuts_at_the_first_marker_and_the_next_stop():
  tokenizer = prompts.word_tokenizer(["a", "b", "c"], special=("</t>",))
  form = prompts.make_format(tokenizer, PromptConfig(marker="</t> c"))
  (m, c), eos = form.marker_ids, form.eos_id
  assert prompts.split_completion(form, [0, 1, m, c, 1, eos, 0]) == ([0, 1], [1])
  assert prompts.split_completion(form, [0, m, 1, m, c, 0]) == ([0, m, 1], [0])  # half a marker is text
  assert prompts.split_completion(form, [0, m, c, 1, m, c, 0]) == ([0], [1, m, c, 0])  # so is a second one
  assert prompts.split_completion(form, [0, m, 1, eos]) == ([0, m, 1], None)
  assert prompts.split_completion(form, [m, c]) == ([], [])
  assert prompts.split_completion(form, [0, 1]) == ([0, 1], None)  # never ended
  assert prompts.split_completion(form, [0, eos, m, 1]) == ([0], None)  # ended before any marker
  assert prompts.split_completion(form, []) == ([], None)


def test_a_grader_may_look_at_the_whole_completion():
  tokenizer = prompts.word_tokenizer(["a", "b", "c"], special=("</t>",))
  form = prompts.make_format(tokenizer, PromptConfig(marker="</t>", answer_in="completion"))
  (m,), eos = form.marker_ids, form.eos_id
  assert prompts.split_completion(form, [0, 1, 2, eos, 0]) == ([0, 1, 2], [0, 1, 2])
  assert prompts.split_completion(form, [0, m, 2, eos, 0]) == ([0], [0, m, 2])  # a marker is no border
  assert prompts.split_completion(form, [0, 1]) == ([0, 1], [0, 1])  # never ended
  with pytest.raises(
    errors.UserError, match="prompt.answer_in: found 'everywhere', allowed: behind_marker, completion"
  ):
    PromptConfig(answer_in="everywhere")


def test_the_answer_has_its_template():
  tokenizer = prompts.byte_pair_tokenizer(TEXTS, 300)
  form = prompts.make_format(tokenizer, PromptConfig(answer_template="> \\boxed{ {answer} } </answer>"))
  (ids,) = prompts.encode_answers(tokenizer, form, ["72"])
  assert prompts.decode(tokenizer, ids[:-1]) == "> \\boxed{ 72 } </answer>" and ids[-1] == form.eos_id
  with pytest.raises(errors.UserError, match="prompt.answer_template: found 'answer', allowed: a text with {answer}"):
    PromptConfig(answer_template="answer")


def test_the_format_is_hashable_and_the_config_names_its_keys(byte_pairs):
  hash(prompts.make_format(byte_pairs, PromptConfig()))
  for key, value in (
    ("template", "lama3"),
    ("marker", " so"),
    ("max_prompt_length", 0),
    ("overlong_prompt", "cut"),
    ("overlong_answer", "cut_left"),
  ):
    with pytest.raises(errors.UserError, match=f"^prompt.{key}: found "):
      PromptConfig(**{key: value})
  with pytest.raises(errors.UserError, match="found 'llama3', allowed: auto, chat, plain, or a text that holds {question}"):
    PromptConfig(template="llama3")


def test_missing_end_token_and_end_token_as_marker_are_errors(byte_pairs):
  with pytest.raises(errors.UserError, match="^prompt.marker: "):
    prompts.make_format(byte_pairs, PromptConfig(marker="<eos>"))
  byte_pairs.eos_token = None
  with pytest.raises(errors.UserError, match="^prompt.tokenizer: .*end token"):
    prompts.make_format(byte_pairs, PromptConfig())


def test_a_saved_tokenizer_loads_back_beside_a_llama_config(tmp_path):
  # By the class's name transformers 5 would build a Llama tokenizer of its own, which loses the unknown words and more
  # ([2, 1, 6, 2] below); the tokenizer.json must win.
  saved = prompts.word_tokenizer(["sum", "0", "1"], tmp_path, special=(MARKER,))
  (tmp_path / "config.json").write_text('{"model_type": "llama"}')
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "LlamaTokenizer"}))
  loaded = prompts.load_tokenizer(tmp_path)
  text = f"sum 1 0 {MARKER} 1 zzz"
  assert loaded(text)["input_ids"] == saved(text)["input_ids"] == [0, 2, 1, saved.convert_tokens_to_ids(MARKER), 2, 5]
  assert (loaded.eos_token_id, loaded.pad_token_id) == (3, 4)
  assert prompts.decode(loaded, [0, 2, 4]) == "sum 1 <pad>"


def test_a_tokenizer_that_cannot_be_loaded_is_one_clear_line(tmp_path, monkeypatch):
  with pytest.raises(errors.UserError, match="no such directory.*hub:owner/name"):
    prompts.load_tokenizer("meta-llama/Llama-3.1-8B")
  with pytest.raises(errors.UserError, match="holds none of tokenizer.json"):
    prompts.load_tokenizer(tmp_path)
  (tmp_path / "only").mkdir()
  (tmp_path / "only" / "tokenizer.model").write_bytes(b"x")
  monkeypatch.setattr(prompts.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.UserError, match=r"tokenizer.model without .*sentencepiece: pip install nrt_jax\[sentence"):
    prompts.load_tokenizer(tmp_path / "only")
  monkeypatch.undo()
  (tmp_path / "tokenizer.json").write_text("{ broken")
  with pytest.raises(errors.UserError, match="can't be loaded: ") as caught:
    prompts.load_tokenizer(tmp_path)
  assert "\n" not in str(caught.value)


def test_a_byte_pair_tokenizer_spells_any_text(byte_pairs):
  text = "Zoë pays €3 — twice.\n#### 6"
  assert prompts.decode(byte_pairs, byte_pairs(text)["input_ids"]) == text
  with pytest.raises(errors.UserError, match="^vocab_size: found 200"):
    prompts.byte_pair_tokenizer(TEXTS, 200)
