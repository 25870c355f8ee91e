"""What the experiments on learning to reason from the get-go share: phases, arms, and a bench that runs them.

An arm is a list of phases from random weights: each phase trains by one row of ALGORITHMS on one set of examples. Arms
that begin with the same phases share them. Along an arm we count sampled tokens, trained tokens and model FLOPs
(model/costs.py), and measure accuracy; so arms are compared at equal sampled tokens and, apart from it, at equal FLOPs.
Each finished arm of a seed is one line of results.jsonl.
"""

import argparse
import copy
import dataclasses
import os
import sys
import time

import cells
import jax
import jax.numpy as jnp
import numpy as np
import report
from lanes import Lane

from nrt_jax import rows, workdir
from nrt_jax.algorithms import policy_gradient as pg
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.commands.configs import base_config, override, plain
from nrt_jax.config import RunConfig, stages_of
from nrt_jax.data import batches, sources
from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.errors import UserError, require_choice
from nrt_jax.evaluation import held_out
from nrt_jax.files import append_json_line, fill_directory, read_json_lines
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.reporting import charts
from nrt_jax.rollout import scoring
from nrt_jax.step import host_grading, opening, policy, programs, throughput

LAYERS = 2  # of width 64
POINTS = 4  # evaluations of a phase
CHECK = 25  # steps between looks at whether a phase may end
PROBED, SAMPLES = 64, 32  # test questions, and completions sampled for each, behind pass@1 and pass@32
WHOLE = ("grpo", "dr_grpo", "rloo", "dapo", "gspo", "rft", "nft")  # the model samples its own answer too


@dataclasses.dataclass(frozen=True)
class Phase:
  """Training by one method on one set of examples."""

  algorithm: str  # a row of ALGORITHMS
  steps: int
  data: str  # a name in Bench.data
  prompts: int = 16  # per step
  samples: int = 1  # of each prompt
  settings: tuple = ()  # (dotted config key, value) pairs over the method's defaults
  given: bool = False  # a start that is given to all arms: it counts no tokens and no FLOPs
  bar: float | None = None  # greedy accuracy on the test questions that ends it before its last step
  # Trained at the same time, by an optimizer of its own: from the same parameters each of the two makes its step, and
  # the mean of both is where the next one begins (parallel averaging, arXiv 2606.04272)
  beside: "Phase | None" = None

  @property
  def whole(self) -> bool:
    """Whether the limit on what is sampled covers the answer."""
    return self.algorithm in WHOLE and ("algorithm.verifier", "likelihood") not in self.settings


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Tokens, for all data sets of a bench."""

  prompt: int
  trace: int  # the longest shown, and the longest that may be sampled, its stop token included
  answer: int  # the end token included


@dataclasses.dataclass(frozen=True)
class Sets:
  """Data sets by name, as keys of `data`."""

  train: dict  # what phases may train on
  test: dict  # what is evaluated; "test" itself, "train" and shifts of the distribution
  words: tuple  # of all of them


class Bench:
  """Data, evaluations and compiled programs, which do not depend on the seed."""

  measure = "accuracy"  # what is right: by the task's grader | verdict: by the environment's

  def __init__(self, root: str, sets: Sets, lengths: Lengths, environment: dict | None = None, window=None):
    """environment: its keys, where the policy samples in one; window: tokens that each layer sees; None: all."""
    self.sets, self.lengths, self.model_path = sets, lengths, os.path.join(root, "model")
    self.environment = environment
    fill_directory(self.model_path, lambda path: write_model(path, sets.words, window))
    run = self.config(Phase("sft", 1, next(iter(sets.train))))
    self.tokenizer, self.form = policy.open_tokenizer(run.model, run.prompt)
    self.model = policy.read_architecture(run.model, self.form)
    lives = self.config(Phase("dr_grpo", 1, next(iter(sets.train)), samples=2))
    setup = opening.open_setup(lives, self.model, self.tokenizer, self.form)
    config = held_out.EvaluationConfig(max_completion_length=lengths.trace + 1 + lengths.answer, batch_prompts=128)
    self._greedy = programs.build_generate(setup, config.sampling(0, 0, 0))
    self._probe = jax.jit(build_probe(setup, dataclasses.replace(config, temperature=1.0).sampling(0, 0, 0)))
    self._evaluation = {
      name: dataclasses.replace(config, data=self._data(values)) for name, values in sets.test.items()
    }
    worlds = opening.worlds(setup, self.tokenizer)
    self._held_out = {name: self._load(one.data, worlds) for name, one in self._evaluation.items()}
    self._datasets, self._programs, self._reached = {}, {}, {}

  # ------------------------------------------------------------------------------------------------------ configs

  def config(self, phase: Phase) -> RunConfig:
    """The config of a phase. The seed is not part of it: it is in the states and the order of the data."""
    values, lengths = plain(base_config(phase.algorithm), ""), self.lengths
    values.update(total_steps=phase.steps, prompts_per_step=phase.prompts, samples_per_prompt=phase.samples)
    values["model"].update(path=self.model_path, weights="random")
    values["prompt"].update(max_prompt_length=lengths.prompt, max_answer_length=lengths.answer)
    values["sampling"]["max_trace_length"] = lengths.trace + (1 + lengths.answer if phase.whole else 0)
    values["data"].update(copy.deepcopy(self.sets.train[phase.data]))  # a phase's settings are its own
    if phase.algorithm == "sft":
      values["data"]["max_trace_length"] = lengths.trace
    values["optimizer"].update(eps=1e-8, learning_rate=1e-3)
    if self.environment is not None and ALGORITHMS[phase.algorithm].lives_in_worlds:
      values["environment"] = dict(self.environment)
    for key, value in phase.settings:
      override(values, key.split("."), str(value))
    return stages_of(values)[0]

  def _data(self, values: dict) -> sources.DataConfig:
    return sources.DataConfig(**values)

  def _load(self, data: sources.DataConfig, texts=False) -> batches.TokenDataset:
    """texts: of an environment's worlds, or False."""
    prompt = self.config(Phase("sft", 1, next(iter(self.sets.train)))).prompt
    return batches.load_dataset(data, prompt, self.tokenizer, self.form, texts)

  # ------------------------------------------------------------------------------------------------------ measures

  def accuracy(self, params, name: str) -> dict:
    """The share of greedy completions that are right, and the length of their traces."""
    arguments = (self._held_out[name], self._evaluation[name], self.tokenizer, self.form, jax.random.key(0))
    found, _ = held_out.evaluate(self._greedy, params, *arguments)
    return {name: found[f"eval/heldout/{self.measure}"], f"{name}_trace": found["eval/heldout/trace_length"]}

  def probe(self, params, start) -> dict:
    """pass@1 and pass@32 of sampled completions, the policy's entropy, and its KL from `start`, per token."""
    data, first = self._held_out["test"], np.arange(min(PROBED, len(self._held_out["test"])))
    batch = jax.device_put(data.gather(first, first))
    rollouts, own, others = jax.device_get(self._probe(params, start, batch, jax.random.key(0)))
    grade, right = held_out.grader(self._evaluation["test"].data), np.zeros((len(first), SAMPLES), bool)
    if self.measure == "verdict":
      right |= rollouts.verdict_N.reshape(right.shape) > 0.5
    for n, length in enumerate(rollouts.length_N if self.measure == "accuracy" else ()):
      b, k = divmod(n, SAMPLES)
      ids = rollouts.token_NR[n, :length].tolist()
      right[b, k] = held_out.read_completion(self.tokenizer, self.form, ids, data.examples[b], grade).correct
    tokens = rollouts.length_N.sum()
    found = {"pass_1": right.mean(), f"pass_{SAMPLES}": right.any(axis=1).mean()}
    return {**found, "entropy": -own.sum() / tokens, "kl_start": (own.sum() - others.sum()) / tokens}

  def also(self, params) -> dict:
    """What else a study measures at the end of an arm: name -> number."""
    return {}

  # ---------------------------------------------------------------------------------------------------------- runs

  def run(self, arm: tuple, seed: int) -> dict:
    """Trains an arm, a tuple of phases; returns its curve and what is measured at its end."""
    clock = time.process_time()
    at = self._start(seed)
    for count in range(1, len(arm) + 1):
      key = seed, arm[:count]
      if key not in self._reached:
        self._reached[key] = self._run_phase(at, arm[count - 1], seed, count)
      start, at = at, self._reached[key]
    end = self.probe(at["params"], start["params"])
    for name in self._held_out:
      end |= self.accuracy(at["params"], name)
    end |= self.also(at["params"])
    return {"curve": rounded(at["curve"]), "end": rounded(end), "cpu_seconds": round(time.process_time() - clock, 1)}

  def forget(self) -> None:
    """Drops what arms of a seed have shared."""
    self._reached.clear()

  def _start(self, seed: int) -> dict:
    """Random weights, where every arm of a seed begins."""
    run = self.config(Phase("sft", 1, next(iter(self.sets.train))))
    setup = programs.Setup(run, self.model, self.form, None)
    params = policy.load_policy(run.model, setup.model, self.form, seed)
    return {"params": params, "curve": [], "counts": {"sampled": 0.0, "trained": 0.0, "flops": 0.0}}

  def _run_phase(self, at: dict, phase: Phase, seed: int, number: int) -> dict:
    lanes = [Lane(self, one, at["params"], 1000 * number + seed) for one in (phase, phase.beside) if one is not None]
    counts, curve = dict(at["counts"]), list(at["curve"])
    points = {round(phase.steps * share / POINTS) for share in range(1, POINTS + 1)}
    for step in range(1, phase.steps + 1):
      for lane in lanes:
        lane.step(seed)
      if len(lanes) > 1:
        mean = jax.tree.map(lambda *params: sum(params) / len(params), *(lane.params for lane in lanes))
        for lane in lanes:
          lane.go_on_from(mean)
      looked = phase.bar is not None and step % CHECK == 0
      accuracy = self.accuracy(lanes[0].params, "test") if looked or step in points and not phase.given else {}
      over = step == phase.steps or looked and accuracy["test"] >= phase.bar
      if step in points or over:
        shown = [lane.take_metrics(counts) for lane in lanes][0]
        accuracy = accuracy or (self.accuracy(lanes[0].params, "test") if over else {})
        curve.append({"phase": number, "step": step, **counts, **accuracy, **shown})
      if over:
        break
    return {"params": lanes[0].params, "curve": curve, "counts": counts}

  def dataset(self, run: RunConfig, setup: programs.Setup) -> batches.TokenDataset:
    """What a phase trains on, read once."""
    key = run.data, run.environment
    if key not in self._datasets:
      self._datasets[key] = self._load(run.data, opening.second_texts(setup, self.tokenizer))
    return self._datasets[key]

  def program(self, phase: Phase, setup: programs.Setup, states, batch):
    """The compiled step, and the Work that its FLOPs are counted by; compiled once for all seeds."""
    key = dataclasses.replace(phase, given=False, beside=None, bar=None)
    if key not in self._programs:
      compiled = host_grading.compile_programs(setup, states, batch)
      work = throughput.Work(setup, throughput.phases_in(compiled), None)
      self._programs[key] = host_grading.assemble(setup, self.tokenizer, *compiled), work
    return self._programs[key]


def write_model(directory: str, words: tuple, window: int | None) -> None:
  """The tokenizer and the architecture of the models, in Hugging Face format."""
  tokenizer = word_tokenizer(words, directory)
  sizes = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=LAYERS, num_attention_heads=4)
  sizes |= dict(num_key_value_heads=4, head_dim=16, max_position_embeddings=256)
  sizes |= {} if window is None else dict(family="mistral", sliding_window=window)
  hf_weights.write_config(ModelConfig(vocab_size=len(tokenizer), **sizes), directory)


def build_probe(setup: programs.Setup, sampling):
  """(params, start, prompts, key) -> Rollouts, and the log-probabilities of their tokens under both, `[N]` each."""
  generate = programs.build_generate(setup, sampling, SAMPLES)

  def probe(params, start, prompts, key):
    rollouts = generate(params, prompts, key)
    prompt_NP, length_N = (jnp.repeat(x, SAMPLES, axis=0) for x in (prompts.prompt_BP, prompts.prompt_length_B))
    nothing_NA, none_N = jnp.zeros((len(length_N), 0), jnp.int32), jnp.zeros_like(length_N)
    completion = rollouts.token_NR, rollouts.length_N
    made = rows.splice(prompt_NP, length_N, *completion, (), nothing_NA, none_N, setup.form.pad_id)
    logp_NL = scoring.row_log_probs(start, setup.model, made.token_NL, made.position_NL, made.first)[0]
    own_NL = made.trace_mask_NL & ~pg.forced_columns(rollouts, rollouts.length_N, made, 0, 0)
    return rollouts, rollouts.logp_NR.sum(axis=1), jnp.sum(logp_NL, axis=1, where=own_NL)

  return probe


def rounded(tree):
  return jax.tree.map(lambda x: float(f"{float(x):.5g}") if isinstance(x, (float, np.floating)) else x, tree)


# --------------------------------------------------------------------------------------------------------------- study


def finished(path: str, steps: float) -> dict:
  """{(task, arm, seed): its line} of runs with this factor on their steps. An incomplete line is skipped."""
  lines = [line for line in read_json_lines(path) if line["steps"] == steps]
  return {(line["task"], line["arm"], line["seed"]): line for line in lines}


def scaled(arm: tuple, steps: float) -> tuple:
  """The arm with every phase's steps times a factor, at least one step each."""
  return tuple(dataclasses.replace(phase, steps=max(1, round(phase.steps * steps))) for phase in arm)


def study(args, tasks: dict, make_bench) -> None:
  """Runs what is not finished yet. tasks: name -> {arm: phases}; make_bench: (task, directory) -> Bench."""
  path = os.path.join(args.workdir, "results.jsonl")
  os.makedirs(args.workdir, exist_ok=True)
  done = finished(path, args.steps)
  if args.processes > 1:
    left = [(task, seed, arm) for task in args.tasks for seed in args.seeds for arm in args.arms if arm in tasks[task]]
    same = ["--workdir", args.workdir, "--steps", str(args.steps)]
    cells.run(
      [
        ["--tasks", task, "--seeds", str(seed), "--arms", arm, *same]
        for task, seed, arm in left
        if (task, arm, seed) not in done
      ],
      args.processes,
    )
    return
  workdir.keep_compiled(args.workdir)
  for task in args.tasks:
    bench = None
    for seed in args.seeds:
      for name in (name for name in args.arms if (task, name, seed) not in done):
        bench = bench or make_bench(task, os.path.join(args.workdir, task))
        line = bench.run(scaled(tasks[task][name], args.steps), seed)
        append_json_line(path, {"task": task, "arm": name, "seed": seed, "steps": args.steps, **line})
        end = line["end"]
        print(
          f"{task} seed {seed} {name}: test {end['test']:.3f}, trace {end['test_trace']:.1f}, pass@1 "
          f"{end['pass_1']:.3f}, {line['cpu_seconds']:.0f} CPU s",
          file=sys.stderr, flush=True,
        )  # fmt: skip
      if bench is not None:
        bench.forget()


def read_flags(description: str, tasks: dict, workdir_name: str, argv=None):
  arms = list(dict.fromkeys(name for own in tasks.values() for name in own))
  parser = argparse.ArgumentParser(description=description.split("\n")[0])
  parser.add_argument("--tasks", nargs="+", default=list(tasks), metavar="TASK", help=f"of {', '.join(tasks)}")
  parser.add_argument("--arms", nargs="+", default=arms, metavar="ARM", help=f"of {', '.join(arms)}")
  parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4")
  parser.add_argument("--workdir", default=workdir_name, help="results, models, programs (%(default)s)")
  parser.add_argument("--steps", type=float, default=1.0, help="factor on the steps of all phases, to try it")
  parser.add_argument("--processes", type=int, default=1, help="so many at a time, each an arm of a seed (%(default)s)")
  parser.add_argument("--report_only", action="store_true", help="run nothing, report what is finished")
  parser.add_argument("--plot", metavar="FILE", help="save the curves as SVG")
  args = parser.parse_args(argv)
  for flag, found, allowed in (("--tasks", args.tasks, tasks), ("--arms", args.arms, arms)):
    for name in found:
      require_choice(flag, name, allowed)
  cells.require_count(args.processes)
  if args.plot:
    charts.require("--plot")
  if not 0 < args.steps < float("inf"):
    raise UserError(f"--steps: found {args.steps}, allowed: above 0")
  return args


def main(description: str, tasks: dict, make_bench, workdir_name: str, argv=None, curves=dict.items) -> None:
  """Runs what is missing, then prints the tables. curves: {task: {arm: its lines}} -> rows for `report.draw`."""
  args = read_flags(description, tasks, workdir_name, argv)
  if not args.report_only:
    study(args, tasks, make_bench)
  lines = finished(os.path.join(args.workdir, "results.jsonl"), args.steps)
  found = {}
  for task in args.tasks:
    own = [lines[task, arm, seed] for arm in tasks[task] for seed in args.seeds if (task, arm, seed) in lines]
    print(f"\n### {task}\n\n{report.table(own)}" if own else f"\n### {task}\n\nno finished runs")
    for line in own:
      found.setdefault(task, {}).setdefault(line["arm"], []).append(line)
  if args.plot:
    report.draw(args.plot, "test accuracy: mean and deviation over seeds", curves(found))
