"""Columns that several tables share: benchmarks, the names of our metrics, and how `nrt-jax evaluate` measures them.

Not a table itself. DATA in a command is your directory of data sets: JSON Lines with the columns that are named there.
Where a benchmark has no command, a run is still put in if an output of its evaluation names the metric.
"""

import json

from nrt_jax.reporting import tables

NOT_GRADED = "nrt-jax evaluate has no grader for it; a run that has the metric from elsewhere is put in all the same"
NOT_NAMED = "our notes do not name all sets of this average, so nothing here can be averaged"


def flags(name: str, data: dict, grader: str, samples: int = 1, temperature: float = 0.0) -> tuple[str, ...]:
  """Flags that evaluate on a data set under a name, whatever the config evaluates on otherwise."""
  keys = {"name": name, "data": json.dumps(data), "grader": grader, "samples": samples, "temperature": temperature}
  return tuple(f"--config.evaluation.{key}={value}" for key, value in keys.items())


def maths(name: str, file: str, column: str, data: dict, samples: int = 1, **others) -> tables.Column:
  """Accuracy in mathematics, of greedy completions or the mean of several."""
  metrics = (f"eval/{file}/accuracy",) if samples == 1 else (f"eval/{file}/avg@{samples}",)
  command = flags(file, {"source": f"DATA/{file}.jsonl", "question_column": column, **data}, "math", samples, **others)
  return tables.percent(name, *metrics, evaluate=command)


def choices(name: str, file: str, data: dict) -> tables.Column:
  """Accuracy in questions of several choices."""
  command = flags(file, data, "multiple_choice")
  return tables.percent(name, f"eval/{file}/accuracy", evaluate=command)


def other(name: str, *metrics: str) -> tables.Column:
  """A benchmark that nothing here grades."""
  return tables.percent(name, *metrics, absent=NOT_GRADED)


MATH_500 = {"source": "hub:HuggingFaceH4/MATH-500", "split": "test", "question_column": "problem"}
GSM8K = tables.percent(
  "GSM8K",
  "eval/gsm8k/accuracy",
  evaluate=flags("gsm8k", {"source": "DATA/gsm8k/test.jsonl", "answer_after": "####"}, "gsm8k"),
)
MATH500 = tables.percent("MATH500", "eval/math500/accuracy", evaluate=flags("math500", MATH_500, "math"))
MATH = maths("MATH", "math", "problem", {})
AIME24 = maths("AIME24", "aime24", "problem", {}, 32, temperature=0.6)
AIME25 = maths("AIME25", "aime25", "problem", {}, 32, temperature=0.6)
AMC23 = maths("AMC23", "amc23", "problem", {}, 32, temperature=0.6)
MINERVA = maths("Minerva", "minerva_math", "problem", {})
OLYMPIAD = maths("Olympiad", "olympiadbench", "question", {})
MMLU = choices("MMLU", "mmlu", {"source": "hub:cais/mmlu:all", "split": "test", "choices_column": "choices"})
MMLU_PRO = choices(
  "MMLU-Pro", "mmlu_pro", {"source": "hub:TIGER-Lab/MMLU-Pro", "split": "test", "choices_column": "options"}
)
GPQA = choices("GPQA", "gpqa", {"source": "DATA/gpqa.jsonl", "choices_column": "choices"})
SUPER_GPQA = choices("SuperGPQA", "supergpqa", {"source": "DATA/supergpqa.jsonl", "choices_column": "choices"})
BBH = other("BBH", "eval/bbh/accuracy")
DROP = other("DROP", "eval/drop/f1")
POPQA = other("PopQA", "eval/popqa/accuracy")
TRUTHFULQA = other("TruthfulQA", "eval/truthfulqa/accuracy")
HUMANEVAL = other("HumanEval", "eval/humaneval/pass@10", "eval/humaneval/accuracy")
IFEVAL = other("IFEval", "eval/ifeval/accuracy")
THEOREM_QA = other("TheoremQA", "eval/theoremqa/accuracy")
SAT_MATH = other("SAT-Math", "eval/sat_math/accuracy")
