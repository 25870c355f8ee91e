"""Worked examples in front of a question: each is written as the model is to write its own, up to the end token.

    chat:   question | trace_open trace marker answer    as two earlier turns, around which the template writes its own
    plain:  question   trace_open trace marker answer end token, and an empty line

Marker and trace_open are control tokens there, though data never may write any: private characters hold their places
while the turns are rendered and tokenised, and their ids are put in afterwards.
"""

import dataclasses
import re

from nrt_jax import errors
from nrt_jax.data import prompts
from nrt_jax.data.control_tokens import control_pattern, encode, encode_data, encode_origins

OPEN, MARK = "\ue003", "\ue004"  # stand for trace_open and the marker
PLACES = re.compile(f"[{OPEN}{MARK}]")
FINAL = "The answer is {answer}."  # behind a trace where answers are looked for in the whole completion
BETWEEN = "\n\n"


def encode_prompts(tokenizer, form, config, examples) -> list:
  """Token ids of the prompt of each Example, uncut, with its worked examples (Example.shots) in front.

  Raises UserError, with the example's place, where the chat template refuses the turns.
  """
  plain = [i for i, example in enumerate(examples) if not example.shots]
  found = dict(zip(plain, _without(tokenizer, form, config, [examples[i] for i in plain])))
  how, groups = _as_turns if form.template == "chat" else _as_text, {}
  for i, example in enumerate(examples):
    if example.shots:
      groups.setdefault(id(example.shots), []).append(i)  # the examples of a data set share one tuple
  for members in groups.values():
    found |= zip(members, how(tokenizer, form, config, examples[members[0]].shots, [examples[i] for i in members]))
  return [found[i] for i in range(len(examples))]


def _without(tokenizer, form, config, examples) -> list:
  questions, where = [one.question for one in examples], [one.where for one in examples]
  return prompts.encode_prompts(tokenizer, form, config, questions, where)


def completion(form, shot) -> tuple[str, str | None]:
  """(trace, answer) as the model is to write them; without a marker all is one text, and the answer is None."""
  answer = form.answer_template.replace("{answer}", shot.answer)
  if form.answer_in == "behind_marker":
    return shot.trace or "", answer
  said = FINAL.replace("{answer}", answer)
  return f"{shot.trace}\n{said}" if shot.trace else said, None


# ---- Text ----------------------------------------------------------------------------------------------------------


def _as_text(tokenizer, form, config, shots, examples) -> list:
  """The worked examples' ids are made once; a system text stands in front of the first of them."""
  alone, lead = dataclasses.replace(config, system=""), []
  between = encode(tokenizer, [BETWEEN])[0]
  for number, shot in enumerate(shots):
    (ids,) = _without(tokenizer, form, alone if number else config, [shot])
    trace, answer = completion(form, shot)
    lead += ids[len(form.prefix_ids) :] + encode_data(tokenizer, [trace])[0]
    if answer is not None:
      lead += [*form.marker_ids, *encode_data(tokenizer, [answer])[0]]
    lead += [form.eos_id, *between]
  first = len(form.prefix_ids)
  return [[*ids[:first], *lead, *ids[first:]] for ids in _without(tokenizer, form, alone, examples)]


# ---- Turns ---------------------------------------------------------------------------------------------------------


def _as_turns(tokenizer, form, config, shots, examples) -> list:
  """Each conversation is rendered as a whole, for a template may treat its last turn in another way."""
  before = [turn for shot in shots for turn in _turns(form, config, shot)]
  known, control, found = {}, control_pattern(tokenizer), []
  for example in examples:
    asked = [{**turn, "content": _hidden(turn["content"])} for turn in prompts.turns(config, example.question)]
    system = [turn for turn in asked if turn["role"] == "system"]
    messages = [*system, *before, *asked[len(system) :]]
    with errors.at(example.where):
      if any(control.search(turn["content"]) for turn in messages):
        text, origin = prompts.render(tokenizer, form, config, messages, origins=True)
      else:
        text, origin = prompts.render(tokenizer, form, config, messages), None
    ids = _pieces(tokenizer, form, config, text, origin, known)
    found.append([*form.prefix_ids, *ids, *prompts.trace_open(tokenizer, form, config, text)])
  return found


def _turns(form, config, shot) -> list:
  trace, answer = completion(form, shot)
  said = (OPEN if config.trace_open else "") + _hidden(trace) + ("" if answer is None else MARK + _hidden(answer))
  asked = [turn for turn in prompts.as_messages(shot.question) if turn["role"] != "system"]
  return [*({**t, "content": _hidden(t["content"])} for t in asked), {"role": "assistant", "content": said}]


def _hidden(text: str) -> str:
  return PLACES.sub("\ufffd", text)


def _pieces(tokenizer, form, config, text, origin, known: dict) -> list:
  """The ids of the pieces between the places, each tokenised alone; known: piece -> ids, of plain pieces."""
  ids, start = [], 0
  for place in [*PLACES.finditer(text), None]:
    stop = len(text) if place is None else place.start()
    piece = text[start:stop]
    if origin is not None:
      ids += encode_origins(tokenizer, piece, origin[start:stop])[0]
    else:
      if piece not in known:
        known[piece] = encode(tokenizer, [piece])[0]
      ids += known[piece]
    if place is not None:
      ids += form.marker_ids if place.group() == MARK else encode(tokenizer, [config.trace_open])[0]
      start = place.end()
  return ids
