"""The tables of RARO (arXiv 2511.21667).

    nrt-jax report --table raro runs

We have not seen the paper's body. Numbers are those of Together AI's page on it, of Chinese notes, and of notes on
arXiv 2608.09271, which has the same baselines; all rows of the 3B model are unknown.
"""

import dataclasses

from nrt_jax.reporting.tables import Column, Row, Source, Table, percent, with_model

PAPER = "arXiv 2511.21667"
BLOG = Source(PAPER, "Together AI's page on the paper, and secondary notes that agree with it")
BASELINES = Source(PAPER, "notes on arXiv 2608.09271, which reports the same baselines (secondary)")
NOTES = Source(PAPER, "Chinese notes on the paper (secondary)")
DERIVED = Source(PAPER, "Together AI's page: RARO's 57.5 less the lead of 8.2 over the best baseline")
COUNTDOWN = "../full_size/raro_qwen25_countdown.py"
DEEPMATH = "../full_size/raro_qwen25_deepmath.py"
POETRY = "../full_size/raro_qwen25_poetry.py"
MODEL = "Qwen2.5-{}-Instruct"

JUDGE = (
  "the paper's judge is GPT-5, asked in words that are not known; nrt-jax judge asks one of yours, see docs/raro.md"
)
TOURNAMENT = "which number of samples and votes the paper has is not known; nrt-jax evaluate --tournament 8 runs one"
# The paper's changes to GRPO, for all methods that sample: no deviation, no length, a KL of 1e-3.
LIKE_RARO = ("algorithm.reference=frozen", "algorithm.kl_coef=0.001")
SFT = ("algorithm.name=sft",)
RATIONALIZATION = ("algorithm.name=rationalization",)
DPO = ("algorithm.name=dpo", "algorithm.chosen=demonstration", "algorithm.verifier=none")
RL_LOGIT = ("algorithm.name=rl_logit", *LIKE_RARO)


def rlvr(verifier: str) -> tuple[str, ...]:
  return ("algorithm.name=dr_grpo", f"algorithm.verifier={verifier}", *LIKE_RARO)


def countdown(name: str, tokens: int) -> Column:
  """Accuracy on Countdown's held-out puzzles, as the config evaluates, within so many tokens."""
  limit = f"--config.evaluation.max_completion_length={tokens}"
  set_name = "countdown" if tokens == 2048 else f"countdown{tokens}"
  return percent(name, f"eval/{set_name}/accuracy", evaluate=(f"--config.evaluation.name={set_name}", limit))


def get_tables():
  same = (
    "The paper's number range, expert and counts of puzzles are unknown: ours are task:countdown's.",
    "DPO is one run here, whose pairs are always of the newest policy; there it has three rounds.",
  )
  budget = Table(
    "raro_countdown",
    "RARO, Countdown with Qwen2.5-1.5B: accuracy in per cent within 2,048 tokens",
    (countdown("accuracy", 2048),),
    (
      Row("Base", "2.0", COUNTDOWN, untrained=True, source=BASELINES),
      Row("SFT", "40.7", COUNTDOWN, SFT),
      Row("Rationalization", "12.5", COUNTDOWN, RATIONALIZATION, source=BASELINES),
      Row("Iterative DPO", "40.4", COUNTDOWN, DPO, source=BASELINES),
      Row("RL-Logit", "2.2", COUNTDOWN, RL_LOGIT, source=BASELINES),
      Row("RARO", "54.4", COUNTDOWN),
      Row("RLVR", "57.7", COUNTDOWN, rlvr("countdown")),
    ),
    BLOG,
    MODEL.format("1.5B"),
    same,
  )
  scaling = Table(
    "raro_budgets",
    "RARO, Countdown with Qwen2.5-1.5B: accuracy in per cent by tokens at test time",
    (countdown("256", 256), countdown("2048", 2048), countdown("4096", 4096)),
    (Row("RARO", "33.1 54.4 61.3", COUNTDOWN),),
    NOTES,
    MODEL.format("1.5B"),
    ("Budgets between these, and other methods' curves, are not known.",),
  )
  accuracy = percent("accuracy", "eval/deepmath/accuracy", evaluate=("--config.evaluation.name=deepmath",))
  sizes = tuple(with_model(accuracy, size, MODEL.format(size)) for size in ("1.5B", "3B", "7B"))
  deepmath = Table(
    "raro_deepmath",
    "RARO, DeepMath with Qwen2.5: accuracy in per cent within 2,048 tokens",
    sizes,
    (
      Row("Base", "30.0 ? ?", DEEPMATH, untrained=True),
      Row("SFT", "35.7 ? ?", DEEPMATH, SFT),
      Row("Rationalization", "34.5 ? ?", DEEPMATH, RATIONALIZATION),
      Row("Iterative DPO", "33.0 ? ?", DEEPMATH, DPO),
      Row("RL-Logit", "37.7 ? ?", DEEPMATH, RL_LOGIT),
      Row("best of these baselines", "- ? 49.3", absent="which baseline it is, is not known", source=DERIVED),
      Row("RARO", "41.3 ? 57.5", DEEPMATH, source=BLOG),
      Row("RARO and a tournament", "? ? 68.4", absent=TOURNAMENT, source=BLOG),
      Row("RLVR", "50.9 ? ?", DEEPMATH, rlvr("math")),
    ),
    BASELINES,
    notes=("The split and the form of the expert's answer are unknown.",),
  )
  win_rate = Column("win rate", absent=JUDGE)
  poetry = Table(
    "raro_poetry",
    "RARO, poems with Qwen2.5: per cent of wins over the expert's poem, GPT-5 being the judge",
    tuple(dataclasses.replace(win_rate, name=size, model=MODEL.format(size)) for size in ("1.5B", "3B", "7B")),
    (
      Row("SFT", "? ? 5.9", POETRY, SFT, source=NOTES),
      Row("RARO", "? ? 25.0", POETRY),
    ),
    BLOG,
    notes=("Scores of poems alone are not known. 5.9 is the best baseline's, which the notes name SFT.",),
  )
  return [budget, scaling, deepmath, poetry]
