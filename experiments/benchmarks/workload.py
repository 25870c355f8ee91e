"""What every side of peers.py shares: sizes, prompts, answers, rewards, the clock. Standard library only.

Two workloads on one random Llama, 8 prompts x 8 samples:

  grpo           plain GRPO; the reward is the share of even words among the sampled ones
  verifier_free  the reward is the geometric mean probability of a reference answer after the trace

No sampled token ends a text, since the end token's id is outside of the model's vocabulary. Every side thus samples the
same number of tokens in every step.
"""

import argparse
import dataclasses
import json
import os
import random
import sys
import time

WORKLOADS = ("grpo", "verifier_free")


@dataclasses.dataclass(frozen=True)
class Sizes:
  """A model and a step. Token 0 is <pad>, 1 <bos>, 2 <unk>, the rest are words; the last word is the marker."""

  vocab: int = 512
  hidden: int = 256
  mlp: int = 1024
  layers: int = 4
  heads: int = 4
  kv_heads: int = 2
  head_dim: int = 64
  prompts: int = 8  # per step
  samples: int = 8  # per prompt
  prompt_length: int = 64  # tokens, including <bos>
  trace_length: int = 128  # sampled tokens
  answer_length: int = 32  # tokens, including the end word; verifier_free only

  @property
  def end_id(self) -> int:
    """The end token, for which the model has no logit."""
    return self.vocab

  @property
  def marker_id(self) -> int:
    return self.vocab - 1

  @property
  def sampled_tokens(self) -> int:
    """Sampled tokens per step."""
    return self.prompts * self.samples * self.trace_length


TINY = Sizes(64, 32, 64, 2, 2, 1, 16, 8, 4, 8, 8, 4)  # for tests
ROPE_THETA = 1_000_000.0  # tunix 0.1.7 always uses this value, whatever its config says, so all sides do
RMS_NORM_EPS = 1e-5
LEARNING_RATE = 1e-3
FIRST_WORD = 3


def prompt_ids(sizes: Sizes, steps: int) -> list:
  """Token ids of the prompts of all steps, in order."""
  draw = random.Random(0)
  length = sizes.prompt_length - 1
  return [
    [1, *(draw.randrange(FIRST_WORD, sizes.marker_id) for _ in range(length))] for _ in range(sizes.prompts * steps)
  ]


def answer_ids(sizes: Sizes, steps: int) -> list:
  """Token ids of the reference answers of all steps."""
  draw = random.Random(1)
  count = sizes.prompts * steps
  return [[draw.randrange(FIRST_WORD, sizes.marker_id) for _ in range(sizes.answer_length)] for _ in range(count)]


def as_text(ids) -> str:
  return " ".join("<bos>" if i == 1 else f"w{i}" for i in ids)


def even_share(text: str) -> float:
  """The reward of `grpo`: the share of even numbers among the words of a completion."""
  numbers = [int(word[1:]) for word in text.split() if word.startswith("w")]
  return sum(number % 2 == 0 for number in numbers) / max(1, len(numbers))


def make_tokenizer(sizes: Sizes):
  """A word-level tokenizer for the sides that need text; pads on the left."""
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  vocab = {"<pad>": 0, "<bos>": 1, "<unk>": 2, "<eos>": sizes.end_id}
  vocab |= {f"w{i}": i for i in range(FIRST_WORD, sizes.vocab)}
  core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
  core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
  return PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", **names)


# ------------------------------------------------------------------------------------------------------------- a side


def arguments(argv=None) -> argparse.Namespace:
  """The flags that peers.py passes to each side."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--workload", choices=WORKLOADS, required=True)
  parser.add_argument("--steps", type=int, required=True, help="timed steps, after one that is not timed")
  parser.add_argument("--model", required=True, help="directory with config.json and safetensors")
  parser.add_argument("--scratch", required=True, help="directory for what the side writes")
  parser.add_argument("--threads", type=int, required=True)
  parser.add_argument("--tiny", action="store_true", help="a much smaller model and step, to try the scripts")
  parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of nrt_jax's config")
  return parser.parse_args(argv)


def sizes_of(args) -> Sizes:
  return TINY if args.tiny else Sizes()


def busy_seconds() -> float:
  """CPU seconds that the whole machine has been busy since boot; nan without /proc/stat."""
  try:
    with open("/proc/stat", encoding="ascii") as file:
      user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
  except OSError:
    return float("nan")
  return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Clock:
  """Marks the ends of steps. Times start at the end of the first step, which compiles."""

  def __init__(self):
    self._ends = []
    self._from = None

  def step_ended(self) -> None:
    self._ends.append(time.perf_counter())
    if self._from is None:
      self._from = (busy_seconds(), time.process_time())

  @property
  def steps(self) -> list:
    """Seconds of each step after the first."""
    return [after - before for before, after in zip(self._ends, self._ends[1:])]

  def load(self) -> dict:
    """CPU seconds since the end of the first step, of the machine and of this process."""
    return {"busy_s": busy_seconds() - self._from[0], "own_s": time.process_time() - self._from[1]}


def save_logits(args, side: str, logits) -> None:
  """Saves the side's first logits `[2, P, V]` for peers.py to compare."""
  import numpy as np  # every side has NumPy

  np.save(os.path.join(args.scratch, f"{side}.npy"), np.asarray(logits, np.float32))


def report(side: str, args, clock: Clock, versions: dict, tokens: list, rewards: list, **more) -> None:
  """Prints the side's line of JSON. tokens, rewards: sampled tokens and mean reward of every step."""
  line = {
    "side": side,
    "workload": args.workload,
    "step_s": [round(s, 4) for s in clock.steps],
    **{name: round(value, 2) for name, value in clock.load().items()},
    "tokens": tokens,
    "rewards": [round(float(r), 6) for r in rewards],
    "threads": args.threads,
    "versions": versions,
    **more,
  }
  sys.stdout.write(f"\nRESULT {json.dumps(line)}\n")
  sys.stdout.flush()
