"""E5: knowledge apart from reasoning: facts in the weights, in the context, in a memory that is read, or given.

    python experiments/get_go/e5_memory.py                     # five seeds, under runs/get_go_e5; it resumes
    python experiments/get_go/e5_memory.py --seeds 0 --tasks memory weights
    python experiments/get_go/e5_memory.py --processes 16      # an arm of a seed in each
    python experiments/get_go/e5_memory.py --report_only

arXiv 2502.19402 proposes a reasoner with a small context window and a large external memory that it learns to read. A
question follows two relations from an entity to an entity (task:facts): "follow e3 r1 r0". One task for each place of
the facts:

  weights         the same facts in every example, shown nowhere: learnt by heart
  context         facts of its own for each example, all of them in the question
  oracle          facts of its own for each example; those needed are in the question, in order
  memory          facts of its own for each example, in a memory: "read r1 e3" is answered in the sampling loop
  memory_window   the same, with layers that see 8 tokens
  cues, cues_window   memory and memory_window; two entities stand before each question, each of which is the answer in
                  eight of ten training examples, and by chance in the test

Every policy, of 2 layers of width 64, is first shown traces until it answers 0.7 of the test (given to all, counted
for none), then trained by RL (Dr. GRPO) on the answer, less 0.02 for each read. Measured: greedy accuracy on the
test; with all facts exchanged (swapped: other facts than in training, where those are fixed); with three hops (hops)
and with four (far); with facts of another relation that nobody asks for (extra). The weights are asked what they have
learnt, in every other place all facts are new.

Prediction under test: exchanged facts cost the memory nothing and the weights everything; the memory generalises to
more hops at least as well as the context; a small window keeps cues from being used. Refuted where the weights keep
their accuracy, or where `cues_window` falls as far below `memory_window` on the test as `cues` below `memory`.

Cost and results: docs/results/get_go.md.
"""

import sys

import common
from common import Lengths, Phase, Sets

from nrt_jax.errors import UserError
from nrt_jax.tasks import table

SOURCE, EXAMPLES, TESTED = "task:facts", 20000, 256
OPTIONS = {"entities": 4, "relations": 2, "hops": 2}
FACTS = 3 * 4 * (2 + 1)  # tokens of all of them, with those of another relation
WINDOW = 8
MEMORY = {"name": "memory", "key_tokens": 2, "read_cost": 0.02, "max_world_length": FACTS}
CUES = {"cues": 2, "cue_share": 0.8}
# task -> (its options, the environment, the window)
PLACES = {
  "weights": ({"shown": "nothing", "fixed": True}, None, None),
  "context": ({"shown": "context"}, None, None),
  "oracle": ({"shown": "oracle"}, None, None),
  "memory": ({"shown": "memory"}, MEMORY, None),
  "memory_window": ({"shown": "memory"}, MEMORY, WINDOW),
  "cues": ({"shown": "memory", **CUES}, MEMORY, None),
  "cues_window": ({"shown": "memory", **CUES}, MEMORY, WINDOW),
}
START = Phase(
  "sft", 2000, "traced", 64, given=True, bar=0.7,
  settings=(("optimizer.learning_rate", 3e-3), ("optimizer.warmup_steps", 50)),
)  # fmt: skip
RL = Phase("dr_grpo", 100, "train", 16, 8, (("optimizer.learning_rate", 5e-4),))
TASKS = {name: {"rl": (START, RL)} for name in PLACES}


def make_bench(task: str, root: str) -> common.Bench:
  own, environment, window = PLACES[task]
  options = {**OPTIONS, **own}
  blind = {**options, **({"cue_share": 0.0} if "cues" in own else {})}
  train = {"source": SOURCE, "split": "train", "examples": EXAMPLES, "task_options": options}
  # What is known by heart is asked as it was learnt: a world of 16 questions has too few to keep some back.
  test = {"source": SOURCE, "split": "train" if own.get("fixed") else "test", "examples": TESTED}
  shifts = {"test": {}, "swapped": {"seed": 1}, "hops": {"hops": 3}, "far": {"hops": 4}, "extra": {"extra": 1}}
  sets = Sets(
    train={"train": train, "traced": {**train, "task_options": {**options, "trace_share": 1.0}}},
    test={name: {**test, "task_options": {**blind, **shift}} for name, shift in shifts.items()},
    words=table.make_task("facts", "train", {**options, "extra": 1}).words,
  )
  trace = 4 * 4 + 1 if environment else 4 + 1  # of four hops, each "read", a key and its value, or an entity
  question = 6 + 2 + {"context": FACTS + 1, "oracle": 4 * 3 + 1}.get(task, 0)  # follow, entity, relations, cues, facts
  return common.Bench(root, sets, Lengths(prompt=question, trace=trace, answer=2), environment, window)


def curves(found: dict) -> list:
  """One row of curves: a place of the facts a curve."""
  return [("places of the facts", {task: lines for task, arms in found.items() for lines in arms.values()})]


def main(argv=None) -> None:
  common.main(__doc__, TASKS, make_bench, "runs/get_go_e5", argv, curves)


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"e5_memory: {error}")
