"""Evaluation: which grader is used, and what is reported where answers can't be graded."""

import pytest

from nrt_jax import errors, evaluation, prompts, tasks
from nrt_jax.data import DataConfig, Example
from nrt_jax.evaluation import EvaluationConfig


@pytest.fixture(scope="module")
def tokens():
  tokenizer = prompts.word_tokenizer(["so", "it", "is", "4", "5", "4.0"], special=("<|response_start|>",))
  return tokenizer, prompts.make_format(tokenizer, prompts.PromptConfig(max_prompt_length=8, max_answer_length=8))


def complete(tokens, text, reference, grade):
  tokenizer, form = tokens
  ids = [*tokenizer(text)["input_ids"], form.eos_id]
  return evaluation.read_completion(tokenizer, form, ids, Example("2 + 2", reference, None, "here:1"), grade)


def test_the_grader_is_named_or_the_tasks_own_or_exact_match(tmp_path):
  file = DataConfig(source=str(tmp_path / "rows.jsonl"))
  assert evaluation.grader(file) is tasks.exact_match
  assert evaluation.grader(file, "gsm8k")("It is 4.", "2 + 2 = 4\n#### 4")
  assert evaluation.grader(file, "none") is None
  assert evaluation.grader(DataConfig(source="task:countdown"))("8 * 3", "3 * 8")
  assert not evaluation.grader(DataConfig(source="task:countdown"), "exact_match")("8 * 3", "3 * 8")
  assert evaluation.grader(DataConfig(source="task:verse", task_options={"path": "poem.txt"})) is None


def test_an_unknown_grader_is_an_error():
  with pytest.raises(errors.UserError, match="^evaluation.grader: found 'gsmk8', allowed: .*did you mean 'gsm8k'"):
    EvaluationConfig(grader="gsmk8")


def test_completions_are_graded_behind_their_marker(tokens):
  grade = tasks.GRADERS["gsm8k"]
  right = complete(tokens, "so it is <|response_start|> 4.0", "4", grade)
  assert (right.trace, right.answer, right.trace_length, right.correct) == ("so it is", "4.0", 3, True)
  assert complete(tokens, "so 4 <|response_start|> 5", "4", grade).correct is False
  without = complete(tokens, "so it is 4", "4", grade)
  assert without.answer is None and without.correct is False


def test_ungraded_completions_have_no_accuracy(tokens):
  graded = [complete(tokens, f"so <|response_start|> {word}", "4", tasks.exact_match) for word in ("4", "5", "4", "it")]
  means = {"eval/x/accuracy": 0.5, "eval/x/marker_fraction": 1, "eval/x/trace_length": 1}
  assert evaluation.summarise("x", graded) == means
  ungraded = [complete(tokens, text, "4", None) for text in ("so <|response_start|> 4", "so it is")]
  assert [c.correct for c in ungraded] == [None, None]
  assert evaluation.summarise("x", ungraded) == {"eval/x/marker_fraction": 0.5, "eval/x/trace_length": 2}
