"""Columns that several tables share: benchmarks, the names of our metrics, and how `nrt-jax evaluate` measures them.

Not a table itself. DATA in a command is your directory of data sets: the files of built-in sets as docs/evaluation.md
has them, and JSON Lines with the columns that are named there. Where a benchmark has no command, a run is still put in
if an output of its evaluation names the metric.
"""

import json

from nrt_jax.reporting import tables

NOT_GRADED = "nrt-jax evaluate has no grader for it; a run that has the metric from elsewhere is put in all the same"
NOT_NAMED = "our notes do not name all sets of this average, so nothing here can be averaged"


def flags(name: str, data: dict, grader: str, samples: int = 1, temperature: float = 0.0) -> tuple[str, ...]:
  """Flags that evaluate on a data set under a name, whatever the config evaluates on otherwise."""
  keys = {"name": name, "data": json.dumps(data), "grader": grader, "samples": samples, "temperature": temperature}
  return tuple(f"--config.evaluation.{key}={value}" for key, value in keys.items())


def built_in(name: str, key: str, metric: str = "accuracy", samples: int = 1, temperature: float = 0.0, *more: str):
  """A Column of a built-in set, whose files lie in DATA; more: further flags."""
  how = (f"--config.evaluation.samples={samples}", f"--config.evaluation.temperature={temperature}")
  command = ("--sets", key, "--sets_directory", "DATA", *more, *how)
  return tables.percent(name, f"eval/{key}/{metric}", evaluate=command)


def maths(name: str, file: str, samples: int = 1, temperature: float = 0.0) -> tables.Column:
  """Accuracy in mathematics of a set that is not built in, of greedy completions or the mean of several."""
  data = {"source": f"DATA/{file}.jsonl", "question_column": "problem"}
  metric = "accuracy" if samples == 1 else f"avg@{samples}"
  return tables.percent(name, f"eval/{file}/{metric}", evaluate=flags(file, data, "math", samples, temperature))


def choices(name: str, file: str, data: dict) -> tables.Column:
  """Accuracy in questions of several choices."""
  command = flags(file, data, "multiple_choice")
  return tables.percent(name, f"eval/{file}/accuracy", evaluate=command)


def other(name: str, *metrics: str) -> tables.Column:
  """A benchmark that nothing here grades."""
  return tables.percent(name, *metrics, absent=NOT_GRADED)


MATH_500 = {"source": "hub:HuggingFaceH4/MATH-500", "split": "test", "question_column": "problem"}
GSM8K = built_in("GSM8K", "gsm8k")
MATH500 = tables.percent("MATH500", "eval/math500/accuracy", evaluate=flags("math500", MATH_500, "math"))
MATH = built_in("MATH", "math")
AIME24 = built_in("AIME24", "aime24", "avg@32", 32, 0.6)
AIME25 = maths("AIME25", "aime25", 32, 0.6)
AMC23 = built_in("AMC23", "amc23", "avg@32", 32, 0.6)
MINERVA = built_in("Minerva", "minerva_math")
OLYMPIAD = built_in("Olympiad", "olympiadbench")
MMLU = built_in("MMLU", "mmlu")
MMLU_PRO = choices(
  "MMLU-Pro", "mmlu_pro", {"source": "hub:TIGER-Lab/MMLU-Pro", "split": "test", "choices_column": "options"}
)
GPQA = choices("GPQA", "gpqa", {"source": "DATA/gpqa.jsonl", "choices_column": "choices"})
SUPER_GPQA = choices("SuperGPQA", "supergpqa", {"source": "DATA/supergpqa.jsonl", "choices_column": "choices"})
BBH = built_in("BBH", "bbh")
DROP = other("DROP", "eval/drop/f1")
POPQA = other("PopQA", "eval/popqa/accuracy")
TRUTHFULQA = other("TruthfulQA", "eval/truthfulqa/accuracy")
HUMANEVAL = built_in("HumanEval", "humaneval", "pass@10", 10, 0.8, "--run_code")
IFEVAL = other("IFEval", "eval/ifeval/accuracy")
THEOREM_QA = other("TheoremQA", "eval/theoremqa/accuracy")
SAT_MATH = other("SAT-Math", "eval/sat_math/accuracy")
