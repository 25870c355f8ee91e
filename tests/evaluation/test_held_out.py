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
from nrt_jax.evaluation import held_out
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


def complete(tokens, text, reference, grade, ended=True):
  tokenizer, form = tokens
  ids = [*tokenizer(text)["input_ids"], *[form.eos_id] * ended]
  return held_out.read_completion(tokenizer, form, ids, Example("2 + 2", reference, None, "here:1"), grade)


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
  found = held_out.summarise("x", scored)
  assert found["eval/x/answer_logp"] == -1.5 and found["eval/x/answer_logp_empty_trace"] == -2
  assert found["eval/x/answer_logp_gain"] == 0.5 and "eval/x/accuracy" not in found


@pytest.mark.parametrize("mesh", [False, True])
def test_references_are_scored_behind_the_own_trace(mesh):
  """Against whole rows: trace, marker and reference answer for each prompt, with the own answer cut off."""
  over = {"parallel__data": 4, "parallel__fsdp": 2} if mesh else {}
  setup = toy.setup(model=dataclasses.replace(toy.MODEL, num_hidden_layers=1), **over)
  params, batch = toy.params(setup.model), toy.prompts(8)
  with jax.set_mesh(setup.mesh) if mesh else contextlib.nullcontext():
    run = programs.build_evaluate(setup, SamplingConfig(max_trace_length=9, temperature=1.0))
    placed = sharding.place_rows(setup.mesh, batch) if mesh else batch
    rollouts, scores, empty = jax.device_get(run(params, placed, jax.random.key(0)))
  assert 0 < rollouts.marker_N.sum() < 8
  for b in range(8):
    text = rollouts.token_NR[b, : rollouts.length_N[b] - rollouts.ended_N[b]].tolist()
    trace = text[: text.index(toy.MARKER)] if toy.MARKER in text else text
    answer = batch.answer_BA[b, : batch.answer_length_B[b]].tolist()
    for given, found in ((trace, scores), ([], empty)):
      row = [*batch.prompt_BP[b, -batch.prompt_length_B[b] :].tolist(), *given, toy.MARKER, *answer]
      row = np.array([row + [toy.PAD] * (24 - len(row))]), np.array([[*range(len(row)), *[-1] * (24 - len(row))]])
      length = int((row[1] >= 0).sum())
      expected = whole_log_probs(params, setup.model, *row)[0, length - len(answer) : length]
      np.testing.assert_allclose(found.answer_logp_NA[b, : len(answer)], expected, atol=1e-4)
      assert not found.answer_logp_NA[b, len(answer) :].any()


def test_ungraded_completions_have_no_accuracy(tokens):
  texts = [f"so <|response_start|> {word}" for word in ("4", "5", "4", "it")]
  graded = [complete(tokens, text, "4", grading.exact_match) for text in texts]
  means = {"eval/x/accuracy": 0.5, "eval/x/marker_fraction": 1, "eval/x/trace_length": 1}
  assert held_out.summarise("x", graded) == means
  ungraded = [complete(tokens, text, "4", None) for text in ("so <|response_start|> 4", "so it is")]
  assert [c.correct for c in ungraded] == [None, None]
  assert held_out.summarise("x", ungraded) == {"eval/x/marker_fraction": 0.5, "eval/x/trace_length": 2}
