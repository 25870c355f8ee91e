"""The tables of methods that reward the likelihood of the reference answer.

    nrt-jax report --table likelihood runs

The anchor is CoVRL's (arXiv 2512.12576): VeriFree, JLB, LaTRO and RLPR from the same model with the same
hyperparameters. Then VeriFree (2505.21493), RLPR (2506.18254), JEPO (2503.19618), LaTRO (2411.04282), DRO (2506.13351),
and the comparison of rewards of arXiv 2602.03979.
"""

import dataclasses

import table_columns as columns

from nrt_jax.reporting.tables import Column, Row, Source, Table, percent, with_model

RLPR = "../full_size/rlpr_qwen25_7b.py"
VERIFREE = "../full_size/verifree_qwen3_8b.py"
MATH = "../full_size/jepo_llama3_8b_math.py"
PROOF = "../full_size/jepo_llama3_8b_numina_proof.py"

NO_METHOD = "not a method of this framework"
MODEL_VERIFIER = "its verifier is a trained model, which no grader here is"
NO_CONFIG = "the method is here, a config for this data is not"
CURVES = "the paper has curves and no table"


def covrl() -> Table:
  """192 prompts x 8, lr 1e-6 with a cosine and 64 steps of warmup, temperature 1, 2,048 tokens."""
  budget = (
    "prompts_per_step=192", "optimizer.minibatches=1", "optimizer.schedule=cosine", "optimizer.warmup_steps=64",
    "sampling.max_trace_length=2048",
  )  # fmt: skip
  sets = (
    columns.GPQA, columns.MMLU_PRO, columns.THEOREM_QA, columns.AIME24,
    dataclasses.replace(columns.MATH500, name="MATH-500"), columns.MINERVA, columns.SAT_MATH,
  )  # fmt: skip
  overall = Column("Overall", absent="two of its nine sets are not in our notes")
  source = Source("arXiv 2512.12576", "papernotes.org's notes at formula level (secondary)")
  return Table(
    "covrl",
    "CoVRL's comparison at equal budget, Qwen2.5-7B: seven of its nine sets",
    (*sets, overall),
    (
      Row("base", "26.1 36.7 25.2 2.7 44.7 18.6 76.5 37.8", RLPR, untrained=True),
      Row("VeriFree", "28.9 44.1 33.4 5.0 59.5 24.0 93.3 47.1", RLPR, ("algorithm.name=verifree", *budget)),
      Row("JLB", "31.6 42.7 31.9 4.8 57.6 23.6 93.7 46.5", RLPR, ("algorithm.name=jepo", *budget)),
      Row("LaTRO", "31.0 42.7 32.8 4.0 59.3 24.4 90.1 44.7", RLPR, ("algorithm.name=latro", *budget)),
      Row("RAVR", "30.2 44.5 34.8 6.3 61.2 23.3 94.1 47.8", absent=NO_METHOD),
      Row("RLPR", "31.3 44.9 33.5 6.5 61.2 24.7 93.8 47.9", RLPR, budget),
      Row("CoVRL", "30.4 46.5 36.3 7.5 66.3 25.5 97.1 50.2", absent=NO_METHOD),
      Row("NRT-WS(-log p)", "- - - - - - - -", RLPR, ("algorithm.name=nrt", *budget)),
    ),
    source,
    "Qwen2.5-7B",
    (
      "The paper's training data and number of steps are not in our notes: ours are those of RLPR's config.",
      "How AIME24 was sampled is not in our notes: ours is the mean of 32 samples at temperature 0.6.",
      "NRT is not in the paper's table; its row is ours alone.",
    ),
  )


def verifree() -> Table:
  sizes = (("1.7B", "Qwen3-1.7B-Base"), ("4B", "Qwen3-4B-Base"), ("8B", "Qwen3-8B-Base"))
  pairs = []
  for size, model in sizes:
    over = () if size == "8B" else ("total_steps=4000",)  # about 3,000 steps, and 4,000 for the smaller ones
    pairs += [with_model(one, f"{one.name}, {size}", model, *over) for one in (columns.MMLU_PRO, columns.SUPER_GPQA)]
  gpqa = with_model(columns.GPQA, "GPQA, 8B", "Qwen3-8B-Base")
  return Table(
    "verifree",
    "VeriFree, Qwen3 base models on WebData",
    (*pairs, gpqa),
    (
      Row("base", "33.3 17.4 47.2 24.7 59.8 31.0 38.9", VERIFREE, untrained=True),
      Row("with a verifier", "47.0 24.5 63.0 34.3 65.9 37.1 43.9", absent=MODEL_VERIFIER),
      Row("VeriFree", "46.9 24.8 63.5 35.1 67.2 38.0 44.4", VERIFREE),
    ),
    Source("arXiv 2505.21493", "full text"),
  )


def rlpr() -> Table:
  return Table(
    "rlpr",
    "RLPR, Qwen2.5-7B",
    (columns.MMLU_PRO, columns.THEOREM_QA, columns.MINERVA),
    (Row("RLPR", "56.0 55.4 ?", RLPR),),
    Source("arXiv 2506.18254", "abstract and model card"),
    "Qwen2.5-7B",
    ("Also told: 7.6 above VeriFree on TheoremQA and 7.5 on Minerva; 1.6 above General-Reasoner on seven sets.",),
  )


def jepo() -> list[Table]:
  source = Source("arXiv 2503.19618", f"full text; {CURVES}")
  maths = Table(
    "jepo_math",
    "JEPO, Llama-3-8B on MATH: accuracy in per cent",
    (columns.MATH,),
    (
      Row("JEPO, one sample's bound", "?", MATH, ("algorithm.name=jepo", "algorithm.answer_coef=0.01")),
      Row("JEPO, four samples' bound", "?", MATH),
      Row("RL with a verifier", "?", MATH, ("algorithm.name=rloo", "algorithm.verifier=math")),
    ),
    source,
    "Meta-Llama-3-8B",
    ("The curves: the bound of several samples is about as good as RL, and better than that of one.",),
  )
  logp = Column("log p of a token", ("eval/proofs/answer_logp",), digits=3, evaluate=PROOFS)
  proofs = Table(
    "jepo_proof",
    "JEPO, Llama-3-8B on Numina-proof: log p of held-out proofs, for each token, in nats",
    (logp,),
    (Row("JEPO", "?", PROOF), Row("SFT", "?", PROOF, ("algorithm.name=sft",))),
    source,
    "Meta-Llama-3-8B",
    ("The curves: better than SFT at as many epochs; without the supervised term a worse plateau.",),
  )
  return [maths, proofs]


PROOFS = columns.flags("proofs", {"source": "DATA/numina_proof_test.jsonl"}, "none")


def latro() -> Table:
  gsm8k = dataclasses.replace(
    columns.GSM8K, name="GSM8K, gain over the base", absent=NO_CONFIG, evaluate=(), metrics=()
  )
  return Table(
    "latro",
    "LaTRO, mean of Phi-3.5-mini, Mistral-7B and Llama-3.1-8B: points on GSM8K, zero-shot",
    (gsm8k, dataclasses.replace(gsm8k, name="over SFT")),
    (Row("LaTRO", "+12.5 +9.6", absent=NO_CONFIG),),
    Source("arXiv 2411.04282", "abstract"),
  )


def dro() -> Table:
  wins = ("ParaRev, GPT judges", "ParaRev, Claude judges")
  return Table(
    "dro",
    "DRO: wins over GPT-4o in ParaRev (R1-Distill-Qwen-14B), pass@1 in FinQA (7B), in per cent",
    (*(Column(name, absent="judged by closed models") for name in wins), columns.other("FinQA", "eval/finqa/accuracy")),
    (
      Row("base", "43.8 48.6 61.7", absent=NO_CONFIG),
      Row("log p of the whole, strict", "31.1 44.0 ?", absent=NO_CONFIG),
      Row("log p of the whole, relaxed", "47.9 51.0 ?", absent=NO_CONFIG),
      Row("log p of the whole (FinQA)", "- - 63.0", absent=NO_CONFIG),
      Row("ROUGE", "31.1 42.8 -", absent=NO_CONFIG),
      Row("R3", "51.8 58.8 67.1", absent=NO_CONFIG),
      Row("correctness", "- - 68.0", absent=NO_CONFIG),
    ),
    Source("arXiv 2506.13351", "full text of v1"),
  )


# ---- arXiv 2602.03979 ----------------------------------------------------------------------------------------------

REWARDS = Source("arXiv 2602.03979", "full text")
LLAMA, QWEN = "Llama-3.2-3B-Instruct", "Qwen2.5-3B-Instruct"
UNKNOWN_STEPS = "Its number of steps is unknown: 500 here. The form of prompts and markers is ours."
# AdamW 1e-5 with a cosine and 20 steps of warmup, 8 questions a step, 1,024 tokens; G and KL by the data.
SETTING = (
  "prompts_per_step=8", "optimizer.learning_rate=1e-5", "optimizer.schedule=cosine", "optimizer.warmup_steps=20",
)  # fmt: skip
SHORT = ("samples_per_prompt=32", *SETTING)
LONG = ("samples_per_prompt=4", *SETTING)
KL = ("algorithm.reference=frozen", "algorithm.kl_coef=0.001")


def likelihood(reward: str, *more: str) -> tuple[str, ...]:
  return ("algorithm.name=rl_logit", f"algorithm.reward={reward}", *more)


def verifiable(name: str, title: str, cells: tuple, numbers: dict, data: tuple) -> Table:
  """Rows of the table: short answers that can be checked, 32 samples, a KL of 1e-3."""
  methods = {
    "base RL": ("algorithm.name=rloo", "algorithm.verifier=math", *KL),
    "log p": likelihood("log_prob", *KL),
    "mean log p": likelihood("mean_log_prob", *KL),
    "p": ("algorithm.name=verifree", *KL),
    "mean p": likelihood("arithmetic_mean", *KL),
    "SFT": ("algorithm.name=sft",),
  }
  rows = [Row(method, numbers[method], MATH, (*own, *SHORT, *data)) for method, own in methods.items()]
  base = Row("base", numbers["base"], MATH, untrained=True)
  return Table(name, title, cells, (base, *rows), REWARDS, notes=(UNKNOWN_STEPS,))


def rewards() -> list[Table]:
  greedy = dataclasses.replace(columns.MATH, name="greedy")
  at_1 = columns.built_in("T = 1", "math", "avg@4", columns.several(4, 1.0))
  perplexity = Column("perplexity", digits=2, absent="nrt-jax evaluate has log p, of which this is another form")
  maths = verifiable(
    "rewards_math",
    "Rewards by likelihood (arXiv 2602.03979), MATH with 32 samples: accuracy in per cent",
    (
      with_model(greedy, "Llama, greedy", LLAMA), with_model(at_1, "Llama, T = 1", LLAMA),
      dataclasses.replace(perplexity, name="Llama, perplexity", model=LLAMA), with_model(greedy, "Qwen, greedy", QWEN),
      with_model(at_1, "Qwen, T = 1", QWEN), dataclasses.replace(perplexity, name="Qwen, perplexity", model=QWEN),
    ),
    {
      "base": "17.1 10.8 67.3 21.2 ? ?",
      "base RL": "42.74 41.36 13.87 55.85 55.36 8.25",
      "log p": "43.30 34.66 2.21 56.84 44.18 1.55",
      "mean log p": "43.66 34.83 2.25 56.11 42.45 1.64",
      "p": "44.19 41.39 7.14 56.46 53.32 5.85",
      "mean p": "43.95 38.38 2.95 57.41 47.34 1.97",
      "SFT": "14.43 10.00 2.63 18.32 12.00 1.99",
    },
    (),
  )  # fmt: skip
  scaler = columns.flags("deepscaler", {"source": "DATA/deepscaler_test.jsonl", "question_column": "problem"}, "math")
  scaler = percent("DeepScaleR", "eval/deepscaler/accuracy", evaluate=scaler)
  deepscaler = verifiable(
    "rewards_deepscaler",
    "Rewards by likelihood (arXiv 2602.03979), DeepScaleR with 32 samples: greedy accuracy in per cent",
    (with_model(scaler, "Llama", LLAMA), with_model(scaler, "Qwen", QWEN)),
    {
      "base": "10.1 14.0", "base RL": "28.6 38.3", "log p": "32.4 37.9", "mean log p": "32.2 38.1", "p": "31.8 38.7",
      "mean p": "30.8 39.2", "SFT": "9.9 11.5",
    },
    ("data.source=deepscaler.jsonl",),
  )  # fmt: skip
  return [maths, deepscaler, long_answers("numina_proof", "NuminaProof"), long_answers("alpaca", "Alpaca")]


LONG_NUMBERS = {  # Llama's log p and length of trace, Qwen's
  "numina_proof": {
    "base": "-1.287 474 -1.184 226", "log p": "-1.112 9 -1.017 5", "mean log p": "-1.118 9 -1.024 9",
    "p": "-1.286 470 -1.186 225", "mean p": "-1.116 9 -1.022 10", "JEPO": "-1.110 34 -1.022 14",
    "SFT": "-1.113 5 -1.017 5",
  },
  "alpaca": {
    "base": "-1.349 134 -1.397 84", "log p": "-0.940 14 -0.890 17", "mean log p": "-0.945 14 -0.893 14",
    "p": "-1.577 59 -1.298 17", "mean p": "-0.951 9 -0.899 15", "JEPO": "-0.944 15 -0.898 17",
    "SFT": "-0.938 5 -0.891 5",
  },
}  # fmt: skip


def long_answers(name: str, title: str) -> Table:
  """Answers that nobody checks: log p of the reference and the length of the trace, 4 samples, no KL."""
  evaluate = columns.flags(name, {"source": f"DATA/{name}_test.jsonl"}, "none")
  logp = Column("log p", (f"eval/{name}/answer_logp",), digits=3, evaluate=evaluate)
  length = Column("trace", (f"eval/{name}/trace_length",), digits=0, evaluate=evaluate)
  cells = [
    with_model(one, f"{who}, {one.name}", model)
    for who, model in (("Llama", LLAMA), ("Qwen", QWEN))
    for one in (logp, length)
  ]
  methods = {
    "log p": likelihood("log_prob"), "mean log p": likelihood("mean_log_prob"), "p": ("algorithm.name=verifree",),
    "mean p": likelihood("arithmetic_mean"), "JEPO": ("algorithm.name=jepo_multi",), "SFT": ("algorithm.name=sft",),
  }  # fmt: skip
  numbers, setting = LONG_NUMBERS[name], (*LONG, f"data.source={name}.jsonl")
  rows = [Row("base", numbers["base"], PROOF, untrained=True)]
  rows += [Row(method, numbers[method], PROOF, (*own, *setting)) for method, own in methods.items()]
  return Table(
    f"rewards_{name}",
    f"Rewards by likelihood (arXiv 2602.03979), {title} with 4 samples: log p for each token, tokens of the trace",
    tuple(cells),
    tuple(rows),
    REWARDS,
    notes=(UNKNOWN_STEPS, "In miniature: docs/results/papers.md."),
  )


def get_tables():
  return [covrl(), verifree(), *rewards(), rlpr(), *jepo(), latro(), dro()]
