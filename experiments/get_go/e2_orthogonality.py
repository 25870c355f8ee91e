"""E2: does supervised fine-tuning before RL make a worse reasoner? Orthogonal vectors, 100 training items.

    python experiments/get_go/e2_orthogonality.py                     # five seeds, under runs/get_go_e2; it resumes
    python experiments/get_go/e2_orthogonality.py --seeds 0 --arms rl sft_answers_10_rl
    python experiments/get_go/e2_orthogonality.py --processes 16      # an arm of a seed in each
    python experiments/get_go/e2_orthogonality.py --report_only

arXiv 2502.19402 fine-tunes a 1.5B model on 100 items of a vector task: RL alone reaches 93 per cent of the test, RL
after SFT 80 (a secondary source; wording, settings and seeds are not known to us). Here a random model of 2 layers of
width 64 is first given what such a model has: next-token prediction on questions such as "orthogonal 2 -1 1 -2 and 1
-2 2 1", of which three in ten show their products and the running sums of these. So it can work an answer out, but by
greedy decoding it answers at once, by chance. From that start, every arm sees the same 100 other items:

  rl                    RL with the verifier (Dr. GRPO), 60 steps of 20 questions, 8 samples each
  sft_answers_E_rl      SFT on question and answer for E epochs, then the same RL; E = 1, 3, 10
  sft_traces_rl         SFT on items with their traces for 3 epochs, then the same RL
  rl_likelihood         RL whose reward is the log-likelihood of the answer (RL-Logit), without a verifier
  rl_probability        the same with its probability (VeriFree)
  sft_answers           as many epochs of SFT as cost about the FLOPs of RL

Measured: greedy accuracy on the 100 items, on 256 test questions, and out of the distribution: one coordinate more
(longer), larger coordinates (alphabet), vectors given by pairs (convention); pass@1 and pass@32 of 64 test questions;
entropy; KL from where the last phase began; test accuracy at equal sampled tokens and at equal FLOPs. The start is
given to all arms and counts nothing.

Prediction under test: SFT on answers leads RL into a local minimum, so that `rl` ends above every `sft_answers_E_rl` on
the test, the further the larger E; SFT on traces should do no such harm. Refuted if an `sft_answers_E_rl` ends as high
as `rl`, within the deviation over seeds, at equal sampled tokens. What this cannot say: nothing here is pretraining by
reward; the start, like the paper's, has learnt by next-token prediction.

Cost and results: docs/results/get_go.md.
"""

import sys

import common
from common import Lengths, Phase, Sets

from nrt_jax.errors import UserError
from nrt_jax.tasks import table

OPTIONS = {"kind": "decide", "dimension": 4, "high": 2}
ITEMS, START_STEPS, START_SHARE = 100, 600, 0.3
RL_STEPS = 60
SOURCE, EXAMPLES = "task:orthogonality", {"start": 20000, "test": 256}

START = Phase(
  "sft", START_STEPS, "start", 64, given=True,
  settings=(("optimizer.learning_rate", 3e-3), ("optimizer.warmup_steps", 50)),
)  # fmt: skip
SFT = (("optimizer.learning_rate", 1e-3),)
RATE = ("optimizer.learning_rate", 5e-4)
RL = Phase("dr_grpo", RL_STEPS, "items", 20, 8, (RATE,))


def sft(epochs: int, data: str = "items") -> Phase:
  """Epochs over the items, of five steps each."""
  return Phase("sft", epochs * ITEMS // 20, data, 20, settings=SFT)


ARMS = {
  "rl": (START, RL),
  "sft_answers_1_rl": (START, sft(1), RL),
  "sft_answers_3_rl": (START, sft(3), RL),
  "sft_answers_10_rl": (START, sft(10), RL),
  "sft_traces_rl": (START, sft(3, "traced"), RL),
  "rl_likelihood": (START, Phase("rl_logit", RL_STEPS, "items", 20, 8, (RATE,))),
  "rl_probability": (START, Phase("verifree", RL_STEPS, "items", 20, 8, (RATE,))),
  "sft_answers": (START, sft(100)),
}


def make_bench(task: str, root: str) -> common.Bench:
  test = table.make_task("orthogonality", "test", OPTIONS)
  made = {"source": SOURCE, "split": "train"}
  items = {**made, "examples": ITEMS, "task_options": {**OPTIONS, "seed": 1}}
  held_out = {"source": SOURCE, "split": "test", "examples": EXAMPLES["test"]}
  sets = Sets(
    train={
      "start": {**made, "examples": EXAMPLES["start"], "task_options": {**OPTIONS, "trace_share": START_SHARE}},
      "items": items,
      "traced": {**items, "task_options": {**items["task_options"], "trace_share": 1.0}},
    },
    test={
      "test": {**held_out, "task_options": OPTIONS},
      "train": items,
      **{name: {**held_out, "task_options": {**OPTIONS, **shift}} for name, shift in test.shifts().items()},
    },
    words=table.vocabulary(test),
  )
  return common.Bench(root, sets, Lengths(prompt=12, trace=12, answer=2))


def main(argv=None) -> None:
  common.main(__doc__, {"orthogonality": ARMS}, make_bench, "runs/get_go_e2", argv)


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"e2_orthogonality: {error}")
