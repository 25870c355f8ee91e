"""Likelihood rewards on long answers that no trace explains, in miniature (a finding of arXiv 2602.03979).

    python experiments/miniature/long_answers.py                    # three seeds, under runs/long_answers; it resumes
    python experiments/miniature/long_answers.py --seeds 0 --methods sft log_prob

The paper's finding, of instruct models of 3B on proofs and instructions: rewarded by the log-probability of a long
reference answer, a model does as well as SFT on the answers and no better, and its traces shrink from hundreds of
tokens to ten; rewarded by the probability itself (VeriFree) it stays where it was, for the product of so many
probabilities is nothing.

Here an answer has 65 words: 16 that follow from their place, 48 drawn at random, and one sum, which a trace of six
words makes easy. So its probability is at most e^-99, which float32 takes for 0, and a trace can help one word in 65. A
Llama of two layers is pretrained on such answers, seven of ten behind a trace, and each method starts from there with
question-answer pairs alone. Sizes of a step are the paper's: 8 questions, 4 samples; no KL where the method has none.

Cost and results: docs/results/papers.md.
"""

import argparse
import os
import statistics
import sys
import time

from nrt_jax import training, workdir
from nrt_jax.commands.configs import base_config, override, plain
from nrt_jax.config import stages_of
from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.errors import UserError, require_choice
from nrt_jax.files import append_json_line, read_json_lines
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.tasks.long_answer import LongAnswer

OPTIONS = {"n_easy": 16, "n_noisy": 48, "n_hard": 1, "n_digits": 6, "n_colours": 8}
SHOWN = 0.7  # share of pretraining's examples that show their trace
PRETRAIN_STEPS, STEPS, POINTS = 400, 60, 20
METHODS = {  # name -> (row of ALGORITHMS, its settings)
  "sft": ("sft", {}),
  "log_prob": ("rl_logit", {"algorithm.reward": "log_prob"}),
  "mean_log_prob": ("rl_logit", {"algorithm.reward": "mean_log_prob"}),
  "prob": ("verifree", {}),
  "mean_prob": ("rl_logit", {"algorithm.reward": "arithmetic_mean"}),
  "jepo_multi": ("jepo_multi", {}),
  "nrt": ("nrt", {}),
}
LAST = 10  # training steps whose mean is shown


def make_model(path: str) -> None:
  tokenizer = word_tokenizer(LongAnswer(**OPTIONS).words, path)
  sizes = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
  config = ModelConfig(vocab_size=len(tokenizer), head_dim=16, max_position_embeddings=128, **sizes)
  hf_weights.write_config(config, path)


def settings(algorithm: str, model: str, seed: int):
  """What pretraining and all methods share."""
  config = base_config(algorithm)
  config.seed = seed
  config.model.path, config.model.weights = model, "random"
  config.prompt.max_prompt_length, config.prompt.max_answer_length = 16, 66
  config.data.source, config.data.task_options = "task:long_answer", OPTIONS
  config.optimizer.eps = 1e-8
  config.checkpoint.every_steps = 0
  config.logging.tensorboard = config.logging.progress = False
  return config


def pretraining(model: str, seed: int) -> dict:
  config = settings("sft", model, seed)
  config.total_steps, config.prompts_per_step = PRETRAIN_STEPS, 32
  config.data.task_options = {**OPTIONS, "trace_share": SHOWN}
  config.data.max_trace_length, config.data.examples = 8, 12_800
  config.optimizer.learning_rate, config.optimizer.warmup_steps = 2e-3, 40
  return plain(config, "")


def method(name: str, model: str, start: str, seed: int, steps: int) -> dict:
  algorithm, own = METHODS[name]
  config = settings(algorithm, model, seed)
  config.total_steps, config.prompts_per_step, config.samples_per_prompt = steps, 8, 4
  config.from_checkpoint = start
  config.data.examples = 2048
  config.sampling.max_trace_length = 16
  config.optimizer.learning_rate = 3e-4
  config.evaluation.data = {"source": "task:long_answer", "split": "test", "examples": 128, "task_options": OPTIONS}
  config.evaluation.temperature, config.evaluation.batch_prompts = 1.0, 128
  config.evaluation.every_steps = POINTS
  values = plain(config, "")
  for key, value in own.items():
    override(values, key.split("."), value)
  return values


def run(args) -> list[dict]:
  """Runs what is not finished; returns the lines of results.jsonl."""
  path, model = os.path.join(args.workdir, "results.jsonl"), os.path.join(args.workdir, "model")
  os.makedirs(args.workdir, exist_ok=True)
  workdir.keep_compiled(args.workdir)
  make_model(model)
  for seed in args.seeds:
    start = os.path.join(args.workdir, f"start_{args.pretrain_steps}_{seed}")
    for name in args.methods:
      done = {"method": name, "seed": seed, "steps": args.steps}
      if any(done.items() <= line.items() for line in read_json_lines(path)):
        continue
      values = pretraining(model, seed) | {"total_steps": args.pretrain_steps}
      training.train_to_end(stages_of(values), start, values)
      place, clock = directory(args.workdir, done), time.process_time()
      values = method(name, model, start, seed, args.steps)
      training.train_to_end(stages_of(values), place, values)
      append_json_line(path, done | {"cpu_seconds": round(time.process_time() - clock, 1)})
      print(f"seed {seed} {name}: {measured(place)}", file=sys.stderr, flush=True)
  return read_json_lines(path)


def directory(root: str, line: dict) -> str:
  return os.path.join(root, f"{line['method']}_{line['steps']}_{line['seed']}")


def measured(place: str) -> dict:
  """What a run's metrics.jsonl says of its start and of its end.

  Held out: log p of an answer's token behind no trace. In training, on prompts that are new to the model: tokens of a
  sampled trace, in the first steps and the last, and by how much traces raise log p in the last. SFT samples none; its
  traces are those of the evaluation.
  """
  lines = read_json_lines(os.path.join(place, "metrics.jsonl"))
  held_out = [line for line in lines if "eval/heldout/answer_logp" in line]
  trained = [line for line in lines if "trace/length_mean" in line]

  def mean(name: str, part: list) -> float:
    return statistics.fmean(line[name] for line in part)

  found = {f"logp_{when}": line["eval/heldout/answer_logp_empty_trace"] for when, line in ends(held_out)}
  if trained:
    few = min(LAST, len(trained))
    found |= {"trace_start": trained[0]["trace/length_mean"], "trace_end": mean("trace/length_mean", trained[-few:])}
    return found | {"gain_end": mean("answer/logp_gain", trained[-few:])}
  return found | {f"trace_{when}": line["eval/heldout/trace_length"] for when, line in ends(held_out)}


def ends(lines: list) -> tuple:
  return ("start", lines[0]), ("end", lines[-1])


def report(lines: list[dict], root: str) -> str:
  """Mean ± deviation over seeds."""
  head = [
    "method",
    "seeds",
    "log p, start",
    "log p, end",
    "gain of traces",
    "trace, start",
    "trace, end",
    "of each seed",
  ]
  rows = [[*head, "CPU seconds"], ["---"] * (len(head) + 1)]
  for name in METHODS:
    own = [line for line in lines if line["method"] == name]
    if own:
      runs = [measured(directory(root, line)) for line in own]
      seconds = statistics.fmean(line["cpu_seconds"] for line in own)
      rows.append([f"`{name}`", str(len(own)), *spread(runs), f"{seconds:.0f}"])
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def spread(runs: list[dict]) -> list[str]:
  def pair(name: str, digits: int) -> str:
    values = [run[name] for run in runs if name in run]
    if not values:
      return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"

  lengths = " / ".join(f"{run['trace_end']:.1f}" for run in runs)
  shown = [("logp_start", 3), ("logp_end", 3), ("gain_end", 3), ("trace_start", 1), ("trace_end", 1)]
  return [*(pair(name, digits) for name, digits in shown), lengths]


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD", help=f"of {', '.join(METHODS)}")
  parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
  parser.add_argument("--workdir", default="runs/long_answers", help="results, starts, programs (%(default)s)")
  parser.add_argument("--steps", type=int, default=STEPS, help="of each method (%(default)s)")
  parser.add_argument("--pretrain_steps", type=int, default=PRETRAIN_STEPS, help="%(default)s")
  parser.add_argument("--report_only", action="store_true", help="run nothing, report what is finished")
  args = parser.parse_args(argv)
  for name in args.methods:
    require_choice("--methods", name, METHODS)
  lines = read_json_lines(os.path.join(args.workdir, "results.jsonl")) if args.report_only else run(args)
  print(report([line for line in lines if line["steps"] == args.steps], args.workdir))


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"long_answers.py: {error}")
