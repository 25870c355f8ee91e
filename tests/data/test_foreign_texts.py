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


def test_tokens_that_write_a_stop_string():
  tokenizer = chats.tokenizer("chatml")
  found = foreign_texts.tokens_with(tokenizer, ["a"])
  assert tokenizer.convert_tokens_to_ids("a") in found and foreign_texts.tokens_with(tokenizer, []) == ()
  assert all("a" in tokenizer.decode([i]) for i in found)
  others = set(range(len(tokenizer))) - set(found) - set(tokenizer.all_special_ids)
  assert not any("a" in tokenizer.decode([i], skip_special_tokens=True) for i in others)
