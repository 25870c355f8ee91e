"""`nrt-jax evaluate --tournament N`: N samples of each question, one of which the run's critic chooses."""

import dataclasses

import jax
import numpy as np

from nrt_jax import sharding
from nrt_jax import workdir as workdirs
from nrt_jax.data import batches, critic_prompts
from nrt_jax.errors import UserError
from nrt_jax.evaluation import held_out, selection
from nrt_jax.rollout.sampler import SamplingConfig
from nrt_jax.step import judge, policy, programs

MOST = 64


def check(stage, count: int, votes: int) -> None:
  """Raises UserError where there is no critic to ask, or no tournament of so many."""
  if getattr(stage.algorithm, "critic", None) is None:
    raise UserError(f"--tournament: found algorithm.name {stage.algorithm_name!r}, allowed: one with a critic (raro)")
  if stage.algorithm.critic.kind == "single":
    raise UserError("--tournament: found algorithm.critic.kind 'single', which compares no answers, allowed: pairwise")
  if not 2 <= count <= MOST or count & (count - 1):
    raise UserError(f"--tournament: found {count}, allowed: a power of two, 2 to {MOST}")
  if votes < 2 or votes % 2:
    raise UserError(f"--votes: found {votes}, allowed: an even number, half of it for each order of the answers")


def run(setup: programs.Setup, tokenizer, params, source: tuple, count: int, votes: int) -> dict:
  """{"eval/<name>/<way>@<n>": accuracy}: see selection.compare. source: (workdir or None, step)."""
  stage = setup.run
  grade = held_out.grader(stage.evaluation.data, stage.evaluation.grader)
  if grade is None:
    raise UserError(f"--tournament: found {stage.evaluation.data.source}, which nobody can grade, allowed: other data")
  form = policy.open_critic(stage, tokenizer, setup.form)
  setup = setup._replace(critic=form)
  heads = critic_prompts.CriticHeads(tokenizer, setup.form, stage.prompt, stage.algorithm.critic, form.head_width)
  dataset = held_out.load_dataset(stage.evaluation, stage.prompt, tokenizer, setup.form, heads)
  key = jax.random.key(stage.seed)
  questions, rows = sample(setup, tokenizer, params, dataset, grade, count, key)
  judge = Judge(setup, critic_params(setup, params, *source), rows, votes, key)
  found = selection.compare(questions, judge, stage.seed)
  return {f"eval/{stage.evaluation.name}/{name}": value for name, value in found.items()}


def critic_params(setup: programs.Setup, params, workdir: str | None, step: int | None):
  """The critic's parameters: the policy's, or its own from the same checkpoint."""
  if not programs.own_critic(setup):
    return params
  if workdir is None:
    raise UserError("--model: found a critic of its own in the config, allowed: --checkpoint, which holds both")
  return workdirs.read_critic(workdir, setup.model, params, setup.mesh, step)


def sample(setup: programs.Setup, tokenizer, params, dataset, grade, count: int, key):
  """(candidates of each question, its head as (tokens, length)): samples at the training's temperature."""
  stage, (batch_prompts, questions, rows) = setup.run, (setup.run.evaluation.batch_prompts, [], [])
  length = stage.evaluation.max_completion_length or stage.sampling.max_trace_length
  sampling = SamplingConfig(length, stage.sampling.temperature, stage.sampling.top_k, stage.sampling.top_p)
  generate = programs.build_generate(setup, sampling, count)
  for batch, valid_B in batches.eval_batches(dataset, batch_prompts):
    placed = batch if setup.mesh is None else sharding.place_rows(setup.mesh, batch)
    made = jax.device_get(generate(params, placed, key))
    for b in np.flatnonzero(valid_B):
      example, own = dataset.examples[batch.example_B[b]], []
      for n in range(b * count, (b + 1) * count):
        ids = made.token_NR[n, : made.length_N[n]].tolist()
        own.append(candidate(tokenizer, setup.form, ids, float(made.logp_NR[n].sum()), example, grade))
      questions.append(own)
      rows.append((batch.hint_BQ[b], int(batch.hint_length_B[b])))
  return questions, rows


def candidate(tokenizer, form, ids, logp: float, example, grade) -> selection.Candidate:
  read = held_out.read_completion(tokenizer, form, ids, example, grade)
  _, answer_ids = held_out.prompts.split_completion(form, ids)
  ended = held_out.prompts.has_ended(form, ids)
  answer = read.answer if answer_ids and ended else None
  return selection.Candidate(answer, tuple(answer_ids or ()), logp / max(len(ids), 1), bool(read.correct))


@dataclasses.dataclass
class Judge:
  """The critic's votes on matches, in batches of one size so that one program judges all of them."""

  setup: programs.Setup
  params: object
  rows: list  # (head, its length) of each question
  votes: int
  key: object
  asked: int = 0

  def __post_init__(self):
    self.size = self.setup.run.evaluation.batch_prompts
    self.program = judge.build_judge(self.setup, self.votes)

  def __call__(self, matches: list) -> list:
    votes = []
    for start in range(0, len(matches), self.size):
      some = matches[start : start + self.size]
      filled = some + [some[-1]] * (self.size - len(some))
      made = np.asarray(self.program(self.params, *self._arrays(filled), jax.random.fold_in(self.key, self.asked)))
      self.asked += 1
      votes += [tuple(row) for row in made[: len(some)].tolist()]
    return votes

  def _arrays(self, matches):
    form = self.setup.critic
    head_XQ = np.stack([self.rows[q][0] for q, *_ in matches])
    head_length_X = np.array([self.rows[q][1] for q, *_ in matches], np.int32)
    answers = []
    for place in (1, 2):
      token_XA = np.zeros((len(matches), form.answer_width), np.int32)
      length_X = np.array([min(len(match[place]), form.answer_width) for match in matches], np.int32)
      for row, match, length in zip(token_XA, matches, length_X):
        row[:length] = match[place][:length]
      answers += [token_XA, length_X]
    arrays = (head_XQ, head_length_X, *answers)
    return arrays if self.setup.mesh is None else sharding.place_rows(self.setup.mesh, arrays)
