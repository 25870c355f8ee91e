"""Prompts that show the answer: a second prompt of each example, as `batches.tokenize` asks for it."""

import dataclasses

from nrt_jax.data import prompts


@dataclasses.dataclass(frozen=True)
class AnswerHints:
  """The second prompt of an example that shows its answer."""

  tokenizer: object
  form: prompts.PromptFormat
  prompt: prompts.PromptConfig

  kind = "hint"  # of overlong.LIMITS

  @property
  def width(self) -> int:
    """Columns of these prompts."""
    template = self._ids([prompts.hint_question(self.prompt, "", "")])[0]
    return self.prompt.max_hint_length or self.prompt.max_prompt_length + self.prompt.max_answer_length + len(template)

  def encode(self, examples) -> list:
    """Token ids of each example's prompt, uncut."""
    return self._ids([self._question(example) for example in examples], [example.where for example in examples])

  def cut(self, example) -> list | None:
    """As prompts.cut_prompt."""
    return prompts.cut_prompt(self.tokenizer, self.form, self.prompt, self._question(example), self.width)

  def _question(self, example):
    return prompts.hint_question(self.prompt, example.question, example.answer)

  def _ids(self, questions, where=None):
    return prompts.encode_prompts(self.tokenizer, self.form, self.prompt, questions, where)
