"""Programs graded by an environment inside of the sampling program, against the same graded on the host.

    python experiments/benchmarks/environments.py

Three minutes on 2 CPU cores. A policy of two layers learns for some steps to write the reference program of a task,
so that its samples are programs that run. Then 256 of its completions are sampled and graded on 16 test cases each, in
turn by the environment `program`, and by the task's own grader in Python between two programs. An episode is a sampled
and graded completion. The verdicts are compared. Target: 5 times as many episodes per second.
"""

import argparse
import os
import statistics
import tempfile
import time

import jax
import numpy as np

from nrt_jax import training, workdir
from nrt_jax.commands.configs import base_config, plain
from nrt_jax.config import stages_of
from nrt_jax.data import batches
from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.step import host_grading, opening, policy
from nrt_jax.step.tools import make_tools
from nrt_jax.tasks import table as tasks

PROMPTS, SAMPLES = 32, 8


def values_of(algorithm: str, language: str, kind: str, model: str) -> dict:
  options = {"kind": kind, "direction": "write"}
  task = tasks.make_task(language, "train", options)
  config = base_config(algorithm)
  config.model.path, config.model.weights = model, "random"
  config.prompts_per_step, config.samples_per_prompt = PROMPTS, SAMPLES
  config.prompt.max_prompt_length = 24
  config.prompt.max_answer_length = len(task.reference()) + 2
  config.sampling.max_trace_length = len(task.reference()) + 4
  config.data.source, config.data.task_options, config.data.examples = f"task:{language}", options, 512
  config.optimizer.learning_rate, config.optimizer.eps = 1e-3, 1e-8
  if algorithm == "dr_grpo":
    limits = task.limits
    environment = {"name": "program", "language": language, "step_limit": limits.steps}
    more = ("width", "height", "stack") if language == "befunge" else ("tape",)
    environment |= {key: getattr(limits, key) for key in more}
    config.environment = environment | ({} if language == "befunge" else {"cell_values": limits.cells})
  return plain(config, "")


def learnt(language: str, kind: str, steps: int, root: str):
  """(model directory, parameters, tokenizer) of a policy that has learnt a little to write the program."""
  model = os.path.join(root, "model")
  tokenizer = word_tokenizer(tasks.make_task(language, "train", {"kind": kind, "direction": "write"}).words, model)
  sizes = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
  sizes |= dict(num_key_value_heads=4, head_dim=16, max_position_embeddings=512)
  hf_weights.write_config(ModelConfig(vocab_size=len(tokenizer), **sizes), model)
  values = values_of("sft", language, kind, model)
  values["total_steps"], values["logging"]["tensorboard"] = steps, False
  training.train_to_end(stages_of(values), os.path.join(root, "run"), values)
  return model, os.path.join(root, "run")


def opened(language: str, kind: str, steps: int, root: str):
  """(parameters, Setup with the environment, tokenizer, a step's prompts)."""
  model, run_directory = learnt(language, kind, steps, root)
  values = values_of("dr_grpo", language, kind, model)
  values["algorithm"]["verifier"] = "environment"
  run = stages_of(values)[0]
  tokenizer, form = policy.open_tokenizer(run.model, run.prompt)
  architecture = policy.read_architecture(run.model, form)
  setup = opening.open_setup(run, architecture, tokenizer, form)
  data = batches.load_dataset(run.data, run.prompt, tokenizer, form, opening.second_texts(setup, tokenizer))
  prompts = jax.device_put(batches.batch(data, batches.Position(), PROMPTS, 0)[0])
  return workdir.read_policy(run_directory, architecture), setup, tokenizer, prompts


def measure(language: str, kind: str, steps: int, repeats: int, root: str) -> dict:
  """Seconds of both ways, and of sampling alone, in turn; how often the verdicts agree, and the share that is right."""
  params, inside, tokenizer, prompts = opened(language, kind, steps, root)
  outside = inside._replace(environment=None)
  grade = tasks.make_task(language, "train", dict(inside.run.data.task_options)).grade
  sampled = {name: jax.jit(make_tools(setup).complete) for name, setup in (("in", inside), ("host", outside))}

  def in_program(key):
    return np.asarray(sampled["in"](params, prompts, key)[0].verdict_N)

  def on_host(key):
    rollouts = sampled["host"](params, prompts, key)[0]
    return np.asarray(host_grading.label_rows(outside, tokenizer, grade, prompts, rollouts))

  def alone(key):
    return np.asarray(sampled["host"](params, prompts, key)[0].length_N)

  times, same, right = {name: [] for name in ("in", "host", "alone")}, [], []
  for n in range(repeats + 1):
    key, labels = jax.random.key(n), {}
    for name, way in (("in", in_program), ("host", on_host), ("alone", alone)):
      start = time.perf_counter()
      labels[name] = way(key)
      if n:  # the first compiles
        times[name].append(time.perf_counter() - start)
    same.append(np.mean(labels["in"] == labels["host"]))
    right.append(np.mean(labels["host"]))
  return {"times": times, "same": min(same), "right": statistics.mean(right)}


HEAD = ("task", "right", "same verdict", "sampling alone, s", "in the program, s", "on the host, s", "grading, ratio",
        "episodes per second, in the program", "on the host", "ratio")  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--kinds", nargs="+", default=["brainfuck:copy", "brainfuck:sort", "befunge:factorial"])
  parser.add_argument(
    "--steps", type=int, default=150, help="that the policy learns to write the program (%(default)s)"
  )
  parser.add_argument("--repeats", type=int, default=9)
  args = parser.parse_args()
  rows = PROMPTS * SAMPLES
  print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; {rows} episodes at a time, median of {args.repeats}")
  print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
  with tempfile.TemporaryDirectory() as root:
    for name in args.kinds:
      found = measure(*name.split(":"), args.steps, args.repeats, os.path.join(root, name.replace(":", "_")))
      print(row(name, found), flush=True)


def row(name: str, found: dict) -> str:
  medians, rows = {key: statistics.median(values) for key, values in found["times"].items()}, PROMPTS * SAMPLES
  grading = {key: max(medians[key] - medians["alone"], 1e-9) for key in ("in", "host")}
  ratios = [host / own for host, own in zip(found["times"]["host"], found["times"]["in"])]
  cells = [f"{found['right']:.2f}", f"{found['same']:.3f}", *(f"{medians[key]:.3f}" for key in ("alone", "in", "host"))]
  cells += [f"{grading['host'] / grading['in']:.1f}", *(f"{rows / medians[key]:,.0f}" for key in ("in", "host"))]
  return f"| {name} | {' | '.join(cells)} | {statistics.median(ratios):.2f} |"


if __name__ == "__main__":
  main()
