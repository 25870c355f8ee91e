"""From text to token ids and back: prompt templates, the marker that closes a trace, and the only tokenizer code.

Prompt, trace, marker and answer are tokenised separately and never merged across a border (nrt.md section 3c), so the
sampled trace can be spliced before `marker + answer` on the device without being tokenised again.
What may become control tokens is decided in control_tokens.py, the text of a prompt in chat_templates.py, and what ends
traces and answers in endings.py.
"""

import dataclasses
import importlib.util
import pathlib
import re

from nrt_jax import errors
from nrt_jax.data import chat_templates, endings
from nrt_jax.data.control_tokens import QUESTION, control_pattern, encode, encode_data, encode_origins

HUB = "hub:"  # a source that starts so is fetched from the hub; anything else is a local path
ROLES = ("system", "user", "assistant")
OVERLONG_PROMPT = ("drop", "cut_left", "error")
OVERLONG_ANSWER = ("drop", "cut", "error")
ANSWER_PLACES = ("behind_marker", "completion")
HINT = "{question}\n\nThe answer is: {answer}\n\nExplain step by step how to find it."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
TEMPLATES = ("auto", "plain", "chat")


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """How question, trace and answer become one token sequence: `prompt | trace | marker | answer`."""

  tokenizer: str | None = None  # directory, or "hub:owner/name" to fetch; None = the model's own
  template: str = "auto"  # plain | chat: the tokenizer's template | auto: chat if it has one | a text with {question}
  chat_template: str | None = None  # a file of Jinja that the tokenizer takes as its own; None = the one it has
  template_options: tuple = ()  # variables of the chat template, as a mapping, e.g. {"enable_thinking": False}
  system: str = ""  # system text, for conversations that have none of their own; released NRT: none
  marker: str = "<|response_start|>"  # closes the trace; its first piece is one token, added where missing
  trace_open: str = ""  # ends every prompt, e.g. "<think>\n" with marker "</think>"; not twice if a template writes it
  answer_template: str = "{answer}"  # what is learnt and scored of a reference answer, e.g. "\\boxed{{answer}}"
  answer_in: str = "behind_marker"  # where graders look | completion: all of it, for \boxed{} or #### without marker
  hint_template: str = HINT  # asks for a trace and shows the answer (algorithm rationalization); the wording is ours
  stop_at_special: bool = False  # every special token ends a trace, as in the released code
  max_prompt_length: int = 512  # tokens, trace_open included
  max_answer_length: int = 256  # tokens, end token included
  max_hint_length: int = 0  # tokens of a prompt that shows the answer; 0 = longest prompt, answer and template together
  overlong_prompt: str = "drop"  # "drop" the example, "cut_left" the oldest words of its turns, or "error"
  overlong_answer: str = "drop"  # "drop" the example, "cut" (a cut answer has no end token), or "error"

  def __post_init__(self):
    if self.template not in TEMPLATES and "{question}" not in self.template:
      named = errors.choices(self.template, TEMPLATES)
      raise errors.UserError(f"prompt.template: {named}, or a text that holds {{question}}")
    options = errors.pairs("prompt.template_options", self.template_options)
    object.__setattr__(self, "template_options", options)
    if not self.marker or self.marker[0].isspace():
      raise errors.UserError(f"prompt.marker: found {self.marker!r}, allowed: a text that starts with its stop token")
    for key in ("max_prompt_length", "max_answer_length"):
      if getattr(self, key) < 1:
        raise errors.UserError(f"prompt.{key}: found {getattr(self, key)}, allowed: 1 or more tokens")
    errors.require_choice("prompt.answer_in", self.answer_in, ANSWER_PLACES)
    if "{answer}" not in self.answer_template:
      raise errors.UserError(f"prompt.answer_template: found {self.answer_template!r}, allowed: a text with {{answer}}")
    if self.max_hint_length < 0 or not all(f"{{{part}}}" in self.hint_template for part in ("question", "answer")):
      found = f"found {self.hint_template!r}, {self.max_hint_length}"
      allowed = "a text with {question} and {answer}, 0 or more"
      raise errors.UserError(f"prompt.hint_template, max_hint_length: {found}, allowed: {allowed}")
    errors.require_choice("prompt.overlong_prompt", self.overlong_prompt, OVERLONG_PROMPT)
    errors.require_choice("prompt.overlong_answer", self.overlong_answer, OVERLONG_ANSWER)


@dataclasses.dataclass(frozen=True)
class PromptFormat:
  """The token ids that the compiled programs need. Hashable."""

  template: str  # "chat", "plain", or the text with {question}
  prefix_ids: tuple[int, ...]  # what the tokenizer puts before a text (its bos), for templates that don't write it
  marker_ids: tuple[int, ...]  # M tokens; the first one ends a sampled trace
  stop_ids: tuple[int, ...]  # marker_ids[0], then eos_id, then the others
  eos_id: int  # ends every answer: end_ids[0]
  pad_id: int  # fills empty columns; may be any id, eos_id included: lengths say what is valid, never ids
  vocab_size_needed: int  # rows that the embedding must have
  added_ids: tuple[int, ...]  # tokens that make_format added: their embedding and head rows are untrained
  answer_template: str = "{answer}"
  answer_in: str = "behind_marker"
  like_ids: tuple[int, ...] = ()  # rows of tokens that the model lacks start as the mean of theirs; () = of all
  open_ids: tuple[int, ...] = ()  # what ends every prompt, prompt.trace_open; unknown, and empty, with a chat template
  end_ids: tuple[int, ...] = ()  # what ends the model's text: the end of a turn, the tokenizer's and its files' ends

  def __post_init__(self):
    object.__setattr__(self, "end_ids", self.end_ids or (self.eos_id,))


def load_tokenizer(path):
  """Loads a Hugging Face tokenizer from a directory, or from the hub for "hub:owner/name". Runs no code from there.

  Raises UserError where the directory, its tokenizer files or the hub id are missing or broken.
  """
  from transformers import AutoTokenizer, PreTrainedTokenizerFast  # here: seconds that `--help` need not wait for

  if str(path).startswith(HUB):
    where, loader, options = str(path).removeprefix(HUB), AutoTokenizer, {}
  else:
    where, loader, options = str(path), AutoTokenizer, {"local_files_only": True}
    _require_tokenizer_files(pathlib.Path(path))
    if (pathlib.Path(path) / "tokenizer.json").exists():
      loader = PreTrainedTokenizerFast  # exactly what the file says, whatever class the model type would pick
  try:
    tokenizer = loader.from_pretrained(where, trust_remote_code=False, **options)
  except Exception as error:  # the libraries below raise everything from OSError to bare Exception
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise errors.UserError(f"tokenizer {path}: can't be loaded: {reason[0]}") from error
  if not hasattr(tokenizer, "backend_tokenizer"):
    kind = type(tokenizer).__name__
    raise errors.UserError(f"tokenizer {path}: found a {kind}, allowed: one that tokenizer.json can hold")
  return tokenizer


def _require_tokenizer_files(path):
  if not path.is_dir():
    raise errors.UserError(f"tokenizer {path}: no such directory (write hub:owner/name to fetch one from the hub)")
  if not any((path / name).exists() for name in TOKENIZER_FILES):
    raise errors.UserError(f"tokenizer {path}: the directory holds none of {', '.join(TOKENIZER_FILES)}")
  alone = (path / "tokenizer.model").exists() and not (path / "tokenizer.json").exists()
  if alone and importlib.util.find_spec("sentencepiece") is None:
    found = "found tokenizer.model without tokenizer.json, which needs the package sentencepiece"
    raise errors.UserError(f"tokenizer {path}: {found}: pip install nrt_jax[sentencepiece]")


def make_format(tokenizer, config: PromptConfig, end_ids=()) -> PromptFormat:
  """Finds the ids that `config` speaks of. end_ids: the end tokens that the model's own files name.

  Gives `tokenizer` (in place) the chat template of `config`, and the marker's token where it is missing. Raises
  UserError where the tokenizer has no end token, or no chat template though one is asked for.
  """
  if tokenizer.eos_token_id is None:
    raise errors.UserError("prompt.tokenizer: the tokenizer names no end token (eos_token in tokenizer_config.json)")
  if config.chat_template is not None:
    tokenizer.chat_template = read_chat_template(config.chat_template)
  if config.template == "auto":
    config = dataclasses.replace(config, template="chat" if tokenizer.chat_template else "plain")
  marker_ids, added_ids = endings.marker_ids(tokenizer, config.marker)
  chat = config.template == "chat"
  if chat:
    chat_templates.check(tokenizer, dict(config.template_options), config.system)
  end_ids = endings.end_ids(tokenizer, config, end_ids)
  if marker_ids[0] in end_ids:
    raise errors.UserError(f"prompt.marker: found {config.marker!r}, which is an end token; the marker must differ")
  special = sorted(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
  begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
  return PromptFormat(
    template=config.template,
    prefix_ids=(tokenizer.bos_token_id,) if begins and not chat else (),
    marker_ids=marker_ids,
    stop_ids=tuple(dict.fromkeys((marker_ids[0], *end_ids, *(special if config.stop_at_special else ())))),
    eos_id=end_ids[0],
    pad_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    vocab_size_needed=max(tokenizer.get_vocab().values()) + 1,
    added_ids=added_ids,
    answer_template=config.answer_template,
    answer_in=config.answer_in,
    open_ids=() if chat else tuple(encode(tokenizer, [config.trace_open])[0]),
    end_ids=end_ids,
  )


def read_chat_template(path) -> str:
  """The text of a file of Jinja. UserError where there is none."""
  try:
    return pathlib.Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(f"prompt.chat_template: {path}: no file of UTF-8 text") from error


def as_messages(question) -> list:
  """A question as a conversation: a text becomes one user turn; a sequence of messages stays as it is."""
  return [{"role": "user", "content": question}] if isinstance(question, str) else list(question)


def encode_prompts(tokenizer, form: PromptFormat, config: PromptConfig, questions, where=None) -> list:
  """Token ids of each prompt, uncut. questions: texts, or sequences of messages (dicts of role and content).

  where: a name of each question. Raises UserError, beginning with it, where the chat template refuses one.
  """
  asked, texts = [turns(config, question) for question in questions], []
  for i, messages in enumerate(asked):
    with errors.at(where and where[i]):
      texts.append(render(tokenizer, form, config, messages))
  control, rows = control_pattern(tokenizer), encode(tokenizer, texts)
  for i, messages in enumerate(asked):
    if any(control.search(m["content"]) for m in messages):
      rows[i] = encode_origins(tokenizer, *render(tokenizer, form, config, messages, origins=True))[0]
  return [[*form.prefix_ids, *ids, *trace_open(tokenizer, form, config, text)] for ids, text in zip(rows, texts)]


def cut_prompt(tokenizer, form: PromptFormat, config: PromptConfig, question, limit: int) -> list | None:
  """A prompt's token ids without the oldest ones of its turns' own text, so that `limit` are left.

  What the template writes stays, as do bos and system text; None where a single word of the turns has no room.
  """
  text, origin = render(tokenizer, form, config, turns(config, question), origins=True)
  ids, origin = encode_origins(tokenizer, text, origin)
  around = (form.prefix_ids, trace_open(tokenizer, form, config, text))
  own = [t for t, whose in enumerate(origin) if whose == QUESTION]
  over = len(ids) + sum(map(len, around)) - limit
  if over >= len(own):
    return None
  cut = set(own[: max(over, 0)])
  return [*around[0], *(i for t, i in enumerate(ids) if t not in cut), *around[1]]


def turns(config, question) -> list:
  """The messages of a question, behind the configured system text if they have none of their own."""
  messages = as_messages(question)
  if config.system and messages[0]["role"] != "system":
    return [{"role": "system", "content": config.system}, *messages]
  return messages


def render(tokenizer, form, config, messages, origins=False):
  """The text of a prompt; with `origins` (text, whose each character is), see chat_templates.render_origins."""
  how = chat_templates.render_origins if origins else chat_templates.render
  return how(tokenizer, form.template, dict(config.template_options), messages)


def trace_open(tokenizer, form, config, text) -> list:
  """The ids that open the trace behind a prompt; none where the chat template has opened it."""
  opened = form.template == "chat" and text.rstrip().endswith(config.trace_open.strip())
  return [] if opened else encode(tokenizer, [config.trace_open])[0]


def hint_question(config: PromptConfig, question, answer: str) -> list:
  """The messages of a question, with `config.hint_template` in place of the last turn's text."""
  *before, last = as_messages(question)
  parts = {"{question}": last["content"], "{answer}": answer}
  text = re.sub("|".join(parts), lambda found: parts[found.group()], config.hint_template)
  return [*before, {**last, "content": text}]


def encode_answers(tokenizer, form: PromptFormat, answers) -> list:
  """Token ids of each answer with its end token, uncut. Special tokens written in the text stay plain text."""
  texts = [form.answer_template.replace("{answer}", answer) for answer in answers]
  return [[*ids, form.eos_id] for ids in encode_data(tokenizer, texts)]


def encode_traces(tokenizer, form: PromptFormat, traces) -> list:
  """Token ids of given traces, without marker. One that holds a stop token ends there, as a sampled one would."""
  return [cut_at_stop(form, ids) for ids in encode_data(tokenizer, traces)]


def encode_example(tokenizer, form: PromptFormat, config: PromptConfig, question, answer, trace=None) -> dict:
  """Token ids of one example as lists: {"prompt", "answer", "trace"}; `trace` is empty where none is given. Uncut."""
  return {
    "prompt": encode_prompts(tokenizer, form, config, [question])[0],
    "answer": encode_answers(tokenizer, form, [answer])[0],
    "trace": encode_traces(tokenizer, form, [trace or ""])[0],
  }


def decode(tokenizer, ids) -> str:
  """The text of token ids (any sequence of ints), special tokens written out."""
  ids = [int(i) for i in ids]
  return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def pieces(tokenizer, ids) -> list[str]:
  """The text of each token; together they are the text of all.

  A character of several tokens is at the last of them, and the others are empty. Each piece is what a token adds to the
  text of the few before it: by itself it would lose its space.
  """
  ids, found, start, end = [int(i) for i in ids], [], 0, 0
  for t in range(len(ids)):
    before, after = decode(tokenizer, ids[start:end]), decode(tokenizer, ids[start : t + 1])
    whole = not after.endswith("\ufffd") or t + 1 == len(ids)
    found.append(after[len(before) :] if whole else "")
    if whole:
      start, end = end, t + 1
  return found


def cut_at_stop(form: PromptFormat, ids, passed=()) -> list:
  """The ids before the first stop token; all of them where there is none. `passed`: stop tokens that do not stop."""
  ids = [int(i) for i in ids]
  return ids[: next((t for t, i in enumerate(ids) if i in form.stop_ids and i not in passed), len(ids))]


def split_completion(form: PromptFormat, ids):
  """Splits a completion at its first whole marker: (trace_ids, answer_ids), the latter None where there is none.

  Both end before the first end token, a stop token that is no marker; half a marker is text, as in rows.find_marker.
  Where prompt.answer_in is "completion", the answer is all of it.
  """
  text, marker = cut_at_stop(form, ids, passed=form.marker_ids[:1]), list(form.marker_ids)
  starts = (t for t in range(len(text) - len(marker) + 1) if text[t : t + len(marker)] == marker)
  start = next(starts, len(text))
  if form.answer_in == "completion":
    return text[:start], text
  return text[:start], text[start + len(marker) :] if start < len(text) else None


def has_ended(form: PromptFormat, ids) -> bool:
  """Whether a completion holds an end token: one that was cut at the limit is never right, whatever stands in it."""
  return any(int(i) in completion_stops(form) for i in ids)


def completion_stops(form: PromptFormat) -> tuple:
  """The tokens that end a whole completion: all that end a trace but the marker."""
  return tuple(i for i in form.stop_ids if i != form.marker_ids[0])


def word_tokenizer(words, path=None, special=()):
  """A tokenizer of whole `words` (split at white space), then <eos>, <pad>, <unk> and `special`; saved at `path`."""
  from tokenizers import Tokenizer, models, pre_tokenizers

  tokens = list(dict.fromkeys([*words, "<eos>", "<pad>", "<unk>", *special]))
  core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
  core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return _wrap(core, path, special)


def byte_pair_tokenizer(texts, vocab_size: int, path=None, special=()):
  """A byte-level byte-pair tokenizer trained on `texts`, then <eos>, <pad>, <unk> and `special`; saved at `path`."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  core = Tokenizer(models.BPE())
  core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  core.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  plain_size = vocab_size - 3 - len(special)
  if plain_size < len(alphabet):
    raise errors.UserError(f"vocab_size: found {vocab_size}, allowed: {len(alphabet) + 3 + len(special)} or more")
  trainer = trainers.BpeTrainer(vocab_size=plain_size, initial_alphabet=alphabet, show_progress=False)
  core.train_from_iterator(texts, trainer)
  return _wrap(core, path, special)


def _wrap(core, path, special):
  from transformers import PreTrainedTokenizerFast

  # Special tokens come after the plain ones, so that the pad id is not 0 and code that assumes it fails in tests.
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
  tokenizer.add_tokens(list(special), special_tokens=True)
  if path is not None:
    tokenizer.save_pretrained(str(path))
  return tokenizer
