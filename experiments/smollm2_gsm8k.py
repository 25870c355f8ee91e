"""NRT against SFT from a real instruct model: SmolLM2-135M-Instruct on GSM8K's questions and final answers alone.

  command    python experiments/smollm2_gsm8k.py --model DIR --data PATH [--on gpu] [--workdir RUNS] [--seeds 0 1]
             [--methods nrt sft nrt_kl ...] [--steps N] [--questions N] [--set KEY=VALUE ...] [--report_only]
             DIR: SmolLM2-135M-Instruct in Hugging Face format. PATH: a directory with GSM8K's train.jsonl, test.jsonl.
  one run    nrt-jax train --config experiments/smollm2_gsm8k.py --workdir RUN --config.model.path=DIR
             --config.data.source=PATH/train.jsonl --config.evaluation.data.source=PATH/test.jsonl
  cost       --on gpu: 0.7 s a step of NRT on an H100, 0.08 s of SFT, and a minute to compile; processes beside it slow
             that down, and the first takes most of the memory. On 2 CPU cores two hours for two seeds, by a step's
             time. To try it in minutes: --seeds 0 --steps 2 --questions 8
  expected   log p(answer) per token from -4.2 to -1.8 (NRT) and -1.6 (SFT); no method learns to solve the problems,
             and NRT's traces turn to noise without a KL term: docs/results/smollm2_gsm8k.md says why

The reference answer is the number behind "####"; no worked solution is read. Both methods start from the same weights,
chat with the model's own template and have the same marker, learning rate and number of steps. A step of NRT samples
prompts x samples traces and trains on as many answers; a step of the control trains on the answers of as many questions
(prompts * samples), so both train on equally many answers. The control sees more questions.

On 200 questions of the test file, at the start and at the end: log p of the reference answer per token behind the
model's own trace, its gain over the empty trace, accuracy of greedy completions, and trace length. The same figures of
the training steps, which are measured before each step trains on its questions, are in each run's metrics.jsonl.

Runs are directories METHOD_SEED in RUNS and go on where they stopped. Processes with other --methods or --seeds may
share RUNS; --report_only prints the table of all that were evaluated twice. Of the methods nrt_..., nrt_trace and
nrt_answer are NRT's two parts, and the others cures. Another is a --set, in RUNS of its own, and --curves FILE.svg
[RUNS ...] draws RUNS and those beside it.
"""

import argparse
import os
import pathlib
import statistics
import sys
from dataclasses import dataclass

from nrt_jax import config, training
from nrt_jax.commands.configs import base_config, override, plain
from nrt_jax.errors import UserError, require_choice
from nrt_jax.files import read_json_lines
from nrt_jax.reporting import charts

KL = {"algorithm.reference": "frozen", "algorithm.kl_coef": 1.0}
FORCED = {"algorithm.format_coef": 0.0}  # the marker is put in and never learnt
METHODS = {  # name -> what differs from the method itself
  "nrt": {},
  "sft": {},
  # Its parts: the rewards alone, and all but the rewards.
  "nrt_trace": {"algorithm.answer_weight": "none", **FORCED},
  "nrt_answer": {"algorithm.trace_coef": 0.0},
  # Cures: of what the marker and the answer do to the traces,
  "nrt_forced": FORCED,
  "nrt_marker": {"prompt.marker": "#### "},
  "nrt_derived": {"algorithm.answer_weight": "derived", **FORCED},  # the paper's weights
  "nrt_kl": KL,
  "nrt_forced_kl": {**FORCED, **KL},
  "nrt_light": {"algorithm.answer_coef": 0.03, "algorithm.format_coef": 0.01},  # gradients not far from the rewards'
  "nrt_slow": {"optimizer.learning_rate": 2e-6},
  # and of the rewards.
  "nrt_prob": {"algorithm.reward": "prob"},
  "nrt_unscaled": {"algorithm.scale": "none"},
  "nrt_cool": {"sampling.temperature": 0.6},
  "nrt_samples": {},  # MORE times as many of each question, of as many fewer questions
}
MORE = 4
ANSWER = 8  # tokens
EVALUATED = 200  # questions of the test file
SHOWN = ("answer_logp", "answer_logp_gain", "accuracy", "marker_fraction", "trace_length")
POINTS = 25  # of a curve
PANELS = {  # of the curves: head -> metric of the training steps, which are many; evaluations are few
  "log p(answer) of the step's questions": "answer/logp",
  "its gain by the trace": "answer/logp_gain",
  "tokens of a trace": "trace/length_mean",
  "entropy of the traces, nats": "policy/entropy",
}


@dataclass(frozen=True)
class Size:
  """What a machine does in about two hours (2 CPU cores) or some minutes (a GPU)."""

  steps: int
  prompts: int  # of a step of NRT
  samples: int  # of each prompt
  trace: int  # tokens, at most
  batch: int  # questions evaluated at a time
  evaluations: int  # behind the first
  settings: tuple = ()  # (dotted key, value)


BFLOAT16 = (("model.compute_dtype", "bfloat16"), ("model.remat", "full"))
SIZES = {"cpu": Size(100, 4, 4, 96, 50, 1), "gpu": Size(200, 16, 8, 256, 200, 4, BFLOAT16)}


def get_config(method: str = "nrt", on: str = "cpu"):
  size, more = SIZES[on], MORE if method == "nrt_samples" else 1
  algorithm = method.partition("_")[0]
  config = base_config(algorithm, start="instruct")
  config.model.path = None  # DIR
  config.total_steps = size.steps

  config.data.source = "train.jsonl"
  config.data.answer_after = "####"
  config.prompt.max_prompt_length = 160  # tokens; longer questions are dropped
  config.prompt.max_answer_length = ANSWER
  config.prompt.answer_in = "completion"  # the grader reads the last number: a cold model never writes the marker
  config.sampling.max_trace_length = size.trace

  config.prompts_per_step = size.prompts // more if algorithm == "nrt" else size.prompts * size.samples
  config.samples_per_prompt = size.samples * more
  config.optimizer.learning_rate = 1e-5
  config.optimizer.warmup_steps = 10
  config.optimizer.eps = 1e-8
  if algorithm == "nrt":
    config.algorithm.answer_weight = "one"  # the control's gradient on the answer
  config.algorithm.normalisation = "token"

  config.evaluation.name = "test"
  config.evaluation.data = {**plain(config.data, ""), "source": "test.jsonl", "limit": EVALUATED}
  config.evaluation.grader = "gsm8k"
  config.evaluation.every_steps = size.steps // size.evaluations  # and at the start
  config.evaluation.batch_prompts = size.batch
  config.checkpoint.every_steps = size.steps // 2
  config.logging.tensorboard = False
  for key, value in (*size.settings, *METHODS[method].items()):
    config.update_from_flattened_dict({key: value})
  return config


def train(method: str, seed: int, on: str, workdir: str, overrides: dict) -> None:
  """Trains or resumes one run."""
  values = plain(get_config(method, on), "")
  for key, text in {"seed": str(seed), **overrides}.items():
    override(values, key.split("."), text)
  print(f"\n== {method}, seed {seed}: {values['total_steps']} steps ==", file=sys.stderr)
  training.train_to_end(config.stages_of(values), workdir, values)


def read_run(workdir: str) -> dict | None:
  """A run's evaluations and the metrics of its steps; None of a run that is not there or was evaluated once only."""
  path = os.path.join(workdir, "metrics.jsonl")
  lines = read_json_lines(path) if os.path.exists(path) else []
  evaluations = [line for line in lines if "eval/test/accuracy" in line]
  steps = [line for line in lines if "loss/total" in line]
  return {"evaluations": evaluations, "steps": steps} if len(evaluations) > 1 else None


def print_table(results: dict) -> None:
  """The evaluations of each run; results: {(method, seed): its metrics}."""
  print("\ntest questions".ljust(24) + "".join(f"{name:>18}" for name in SHOWN))
  for (method, seed), one in results.items():
    for line in one["evaluations"]:
      cells = "".join(f"{line[f'eval/test/{name}']:>18.3f}" for name in SHOWN)
      print(f"{method}, seed {seed}, step {line['step']}".ljust(23) + cells)


def draw(path: str, places: list[str]) -> None:
  """Writes an SVG of the runs in `places`, to a file: a line for each method of a place, its band over the seeds."""
  curves = {}
  for place in places:
    found = [(name, read_run(os.path.join(place, name))) for name in sorted(os.listdir(place))]
    for name, run in found:
      if run is not None:
        label = f"{name.rpartition('_')[0]}, {os.path.basename(os.path.normpath(place))}"
        curves.setdefault(label, []).append(run["steps"])
  panels = {
    head: {label: series for label, runs in curves.items() if (series := over_seeds(runs, metric))}
    for head, metric in PANELS.items()
  }
  pathlib.Path(path).write_text(charts.figure("SmolLM2-135M-Instruct on GSM8K", [("", panels)]))


def over_seeds(runs: list[list[dict]], metric: str) -> list[tuple]:
  """[(step, mean, deviation)] over runs of a metric's means over windows of equally many steps, POINTS at most."""
  found = [{line["step"]: line[metric] for line in lines if metric in line} for lines in runs]
  steps = sorted(set.intersection(*map(set, found)))
  width = max(1, -(-len(steps) // POINTS))
  points = []
  for window in (steps[i : i + width] for i in range(0, len(steps), width)):
    means = [statistics.fmean(one[step] for step in window) for one in found]
    points.append((window[-1], statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else 0.0))
  return points


def files_in(data: str) -> dict:
  """GSM8K's files in the directory `data`, as overrides."""
  train_file, test_file = (os.path.join(data, f"{name}.jsonl") for name in ("train", "test"))
  return {"data.source": train_file, "evaluation.data.source": test_file}


def study(workdir: str, methods: list[str], seeds: list[int], on: str = "cpu", overrides: dict | None = None) -> dict:
  """Runs what has not ended, unless `overrides` (dotted keys to values as text) is None; {(method, seed): metrics}."""
  cells = {(method, seed): os.path.join(workdir, f"{method}_{seed}") for seed in seeds for method in methods}
  for (method, seed), place in cells.items() if overrides is not None else ():
    train(method, seed, on, place, overrides)
  found = {cell: read_run(place) for cell, place in cells.items()}
  return {cell: one for cell, one in found.items() if one is not None}


def read_flags(argv=None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", metavar="DIR", help="SmolLM2-135M-Instruct in Hugging Face format")
  parser.add_argument("--data", metavar="PATH", help="directory with GSM8K's train.jsonl and test.jsonl")
  parser.add_argument("--on", default="cpu", help=f"sizes for: {', '.join(SIZES)} (%(default)s)")
  parser.add_argument("--workdir", default="runs/smollm2_gsm8k", metavar="RUNS", help="default: %(default)s")
  methods = f"{', '.join(METHODS)} (default: nrt sft)"
  parser.add_argument("--methods", nargs="+", default=["nrt", "sft"], metavar="METHOD", help=methods)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="SEED", help="default: 0 1")
  parser.add_argument("--steps", type=int, help="steps of each run, to try it")
  parser.add_argument("--questions", type=int, default=EVALUATED, help="of each evaluation (default: %(default)s)")
  parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config, for all runs")
  parser.add_argument("--report_only", action="store_true", help="run nothing, print what is there")
  parser.add_argument("--curves", nargs="+", metavar="PATH", help="an SVG to write; other RUNS to draw in it, too")
  args = parser.parse_args(argv)
  require_choice("--on", args.on, SIZES)
  for method in args.methods:
    require_choice("--methods", method, METHODS)
  if args.curves:
    charts.require("--curves")
    for place in args.curves[1:]:
      if not os.path.isdir(place):
        raise UserError(f"--curves: found {place!r}, which is no directory, allowed: FILE.svg, then RUNS")
  if not args.report_only and None in (args.model, args.data):
    raise UserError("--model and --data: found neither or one, allowed: both, unless --report_only is given")
  for text in args.set:
    if "=" not in text:
      raise UserError(f"--set: found {text!r}, allowed: KEY=VALUE")
  return args


def main(argv=None) -> None:
  args = read_flags(argv)
  overrides = None
  if not args.report_only:
    overrides = {"model.path": args.model, **files_in(args.data), "evaluation.data.limit": str(args.questions)}
    overrides["evaluation.batch_prompts"] = str(min(args.questions, SIZES[args.on].batch))
    if args.steps is not None:
      overrides |= {"total_steps": str(args.steps), "evaluation.every_steps": "0"}
    overrides |= dict(text.split("=", 1) for text in args.set)
  print_table(study(args.workdir, args.methods, args.seeds, args.on, overrides))
  if args.curves:
    draw(args.curves[0], [args.workdir, *args.curves[1:]])


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    print(f"smollm2_gsm8k: {error}", file=sys.stderr)
    sys.exit(2)
