"""Training, top to bottom: start-up order, loop, evaluation, saving.

Start-up, and the order is important: everything that can be wrong with a config, a file or a mesh is found before
anything is compiled; then the state comes from, in this order,
  1. the newest good checkpoint in the workdir (the same command again resumes),
  2. the policy of another run (`from_checkpoint`),
  3. the weights of `model.path`,
  4. random initialisation (`model.weights = "random"`).
"""

import contextlib
import dataclasses
import os
import signal
import time
from typing import NamedTuple

import jax
import numpy as np

from nrt_jax import data, evaluation, hf, policy, programs, prompts, sharding
from nrt_jax.algorithms import ALGORITHMS
from nrt_jax.checkpoint import Checkpoints
from nrt_jax.config import RunConfig
from nrt_jax.errors import UserError
from nrt_jax.metrics import MetricsWriter, write_json_atomic
from nrt_jax.state import States


class Stage(NamedTuple):
  """A stage with its data read and checked."""

  setup: programs.Setup
  train_data: data.TokenDataset
  eval_data: data.TokenDataset | None
  first_step: int  # training steps of the stages before it


class Progress(NamedTuple):
  """Where a run stands: everything besides the states that a checkpoint must hold."""

  stage: int
  step: int  # steps done in that stage
  position: data.Position

  def record(self, stages: list[RunConfig]) -> dict:
    return {"stage": self.stage, "stage_name": stages[self.stage].stage, "step": self.step, "position": list(self.position)}


def train(runs: list[RunConfig], workdir: str, config_values: dict | None = None) -> dict:
  """Runs all stages in `workdir`, resuming what is there, and exports the policy. Returns the last metrics.

  `config_values` is what is written to config.json (the nested mapping that `runs` was read from).
  Raises UserError for whatever the user can mend, before anything is compiled.
  """
  # ---- 1. Devices, tokenizer, model, data: all mistakes surface here.
  mesh = None if runs[0].parallel.kind == "pmap" else sharding.make_mesh(runs[0].parallel)
  tokenizer, form = policy.open_tokenizer(runs[0].model, runs[0].prompt)
  model = policy.read_architecture(runs[0].model, form, runs[0].parallel.tensor)
  hf.hf_config(model)  # an architecture that could not be exported at the end is refused at the start
  stages, first_step = [], 0
  for run in runs:
    check_sizes(run, mesh)
    setup = programs.Setup(run, model, form, mesh)
    programs.state_shardings(setup)  # indivisible parameters are named here
    stages.append(Stage(setup, *read_data(run, tokenizer, form), first_step))
    first_step += run.total_steps

  # ---- 2. Files of the run.
  os.makedirs(workdir, exist_ok=True)
  if config_values is not None:
    write_json_atomic(os.path.join(workdir, "config.json"), config_values)
  save_tokenizer(tokenizer, os.path.join(workdir, "tokenizer"))
  with contextlib.ExitStack() as stack:
    checkpoints = Checkpoints(os.path.join(workdir, "checkpoints"), runs[0].checkpoint)
    stack.callback(checkpoints.close)
    stack.enter_context(jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext())

    # ---- 3. State.
    states, progress = resume(stages, checkpoints)
    done = stages[progress.stage].first_step + progress.step
    writer = MetricsWriter(workdir, runs[0].logging, first_step, start_step=-1 if states is None else done)
    stack.callback(writer.close)
    loop = Loop(stages, checkpoints, writer, tokenizer, stack.enter_context(preemption_flag()))

    # ---- 4. Stages, one after another.
    for number in range(progress.stage, len(stages)):
      if states is None or number > progress.stage:
        states, progress = loop.next_stage(states, number), Progress(number, 0, data.Position())
      states, progress, metrics = loop.run_stage(states, progress)
      if progress.step < stages[number].setup.run.total_steps:
        writer.note("stopped by a signal, after saving; the same command resumes")
        return metrics

    # ---- 5. Export.
    export(loop.policy_params(states, stages[-1]), stages[-1].setup, workdir, os.path.join(workdir, "export"))
  return metrics


# ----------------------------------------------------------------------------------------------------------- start-up


def check_sizes(run: RunConfig, mesh) -> None:
  """Raises UserError where the prompts of a step cannot be cut as the config wants them."""
  ways = jax.device_count() if mesh is None else sharding.data_parallel_ways(mesh)
  minibatches, micro = run.optimizer.minibatches, run.parallel.micro_batches
  waves = 1
  if run.sampling.wave_prompts and ALGORITHMS[run.algorithm_name].samples_traces:
    if run.prompts_per_step % run.sampling.wave_prompts or run.sampling.wave_prompts % ways:
      raise UserError(
        f"sampling.wave_prompts: found {run.sampling.wave_prompts}, allowed: a divisor of prompts_per_step "
        f"{run.prompts_per_step} and a multiple of the {ways} data-parallel devices"
      )
  for name, pieces in (("the data-parallel devices", ways), ("devices x minibatches", ways * minibatches)):
    if run.prompts_per_step % (pieces * waves):
      raise UserError(f"prompts_per_step: found {run.prompts_per_step}, allowed: a multiple of {pieces}, {name}")
  samples = run.samples_per_prompt if ALGORITHMS[run.algorithm_name].samples_traces else 1
  rows = run.prompts_per_step * samples // (ways * minibatches)
  if rows % micro:
    raise UserError(
      f"parallel.micro_batches: found {micro}, allowed: a divisor of the {rows} rows that one device has in a minibatch"
    )
  if run.evaluation.data is not None and run.evaluation.batch_prompts % (1 if mesh is None else ways):
    raise UserError(
      f"evaluation.batch_prompts: found {run.evaluation.batch_prompts}, allowed: a multiple of {ways} devices"
    )


def read_data(run: RunConfig, tokenizer, form):
  """(training set, evaluation set or None) as token ids."""
  train_data = data.load_dataset(run.data, run.prompt, tokenizer, form)
  if run.evaluation.data is None:
    return train_data, None
  return train_data, data.load_dataset(run.evaluation.data, run.prompt, tokenizer, form)


def save_tokenizer(tokenizer, directory: str) -> None:
  """Writes the tokenizer once, whole: with the marker token in it, for export and `sample`."""
  if jax.process_index() == 0 and not os.path.isdir(directory):
    partial = f"{directory}.partial"
    tokenizer.save_pretrained(partial)
    os.replace(partial, directory)


def resume(stages: list[Stage], checkpoints: Checkpoints) -> tuple[States | None, Progress]:
  """The states of the newest checkpoint and where they stand; None and the beginning where there is none."""
  step = checkpoints.latest_step()
  if step is None:
    return None, Progress(0, 0, data.Position())
  record, names = checkpoints.record(step), [stage.setup.run.stage for stage in stages]
  number = record["stage"]
  if names[number : number + 1] != [record["stage_name"]]:
    raise UserError(f"workdir: its checkpoint is of stage {record['stage_name']!r}, this config has {', '.join(names)}")
  return restore(stages[number].setup, checkpoints, step), Progress(number, record["step"], data.Position(*record["position"]))


def restore(setup: programs.Setup, checkpoints: Checkpoints, step: int | None) -> States:
  """The states of a checkpoint, on the devices they belong to."""
  abstract, shardings = programs.abstract_states(setup), programs.state_shardings(setup)
  if shardings is not None:
    abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
  states, _ = checkpoints.restore(step, abstract)
  return programs.replicate(states) if setup.axis_name else states


def first_params(setup: programs.Setup):
  """Parameters for the first stage of a fresh run: another run's, the model directory's, or random ones."""
  run = setup.run
  if run.from_checkpoint is None:
    return policy.load_policy(run.model, setup.model, setup.form, run.seed, setup.mesh)
  return read_policy(run.from_checkpoint, setup.model, setup.mesh)


def read_policy(workdir: str, model, mesh=None, step: int | None = None):
  """The policy's parameters alone from a checkpoint of a workdir (None: its newest), whatever its optimizer was."""
  checkpoints = Checkpoints(os.path.join(workdir, "checkpoints"), read_only=True)
  params, shardings = policy.abstract_params(model), policy.param_shardings(model, mesh)
  if shardings is not None:
    params = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), params, shardings)
  tree, _ = checkpoints.restore(step, {"policy": {"params": params}}, partial=True)
  return tree["policy"]["params"]


@contextlib.contextmanager
def preemption_flag():
  """Yields a list that becomes non-empty on SIGTERM: the loop then saves after the step in hand and stops."""
  flag = []
  try:
    before = signal.signal(signal.SIGTERM, lambda *_: flag.append(True))
  except ValueError:  # not the main thread: whoever runs us there handles its own signals
    yield flag
    return
  try:
    yield flag
  finally:
    signal.signal(signal.SIGTERM, before)


# --------------------------------------------------------------------------------------------------------------- loop


class Loop:
  """The loop over steps, and what it writes to. Holds no training state: that is passed in and returned."""

  def __init__(self, stages: list[Stage], checkpoints: Checkpoints, writer: MetricsWriter, tokenizer, preempted: list):
    self._stages = stages
    self._checkpoints = checkpoints
    self._writer = writer
    self._tokenizer = tokenizer
    self._preempted = preempted

  def next_stage(self, states: States | None, number: int) -> States:
    """The states at the start of stage `number`, from those at the end of the one before (None: from scratch)."""
    stage = self._stages[number]
    setup = stage.setup
    if states is None:
      params, key = first_params(setup), jax.random.key(setup.run.seed)
    else:
      old = self._stages[number - 1].setup
      last = programs.unreplicate(states.policy) if old.axis_name else states.policy
      params, key = last.params, last.key
    shardings = programs.state_shardings(setup)
    init = jax.jit(lambda p, k: programs.init_states(setup, p, k, stage.first_step), out_shardings=shardings)
    fresh = init(params, key)
    return programs.replicate(fresh) if setup.axis_name else fresh

  def run_stage(self, states: States, progress: Progress) -> tuple[States, Progress, dict]:
    """Trains until the stage's last step, or until a signal asks to stop. Returns the last metrics too."""
    stage = self._stages[progress.stage]
    run, writer = stage.setup.run, self._writer
    generate = self._build_generate(stage)
    metrics = {}
    if progress.step == 0 and stage.first_step == 0:
      metrics = self._evaluate(generate, states, stage, 0)
    if progress.step >= run.total_steps:
      return states, progress, metrics
    train_step, batch, position = self._compile(states, stage, progress.position)
    pending, clock = None, time.monotonic()
    for step in range(progress.step + 1, run.total_steps + 1):
      number = stage.first_step + step
      # ---- Dispatch step t, then fetch the metrics of step t - 1 while it runs.
      states, step_metrics, samples = train_step(states, batch)
      if step < run.total_steps:
        batch, next_position = self._next_batch(stage, position)
      else:
        next_position = position
      if pending is not None:
        clock, metrics = self._write(stage, *pending, clock, metrics)
      pending = (number, step_metrics, samples)
      del samples, step_metrics  # donated or fetched from here on by `pending` alone

      # ---- Evaluate, then save, so that the checkpoint knows how good it is.
      last = step == run.total_steps or bool(self._preempted)
      evaluates = last or (run.evaluation.every_steps and step % run.evaluation.every_steps == 0)
      saves = last or self._checkpoints.due(number)
      if evaluates or saves:
        clock, metrics = self._write(stage, *pending, clock, metrics)
        pending = None
      if evaluates:
        metrics = {**metrics, **self._evaluate(generate, states, stage, number)}
      progress = Progress(progress.stage, step, position)
      if saves:
        kept = programs.unreplicate(states) if stage.setup.axis_name else states
        self._checkpoints.save(number, kept, progress.record([s.setup.run for s in self._stages]), metrics)
      if evaluates or saves:
        clock = time.monotonic()  # neither counts as time of the next step
      position = next_position
      if last:
        break
    return states, progress, metrics

  def policy_params(self, states: States, stage: Stage):
    """The policy's parameters as one copy, whatever the parallelism."""
    return programs.unreplicate(states.policy.params) if stage.setup.axis_name else states.policy.params

  def _compile(self, states: States, stage: Stage, position: data.Position):
    """The compiled step with its first batch; says how long compiling took."""
    batch, position = self._next_batch(stage, position)
    start = time.monotonic()
    compiled = programs.build_train_step(stage.setup).lower(states, batch).compile()
    self._writer.note(f"stage {stage.setup.run.stage}: compiled the training step in {time.monotonic() - start:.1f} s")
    return compiled, batch, position

  def _next_batch(self, stage: Stage, position: data.Position):
    """The batch at `position` on the devices, and the position after it. Each host reads its own rows."""
    run, mesh = stage.setup.run, stage.setup.mesh
    hosts = (jax.process_index(), jax.process_count())
    rows, position = data.batch(stage.train_data, position, run.prompts_per_step, run.seed, *hosts)
    if stage.setup.axis_name:
      devices = jax.local_device_count()
      return jax.tree.map(lambda a: a.reshape(devices, a.shape[0] // devices, *a.shape[1:]), rows), position
    by_rows = sharding.rows_sharding(mesh)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(by_rows, a), rows), position

  def _write(self, stage: Stage, number: int, metrics, samples, clock: float, before: dict):
    """Fetches and writes the metrics (and samples) of a step. Returns the time now and the metrics so far."""
    if not (self._writer.due(number) or self._writer.samples_due(number)):
      jax.block_until_ready(metrics)
      return time.monotonic(), before
    if stage.setup.axis_name:
      metrics = programs.unreplicate(metrics)
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    now = time.monotonic()
    values = with_throughput(values, now - clock)
    if jax.process_index() == 0:
      if self._writer.due(number):
        self._writer.write(number, values)
      if self._writer.samples_due(number):
        samples = programs.unreplicate(samples) if stage.setup.axis_name else samples
        self._writer.write_samples(number, readable_samples(self._tokenizer, jax.device_get(samples)))
    return now, {**before, **values}

  def _build_generate(self, stage: Stage):
    run, form = stage.setup.run, stage.setup.form
    if stage.eval_data is None:
      return None
    traces = max(run.sampling.max_trace_length, run.data.max_trace_length)
    sampling = run.evaluation.sampling(traces, len(form.marker_ids), run.prompt.max_answer_length)
    return programs.build_generate(stage.setup, sampling)

  def _evaluate(self, generate, states: States, stage: Stage, number: int) -> dict:
    """Runs the evaluation, if there is one, and writes its metrics as a line of their own."""
    if generate is None:
      return {}
    run, start = stage.setup.run, time.monotonic()
    params = self.policy_params(states, stage)
    key = jax.random.key(run.seed)
    metrics, _ = evaluation.evaluate(
      generate, params, stage.eval_data, run.evaluation, self._tokenizer, stage.setup.form, key
    )
    if jax.process_index() == 0:
      self._writer.write(number, {**metrics, "time/evaluation": time.monotonic() - start})
      shown = "  ".join(f"{name.rsplit('/', 1)[1]} {value:.3f}" for name, value in metrics.items())
      self._writer.note(f"step {number}: {run.evaluation.name}: {shown}")
    return metrics


def with_throughput(values: dict, seconds: float) -> dict:
  """Replaces token counts by rates, and adds the time of the step and the device's peak memory where it is known."""
  counts = {name: values.pop(f"tokens/{name}") for name in ("generated", "trained") if f"tokens/{name}" in values}
  values["time/step"] = seconds
  for name, count in counts.items():
    values[f"throughput/{name}_tokens_per_s"] = count / seconds
  memory = jax.local_devices()[0].memory_stats()
  if memory and "peak_bytes_in_use" in memory:
    values["memory/peak_gib"] = memory["peak_bytes_in_use"] / 2**30
  return values


def readable_samples(tokenizer, samples: dict) -> list[dict]:
  """What samples.jsonl shows: question and trace as text, the answer token by token with its probabilities."""
  shown = []
  for row in range(len(samples["prompt"])):
    one = {name: np.asarray(value)[row] for name, value in samples.items()}
    prompt_length, trace_length, answer_length = (
      int(one[f"{name}_length"]) for name in ("prompt", "trace", "answer")
    )
    line = {
      "question": prompts.decode(tokenizer, one["prompt"][len(one["prompt"]) - prompt_length :]),
      "trace": prompts.decode(tokenizer, one["trace"][:trace_length]),
      "answer_tokens": tokenizer.convert_ids_to_tokens([int(i) for i in one["answer"][:answer_length]]),
    }
    for name, label in (("answer_logp", "c"), ("answer_logp_empty_trace", "c_empty_trace")):
      if name in one:
        line[label] = [round(float(p), 6) for p in np.exp(one[name][:answer_length])]
    line |= {name: float(one[name]) for name in ("reward", "advantage") if name in one}
    shown.append(line)
  return shown


# ------------------------------------------------------------------------------------------------------------- export


def export(params, setup: programs.Setup, workdir: str, directory: str, dtype: str = "float32") -> None:
  """Writes the policy in Hugging Face format, with its tokenizer and the prompt settings that `sample` reads."""
  form = setup.form
  settings = {"prompt": dataclasses.asdict(setup.run.prompt), "max_trace_length": setup.run.sampling.max_trace_length}
  settings["prompt"]["tokenizer"] = None  # it lies beside the settings
  hf.save_params(
    params,
    setup.model,
    directory,
    dtype,
    source=os.path.join(workdir, "tokenizer"),
    token_ids={"eos_token_id": form.eos_id, "pad_token_id": form.pad_id},
    settings=settings,
  )
