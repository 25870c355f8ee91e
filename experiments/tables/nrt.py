"""The tables of NRT (arXiv 2602.11549).

    nrt-jax report --table nrt runs

We have not seen the paper's body. Its numbers are those of papernotes.org's notes, which have seven of nine columns of
one table; there are no numbers for PopQA and TruthfulQA, for Mistral, nor for other methods on Llama-3.2-3B.
"""

import table_columns as columns

from nrt_jax.reporting.tables import Column, Row, Source, Table

NOTES = Source("arXiv 2602.11549", "papernotes.org's notes on the paper (secondary)")
PAPER = "../full_size/nrt_paper_llama31_8b_tulu3.py"  # the method as the paper has it
RELEASED = "../full_size/nrt_llama31_8b_tulu3.py"  # as the released code has it

NINE = (
  columns.BBH, columns.MMLU, columns.DROP, columns.POPQA, columns.TRUTHFULQA, columns.GSM8K, columns.MATH,
  columns.HUMANEVAL, columns.IFEVAL,
)  # fmt: skip
OVERALL = Column("Overall", mean_of=NINE, absent="no command here grades PopQA, one of its nine sets")
JLB = ("algorithm.name=jepo", "optimizer.minibatches=1")  # it has no ratio, and so one update for each rollout
FORM = (
  "Shots and metrics are unknown. Ours: three examples and the mean over tasks in BBH, no examples in MMLU, GSM8K and "
  "MATH, pass@10 of HumanEval; F1 of DROP, mc2 of TruthfulQA and IFEval's loose accuracy of prompts as "
  "lm-evaluation-harness asks.",
)
BASELINES = (
  "Rows with * are the authors' own runs of others' methods, with their loss on the format and what else they call "
  "stabilisation added; that addition is not known, and ours are the methods as published, on the same data.",
)


def aggregation(name: str, number: str, reward: str) -> Row:
  """NRT with another f(c)."""
  return Row(name, number, PAPER, (f"algorithm.reward={reward}",))


def get_tables():
  main = Table(
    "nrt_main",
    "NRT, Llama-3.1-8B on the Tülu 3 mixture: nine benchmarks",
    (*NINE, OVERALL),
    (
      Row("SFT", "38.0 59.2 36.7 ? ? 29.0 17.8 74.7 58.3 46.0", PAPER, ("algorithm.name=sft",)),
      Row("RLPR*", "41.2 58.7 32.5 ? ? 65.0 27.8 77.8 61.3 50.8", PAPER, ("algorithm.name=rlpr",)),
      Row("VeriFree*", "35.7 58.3 33.5 ? ? 54.3 19.4 76.3 59.3 48.1", PAPER, ("algorithm.name=verifree",)),
      Row("JLB*", "? ? ? ? ? ? ? ? ? ?", PAPER, JLB),
      Row("NRT-GM", "54.3 66.1 48.7 ? ? 70.3 32.2 76.3 55.3 54.9", PAPER, ("algorithm.reward=geometric_mean",)),
      Row("NRT-WS(-log p)", "51.0 66.7 52.2 ? ? 76.0 30.7 77.8 59.0 56.2", PAPER),
      Row("NRT-WS(-log p), released code", "? ? ? ? ? ? ? ? ? ?", RELEASED),
    ),
    NOTES,
    "Llama-3.1-8B",
    (
      *FORM,
      *BASELINES,
      "The released code's README says that details differ from the paper's runs, so its row has no number of theirs.",
    ),
  )
  aggregations = Table(
    "nrt_aggregations",
    "NRT, Llama-3.1-8B: what aggregates the answer's probabilities, average of nine benchmarks",
    (OVERALL,),
    (
      aggregation("log p", "52.9", "log_prob"),
      aggregation("p", "51.4", "prob"),
      aggregation("GM", "54.9", "geometric_mean"),
      aggregation("AM", "53.3", "arithmetic_mean"),
      aggregation("WS(1/p)", "53.3", "weighted_sum_inverse_prob"),
      aggregation("WS(-log p)", "56.2", "weighted_sum_log_prob"),
    ),
    NOTES,
    "Llama-3.1-8B",
    FORM,
  )
  mistral = "which Mistral model it is, is not known"
  others = Table(
    "nrt_other_models",
    "NRT, other models: average of nine benchmarks",
    (OVERALL,),
    (
      Row("SFT, Llama-3.2-3B", "36.4", PAPER, ("algorithm.name=sft",), "Llama-3.2-3B"),
      Row("NRT-WS(-log p), Llama-3.2-3B", "39.9", PAPER, model="Llama-3.2-3B"),
      Row("SFT, Mistral", "?", absent=mistral),
      Row("NRT-WS(-log p), Mistral", "?", absent=mistral),
    ),
    Source("arXiv 2602.11549", "papernotes.org's and papers.lunadong.com's notes on the paper (secondary)"),
    notes=FORM,
  )
  return [main, aggregations, others]
