"""E6: can RL from nothing write programs in esoteric languages, with an interpreter as its only teacher?

    python experiments/get_go/e6_programs.py                       # all tasks, five seeds; it resumes
    python experiments/get_go/e6_programs.py --tasks bf_print --seeds 0 --arms rl rl_share
    python experiments/get_go/e6_programs.py --processes 16        # an arm of a seed in each
    python experiments/get_go/e6_programs.py --report_only

arXiv 2502.19402 asks large language models for programs in Brainf**k and Befunge-93: most write hardly one that is
right, which it takes as a sign that next-token prediction does not teach to reason. Here random models of 2 layers of
width 64 learn the languages from nothing. A question asks for a program ("write standard add where 3 1 gives 4 and 2
gives 2"); it is right if it is so on all test cases, within a limit of steps. The interpreters run inside the compiled
step. The tasks:

  bf_print, befunge_print      two given symbols: a program of its own for each question
  bf_copy, bf_reverse, bf_add  one program is right for all questions of a task: exploration alone is hard

  rl             RL from random weights (Dr. GRPO), reward 1 where all cases are right, 0.1 for the format
  rl_share       the same with the share of the cases that are right
  rl_likelihood  from random weights, reward log-likelihood of a known program (RL-Logit), no interpreter
  sft            supervised learning of known programs, 600 steps of 64
  sft_rl         a tenth of it, then RL

Measured: the share of 128 test questions with a right program by greedy decoding (test), with longer inputs (longer),
other symbols (alphabet) and instructions that have changed places (convention, stated in the question); pass@1 and
pass@32; entropy; KL from where the last phase began; all at equal sampled tokens and at equal FLOPs.

Predictions under test: from nothing, RL finds the programs that a random policy writes once in a few thousand samples
(bf_copy; Brain Coder, arXiv 1801.03526, learnt such tasks), and not bf_reverse or bf_add; `rl_share` finds more than
`rl`; and what RL finds holds for longer inputs, as all right programs of a task do. Refuted where `rl` stays at 0 on
bf_copy in most seeds, or where `sft` ends above it out of the distribution. In bf_print an answer cannot be right by
habit: if `sft` is right there and `rl` is not, the interpreter's verdict was too rare to learn from, not the task too
hard.

Cost: unknown, not run but for a few steps; sized for one GPU. To try it: --tasks bf_copy --arms rl --steps 0.02.
"""

import sys

import common
from common import Lengths, Phase, Sets

from nrt_jax.errors import UserError
from nrt_jax.tasks import table

EXAMPLES = {"train": 20000, "test": 128}
# task -> (language, kind, further options, the longest program that may be written, its end token included)
TASKS = {
  "bf_print": ("brainfuck", "print", {"n_symbols": 2, "alphabet": 6, "max_length": 32}, 17),
  "bf_copy": ("brainfuck", "copy", {"n_symbols": 3, "alphabet": 5, "max_length": 8}, 9),
  "bf_reverse": ("brainfuck", "reverse", {"n_symbols": 3, "alphabet": 5, "max_length": 16}, 17),
  "bf_add": ("brainfuck", "add", {"n_symbols": 3, "alphabet": 5, "max_length": 16}, 17),
  "befunge_print": ("befunge", "print", {"n_symbols": 2, "alphabet": 6, "max_length": 32}, 17),
}
RL_STEPS, SFT_STEPS = 400, 600
RATE = ("optimizer.learning_rate", 5e-4)
WORLD = (("algorithm.verifier", "environment"), ("algorithm.format_reward", 0.1), ("algorithm.entropy_coef", 0.01))
RL = Phase("dr_grpo", RL_STEPS, "train", 16, 32, (RATE, *WORLD))


def sft(steps: int) -> Phase:
  return Phase("sft", steps, "train", 64, settings=(("optimizer.learning_rate", 1e-3),))


ARMS = {
  "rl": (RL,),
  "rl_share": (Phase("dr_grpo", RL_STEPS, "train", 16, 32, (RATE, *WORLD, ("environment.share", True))),),
  "rl_likelihood": (Phase("rl_logit", RL_STEPS, "train", 16, 32, (RATE,)),),
  "sft": (sft(SFT_STEPS),),
  "sft_rl": (sft(SFT_STEPS // 10), RL),
}


def environment(task, cases: int, inputs: int) -> dict:
  """The interpreter with the task's own limits."""
  limits = task.limits
  known = {"name": "program", "step_limit": limits.steps, "max_length": task.max_length, "cases": cases}
  known |= {"inputs": inputs, "outputs": limits.outputs, "max_world_length": cases * (inputs + limits.outputs + 2)}
  if hasattr(limits, "tape"):
    return {**known, "language": "brainfuck", "tape": limits.tape, "cell_values": limits.cells}
  return {**known, "language": "befunge", **{key: getattr(limits, key) for key in ("width", "height", "stack")}}


def make_bench(task: str, root: str) -> common.Bench:
  language, kind, more, longest = TASKS[task]
  options = {"kind": kind, "direction": "write", **more}
  own, test = (table.make_task(language, split, options) for split in ("train", "test"))
  cases, inputs = (1, 1) if kind == "print" else (own.n_tests, 2 * own.n_symbols)  # twice as many in "longer"
  made = {"source": f"task:{language}", "examples": EXAMPLES["train"], "task_options": options}
  held_out = {"source": f"task:{language}", "split": "test", "examples": EXAMPLES["test"]}
  shifts = {"test": {}, **test.shifts()}
  if kind == "print":  # their programs grow with the symbols that they write
    shifts = {key: value for key, value in shifts.items() if key in ("test", "convention")}
  world = environment(max((own, *table.shifted(test).values()), key=lambda one: one.limits.outputs), cases, inputs)
  sets = Sets(
    train={"train": made},
    test={key: {**held_out, "task_options": {**options, **shift}} for key, shift in shifts.items()},
    words=table.vocabulary(test),
  )
  question = 4 + 2 * (3 + 2 * 2 * own.n_symbols)  # write, convention, kind, where; two pairs of twice as many symbols
  return common.Bench(root, sets, Lengths(prompt=question, trace=longest, answer=longest), world)


def main(argv=None) -> None:
  common.main(__doc__, dict.fromkeys(TASKS, ARMS), make_bench, "runs/get_go_e6", argv)


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"e6_programs: {error}")
