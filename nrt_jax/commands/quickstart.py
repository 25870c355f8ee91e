"""`nrt-jax quickstart`: a two-layer model learns to reason from question-answer pairs alone.

No network, no accelerator, no files but those that it writes.

The task is "add 0 0 3 1 4 2 0 1 modulo 5" -> "the sum is 1 modulo 5". Two layers cannot add eight digits in one pass,
but they can with a trace of running sums. There are three runs:

  pretrain   Next-token prediction; one example in five shows its trace. With greedy decoding, the model answers
             immediately and is wrong.
  sft        Control: supervised training on question-answer pairs alone. It does not improve.
  nrt        NRT on the same pairs: sampled traces are rewarded by how likely they make the reference answer
             (WS(-log p), arXiv 2602.11549). The gradient on the answer is the control's. No verifier, no trace shown.

Cost: 4 minutes on 2 CPU cores. Measured: held-out greedy accuracy 0.22 -> 0.15 (sft) and 0.22 -> 1.00 (nrt), with
traces of 8 tokens after nrt and none before. See docs/results/quickstart.md.
"""

import os
import sys

from nrt_jax import training
from nrt_jax.commands import flags, output, sample
from nrt_jax.commands.configs import base_config, plain
from nrt_jax.config import stages_of
from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.errors import UserError
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.reporting import runs
from nrt_jax.tasks.running_sum import RunningSum

TRACE_LENGTH = 24  # tokens; a full running sum takes 8
EXAMPLES = 20000  # of 390,625 possible questions


def run(args) -> None:
  model, start = (os.path.join(args.workdir, name) for name in ("model", "pretrain"))
  check_places(args.workdir, model)
  make_model_directory(model)
  train("pretrain", pretrain_config(model, args.pretrain_steps), args.workdir, args.seed)
  results = {
    name: train(name, pairs_config(name, model, args.steps, start), args.workdir, args.seed) for name in ("sft", "nrt")
  }
  print_table(results)

  export = os.path.join(args.workdir, "nrt", "export")
  questions = [RunningSum(split="test").example(i)[0] for i in range(3)]
  print(f"\nthe exported model answers (nrt-jax sample --model {export} --prompt '...'):\n")
  sys.stdout.flush()
  sample.run(flags.parse(["sample", "--model", export, *(word for q in questions for word in ("--prompt", q))]))


def check_places(root: str, model: str) -> None:
  """Raises UserError if the runs cannot be written, or a model of the user's would be covered. Creates nothing."""
  for directory in (root, model):
    output.check_directory(directory, "--workdir")
  for name in ("pretrain", "sft", "nrt"):
    output.check_workdir(os.path.join(root, name))
  ours = os.path.exists(os.path.join(root, "pretrain", "config.json"))
  if os.path.exists(os.path.join(model, "config.json")) and not ours:
    allowed = "a directory without it, or that of an earlier quickstart"
    raise UserError(f"--workdir: {model}: is another's model directory, allowed: {allowed}")


def make_model_directory(path: str) -> None:
  """Writes a tiny Llama in Hugging Face format: config.json and a word tokenizer. The weights are random."""
  tokenizer = word_tokenizer(RunningSum().words, path)
  config = ModelConfig(
    vocab_size=len(tokenizer),
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=32,
    max_position_embeddings=64,
  )
  hf_weights.write_config(config, path)


def get_config(algorithm: str, model_path: str, steps: int):
  """The settings that all three runs share."""
  config = base_config(algorithm)
  config.total_steps = steps
  config.model.path = model_path
  config.model.weights = "random"  # no effect when a run starts from another's policy
  config.prompt.max_prompt_length = 11  # tokens: "add", eight digits, "modulo 5"
  config.prompt.max_answer_length = 8  # "the sum is 1 modulo 5", the end token, and one spare
  config.data.source = "task:running_sum"
  config.data.examples = EXAMPLES
  config.evaluation.data = {"source": "task:running_sum", "split": "test", "examples": 500}
  config.evaluation.batch_prompts = 512  # divides over up to 512 devices
  config.evaluation.max_completion_length = TRACE_LENGTH + 9
  config.sampling.max_trace_length = TRACE_LENGTH
  config.optimizer.eps = 1e-8
  config.logging.samples_every_steps = 10
  return config


def pretrain_config(model_path: str, steps: int):
  """Next-token prediction; one example in five shows its trace."""
  config = get_config("sft", model_path, steps)
  config.data.task_options = {"trace_share": 0.2}
  config.data.max_trace_length = 8
  config.prompts_per_step = 128
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = min(50, steps)
  config.evaluation.every_steps = 0
  return config


def pairs_config(algorithm: str, model_path: str, steps: int, start: str):
  """Question-answer pairs alone, from the pretrained policy. NRT and its control share data and optimizer."""
  config = get_config(algorithm, model_path, steps)
  config.from_checkpoint = start
  config.prompts_per_step = 32
  config.optimizer.learning_rate = 2e-4
  config.evaluation.every_steps = 10
  if algorithm == "nrt":
    config.samples_per_prompt = 8
    config.algorithm.reward = "weighted_sum_log_prob"
    config.algorithm.answer_weight = "one"  # the control's gradient on the answer
    config.logging.trace_moved_every = 1  # for the page of `report --html`
  config.algorithm.normalisation = "token"
  return config


def train(name: str, config, root: str, seed: int) -> dict:
  """Trains or resumes one run and returns its first and last evaluation."""
  config.seed = seed
  print(f"\n== {name}: {config.total_steps} steps ({config.algorithm.name}) ==", file=sys.stderr)
  values = plain(config, "")
  workdir = os.path.join(root, name)
  training.train_to_end(stages_of(values), workdir, values)
  evaluations = [line for line in runs.read_metrics(workdir) if "eval/heldout/accuracy" in line]
  return {"before": evaluations[0], "after": evaluations[-1]}


def print_table(results: dict) -> None:
  columns = (("accuracy", "eval/heldout/accuracy"), ("trace tokens", "eval/heldout/trace_length"))
  rows = [("after pretraining", results["nrt"]["before"])]
  rows += [("+ SFT on answers", results["sft"]["after"]), ("+ NRT on answers", results["nrt"]["after"])]
  print("\nheld-out, greedy    " + "".join(f"{label:>14}" for label, _ in columns))
  for label, line in rows:
    print(f"{label:<20}" + "".join(f"{line[name]:>14.3f}" for _, name in columns))
