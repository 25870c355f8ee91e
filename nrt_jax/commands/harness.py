"""`nrt-jax harness`: tasks of lm-evaluation-harness on a checkpoint or a model directory."""

import importlib.util
import json
import os

from nrt_jax import workdir as workdirs
from nrt_jax.commands import output
from nrt_jax.errors import UserError
from nrt_jax.files import cache_directory, json_lines, write_json, write_text

MODEL_FLAGS = ("checkpoint", "step", "compute_dtype", "data", "tensor", "marker", "max_trace_length", "max_length")


def run(args) -> None:
  if importlib.util.find_spec("lm_eval") is None:
    raise UserError("harness: the package lm-eval is not installed: pip install nrt_jax[eval]")
  output.check_file(args.output, "--output")
  output.check_file(args.samples, "--samples")
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
  # Imported here: --help and mistakes in other commands need no lm-eval.
  from nrt_jax.harness.model import NrtLM
  from nrt_jax.harness.tasks import open_tasks

  names = [name.strip() for name in args.tasks.split(",") if name.strip()]
  tasks = open_tasks(names, args.include_path)
  workdirs.keep_compiled(cache_directory() if args.model else workdirs.find_workdir(args.checkpoint))
  source = {name: getattr(args, name) for name in MODEL_FLAGS}
  model = NrtLM(args.batch, args.keep_traces, args.seed, path=args.model, **source)
  output.note(f"harness: {', '.join(names)}; {describe_traces(model)}")
  results = evaluate(model, names, tasks, args)
  samples = results.pop("samples", {})
  write(args, results, [{"task": task, **row} for task, rows in samples.items() for row in rows])


def evaluate(model, names: list, tasks, args) -> dict:
  """The harness's results."""
  from lm_eval import evaluator

  try:
    return evaluator.simple_evaluate(
      model,
      tasks=names,
      task_manager=tasks,
      num_fewshot=args.num_fewshot,
      limit=args.limit,
      batch_size=args.batch,
      apply_chat_template=args.chat,
      system_instruction=args.system,
      log_samples=args.samples is not None,
    )
  except ValueError as error:  # say, of a task that runs code of the model
    raise UserError(f"--tasks: {error}") from error


def describe_traces(model) -> str:
  """What becomes of traces, for people."""
  if not model.opened.trace_length:
    return "the model is asked for answers alone"
  kept = "kept" if model.keep_traces else "stripped"
  return f"the model writes traces of up to {model.opened.trace_length} tokens, which are {kept}"


def write(args, results: dict, samples: list) -> None:
  """Prints the harness's tables and writes the requested files."""
  from lm_eval.utils import handle_non_serializable, make_table

  print(make_table(results))
  if results.get("groups"):
    print(make_table(results, "groups"))
  for path in filter(None, (args.output, args.samples)):
    output.make_parent(path)
  results, samples = json.loads(json.dumps([results, samples], default=handle_non_serializable))
  if args.output:
    source = {"model": args.model} if args.model else {"checkpoint": args.checkpoint, "step": args.step}
    write_json(args.output, {**source, **results})
  if args.samples:
    write_text(args.samples, json_lines(samples), errors="backslashreplace")
