"""Properties of data files, and of the prompts made of what they hold."""

import csv
import functools
import io
import json

import chats
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from inputs import JSON, TEXT, WORDS, drawn, outcome, reversed_keys

from nrt_jax.data import chat_templates, control_tokens, prompts, sources
from nrt_jax.data.sources import DataConfig

PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4)
# As they should be, half of the time.
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "human", "gpt"]), "content": WORDS}) | (
  st.fixed_dictionaries({}, optional={"role": JSON, "content": TEXT | JSON, "from": JSON, "value": TEXT | JSON})
)
COLUMNS = st.fixed_dictionaries(
  {"question": WORDS | st.integers() | st.lists(TURN, max_size=3) | JSON, "answer": WORDS | st.integers(0, 3) | JSON},
  optional={
    "choices": st.lists(WORDS, min_size=2, max_size=4) | JSON, "messages": st.lists(TURN, max_size=4) | JSON,
    "weight": st.floats(0, 9) | JSON, "trace": TEXT | JSON,
  },
)  # fmt: skip
READ_AS = st.fixed_dictionaries(
  {}, optional={"messages_column": st.just("messages"), "choices_column": st.just("choices"),
                "weight_column": st.just("weight"), "trace_column": st.just("trace"), "answer_after": st.just("a"),
                "document_column": st.just("question"), "question_column": st.sampled_from(["messages", "a.b", ""])}
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("properties")


def load(path, options=None):
  return sources.load_examples(DataConfig(source=str(path), **options or {}))


def as_files(pairs, folder, end, bom):
  """The pairs as files of every kind, with other line ends, orders of keys and ways to write characters."""
  rows = [{"question": question, "answer": answer} for question, answer in pairs]
  lines = [json.dumps(reversed_keys(row) if i % 2 else row, ensure_ascii=i % 3 > 0) for i, row in enumerate(rows)]
  table = io.StringIO(newline="")
  writer = csv.DictWriter(table, ["answer", "question"], quoting=csv.QUOTE_ALL, lineterminator=end)
  writer.writeheader()
  writer.writerows(rows)
  contents = {
    "jsonl": f"{end}{end}".join(lines), "json": json.dumps({"n": 1, "rows": rows}, indent=1).replace("\n", end),
    "csv": table.getvalue(),
  }  # fmt: skip
  for suffix, content in contents.items():
    path = folder / f"x.{suffix}"
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + content.encode())
    yield path


@drawn
@given(PAIRS, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_pairs_are_read_from_any_file_that_holds_them(folder, pairs, end, bom):
  for path in as_files(pairs, folder, end, bom):
    assert [(example.question, example.answer) for example in load(path)] == pairs, path.suffix


@drawn
@given(
  PAIRS,
  st.binary(max_size=3) | st.sampled_from([b"{", b'"', b",", b"\n", b"]", b"[1]"]),
  st.floats(0, 1),
  st.integers(0, 3),
)
def test_a_file_that_was_tampered_with_is_read_or_refused(folder, pairs, new, place, cut):
  """A few bytes of it are replaced by others."""
  for path in as_files(pairs, folder, "\n", False):
    content = path.read_bytes()
    start = round(place * len(content))
    path.write_bytes(content[:start] + new + content[start + cut :])
    message = outcome(load, path)
    assert not isinstance(message, str) or str(path) in message


@drawn
@given(st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]), st.binary(max_size=60))
def test_bytes_that_are_no_file_of_examples_are_refused(folder, suffix, content):
  path = folder / f"bytes{suffix}"
  path.write_bytes(content)
  assert str(path) in outcome(load, path)


@drawn
@given(
  st.lists(COLUMNS | st.fixed_dictionaries({"messages": st.lists(TURN, max_size=4)}), min_size=1, max_size=2), READ_AS
)
def test_any_rows_are_read_or_refused(folder, rows, options):
  path = folder / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  examples = outcome(load, path, options)
  for example in [] if isinstance(examples, str) else examples:
    turns = [{"content": example.question}] if isinstance(example.question, str) else example.question
    for text in [*(turn["content"] for turn in turns), example.answer, example.trace or "x"]:
      assert text.strip() or options.get("document_column")  # which has no answer
      text.encode()  # it holds no half of a character
    assert 0 <= example.weight < float("inf")


# ---- Prompts -------------------------------------------------------------------------------------------------------

# Texts that may hold what templates write, and Jinja.
WRITTEN = st.sampled_from(
  ["<|im_end|>", "<|im_start|>user\n", "</think>", "<s>", "[/INST]", "<eos>", "{{ bos }}", "{% x %}"]
)
CONTENT = st.lists(TEXT | WRITTEN, min_size=1, max_size=3).map("".join).filter(str.strip)


@st.composite
def conversations(draw, content=CONTENT):
  system = [chats.turn("system", draw(content))] if draw(st.booleans()) else []
  rest = [chats.turn(role, draw(content)) for _ in range(draw(st.integers(0, 1))) for role in ("user", "assistant")]
  return [*system, *rest, chats.turn("user", draw(content))]


tokenizer = functools.cache(chats.tokenizer)


def controls_of(made) -> set:
  """The ids of control tokens, but for the one that stands for characters that the vocabulary lacks."""
  return set(control_tokens.control_tokens(made).values()) - {made.unk_token_id}


@drawn
@given(st.sampled_from(sorted(chats.FAMILIES)), st.sampled_from(chats.KINDS), conversations())
def test_no_text_of_a_turn_becomes_a_control_token(family, kind, turns):
  """A prompt holds those of its template, in their order, whatever the turns say."""
  made = tokenizer(family, kind)
  prompt = prompts.PromptConfig(template="chat")
  form = prompts.make_format(made, prompt)
  control = controls_of(made)

  def controls(turns):
    return [i for i in prompts.encode_prompts(made, form, prompt, [turns])[0] if i in control]

  found = outcome(controls, turns)
  if isinstance(found, str):
    assert family in (*chats.TAKE_NO_SYSTEM, "mistral_v3")
    return
  if family == "qwen3":  # a turn's text decides which of the earlier ones keep their reasoning
    return
  assert found == controls([chats.turn(turn["role"], "x") for turn in turns])


@drawn
@given(st.sampled_from(sorted(chats.FAMILIES)), conversations(TEXT.filter(str.strip)))
def test_origins_leave_the_text_of_a_prompt_as_it_is(family, turns):
  made = tokenizer(family, "bytes")
  assume(not any(control_tokens.control_pattern(made).search(turn["content"]) for turn in turns))
  text = outcome(chat_templates.render, made, "chat", {}, turns)
  both = outcome(chat_templates.render_origins, made, "chat", {}, turns)
  if isinstance(text, str) and isinstance(both, tuple):
    assert both[0] == text and len(both[1]) == len(text)
  else:
    assert text == both  # refused, in the same words


@drawn
@given(st.sampled_from(["plain", "Q: {question}\nA:", "{question}"]), conversations(), st.sampled_from(chats.KINDS))
def test_plain_templates_hold_the_turns_and_no_control_token(template, turns, kind):
  made = tokenizer("qwen3", kind)
  text, origin = chat_templates.render_origins(made, template, {}, turns)
  assert text == chat_templates.render(made, template, {}, turns) and len(text) == len(origin)
  own = {whose: "".join(c for c, o in zip(text, origin) if o == whose) for whose in (control_tokens.QUESTION, "s")}
  system = turns[0]["content"] if turns[0]["role"] == "system" else ""
  asked = turns[1:] if system else turns
  assert own == {control_tokens.QUESTION: "\n\n".join(turn["content"] for turn in asked), "s": system}
  ids, whose = control_tokens.encode_origins(made, text, origin)
  assert controls_of(made).isdisjoint(ids) and len(ids) == len(whose)


@drawn
@given(CONTENT)
def test_data_is_decoded_to_what_it_was(text):
  made = tokenizer("qwen3", "bytes")
  assume(control_tokens.ESCAPE not in text)
  (ids,) = control_tokens.encode_data(made, [text])
  assert made.decode(ids, clean_up_tokenization_spaces=False) == text
