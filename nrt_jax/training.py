"""Training, top to bottom: start-up order, loop, evaluation, saving.

The order of start-up matters: every error in a config, a file or a mesh is found before anything is compiled. The state
then comes from the first of these that applies:
  1. the newest whole checkpoint in the workdir (the same command again resumes),
  2. the policy of another run (`from_checkpoint`),
  3. the weights of `model.path`,
  4. random initialization (`model.weights = "random"`).
"""

import contextlib
import functools
import os
import time
from typing import NamedTuple

import jax

from nrt_jax import processes, resuming, sharding
from nrt_jax import workdir as workdirs
from nrt_jax.config import RunConfig
from nrt_jax.data import batches, endings, overlong, packing
from nrt_jax.errors import UserError, require_choice
from nrt_jax.evaluation import held_out
from nrt_jax.model import hf_weights
from nrt_jax.records import lock, stopping
from nrt_jax.records.checkpoint import Checkpoints
from nrt_jax.records.metrics import MetricsWriter
from nrt_jax.rollout import draws
from nrt_jax.step import host_grading, opening, policy, programs, sizes, throughput
from nrt_jax.step.state import States
from nrt_jax.tasks import chance
from nrt_jax.workdir import Progress


class Stage(NamedTuple):
  """A stage whose data has been read and checked."""

  setup: programs.Setup
  train_data: batches.TokenDataset | packing.PackedDataset
  eval_data: batches.TokenDataset | None
  first_step: int  # training steps of the stages before it


def train(runs: list[RunConfig], workdir: str, config_values: dict | None = None, allow_change=()) -> bool:
  """Runs or resumes all stages in `workdir` and exports the policy. Returns False if a signal stopped it early.

  `config_values` is written to config.json (the nested mapping that `runs` was read from). `allow_change` names keys
  that may differ from those of the run that is resumed.
  Raises UserError for anything the user can fix, before anything is compiled.
  """
  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(stopping.stop_flag())

    # ---- 1. Devices, tokenizer, model, data: all mistakes surface here.
    tokenizer, stages = open_stages(runs, workdir)
    first, setup = runs[0], stages[0].setup
    model, form, mesh = setup.model, setup.form, setup.mesh
    total_steps = sum(run.total_steps for run in runs)
    inputs = resuming.describe_inputs(tokenizer, stages)
    processes.require_same({"config": config_values, **inputs})

    # ---- 2. Files of the run.
    os.makedirs(workdir, exist_ok=True)
    left = processes.on_first(lambda: stack.enter_context(lock.held(workdir)))
    workdirs.keep_compiled(workdir)
    checkpoints = Checkpoints(os.path.join(workdir, "checkpoints"), first.checkpoint)
    stack.callback(checkpoints.close)
    stack.enter_context(jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext())

    # ---- 3. State.
    states, progress, changes, start_step = None, Progress(), [], -1
    if checkpoints.latest_step() is not None:
      check = functools.partial(resuming.check, workdir, runs, inputs, allowed=allow_change)
      start_step, found = checkpoints.newest(lambda step: resume(stages, checkpoints, step, check))
      states, progress, changes = found
    # Not earlier: where this run is refused, those of the other one stay.
    workdirs.describe(workdir, tokenizer, stages[0].setup, config_values, start_step)
    processes.on_first(lambda: resuming.write_inputs(workdir, inputs))
    writer = MetricsWriter(workdir, first.logging, total_steps, start_step, primary=jax.process_index() == 0)
    stack.callback(writer.close)
    for text in (*filter(None, [left]), *changes, endings.describe(tokenizer, form), *map(describe_data, stages)):
      writer.note(text)
    loop = Loop(stages, checkpoints, writer, tokenizer, stop)

    # ---- 4. Stages, one after another.
    for number in range(progress.stage, len(stages)):
      if states is None or number > progress.stage:
        states, progress = loop.next_stage(states, number), Progress(stage=number)
      states, progress = loop.run_stage(states, progress)
      if progress.step < runs[number].total_steps or not progress.evaluated:
        saved = checkpoints.latest_step()
        again = "starts again" if saved is None else f"resumes from step {saved}"
        writer.note(f"stopped by a signal; the same command {again}")
        return False

    # ---- 5. Export.
    setup = stages[-1].setup
    last = single_copy(setup, states)
    params = programs.params_for(setup, last, "export")
    workdirs.export(params, runs[-1], model, form, workdir, os.path.join(workdir, "export"))
    if last.critic is not None:
      critic = programs.with_frozen(setup, last.critic, last.policy).params
      workdirs.export(critic, runs[-1], model, form, workdir, os.path.join(workdir, "export_critic"))
  return True


# ----------------------------------------------------------------------------------------------------------- start-up


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
  stages, first_step = [], 0
  for run in runs:
    setup = opening.open_setup(run, model, tokenizer, form, mesh)
    sizes.check(setup)
    host_grading.check(run)
    stages.append(Stage(setup, *read_data(setup, tokenizer), first_step))
    first_step += run.total_steps
  return tokenizer, stages


def check_start(run: RunConfig, workdir: str | None) -> None:
  """Raises UserError if a fresh run would have no parameters to start from. Reads no weights."""
  if workdir is not None and os.path.isdir(os.path.join(workdir, "checkpoints")):
    return  # it resumes
  if run.from_checkpoint is not None:
    if not os.path.isdir(os.path.join(run.from_checkpoint, "checkpoints")):
      raise UserError(f"from_checkpoint: found {run.from_checkpoint!r}, allowed: a workdir that holds checkpoints")
  elif run.model.weights == "pretrained":
    hf_weights.locate_tensors(run.model.path, hf_weights.read_model_config(run.model.path))


def check_keep_best(runs: list[RunConfig]) -> None:
  """Raises UserError if checkpoints are to be ranked by an evaluation metric that no stage computes."""
  metric = runs[0].checkpoint.keep_best
  if metric is None or not metric.startswith("eval/"):
    return
  names = [name for run in runs for name in held_out.metric_names(run.evaluation)]
  if not names:
    raise UserError(f"checkpoint.keep_best: found {metric!r} with evaluation.data null, allowed: null, or data for it")
  require_choice("checkpoint.keep_best", metric, dict.fromkeys(names))


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
  task = batches.task_of(run.data) if stage.setup.algorithm.samples_traces else None
  likely = "" if task is None else chance.describe(task, run.samples_per_prompt)
  examples = f"stage {run.stage}: {overlong.summary(len(rows.examples), rows.counts)}{packed}{evaluated}"
  return f"{examples}; {likely}" if likely else examples


def resume(stages: list[Stage], checkpoints: Checkpoints, step: int, check) -> tuple[States, Progress, list[str]]:
  """The states and the progress of the checkpoint of `step`, and what check(its stage) says of changes since."""
  progress = workdirs.read_progress(checkpoints, step, [stage.setup.run.stage for stage in stages])
  stage = stages[progress.stage]
  resuming.check_steps(step, stage.first_step, progress.step, stage.setup.run)
  changes = check(progress.stage)
  batches.require_inside(stage.train_data, progress.position)
  return workdirs.restore(stage.setup, checkpoints, step), progress, changes


def fresh_states(stage: Stage, params, key, critic_params=None) -> States:
  """The states at the start of a stage, on the devices. `params` are taken over: nobody may use them afterwards.

  critic_params: see programs.init_states.
  """
  setup = stage.setup
  shardings = programs.state_shardings(setup)
  make = functools.partial(programs.init_states, setup, step=stage.first_step)
  init = jax.jit(make, out_shardings=shardings, donate_argnums=0)  # or all parameters would be there twice
  fresh = init(params, key, critic_params=critic_params)
  return programs.replicate(fresh) if setup.axis_name else fresh


def read_batch(stage: Stage, position: batches.Position):
  """The batch at `position`, on the devices: prompts for all draws that a step may make. Each host reads its share."""
  run, mesh, count = stage.setup.run, stage.setup.mesh, stage.setup.max_draws
  hosts = (jax.process_index(), jax.process_count()) if mesh is None else sharding.host_share(mesh)
  rows, _ = batches.batch(stage.train_data, position, count * run.prompts_per_step, run.seed, *hosts, count)
  if mesh is not None:
    return sharding.place_host_rows(mesh, rows)
  devices = jax.local_device_count()
  return jax.tree.map(lambda a: a.reshape(devices, a.shape[0] // devices, *a.shape[1:]), rows)


def single_copy(setup: programs.Setup, states: States) -> States:
  """The states without pmap's device axis."""
  return programs.unreplicate(states) if setup.axis_name else states


# --------------------------------------------------------------------------------------------------------------- loop


class Loop:
  """The loop over steps and its outputs. It holds no training state, which is passed in and returned."""

  def __init__(self, stages: list[Stage], checkpoints: Checkpoints, writer: MetricsWriter, tokenizer, stop: list):
    self._stages = stages
    self._checkpoints = checkpoints
    self._writer = writer
    self._tokenizer = tokenizer
    self._stop = stop
    self._pending = None  # (step, where its examples start, metrics, samples) of the last one, on the device
    self._skipped = stopping.SkippedSteps()
    self._clock = 0.0  # when the step before it finished
    self._work = None  # throughput.Work of the stage's step

  def next_stage(self, states: States | None, number: int) -> States:
    """The states at the start of stage `number`, from those at the end of the one before (None: from scratch)."""
    stage = self._stages[number]
    setup = stage.setup
    if states is None:
      return fresh_states(stage, first_params(setup), jax.random.key(setup.run.seed))
    last = single_copy(self._stages[number - 1].setup, states)
    critic = last.critic.params if last.critic is not None and programs.own_critic(setup) else None
    return fresh_states(stage, last.policy.params, last.policy.key, critic)

  def run_stage(self, states: States, progress: Progress) -> tuple[States, Progress]:
    """Trains until the stage's last step, or until a signal asks to stop."""
    stage = self._stages[progress.stage]
    run = stage.setup.run
    if self._stop or (progress.step >= run.total_steps and progress.evaluated):
      return states, progress
    generate = self._build_generate(stage)
    if not progress.evaluated:  # the run was stopped before the evaluation
      number, progress = stage.first_step + progress.step, progress._replace(evaluated=True)
      measured = self._evaluate(generate, states, stage, number)
      self._checkpoints.amend(number, progress.record(run.stage), measured)
    if progress.step >= run.total_steps:
      return states, progress
    if progress.step == 0 and stage.first_step == 0:
      self._evaluate(generate, states, stage, 0)
    if self._stop:
      return states, progress
    batch = read_batch(stage, progress.position)
    train_step = self._compile(stage, states, batch)
    if self._stop:  # nothing has happened that must be saved
      return states, progress
    self._clock = time.monotonic()

    for step in range(progress.step + 1, run.total_steps + 1):
      number = stage.first_step + step
      # ---- Dispatch step t, then read the next batch and fetch the metrics of step t - 1 while it runs.
      states, metrics, samples = train_step(states, batch)
      self._fetch(stage)
      self._pending = (number, progress.position, metrics, samples)
      drawn = run.prompts_per_step * draws.made(metrics, stage.setup.max_draws)
      progress = Progress(progress.stage, step, batches.advance(stage.train_data, progress.position, drawn))
      if step < run.total_steps:
        batch = read_batch(stage, progress.position)

      # ---- Evaluate, then save, so that the checkpoint knows how good it is.
      stop = stopping.must_stop(self._stop, number)
      due = run.evaluation.every_steps and step % run.evaluation.every_steps == 0
      owes = bool(step == run.total_steps or due)
      evaluates = owes and not stop  # a stopping run has seconds left; the resumed run evaluates instead
      progress = progress._replace(evaluated=evaluates or not owes)
      ends = stop or step == run.total_steps
      saves = ends or self._checkpoints.due(number)
      if evaluates or saves:
        measured = self._fetch(stage)
        if evaluates:
          measured |= self._evaluate(generate, states, stage, number)
        if saves and (ends or not self._skipped):  # after a skipped update, the parameters may be beyond help
          self._checkpoints.save(number, single_copy(stage.setup, states), progress.record(run.stage), measured)
        self._clock = time.monotonic()  # not part of the next step's time
      if stop:
        break
    return states, progress

  def _compile(self, stage: Stage, states: States, batch):
    """Compiles the step and reports how long that took."""
    start = time.monotonic()
    compiled = host_grading.compile_programs(stage.setup, states, batch)
    self._work = throughput.describe(stage.setup, compiled)
    self._writer.note(f"stage {stage.setup.run.stage}: compiled the training step in {time.monotonic() - start:.1f} s")
    return host_grading.assemble(stage.setup, self._tokenizer, *compiled)

  def _fetch(self, stage: Stage) -> dict:
    """Waits for the step dispatched last, writes metrics and samples if they are due, and returns the metrics."""
    if self._pending is None:
      return {}
    number, position, metrics, samples = self._pending
    self._pending = None
    if stage.setup.axis_name:
      metrics, samples = programs.unreplicate((metrics, samples))
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    now = time.monotonic()
    values, self._clock = throughput.rates(self._work, values, now - self._clock), now
    if self._writer.due(number):
      self._writer.write(number, values)
    for alarm in stage.setup.algorithm.alarms(stage.setup.run.algorithm, values):
      self._writer.note(f"step {number}: {alarm}")
    if self._writer.samples_due(number):
      self._writer.write_samples(number, held_out.readable_samples(self._tokenizer, jax.device_get(samples)))
    if values["optimizer/skipped"]:
      run = stage.setup.run
      examples = batches.name_examples(stage.train_data, position, run.prompts_per_step, run.seed)
      saved = self._checkpoints.latest_step()
      self._writer.note(self._skipped.add(number, examples, run.optimizer.max_skipped_steps, saved))
    else:
      self._skipped.clear()
    return values

  def _build_generate(self, stage: Stage):
    run, form = stage.setup.run, stage.setup.form
    if stage.eval_data is None:
      return None
    traces = max(run.sampling.max_trace_length, run.data.max_trace_length)
    sampling = run.evaluation.sampling(traces, len(form.marker_ids), run.prompt.max_answer_length)
    generate, mesh = programs.build_evaluate(stage.setup, sampling), stage.setup.mesh
    if mesh is None:
      return generate
    return lambda params, rows, key: generate(params, sharding.place_rows(mesh, rows), key)

  def _evaluate(self, generate, states: States, stage: Stage, number: int) -> dict:
    """Runs the evaluation, if there is one, and writes its metrics as a separate line."""
    if generate is None:
      return {}
    run, start = stage.setup.run, time.monotonic()
    params = programs.params_for(stage.setup, single_copy(stage.setup, states), "evaluation")
    key = jax.random.key(run.seed)
    metrics, _ = held_out.evaluate(
      generate, params, stage.eval_data, run.evaluation, self._tokenizer, stage.setup.form, key
    )
    self._writer.write(number, {**metrics, "time/evaluation": time.monotonic() - start})
    shown = "  ".join(f"{name.rsplit('/', 1)[1]} {value:.3f}" for name, value in metrics.items())
    self._writer.note(f"step {number}: {run.evaluation.name}: {shown}")
    return metrics


def first_params(setup: programs.Setup):
  """Parameters for the first stage of a fresh run: another run's, the model directory's, or random ones."""
  run = setup.run
  if run.from_checkpoint is None:
    return policy.load_policy(run.model, setup.model, setup.form, run.seed, setup.mesh)
  return workdirs.read_policy(run.from_checkpoint, setup.model, setup.mesh)
