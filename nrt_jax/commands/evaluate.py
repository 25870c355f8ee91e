"""`nrt-jax evaluate`: evaluates a checkpoint or a model directory on a config's evaluation data."""

import contextlib
import dataclasses
import functools
import math
import os
import time

import jax

from nrt_jax import config, sharding
from nrt_jax import workdir as workdirs
from nrt_jax.commands import built_in_sets, configs, export, output, tournament
from nrt_jax.data import endings, overlong
from nrt_jax.errors import UserError, require_choice
from nrt_jax.evaluation import held_out, summary
from nrt_jax.evaluation.store import Store
from nrt_jax.files import cache_directory, digest, json_lines, write_json, write_text
from nrt_jax.records import digests
from nrt_jax.records.metrics import duration
from nrt_jax.rollout.sampler import SamplingConfig
from nrt_jax.step import opening, policy, programs


def run(args) -> None:
  stage = with_sets(choose_stage(config.stages_of(configs.load_config(args.config, args.overrides)), args.stage), args)
  chosen = stage.evaluation.sets
  if chosen:
    built_in_sets.check(stage.evaluation, args.run_code, args.tournament)
  elif stage.evaluation.data is None:
    raise UserError(
      "evaluation.data: found null, allowed: a data set, say --config.evaluation.data.source=FILE, or --sets NAME"
    )
  output.check_file(args.output, "--output")
  output.check_file(args.completions, "--completions")
  if args.cache is not None:
    output.check_directory(args.cache, "--cache")
  if args.tournament:
    tournament.check(stage, args.tournament, args.votes)
  if args.model is not None and args.step is not None:
    raise UserError(f"--step: found {args.step!r} with --model, which holds no checkpoints, allowed: --checkpoint")
  workdir, step = (None, None) if args.model is not None else find_checkpoint(args)
  workdirs.keep_compiled(cache_directory() if workdir is None else workdir)
  setup, tokenizer = prepare(with_source(stage, args.model, workdir))
  if chosen:
    loaded = built_in_sets.load(setup, tokenizer, sampling_of(setup).max_trace_length, args.limit)
  else:
    dataset = load_dataset(setup, tokenizer, args.limit)
  with contextlib.nullcontext() if setup.mesh is None else jax.set_mesh(setup.mesh):
    step, params = read_params(setup, workdir, step)
    output.note(endings.describe(tokenizer, setup.form))
    generate, open_store = build_generate(setup), opener(setup, params, args.cache or workdir_cache(workdir))
    watch = functools.partial(Reporter, stage.logging.progress)
    source = {"model": args.model} if args.model else {"checkpoint": args.checkpoint, "step": step}
    if chosen:
      found = built_in_sets.run(setup, tokenizer, params, generate, loaded, watch, open_store)
      write_sets(args, source | {"samples": stage.evaluation.samples}, found)
      return
    arguments = (generate, params, dataset, setup.run.evaluation, tokenizer, setup.form, jax.random.key(stage.seed))
    metrics, completions = held_out.evaluate(*arguments, watch(len(dataset)), open_store(stage.evaluation.name))
    if args.tournament:
      output.note(f"tournaments of {args.tournament} samples")
      metrics |= tournament.run(setup, tokenizer, params, (workdir, step), args.tournament, args.votes)
  samples = stage.evaluation.samples
  report = {**source, "examples": len(dataset), "samples": samples, "overlong": dataset.counts, "metrics": metrics}
  report["intervals"] = summary.intervals(stage.evaluation.name, completions, samples)
  write(args, report, completions)


# ---- What is evaluated ---------------------------------------------------------------------------------------------


def choose_stage(stages: list, name: str | None) -> config.RunConfig:
  """The named stage; the last stage if `name` is None."""
  if name is None:
    return stages[-1]
  by_name = {stage.stage: stage for stage in stages}
  require_choice("--stage", name, by_name)
  return by_name[name]


def with_sets(stage: config.RunConfig, args) -> config.RunConfig:
  """The stage with what the flags say of built-in sets in the place of the config's keys."""
  flags = {"sets": args.sets and tuple(args.sets), "sets_directory": args.sets_directory}
  given = {key: value for key, value in flags.items() if value is not None}
  return dataclasses.replace(stage, evaluation=dataclasses.replace(stage.evaluation, **given))


def find_checkpoint(args) -> tuple[str, int | None]:
  """(workdir, step) of the checkpoint that the flags name; None: the newest that is whole."""
  if args.checkpoint is None:
    raise UserError("--checkpoint, --model: found neither, allowed: one of them")
  workdir = export.find_workdir(args.checkpoint)
  return workdir, export.find_step(workdir, args.step)


def with_source(stage: config.RunConfig, model: str | None, workdir: str | None) -> config.RunConfig:
  """The stage with its model from a directory, or from a workdir, whose own run then gives the architecture."""
  if model is not None:
    return dataclasses.replace(stage, model=dataclasses.replace(stage.model, path=model, lora_rank=0))
  run = workdirs.read_run(workdir)[-1]
  source = dataclasses.replace(run.model, path=os.path.join(workdir, "tokenizer"))
  return dataclasses.replace(stage, model=source, prompt=dataclasses.replace(stage.prompt, tokenizer=None))


def prepare(stage: config.RunConfig):
  """(Setup, tokenizer). Raises for errors in files, mesh and model. Built-in sets know no environment."""
  mesh = None if stage.parallel.kind == "pmap" else sharding.make_mesh(stage.parallel)
  ways = 1 if mesh is None else sharding.data_parallel_ways(mesh)
  if stage.evaluation.batch_prompts % ways:
    found = stage.evaluation.batch_prompts
    raise UserError(
      f"evaluation.batch_prompts: found {found}, allowed: a multiple of {ways}, the data-parallel devices"
    )
  tokenizer, form = policy.open_tokenizer(stage.model, stage.prompt)
  model = policy.read_architecture(stage.model, form, stage.parallel.tensor, mesh)
  environment = None if stage.evaluation.sets else policy.open_environment(stage, tokenizer, form)
  return programs.Setup(stage, model, form, mesh, environment=environment), tokenizer


def load_dataset(setup: programs.Setup, tokenizer, limit: int | None):
  """The TokenDataset of evaluation.data; limit: examples at most, if that is fewer than the config's own limit."""
  evaluation = setup.run.evaluation
  own = [number for number in (limit, evaluation.data.limit) if number is not None]
  data = dataclasses.replace(evaluation.data, limit=min(own, default=None))
  evaluation = dataclasses.replace(evaluation, data=data)
  worlds = opening.worlds(setup, tokenizer)
  return held_out.load_dataset(evaluation, setup.run.prompt, tokenizer, setup.form, worlds)


def read_params(setup: programs.Setup, workdir: str | None, step: int | None):
  """(step, the policy's parameters), on the mesh if there is one; a model directory has no step."""
  if workdir is not None:
    averaged = programs.averages(workdirs.read_run(workdir)[-1], "evaluation")
    return workdirs.find_policy(workdir, setup.model, setup.mesh, step, averaged)
  source = dataclasses.replace(setup.run.model, weights="pretrained")
  return None, policy.load_policy(source, setup.model, setup.form, setup.run.seed, setup.mesh)


def sampling_of(setup: programs.Setup) -> SamplingConfig:
  """How completions are generated."""
  stage = setup.run
  traces = max(stage.sampling.max_trace_length, stage.data.max_trace_length)
  return stage.evaluation.sampling(traces, len(setup.form.marker_ids), stage.prompt.max_answer_length)


def build_generate(setup: programs.Setup):
  """The evaluation program of training, which takes batches from the host."""
  generate, mesh = programs.build_evaluate(setup, sampling_of(setup), setup.run.evaluation.samples), setup.mesh
  if mesh is None:
    return generate
  return lambda params, rows, key: generate(params, sharding.place_rows(mesh, rows), key)


# ---- What was written before ---------------------------------------------------------------------------------------


def workdir_cache(workdir: str | None) -> str | None:
  """Where a workdir keeps what was written in evaluations; None without one, or where we may not write."""
  if workdir is None or not os.access(workdir, os.W_OK):
    return None
  return os.path.join(workdir, "evaluations")


def opener(setup: programs.Setup, params, directory: str | None):
  """name of a set -> its Store; None for all if there is no directory."""
  if directory is None:
    return lambda name: None
  settings = {**determines(setup), "weights": weights(params)}
  return lambda name: Store(directory, name, settings)


def determines(setup: programs.Setup) -> dict:
  """All that determines what is written to a question, but for the weights."""
  stage, shown = setup.run, lambda value: None if value is None else dataclasses.asdict(value)
  return {
    "seed": stage.seed,
    "samples": stage.evaluation.samples,
    "sampling": shown(sampling_of(setup)),
    "format": shown(setup.form),
    "model": shown(setup.decoder),
    "environment": stage.environment_name if setup.environment else None,
    "environment_config": shown(stage.environment) if setup.environment else None,
    "parallel": shown(stage.parallel),
    "jax": f"{jax.__version__} {jax.default_backend()}",
  }


def weights(params) -> str:
  """A digest of all parameters, as they were loaded."""
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return digest(digests.of_arrays({jax.tree_util.keystr(path): leaf for path, leaf in leaves}))


class Reporter:
  """Says after each batch how far an evaluation of `total` examples is, and how long the rest will take.

  The rate is that of batches for which the program ran, without the first, in which it may have been compiled.
  """

  def __init__(self, enabled: bool, total: int, clock=time.monotonic):
    self._enabled, self._total, self._clock = enabled, total, clock
    self._first = None  # (seconds, examples for which the program ran) after the first such batch

  def __call__(self, done: int, new: int) -> None:
    now, left = self._clock(), math.nan
    if self._first is None and new:
      self._first = (now, new)
    elif new > (self._first or (0, 0))[1]:
      left = (self._total - done) * (now - self._first[0]) / (new - self._first[1])
    if self._enabled:
      eta = f", ETA {duration(left)}" if done < self._total else ""
      output.note(f"evaluated {done:,} of {self._total:,} examples{eta}")


# ---- Output --------------------------------------------------------------------------------------------------------


def write(args, report: dict, completions: list) -> None:
  """Prints the metrics, with their intervals of 95 %, and writes the requested files."""
  width = max(map(len, report["metrics"]))
  for name, value in report["metrics"].items():
    interval = report["intervals"].get(name)
    print(f"{name:<{width}}  {value:.4f}" + ("  [{:.4f}, {:.4f}]".format(*interval) if interval else ""))
  print(overlong.summary(report["examples"], report["overlong"]))
  write_files(args, report, list(map(dataclasses.asdict, completions)))


def write_sets(args, report: dict, found: list) -> None:
  """Prints the table of built-in sets, and writes the requested files."""
  report = {**report, "sets": {one.name: part for one, part, _ in found}}
  print(built_in_sets.table(report["sets"]))
  write_files(args, report, built_in_sets.as_rows(found))


def write_files(args, report: dict, rows: list) -> None:
  """The files that --output and --completions name."""
  for path in filter(None, (args.output, args.completions)):
    output.make_parent(path)
  if args.output:
    write_json(args.output, report)
  if args.completions:
    write_text(args.completions, json_lines(rows), errors="backslashreplace")
