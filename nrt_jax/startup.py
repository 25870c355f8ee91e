"""Start-up: a run's stages with their data, read and checked, and the states and batches that each begins with.

All mistakes in a config, a file or a mesh are found in `open_stages`, before anything is compiled.
"""

import dataclasses
import os
from typing import NamedTuple

import jax
import numpy as np

from nrt_jax import buckets, resuming, sharding
from nrt_jax import workdir as workdirs
from nrt_jax.config import RunConfig
from nrt_jax.data import batches, control_tokens, overlong, packing, sources
from nrt_jax.errors import UserError, choices, require_choice
from nrt_jax.evaluation import held_out, summary
from nrt_jax.model import hf_weights, token_rows
from nrt_jax.optimizers.update_rule import carried
from nrt_jax.records import folders, mirror
from nrt_jax.records.checkpoint import Checkpoints
from nrt_jax.records.stopping import StopConfig
from nrt_jax.sharding import ParallelConfig
from nrt_jax.step import host_grading, opening, policy, programs, sizes
from nrt_jax.step.state import States
from nrt_jax.tasks import chance
from nrt_jax.workdir import Progress


class Stage(NamedTuple):
  """A stage whose data has been read and checked."""

  setup: programs.Setup
  train_data: batches.TokenDataset | packing.PackedDataset
  eval_data: batches.TokenDataset | None


def open_stages(runs: list[RunConfig], workdir: str | None = None):
  """(tokenizer, stages) of a run that may resume in `workdir`: reads and checks mesh, model and data."""
  first = runs[0]  # model, devices and files are the same for all stages
  if first.parallel.kind == "pmap" and jax.process_count() > 1:
    raise UserError(f"parallel.kind: found 'pmap' in a run of {jax.process_count()} processes, allowed: jit")
  mesh = None if first.parallel.kind == "pmap" else sharding.make_mesh(first.parallel)
  tokenizer, form = policy.open_tokenizer(first.model, first.prompt)
  model = policy.read_architecture(first.model, form, first.parallel.tensor, mesh)
  hf_weights.hf_config(model)  # raises now if the architecture cannot be exported at the end
  check_start(first, workdir)
  check_keep_best(runs)
  check_carry(runs)
  stages = []
  for run in runs:
    setup = opening.open_setup(run, model, tokenizer, form, mesh)
    sizes.check(setup)
    host_grading.check(run)
    stages.append(Stage(setup, *read_data(setup, tokenizer)))
  stages = with_tokens(stages, control_tokens.always_used(tokenizer, form))
  check_stop_rules(stages)
  return tokenizer, stages


def check_start(run: RunConfig, workdir: str | None) -> None:
  """Raises UserError if a fresh run would have no parameters to start from. Reads no weights."""
  if workdir is not None and folders.open_folder(os.path.join(workdir, "checkpoints")).exists():
    return  # it resumes
  if run.from_checkpoint is not None:
    if buckets.is_url(run.from_checkpoint):
      buckets.checked(run.from_checkpoint, "from_checkpoint")
    if not folders.open_folder(os.path.join(run.from_checkpoint, "checkpoints")).exists():
      raise UserError(f"from_checkpoint: found {run.from_checkpoint!r}, allowed: a workdir that holds checkpoints")
  elif run.model.weights == "pretrained":
    hf_weights.locate_tensors(run.model.path, hf_weights.read_model_config(run.model.path))


def check_keep_best(runs: list[RunConfig]) -> None:
  """Raises UserError if checkpoints are to be ranked by an evaluation metric that no stage computes."""
  metric = runs[0].checkpoint.keep_best
  if metric is None or not metric.startswith("eval/"):
    return
  names = [name for run in runs for name in summary.metric_names(run.evaluation)]
  if not names:
    raise UserError(f"checkpoint.keep_best: found {metric!r} with evaluation.data null, allowed: null, or data for it")
  require_choice("checkpoint.keep_best", metric, dict.fromkeys(names))


def check_carry(runs: list[RunConfig]) -> None:
  """Raises UserError if a stage is to go on with moments that the stage before does not leave."""
  for before, run in zip(runs, runs[1:]):
    if not run.optimizer.carry_moments:
      continue
    found = f"optimizer.carry_moments of stage {run.stage!r}: found true"
    for key in ("name", "moment_dtype"):
      own, other = getattr(run.optimizer, key), getattr(before.optimizer, key)
      if own != other:
        raise UserError(f"{found} with {key} {own!r} behind {other!r}, allowed: the same in both, or false")
    if "optimizer" in run.parallel.offload:
      raise UserError(f"{found} with parallel.offload of the optimizer, allowed: false")


def with_tokens(stages: list[Stage], always: set) -> list[Stage]:
  """The stages, of which each one's model knows the tokens that it does not use: those that are in no data so far.

  always: ids that every stage uses, also such as the tokenizer lacks: config.json may name an end token of a larger
  vocabulary. The last stage uses all, for an exported model may write all.
  """
  used = np.zeros(stages[0].setup.form.vocab_size_needed, bool)
  used[[i for i in always if i < len(used)]] = True
  found = []
  for stage in stages:
    if stage.setup.run.tokens.active == "all" or len(found) == len(stages) - 1:
      used[:] = True
    else:
      data = getattr(stage.train_data, "dataset", stage.train_data)  # of packed rows
      for rows in (data.prompts, data.answers, data.traces, data.hints or []):
        used[np.concatenate([np.zeros(0, np.int32), *rows])] = True
    model = dataclasses.replace(stage.setup.model, vocab_inactive=tuple(np.flatnonzero(~used).tolist()))
    found.append(stage._replace(setup=stage.setup._replace(model=model)))
  return found


def check_stop_rules(stages: list[Stage]) -> None:
  """Raises UserError if a stage is to end by a metric that its steps don't have. Traces the step, compiles nothing."""
  known = {}
  for stage in stages:
    run = stage.setup.run
    if run.stop.metric is None:
      continue
    method = (run.algorithm_name, run.algorithm, run.environment_name)
    if method not in known:  # stages of a curriculum share theirs
      known[method] = step_metrics(stage)
    names = known[method]
    if run.stop.metric not in names:
      names = [name for name in names if not name.startswith(("tokens/", "optimizer/", "loss/"))]
      found = choices(run.stop.metric, names)
      raise UserError(f"stop.metric of stage {run.stage!r} (algorithm.name {run.algorithm_name!r}): {found}")


def step_metrics(stage: Stage) -> list[str]:
  """The names of the metrics of a stage's step."""
  run = stage.setup.run
  run = dataclasses.replace(run, parallel=ParallelConfig(micro_batches=1))
  alone = stage.setup._replace(run=run, mesh=None)  # devices add no metrics
  count = alone.max_draws
  rows, _ = batches.batch(stage.train_data, batches.Position(), count * run.prompts_per_step, run.seed, draws=count)
  states = programs.abstract_states(alone)
  return sorted(host_grading.lower_programs(alone, states, rows)[-1].out_info[1])


def read_data(setup: programs.Setup, tokenizer):
  """(training set, evaluation set or None) of a stage as token ids."""
  run, form = setup.run, setup.form
  train_data = batches.load_dataset(run.data, run.prompt, tokenizer, form, opening.second_texts(setup, tokenizer))
  if run.data.packing:
    train_data = packing.pack_dataset(train_data, run.data.packing, form.marker_ids)
  if run.evaluation.data is None:
    return train_data, None
  worlds = opening.worlds(setup, tokenizer)
  return train_data, held_out.load_dataset(run.evaluation, run.prompt, tokenizer, form, worlds)


def describe_data(stage: Stage) -> str:
  """The numbers of a stage's examples, what became of the others, and where answers are sampled a task's chance."""
  rows, held, run = stage.train_data, stage.eval_data, stage.setup.run
  packed = f", packed into {len(rows):,} rows" if run.data.packing else ""
  evaluated = "" if held is None else f"; evaluation: {overlong.summary(len(held), held.counts)}"
  idle, size = len(stage.setup.model.vocab_inactive), stage.setup.form.vocab_size_needed
  tokens = f"; {size - idle:,} of {size:,} tokens" if idle else ""
  task = sources.task_of(run.data) if stage.setup.algorithm.samples_traces else None
  likely = "" if task is None else chance.describe(task, run.samples_per_prompt)
  examples = f"stage {run.stage}: {overlong.summary(len(rows.examples), rows.counts)}{packed}{evaluated}{tokens}"
  return f"{examples}; {likely}" if likely else examples


def resume(stages: list[Stage], checkpoints: Checkpoints, step: int, check) -> tuple[States, Progress, list[str]]:
  """The states and the progress of the checkpoint of `step`, and what check(its stage) says of changes since."""
  runs = [stage.setup.run for stage in stages]
  progress = workdirs.read_progress(checkpoints, step, runs)
  stage = stages[progress.stage]
  resuming.check_steps(step, progress.ends, progress.step, runs)
  changes = check(progress.stage)
  batches.require_inside(stage.train_data, progress.position)
  return workdirs.restore(stage.setup, checkpoints, step), progress, changes


def fresh_states(stage: Stage, params, key, critic_params=None, first_step=0, inactive=(), opt_state=None) -> States:
  """The states at the start of a stage, on the devices. `params` are taken over: nobody may use them afterwards.

  critic_params: see programs.init_states. Of the stages before: first_step, how many training steps they made;
  inactive, the tokens that they did not use; opt_state, the optimizer's state if its moments go on.
  """
  setup = stage.setup
  shardings = programs.state_shardings(setup)

  def make(params, key, critic_params, opt_state):
    # Steps fold in the key themselves, and then an example, which is never this number.
    own_key = jax.random.fold_in(jax.random.fold_in(key, first_step), 2**32 - 1)
    params = token_rows.widened(params, setup.model, inactive, setup.run.tokens, own_key)
    states = programs.init_states(setup, params, key, first_step, critic_params)
    if opt_state is None:
      return states
    return states.replace(policy=states.policy.replace(opt_state=carried(states.policy.opt_state, opt_state)))

  init = jax.jit(make, out_shardings=shardings, donate_argnums=0)  # or all parameters would be there twice
  fresh = init(params, key, critic_params, opt_state)
  return programs.replicate(fresh) if setup.axis_name else fresh


def next_states(before: Stage, stage: Stage, states: States, first_step: int) -> States:
  """The states at the start of a stage, from those at the end of the one before, `first_step` steps into the run."""
  last = single_copy(before.setup, states)
  critic = last.critic.params if last.critic is not None and programs.own_critic(stage.setup) else None
  opt_state = last.policy.opt_state if stage.setup.run.optimizer.carry_moments else None
  inactive = before.setup.model.vocab_inactive
  return fresh_states(stage, last.policy.params, last.policy.key, critic, first_step, inactive, opt_state)


def read_batch(stage: Stage, position: batches.Position):
  """The batch at `position`, on the devices: prompts for all draws that a step may make. Each host reads its share."""
  run, mesh, count = stage.setup.run, stage.setup.mesh, stage.setup.max_draws
  hosts = (jax.process_index(), jax.process_count()) if mesh is None else sharding.host_share(mesh)
  rows, _ = batches.batch(stage.train_data, position, count * run.prompts_per_step, run.seed, *hosts, count)
  if mesh is not None:
    return sharding.place_host_rows(mesh, rows)
  devices = jax.local_device_count()
  return jax.tree.map(lambda a: a.reshape(devices, a.shape[0] // devices, *a.shape[1:]), rows)


def program_settings(setup: programs.Setup) -> programs.Setup:
  """What the programs of a stage depend on, besides the shapes of its arrays: setups that are equal share programs."""
  run = setup.run
  data = dataclasses.replace(run.data, task_options=())
  return setup._replace(run=dataclasses.replace(run, stage="", stop=StopConfig(), data=data))


def single_copy(setup: programs.Setup, states: States) -> States:
  """The states without pmap's device axis."""
  return programs.unreplicate(states) if setup.axis_name else states


def first_params(setup: programs.Setup):
  """Parameters for the first stage of a fresh run: another run's, the model directory's, or random ones."""
  run = setup.run
  if run.from_checkpoint is None:
    return policy.load_policy(run.model, setup.model, setup.form, run.seed, setup.mesh)
  return workdirs.read_policy(mirror.local(run.from_checkpoint, "from_checkpoint"), setup.model, setup.mesh)
