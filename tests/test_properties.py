"""Properties that hold for any input: configs, data files, prompts, graders. Hypothesis draws the inputs.

NRT_JAX_CASES sets how many it draws for each property: few, and always the same ones, unless it is set.
docs/results/reliability.md has the counts of a long run and what it found.
"""

import contextlib
import csv
import functools
import io
import json
import os
import time
from fractions import Fraction

import chats
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nrt_jax import __main__, config
from nrt_jax.commands import configs
from nrt_jax.data import chat_templates, control_tokens, prompts, sources
from nrt_jax.data.sources import DataConfig
from nrt_jax.errors import UserError
from nrt_jax.tasks import equivalence, grading, math_answers, multiple_choice, symbolic, table

FEW = 25
CASES = int(os.environ.get("NRT_JAX_CASES", FEW))
LONGEST = 2.0  # seconds of CPU time that a grader may take for any text, math-verify aside

drawn = settings(
  max_examples=CASES, derandomize=CASES == FEW, deadline=None, database=None,
  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip

# Any text but half characters; and one with those, as JSON may hold them.
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
WORDS = TEXT.filter(str.strip)
LEAVES = st.one_of(
  st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=20), st.just(""),
  st.sampled_from([10**400, -(2**64), 1e308, 5e-324, "auto", "all", "null", "\ud800", "\x1b[2J", "a\nb"]),
)  # fmt: skip
JSON = st.recursive(
  LEAVES,
  lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
  max_leaves=8,
)


def outcome(function, *arguments):
  """What it returns; the message of a UserError. Anything else that it raises fails the test."""
  try:
    return function(*arguments)
  except UserError as error:
    assert str(error).strip()
    return str(error)


# ---- Configs -------------------------------------------------------------------------------------------------------


@functools.cache
def keys_of(algorithm: str) -> tuple:
  """All keys of the config, with groups and leaves: "optimizer", "optimizer.eps", ..."""

  def walk(values, before):
    for key, value in values.items():
      yield before + key
      if isinstance(value, dict):
        yield from walk(value, f"{before}{key}.")

  return tuple(walk(base(algorithm), ""))


def base(algorithm: str) -> dict:
  return {**config.defaults(algorithm), "stages": [], "curriculum": None}


def reversed_keys(value):
  if isinstance(value, dict):
    return {key: reversed_keys(value[key]) for key in reversed(value)}
  return [reversed_keys(item) for item in value] if isinstance(value, list) else value


HUGE = (10**400, -(10**400), 2**63, -(2**31), 1e308, 5e-324, -1.0, 0, 1)


def like(value):
  """Values of its type: mild ones, and such as are out of bounds."""
  if isinstance(value, bool):
    return st.booleans()
  if isinstance(value, (int, float)):
    mild = st.integers(1, 64) if isinstance(value, int) else st.floats(0, 1)
    return mild | mild | st.integers() | st.floats() | st.sampled_from(HUGE)
  if isinstance(value, str):
    return st.just(value) | st.sampled_from(["auto", "all", "none", "full", "task:zigzag", "{question}{answer}"]) | TEXT
  return st.just(value) | (st.lists(LEAVES, max_size=3) if isinstance(value, list) else JSON)


STAGE = st.fixed_dictionaries(
  {}, optional={"name": st.sampled_from(["a", "b", ""]) | LEAVES, "total_steps": LEAVES, "data": JSON, "stop": JSON,
                "algorithm": st.fixed_dictionaries({"name": st.sampled_from(["nrt", "sft"])}) | JSON, "optimizer": JSON,
                "curriculum": JSON, "nonsense": JSON}
)  # fmt: skip


@st.composite
def config_values(draw):
  """The values of a config with a few keys changed, most of them to what they can't be."""
  algorithm = draw(st.sampled_from(["nrt", "sft", "grpo", "raro"]))
  values = base(algorithm)
  for key in draw(st.lists(st.sampled_from(keys_of(algorithm)), max_size=2)):
    *groups, last = key.split(".")
    node = functools.reduce(lambda node, key: node.get(key) if isinstance(node, dict) else None, groups, values)
    if isinstance(node, dict):
      node[last] = draw(like(node.get(last)) if draw(st.integers(0, 3)) else LEAVES)
  if draw(st.sampled_from([True, False, False])):
    values["stages"] = draw(st.lists(STAGE, max_size=2) | JSON)
  return values


@drawn
@given(config_values())
def test_a_config_is_read_or_refused(values):
  before = repr(values)
  runs = outcome(config.stages_of, values)
  assert repr(values) == before
  assert repr(runs) == repr(outcome(config.stages_of, values))
  if not isinstance(runs, str):
    assert runs == config.stages_of(reversed_keys(values))  # the order of keys says nothing
    assert runs == config.stages_of(json.loads(json.dumps(values)))  # as config.json keeps them
    hash(tuple(runs))


OVERRIDES = st.one_of(
  st.builds("{}={}".format, st.sampled_from(keys_of("nrt")), TEXT | st.integers() | st.floats() | JSON.map(repr)),
  st.builds("{}={}".format, st.lists(st.text("as.0_x", max_size=6)).map(".".join), TEXT),
  TEXT,
)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("properties") / "config.py"
  path.write_text("from nrt_jax.commands.configs import base_config\nget_config = base_config\n")
  return str(path)


@drawn
@given(st.lists(OVERRIDES, min_size=1, max_size=3))
def test_overrides_are_taken_or_refused_in_one_line(config_file, overrides):
  flags = [configs.CONFIG_PREFIX + text for text in overrides]

  def read():
    return config.stages_of(configs.load_config(config_file, flags))

  if not isinstance(outcome(read), str):
    return  # it would train
  with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()) as stdout:
    code = __main__.main(["train", "--config", config_file, "--workdir", config_file + ".run", *flags])
  assert code == 2 and stdout.getvalue() == "" and not os.path.exists(config_file + ".run")
  assert stderr.getvalue().startswith("nrt-jax: ") and stderr.getvalue().count("\n") == 1
  assert stderr.getvalue()[:-1].isprintable() or "\t" in stderr.getvalue()


@drawn
@given(LEAVES.filter(lambda value: not isinstance(value, str)) | JSON)
def test_a_value_that_is_written_as_json_or_python_is_read_back(value):
  assume(not isinstance(value, str))
  assert repr(configs.parse_value(json.dumps(value))) == repr(json.loads(json.dumps(value)))
  if "inf" not in repr(value) and "nan" not in repr(value):
    assert repr(configs.parse_value(repr(value))) == repr(value)


# ---- Data ----------------------------------------------------------------------------------------------------------

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


# ---- Graders -------------------------------------------------------------------------------------------------------

MATHS = [
  "\\boxed{",
  "}",
  "\\frac",
  "{",
  "####",
  " answer is ",
  "$",
  "1",
  "2,000",
  "x",
  "=",
  "%",
  "(B)",
  "^",
  "\n",
  ".",
  "or",
]
ANSWERS = st.lists(TEXT | st.sampled_from(MATHS), max_size=12).map("".join)
PLAIN_GRADERS = {name: grade for name, grade in table.GRADERS.items() if grade}


@drawn
@given(st.sampled_from(sorted(PLAIN_GRADERS)), ANSWERS, ANSWERS, st.sampled_from([1, 1, 1, 2000]))
def test_a_grader_judges_any_texts_soon(name, completion, reference, times):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(symbolic, "equivalent", lambda *_: False)  # has its own limit of time: tests/tasks/test_symbolic.py
    start = time.process_time()
    assert PLAIN_GRADERS[name](completion * times, reference) in (True, False)
    assert time.process_time() - start < LONGEST


@drawn
@given(ANSWERS.filter(str.strip), st.sampled_from([" ", "\n", "\t", "  \r\n"]), st.sampled_from(["", "the ", "A "]))
def test_words_are_right_however_they_are_spaced(text, blank, article):
  assert grading.exact_match(blank + blank.join(text.split()) + blank, text)
  assert grading.normalised_match(blank.join(text.split()), text)
  if grading.normalised(text):
    assert grading.normalised_match(article + text, text)
  assert grading.exact_match(text + " x", text) is False


# An integer n in equivalent ways.
WRITTEN_AS = (
  "{n}", "{n:,}", "{n}.", "{n}.0", "${n}$", "\\boxed{{{n}}}", "The answer is {n}.", "#### {n:,}", "**{n}**", "x = {n}",
  "It is 7 + 1 = 8.\nSo the answer is \\boxed{{{n:,}}}", "$\\${n:,}$", "\\frac{{{thrice}}}{{3}}",
)  # fmt: skip


@drawn
@given(st.integers(-(10**7), 10**7), st.integers(1, 9))
def test_numbers_are_right_however_they_are_written(n, other):
  for text in (form.format(n=n, thrice=3 * n) for form in WRITTEN_AS):
    assert math_answers.grade_math(text, str(n)), text
    if "frac" not in text:
      assert math_answers.grade_gsm8k(text, f"so #### {n}"), text
  for text in (form.format(n=n + other, thrice=3 * (n + other)) for form in WRITTEN_AS):
    assert not math_answers.grade_math(text, str(n)), text
    assert not math_answers.grade_gsm8k(text, f"#### {n}") or "frac" in text, text


@drawn
@given(st.integers(-999, 999), st.integers(1, 99), st.integers(2, 9))
def test_fractions_are_equal_to_their_multiples(above, below, times):
  sign, size = ("-" if above < 0 else ""), abs(above)
  value = Fraction(above, below)
  spelled = [f"{above}/{below}", f"\\frac{{{above}}}{{{below}}}", f"{sign}\\dfrac{{{size * times}}}{{{below * times}}}"]
  if value * 1000 == int(value * 1000):
    spelled.append(f"{float(value)}")
  for one in spelled:
    for two in spelled:
      assert equivalence.equal(one, two), (one, two)
    assert not equivalence.equal(one, f"{above + 1}/{below}"), one


@drawn
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_the_order_counts_in_tuples_and_not_in_sets(numbers, random):
  other = random.sample(numbers, len(numbers))
  one, two = (", ".join(map(str, parts)) for parts in (numbers, other))
  assert equivalence.equal(f"\\{{{one}\\}}", f"\\{{{two}\\}}") and equivalence.equal(one, two)
  assert equivalence.equal(f"({one})", f"({two})") == (numbers == other)


@drawn
@given(
  st.sampled_from("ABCDEFGHJ"),
  st.sampled_from("ABCDEFGHJ"),
  TEXT.filter(lambda text: not any(c.isalpha() for c in text)),
)
def test_a_letter_is_right_however_it_is_written(letter, other, before):
  for text in (f"{letter}", f"({letter})", f"{letter}.", f"**{letter}**", f"\\boxed{{{letter}}}",
               f"{before} The answer is ({letter}).", f"{before}\nAnswer: {letter}"):  # fmt: skip
    assert multiple_choice.grade(text, f"({other})") == (letter == other), text


@drawn
@given(
  st.sampled_from(sorted(table.TASKS.keys() - {"verse"})), st.integers(0, 9999), st.sampled_from(["train", "test"])
)
def test_a_task_accepts_its_own_answer(name, index, split):
  task = table.make_task(name, split, {})
  index = index if task.length is None else index % task.length
  question, answer, trace = task.example(index)
  assert task.example(index) == (question, answer, trace)  # the same whenever it is asked
  if task.grade is not None:
    assert task.grade(answer, answer) and task.grade(f" {'  '.join(answer.split(' '))}\n", answer)
    assert not task.grade("", answer)
