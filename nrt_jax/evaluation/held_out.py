"""Evaluation on held-out pairs: the model writes trace, marker and answer by itself, and the answer is compared.

The comparison is for people to read: training never sees it.
"""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np

from nrt_jax.data import batches, prompts, sources
from nrt_jax.data.sources import DataConfig
from nrt_jax.errors import UserError, require_choice
from nrt_jax.evaluation import few_shot, sets, summary
from nrt_jax.evaluation.store import Written
from nrt_jax.rollout.sampler import SamplingConfig, check_temperature
from nrt_jax.tasks import grading, symbolic
from nrt_jax.tasks import table as tasks


@dataclass(frozen=True)
class EvaluationConfig:
  """What is evaluated, and when."""

  name: str = "heldout"  # metrics are called eval/<name>/...
  data: DataConfig | None = None  # None: no evaluation
  every_steps: int = 100  # training steps between evaluations; 0 = at the run's start and each stage's end only
  batch_prompts: int = 32  # prompts generated at a time
  samples: int = 1  # completions per question, generated together; several need a temperature, see docs/evaluation.md
  temperature: float = 0.0  # 0 = greedy, else 1e-6 or more
  max_completion_length: int = 0  # tokens; 0 = room for the longest trace, marker and answer of training
  grader: str | None = None  # gsm8k, math, ... (tasks.GRADERS); None = the built-in task's own, else exact_match
  shots: int | None = None  # worked examples in front of a question; None = 0, or what a built-in set asks for
  shots_seed: int = 0  # draws them
  sets: tuple[str, ...] = ()  # built-in sets for `nrt-jax evaluate`, in place of data: see docs/evaluation.md
  sets_directory: str | None = None  # where their files lie, or "hub" to fetch them from the Hugging Face hub

  def __post_init__(self):
    if self.grader is not None:
      require_choice("evaluation.grader", self.grader, tasks.GRADERS)
    check_temperature("evaluation.temperature", self.temperature)
    if self.every_steps < 0 or self.batch_prompts < 1 or self.max_completion_length < 0:
      raise UserError(
        f"evaluation: found every_steps={self.every_steps}, batch_prompts={self.batch_prompts}, "
        f"max_completion_length={self.max_completion_length}, allowed: >= 0, >= 1, >= 0"
      )
    if self.samples < 1:
      raise UserError(f"evaluation.samples: found {self.samples}, allowed: 1 or more")
    for key in ("shots", "shots_seed"):
      if (getattr(self, key) or 0) < 0:
        raise UserError(f"evaluation.{key}: found {getattr(self, key)}, allowed: 0 or more")
    for name in self.sets:
      require_choice(sets.KEY, name, sets.SETS)
    if self.samples > 1 and self.temperature == 0:
      found = f"found {self.samples} with evaluation.temperature 0.0, which makes them all the same"
      raise UserError(f"evaluation.samples: {found}, allowed: 1, or a temperature above 0")

  def sampling(self, trace_length: int, marker_width: int, answer_length: int) -> SamplingConfig:
    """How completions are generated."""
    length = self.max_completion_length or trace_length + marker_width + answer_length
    return SamplingConfig(max_trace_length=length, temperature=self.temperature)


def load_dataset(config: EvaluationConfig, prompt, tokenizer, form, hints=False):
  """The TokenDataset to evaluate on; hints: see batches.tokenize.

  UserErrors of its config name their keys below `evaluation`.
  """
  try:
    examples = few_shot.add(sources.load_examples(config.data), config.shots or 0, config.shots_seed)
    return batches.tokenize(examples, config.data, prompt, tokenizer, form, hints)
  except UserError as error:
    raise UserError(f"evaluation.{error}" if str(error).startswith("data.") else str(error)) from error


@dataclass(frozen=True)
class Completion:
  """One completion and its grade."""

  question: str | tuple
  reference: str
  trace: str
  answer: str | None  # None: the model never wrote the marker
  trace_length: int  # tokens
  correct: bool | None  # None: nobody can say
  reference_tokens: int = 0  # of the reference answer, its end token included; 0 where it was not scored
  reference_logp: float = 0.0  # log-probability of these tokens behind the model's own trace, in all
  reference_logp_empty_trace: float = 0.0  # the same without a trace
  earned: float | None = None  # what the environment paid; None without one
  verdict: float | None = None  # how right the environment finds it, in [0, 1]; None where it does not judge
  sample: int = 0  # which of the question's samples it is
  vote: str | None = None  # its answer as a majority vote counts it; None: it has no vote, or nobody counts


def read_completion(tokenizer, form, token_ids, example, grade, normal=None) -> Completion:
  """Cuts a completion (a list of ids) at its marker, decodes both parts and grades the answer if `grade` isn't None.

  One without an end token was cut at the limit: it is not right, and has no vote. normal: see `normal_form`.
  """
  ended = prompts.has_ended(form, token_ids)
  trace_ids, answer_ids = prompts.split_completion(form, token_ids)
  answer = None if answer_ids is None else prompts.decode(tokenizer, answer_ids).strip()
  return Completion(
    question=example.question,
    reference=example.answer,
    trace=prompts.decode(tokenizer, trace_ids),
    answer=answer,
    trace_length=len(trace_ids),
    correct=None if grade is None else answer is not None and ended and bool(grade(answer, example.answer)),
    vote=None if normal is None or answer is None or not ended else normal(answer),
  )


def grader(config: DataConfig, name: str | None = None):
  """How an answer is compared with the reference: `name` in tasks.GRADERS, else a task's own way, else exact match.

  None where answers can't be graded, as in verse.
  """
  if name is not None:
    return tasks.GRADERS[name]
  task = sources.task_of(config)
  return grading.exact_match if task is None else task.grade


def normal_form(config: DataConfig, name: str | None = None):
  """What a vote counts an answer as: text -> text or None, for `grader` of the same; None where nobody can grade."""
  if name is not None:
    return tasks.NORMAL_FORMS[name]
  task = sources.task_of(config)
  if task is not None and task.grade is None:
    return None
  return getattr(task, "normal_form", grading.words)


def evaluate(
  generate, params, dataset, config: EvaluationConfig, tokenizer, form, key, progress=None, store=None
) -> tuple[dict, list]:
  """Runs `generate(params, prompts, key)` of programs.build_evaluate over a TokenDataset; each example counts once.

  Returns: {"eval/<name>/<metric>": value}, see summary.py, and Completions, `config.samples` per example in a row.
  A `generate` that returns Rollouts alone scores no reference. progress, store: see `complete`.
  """
  grade, samples = grader(config.data, config.grader), config.samples
  normal = normal_form(config.data, config.grader) if samples > 1 else None
  read = functools.partial(read_completion, tokenizer, form, grade=grade, normal=normal)
  completions, timeouts = complete(generate, params, dataset, config, read, key, progress, store)
  metrics = summary.summarise(config.name, completions, samples)
  if tasks.may_time_out(grade):
    metrics[f"eval/{config.name}/grading_timeouts"] = timeouts
  return metrics, completions


def complete(generate, params, dataset, config: EvaluationConfig, read, key, progress=None, store=None):
  """(Completions, how often grading ran out of time). read(token ids, example): as `read_completion`.

  progress(done, new), if given, is called after each batch with the number of examples done, and of those for which
  the program ran. store: a Store of what was written before, which is added to.
  """
  completions, timeouts, new = [], 0, 0
  for batch, valid_B in batches.eval_batches(dataset, config.batch_prompts):
    index = batch.example_B[valid_B].tolist()
    written = [None if store is None else store.find(dataset, i) for i in index]
    if None in written:
      written = _run(generate, params, batch, key, config.samples)[: len(index)]
      new += len(index)
      for i, one in zip(index, written if store is not None else ()):
        store.add(dataset, i, one)
    with symbolic.budget() as spent:
      for i, one in zip(index, written, strict=True):
        completions += _read(one, dataset.examples[i], len(dataset.answers[i]), read)
    timeouts += spent.timeouts
    if progress is not None:
      progress(len(completions) // config.samples, new)
  return completions, timeouts


def _run(generate, params, batch, key, samples: int) -> list[Written]:
  """What the program gives for each prompt of a batch."""
  made = generate(params, batch, key)
  rollouts, *scores = made if isinstance(made, tuple) else (made,)
  tokens, lengths = np.asarray(rollouts.token_NR), np.asarray(rollouts.length_N)
  logps = [np.asarray(one.answer_logp_NA, np.float64).sum(axis=1).tolist() for one in scores]  # of N rows, of B rows
  world = [None if one is None else np.asarray(one).tolist() for one in (rollouts.earned_N, rollouts.verdict_N)]
  found = []
  for b in range(len(lengths) // samples):
    rows = slice(b * samples, (b + 1) * samples)
    ids = [row[:length].tolist() for row, length in zip(tokens[rows], lengths[rows])]
    scored = (logps[0][rows], logps[1][b]) if scores else (None, None)
    found.append(Written(ids, *scored, *(None if one is None else one[rows] for one in world)))
  return found


def _read(written: Written, example, answer_length: int, read) -> list[Completion]:
  """The Completion of each sample of a question."""
  found = []
  for sample, ids in enumerate(written.tokens):
    more = {"sample": sample}
    if written.reference_logp is not None:
      scored = (answer_length, written.reference_logp[sample], written.reference_logp_empty_trace)
      more |= dict(zip(SCORED, scored))
    more |= {name: values[sample] for name in WORLD if (values := getattr(written, name)) is not None}
    found.append(dataclasses.replace(read(ids, example), **more))
  return found


WORLD = ("earned", "verdict")
SCORED = ("reference_tokens", "reference_logp", "reference_logp_empty_trace")


def readable_samples(tokenizer, samples: dict) -> list[dict]:
  """What samples.jsonl shows: question and trace as text, the answer token by token with its probabilities.

  Where it was measured, also by how many nats each stretch of `trace_moved_every` trace tokens moved the answer.
  """
  shown = []
  for row in range(len(samples["prompt"])):
    one = {name: np.asarray(value)[row] for name, value in samples.items()}
    prompt_length, trace_length, answer_length = (int(one[f"{name}_length"]) for name in ("prompt", "trace", "answer"))
    line = {
      "question": prompts.decode(tokenizer, one["prompt"][len(one["prompt"]) - prompt_length :]),
      "trace": prompts.decode(tokenizer, one["trace"][:trace_length]),
      "trace_tokens": prompts.pieces(tokenizer, one["trace"][:trace_length]),
      "answer_tokens": prompts.pieces(tokenizer, one["answer"][:answer_length]),
    }
    for name, label in (("answer_logp", "c"), ("answer_logp_empty_trace", "c_empty_trace")):
      if name in one:
        line[label] = [round(float(p), 6) for p in np.exp(one[name][:answer_length])]
    if "trace_moved" in one:
      every = int(one["trace_moved_every"])
      moved = one["trace_moved"][: -(-int(one["trace_moved_length"]) // every)]
      line |= {"trace_moved": [round(float(nats), 6) for nats in moved], "trace_moved_every": every}
    line |= {name: float(one[name]) for name in ("reward", "advantage") if name in one}
    shown.append(line)
  return shown
