"""NRT on GSM8K with a tiny random Llama: the real data path end to end, in minutes on a CPU.

  command    python experiments/gsm8k_tiny.py --workdir DIR [--data PATH/train.jsonl] [--method nrt|trace_only|sft]
  variations nrt-jax train --config experiments/gsm8k_tiny.py --workdir OTHER --config.model.path=DIR/model
             --config.data.source=PATH/train.jsonl [--config.KEY=VALUE ...]
  cost       9 minutes on 2 CPU cores that were also busy with other work
  expected   log p(answer) per token of unseen examples from -4.03 (steps 1 to 10) to -3.60 (steps 91 to 100), traces
             near their cap of 24 tokens. The SFT control rises as much, -4.02 to -3.58: here the traces do not help.
             Without the answer term log p falls to -7.8. See docs/results/gsm8k_tiny.md.

The script first writes DIR/model: a byte-pair tokenizer trained on the file's text and a config.json in Hugging Face
format. Two stages follow, on disjoint parts of the file: a brief next-token pretraining on question and answer, without
traces, and 100 steps of NRT from question-answer pairs alone. The second stage is less than one epoch, and a step
measures log p(answer) before training on it, so all of its figures are on unseen examples.

The reference answer is the unmodified `answer` column: the whole worked solution with its last line "#### N". The final
number alone would be two or three tokens, whose log p rises as soon as the model knows the distribution of numbers; the
worked solution is the kind of long free-form answer that NRT is for. A model of this size cannot reason about it, so
expect the rise to come from the answer term. `--method sft` is the control: the same answers, no traces.
`--method trace_only` removes the answer term, so any rise would come from the traces alone.
"""

import argparse
import json
import os
import pathlib
import sys

from nrt_jax import config, training
from nrt_jax.commands.configs import base_config, override, plain
from nrt_jax.data import prompts
from nrt_jax.data.readers import read_jsonl
from nrt_jax.errors import UserError
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
METHODS = ("nrt", "trace_only", "sft")
MARKER = "<|response_start|>"
TRACE, ANSWER = 24, 96  # tokens
WIDTH = TRACE + 1 + ANSWER  # trace, marker and answer: the released code divides losses by this width
STEPS = 100  # of each stage
TABLE = ("answer/logp", "answer/logp_empty_trace", "answer/logp_gain", "reward/mean", "trace/length_mean",
         "trace/marker_fraction")  # fmt: skip


# The released code's variant of NRT; full_size/nrt_llama31_8b_tulu3.py lists its values and sources. Sizes, steps and
# learning rates are chosen for two CPU cores and are not the paper's.
def get_config(method: str = "nrt"):
  constant = {"normalisation": "constant", "normalisation_constant": float(WIDTH)}
  config = base_config("nrt")
  config.total_steps = STEPS  # caps each stage
  config.model.path = None  # DIR/model
  config.model.weights = "random"

  config.data.source = os.path.relpath(DATA)
  config.data.question_column = "question"
  config.data.answer_column = "answer"
  config.prompt.template = "plain"  # the question, directly followed by the trace
  config.prompt.marker = MARKER
  config.prompt.max_prompt_length = 80  # tokens; with this and the next limit, 43% of the file is kept
  config.prompt.max_answer_length = ANSWER

  config.prompts_per_step = 16
  config.samples_per_prompt = 4
  config.sampling.max_trace_length = TRACE

  config.algorithm.reward = "weighted_sum_log_prob"
  config.algorithm.baseline = "none"
  config.algorithm.answer_weight = "none" if method == "trace_only" else "one"
  config.algorithm.train_forced_marker = True
  config.algorithm.update(constant)

  config.optimizer.eps = 1e-8  # Adam's usual value
  config.checkpoint.every_steps = 100
  config.evaluation.data = None  # exact match of whole solutions would be 0
  config.logging.tensorboard = False

  config.stages = [
    dict(
      name="pretrain",
      total_steps=STEPS,
      prompts_per_step=32,
      # The marker is not trained here: the model would learn to close an empty trace at once.
      algorithm=dict(name="sft", train_prompt=True, train_marker=False),
      data=dict(limit=3500),
      optimizer=dict(learning_rate=3e-3, warmup_steps=20, schedule="cosine", end_ratio=0.25),
    ),
    dict(
      name=method,
      total_steps=STEPS,
      algorithm={"name": "sft", **constant} if method == "sft" else {},
      data=dict(offset=3500),
      optimizer=dict(learning_rate=1.5e-3, warmup_steps=5),
    ),
  ]
  return config


def make_model(data: str, directory: str) -> None:
  """Writes a tokenizer trained on the file `data` and a matching config.json; keeps an existing directory."""
  if os.path.exists(os.path.join(directory, "config.json")):
    return
  path = pathlib.Path(data)
  if not path.is_file():
    raise UserError(f"--data: {data}: no such file (GSM8K's train.jsonl, with the columns question and answer)")
  rows = read_jsonl(path)
  for where, row in rows:
    if not isinstance(row.get("question"), str) or not isinstance(row.get("answer"), str):
      raise UserError(f"{where}: allowed: an object with the texts question and answer")
  texts = [row[column] for _, row in rows for column in ("question", "answer")]
  os.makedirs(directory, exist_ok=True)
  tokenizer = prompts.byte_pair_tokenizer(texts, vocab_size=2048, path=directory, special=(MARKER,))
  architecture = ModelConfig(
    vocab_size=len(tokenizer),
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=512,
    tie_word_embeddings=True,
  )
  hf_weights.write_config(architecture, directory)


def print_table(workdir: str, first_step: int, every: int = 10) -> None:
  """Prints the metrics of the second stage, each line the mean over `every` steps."""
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    lines = [line for line in map(json.loads, file) if line["step"] > first_step]
  print("steps".ljust(9) + "  ".join(TABLE))
  for start in range(0, len(lines), every):
    group = lines[start : start + every]
    cells = [f"{group[0]['step'] - first_step}-{group[-1]['step'] - first_step}".ljust(7)]
    for name in TABLE:
      values = [line[name] for line in group if name in line]
      cells.append((f"{sum(values) / len(values):.3f}" if values else "-").rjust(len(name)))
    print("  ".join(cells))


def run(method: str, data: str, workdir: str, overrides: dict | None = None) -> None:
  """Writes the model directory, trains, and prints the table. `overrides` maps dotted keys to values as text."""
  model = os.path.join(workdir, "model")
  make_model(data, model)
  values = plain(get_config(method), "")
  for key, text in {"data.source": data, "model.path": model, **(overrides or {})}.items():
    override(values, key.split("."), text)
  stages = config.stages_of(values)
  training.train_to_end(stages, workdir, values)
  print_table(workdir, stages[0].total_steps)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, metavar="DIR", help="directory of the run; resumes what is there")
  parser.add_argument("--data", default=os.path.relpath(DATA), metavar="FILE", help="default: %(default)s")
  parser.add_argument("--method", default="nrt", choices=METHODS, help="the second stage (default: %(default)s)")
  parser.add_argument("--steps", type=int, help="caps each stage, to try it in seconds")
  args = parser.parse_args()
  try:
    run(args.method, args.data, args.workdir, {} if args.steps is None else {"total_steps": str(args.steps)})
  except UserError as error:
    print(f"gsm8k_tiny: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
