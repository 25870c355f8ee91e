"""Evaluation: which grader is used, and what is reported for answers that cannot be graded."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest
import toy

from nrt_jax import errors, sharding
from nrt_jax.data import prompts
from nrt_jax.data.sources import DataConfig, Example
from nrt_jax.evaluation import held_out, summary
from nrt_jax.evaluation.held_out import EvaluationConfig
from nrt_jax.rollout import scoring
from nrt_jax.rollout.sampler import SamplingConfig
from nrt_jax.step import programs
from nrt_jax.tasks import grading
from nrt_jax.tasks import table as tasks


@functools.partial(jax.jit, static_argnums=1)
def whole_log_probs(params, model, token_NL, position_NL):
  return scoring.row_log_probs(params, model, token_NL, position_NL, 1)[0]


@pytest.fixture(scope="module")
def tokens():
  tokenizer = prompts.word_tokenizer(["so", "it", "is", "4", "5", "4.0"], special=("<|response_start|>",))
  return tokenizer, prompts.make_format(tokenizer, prompts.PromptConfig(max_prompt_length=8, max_answer_length=8))


def complete(tokens, text, reference, grade, ended=True, normal=None):
  tokenizer, form = tokens
  ids = [*tokenizer(text)["input_ids"], *[form.eos_id] * ended]
  return held_out.read_completion(tokenizer, form, ids, Example("2 + 2", reference, None, "here:1"), grade, normal)


def test_the_grader_is_named_or_the_tasks_own_or_exact_match(tmp_path):
  file = DataConfig(source=str(tmp_path / "rows.jsonl"))
  assert held_out.grader(file) is grading.exact_match
  assert held_out.grader(file, "gsm8k")("It is 4.", "2 + 2 = 4\n#### 4")
  assert held_out.grader(file, "none") is None
  assert held_out.grader(DataConfig(source="task:countdown"))("8 * 3", "3 * 8")
  assert not held_out.grader(DataConfig(source="task:countdown"), "exact_match")("8 * 3", "3 * 8")
  assert held_out.grader(DataConfig(source="task:verse", task_options={"path": "poem.txt"})) is None


def test_an_unknown_grader_is_an_error():
  with pytest.raises(errors.UserError, match="^evaluation.grader: found 'gsmk8', allowed: .*did you mean 'gsm8k'"):
    EvaluationConfig(grader="gsmk8")


def test_several_samples_need_a_temperature():
  said = "^evaluation.samples: found 4 with evaluation.temperature 0.0, which makes them all the same, allowed: 1, or a"
  with pytest.raises(errors.UserError, match=said):
    EvaluationConfig(samples=4)
  with pytest.raises(errors.UserError, match="^evaluation.samples: found 0, allowed: 1 or more"):
    EvaluationConfig(samples=0, temperature=1.0)
  assert EvaluationConfig(samples=4, temperature=0.6).samples == 4


def test_votes_are_what_the_grader_compares(tokens, tmp_path):
  file = DataConfig(source=str(tmp_path / "rows.jsonl"))
  assert held_out.normal_form(file)("so  it\nis") == "so it is" and held_out.normal_form(file, "none") is None
  assert held_out.normal_form(DataConfig(source="task:countdown"))("8 * 3") == "[3, 8] = 24"
  assert held_out.normal_form(DataConfig(source="task:verse", task_options={"path": "poem.txt"})) is None
  grade, normal = tasks.GRADERS["gsm8k"], held_out.normal_form(file, "gsm8k")
  for text, ended, vote in (
    ("so <|response_start|> it is 4.0", True, "4"),
    ("so <|response_start|> it is 4.0", False, None),  # the limit may have hidden a digit
    ("so <|response_start|> it is", True, None),
    ("so it is 4", True, None),
  ):
    assert complete(tokens, text, "4", grade, ended, normal).vote == vote


def test_completions_are_graded_behind_their_marker(tokens):
  grade = tasks.GRADERS["gsm8k"]
  right = complete(tokens, "so it is <|response_start|> 4.0", "4", grade)
  assert (right.trace, right.answer, right.trace_length, right.correct) == ("so it is", "4.0", 3, True)
  assert complete(tokens, "so 4 <|response_start|> 5", "4", grade).correct is False
  cut = complete(tokens, "so it is <|response_start|> 4.0", "4", grade, ended=False)
  assert (cut.answer, cut.correct) == ("4.0", False)  # the limit may have hidden a digit
  without = complete(tokens, "so it is 4", "4", grade)
  assert without.answer is None and without.correct is False


def test_log_probabilities_are_per_token_of_all_references(tokens):
  """-2 and -7 over 2 and 4 tokens, -4 and -8 without a trace."""
  scored = [
    dataclasses.replace(complete(tokens, text, "4", None), **dict(zip(held_out.SCORED, values)))
    for text, *values in (("so <|response_start|> 4", 2, -2.0, -4.0), ("so it is", 4, -7.0, -8.0))
  ]
  found = summary.summarise("x", scored)
  assert found["eval/x/answer_logp"] == -1.5 and found["eval/x/answer_logp_empty_trace"] == -2
  assert found["eval/x/answer_logp_gain"] == 0.5 and "eval/x/accuracy" not in found


@pytest.mark.parametrize("mesh", [False, True])
def test_references_are_scored_behind_the_own_trace(mesh):
  """Against whole rows: trace, marker and reference answer for both samples of each prompt, the own answer cut off."""
  over = {"parallel__data": 4, "parallel__fsdp": 2} if mesh else {}
  setup = toy.setup(model=dataclasses.replace(toy.MODEL, num_hidden_layers=1), **over)
  params, batch = toy.params(setup.model), toy.prompts(8)
  with jax.set_mesh(setup.mesh) if mesh else contextlib.nullcontext():
    run = programs.build_evaluate(setup, SamplingConfig(max_trace_length=9, temperature=1.0), 2)
    placed = sharding.place_rows(setup.mesh, batch) if mesh else batch
    rollouts, scores, empty = jax.device_get(run(params, placed, jax.random.key(0)))
  assert 0 < rollouts.marker_N.sum() < 16 and (rollouts.token_NR[::2] != rollouts.token_NR[1::2]).any(axis=1).sum() > 4
  for row in range(16):
    b, text = row // 2, rollouts.token_NR[row, : rollouts.length_N[row] - rollouts.ended_N[row]].tolist()
    trace = text[: text.index(toy.MARKER)] if toy.MARKER in text else text
    answer = batch.answer_BA[b, : batch.answer_length_B[b]].tolist()
    for given, found in ((trace, scores.answer_logp_NA[row]), ([], empty.answer_logp_NA[b])):
      tokens = [*batch.prompt_BP[b, -batch.prompt_length_B[b] :].tolist(), *given, toy.MARKER, *answer]
      length, pads = len(tokens), 24 - len(tokens)
      whole = np.array([tokens + [toy.PAD] * pads]), np.array([[*range(length), *[-1] * pads]])
      expected = whole_log_probs(params, setup.model, *whole)[0, length - len(answer) : length]
      np.testing.assert_allclose(found[: len(answer)], expected, atol=1e-4)
      assert not found[len(answer) :].any()


def test_ungraded_completions_have_no_accuracy(tokens):
  texts = [f"so <|response_start|> {word}" for word in ("4", "5", "4", "it")]
  graded = [complete(tokens, text, "4", grading.exact_match) for text in texts]
  means = {"eval/x/accuracy": 0.5, "eval/x/marker_fraction": 1, "eval/x/trace_length": 1}
  assert summary.summarise("x", graded) == means
  ungraded = [complete(tokens, text, "4", None) for text in ("so <|response_start|> 4", "so it is")]
  assert [c.correct for c in ungraded] == [None, None]
  assert summary.summarise("x", ungraded) == {"eval/x/marker_fraction": 0.5, "eval/x/trace_length": 2}
