"""RARO in miniature: a policy against its critic, from few demonstrations, beside its baselines.

    python experiments/miniature/raro.py                          # five seeds, under runs/raro_zigzag; it resumes
    python experiments/miniature/raro.py --seeds 0 --methods raro sft
    python experiments/miniature/raro.py --task countdown_small
    python experiments/miniature/raro.py --report_only --plot curves.svg

zigzag: an answer puts six digits into an order that rises and falls in turn: many are right, the expert shows one at
random. countdown_small: an expression of three numbers up to 9 that makes a target up to 30.

The start has learnt some demonstrations a little, and, from the same ones, which of two answers is the expert's:
against one with two words exchanged, or one in another's place; and to say tie to equal ones. Every method then has 100
steps from there (sft 400), on the same questions. Evaluated on 256 other questions, greedy and sampled. The grader
measures, and rewards rlvr alone.

Cost and results: docs/results/raro.md.
"""

import argparse
import json
import os
import random
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import raro_report

from nrt_jax import training, workdir
from nrt_jax.commands.configs import base_config, plain
from nrt_jax.config import RunConfig, stages_of
from nrt_jax.data import batches
from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.errors import UserError, require_choice
from nrt_jax.evaluation import held_out
from nrt_jax.files import append_json_line, read_json_lines, write_text
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.reporting import charts
from nrt_jax.step import host_grading, opening, policy, programs
from nrt_jax.tasks import table as tasks

EVALUATED, START_STEPS = 256, 7000
PAIRS, TIES = 0.95, 0.15  # shares of the start's rows that are pairs, and of those that are equal
WORDS = ("|", "#", "first", "second", "tie", "?")
TEMPLATE = "{question} | {answer_1} | {answer_2} #"


class Puzzle(NamedTuple):
  """What a task needs to be played here. Lengths are in tokens, each of which is a word."""

  demonstrations: int
  question: int
  answer: int  # without its end

  @property
  def pair(self) -> int:
    """Of a question with two answers and what stands between them."""
    return self.question + 2 * self.answer + 3


PUZZLES = {"zigzag": Puzzle(512, 7, 6), "countdown_small": Puzzle(2048, 6, 7)}
OPERATIONS, COMPLETION = ("+", "-", "*", "/"), 12


def raro(**over) -> dict:
  """Keys of a RARO run; `over` holds keys of the algorithm, or of its critic as `critic__key`."""
  critic = {"template": TEMPLATE, "labels": ("first", "second", "tie"), "reasoning": False}
  critic |= {"samples": 8, "max_length": 3}
  algorithm = {"lambda_policy": 0.5, "lambda_critic": 0.5, "kl_coef": 0.05, "verifier": "host"}  # which only measures
  for key, value in over.items():
    (critic if key.startswith("critic__") else algorithm)[key.removeprefix("critic__")] = value
  return {"algorithm": {"name": "raro", **algorithm, "critic": critic}, "samples_per_prompt": 4}


VERIFIED = {"name": "dr_grpo", "verifier": "host", "reference": "frozen", "kl_coef": 0.05}
METHODS = {
  "raro": raro(),
  "sft": {"algorithm": {"name": "sft"}, "total_steps": 400, "prompts_per_step": 64},
  "rl_logit": {"algorithm": {"name": "rl_logit"}, "samples_per_prompt": 8},
  "rlvr": {"algorithm": VERIFIED, "samples_per_prompt": 8},
  "dpo": {"algorithm": {"name": "dpo", "chosen": "demonstration", "verifier": "none"}, "samples_per_prompt": 8},
  "rationalization": {"algorithm": {"name": "rationalization"}, "samples_per_prompt": 8},
  # As many sampled tokens as raro's policy and critic have together.
  "rl_logit_equal": {"algorithm": {"name": "rl_logit"}, "samples_per_prompt": 128},
  "rlvr_equal": {"algorithm": VERIFIED, "samples_per_prompt": 16},
  "raro_no_replay": raro(replay_share=0.0),
  "raro_random_order": raro(critic__order="random"),
  "raro_frozen_critic": raro(lambda_critic=0.0),
  "raro_own_weights": raro(critic__own_weights=True),
  # Where the critic knows too little: right labels beside the game, twice the pairs to learn from, twice the verdicts.
  "raro_labels": raro(label_coef=1.0, corrupt_share=0.5),
  "raro_more_pairs": raro(critic__pairs=8),
  "raro_more_verdicts": raro(critic__samples=16),
}
ABLATIONS = ("raro", "raro_no_replay", "raro_random_order", "raro_frozen_critic", "raro_own_weights")
CURES = ("raro", "raro_labels", "raro_more_pairs", "raro_more_verdicts")
BASE = ("raro", "sft", "dpo", "rationalization", "rl_logit", "rlvr", "rl_logit_equal", "rlvr_equal")
ROWS = (
  ("RARO beside its baselines", BASE[:6]),
  ("RARO without one of its parts", ABLATIONS),
  ("RARO with more for its critic", CURES),
)


def base(task: str, algorithm: str, model: str, seed: int):
  config, puzzle = base_config(algorithm), PUZZLES[task]
  config.seed = seed
  config.model.path, config.model.weights = model, "random"
  config.prompt.max_prompt_length, config.prompt.max_answer_length = puzzle.question + 1, puzzle.answer + 2
  config.prompt.hint_template = "{question} | {answer} #"  # for rationalization
  config.sampling.max_trace_length = COMPLETION
  config.data.source, config.data.examples = f"task:{task}", puzzle.demonstrations
  config.evaluation.data = {"source": f"task:{task}", "split": "test", "examples": EVALUATED}
  config.evaluation.batch_prompts, config.evaluation.every_steps = EVALUATED, 0
  config.optimizer.eps, config.optimizer.learning_rate = 1e-8, 2e-4
  config.checkpoint.every_steps = 0
  config.logging.tensorboard = False
  return plain(config, "")


def method_run(task: str, name: str, model: str, seed: int, steps: int = 0) -> RunConfig:
  """The config of a method; steps: 0 for its own number."""
  method = METHODS[name]
  values = base(task, method["algorithm"]["name"], model, seed)
  values.update({"total_steps": 100, "prompts_per_step": 32, **{k: v for k, v in method.items() if k != "algorithm"}})
  values["total_steps"] = steps or values["total_steps"]
  values["algorithm"].update({key: value for key, value in method["algorithm"].items() if key != "critic"})
  if "critic" in method["algorithm"]:
    values["algorithm"]["critic"].update(method["algorithm"]["critic"])
  return stages_of(values)[0]


# ---------------------------------------------------------------------------------------------------------- the start


def write_start_data(name: str, path: str, rows: int, seed: int) -> None:
  """Demonstrations, and pairs of the expert's answer and a wrong one, as questions and answers."""
  task, rng = tasks.make_task(name, "train", {}), random.Random(seed)
  examples = [task.example(i)[:2] for i in range(PUZZLES[name].demonstrations)]

  def one() -> dict:
    question, answer = rng.choice(examples)
    if rng.random() >= PAIRS:
      return {"question": question, "answer": answer}
    other, first = wrong(answer, task, rng), rng.random() < 0.5
    if rng.random() < TIES:
      other, label = answer, "tie"
    else:
      label = "first" if first else "second"
    pair = (answer, other) if first else (other, answer)
    shown = TEMPLATE.replace("{question}", question).replace("{answer_1}", pair[0]).replace("{answer_2}", pair[1])
    return {"question": shown, "answer": label}

  with open(path, "w", encoding="utf-8") as file:
    file.writelines(json.dumps(one()) + "\n" for _ in range(rows))


def wrong(answer: str, task, rng) -> str:
  """The answer with two words exchanged, one in another's place, or another operation, so that it is not right."""
  while True:
    words = answer.split()
    i, j = rng.sample(range(len(words)), 2)
    if words[i] in OPERATIONS:
      words[i] = rng.choice(OPERATIONS)
    else:
      words[i], words[j] = words[j], words[i] if rng.random() < 0.5 else words[j]
    if not task.grade(" ".join(words), answer):
      return " ".join(words)


def start_params(root: str, task: str, model: str, steps: int, seed: int, architecture):
  """The parameters that every method of a seed starts from."""
  directory = os.path.join(root, f"start_{steps}_{seed}")
  data = os.path.join(root, f"start_{steps}_{seed}.jsonl")
  if not os.path.exists(data):
    write_start_data(task, data, steps * 64, seed)
  values = base(task, "sft", model, seed)
  values.update(total_steps=steps, prompts_per_step=64)
  values["prompt"].update(max_prompt_length=PUZZLES[task].pair, max_answer_length=PUZZLES[task].answer + 1)
  values["data"].update(source=data)
  values["evaluation"].update(data=None)
  values["optimizer"].update(learning_rate=1e-3, warmup_steps=min(100, steps))
  values["logging"].update(every_steps=100)
  training.train_to_end(stages_of(values), directory, values)
  return workdir.read_policy(directory, architecture)


# --------------------------------------------------------------------------------------------------------------- runs


class Bench:
  """What all runs share: the tokenizer, the evaluation, and compiled steps."""

  def __init__(self, root: str, task: str, start_steps: int, steps: int = 0):
    self.root, self.task, self.model = root, task, os.path.join(root, "model")
    self.start_steps, self.steps = start_steps, steps
    words = tasks.make_task(task, "train", {}).words
    tokenizer = word_tokenizer((*words, *WORDS), self.model)
    sizes = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
    sizes |= dict(num_key_value_heads=4, head_dim=16, max_position_embeddings=128)
    architecture = ModelConfig(vocab_size=len(tokenizer), **sizes)
    hf_weights.write_config(architecture, self.model)
    run = method_run(task, "sft", self.model, 0)
    self.tokenizer, self.form = policy.open_tokenizer(run.model, run.prompt)
    self.architecture = policy.read_architecture(run.model, self.form)
    self._evaluation = run.evaluation
    self._held_out = held_out.load_dataset(run.evaluation, run.prompt, self.tokenizer, self.form)
    setup, sampling = programs.Setup(run, self.architecture, self.form, None), run.evaluation.sampling(COMPLETION, 0, 0)
    at = {"greedy": 0.0, "sampled": 1.0}
    self._generate = {
      name: programs.build_generate(setup, sampling.__class__(**{**vars(sampling), "temperature": heat}))
      for name, heat in at.items()
    }
    self._programs = {}

  def evaluate(self, params) -> dict:
    found = {}
    for name, generate in self._generate.items():
      arguments = (self._held_out, self._evaluation, self.tokenizer, self.form, jax.random.key(0))
      found[name] = held_out.evaluate(generate, params, *arguments)[0]["eval/heldout/accuracy"]
    return found

  def run(self, name: str, seed: int) -> dict:
    """Trains a method from the seed's start; returns its line of results.jsonl."""
    params = start_params(self.root, self.task, self.model, self.start_steps, seed, self.architecture)
    run, clock = method_run(self.task, name, self.model, seed, self.steps), time.monotonic()
    setup = opening.open_setup(run, self.architecture, self.tokenizer, self.form)
    texts = opening.second_texts(setup, self.tokenizer)
    data = batches.load_dataset(run.data, run.prompt, self.tokenizer, self.form, texts)
    states = programs.init_states(setup, jax.tree.map(jnp.copy, params), jax.random.key(seed))
    position, curve, history = batches.Position(), [{"step": 0, **self.evaluate(params)}], []
    every = max(1, run.total_steps // 4)
    for step in range(1, run.total_steps + 1):
      batch, position = batches.batch(data, position, run.prompts_per_step, seed)
      batch = jax.device_put(batch)
      if name not in self._programs:
        self._programs[name] = host_grading.compile_train_step(setup, states, batch, self.tokenizer)
      states, metrics, _ = self._programs[name](states, batch)
      history.append({key: float(value) for key, value in jax.device_get(metrics).items()})
      if step % every == 0:
        last = history[-every:]
        means = {key: float(np.mean([line[key] for line in last])) for key in raro_report.SHOWN if key in last[0]}
        curve.append({"step": step, **self.evaluate(states.policy.params), **means})
    tokens = {
      "sampled": sum(line.get("tokens/generated", 0) + line.get("tokens/critic_generated", 0) for line in history),
      "trained": sum(line["tokens/trained"] for line in history),
    }
    return {
      "method": name, "seed": seed, "start_steps": self.start_steps, "steps": run.total_steps, "asked": self.steps,
      **tokens,
      "seconds": round(time.monotonic() - clock, 1), "curve": curve,
    }  # fmt: skip


def finished(path: str, start_steps: int, steps: int) -> dict:
  """{(method, seed): its line} of the runs from starts of so many steps, of which --steps asked for so many."""
  asked = start_steps, steps
  lines = [line for line in read_json_lines(path) if (line["start_steps"], line.get("asked", 0)) == asked]
  return {(line["method"], line["seed"]): line for line in lines}


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--methods", nargs="+", default=list(BASE), metavar="METHOD", help=f"of {', '.join(METHODS)}")
  parser.add_argument("--seeds", nargs="+", type=int, default=[*range(5)], help="default: 0 1 2 3 4")
  parser.add_argument("--task", default="zigzag", help=f"{' or '.join(PUZZLES)} (%(default)s)")
  parser.add_argument("--workdir", help="results, starts, programs (runs/raro_TASK)")
  parser.add_argument("--start_steps", type=int, default=START_STEPS, help="of the supervised start (%(default)s)")
  parser.add_argument("--steps", type=int, default=0, help="of each method, to try it; 0 = its own (default)")
  parser.add_argument("--plot", help="an .svg file for the curves")
  parser.add_argument("--report_only", action="store_true", help="run nothing, report what is finished")
  args = parser.parse_args(argv)
  for name in args.methods:
    require_choice("--methods", name, METHODS)
  require_choice("--task", args.task, PUZZLES)
  if args.steps < 0 or args.start_steps < 1:
    raise UserError(f"--steps, --start_steps: found {args.steps}, {args.start_steps}, allowed: 0 or more, 1 or more")
  if args.plot:
    charts.require("--plot")
  args.workdir = args.workdir or f"runs/raro_{args.task}"
  path = os.path.join(args.workdir, "results.jsonl")
  runs = path, args.start_steps, args.steps
  if not args.report_only:
    os.makedirs(args.workdir, exist_ok=True)
    workdir.keep_compiled(args.workdir)
    bench, done = Bench(args.workdir, args.task, args.start_steps, args.steps), finished(*runs)
    for seed in args.seeds:
      for name in (name for name in args.methods if (name, seed) not in done):
        line = bench.run(name, seed)
        append_json_line(path, line)
        first, last = line["curve"][0], line["curve"][-1]
        found = f"sampled {first['sampled']:.3f} to {last['sampled']:.3f}, {line['seconds']:.0f} s"
        print(f"seed {seed} {name}: {found}", file=sys.stderr, flush=True)
  lines = [line for _, line in sorted(finished(*runs).items(), key=lambda item: item[0][1])]
  raro_report.report(lines, METHODS)
  if args.plot:
    title = f"{args.task}: mean and deviation over seeds, by training step"
    write_text(args.plot, charts.figure(title, raro_report.panels(lines, ROWS), "sft"))


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"raro.py: {error}")
