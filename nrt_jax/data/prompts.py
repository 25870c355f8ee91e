"""From text to token ids and back: prompt templates, the marker that closes a trace, and the only tokenizer code.

Prompt, trace, marker and answer are tokenised separately and never merged across a border (nrt.md section 3c), so the
sampled trace can be spliced before `marker + answer` on the device without being tokenised again.
Chat templates are data of our own: no template code is ever run. The tests hold them against `apply_chat_template`.
"""

import dataclasses
import pathlib
import re

from nrt_jax import errors
from nrt_jax.data.chat_templates import CHAT_TEMPLATES

HUB = "hub:"  # a source that starts so is fetched from the hub; anything else is a local path
ROLES = ("system", "user", "assistant")
OVERLONG_PROMPT = ("drop", "cut_left", "error")
OVERLONG_ANSWER = ("drop", "cut", "error")
ANSWER_PLACES = ("behind_marker", "completion")
HINT = "{question}\n\nThe answer is: {answer}\n\nExplain step by step how to find it."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
TEMPLATES = ("plain", "chat", *CHAT_TEMPLATES)


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """How question, trace and answer become one token sequence: `prompt | trace | marker | answer`."""

  tokenizer: str | None = None  # directory, or "hub:owner/name" to fetch; None = the model's own
  template: str = "plain"  # "plain", "chat" (detected), a family of CHAT_TEMPLATES, or a text with {question}
  system: str = ""  # system text, for conversations that have none of their own; released NRT: none (nrt.md 3c)
  marker: str = "<|response_start|>"  # closes the trace; its first piece is one token, added where missing (nrt.md 3c)
  trace_open: str = ""  # ends every prompt, e.g. "<think>\n" with marker "</think>"
  answer_template: str = "{answer}"  # what is learnt and scored of a reference answer, e.g. "\\boxed{{answer}}"
  answer_in: str = "behind_marker"  # where graders look | completion: in all of it, as for boxed answers without marker
  hint_template: str = HINT  # asks for a trace and shows the answer (algorithm rationalization); the wording is ours
  stop_at_special: bool = False  # every special token ends a trace, as in the released code (nrt.md 3c)
  max_prompt_length: int = 512  # tokens, trace_open included
  max_answer_length: int = 256  # tokens, end token included
  max_hint_length: int = 0  # tokens of a prompt that shows the answer; 0 = longest prompt, answer and template together
  overlong_prompt: str = "drop"  # "drop" the example, "cut_left" its oldest tokens, or "error"
  overlong_answer: str = "drop"  # "drop" the example, "cut" (a cut answer has no end token), or "error"

  def __post_init__(self):
    if self.template not in TEMPLATES and "{question}" not in self.template:
      named = errors.choices(self.template, TEMPLATES)
      raise errors.UserError(f"prompt.template: {named}, or a text that holds {{question}}")
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

  template: str  # the family in use, "plain", or the text with {question}
  prefix_ids: tuple[int, ...]  # what the tokenizer puts before a text (its bos), for templates that don't write it
  marker_ids: tuple[int, ...]  # M tokens; the first one ends a sampled trace
  stop_ids: tuple[int, ...]  # marker_ids[0], then eos_id, then the others
  eos_id: int  # ends every answer
  pad_id: int  # fills empty columns; may be any id, eos_id included: lengths say what is valid, never ids
  vocab_size_needed: int  # rows that the embedding must have
  added_ids: tuple[int, ...]  # tokens that make_format added: their embedding and head rows are untrained
  answer_template: str = "{answer}"
  answer_in: str = "behind_marker"


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
    return loader.from_pretrained(where, trust_remote_code=False, **options)
  except Exception as error:  # the libraries below raise everything from OSError to bare Exception
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise errors.UserError(f"tokenizer {path}: can't be loaded: {reason[0]}") from error


def _require_tokenizer_files(path):
  if not path.is_dir():
    raise errors.UserError(f"tokenizer {path}: no such directory (write hub:owner/name to fetch one from the hub)")
  if not any((path / name).exists() for name in TOKENIZER_FILES):
    raise errors.UserError(f"tokenizer {path}: the directory holds none of {', '.join(TOKENIZER_FILES)}")


def make_format(tokenizer, config: PromptConfig) -> PromptFormat:
  """Finds the ids that `config` speaks of. Adds the marker's token to `tokenizer` (in place) where it is missing.

  Raises UserError where the tokenizer has no end token or the template is not of its family.
  """
  if tokenizer.eos_token_id is None:
    raise errors.UserError("prompt.tokenizer: the tokenizer names no end token (eos_token in tokenizer_config.json)")
  template = _resolve_template(tokenizer, config.template)
  marker_ids, added_ids = _marker_ids(tokenizer, config.marker)
  eos_id = tokenizer.eos_token_id
  if marker_ids[0] == eos_id:
    raise errors.UserError(f"prompt.marker: found {config.marker!r}, which is the end token; the marker must differ")
  begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
  return PromptFormat(
    template=template,
    prefix_ids=(tokenizer.bos_token_id,) if begins and template not in CHAT_TEMPLATES else (),
    marker_ids=marker_ids,
    stop_ids=_stop_ids(tokenizer, config, template, (marker_ids[0], eos_id)),
    eos_id=eos_id,
    pad_id=eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    vocab_size_needed=max(tokenizer.get_vocab().values()) + 1,
    added_ids=added_ids,
    answer_template=config.answer_template,
    answer_in=config.answer_in,
  )


def _resolve_template(tokenizer, template):
  vocab = tokenizer.get_vocab()
  if template == "chat":
    template = next((name for name, t in CHAT_TEMPLATES.items() if t.detect in vocab), None)
  if template is None:
    families = ", ".join(CHAT_TEMPLATES)
    raise errors.UserError(f"prompt.template: 'chat' finds no known chat token in the tokenizer; allowed: {families}")
  missing = [token for token in getattr(CHAT_TEMPLATES.get(template), "needs", ()) if token not in vocab]
  if missing:
    raise errors.UserError(f"prompt.template: {template!r} needs the tokens {', '.join(missing)}, not in the tokenizer")
  return template


def _marker_ids(tokenizer, marker):
  """The ids of the marker, and those of them that had to be added: a leading <tag> or word is one token by force."""
  first = re.match(r"<[^<>\s]+>|\S+", marker).group()
  added = ()
  if first not in tokenizer.get_vocab():
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(first, special=True, normalized=False)], special_tokens=True)
    added = (tokenizer.convert_tokens_to_ids(first),)
  rest = _encode(tokenizer, [marker[len(first) :]])[0]
  return (tokenizer.convert_tokens_to_ids(first), *rest), added


def _stop_ids(tokenizer, config, template, first):
  chat = CHAT_TEMPLATES.get(template)
  ids = list(first)
  if chat and chat.end_of_turn:
    ids.append(tokenizer.convert_tokens_to_ids(chat.end_of_turn))
  if config.stop_at_special:
    ids += sorted(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
  return tuple(dict.fromkeys(ids))


def render_prompt(template: str, system: str, messages, bos="", eos="") -> str:
  """The text of a prompt. messages: dicts of role and content, the last a user turn; a system turn beats `system`."""
  if messages[0]["role"] == "system":
    system, messages = messages[0]["content"], messages[1:]
  if template in CHAT_TEMPLATES:
    return _render_chat(CHAT_TEMPLATES[template], system, [dict(m) for m in messages], bos or "", eos or "")
  question = "\n\n".join(m["content"] for m in messages)
  text = question if template == "plain" else template.replace("{question}", question)
  return f"{system}\n\n{text}" if system else text


def _render_chat(chat, system, messages, bos, eos):
  if system and chat.system is None:
    users = [m for m in messages if m["role"] == "user"]
    turn = users[0 if chat.system_turn == "first" else -1]
    turn["content"] = f"{system}\n\n{turn['content']}"
  elif system:
    messages = [{"role": "system", "content": system}, *messages]
  pieces = [chat.begin.replace("{bos}", bos)]
  for message in messages:
    # The tokens first, the content last: a {bos} inside a user's text must stay text.
    around = getattr(chat, message["role"]).replace("{bos}", bos).replace("{eos}", eos)
    pieces.append(_fill(around, message["content"]))
  return "".join(pieces) + chat.generation


def _fill(around, content):
  if "{trimmed}" in around:
    around, content = around.replace("{trimmed}", "{content}"), content.strip()
  before, _, after = around.partition("{content}")
  return before + content + after


def as_messages(question) -> list:
  """A question as a conversation: a text becomes one user turn; a sequence of messages stays as it is."""
  return [{"role": "user", "content": question}] if isinstance(question, str) else list(question)


def encode_prompts(tokenizer, form: PromptFormat, config: PromptConfig, questions) -> list:
  """Token ids of each prompt, uncut. questions: texts, or sequences of messages (dicts of role and content)."""
  bos, eos = tokenizer.bos_token, tokenizer.eos_token
  texts = [render_prompt(form.template, config.system, as_messages(q), bos, eos) for q in questions]
  trace_open = _encode(tokenizer, [config.trace_open])[0]
  return [[*form.prefix_ids, *ids, *trace_open] for ids in _encode(tokenizer, texts)]


def encode_hints(tokenizer, form: PromptFormat, config: PromptConfig, questions, answers) -> list:
  """Like `encode_prompts`, with `config.hint_template` in place of the text of each question's last turn."""
  shown = []
  for question, answer in zip(questions, answers):
    *before, last = as_messages(question)
    parts = {"{question}": last["content"], "{answer}": answer}
    text = re.sub("|".join(parts), lambda found, parts=parts: parts[found.group()], config.hint_template)
    shown.append([*before, {**last, "content": text}])
  return encode_prompts(tokenizer, form, config, shown)


def encode_answers(tokenizer, form: PromptFormat, answers) -> list:
  """Token ids of each answer with its end token, uncut. Special tokens written in the text stay plain text."""
  texts = [form.answer_template.replace("{answer}", answer) for answer in answers]
  return [[*ids, form.eos_id] for ids in _encode(tokenizer, texts, plain=True)]


def encode_traces(tokenizer, form: PromptFormat, traces) -> list:
  """Token ids of given traces, without marker. One that holds a stop token ends there, as a sampled one would."""
  return [cut_at_stop(form, ids) for ids in _encode(tokenizer, traces, plain=True)]


def encode_example(tokenizer, form: PromptFormat, config: PromptConfig, question, answer, trace=None) -> dict:
  """Token ids of one example as lists: {"prompt", "answer", "trace"}; `trace` is empty where none is given. Uncut."""
  return {
    "prompt": encode_prompts(tokenizer, form, config, [question])[0],
    "answer": encode_answers(tokenizer, form, [answer])[0],
    "trace": encode_traces(tokenizer, form, [trace or ""])[0],
  }


def _encode(tokenizer, texts, plain=False):
  """One list of ids per text. plain: data can't smuggle in control tokens by writing their names."""
  # verbose=False: no warning about the model's context length, which prompt.max_*_length governs here.
  return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=plain, verbose=False)["input_ids"]


def decode(tokenizer, ids) -> str:
  """The text of token ids (any sequence of ints), special tokens written out."""
  ids = [int(i) for i in ids]
  return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def cut_at_stop(form: PromptFormat, ids, passed=()) -> list:
  """The ids before the first stop token; all of them where there is none. `passed`: stop tokens that do not stop."""
  ids = [int(i) for i in ids]
  return ids[: next((t for t, i in enumerate(ids) if i in form.stop_ids and i not in passed), len(ids))]


def split_completion(form: PromptFormat, ids):
  """Splits a completion at its first stop token: (trace_ids, answer_ids), the latter None unless that is the marker.

  The rest of a longer marker is skipped as far as it was written; the answer ends before the next stop token. Where
  prompt.answer_in is "completion", the answer is all of it, up to the first stop token that is no marker.
  """
  ids = [int(i) for i in ids]
  trace = cut_at_stop(form, ids)
  if form.answer_in == "completion":
    return trace, cut_at_stop(form, ids, passed=form.marker_ids[:1])
  rest = ids[len(trace) :]
  if not rest or rest[0] != form.marker_ids[0]:
    return trace, None
  written = 1
  while written < len(form.marker_ids) and rest[written : written + 1] == [form.marker_ids[written]]:
    written += 1
  return trace, cut_at_stop(form, rest[written:])


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
