"""The tables on reasoning from the get-go: rewards before, or instead of, next-token prediction.

    nrt-jax report --table get_go runs

arXiv 2502.19402 (reward-based pretraining), 2506.08007 (RPT), 2510.01265 (RLP), 2403.09629 (Quiet-STaR), 2509.19249
(RLPT), 2512.03442 (PretrainZero), 2606.04272 (RL Excursions). Numbers written 83-93 or ~18 are ranges or readings of
the source, +3.0 gains over the base model.
"""

import dataclasses

import table_columns as columns

from nrt_jax.reporting.tables import Column, Row, Source, Table, percent

HAN = "arXiv 2502.19402"
REVIEW = "a consolidated review of the full paper, apparently machine-written (secondary)"
RPT = Source("arXiv 2506.08007", "full text")
RLP = Source("arXiv 2510.01265", "full text of v2")
RPT_CONFIG = "../full_size/rpt_r1_distill_qwen_14b.py"
RLP_CONFIG = "../full_size/rlp_qwen3_17b.py"
QUIET_STAR = "../full_size/quiet_star_filter_mistral_7b.py"
EARLY_RL = "../full_size/early_rl_olmo2_1b.py"
R1_14B = "DeepSeek-R1-Distill-Qwen-14B"
QWEN3 = "Qwen3-1.7B-Base"

CLOSED = "a closed model; experiments/get_go/e6_programs.py trains small ones on such programs"
NO_TASK = (
  "the paper's wording of the task and its settings are not known; experiments/get_go/e2_orthogonality.py is small"
)
NO_PLACES = "a row of the paper without reasoning: places of text are not evaluated without a trace here"
NO_METHOD = "not a method of this framework"
NO_SECOND_STAGE = "its second stage, SFT and RLVR, is not known in enough detail for a config"


def han() -> list[Table]:
  programs = tuple(
    Column(name, absent=CLOSED)
    for name in ("BF Copy", "BF Print", "BF Sort", "Befunge Print", "Befunge Fibonacci", "Befunge Factorial")
  )
  esoteric = Table(
    "esoteric",
    "Reward-based pretraining: programs in Brainf**k (BF) and Befunge that run rightly, in per cent",
    programs,
    (Row("o1", "95 65|71 1 83-93 ? ?", absent=CLOSED), Row("other models", "~7 ~7 ~0 ? ? ?", absent=CLOSED)),
    Source(HAN, REVIEW, "1 and 2"),
    notes=("For BF Print the source gives both numbers. Of other models most have about 0 on Copy and Sort.",),
  )
  accuracy = percent("test accuracy", "eval/orthogonality/accuracy")
  orthogonality = Table(
    "orthogonality",
    "Reward-based pretraining: orthogonality of vectors with a Qwen of 1.5B, 100 items to learn from",
    (accuracy,),
    (Row("RL only", "93", absent=NO_TASK), Row("SFT, then RL", "80", absent=NO_TASK)),
    Source(HAN, "a third-party reading list; two secondary notes agree on the direction", "3"),
    notes=("In miniature: docs/results/get_go.md.",),
  )
  return [esoteric, orthogonality]


def rpt() -> list[Table]:
  levels = tuple(
    percent(name, f"eval/{name}/accuracy", digits=2, absent="its places are the user's to make")
    for name in ("easy", "medium", "hard")
  )
  accuracy = Table(
    "rpt",
    "RPT: accuracy of the next token in OmniMATH, in per cent, by the proxy's entropy (above 0.5, 1.0, 1.5)",
    levels,
    (
      Row("Qwen2.5-14B, without reasoning", "41.90 30.03 20.65", absent=NO_PLACES),
      Row("R1-Distill-14B, without reasoning", "41.60 29.46 20.43", absent=NO_PLACES),
      Row("R1-Distill-14B, with reasoning", "3.31 1.66 1.41", RPT_CONFIG, untrained=True),
      Row("RPT-14B", "45.11 33.56 23.75", RPT_CONFIG),
    ),
    RPT,
    R1_14B,
  )
  after = Table(
    "rpt_rlvr",
    "RPT: before and after RLVR on 256 problems of Skywork, in per cent",
    (percent("before", "eval/skywork/accuracy"), percent("after")),
    (
      Row("R1-Distill-14B", "51.2 52.7", absent=NO_SECOND_STAGE),
      Row("continued next-token prediction", "10.7 13.0", absent=NO_SECOND_STAGE),
      Row("RPT-14B", "56.3 58.3", absent=NO_SECOND_STAGE),
    ),
    RPT,
  )
  general = Table(
    "rpt_general",
    "RPT: general questions, in per cent",
    (columns.SUPER_GPQA, columns.MMLU_PRO),
    (
      Row("R1-Distill-14B", "36.1 68.9", RPT_CONFIG, untrained=True),
      Row("RPT-14B", "39.0 71.1", RPT_CONFIG),
    ),
    RPT,
    R1_14B,
  )
  return [accuracy, after, general]


def rlp() -> list[Table]:
  average = Column("average", absent=columns.NOT_NAMED, digits=2)
  later = dataclasses.replace(average, name="after SFT and RLVR", absent=NO_SECOND_STAGE)
  main = Table(
    "rlp",
    "RLP, Qwen3-1.7B-Base: average of the paper's sets",
    (average, later),
    (
      Row("base", "30.32 39.34", RLP_CONFIG, untrained=True),
      Row("continued pretraining", "30.85 39.90", absent="next-token prediction on whole documents is no config here"),
      Row("RLP", "36.03 42.51", RLP_CONFIG),
    ),
    RLP,
    QWEN3,
    ("An independent replication (1,000 steps, 8 samples, 768 tokens) saw flat rewards.",),
  )

  def ablation(name: str, value: str, *overrides: str) -> Row:
    return Row(name, value, RLP_CONFIG, overrides)

  ablations = Table(
    "rlp_ablations",
    "RLP, Qwen3-1.7B-Base: samples, length of thoughts, KL",
    (average,),
    (
      Row("base", "34.03", RLP_CONFIG, untrained=True),
      *(ablation(f"G = {g}", value, f"samples_per_prompt={g}") for g, value in ((4, "41.38"), (8, "41.95"))),
      ablation("G = 16, 2,048 tokens, no KL", "42.17"),
      ablation("G = 32", "41.75", "samples_per_prompt=32"),
      *(
        ablation(f"{length} tokens", value, f"sampling.max_trace_length={length}")
        for length, value in (
          (64, "11.50"), (128, "9.96"), (256, "14.08"), (512, "24.65"), (1024, "38.89"), (4096, "42.21"),
        )
      ),
      *(
        ablation(f"KL {kl}", value, "algorithm.reference=frozen", f"algorithm.kl_coef={kl}")
        for kl, value in (("1e-4", "41.35"), ("1e-3", "41.44"))
      ),
    ),
    RLP,
    QWEN3,
    ("Its base has 34.03, not the 30.32 of the main table: the averages are of other sets.",),
  )  # fmt: skip
  others = Table(
    "rlp_comparisons",
    "RLP against RPT and continued pretraining, and other models",
    (average,),
    (
      Row("RLP, as many tokens", "43.35", absent=columns.NOT_NAMED),
      Row("RPT, as many tokens", "41.69", absent=columns.NOT_NAMED),
      Row("RLP, as much compute", "42.86", absent=columns.NOT_NAMED),
      Row("RPT, as much compute", "35.68", absent=columns.NOT_NAMED),
      Row("RLP on 170M tokens", "43.36", absent=columns.NOT_NAMED),
      Row("continued pretraining on 6B tokens", "38.04", absent=columns.NOT_NAMED),
      Row("Nemotron-Nano-12B", "42.81", absent=columns.NOT_NAMED),
      Row("Nemotron-Nano-12B, RLP", "61.32", absent=columns.NOT_NAMED),
      Row("Nemotron-Nano-12B, after SFT and RLVR", "65.31", absent=NO_SECOND_STAGE),
      Row("Nemotron-Nano-12B, RLP, after SFT and RLVR", "68.09", absent=NO_SECOND_STAGE),
      Row("Qwen3-14B", "60.66", absent=columns.NOT_NAMED),
      Row("Qwen3-14B, RLP", "65.00", absent=columns.NOT_NAMED),
    ),
    RLP,
  )
  return [main, ablations, others]


def later() -> list[Table]:
  quiet = Table(
    "quiet_star",
    "Quiet-STaR, Mistral-7B: zero-shot accuracy in per cent",
    (columns.GSM8K, columns.CSQA),
    (
      Row("Mistral-7B", "5.9 36.3", QUIET_STAR, untrained=True),
      Row("Quiet-STaR", "10.9 47.2", absent="its mixing head is left out of this framework"),
      Row("its filter alone, without the mixing head", "- -", QUIET_STAR),
    ),
    Source("arXiv 2403.09629", "secondary notes"),
    "Mistral-7B-v0.1",
  )
  excursions = Table(
    "rl_excursions",
    "RL Excursions, a 1B model after 4B tokens of pretraining: GSM8K, pass@1 in per cent",
    (columns.GSM8K,),
    (Row("before", "~2", EARLY_RL, untrained=True), Row("RL", "~18", EARLY_RL)),
    Source("arXiv 2606.04272", "the authors' page, rl-excursions.github.io, from its curves"),
    notes=("The authors' checkpoints are not published; name yours in --config.model.path and as the last folder.",),
    model="OLMo2-1B-4B-tokens",
  )
  gpqa = dataclasses.replace(columns.GPQA, name="GPQA-Diamond")
  segments = Table(
    "rlpt",
    "RLPT, Qwen3-4B: gains in points",
    (
      columns.MMLU,
      columns.MMLU_PRO,
      gpqa,
      columns.other("KOR-Bench", "eval/kor/accuracy"),
      columns.AIME24,
      columns.AIME25,
    ),
    (Row("RLPT", "+3.0 +5.1 +8.1 +6.0 +6.6 +5.3", absent=f"{NO_METHOD}: its reward is a generative judge"),),
    Source("arXiv 2509.19249", "secondary notes"),
  )
  zero = Table(
    "pretrain_zero",
    "PretrainZero, Qwen3-4B-Base: gains in points",
    (columns.MMLU_PRO, columns.SUPER_GPQA, Column("maths", absent="which sets of mathematics is not in our notes")),
    (Row("PretrainZero", "+8.43 +5.96 +10.60", absent=f"{NO_METHOD}: a generator of masks is trained along"),),
    Source("arXiv 2512.03442", "full text"),
  )
  return [quiet, excursions, segments, zero]


def get_tables():
  return [*han(), *rpt(), *rlp(), *later()]
