"""NRT against SFT from a real instruct model: SmolLM2-135M-Instruct on GSM8K's questions and final answers alone.

  command    python experiments/smollm2_gsm8k.py --model DIR --data PATH [--workdir RUNS] [--seeds 0 1]
             [--steps N] [--questions N]
             DIR: SmolLM2-135M-Instruct in Hugging Face format. PATH: a directory with GSM8K's train.jsonl, test.jsonl.
  one run    nrt-jax train --config experiments/smollm2_gsm8k.py --workdir RUN --config.model.path=DIR
             --config.data.source=PATH/train.jsonl --config.evaluation.data.source=PATH/test.jsonl
  cost       not measured: by a step's time, about two hours on 2 CPU cores for two seeds. To try it in minutes:
             --seeds 0 --steps 2 --questions 8
  expected   not measured yet; so far its test ran, on a tiny model, and one step of NRT on the real one

The reference answer is the number behind "####"; no worked solution is read. Both methods start from the same weights,
chat with the model's own template and have the same marker, learning rate and number of steps. A step of NRT samples
PROMPTS x SAMPLES traces and trains on as many answers; a step of the control trains on the answers of as many questions
(PROMPTS * SAMPLES), so both train on equally many answers. The control sees more questions.

On 200 questions of the test file, at the start and at the end: log p of the reference answer per token behind the
model's own trace, its gain over the empty trace, accuracy of greedy completions, and trace length. The same figures of
the training steps, which are measured before each step trains on its questions, are in each run's metrics.jsonl.
"""

import argparse
import json
import os
import sys

from nrt_jax import config, training
from nrt_jax.commands.configs import base_config, override, plain
from nrt_jax.errors import UserError
from nrt_jax.files import write_json

METHODS = ("nrt", "sft")
PROMPTS, SAMPLES = 4, 4
STEPS = 100
STOPPED = 143  # exit code
TRACE, ANSWER = 96, 8  # tokens
EVALUATED, BATCH = 200, 50  # questions of the test file, and at a time
SHOWN = ("answer_logp", "answer_logp_gain", "accuracy", "marker_fraction", "trace_length")


def get_config(method: str = "nrt"):
  config = base_config(method, start="instruct")
  config.model.path = None  # DIR
  config.total_steps = STEPS

  config.data.source = "train.jsonl"
  config.data.answer_after = "####"
  config.prompt.max_prompt_length = 160  # tokens; longer questions are dropped
  config.prompt.max_answer_length = ANSWER
  config.prompt.answer_in = "completion"  # the grader reads the last number: a cold model never writes the marker
  config.sampling.max_trace_length = TRACE

  config.prompts_per_step = PROMPTS if method == "nrt" else PROMPTS * SAMPLES
  config.samples_per_prompt = SAMPLES
  config.optimizer.learning_rate = 1e-5
  config.optimizer.warmup_steps = 10
  config.optimizer.eps = 1e-8
  if method == "nrt":
    config.algorithm.answer_weight = "one"  # the control's gradient on the answer
  config.algorithm.normalisation = "token"

  config.evaluation.name = "test"
  config.evaluation.data = {**plain(config.data, ""), "source": "test.jsonl", "limit": EVALUATED}
  config.evaluation.grader = "gsm8k"
  config.evaluation.every_steps = 0  # at the start and at the end
  config.evaluation.batch_prompts = BATCH
  config.checkpoint.every_steps = 50
  config.logging.tensorboard = False
  return config


def run(method: str, seed: int, workdir: str, overrides: dict) -> dict:
  """Trains or resumes one run; returns its first and last evaluation and the metrics of its steps."""
  values = plain(get_config(method), "")
  for key, text in {"seed": str(seed), **overrides}.items():
    override(values, key.split("."), text)
  print(f"\n== {method}, seed {seed}: {values['total_steps']} steps ==", file=sys.stderr)
  if not training.train(config.stages_of(values), workdir, values):
    sys.exit(STOPPED)  # by a signal, after saving; the same command resumes
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    lines = [json.loads(line) for line in file]
  evaluations = [line for line in lines if "eval/test/accuracy" in line]
  steps = [line for line in lines if "loss/total" in line]
  return {"method": method, "seed": seed, "before": evaluations[0], "after": evaluations[-1], "steps": steps}


def print_table(results: list[dict]) -> None:
  """The evaluations of each run at its start and its end."""
  print("\ntest questions".ljust(24) + "".join(f"{name:>18}" for name in SHOWN))
  for one in results:
    for when in ("before", "after"):
      cells = "".join(f"{one[when][f'eval/test/{name}']:>18.3f}" for name in SHOWN)
      print(f"{one['method']}, seed {one['seed']}, {when}".ljust(23) + cells)


def study(model: str, data: str, workdir: str, seeds: list[int], overrides: dict | None = None) -> list[dict]:
  """All runs, under `workdir`; `overrides` maps dotted keys to values as text."""
  files = {
    "data.source": os.path.join(data, "train.jsonl"), "evaluation.data.source": os.path.join(data, "test.jsonl"),
  }  # fmt: skip
  overrides = {"model.path": model, **files, **(overrides or {})}
  results = []
  for seed in seeds:
    for method in METHODS:
      results.append(run(method, seed, os.path.join(workdir, f"{method}_{seed}"), overrides))
      write_json(os.path.join(workdir, "results.json"), results)
  print_table(results)
  return results


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", required=True, metavar="DIR", help="SmolLM2-135M-Instruct in Hugging Face format")
  parser.add_argument("--data", required=True, metavar="PATH", help="directory with GSM8K's train.jsonl and test.jsonl")
  parser.add_argument("--workdir", default="runs/smollm2_gsm8k", metavar="RUNS", help="default: %(default)s")
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="SEED", help="default: 0 1")
  parser.add_argument("--steps", type=int, help="steps of each run, to try it")
  parser.add_argument("--questions", type=int, default=EVALUATED, help="of each evaluation (default: %(default)s)")
  args = parser.parse_args(argv)
  overrides = {"evaluation.data.limit": str(args.questions)}
  overrides["evaluation.batch_prompts"] = str(min(args.questions, BATCH))
  if args.steps is not None:
    overrides["total_steps"] = str(args.steps)
  try:
    study(args.model, args.data, args.workdir, args.seeds, overrides)
  except UserError as error:
    print(f"smollm2_gsm8k: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
