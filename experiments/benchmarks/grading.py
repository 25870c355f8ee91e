"""CPU seconds that the graders of mathematics take for ordinary completions.

    python experiments/benchmarks/grading.py --data DATA [--count 10000] [--symbolic 300]

DATA has `gsm8k/train.jsonl`, `math_eval/minerva_math.jsonl` and `math_eval/olympiadbench.jsonl`. A completion is a real
solution whose answer is its own or, every second time, another problem's. To compare two versions, run each from its own
checkout, in turn. math-verify's process counts, its start included.
"""

import argparse
import json
import pathlib
import random
import resource

from nrt_jax.tasks import math_answers, symbolic

ENDINGS = ("{}#### {}", "{}The answer is ${}.", "{}So the answer is \\boxed{{{}}}.", "{}Thus it is {}")
SETS = (("minerva_math", "solution"), ("olympiadbench", "final_answer"))


def read(path: pathlib.Path) -> list:
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def gsm8k(data: pathlib.Path, count: int, draw: random.Random) -> list:
  """(completion, reference) pairs."""
  answers, pairs = [row["answer"] for row in read(data / "gsm8k" / "train.jsonl")], []
  for i in range(count):
    reference = answers[i % len(answers)]
    body, _, own = reference.rpartition("#### ")
    final = draw.choice((own, draw.choice(answers).rpartition("#### ")[2]))
    pairs.append((draw.choice(ENDINGS).format(body, final), reference))
  return pairs


def solved(data: pathlib.Path) -> list:
  """(final answer, solution) of each problem."""
  found = []
  for name, column in SETS:
    for row in read(data / "math_eval" / f"{name}.jsonl"):
      answer, solution = (row[key][0] if isinstance(row[key], list) else str(row[key]) for key in (column, "solution"))
      final = math_answers.final_answer(answer)
      found += [(final.strip("$"), solution)] if final else []
  return found


def boxed(pool: list, count: int, draw: random.Random) -> list:
  """(completion, reference) pairs."""
  pairs = []
  for i in range(count):
    own, solution = pool[i % len(pool)]
    final = draw.choice((own, draw.choice(pool)[0]))
    pairs.append((f"{solution[:1500]}\nHence the answer is $\\boxed{{{final}}}$.", own))
  return pairs


def cpu_seconds() -> float:
  """Of this process and of its children that have ended."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--data", type=pathlib.Path, required=True)
  parser.add_argument("--count", type=int, default=10_000, help="completions with a number as their answer")
  parser.add_argument("--symbolic", type=int, default=300, help="completions with answers of all kinds")
  args, draw = parser.parse_args(), random.Random(0)
  pool = solved(args.data)
  numbers = [pair for pair in pool if pair[0].lstrip("-").replace(".", "", 1).isdigit()]
  print("| grader | completions | CPU seconds | right |\n|---|---|---|---|")
  for name, grade, pairs in (
    ("gsm8k", math_answers.grade_gsm8k, gsm8k(args.data, args.count, draw)),
    ("math, numbers", math_answers.grade_math, boxed(numbers, args.count, draw)),
    ("math, all answers", math_answers.grade_math, boxed(pool, args.symbolic, draw)),
  ):
    start = cpu_seconds()
    right = sum(grade(completion, reference) for completion, reference in pairs)
    symbolic.WORKER.close()  # only then its seconds are counted
    print(f"| {name} | {len(pairs):,} | {cpu_seconds() - start:.2f} | {right:,} |")


if __name__ == "__main__":
  main()
