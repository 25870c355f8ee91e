"""A directory of evaluation sets: a few rows of ours for each, in the shapes in which they are published."""

import gzip
import json
import pathlib

AREA = {
  "task_id": "Ours/0",
  "prompt": 'def area(side: float) -> float:\n    """ The area of a square.\n    """\n',
  "entry_point": "area",
  "canonical_solution": "    return side * side\n",
  "test": "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(0) == 0\n",
}


def write(place: pathlib.Path) -> pathlib.Path:
  """Fills and returns the directory."""
  worked = "He has 2 * {0} = <<2*{0}={1}>>{1} pens.\nThat is all.\n#### {1}"
  pens = [{"question": f"how many pens are {i} pairs", "answer": worked.format(i, 2 * i)} for i in range(1, 9)]
  body = {"Question": "How many are left?", "Equation": "( 5.0 - 2.0 )", "Type": "Subtraction", "ID": "ours-1"}
  files = {
    "gsm8k/test.jsonl": pens,
    "gsm8k/train.jsonl": [{"question": f"train {i}", "answer": worked.format(i, 2 * i)} for i in range(20, 24)],
    "math_eval/svamp.jsonl": [{"Body": "A has 5 pens and gives 2 away", "Answer": 3.0, **body},
                              {"Body": "B has 5.5 pens.", "Answer": 3.5, **body}],
    "math/test.jsonl": [{"problem": "Half of 1?", "level": "Level 1", "solution": "It is $\\boxed{\\frac{1}{2}}$."}],
    "math_eval/aime24.jsonl": [{"id": 1, "problem": "2+2?", "solution": "2+2 is $4$.", "answer": "4", "url": "x"}],
    "math_eval/amc23.jsonl": [{"id": 0, "problem": "3+3?", "answer": 6.0, "question": "3+3?"}],
    "math_eval/minerva_math.jsonl": [{"problem": "c?", "solution": "So \\boxed{3e8} m/s", "type": "x", "idx": 0}],
    "math_eval/olympiadbench.jsonl": [
      {"id": 1, "context": None, "question": "x^2 = 1?", "solution": ["Both signs."], "final_answer": ["$1$", "$-1$"]},
      {"id": 2, "context": "Let a = 2.", "question": "a^2?", "solution": None, "final_answer": ["$4$"]},
    ],
    "math_eval/mmlu_stem.jsonl": [
      {"question": f"which is {i}", "type": kind, "choices": list("0123"), "answer": i}
      for kind in ("algebra", "biology") for i in range(3)
    ],
    "mmlu/test.jsonl": [{"question": "red?", "subject": "colours", "choices": ["a", "b"], "answer": "B"}],
  }  # fmt: skip
  for name, rows in files.items():
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  (place / "bbh").mkdir()
  for task, targets in {"navigate": ["Yes", "No"], "dates": ["(B)", "(A)"]}.items():
    rows = [{"input": f"{task} {i}", "target": targets[i % 2]} for i in range(4)]
    (place / "bbh" / f"{task}.json").write_text(json.dumps({"canary": "none", "examples": rows}))
  (place / "humaneval").mkdir()
  with gzip.open(place / "humaneval" / "HumanEval.jsonl.gz", "wt") as file:
    file.write("".join(json.dumps({**AREA, "task_id": f"Ours/{i}"}) + "\n" for i in range(2)))
  return place
