"""The pieces of a critic's prompt, for any tokenizer, and the whole that they are pieces of."""



from nrt_jax.data import critic_prompts, prompts, sources
from nrt_jax.data.critic_prompts import CriticConfig, CriticHeads
from nrt_jax.data.prompts import PromptConfig

CHAT = PromptConfig(template="chat", max_prompt_length=200, max_answer_length=12)
PLAIN = PromptConfig(template="plain", max_prompt_length=200, max_answer_length=12)
ANSWERS = ("72", "48 + 24")
WORDS = [*map(str, range(10)), "sum", "one", "other", "which", "tie", "expert", "model", "so", "?"]
SHORT = "{question} one {answer_1} other {answer_2} which"


class Critic:
  """What the pieces are for a tokenizer and both configs."""

  def __init__(self, tokenizer, prompt=CHAT, critic=CriticConfig()):
    self.tokenizer, self.prompt, self.critic = tokenizer, prompt, critic
    self.form = prompts.make_format(tokenizer, prompt)
    self.made = critic_prompts.make_form(tokenizer, self.form, prompt, critic)
    self.heads = CriticHeads(tokenizer, self.form, prompt, critic, self.made.head_width)

  def head(self, question):
    return self.heads.encode([sources.Example(question, "72", None, "here")])[0]

  def text(self, question, answers=ANSWERS):
    """The whole prompt, put together from its pieces."""
    pieces = [self.head(question), self.made.middle_ids, self.made.tail_ids]
    head, middle, tail = (prompts.decode(self.tokenizer, ids) for ids in pieces)
    return head + answers[0] + (tail if self.critic.kind == "single" else middle + answers[1] + tail)


def whole(critic: CriticConfig, question, answers=ANSWERS):
  """The turns of the whole prompt, whose last one holds the template with everything in it."""
  *before, last = prompts.as_messages(question)
  content = critic.shown.replace("{answer_1}", answers[0]).replace("{answer_2}", answers[1])
  return [*before, {**last, "content": content.replace("{question}", last["content"])}]


def words(special=()):
  return prompts.word_tokenizer(WORDS, special=special)
