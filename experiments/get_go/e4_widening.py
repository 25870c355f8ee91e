"""E4: does a token space that widens step by step cost fewer samples than starting with all of it?

    python experiments/get_go/e4_widening.py                       # five seeds, under runs/get_go_e4; it resumes
    python experiments/get_go/e4_widening.py --seeds 0 --arms widen direct
    python experiments/get_go/e4_widening.py --processes 16        # an arm of a seed in each
    python experiments/get_go/e4_widening.py --report_only

Three symbols are to be reversed ("reverse 3 0 2", "2 0 3"), rewarded if right, with Dr. GRPO at a temperature of 1.5;
advantages are scaled by their group's deviation, so that a rare success weighs more. Every run starts with the same
supervised stage on an alphabet of 3, which teaches the task, up to a mean log-probability of -0.25 for a token of the
answer. A larger alphabet brings new symbols, whose rows start as the mean of the old ones plus noise. The arms:

    widen     alphabets of 4, 5 and 6, each until 0.8 of the last 1024 answers are right
    direct    6 at once, with as many steps as the others have together
    shuffled  the same alphabets in an order that the seed draws; tokens once in use stay so
    frozen    as widen, but only embedding and head are trained behind the supervised stage

Measured: the samples of the reinforcement stages until 0.9 of the last 1024 answers are right with the alphabet of
6, in its own stage; and how right the first and the last 1024 of that stage are. A run that never gets there counts
as "not reached". The supervised stage ends early on purpose: a model that is sure of its symbols never tries a new
one.

Prediction (arXiv 2502.19402, section on token spaces; our reading): widen needs far fewer samples than direct where
an answer is right at first too rarely to reward a group of 32 (the table's column; one question in eight with 6
symbols has known ones alone, and these are answered softly), since each stage asks for one new symbol; shuffled lies
between them. Refuted if direct needs no more than widen in most seeds, or if shuffled does as well as widen. If
frozen does as well as widen, what is learnt in a small token space carries over as it is.

Cost and results: docs/results/get_go.md.
"""

import argparse
import os
import sys
import time

import cells
import numpy as np
from report import mean_std

from nrt_jax import training, workdir
from nrt_jax.commands.configs import base_config, plain
from nrt_jax.config import stages_of
from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.errors import UserError, require_choice
from nrt_jax.files import append_json_line, fill_directory, read_json_lines, write_text
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.records.checkpoint import Checkpoints
from nrt_jax.reporting import charts
from nrt_jax.tasks.splits import symbols

START, SIZES, SYMBOLS = 3, [4, 5, 6], 3  # alphabets; symbols of a question
PROMPTS, SAMPLES = 16, 32  # of a step
FORM_STEPS, STEPS = 600, 400  # of the supervised stage, at most; for each alphabet, at most
TEMPERATURE = 1.5  # of sampling, so that new symbols are tried
# Ends the supervised stage: the mean log-probability of an answer's token. No higher, as a model that is surer never
# tries a new symbol.
KNOWN = {"metric": "answer/logp", "bar": -0.25, "episodes": 1024}
RULE = {"metric": "completion/accuracy", "episodes": 1024}
DRAWN = 60  # points of a drawn course
TITLE = f"alphabets of {', '.join(map(str, SIZES))}"
ARMS = {
  "widen": {"order": "given"},
  "direct": {"order": "direct"},
  "shuffled": {"order": "shuffled"},
  "frozen": {"order": "given", "trainable": "token_rows"},
}


def values_of(arm: str, model: str, seed: int, steps: int = STEPS, form_steps: int = FORM_STEPS) -> dict:
  """The config of a run; steps: at most, for each alphabet."""
  order, trainable = ARMS[arm]["order"], ARMS[arm].get("trainable", "all")
  most = steps * len(SIZES) if order == "direct" else steps
  config = base_config("dr_grpo")
  config.seed, config.total_steps = seed, max(most, form_steps)
  config.prompts_per_step, config.samples_per_prompt = PROMPTS, SAMPLES
  config.model.path, config.model.weights = model, "random"
  config.prompt.max_prompt_length, config.prompt.max_answer_length = 1 + SYMBOLS, SYMBOLS + 1
  config.sampling.max_trace_length = SYMBOLS + 3
  config.data.source, config.data.examples = "task:rearrange", 1024
  config.data.task_options = {"kind": "reverse", "n_symbols": SYMBOLS}
  config.tokens.active, config.optimizer.carry_moments = "data", True
  config.optimizer.learning_rate, config.optimizer.eps = 3e-4, 1e-8
  config.checkpoint.every_steps = 0
  config.logging.update({"tensorboard": False, "samples_every_steps": 0, "progress": False})
  form = {
    "name": "form", "algorithm": {"name": "sft"}, "total_steps": form_steps, "prompts_per_step": 64,
    "data": {"task_options": {"alphabet": START}}, "stop": KNOWN, "optimizer": {"learning_rate": 1e-3},
  }  # fmt: skip
  curriculum = {"option": "alphabet", "values": SIZES, "order": order, **RULE, "bar": 0.8}
  reward = {
    "name": "reward", "total_steps": most, "curriculum": curriculum, "stop": {**RULE, "bar": 0.9},
    "optimizer": {"trainable": trainable}, "sampling": {"temperature": TEMPERATURE}, "algorithm": {"scale": "std"},
  }  # fmt: skip
  config.stages = [form, reward]
  return plain(config, "")


def make_model(directory: str) -> None:
  """A small random model whose tokenizer has the symbols of the last alphabet, and no word of another kind."""
  tokenizer = word_tokenizer((*symbols(0, SIZES[-1]), "reverse"), directory)
  shape = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
  shape |= dict(num_key_value_heads=4, head_dim=16, max_position_embeddings=64)
  hf_weights.write_config(ModelConfig(vocab_size=len(tokenizer), **shape), directory)


def measure(directory: str, runs: list) -> dict:
  """What a finished run needed, from its checkpoint's record and its metrics."""
  record = Checkpoints(os.path.join(directory, "checkpoints"), read_only=True).record()
  lines = read_json_lines(os.path.join(directory, "metrics.jsonl"))
  curve = {line["step"]: line["completion/accuracy"] for line in lines if "completion/accuracy" in line}
  steps = [*record["ends"], record["step"]]
  sizes = [dict(run.data.task_options)["alphabet"] for run in runs]
  window = -(-RULE["episodes"] // (PROMPTS * SAMPLES))
  # A shuffled run may meet the last alphabet early: what counts is when its stage was at the bar, if it ever was.
  place = len(sizes) - 1 - sizes[::-1].index(SIZES[-1])
  before, own = sum(steps[:place]), steps[place]
  rights = [curve[before + t] for t in range(1, own + 1)]
  means = [float(np.mean(rights[t - window : t])) for t in range(window, own + 1)]
  reached = next((t for t, mean in enumerate(means, window) if mean >= 0.9), None)
  of_rewards = before - steps[0]
  samples = None if reached is None else (of_rewards + reached) * PROMPTS * SAMPLES
  ends = {"first": means[0], "right": means[-1]} if means else {"first": None, "right": None}
  found = {"samples": samples, **ends, "alphabets": sizes[1:], "steps": steps[1:], "known_at": steps[0]}
  return {**found, "curve": course(curve, steps, window)}


def course(rights: dict, steps: list, window: int) -> list:
  """[[samples of reinforcement, share of right answers over the last window of its stage]], a point a window.

  rights: step -> share; steps: of each stage, the supervised one first.
  """
  points, before = [], steps[0]
  for own in steps[1:]:
    for t in range(min(window, own), own + 1, window):
      share = np.mean([rights[before + n] for n in range(t - min(window, own) + 1, t + 1)])
      points.append([(before + t - steps[0]) * PROMPTS * SAMPLES, round(float(share), 4)])
    before += own
  return points


def drawn(curve: list) -> list:
  """A course as `charts.figure` takes it, of at most DRAWN points, each a mean over its share of the samples."""
  parts = np.array_split(np.array(curve), min(DRAWN, len(curve)))
  return [(float(part[-1, 0]) / 1e3, float(part[:, 1].mean()), 0.0) for part in parts]


def draw(path: str, lines: dict) -> None:
  """Saves the courses as SVG: a panel for each arm, a line for each seed."""
  panels = {arm: {f"seed {s}": drawn(line["curve"]) for (a, s), line in lines.items() if a == arm} for arm in ARMS}
  rows = [("share of right answers in the alphabet at hand", {arm: own for arm, own in panels.items() if own})]
  write_text(path, charts.figure(TITLE, rows, along="thousands of samples"))


def run(root: str, arm: str, seed: int, steps: int, form_steps: int) -> dict:
  """Trains an arm; its line of results.jsonl."""
  clock, model = time.monotonic(), os.path.join(root, "model")
  fill_directory(model, make_model)
  directory = os.path.join(root, f"{arm}_{seed}_{steps}_{form_steps}")
  values = values_of(arm, model, seed, steps, form_steps)
  runs = stages_of(values)
  training.train_to_end(runs, directory, values)
  line = {"arm": arm, "seed": seed, "limit": steps, "form_steps": form_steps, **measure(directory, runs)}
  return {**line, "seconds": round(time.monotonic() - clock, 1)}


def finished(path: str, steps: int, form_steps: int) -> dict:
  """{(arm, seed): its line} of the runs with these limits."""
  same = [line for line in read_json_lines(path) if (line["limit"], line["form_steps"]) == (steps, form_steps)]
  return {(line["arm"], line["seed"]): line for line in same}


def report(lines: dict) -> None:
  """Markdown: the samples of each seed, their median, and how right the last answers are."""
  print("| arm | seeds | reached 0.9 | samples, median | of each seed | right at first | right at the end | each |")
  print("|---|---|---|---|---|---|---|---|")
  for arm in ARMS:
    own = [lines[key] for key in sorted(lines, key=lambda key: key[1]) if key[0] == arm]
    if not own:
      continue
    samples = [line["samples"] for line in own]
    reached = sum(one is not None for one in samples)
    middle = sorted(float("inf") if one is None else one for one in samples)[len(own) // 2]
    median = "not reached" if middle == float("inf") else f"{middle:,}"
    each = ", ".join("-" if one is None else f"{one:,}" for one in samples)
    first, right = ([line[key] for line in own if line[key] is not None] for key in ("first", "right"))
    ends = [mean_std(first) or "-", mean_std(right) or "-", ", ".join(f"{share:.3f}" for share in right)]
    print(f"| {arm} | {len(own)} | {reached} | {median} | {each} | {' | '.join(ends)} |")


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--arms", nargs="+", default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}")
  parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4")
  parser.add_argument("--workdir", default="runs/get_go_e4", help="results, runs, programs (%(default)s)")
  parser.add_argument("--steps", type=int, default=STEPS, help="at most, for each alphabet (%(default)s)")
  parser.add_argument("--form_steps", type=int, default=FORM_STEPS, help="of the supervised stage (%(default)s)")
  parser.add_argument("--processes", type=int, default=1, help="so many at a time, each an arm of a seed (%(default)s)")
  parser.add_argument("--report_only", action="store_true", help="run nothing, report what is finished")
  parser.add_argument("--plot", metavar="FILE", help="save the curves as SVG")
  args = parser.parse_args(argv)
  if args.plot:
    charts.require("--plot")
  for arm in args.arms:
    require_choice("--arms", arm, ARMS)
  cells.require_count(args.processes)
  path, limits = os.path.join(args.workdir, "results.jsonl"), (args.steps, args.form_steps)
  if not args.report_only:
    os.makedirs(args.workdir, exist_ok=True)
    done = finished(path, *limits)
    left = [(arm, seed) for seed in args.seeds for arm in args.arms if (arm, seed) not in done]
    if args.processes > 1:
      same = ["--workdir", args.workdir, "--steps", str(args.steps), "--form_steps", str(args.form_steps)]
      cells.run([["--seeds", str(seed), "--arms", arm, *same] for arm, seed in left], args.processes)
      left = []
    workdir.keep_compiled(args.workdir)
    for arm, seed in left:
      line = run(args.workdir, arm, seed, *limits)
      append_json_line(path, line)
      print(f"seed {seed} {arm}: {line['samples']} samples, {line['seconds']:.0f} s", file=sys.stderr, flush=True)
  lines = finished(path, *limits)
  report(lines)
  if args.plot:
    draw(args.plot, dict(sorted(lines.items(), key=lambda item: item[0][1])))


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"e4_widening.py: {error}")
