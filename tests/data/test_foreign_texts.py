import chats
import pytest

from nrt_jax.data import foreign_texts
from nrt_jax.errors import UserError


def test_bos_is_not_written_twice():
  tokenizer = chats.tokenizer("llama3")
  from tokenizers import processors

  bos = tokenizer.convert_tokens_to_ids("<s>")
  tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", bos)]
  )
  plain = foreign_texts.encode(tokenizer, "clips", False)
  assert foreign_texts.encode(tokenizer, "clips", prefix="<s>") == [bos, *plain]
  assert foreign_texts.encode(tokenizer, "<s>clips", prefix="<s>") == [bos, *plain]
  assert foreign_texts.encode(tokenizer, "<s>clips", True) == [bos, bos, *plain]


def test_control_tokens_are_parsed_and_left_out_of_text():
  tokenizer = chats.tokenizer("chatml")
  ids = foreign_texts.encode(tokenizer, "<|im_start|>clips<|im_end|>")
  assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
  assert foreign_texts.decode(tokenizer, ids) == "clips"


def test_a_conversation_without_a_place_for_system_text_loses_it():
  tokenizer = chats.tokenizer("gemma")
  system, user = chats.turn("system", "Be brief."), chats.turn("user", "72 / 2?")
  alone = foreign_texts.render_history(tokenizer, {}, [user])
  assert foreign_texts.render_history(tokenizer, {}, [system, user]) == alone


def test_what_a_template_refuses_is_one_line():
  tokenizer = chats.tokenizer("mistral_v3")
  with pytest.raises(UserError, match="chat: the chat template refuses the turns assistant: roles must alternate"):
    foreign_texts.render_history(tokenizer, {}, [chats.turn("assistant", "72")])
  tokenizer.chat_template = None
  with pytest.raises(UserError, match="chat: the tokenizer has no chat template"):
    foreign_texts.render_history(tokenizer, {}, [chats.turn("user", "72")])


@pytest.mark.parametrize("kind", chats.KINDS)
def test_what_tokens_add_is_what_they_add(kind):
  tokenizer = chats.tokenizer("chatml", kind)
  texts = foreign_texts.texts_behind(tokenizer)
  ids = foreign_texts.encode(tokenizer, "a 72 clips.<|im_end|> And  blanks", special=False)
  whole = foreign_texts.decode(tokenizer, ids)
  assert foreign_texts.decode(tokenizer, ids[:1]) + "".join(texts[i] for i in ids[1:]) == whole
  assert texts[tokenizer.convert_tokens_to_ids("<|im_end|>")] == ""
  parts = [i for i, text in enumerate(texts) if text is None]
  assert bool(parts) == (kind == "bytes") and all("\ufffd" in tokenizer.decode([ids[0], i]) for i in parts)
