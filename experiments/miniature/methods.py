"""The miniature study: every method of the table ALGORITHMS from the same start, on small tasks, over seeds.

    python experiments/miniature/methods.py                       # everything, under runs/methods; it resumes
    python experiments/miniature/methods.py --tasks running_sum --methods sft nrt_prob --seeds 0
    python experiments/miniature/methods.py --report_only         # tables and curves of what is finished

For each task and seed a tiny Llama is pretrained once, by next-token prediction on examples of which few show their
trace. Every method starts from that checkpoint and sees the same prompts in the same order, with the same number of
samples, steps and optimizer updates and the same trace limit. Each finished run is one line of results.jsonl.

Cost and results: docs/results/methods.md.
"""

import argparse
import os
import sys
import time

import jax
import jax.numpy as jnp
import methods_recipe
import methods_report
import numpy as np
from methods_recipe import METHODS, TASKS

from nrt_jax import arrays, training, workdir
from nrt_jax.commands.configs import plain
from nrt_jax.config import RunConfig, stages_of
from nrt_jax.data import batches
from nrt_jax.errors import UserError, require_choice
from nrt_jax.evaluation import held_out
from nrt_jax.files import append_json_line, read_json_lines
from nrt_jax.step import host_grading, policy, programs, tools

POINTS = 3  # evaluations after the initial one
PROBE_PROMPTS, PROBE_SAMPLES = 64, 4  # held-out prompts, and traces sampled per prompt to score answers after


# --------------------------------------------------------------------------------------------------------------- runs


class Bench:
  """What the runs of one task share: data, pretrained models and compiled programs. These do not depend on the seed."""

  def __init__(self, task: str, root: str, steps: int, pretrain_steps: int):
    self.task, self.root, self.steps, self.pretrain_steps = task, os.path.join(root, task), steps, pretrain_steps
    self.model_path = os.path.join(self.root, "model")
    methods_recipe.make_model_directory(task, self.model_path)
    base = methods_recipe.method_config(task, "nrt_ws_log", self.model_path, steps)
    self.tokenizer, self.form = policy.open_tokenizer(base.model, base.prompt)
    self.model = policy.read_architecture(base.model, self.form)
    self._held_out = batches.load_dataset(base.evaluation.data, base.prompt, self.tokenizer, self.form)
    setup = programs.Setup(base, self.model, self.form, mesh=None)
    self._generate = programs.build_generate(setup, base.evaluation.sampling(0, 0, 0))
    self._evaluation = base.evaluation
    self._probe = jax.jit(build_probe(setup, TASKS[task].hard))
    self._datasets, self._programs, self._starts = {}, {}, {}

  def start(self, seed: int):
    """Returns (pretrained parameters, their evaluation), pretraining first if necessary."""
    if seed not in self._starts:
      directory = os.path.join(self.root, f"pretrain_{self.pretrain_steps}_{seed}")
      values = plain(methods_recipe.pretrain_config(self.task, self.model_path, self.pretrain_steps, seed), "")
      training.train_to_end(stages_of(values), directory, values)
      params = workdir.read_policy(directory, self.model)
      self._starts[seed] = params, self.evaluate(params, 0)
    return self._starts[seed]

  def evaluate(self, params, step: int) -> dict:
    """One point of the curves: greedy completions, and answers scored after sampled traces."""
    key = jax.random.key(0)  # the same random numbers for all methods
    greedy, _ = held_out.evaluate(
      self._generate, params, self._held_out, self._evaluation, self.tokenizer, self.form, key
    )
    first = np.arange(min(PROBE_PROMPTS, len(self._held_out)))
    probed = self._probe(params, jax.device_put(self._held_out.gather(first, first)), key)
    named = {"accuracy": greedy["eval/heldout/accuracy"], "greedy_trace": greedy["eval/heldout/trace_length"]}
    return {"step": step, **named, **{name: float(value) for name, value in probed.items()}}

  def dataset(self, run: RunConfig, hints: bool):
    if hints not in self._datasets:
      self._datasets[hints] = batches.load_dataset(run.data, run.prompt, self.tokenizer, self.form, hints)
    return self._datasets[hints]

  def program(self, name: str, states, batch, setup):
    """The method's step, compiled once for all seeds: the seed is in the states and the batch."""
    if name not in self._programs:
      self._programs[name] = host_grading.compile_train_step(setup, states, batch, self.tokenizer)
    return self._programs[name]

  def run(self, name: str, seed: int) -> dict:
    """Trains a method; returns its line of results.jsonl."""
    params, first = self.start(seed)
    clock = time.monotonic()
    run = methods_recipe.method_config(self.task, name, self.model_path, self.steps)
    setup = programs.Setup(run, self.model, self.form, mesh=None)
    dataset = self.dataset(run, setup.algorithm.needs_hints)
    # A step donates its states, so they must not share buffers with the other methods' start.
    states = programs.init_states(setup, jax.tree.map(jnp.copy, params), jax.random.key(seed))
    points = {round(self.steps * share / POINTS) for share in range(1, POINTS + 1)}
    position, curve, history, generated = batches.Position(), [first], [], 0.0
    for step in range(1, self.steps + 1):
      batch, position = batches.batch(dataset, position, run.prompts_per_step, seed)
      batch = jax.device_put(batch)
      states, metrics, _ = self.program(name, states, batch, setup)(states, batch)
      metrics = {key: float(value) for key, value in jax.device_get(metrics).items()}
      generated += metrics.get("tokens/generated", 0.0)
      history.append(metrics)
      if step in points:
        curve.append(self.evaluate(states.policy.params, step))
    return {
      "task": self.task, "method": name, "seed": seed, "steps": self.steps, "pretrain_steps": self.pretrain_steps,
      "generated": int(generated), "seconds": round(time.monotonic() - clock, 1),
      "curve": rounded(curve), "training": rounded(columns(history)),
    }  # fmt: skip


def build_probe(setup: programs.Setup, hard: tuple):
  """Returns (params, prompts, key) -> {name: []}, metrics of held-out answers after traces sampled as in training."""
  run = setup.run.__class__(**{**vars(setup.run), "samples_per_prompt": PROBE_SAMPLES})
  setup = setup._replace(run=run)

  def probe(params, prompts, key):
    rollouts, scores, empty = tools.rollout(setup, params, prompts, key)
    length_N = arrays.repeat_rows(prompts.answer_length_B, PROBE_SAMPLES)
    column_A = jnp.arange(prompts.answer_BA.shape[1])
    mask_NA = column_A[None] < length_N[:, None]
    empty_NA = arrays.repeat_rows(empty.answer_logp_NA, PROBE_SAMPLES)
    mean = jnp.mean(scores.answer_logp_NA, where=mask_NA)
    found = {
      "logp": mean,  # per answer token, including the end token
      "gain": mean - jnp.mean(empty_NA, where=mask_NA),
      "prob": jnp.mean(jnp.exp(jnp.sum(scores.answer_logp_NA, axis=1, where=mask_NA))),
      "trace": jnp.mean(rollouts.length_N - rollouts.ended_N),
      "marker": jnp.mean(rollouts.marker_N),
      # E[-log π] over the sampled tokens, including the stop token, is the policy's entropy.
      "entropy": -rollouts.logp_NR.sum() / rollouts.length_N.sum(),
    }
    if hard:
      found["hard_logp"] = jnp.mean(scores.answer_logp_NA[:, jnp.array(hard)])
    return found

  return probe


TRAINING = ("reward/mean", "reward/std", "advantage/abs_mean", "trace/length_mean", "answer/logp", "policy/entropy")


def columns(history: list[dict]) -> dict:
  """Metrics of the training steps, {metric: [value per step]}, for those that the method has."""
  return {name: [line[name] for line in history] for name in TRAINING if name in history[0]}


def rounded(tree):
  return jax.tree.map(lambda x: float(f"{x:.5g}") if isinstance(x, float) else x, tree)


# -------------------------------------------------------------------------------------------------------------- study


def planned(args) -> list[tuple]:
  """(task, seed, method) in the order in which they run."""
  return [
    (task, seed, name)
    for task in args.tasks
    for seed in args.seeds
    for name in args.methods
    if METHODS[name].family in TASKS[task].families
  ]


def lengths(args, task: str) -> tuple[int, int]:
  """Steps of each method and of pretraining, from the flags or the task."""
  return args.steps or TASKS[task].steps, args.pretrain_steps or TASKS[task].pretrain_steps


def finished(path: str, args) -> dict:
  """Maps (task, seed, method) to its line, for runs with the same number of steps. Skips incomplete lines."""
  lines = read_json_lines(path)
  same = [line for line in lines if (line["steps"], line["pretrain_steps"]) == lengths(args, line["task"])]
  return {(line["task"], line["seed"], line["method"]): line for line in same}


def study(args) -> None:
  """Runs whatever is not finished yet."""
  path = os.path.join(args.workdir, "results.jsonl")
  os.makedirs(args.workdir, exist_ok=True)
  workdir.keep_compiled(args.workdir)
  done = finished(path, args)
  left = [key for key in planned(args) if key not in done]
  start, bench = time.monotonic(), None
  for number, (task, seed, name) in enumerate(left, 1):
    if bench is None or bench.task != task:
      bench = Bench(task, args.workdir, *lengths(args, task))
    line = bench.run(name, seed)
    append_json_line(path, line)
    last, spent = line["curve"][-1], time.monotonic() - start
    print(
      f"[{number}/{len(left)}] {task} seed {seed} {name}: accuracy {last['accuracy']:.3f} log p {last['logp']:.3f} "
      f"trace {last['trace']:.1f}  {line['seconds']:.0f} s, left {(len(left) - number) * spent / number / 60:.0f} min",
      file=sys.stderr, flush=True,
    )  # fmt: skip


def read_flags(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help=f"of {', '.join(TASKS)}")
  parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD", help=f"of {', '.join(METHODS)}")
  parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
  parser.add_argument("--workdir", default="runs/methods", help="results, starting points, programs (%(default)s)")
  parser.add_argument("--steps", type=int, default=0, help="of each method; 0 = those of the task (default)")
  parser.add_argument("--pretrain_steps", type=int, default=0, help="0 = those of the task (default)")
  parser.add_argument("--report_only", action="store_true", help="run nothing, report what is finished")
  parser.add_argument("--page", help="Markdown file whose tables are filled in; the figures are put beside it")
  args = parser.parse_args(argv)
  for flag, found, allowed in (("--tasks", args.tasks, TASKS), ("--methods", args.methods, METHODS)):
    for name in found:
      require_choice(flag, name, allowed)
  return args


def main(argv=None) -> None:
  args = read_flags(argv)
  if not args.report_only:
    study(args)
  done = finished(os.path.join(args.workdir, "results.jsonl"), args)
  families = {name: method.family for name, method in METHODS.items()}
  lines = [done[key] for key in planned(args) if key in done]
  methods_report.report(lines, families, args.page, os.path.join(args.workdir, "report"))


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"methods: {error}")
