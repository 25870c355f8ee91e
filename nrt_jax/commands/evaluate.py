"""`nrt-jax evaluate`: evaluates a checkpoint or a model directory on a config's evaluation data."""

import contextlib
import dataclasses
import os

import jax

from nrt_jax import config, sharding
from nrt_jax import workdir as workdirs
from nrt_jax.commands import configs, export, output, tournament
from nrt_jax.data import endings, overlong
from nrt_jax.errors import UserError, require_choice
from nrt_jax.evaluation import held_out, summary
from nrt_jax.files import json_lines, write_json, write_text
from nrt_jax.step import opening, policy, programs


def run(args) -> None:
  stage = choose_stage(config.stages_of(configs.load_config(args.config, args.overrides)), args.stage)
  if stage.evaluation.data is None:
    raise UserError("evaluation.data: found null, allowed: a data set, say --config.evaluation.data.source=FILE")
  output.check_file(args.output, "--output")
  output.check_file(args.completions, "--completions")
  if args.tournament:
    tournament.check(stage, args.tournament, args.votes)
  if args.model is not None and args.step is not None:
    raise UserError(f"--step: found {args.step!r} with --model, which holds no checkpoints, allowed: --checkpoint")
  workdir, step = (None, None) if args.model is not None else find_checkpoint(args)
  workdirs.keep_compiled(output.cache_directory() if workdir is None else workdir)
  setup, tokenizer, dataset = prepare(with_source(stage, args.model, workdir))
  with contextlib.nullcontext() if setup.mesh is None else jax.set_mesh(setup.mesh):
    step, params = read_params(setup, workdir, step)
    output.note(endings.describe(tokenizer, setup.form))
    arguments = (build_generate(setup), params, dataset, stage.evaluation, tokenizer, setup.form)
    metrics, completions = held_out.evaluate(*arguments, jax.random.key(stage.seed), reporter(stage, len(dataset)))
    if args.tournament:
      output.note(f"tournaments of {args.tournament} samples")
      metrics |= tournament.run(setup, tokenizer, params, (workdir, step), args.tournament, args.votes)
  source = {"model": args.model} if args.model else {"checkpoint": args.checkpoint, "step": step}
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
  """(Setup, tokenizer, TokenDataset). Raises for errors in files, mesh and model."""
  mesh = None if stage.parallel.kind == "pmap" else sharding.make_mesh(stage.parallel)
  ways = 1 if mesh is None else sharding.data_parallel_ways(mesh)
  if stage.evaluation.batch_prompts % ways:
    found = stage.evaluation.batch_prompts
    raise UserError(
      f"evaluation.batch_prompts: found {found}, allowed: a multiple of {ways}, the data-parallel devices"
    )
  tokenizer, form = policy.open_tokenizer(stage.model, stage.prompt)
  model = policy.read_architecture(stage.model, form, stage.parallel.tensor, mesh)
  setup = programs.Setup(stage, model, form, mesh, environment=policy.open_environment(stage, tokenizer, form))
  worlds = opening.worlds(setup, tokenizer)
  return setup, tokenizer, held_out.load_dataset(stage.evaluation, stage.prompt, tokenizer, form, worlds)


def read_params(setup: programs.Setup, workdir: str | None, step: int | None):
  """(step, the policy's parameters), on the mesh if there is one; a model directory has no step."""
  if workdir is not None:
    averaged = programs.averages(workdirs.read_run(workdir)[-1], "evaluation")
    return workdirs.find_policy(workdir, setup.model, setup.mesh, step, averaged)
  source = dataclasses.replace(setup.run.model, weights="pretrained")
  return None, policy.load_policy(source, setup.model, setup.form, setup.run.seed, setup.mesh)


def build_generate(setup: programs.Setup):
  """The evaluation program of training, which takes batches from the host."""
  stage, mesh = setup.run, setup.mesh
  traces = max(stage.sampling.max_trace_length, stage.data.max_trace_length)
  sampling = stage.evaluation.sampling(traces, len(setup.form.marker_ids), stage.prompt.max_answer_length)
  generate = programs.build_evaluate(setup, sampling, stage.evaluation.samples)
  if mesh is None:
    return generate
  return lambda params, rows, key: generate(params, sharding.place_rows(mesh, rows), key)


def reporter(stage: config.RunConfig, total: int):
  """Says after each batch how far the evaluation is; None if `logging.progress` is off."""
  if not stage.logging.progress:
    return None
  return lambda done: output.note(f"evaluated {done:,} of {total:,} examples")


# ---- Output --------------------------------------------------------------------------------------------------------


def write(args, report: dict, completions: list) -> None:
  """Prints the metrics, with their intervals of 95 %, and writes the requested files."""
  width = max(map(len, report["metrics"]))
  for name, value in report["metrics"].items():
    interval = report["intervals"].get(name)
    print(f"{name:<{width}}  {value:.4f}" + ("  [{:.4f}, {:.4f}]".format(*interval) if interval else ""))
  print(overlong.summary(report["examples"], report["overlong"]))
  for path in filter(None, (args.output, args.completions)):
    output.make_parent(path)
  if args.output:
    write_json(args.output, report)
  if args.completions:
    write_text(args.completions, json_lines(map(dataclasses.asdict, completions)), errors="backslashreplace")
