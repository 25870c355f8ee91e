"""Where a grader must run on the host, a step is the same `collect`, split at the grading call into two programs.

    complete(states, prompts) -> Rollouts          host: decode and grade -> label_N
    train_step(states, prompts, (Rollouts, label_N, None)) -> (states, metrics, samples)

The sampled tokens stay on the device; each host grades the rows that its own devices hold. Where groups are drawn again
(`algorithm.max_draws`), the first program and the grader run on one part of the prompts after another.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

from nrt_jax.config import RunConfig
from nrt_jax.data import prompts
from nrt_jax.errors import UserError
from nrt_jax.evaluation import held_out
from nrt_jax.step import programs
from nrt_jax.tasks import symbolic
from nrt_jax.tasks import table as tasks


def compile_train_step(setup: programs.Setup, states, batch, tokenizer):
  """The compiled step (states, prompts) -> (states, metrics, samples): one program, or two around a grader."""
  return assemble(setup, tokenizer, *compile_programs(setup, states, batch))


def compile_programs(setup: programs.Setup, states, batch) -> tuple:
  """The compiled programs of a step, in order."""
  return tuple(lowered.compile() for lowered in lower_programs(setup, states, batch))


def lower_programs(setup: programs.Setup, states, batch) -> tuple:
  """The programs of a step, traced but not compiled: (train_step,), or (complete, train_step)."""
  train_step = programs.build_train_step(setup)
  if not setup.grades_on_host:
    return (train_step.lower(states, batch),)
  if setup.max_draws > 1:
    batch = jax.eval_shape(programs.build_draws(setup)[0], batch, 0)
  complete = programs.build_complete(setup).lower(states, batch)
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), complete.out_info)
  labels = jax.ShapeDtypeStruct(shapes.length_N.shape, np.float32)
  sums = None
  if setup.max_draws > 1:
    _, start, add = programs.build_draws(setup)
    drawn = (batch, shapes, labels)
    sums = jax.eval_shape(add, jax.eval_shape(start, *drawn), *drawn)[2][1][2]
  return complete, train_step.lower(states, batch, (shapes, labels, sums))


def assemble(setup: programs.Setup, tokenizer, *compiled):
  """The step as one function of what `compile_programs` returned."""
  if not setup.grades_on_host:
    return compiled[0]
  grade, (first, second) = grader(setup.run), compiled
  part, start, add = programs.build_draws(setup) if setup.max_draws > 1 else (None, None, None)

  def graded(states, batch):
    rollouts = first(states, batch)
    return rollouts, label_rows(setup, tokenizer, grade, batch, rollouts)

  def drawn(states, batch):
    kept, full, number = None, False, 0
    while number < setup.max_draws and not full:
      prompts = part(batch, number)
      new = (prompts, *graded(states, prompts))
      kept, full, chosen = add(start(*new) if kept is None else kept, *new)
      full, number = bool(np.asarray(full.addressable_data(0)).all()), number + 1  # the same on every host
    return chosen

  def step(states, batch):
    with symbolic.budget() as spent:
      chosen = (batch, (*graded(states, batch), None)) if setup.max_draws == 1 else drawn(states, batch)
    states, metrics, samples = second(states, *chosen)
    counted = {"grading/timeouts": of_all_hosts(setup, spent.timeouts)} if tasks.may_time_out(grade) else {}
    return states, {**metrics, **counted}, samples

  return step


def of_all_hosts(setup: programs.Setup, count: int):
  """The sum of a number that each host has, in the shape of a step's metrics."""
  if jax.process_count() > 1:
    count = int(multihost_utils.process_allgather(np.int32(count)).sum())
  return np.full(jax.local_device_count() if setup.axis_name else (), count, np.float32)


def grader(run: RunConfig):
  """(answer text, reference answer) -> bool or a number in [0, 1]. UserError where the data has no grader."""
  name = run.algorithm.verifier
  grade = held_out.grader(run.data, None if name == "host" else name)
  if grade is None:
    raise UserError(
      f"algorithm.verifier: found {name!r}, but {run.data.source} has no grader; allowed: a row of tasks.GRADERS: "
      + ", ".join(key for key in tasks.GRADERS if tasks.GRADERS[key])
    )
  return grade


def check(run: RunConfig) -> None:
  """Raises UserError where a stage that grades on the host has no grader, or would compare with cut answers."""
  if not getattr(run.algorithm, "grades_on_host", False):
    return
  grader(run)
  if run.prompt.overlong_answer == "cut":
    raise UserError(
      f"prompt.overlong_answer: found 'cut' with algorithm.verifier {run.algorithm.verifier!r}, which needs whole "
      "references, allowed: drop or error"
    )


def label_rows(setup: programs.Setup, tokenizer, grade, batch, rollouts):
  """Grades this host's rows: float32 labels, placed as the rollouts are.

  A completion without marker, or that was cut at the limit, gets 0 without being read.
  """
  token_NR, length_N = local_rows(setup, rollouts.token_NR), local_rows(setup, rollouts.length_N)
  answer_BA, answer_length_B = local_rows(setup, batch.answer_BA), local_rows(setup, batch.answer_length_B)
  labels = np.zeros(len(token_NR), np.float32)
  for n in np.flatnonzero(local_rows(setup, rollouts.ended_N)):
    own_ids = prompts.split_completion(setup.form, token_NR[n, : length_N[n]])[1]
    if own_ids is None:
      continue
    b = n // setup.samples_per_prompt
    reference = answer_text(tokenizer, setup.form, answer_BA[b, : answer_length_B[b]])
    labels[n] = np.clip(float(grade(prompts.decode(tokenizer, own_ids).strip(), reference)), 0, 1)
  return place_as(setup, labels, rollouts.length_N)


def answer_text(tokenizer, form, ids) -> str:
  """The reference as the model could write it: its tokens up to the end token, decoded."""
  return prompts.decode(tokenizer, prompts.cut_at_stop(form, ids)).strip()


def local_rows(setup: programs.Setup, array) -> np.ndarray:
  """The rows of an array that this host's devices hold, in order; those of pmap's devices one after another."""
  if setup.axis_name:
    rows = np.asarray(jax.device_get(array))
    return rows.reshape(-1, *rows.shape[2:])
  parts = {start_of(shard.index): shard.data for shard in array.addressable_shards}  # copies once
  return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def place_as(setup: programs.Setup, rows: np.ndarray, like):
  """Undoes `local_rows`: one number per row, placed on the devices that hold the rows of `like`."""
  if setup.axis_name:
    return rows.reshape(like.shape)
  starts = sorted({start_of(shard.index) for shard in like.addressable_shards})
  parts = dict(zip(starts, np.split(rows, len(starts))))
  return jax.make_array_from_callback(like.shape, like.sharding, lambda index: parts[start_of(index)])


def start_of(index) -> int:
  """The first row of a shard."""
  return index[0].start or 0
