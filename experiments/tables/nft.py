"""The tables of NFT (arXiv 2505.18116).

    nrt-jax report --table nft runs

The main table and the comparison with released models are images in the authors' repository, which we have read. AIME
and AMC are means of 32 samples. The paper evaluates 7B models at temperature 0.6, 32B models at 1, both with top-p 0.7,
which our evaluation does not have.
"""

import dataclasses

import table_columns as columns

from nrt_jax.reporting.tables import Column, Row, Source, Table

IMAGE = "an image in the authors' repository, NVlabs/NFT at b358fae"
MAIN = Source("arXiv 2505.18116", IMAGE, "the main table (main_table.png)")
RELEASED = Source("arXiv 2505.18116", IMAGE, "the chart of released models (main_compare)")
NFT = "../full_size/nft_qwen25_math_7b.py"
GRPO = "../full_size/grpo_qwen25_math_7b.py"
DAPO = "../full_size/dapo_qwen25_math_7b.py"
SIX = (columns.AIME24, columns.MATH500, columns.AIME25, columns.AMC23, columns.OLYMPIAD, columns.MINERVA)
# The authors' script for 32B: longer prompts and answers, everything else as for 7B.
LONGER = ("prompt.max_prompt_length=2048", "sampling.max_trace_length=14336")
RFT = ("algorithm.name=rft", "algorithm.verifier=math")
DR_GRPO = ("algorithm.name=dr_grpo", "algorithm.verifier=math")
NO_DPO = "iterative DPO's hyperparameters are not known, and no config of ours has it with a verifier"
NOT_OURS = "another group's released model, whose name on the hub is not in our notes"


def hotter(column: Column) -> Column:
  """As for 32B, whose samples have temperature 1."""
  return dataclasses.replace(
    column, evaluate=tuple(flag.replace("temperature=0.6", "temperature=1.0") for flag in column.evaluate)
  )


def get_tables():
  average = Column("Avg", mean_of=SIX)
  small = Table(
    "nft_7b",
    "NFT, Qwen2.5-Math-7B on DAPO-Math-17k",
    (*SIX, average),
    (
      Row("Qwen2.5-Math-7B", "13.3 69.0 5.5 45.8 34.7 21.3 31.6", NFT, untrained=True),
      Row("DPO, iterative", "29.8 79.8 13.8 83.2 48.0 39.0 48.9", absent=NO_DPO),
      Row("GRPO", "30.2 80.4 17.1 79.5 51.8 38.2 49.5", GRPO),
      Row("Dr. GRPO", "31.8 83.4 15.7 80.2 49.6 38.2 49.8", GRPO, DR_GRPO),
      Row("DAPO", "33.1 81.6 18.7 85.0 49.9 39.3 51.2", DAPO),
      Row("RFT", "33.7 79.8 13.4 79.7 44.3 38.6 48.3", NFT, RFT),
      Row("NFT", "32.0 83.2 18.3 88.5 47.3 40.8 51.7", NFT),
    ),
    MAIN,
    "Qwen2.5-Math-7B",
    ("The paper has three or four independent runs of each; how they differ is in its curves, whose values we lack.",),
  )
  six = tuple(map(hotter, SIX))
  large = Table(
    "nft_32b",
    "NFT, Qwen2.5-32B on DAPO-Math-17k",
    (*six, Column("Avg", mean_of=six)),
    (
      Row("Qwen2.5-32B", "4.1 68.6 1.0 45.0 31.1 27.9 29.6", NFT, LONGER, untrained=True),
      Row("DAPO", "44.1 89.2 33.4 90.9 54.1 47.5 59.9", DAPO, LONGER),
      Row("RFT", "29.9 86.2 19.1 92.4 45.3 44.1 52.8", NFT, (*RFT, *LONGER)),
      Row("NFT", "37.8 88.4 31.5 93.8 55.0 48.9 59.2", NFT, LONGER),
    ),
    MAIN,
    "Qwen2.5-32B",
    (
      "The authors' script uses the chat template of the 7B model here; ours takes the directory's own.",
      "The paper's DAPO has a penalty on long answers in this setting, the config here has none.",
    ),
  )
  five = (columns.AIME24, columns.MINERVA, columns.OLYMPIAD, columns.MATH500)
  released = Table(
    "nft_released",
    "NFT against released models of 7B",
    (*five, Column("Avg", mean_of=five)),
    (
      Row("Qwen-Math-7B", "0.2 21.3 34.7 69.0 35.1", NFT, untrained=True, model="Qwen2.5-Math-7B"),
      Row("Qwen-DPO-R1-Zero", "26.7 30.9 37.9 76.8 43.1", absent=NOT_OURS),
      Row("PRIME-7B-Zero", "16.7 36.0 40.9 83.8 44.3", absent=NOT_OURS),
      Row("RAFT++", "20.0 35.8 41.2 80.5 44.4", absent=NOT_OURS),
      Row("Eurus-2-7B-PRIME", "26.7 38.6 42.1 79.2 46.6", absent=NOT_OURS),
      Row("Oat-7B-Zero", "43.3 30.1 41.0 80.0 48.6", absent=NOT_OURS),
      Row("NFT-7B-Zero", "32.0 40.8 47.3 83.2 50.8", NFT, untrained=True, model="NFT-7B"),
    ),
    RELEASED,
    notes=(
      "The base model's 0.2 on AIME24 contradicts the 13.3 of the main table.",
      "Averages are as the chart prints them; the base model's is not the mean of its four numbers.",
    ),
  )
  return [small, large, released]
