"""Markers that begin with one token, and the line that names template, marker and end tokens."""

import chats
import pytest

from nrt_jax import errors
from nrt_jax.data import endings, prompts
from nrt_jax.data.prompts import PromptConfig


def line_of(tokenizer, **settings) -> str:
  return endings.describe(tokenizer, prompts.make_format(tokenizer, PromptConfig(**settings)))


def test_one_line_says_which_template_marker_and_end_tokens_are_in_use():
  tokenizer = chats.tokenizer("chatml")
  ends = "end tokens '<|im_end|>', '<eos>'"
  assert line_of(tokenizer) == f"prompts: chat template; marker '<|response_start|>' (added); {ends}"
  assert line_of(tokenizer) == f"prompts: chat template; marker '<|response_start|>'; {ends}"  # it has it now
  plain = "prompts: plain template; marker '</think>\\n\\n' (added); end tokens '<eos>'"
  assert line_of(tokenizer, template="plain", marker="</think>\n\n") == plain
  assert line_of(tokenizer, template="Q: {question}").startswith("prompts: template 'Q: {question}'; marker ")
  assert line_of(tokenizer, template="{question}\n" + 50 * "x").startswith(
    "prompts: template '{question}\\nxxxxxxxxxxxxxxxxxxxxxxxxxx...'; marker "
  )


def test_a_marker_must_not_begin_with_a_word_that_traces_hold():
  tokenizer = prompts.byte_pair_tokenizer(["The answer is", "#### 7"] * 50, 320)
  assert {"The", "####"} <= tokenizer.get_vocab().keys()
  with pytest.raises(errors.UserError, match="^prompt.marker: found 'The answer is ', whose first token is the w"):
    prompts.make_format(tokenizer, PromptConfig(marker="The answer is "))
  # One word is whole, punctuation is no word, and a token that is added is no word of a trace.
  for marker in ("The", "The ", "#### ", "<|response_start|>The answer is ", "Therefore, "):
    form = prompts.make_format(tokenizer, PromptConfig(marker=marker))
    assert prompts.decode(tokenizer, form.marker_ids) == marker
