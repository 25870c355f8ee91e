"""HumanEval: programs out of answers, and whether they are right."""

import gzip
import json

import paths
import pytest

from nrt_jax.evaluation import human_eval, sandbox

ROW = {
  "task_id": "Ours/0",
  "prompt": 'import math\n\n\ndef area(side: float) -> float:\n    """ The area of a square.\n    """\n',
  "entry_point": "area",
  "canonical_solution": "    if side < 0:\n        raise ValueError\n    return side * side\n",
  "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
}
BODY = ROW["canonical_solution"]
WHOLE = "def area(side):\n    return math.prod([side, side])"
RIGHT = [ROW["prompt"] + BODY, BODY, BODY.strip(), "return side * side", WHOLE, f"So:\n```python\n{WHOLE}\n```\nEnd.",
         f"```\nprint(1)\n```\nor\n```py\n{WHOLE}", f"{WHOLE}\n```\n\nThis is the area.",
         f"```python\n{WHOLE}\n```\nTry it:\n```python\narea('x')\n```", f"{WHOLE}\n\nprint(area(1, 2))\nassert 0",
         "if side:\n    return side * side\nreturn 0"]  # fmt: skip
WRONG = ["return side", "def area(side):\n    return 3 * side", "It is side * side.", "```python\n```",
         "import os; os._exit(0)"]  # fmt: skip


def test_answers_are_run_against_the_tests():
  programs = [human_eval.program(ROW, answer) for answer in [*RIGHT, *WRONG]]
  assert sandbox.all_pass(programs) == [True] * len(RIGHT) + [False] * len(WRONG)


def test_votes_are_code():
  assert human_eval.normal_form(f"Look:\n```python\n{WHOLE}  \n```") == human_eval.normal_form(WHOLE) == WHOLE
  assert human_eval.normal_form("```python\n```") is None


def test_published_solutions_pass():
  path = paths.DATA / "humaneval" / "HumanEval.jsonl.gz"
  if not path.exists():
    pytest.skip("real data is absent: ../shared/data/humaneval")
  with gzip.open(path, "rt") as file:
    rows = [json.loads(line) for line in file][::40]
  right = [human_eval.program(row, row["prompt"] + row["canonical_solution"]) for row in rows]
  wrong = [human_eval.program(row, "return None") for row in rows]
  assert sandbox.all_pass(right + wrong) == [True] * len(rows) + [False] * len(rows)
