"""Our model class against the harness's own Hugging Face backend on the same weights, and what only ours does."""

import chats
import harness_tasks
import pytest

pytest.importorskip("lm_eval")

from lm_eval import evaluator  # noqa: E402  (the package comes first)
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402

from nrt_jax.errors import UserError  # noqa: E402
from nrt_jax.harness.model import NrtLM, read_sampling  # noqa: E402
from nrt_jax.harness.tasks import open_tasks  # noqa: E402

NAMES = list(harness_tasks.TASKS)
CONTEXTS = ["The fox is", "A dog sat by the door", "Why? Nobody", "hill"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return tmp_path_factory.mktemp("harness")


@pytest.fixture(scope="module")
def tasks(place):
  return open_tasks(NAMES, str(harness_tasks.write_tasks(place / "tasks")))


@pytest.fixture(scope="module")
def ours(place):
  return NrtLM(4, path=str(harness_tasks.make_model(place / "model", chat_template=chats.CHATML)), data=1)


@pytest.fixture(scope="module")
def theirs(ours, place):
  for package in ("torch", "accelerate", "peft"):
    pytest.importorskip(package)
  from lm_eval.models.huggingface import HFLM

  return HFLM(pretrained=str(place / "model"), device="cpu", dtype="float32", batch_size=3)


def asked(contexts, **how) -> list[Instance]:
  return [Instance("generate_until", {}, (context, how), i) for i, context in enumerate(contexts)]


def run(model, tasks, **how) -> dict:
  return evaluator.simple_evaluate(model, tasks=NAMES, task_manager=tasks, num_fewshot=1, bootstrap_iters=0, **how)


def assert_alike(own, other):
  """Texts and verdicts are equal, log-probabilities are up to rounding."""
  if isinstance(own, float):
    assert own == pytest.approx(other, rel=2e-6, abs=2e-5)
  elif isinstance(own, (list, tuple)):
    assert len(own) == len(other)
    for one, another in zip(own, other):
      assert_alike(one, another)
  else:
    assert own == other and type(own) is type(other)


# ---- As the other backend ------------------------------------------------------------------------------------------


def test_every_example_is_that_of_the_other_backend(ours, theirs, tasks):
  """Through the chat template, with one example in front, which overlong contexts lose: answers and metrics."""
  found, expected = (run(model, tasks, apply_chat_template=True) for model in (ours, theirs))
  for name in NAMES:
    assert len(found["samples"][name]) == len(harness_tasks.TASKS[name]["rows"])
    for own, other in zip(found["samples"][name], expected["samples"][name], strict=True):
      assert own["arguments"] == other["arguments"]
      assert_alike(own["resps"], other["resps"])
    metrics, others = found["results"][name], expected["results"][name]
    assert metrics.keys() == others.keys() and len(metrics) > 3
    for key, value in metrics.items():
      assert value == (pytest.approx(others[key], rel=1e-5) if isinstance(value, float) else others[key])
  texts = [sample["resps"][0][0] for sample in found["samples"]["local_answer"]]
  assert len(set(texts)) == len(texts) and all(texts)
  assert found["config"]["model_dtype"] == "float32" and not found["config"]["max_trace_length"]


def test_greedy_verdicts_are_those_of_the_other_backend(ours, theirs):
  """Continuations that greedy decoding would write, and others that only begin so."""
  rows = []
  for context in CONTEXTS[:2]:
    ids = ours.tok_encode(context)
    ((_, written),) = ours._complete([context], read_sampling({"max_gen_toks": 5, "until": []}), 0)
    wrong = (written[-1] + 1) % 300
    rows += [(None, ids, written), (None, ids, [*written[:-1], wrong]), (None, ids, [wrong, *written[1:]])]
  found, expected = ours._loglikelihood_tokens(rows, True), theirs._loglikelihood_tokens(rows, True)
  assert [greedy for _, greedy in found] == [True, False, False] * 2
  assert_alike(found, expected)


def test_text_in_and_out_is_that_of_the_other_backend(ours, theirs):
  turns = [chats.turn("system", "Be brief."), chats.turn("user", " Why? "), chats.turn("assistant", "Nobody")]
  for history, generation in ((turns[:2], True), (turns, False), (turns[1:2], True)):
    assert ours.apply_chat_template(history, generation) == theirs.apply_chat_template(history, generation)
  texts = ["", " a", "<|im_start|>user\nWhy?", "<eos>The fox", "Zoë 🙂"]
  assert [ours.tok_encode(text) for text in texts] == [theirs.tok_encode(text) for text in texts]
  assert (ours.prefix_token_id, ours.max_length, ours.tokenizer_name, ours.chat_template(True)) == (
    theirs.prefix_token_id, theirs.max_length, theirs.tokenizer_name, theirs.chat_template(True),
  )  # fmt: skip


def test_the_harness_makes_a_model_by_name(place, ours):
  assert get_model("nrt_jax") is NrtLM
  made = NrtLM.create_from_arg_string(f"path={place / 'model'},data=1,max_length=48", {"batch_size": "auto:4"})
  assert (made.batch_size, made.max_length) == (32, 48)
  with pytest.raises(UserError, match="model_args: found 'pat', allowed: .*did you mean 'path'"):
    NrtLM.create_from_arg_string("pat=model")
  with pytest.raises(UserError, match="--batch: found 0, allowed: 1 or more"):
    NrtLM.create_from_arg_obj({"path": str(place / "model"), "data": 1}, {"batch_size": 0, "device": "cuda:0"})


# ---- What only ours does -------------------------------------------------------------------------------------------


def test_a_mesh_changes_nothing(place, ours):
  shared = NrtLM(3, path=str(place / "model"), data=2, tensor=2)
  assert dict(shared.opened.setup.mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 2} and shared.batch_size == 4
  requests = [Instance("loglikelihood", {}, (context, " the fox"), i) for i, context in enumerate(CONTEXTS)]
  for (logp, greedy), (alone, alone_greedy) in zip(shared.loglikelihood(requests), ours.loglikelihood(requests)):
    assert logp == pytest.approx(alone, abs=1e-4) and greedy == alone_greedy
  how = {"until": ["e", " \n"], "max_gen_toks": 12}
  assert shared.generate_until(asked(CONTEXTS, **how)) == ours.generate_until(asked(CONTEXTS, **how))


def test_samples_depend_on_the_seed_and_the_request(ours):
  how = {"until": [], "do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
  first, again = (ours.generate_until(asked(["The fox is"] * 3, **how)) for _ in range(2))
  assert first == again and len(set(first)) == 3


@pytest.mark.parametrize(
  "given,message",
  [
    ({"num_beams": 2}, "generation_kwargs: found 'num_beams', allowed: do_sample"),
    ({"max_gen_toks": 64}, "max_gen_toks: found 64, allowed: fewer than the model's 64 positions"),
  ],
)
def test_a_request_that_nobody_can_answer_is_refused(ours, given, message):
  with pytest.raises(UserError, match=message):
    ours.generate_until(asked(["The fox is"], **given))


def test_a_row_that_ends_too_soon_is_sampled_again(ours, monkeypatch):
  """As where the search reads a blank that the whole text does not begin with."""
  how = {"until": ["e", " \n"], "max_gen_toks": 12}
  expected, tables = ours.generate_until(asked(CONTEXTS, **how)), []
  table = ours._stop_table(read_sampling(how))
  monkeypatch.setattr(ours, "_stop_table", lambda asked: tables.append(table) or 0 * table)  # every token ends a row
  assert ours.generate_until(asked(CONTEXTS, **how)) == expected and len(tables) == 1


def test_a_row_ends_with_its_stop_string(ours):
  """Not at the limit, nor with the batch."""
  table = ours._stop_table(read_sampling({"until": ["e", " \n"]}))
  given = read_sampling({"max_gen_toks": 16, "until": []})
  whole = dict(ours._complete(CONTEXTS, given, 0))
  for index, ids in ours._complete(CONTEXTS, given, 0, table):
    text = ours.tokenizer.decode(whole[index], skip_special_tokens=True)
    assert ids == whole[index][: len(ids)] and ("e" in text) == (len(ids) < len(whole[index]))
    assert "e" not in ours.tokenizer.decode(ids[:-1], skip_special_tokens=True)


def test_contexts_that_lose_tokens_are_counted(ours, capsys):
  requests = [Instance("loglikelihood", {}, (text, " fox"), i) for i, text in enumerate(("The fox " * 40, "The"))]
  ours.loglikelihood(requests)
  ours.generate_until(asked(["The fox " * 40, "The"], max_gen_toks=12))
  lost = "1 of 2 contexts are longer than the model's 64 positions leave room for: their oldest tokens are lost"
  assert capsys.readouterr().err.count(f"nrt-jax: warning: harness: {lost}\n") == 2


def test_a_continuation_without_tokens_is_refused(ours):
  with pytest.raises(UserError, match="continuation '': found 0 tokens behind its context, allowed: 1 to 64"):
    ours.loglikelihood([Instance("loglikelihood", {}, ("The fox is", ""), 0)])


@pytest.fixture(scope="module")
def marker(ours):
  """(a word that the model writes by itself, the context behind which it does, all that it writes there as ids)."""
  tokenizer = ours.tokenizer
  for context in [*CONTEXTS, "The cat slept", "ran over", "by the", "knows. The", "red", "door,"]:
    ((_, ids),) = ours._complete([context], read_sampling({"max_gen_toks": 16, "until": []}), 0)
    for place, i in enumerate(ids):
      word = tokenizer.convert_ids_to_tokens(i)
      if 2 <= place < 12 and word.isascii() and not word[0].isspace() and "<" not in word and ids.index(i) == place:
        return word, context, ids
  raise AssertionError("the model writes no word")


def test_only_what_stands_behind_the_marker_is_handed_over(place, ours, marker):
  """Limits and stop strings are the answer's; a trace that is never closed has none."""
  word, context, ids = marker
  place_of = ids.index(ours.tokenizer.convert_tokens_to_ids(word))
  before, behind = ids[:place_of], ids[place_of + 1 :]
  source = {"path": str(place / "model"), "data": 1, "marker": word, "max_trace_length": 15 - len(behind[:2])}
  how = {"until": [], "max_gen_toks": 2}
  thinking, keeping = NrtLM(1, **source), NrtLM(1, keep_traces=True, **source)
  answer = ours.tokenizer.decode(behind[:2], skip_special_tokens=True).lstrip()
  assert thinking.generate_until(asked([context], **how)) == [answer]
  assert thinking.generate_until(asked([context], **{**how, "until": [answer[0]]})) == [""]
  assert keeping.generate_until(asked([context], **how)) == [ours.tokenizer.decode(before) + word + answer]
  stopped = read_sampling({"until": [answer[-1]], "max_gen_toks": 2})
  assert thinking._text(ids, stopped) == answer.split(answer[-1])[0]
  assert thinking._text(before, stopped) == "" and keeping._text(before, stopped) == ours.tokenizer.decode(before)
  with pytest.raises(UserError, match="found 60 and .* of a trace"):
    thinking.generate_until(asked([context], max_gen_toks=60))
