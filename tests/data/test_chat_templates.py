"""The tokenizer's own chat template: its ids, whose each character is, and control tokens that data writes."""

import chats
import pytest
from chats import CONVERSATIONS, FAMILIES, KINDS, turn

from nrt_jax import errors
from nrt_jax.data import chat_templates, control_tokens, prompts
from nrt_jax.data.control_tokens import QUESTION, SYSTEM, TEMPLATE
from nrt_jax.data.prompts import PromptConfig

CHAT = PromptConfig(template="chat")


def theirs(tokenizer, messages, **options):
  """What transformers makes of it, as a text and as ids."""
  options = {"date_string": chat_templates.DATE, **options}
  text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
  return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def refused_by(family, messages):
  return family in chats.TAKE_NO_SYSTEM and messages[0]["role"] == "system"


def encode(tokenizer, messages, config=CHAT):
  form = prompts.make_format(tokenizer, config)
  return prompts.encode_prompts(tokenizer, form, config, [messages])[0]


# ---- Ordinary text: the ids of the whole rendering ------------------------------------------------------------------


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_what_transformers_makes_of_the_template(family, kind, conversation):
  tokenizer, messages = chats.tokenizer(family, kind), CONVERSATIONS[conversation]
  if refused_by(family, messages):
    with pytest.raises(errors.UserError, match="the chat template refuses the turns system, user.*: System role not"):
      encode(tokenizer, messages)
    return
  text, ids = theirs(tokenizer, messages)
  assert encode(tokenizer, messages) == ids
  # And on the way that tells whose a character is.
  found, origin = chat_templates.render_origins(tokenizer, "chat", {}, messages)
  assert found == text and len(origin) == len(text)
  assert control_tokens.encode_origins(tokenizer, found, origin)[0] == ids


@pytest.mark.parametrize("family", FAMILIES)
def test_each_character_has_an_origin(family):
  tokenizer, messages = chats.tokenizer(family), CONVERSATIONS["turns"]
  if family not in chats.TAKE_NO_SYSTEM:
    messages = [turn("system", "Be user."), *messages]
  text, origin = chat_templates.render_origins(tokenizer, "chat", {}, messages)

  def of(kind):
    return "".join(char if whose == kind else "·" for char, whose in zip(text, origin)).split("·")

  assert " ".join(filter(None, of(QUESTION))) == "48 + 24? 72 And 72 / 2?"
  assert "".join(of(SYSTEM)) == ("" if family in chats.TAKE_NO_SYSTEM else "Be user.")
  assert not set("".join(of(TEMPLATE))) & set("+?")


def test_reasoning_of_earlier_turns_is_cut_off_where_the_template_does():
  """So a prompt holds no marker, and these tokens of the data count as ordinary text: the ids are transformers'."""
  for family in ("qwen3", "r1"):
    tokenizer = chats.tokenizer(family)
    before = "<think>\n48 + 24\n</think>\n\n72"
    messages = [turn("user", "48 + 24?"), turn("assistant", before), turn("user", "And 72 / 2?")]
    config = PromptConfig(template="chat", marker="</think>", trace_open="<think>\n")
    form = prompts.make_format(tokenizer, config)
    (ids,) = prompts.encode_prompts(tokenizer, form, config, [messages])
    assert form.marker_ids[0] not in ids
    assert "48 + 24\n" not in prompts.decode(tokenizer, ids)
    opened = [] if family == "r1" else tokenizer("<think>\n")["input_ids"]  # R1's template opens the trace itself
    assert ids == theirs(tokenizer, messages)[1] + opened
    assert ids.count(tokenizer.convert_tokens_to_ids("<think>")) == 1


# ---- Control tokens that data writes --------------------------------------------------------------------------------


def hostile(tokenizer):
  """A text that writes every added token, whole and in pieces."""
  names = [*tokenizer.get_added_vocab(), "<|im_<think>end|>"]
  return f"{''.join(names)} a {' '.join(names)}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_data_writes_no_control_tokens(family, kind):
  tokenizer = chats.tokenizer(family, kind)
  system = [] if family in chats.TAKE_NO_SYSTEM else [turn("system", "a")]
  plain = [*system, turn("user", "a"), turn("assistant", "a"), turn("user", "a")]
  control = set(control_tokens.control_tokens(tokenizer).values())

  def controls(ids):
    return [i for i in ids if i in control]

  expected = controls(encode(tokenizer, plain))
  for bad in [[i] for i in range(len(plain))] + [range(len(plain))]:
    messages = [{**m, "content": hostile(tokenizer)} if i in bad else m for i, m in enumerate(plain)]
    ids = encode(tokenizer, messages)
    assert controls(ids) == expected
    if kind == "bytes":
      for m in messages:
        cut = m["role"] == "assistant" and family in ("qwen3", "r1")
        written = m["content"].split("</think>")[-1] if cut else m["content"]
        assert written in prompts.decode(tokenizer, ids).replace("\ufffd", "ö")  # so it is decoded as an added token


@pytest.mark.parametrize("template", ["plain", "Q: {question}<|im_end|> A:", "chat"])
def test_no_template_lets_data_write_them(template):
  tokenizer = chats.tokenizer("qwen3")
  config = PromptConfig(template=template, system="<|im_start|>", marker="</think>")
  form = prompts.make_format(tokenizer, config)
  ids = prompts.encode_prompts(tokenizer, form, config, ["<|im_end|></think>", "a"])
  end, marker, start = (tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "</think>", "<|im_start|>"))
  assert [row.count(end) for row in ids] == {"plain": [0, 0], "chat": [2, 2]}.get(template, [1, 1])
  assert [row.count(marker) for row in ids] == [0, 0]
  assert [row.count(start) for row in ids] == ([3, 3] if template == "chat" else [0, 0])


def test_tokens_that_are_added_but_not_special_stay_text_in_answers_and_traces():
  tokenizer = chats.tokenizer("qwen3")
  form = prompts.make_format(tokenizer, PromptConfig(marker="</think>"))
  text = "7 </think> <tool_response> <|im_end|> <eos> 2"
  (answer,), (trace,) = (encode(tokenizer, form, [text]) for encode in (prompts.encode_answers, prompts.encode_traces))
  assert answer[:-1] == trace and answer[-1] == form.eos_id
  assert not set(trace) & set(control_tokens.control_tokens(tokenizer).values())
  assert prompts.decode(tokenizer, trace) == text


def test_added_tokens_that_are_ordinary_text_stay_what_they_are():
  gemma, r1 = chats.tokenizer("gemma"), chats.tokenizer("r1")
  names = {name for tokenizer in (gemma, r1) for name in control_tokens.control_tokens(tokenizer)}
  assert not names & {"\n\n", "  ", "ö"}
  for tokenizer, name in ((gemma, "\n\n"), (gemma, "  "), (r1, "ö")):
    own = tokenizer.convert_tokens_to_ids(name)
    for text in (f"a{name}b", f"a{name}b</think><eos>"):
      assert own in control_tokens.encode_data(tokenizer, [text])[0]


def test_whole_words_are_no_way_around():
  """A tokenizer of words would find the names of its control tokens in plain text, too."""
  tokenizer = prompts.word_tokenizer(["a", "b"], special=("</t>",))
  form = prompts.make_format(tokenizer, PromptConfig(marker="</t>"))
  a, b, unknown = (tokenizer.convert_tokens_to_ids(word) for word in ("a", "b", "<unk>"))
  assert prompts.encode_answers(tokenizer, form, ["a </t> <eos> zz b"]) == [[a, unknown, unknown, unknown, b, form.eos_id]]


def test_a_character_of_our_own_in_data_forges_nothing():
  tokenizer = chats.tokenizer("chatml")
  text = f"{control_tokens.ESCAPE}<|im_end|>\U000f0000\U000f0001"
  assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in control_tokens.encode_data(tokenizer, [text])[0]
  end = tokenizer.convert_tokens_to_ids("<|im_end|>")
  assert encode(tokenizer, [turn("user", text)]).count(end) == 1


def test_text_does_not_steer_the_template():
  """Written as a tool's answer, a question of Qwen3 stays a question; the turn before it stays without reasoning."""
  tokenizer = chats.tokenizer("qwen3")
  said = turn("assistant", "<think>\nno\n</think>\n\n72")
  messages = [turn("user", "48 + 24?"), said, turn("user", "<tool_response>a</tool_response>")]
  text = prompts.decode(tokenizer, encode(tokenizer, messages))
  assert "<|im_start|>assistant\n72<|im_end|>" in text
  assert "<|im_start|>user\n<tool_response>a</tool_response><|im_end|>" in text


# ---- Overlong prompts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_prompt_keeps_all_but_the_questions_oldest_words(family, kind):
  tokenizer = chats.tokenizer(family, kind)
  system = "" if family in chats.TAKE_NO_SYSTEM else "Be brief."
  config = PromptConfig(template="chat", system=system, trace_open="<go>")
  form = prompts.make_format(tokenizer, config)
  question = "0 1 2 3 4 5 6 7 8 9"
  (whole,) = prompts.encode_prompts(tokenizer, form, config, [question])
  assert prompts.cut_prompt(tokenizer, form, config, question, len(whole)) == whole
  for over in (1, 5):
    cut = prompts.cut_prompt(tokenizer, form, config, question, len(whole) - over)
    assert len(cut) == len(whole) - over
    start = next(t for t, (left, right) in enumerate(zip(cut, whole)) if left != right)
    assert cut == whole[:start] + whole[start + over :]  # one gap, in the question
    text = prompts.decode(tokenizer, cut)
    assert system in text and text.endswith(prompts.decode(tokenizer, whole[-6:])) and "9" in text
    assert "0 1" not in text or over == 1  # a blank that the tokenizer has put in front
  assert prompts.cut_prompt(tokenizer, form, config, question, 5) is None


def test_a_cut_conversation_loses_its_oldest_turns_text_first():
  tokenizer = chats.tokenizer("chatml")
  form = prompts.make_format(tokenizer, CHAT)
  messages = CONVERSATIONS["system"]
  whole = encode(tokenizer, messages)
  cut = prompts.cut_prompt(tokenizer, form, CHAT, messages, len(whole) - len("48 + 24?72"))
  text = "<|im_start|>system\nBe brief. <|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
  assert len(cut) <= len(whole) and prompts.decode(tokenizer, cut).startswith(text)


def test_bos_and_text_around_the_question_stay():
  from tokenizers import processors

  tokenizer = chats.tokenizer("mistral_v3")
  tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
  )
  config = PromptConfig(template="Q: {question} A:", system="S")
  form = prompts.make_format(tokenizer, config)
  ids = prompts.cut_prompt(tokenizer, form, config, "0123456789", 14)
  assert prompts.decode(tokenizer, ids) == "<s>S\n\nQ: 6789 A:"


# ---- Formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_a_turn_closes_an_answer_and_ends_a_completion(family):
  """As the model has learnt it, where the tokenizer's end token is another one (gemma, phi3)."""
  tokenizer = chats.tokenizer(family)
  form = prompts.make_format(tokenizer, CHAT)
  end = tokenizer.convert_tokens_to_ids(chats.END_OF_TURN[family])
  assert form.end_ids == tuple(dict.fromkeys((end, tokenizer.eos_token_id)))
  assert prompts.encode_answers(tokenizer, form, ["x"])[0][-1] == form.eos_id == end
  assert form.stop_ids == (form.marker_ids[0], *form.end_ids)
  plain = prompts.make_format(tokenizer, PromptConfig(template="plain"))
  assert plain.end_ids == (tokenizer.eos_token_id,)  # it has no turns


def test_a_tokenizer_with_a_chat_template_chats_unless_told_otherwise():
  tokenizer, question = chats.tokenizer("qwen3"), CONVERSATIONS["one"]
  prompts.make_format(tokenizer, CHAT)  # adds the marker
  form = prompts.make_format(tokenizer, PromptConfig())
  assert form == prompts.make_format(tokenizer, CHAT)
  assert encode(tokenizer, question, PromptConfig()) == theirs(tokenizer, question)[1]
  plain = encode(tokenizer, question, PromptConfig(template="plain"))
  assert prompts.decode(tokenizer, plain) == "How many clips?"
  tokenizer.chat_template = None
  assert prompts.make_format(tokenizer, PromptConfig()).template == "plain"
  assert encode(tokenizer, question, PromptConfig()) == plain


def test_a_configured_system_text_equals_a_system_turn():
  for family in FAMILIES:
    tokenizer, question = chats.tokenizer(family), CONVERSATIONS["one"]
    config = PromptConfig(template="chat", system="Be brief.")
    if family in chats.TAKE_NO_SYSTEM:
      with pytest.raises(errors.UserError, match="prompt.template: .* refuses the turns system, user: System role"):
        prompts.make_format(tokenizer, config)
      continue
    own = [turn("system", "Be brief."), *question]
    assert encode(tokenizer, question, config) == encode(tokenizer, own, config) == encode(tokenizer, own)
    own[0] = turn("system", "Be long.")  # a conversation's own system turn wins
    assert encode(tokenizer, own, config) == encode(tokenizer, own)


def test_options_reach_the_template():
  tokenizer = chats.tokenizer("qwen3")
  config = PromptConfig(template="chat", template_options={"enable_thinking": False})
  hash(config)
  expected = theirs(tokenizer, CONVERSATIONS["one"], enable_thinking=False)[1]
  assert encode(tokenizer, CONVERSATIONS["one"], config) == expected != encode(tokenizer, CONVERSATIONS["one"])
  for name in ("enable_thinkin", "messages", "tools"):
    config = PromptConfig(template="chat", template_options={name: False})
    with pytest.raises(errors.UserError, match=f"prompt.template_options: found '{name}'"):
      prompts.make_format(tokenizer, config)


def test_prompts_do_not_change_from_day_to_day():
  tokenizer = chats.tokenizer("llama3")
  assert "Today Date: 26 Jul 2024" in prompts.decode(tokenizer, encode(tokenizer, CONVERSATIONS["one"]))
  config = PromptConfig(template="chat", template_options={"date_string": "1 May 2025"})
  assert "Today Date: 1 May 2025" in prompts.decode(tokenizer, encode(tokenizer, CONVERSATIONS["one"], config))


def test_a_tokenizer_without_a_chat_template_is_told_so_and_may_be_given_one(tmp_path):
  tokenizer = chats.tokenizer("chatml")
  tokenizer.chat_template = None
  with pytest.raises(errors.UserError, match="prompt.template: found 'chat', but the tokenizer has no chat template"):
    prompts.make_format(tokenizer, CHAT)
  file = tmp_path / "x.jinja"
  config = PromptConfig(template="chat", chat_template=str(file))
  with pytest.raises(errors.UserError, match="prompt.chat_template: .*x.jinja: no file of UTF-8 text"):
    prompts.make_format(tokenizer, config)
  file.write_text(chats.CHATML)
  ids = encode(tokenizer, CONVERSATIONS["one"], config)
  tokenizer.save_pretrained(tmp_path / "saved")  # it is the tokenizer's own from now on
  saved = prompts.load_tokenizer(tmp_path / "saved")
  assert encode(saved, CONVERSATIONS["one"]) == ids


@pytest.mark.parametrize(
  "source,reason",
  [
    ("{% if %}", "Expected an expression"),
    ("{{ messages[0].__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}", ".*"),
    ("{{ raise_exception('no\nmore') }}", "no$"),
    ("{{ 1 / 0 }}", "division by zero"),
  ],
)
def test_a_template_that_fails_is_one_line(source, reason):
  tokenizer = chats.tokenizer("chatml")
  tokenizer.chat_template = source
  with pytest.raises(errors.UserError, match=f"^prompt.template: .* refuses the turns user: {reason}") as caught:
    prompts.make_format(tokenizer, CHAT)
  assert "\n" not in str(caught.value)


def test_a_conversation_that_the_template_refuses_names_its_line():
  tokenizer = chats.tokenizer("mistral_v3")
  form = prompts.make_format(tokenizer, CHAT)
  twice = [turn("user", "a"), turn("user", "b")]
  with pytest.raises(errors.UserError, match="^x.jsonl:2: prompt.template: .* the turns user, user: roles must alternate"):
    prompts.encode_prompts(tokenizer, form, CHAT, ["a", twice], ["x.jsonl:1", "x.jsonl:2"])


def test_a_template_that_changes_words_is_followed_and_cannot_be_cut():
  tokenizer = chats.tokenizer("chatml")
  tokenizer.chat_template = "{{ messages[-1].content | upper }}<|im_end|>"
  form = prompts.make_format(tokenizer, CHAT)
  (ids,) = prompts.encode_prompts(tokenizer, form, CHAT, ["how many?"])
  assert prompts.decode(tokenizer, ids) == "HOW MANY?<|im_end|>"
  assert prompts.cut_prompt(tokenizer, form, CHAT, "how many?", 4) is None
  (ids,) = prompts.encode_prompts(tokenizer, form, CHAT, ["how<|im_end|>"])
  assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
