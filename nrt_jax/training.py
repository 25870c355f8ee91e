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

import jax

from nrt_jax import processes, resuming, sharding, startup
from nrt_jax import workdir as workdirs
from nrt_jax.config import RunConfig
from nrt_jax.data import batches, endings
from nrt_jax.evaluation import held_out
from nrt_jax.records import mirror, stopping, trackers
from nrt_jax.records.checkpoint import Checkpoints
from nrt_jax.records.metrics import MetricsWriter
from nrt_jax.rollout import draws
from nrt_jax.startup import Stage, single_copy
from nrt_jax.step import host_grading, programs, throughput
from nrt_jax.step.state import States
from nrt_jax.workdir import Progress


def train(runs: list[RunConfig], workdir: str, config_values: dict | None = None, allow_change=()) -> bool:
  """Runs or resumes all stages in `workdir` and exports the policy. Returns False if a signal stopped it early.

  `config_values` is written to config.json (the nested mapping that `runs` was read from). `allow_change` names keys
  that may differ from those of the run that is resumed.
  Raises UserError for anything the user can fix, before anything is compiled.
  """
  with contextlib.ExitStack() as stack, processes.ending_with_partners():
    stop = stack.enter_context(stopping.stop_flag())

    # ---- 1. Devices, tokenizer, model, data: all mistakes surface here.
    tokenizer, stages = startup.open_stages(runs, workdir)
    first, setup = runs[0], stages[0].setup
    trackers.check(first.logging.trackers)
    form, mesh = setup.form, setup.mesh
    total_steps = sum(run.total_steps for run in runs)
    inputs = resuming.describe_inputs(tokenizer, stages)
    processes.require_same({"config": config_values, **inputs})

    # ---- 2. Files of the run.
    files = stack.enter_context(mirror.opened(workdir))
    workdir = files.workdir
    workdirs.keep_compiled(workdir)
    checkpoints = Checkpoints(mirror.checkpoints_of(workdir), first.checkpoint)
    checkpoints.before_save = files.upload
    stack.callback(checkpoints.close)
    stack.enter_context(jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext())

    # ---- 3. State.
    states, progress, changes, start_step = None, Progress(), [], -1
    if checkpoints.latest_step() is not None:
      check = functools.partial(resuming.check, workdir, runs, inputs, allowed=allow_change)
      start_step, found = checkpoints.newest(lambda step: startup.resume(stages, checkpoints, step, check))
      states, progress, changes = found
    # Not earlier: where this run is refused, those of the other one stay.
    workdirs.describe(workdir, tokenizer, stages[0].setup, config_values, start_step)
    processes.on_first(lambda: resuming.write_inputs(workdir, inputs))
    alone = {"primary": jax.process_index() == 0, "values": config_values}
    writer = MetricsWriter(workdir, first.logging, total_steps, start_step, **alone)
    stack.callback(writer.close)
    data = map(startup.describe_data, stages)
    checkpoints.storage.warn = writer.warn
    for text in (*filter(None, [files.left]), *changes, endings.describe(tokenizer, form), *data):
      writer.note(text)
    files.upload()
    loop = Loop(stages, checkpoints, writer, tokenizer, stop)

    # ---- 4. Stages, one after another.
    for number in range(progress.stage, len(stages)):
      if states is None or number > progress.stage:
        states, progress = loop.next_stage(states, progress, number)
      states, progress = loop.run_stage(states, progress)
      if not progress.over(runs[number]) or not progress.evaluated:
        checkpoints.wait()  # or the newest may be one that storage refuses
        saved = checkpoints.latest_step()
        again = "starts again" if saved is None else f"resumes from step {saved}"
        writer.note(f"stopped by a signal; the same command {again}")
        stop.clear()
        return False

    # ---- 5. Export.
    setup = stages[-1].setup
    last = single_copy(setup, states)
    params = programs.params_for(setup, last, "export")
    workdirs.export(params, runs[-1], setup.model, form, workdir, os.path.join(workdir, "export"))
    if last.critic is not None:
      critic = programs.with_frozen(setup, last.critic, last.policy).params
      workdirs.export(critic, runs[-1], setup.model, form, workdir, os.path.join(workdir, "export_critic"))
    checkpoints.wait()
    checkpoints.require_saved(progress.number)
    files.upload(exports=True)
  return True


def train_to_end(runs: list[RunConfig], workdir: str, config_values: dict | None = None, allow_change=()) -> None:
  """`train` for a process that has nothing more to do where a signal stops the run: it exits with 143 then."""
  if not train(runs, workdir, config_values, allow_change):
    raise SystemExit(stopping.STOPPED)


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
    self._programs = {}  # what -> (what it was made for, compiled) of the last stage that needed it

  def next_stage(self, states: States | None, before: Progress, number: int) -> tuple[States, Progress]:
    """States and progress at the start of stage `number`, from those at the end of the one before (None: at first)."""
    stage = self._stages[number]
    setup = stage.setup
    if states is None:
      return startup.fresh_states(stage, startup.first_params(setup), jax.random.key(setup.run.seed)), Progress()
    progress = Progress(number, ends=(*before.ends, before.step))
    return startup.next_states(self._stages[number - 1], stage, states, progress.number), progress

  def run_stage(self, states: States, progress: Progress) -> tuple[States, Progress]:
    """Trains until the stage's last step, until its stop rule is met, or until a signal asks to stop."""
    stage = self._stages[progress.stage]
    run = stage.setup.run
    if self._stop or (progress.over(run) and progress.evaluated):
      return states, progress
    generate = self._build_generate(stage)
    if not progress.evaluated:  # the run was stopped before the evaluation
      progress = progress._replace(evaluated=True)
      measured = self._evaluate(generate, states, stage, progress.number)
      self._checkpoints.amend(progress.number, progress.record(run.stage), measured)
    if progress.over(run):
      return states, progress
    if progress.number == 0:
      self._evaluate(generate, states, stage, 0)
    if self._stop:
      return states, progress
    batch = startup.read_batch(stage, progress.position)
    train_step = self._compile(stage, states, batch)
    if self._stop:  # nothing has happened that must be saved
      return states, progress
    self._clock = time.monotonic()

    while not progress.over(run):
      # ---- Dispatch step t, then read the next batch and fetch the metrics of step t - 1 while it runs.
      states, metrics, samples = train_step(states, batch)
      progress = self._seen(stage, progress, self._fetch(stage))
      # The rule sees step t - 1 at the latest, whatever else is fetched, so that all runs end with the same step.
      succeeded = run.stop.reached(progress.window, stage.setup.episodes)
      self._pending = (progress.number + 1, progress.position, metrics, samples)
      drawn = run.prompts_per_step * draws.made(metrics, stage.setup.max_draws)
      position = batches.advance(stage.train_data, progress.position, drawn)
      progress = progress._replace(step=progress.step + 1, position=position, succeeded=succeeded)
      over, number = progress.over(run), progress.number
      if not over:
        batch = startup.read_batch(stage, progress.position)

      # ---- Evaluate, then save, so that the checkpoint knows how good it is.
      stop = stopping.must_stop(self._stop, number)
      due = run.evaluation.every_steps and progress.step % run.evaluation.every_steps == 0
      owes = bool(over or due)
      evaluates = owes and not stop  # a stopping run has seconds left; the resumed run evaluates instead
      progress = progress._replace(evaluated=evaluates or not owes)
      ends = stop or over
      saves = ends or self._checkpoints.due(number)
      if evaluates or saves:
        measured = self._fetch(stage)
        progress = self._seen(stage, progress, measured)
        if evaluates:
          measured |= self._evaluate(generate, states, stage, number)
        if saves and (ends or not self._skipped):  # after a skipped update, the parameters may be beyond help
          self._checkpoints.save(number, single_copy(stage.setup, states), progress.record(run.stage), measured)
        self._clock = time.monotonic()  # not part of the next step's time
      if stop:
        break
    if progress.succeeded:
      steps = f"{progress.step} of {run.total_steps} steps"
      self._writer.note(f"stage {run.stage}: ends after {steps}: {run.stop.metric} has come to {run.stop.bar:g}")
    return states, progress

  def _seen(self, stage: Stage, progress: Progress, metrics: dict) -> Progress:
    """The progress with the metrics of one more step, if there are any, in the window of the stage's stop rule."""
    seen = stage.setup.run.stop.seen(progress.window, metrics, stage.setup.episodes)
    return progress._replace(window=seen)

  def _compile(self, stage: Stage, states: States, batch):
    """Compiles the step and reports how long that took. A stage whose program is that of the one before takes it."""
    start, setup = time.monotonic(), stage.setup
    made_for = (startup.program_settings(setup), jax.tree.map(lambda a: (a.shape, a.dtype), batch))
    compiled = self._reuse("step", made_for, lambda: host_grading.compile_programs(setup, states, batch))
    self._work = throughput.describe(setup, compiled)
    seconds = time.monotonic() - start
    self._writer.note(f"stage {setup.run.stage}: compiled the training step in {seconds:.1f} s")
    return host_grading.assemble(setup, self._tokenizer, *compiled)

  def _reuse(self, what: str, made_for, make):
    """What `make` returns; of the last stage that needed it, if that was for the same."""
    if what not in self._programs or self._programs[what][0] != made_for:
      self._programs[what] = (made_for, make())
    return self._programs[what][1]

  def _fetch(self, stage: Stage) -> dict:
    """Waits for the step dispatched last, writes metrics and samples if they are due, and returns the metrics."""
    if self._pending is None:
      return {}
    number, position, metrics, samples = self._pending
    self._pending = None
    first = programs.unreplicate if stage.setup.axis_name else lambda tree: tree
    values = {name: float(value) for name, value in first(jax.device_get(metrics)).items()}
    now = time.monotonic()
    values, self._clock = throughput.rates(self._work, values, now - self._clock), now
    if self._writer.due(number):
      self._writer.write(number, values)
    for alarm in stage.setup.algorithm.alarms(stage.setup.run.algorithm, values):
      self._writer.note(f"step {number}: {alarm}")
    if self._writer.samples_due(number):
      self._writer.write_samples(number, held_out.readable_samples(self._tokenizer, first(jax.device_get(samples))))
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
    how, mesh = (stage.setup, sampling, run.evaluation.samples), stage.setup.mesh
    made_for = (startup.program_settings(stage.setup), *how[1:])
    generate = self._reuse("evaluation", made_for, lambda: programs.build_evaluate(*how))
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
