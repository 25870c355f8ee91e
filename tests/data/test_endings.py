"""Markers that begin with one token, and the line that names template, marker and end tokens."""

import chats

from nrt_jax.data import endings, prompts
from nrt_jax.data.prompts import PromptConfig


def line_of(tokenizer, **settings) -> str:
  return endings.describe(tokenizer, prompts.make_format(tokenizer, PromptConfig(**settings)))


def test_one_line_says_which_template_marker_and_end_tokens_are_in_use():
  tokenizer = chats.tokenizer("chatml")
  ends = "end tokens '<eos>', '<|im_end|>'"
  assert line_of(tokenizer) == f"prompts: chat template; marker '<|response_start|>' (added); {ends}"
  assert line_of(tokenizer) == f"prompts: chat template; marker '<|response_start|>'; {ends}"  # it has it now
  plain = "prompts: plain template; marker '</think>\\n\\n' (added); end tokens '<eos>'"
  assert line_of(tokenizer, template="plain", marker="</think>\n\n") == plain
  assert line_of(tokenizer, template="Q: {question}").startswith("prompts: template 'Q: {question}'; marker ")
  assert line_of(tokenizer, template="{question}\n" + 50 * "x").startswith(
    "prompts: template '{question}\\nxxxxxxxxxxxxxxxxxxxxxxxxxx...'; marker "
  )
