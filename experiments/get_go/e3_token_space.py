"""E3: next-token prediction, SFT then RL, and RL from nothing, in token spaces of about 20 words.

    python experiments/get_go/e3_token_space.py                       # both tasks, five seeds; it resumes
    python experiments/get_go/e3_token_space.py --tasks chain --seeds 0 --arms rl ntp_30_rl
    python experiments/get_go/e3_token_space.py --processes 16        # an arm of a seed in each
    python experiments/get_go/e3_token_space.py --report_only

Random models of 2 layers of width 64. Two tasks: `parity` of ten bits, which such a model cannot answer in one pass,
and for which no reward short of the whole trace tells traces apart; and `chain`, two steps modulo 5, where one answer
in five is right by chance and part of the way can be learnt in one pass. The share P of the examples that show their
worked trace varies. The arms, in brackets their letters in our specification:

  ntp_P             next-token prediction, P per cent with their trace (a: 0, b: 100, c: between)
  ntp_P_rl          its first part, then RL with the verifier on questions and answers alone (d)
  rl                RL from random weights, reward 1 for a right answer and 0.1 for the format (e)
  rl_likelihood     from random weights, reward log-likelihood of the answer (RL-Logit) (f)
  nft, nft_soft     from random weights, right-or-wrong labels; the geometric mean of the answer's probabilities (g)

Next-token prediction goes on where RL would begin, and RL from nothing has more steps, for about as many FLOPs if its
samples kept their length; the table shows what they came to. Measured: greedy accuracy on 256 test questions and out of
the distribution (longer, another convention), pass@1 and pass@32, entropy, KL from where the last phase began, test
accuracy at equal sampled tokens and at equal FLOPs.

Two predictions that contradict each other: arXiv 2502.19402 would have RL from nothing (rl, rl_likelihood) at least as
good in the end as ntp_P_rl, and further out of the distribution; it is refuted where ntp_P_rl with a small P > 0 ends
above both. arXiv 2510.11495 (from a secondary source) says that rare traces suffice: below a threshold of P, greedy
next-token prediction stays at chance, and RL from there reaches nearly all; refuted where ntp_10_rl stays at chance.
Its threshold is 1/3, as if an answer without a trace began at once with one of two equally likely bits; here it begins
with the marker, which is likelier than the trace below P = 1/2. With P = 0 there is nothing to amplify: ntp_0_rl should
stay where it is.

Cost: parity takes 4 CPU minutes a seed for two shares P, each with and without RL, and one for each arm from random
weights. Results: docs/results/get_go.md.
"""

import sys

import common
from common import Lengths, Phase, Sets

from nrt_jax.errors import UserError
from nrt_jax.tasks import table

SHARES = (0, 10, 30, 70, 100)  # per cent
NTP_STEPS, NTP_MORE, RL_STEPS, SCRATCH_STEPS = 600, 170, 60, 270  # 60 steps of RL cost about 170 of prediction
TASKS = {
  "parity": ("parity", {"n_bits": 10}, Lengths(prompt=21, trace=22, answer=2)),
  "chain": ("modular_chain", {"n_steps": 2, "modulus": 5}, Lengths(prompt=17, trace=12, answer=3)),
}


def ntp(share: int, steps: int) -> Phase:
  settings = (("optimizer.learning_rate", 2e-3), ("optimizer.warmup_steps", min(50, steps)))
  return Phase("sft", steps, f"shown_{share}", 64, settings=settings)


def rl(algorithm: str, steps: int, *settings) -> Phase:
  return Phase(algorithm, steps, "shown_0", 16, 8, (("optimizer.learning_rate", 1e-3), *settings))


FORMAT = ("algorithm.format_reward", 0.1)
MARKER = ("algorithm.format_coef", 0.3)  # a likelihood says nothing about how a trace ends: all end without the marker
ARMS = {
  **{f"ntp_{share}": (ntp(share, NTP_STEPS), ntp(share, NTP_MORE)) for share in SHARES},
  **{f"ntp_{share}_rl": (ntp(share, NTP_STEPS), rl("dr_grpo", RL_STEPS)) for share in SHARES},
  "rl": (rl("dr_grpo", SCRATCH_STEPS, FORMAT),),
  "rl_likelihood": (rl("rl_logit", SCRATCH_STEPS, MARKER),),
  "nft": (rl("nft", SCRATCH_STEPS),),
  "nft_soft": (
    rl("nft", SCRATCH_STEPS, ("algorithm.verifier", "likelihood"), ("algorithm.answer_coef", 1.0), MARKER),
  ),
}


def make_bench(task: str, root: str) -> common.Bench:
  name, options, lengths = TASKS[task]
  test = table.make_task(name, "test", options)
  made = {"source": f"task:{name}", "examples": 20000}
  held_out = {**made, "split": "test", "examples": 256}
  sets = Sets(
    train={f"shown_{p}": {**made, "task_options": {**options, "trace_share": p / 100}} for p in SHARES},
    test={
      "test": {**held_out, "task_options": options},
      **{name: {**held_out, "task_options": {**options, **shift}} for name, shift in test.shifts().items()},
    },
    words=table.vocabulary(test),
  )
  return common.Bench(root, sets, lengths)


def kind(arm: str) -> str:
  if not arm.startswith("ntp"):
    return "from random weights"
  return "prediction, then RL" if arm.endswith("_rl") else "prediction alone"


def curves(found: dict) -> list:
  """Rows of curves: of each task one for each kind of arm."""
  rows = {}
  for task, arms in found.items():
    for arm, lines in arms.items():
      rows.setdefault(f"{task}, {kind(arm)}", {})[arm] = lines
  return list(rows.items())


def main(argv=None) -> None:
  common.main(__doc__, dict.fromkeys(TASKS, ARMS), make_bench, "runs/get_go_e3", argv, curves)


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"e3_token_space: {error}")
