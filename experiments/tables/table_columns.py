"""Columns that several tables share: benchmarks, the names of our metrics, and how `nrt-jax evaluate` measures them.

Not a table itself. DATA in a command is your directory of data sets: of the built-in ones as docs/evaluation.md says,
of others JSON Lines with the columns that the command names. Where a benchmark has no command, a run is still put in if
an output of its evaluation names the metric.
"""

import json

from nrt_jax.reporting import tables

NOT_GRADED = "no command here grades it; a run that has the metric from elsewhere is put in all the same"
NOT_NAMED = "our notes do not name all sets of this average, so nothing here can be averaged"


def flags(name: str, data: dict, grader: str, samples: int = 1, temperature: float = 0.0) -> tuple[str, ...]:
  """Flags that evaluate on a data set under a name, whatever the config evaluates on otherwise."""
  keys = {"name": name, "data": json.dumps(data), "grader": grader, "samples": samples, "temperature": temperature}
  return tuple(f"--config.evaluation.{key}={value}" for key, value in keys.items())


def built_in(name: str, one_set: str, metric: str = "accuracy", flags=()) -> tables.Column:
  """A built-in set."""
  return tables.percent(name, f"eval/{one_set}/{metric}", set=one_set, evaluate=tuple(flags))


def several(samples: int, temperature: float) -> tuple[str, ...]:
  return (f"--config.evaluation.samples={samples}", f"--config.evaluation.temperature={temperature}")


def choices(name: str, file: str, data: dict) -> tables.Column:
  """Accuracy in questions of several choices."""
  command = flags(file, data, "multiple_choice")
  return tables.percent(name, f"eval/{file}/accuracy", evaluate=command)


def harness(name: str, task: str, metric: str) -> tables.Column:
  """A benchmark that lm-evaluation-harness grades."""
  return tables.percent(name, f"harness/{task}/{metric}", harness=task)


def other(name: str, *metrics: str) -> tables.Column:
  """A benchmark that nothing here grades."""
  return tables.percent(name, *metrics, absent=NOT_GRADED)


GREEDY = several(1, 0.0)
MATH_500 = {"source": "hub:HuggingFaceH4/MATH-500", "split": "test", "question_column": "problem"}
AIME_25 = {"source": "DATA/aime25.jsonl", "question_column": "problem"}
GSM8K = built_in("GSM8K", "gsm8k", flags=GREEDY)
MATH = built_in("MATH", "math", flags=GREEDY)
MATH500 = tables.percent("MATH500", "eval/math500/accuracy", evaluate=flags("math500", MATH_500, "math"))
AIME24 = built_in("AIME24", "aime24", "avg@32", several(32, 0.6))
AIME25 = tables.percent("AIME25", "eval/aime25/avg@32", evaluate=flags("aime25", AIME_25, "math", 32, 0.6))
AMC23 = built_in("AMC23", "amc23", "avg@32", several(32, 0.6))
MINERVA = built_in("Minerva", "minerva_math", flags=GREEDY)
OLYMPIAD = built_in("Olympiad", "olympiadbench", flags=GREEDY)
BBH = built_in("BBH", "bbh", "macro_accuracy", GREEDY)
MMLU = built_in("MMLU", "mmlu", flags=GREEDY)
HUMANEVAL = built_in("HumanEval", "humaneval", "pass@10", ("--run_code", *several(10, 0.8)))
MMLU_PRO = choices(
  "MMLU-Pro", "mmlu_pro", {"source": "hub:TIGER-Lab/MMLU-Pro", "split": "test", "choices_column": "options"}
)
GPQA = choices("GPQA", "gpqa", {"source": "DATA/gpqa.jsonl", "choices_column": "choices"})
SUPER_GPQA = choices("SuperGPQA", "supergpqa", {"source": "DATA/supergpqa.jsonl", "choices_column": "choices"})
DROP = harness("DROP", "drop", "f1,none")
TRUTHFULQA = harness("TruthfulQA", "truthfulqa_mc2", "acc,none")
IFEVAL = harness("IFEval", "ifeval", "prompt_level_loose_acc,none")
CSQA = harness("CommonsenseQA", "commonsense_qa", "acc,none")
POPQA = other("PopQA", "eval/popqa/accuracy")
THEOREM_QA = other("TheoremQA", "eval/theoremqa/accuracy")
SAT_MATH = other("SAT-Math", "eval/sat_math/accuracy")
