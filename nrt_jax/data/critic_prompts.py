"""What a critic reads and says, as token ids: its prompt in pieces around the answers, and the words of its verdicts.

    head, with the question | answer 1 | middle | answer 2 | tail

The pieces are tokenised here, once; the answers between them are put in on the device (algorithms/critic.py) as the
tokens that they are, never tokenised again.
"""

import dataclasses
import itertools
import re

from nrt_jax import errors
from nrt_jax.data import prompts
from nrt_jax.data.control_tokens import (
  QUESTION,
  SYSTEM,
  TEMPLATE,
  control_pattern,
  control_tokens,
  encode,
  encode_data,
  encode_origins,
)

KINDS = ("pairwise_tie", "pairwise", "single")
ORDERS = ("random", "both")
SLOTS = ("{answer_1}", "{answer_2}")
PRIVATE = ("\ue001", "\ue002")  # stand for the slots while a template is rendered
PAIRWISE = (
  "{question}\n\nHere are two answers to this. One was written by an expert, the other by a model.\n\n"
  "Answer 1:\n{answer_1}\n\nAnswer 2:\n{answer_2}\n\n"
)
TEMPLATES = {
  "pairwise_tie": PAIRWISE + "Which one is the expert's? Reason first, then say 1, 2, or tie if neither can be told.",
  "pairwise": PAIRWISE + "Which one is the expert's? Reason first, then say 1 or 2.",
  "single": "{question}\n\nHere is an answer to this.\n\nAnswer:\n{answer_1}\n\n"
  "Was it written by an expert or by a model? Reason first, then say expert or model.",
}
LABELS = {"pairwise_tie": ("1", "2", "tie"), "pairwise": ("1", "2"), "single": ("expert", "model")}


@dataclasses.dataclass(frozen=True)
class CriticConfig:
  """What the critic is shown, how it answers, and how its verdicts are drawn."""

  kind: str = "pairwise_tie"  # pairwise_tie: RARO | pairwise: no tie | single: one answer, the expert's or not
  template: str = ""  # with {question}, {answer_1} and, for pairs, {answer_2}, in this order; "" = ours for its kind
  labels: tuple[str, ...] = ()  # answer 1 is the expert's | answer 2 (single: the policy's) | tie; () = ours
  neutral: str = "?"  # one plain token; in answers it hides control tokens, markers and words before an answer's slot
  reasoning: bool = True  # False: the marker ends the critic's prompt, and a verdict is the label alone
  samples: int = 4  # verdicts on a pair
  pairs: int = 0  # pairs of a question that the critic learns from; 0 = samples_per_prompt
  order: str = "both"  # both: half of a pair's verdicts on each order of its answers | random: one order for a pair
  max_length: int = 64  # tokens of a verdict: reasoning, marker, label and end token
  max_answer_length: int = 0  # tokens of an answer that the critic sees; 0 = prompt.max_answer_length
  max_head_length: int = 0  # tokens of its prompt up to the first answer; 0 = prompt.max_prompt_length and the template
  temperature: float = 1.0  # above 0
  top_k: int = 0  # 0 = off
  top_p: float = 1.0  # 1 = off
  kl_coef: float | None = None  # against the reference, on the critic's tokens; null = algorithm.kl_coef
  own_weights: bool = False  # True: the critic is a model of its own, with its own optimizer state

  def __post_init__(self):
    errors.require_choice("algorithm.critic.kind", self.kind, KINDS)
    errors.require_choice("algorithm.critic.order", self.order, ORDERS)
    if re.findall("|".join(map(re.escape, ("{question}", *SLOTS))), self.shown) != ["{question}", *self.slots]:
      allowed = f"a text with {{question}}, {' and '.join(self.slots)}, each once, in this order"
      raise errors.UserError(f"algorithm.critic.template: found {self.template!r}, allowed: {allowed}")
    if len(self.words) != len(LABELS[self.kind]) or len(set(self.words)) != len(self.words) or "" in self.words:
      allowed = f"{len(LABELS[self.kind])} different words, as in {LABELS[self.kind]}"
      raise errors.UserError(f"algorithm.critic.labels: found {self.labels!r}, allowed: {allowed}")
    if self.samples < 2 or self.samples % self.orders or (self.kind == "single" and self.samples < 4):
      allowed = "an even number, 4 or more" if self.kind == "single" else f"2 or more, a multiple of {self.orders}"
      raise errors.UserError(f"algorithm.critic.samples: found {self.samples}, allowed: {allowed}")
    for key, least in {"pairs": 0, "max_length": 1, "max_answer_length": 0, "max_head_length": 0, "top_k": 0}.items():
      if getattr(self, key) < least:
        raise errors.UserError(f"algorithm.critic.{key}: found {getattr(self, key)}, allowed: {least} or more")
    if not self.temperature >= 1e-6:
      raise errors.UserError(f"algorithm.critic.temperature: found {self.temperature}, allowed: above 0")
    if not 0 < self.top_p <= 1:
      raise errors.UserError(f"algorithm.critic.top_p: found {self.top_p}, allowed: above 0, up to 1 (off)")
    if self.kl_coef is not None and self.kl_coef < 0:
      raise errors.UserError(f"algorithm.critic.kl_coef: found {self.kl_coef}, allowed: null, or 0 (off) or more")

  @property
  def slots(self) -> tuple[str, ...]:
    return SLOTS[:1] if self.kind == "single" else SLOTS

  @property
  def shown(self) -> str:
    """The template."""
    return self.template or TEMPLATES[self.kind]

  @property
  def words(self) -> tuple[str, ...]:
    """The labels."""
    return self.labels or LABELS[self.kind]

  @property
  def orders(self) -> int:
    """Prompts of a pair: one for each order of its answers, or for each answer if one is shown at a time."""
    return 1 if self.kind != "single" and self.order == "random" else 2


@dataclasses.dataclass(frozen=True)
class CriticForm:
  """The token ids that the compiled step needs of a critic. Hashable."""

  kind: str
  middle_ids: tuple[int, ...]  # between two answers; () where one is shown
  tail_ids: tuple[int, ...]  # behind the last one
  label_ids: tuple[tuple[int, ...], ...]  # as CriticConfig.labels
  marker_ids: tuple[int, ...]  # stands before the label
  end_ids: tuple[int, ...]  # any of which ends a verdict; the first one is what is taught
  reasoning: bool  # False: the tail ends with the marker
  neutral_id: int
  forbidden_ids: tuple[int, ...]  # tokens that no answer may show to the critic
  forbidden: tuple[tuple[int, ...], ...]  # nor these sequences
  head_width: int
  answer_width: int

  @property
  def prompt_width(self) -> int:
    """Columns of a whole prompt."""
    answers = 1 if self.kind == "single" else 2
    return self.head_width + len(self.middle_ids) + answers * self.answer_width + len(self.tail_ids)


def make_form(tokenizer, form: prompts.PromptFormat, prompt: prompts.PromptConfig, critic: CriticConfig) -> CriticForm:
  """Tokenises what all of a critic's prompts share. UserError where its labels or its template can't be told apart."""
  if form.answer_in != "behind_marker":
    raise errors.UserError(f"prompt.answer_in: found {form.answer_in!r}, allowed with a critic: behind_marker")
  _require_places(_render(tokenizer, form, prompt, critic, "?")[0], critic)
  _, *rest = _pieces(tokenizer, form, prompt, critic, "?")
  ids = [tuple(encode_origins(tokenizer, *piece)[0]) for piece in rest]
  tail = (*ids[-1], *prompts.trace_open(tokenizer, form, prompt, rest[-1][0]))
  labels = _label_ids(tokenizer, form, critic)
  _require_room(form, critic, labels)
  single, sequences = _forbidden(tokenizer, form, critic)
  single |= {*control_tokens(tokenizer).values(), *form.stop_ids, form.pad_id}
  template = len(_head(tokenizer, form, prompt, critic, "")[0])
  return CriticForm(
    kind=critic.kind,
    middle_ids=() if len(ids) == 1 else ids[0],
    tail_ids=tail if critic.reasoning else (*tail, *form.marker_ids),
    label_ids=labels,
    marker_ids=form.marker_ids,
    end_ids=form.end_ids,
    reasoning=critic.reasoning,
    neutral_id=_neutral_id(tokenizer, critic, single.union(*sequences)),
    forbidden_ids=tuple(sorted(single)),
    forbidden=sequences,
    head_width=critic.max_head_length or prompt.max_prompt_length + template,
    answer_width=critic.max_answer_length or prompt.max_answer_length,
  )


def _require_places(text, critic) -> None:
  """Raises UserError unless a rendered prompt has one place for each answer."""
  counts = [text.count(private) for private in PRIVATE[: len(critic.slots)]]
  if set(counts) != {1}:
    found = f"it shows what is asked {max(counts)} times" if max(counts) > 1 else "it does not show all that is asked"
    raise errors.UserError(f"prompt.template: {found}, allowed with a critic: one that shows it once, unchanged")


def _require_room(form, critic, labels) -> None:
  least = max(map(len, labels)) + 1 + (len(form.marker_ids) if critic.reasoning else 0)
  if critic.max_length < least:
    allowed = f"{least} (the marker, a label and the end token) or more"
    raise errors.UserError(f"algorithm.critic.max_length: found {critic.max_length}, allowed: {allowed}")


def _label_ids(tokenizer, form, critic) -> tuple:
  labels = tuple(tuple(ids) for ids in encode_data(tokenizer, critic.words))
  unknown = tokenizer.unk_token_id
  for word, ids in zip(critic.words, labels):
    if not ids or unknown in ids or set(ids) & {form.marker_ids[0], *form.end_ids}:
      raise errors.UserError(f"algorithm.critic.labels: found {word!r}, allowed: words that the tokenizer knows")
  if len(set(labels)) < len(labels):
    found = " and ".join(map(repr, critic.words))
    raise errors.UserError(f"algorithm.critic.labels: found {found}, allowed: words that differ in their tokens")
  return labels


def _neutral_id(tokenizer, critic, speaking) -> int:
  ids = encode_data(tokenizer, [critic.neutral])[0]
  ids = [i for i in ids if prompts.decode(tokenizer, [i]).strip()]  # without the blank that some put before a text
  if len(ids) != 1 or ids[0] in speaking:
    found = f"{critic.neutral!r}, tokens {tokenizer.convert_ids_to_tokens(ids)}"
    allowed = "a text of one plain token that does not stand before an answer"
    raise errors.UserError(f"algorithm.critic.neutral: found {found}, allowed: {allowed}")
  return ids[0]


def _forbidden(tokenizer, form, critic) -> tuple[set, tuple]:
  """(single tokens, sequences): the marker, and the words that stand before an answer, as they would be written."""
  before = re.split("|".join(map(re.escape, critic.slots)), critic.shown)[:-1]
  lines = [part.rpartition("{question}")[2].strip().rpartition("\n")[2] for part in before]
  around = ("", " ", "\n", "\n\n")  # blanks may be one token with the words that they touch
  texts = [left + line + right for line in lines if line for left in around for right in around]
  found = {form.marker_ids, *map(tuple, encode_data(tokenizer, texts))}
  found = [ids for ids in found if not any(_holds(ids, other) for other in found - {ids})]  # the shortest are enough
  single = {ids[0] for ids in found if len(ids) == 1}
  return single, tuple(sorted(ids for ids in found if len(ids) > 1))


def _holds(ids, part) -> bool:
  return any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))


def _render(tokenizer, form, prompt, critic, question) -> tuple[str, str]:
  """(text, origin of its characters) of the whole prompt for a question, with PRIVATE in the places of the answers."""
  return prompts.render(tokenizer, form, prompt, _messages(prompt, critic, question), origins=True)


def _messages(prompt, critic, question) -> list:
  """The turns of that prompt."""
  *before, last = prompts.as_messages(question)
  parts = {"{question}": last["content"], **dict(zip(critic.slots, PRIVATE))}
  words = re.sub("|".join(map(re.escape, parts)), lambda found: parts[found.group()], _clean(critic.shown))
  return prompts.turns(prompt, [*before, {**last, "content": words}])


def _pieces(tokenizer, form, prompt, critic, question) -> list:
  """(text, origin of its characters) of each piece of the prompt for a question: see control_tokens.py."""
  text, origin = _render(tokenizer, form, prompt, critic, question)
  places = [text.rfind(private) for private in PRIVATE[: len(critic.slots)]]  # the last: a question may write one too
  borders = itertools.pairwise([-1, *places, len(text)])
  return [(text[start + 1 : stop], origin[start + 1 : stop]) for start, stop in borders]


def _clean(text: str) -> str:
  return re.sub("|".join(PRIVATE), "\ufffd", text)


def _head(tokenizer, form, prompt, critic, question) -> tuple[list, list]:
  """(ids, the origin of each) of a prompt up to its first answer."""
  text, origin = _pieces(tokenizer, form, prompt, critic, question)[0]
  ids, origin = encode_origins(tokenizer, text, _own_words(text, origin, critic, question))
  return [*form.prefix_ids, *ids], [TEMPLATE] * len(form.prefix_ids) + origin


def _own_words(text, origin, critic, question) -> str:
  """The origin of a head's characters, where the words of the critic's template count as SYSTEM: they are never cut."""
  before, after = _clean(critic.shown).partition(SLOTS[0])[0].split("{question}")
  stop = len(text) - len(after)
  start = stop - len(prompts.as_messages(question)[-1]["content"])
  ours = {*range(start - len(before), start), *range(stop, len(text))} if text.endswith(after) else ()
  return "".join(SYSTEM if i in ours and whose == QUESTION else whose for i, whose in enumerate(origin))


@dataclasses.dataclass(frozen=True)
class CriticHeads:
  """The beginnings of a critic's prompts, as `batches.tokenize` asks for a second prompt of each example."""

  tokenizer: object
  form: prompts.PromptFormat
  prompt: prompts.PromptConfig
  critic: CriticConfig
  width: int  # CriticForm.head_width

  kind = "head"

  def encode(self, examples) -> list:
    """Token ids of each example's head, uncut. UserErrors begin with the example's place."""
    asked, texts = [_messages(self.prompt, self.critic, example.question) for example in examples], []
    for example, messages in zip(examples, asked):
      with errors.at(example.where):
        text = prompts.render(self.tokenizer, self.form, self.prompt, messages)
        texts.append(text[: text.rfind(PRIVATE[0])])
    control, rows = control_pattern(self.tokenizer), encode(self.tokenizer, texts)
    for i, messages in enumerate(asked):
      if any(control.search(m["content"]) for m in messages):
        rows[i] = self._head(examples[i])[0][len(self.form.prefix_ids) :]
    return [[*self.form.prefix_ids, *ids] for ids in rows]

  def _head(self, example):
    return _head(self.tokenizer, self.form, self.prompt, self.critic, example.question)

  def cut(self, example) -> list | None:
    """The head without the oldest tokens of the question, so that it fits; None where nothing would be left of it."""
    ids, origin = self._head(example)
    own = [t for t, whose in enumerate(origin) if whose == QUESTION]
    over = len(ids) - self.width
    if over >= len(own):
      return None
    cut = set(own[: max(over, 0)])
    return [i for t, i in enumerate(ids) if t not in cut]
