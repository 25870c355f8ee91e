"""E7: the same algorithm by another convention: does what RL teaches keep to it, or fall back to the usual one?

    python experiments/get_go/e7_conventions.py                       # three tasks, five seeds; it resumes
    python experiments/get_go/e7_conventions.py --tasks look_up --seeds 0 --arms before rl sft_answers
    python experiments/get_go/e7_conventions.py --processes 16        # an arm of a seed in each
    python experiments/get_go/e7_conventions.py --report_only

arXiv 2502.19402 shows models that know Python, but fall back to counting from zero where they are told that indices
count from one. Here each question names its convention, and the other one is rare: a random model of 2 layers of width
64 first learns from examples of which nine in ten have the usual convention and three in ten show their working. This
start is given to all arms and counts nothing. The tasks:

  sort      symbols upwards ("sort 3 0 2"), or downwards ("sort_down 3 0 2")
  look_up   two hops in a table whose places count from zero, or from one
  chain     two operations modulo 5, with numbers in base 10, or in base 3

Behind the start, all but the last arm see the usual convention alone:

  before          nothing
  rl              RL with the verifier (Dr. GRPO), 80 steps of 16 questions, 8 samples each
  rl_likelihood   RL whose reward is the log-likelihood of the answer (RL-Logit)
  sft_answers     supervised learning of questions and answers, 240 steps of 64
  sft_traces      the same with the working
  sft_answers_rl  a tenth of the former, then RL
  rl_both         RL on questions of both conventions, one in ten the other: what can be had

Measured: greedy accuracy on 256 test questions of the usual convention (test) and of the other (convention), and gap,
the one less the other; fallback, the share of questions of the other convention that are answered by the usual one,
where that is another answer (sort, look_up); pass@1 and pass@32; entropy; KL from where the last phase began; test
accuracy at equal sampled tokens and at equal FLOPs.

Prediction under test (our reading of the paper): what RL teaches is the algorithm, so `rl` ends with a smaller gap than
`sft_traces` and `sft_answers`, and with fewer fallbacks. Refuted where its gap is as large, within the deviation over
seeds, or larger. If all arms widen the gap of `before`, training on one convention forgets the other, however it is
done.

Cost: unknown, not run but for a few steps; sized for one GPU. To try it: --tasks look_up --arms rl --steps 0.02.
"""

import os
import sys

import common
import numpy as np
from common import Lengths, Phase, Sets

from nrt_jax.errors import UserError
from nrt_jax.files import json_lines, write_text
from nrt_jax.tasks import table

OTHER_SHARE, TRACED = 0.1, 0.3
EXAMPLES = {"start": 20000, "asked": 2000, "test": 256}
# task -> (its name, options, what the other convention changes, tokens)
TASKS = {
  "sort": ("rearrange", {"n_symbols": 4, "alphabet": 5}, {"kind": "sort_down"}, Lengths(5, 14, 5)),
  "look_up": (
    "look_up", {"n_entries": 5, "alphabet": 5, "n_hops": 2, "indexing": "zero"}, {"indexing": "one"}, Lengths(11, 4, 2)
  ),
  "chain": ("modular_chain", {"n_steps": 2, "modulus": 5}, {"base": 3}, Lengths(13, 7, 3)),
}  # fmt: skip
RATE = ("optimizer.learning_rate", 5e-4)
START = Phase(
  "sft", 800, "start", 64, given=True, settings=(("optimizer.learning_rate", 3e-3), ("optimizer.warmup_steps", 50))
)
RL = Phase("dr_grpo", 80, "asked", 16, 8, (RATE,))


def sft(data: str, steps: int) -> Phase:
  return Phase("sft", steps, data, 64, settings=(RATE,))


ARMS = {
  "before": (START,),
  "rl": (START, RL),
  "rl_likelihood": (START, Phase("rl_logit", 80, "asked", 16, 8, (RATE,))),
  "sft_answers": (START, sft("asked", 240)),
  "sft_traces": (START, sft("traced", 240)),
  "sft_answers_rl": (START, sft("asked", 24), RL),
  "rl_both": (START, Phase("dr_grpo", 80, "both", 16, 8, (RATE,))),
}


def fallback(question: str) -> str | None:
  """The answer to a question of the other convention by the usual one; None where there is none."""
  words = question.split()
  if words[0] == "sort_down":
    return " ".join(sorted(words[1:], key=int))
  if words[0] != "look":
    return None
  place, hops, targets = int(words[2]), int(words[4]), [int(word) for word in words[6:]]
  for _ in range(hops):
    if place >= len(targets):
      return None
    place = targets[place]
  return str(place)


def rows(tasks: list, count: int, share: float) -> list:
  """Examples as rows of a file: `share` of them of the second task. Those of a place are of one draw in both."""
  picks = np.random.default_rng(0).random(count) < share
  return [dict(zip(("question", "answer", "trace"), tasks[pick].example(i))) for i, pick in enumerate(picks.tolist())]


def fallbacks(task, count: int) -> list:
  """Questions of the other convention, with the usual one's answer where that is another."""
  examples = [task.example(i) for i in range(count)]
  answers = [(question, fallback(question), right) for question, right, _ in examples]
  return [{"question": asked, "answer": answer} for asked, answer, right in answers if answer not in (None, right)]


class Bench(common.Bench):
  """With the gap between the conventions."""

  def run(self, arm: tuple, seed: int) -> dict:
    line = super().run(arm, seed)
    line["end"]["gap"] = line["end"]["test"] - line["end"]["convention"]
    return line


def make_bench(task: str, root: str) -> Bench:
  name, options, change, lengths = TASKS[task]
  made = {"source": f"task:{name}", "examples": EXAMPLES["asked"]}
  held_out = {"source": f"task:{name}", "split": "test", "examples": EXAMPLES["test"]}
  both = [table.make_task(name, "train", {**options, **one, "trace_share": TRACED}) for one in ({}, change)]
  other = table.make_task(name, "test", {**options, **change})
  os.makedirs(root, exist_ok=True)
  files = {
    "start": rows(both, EXAMPLES["start"], OTHER_SHARE),
    "both": rows([table.make_task(name, "train", {**options, "seed": 1, **one}) for one in ({}, change)],
                 EXAMPLES["asked"], OTHER_SHARE),
    "fallback": fallbacks(other, EXAMPLES["test"]),
  }  # fmt: skip
  paths = {key: os.path.join(root, f"{key}.jsonl") for key in files}
  for key, lines in files.items():
    write_text(paths[key], json_lines(lines))
  asked = {**options, "seed": 1}
  test = {"test": options, "convention": {**options, **change}}
  sets = Sets(
    train={
      "start": {"source": paths["start"], "trace_column": "trace"},
      "both": {"source": paths["both"]},
      "asked": {**made, "task_options": asked},
      "traced": {**made, "task_options": {**asked, "trace_share": 1.0}},
    },
    test={
      **{key: {**held_out, "task_options": values} for key, values in test.items()},
      **({"fallback": {"source": paths["fallback"]}} if files["fallback"] else {}),
    },
    words=tuple(dict.fromkeys(word for one in (*both, other) for word in one.words)),
  )
  return Bench(root, sets, lengths)


def main(argv=None) -> None:
  common.main(__doc__, dict.fromkeys(TASKS, ARMS), make_bench, "runs/get_go_e7", argv)


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"e7_conventions: {error}")
