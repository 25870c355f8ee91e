"""JEPO with its multi-sample bound on Llama-3-8B with MATH: short answers (arXiv 2503.19618).

  command    nrt-jax train --config experiments/full_size/jepo_llama3_8b_math.py --workdir DIR --config.model.path=LLAMA
               --config.data.source=math.jsonl [--config.from_checkpoint=SFT]
             LLAMA: a copy of meta-llama/Meta-Llama-3-8B. math.jsonl: MATH's 7,500 training problems, one per line with
             question and answer (the text in the solution's box). SFT: the workdir of a run with algorithm.name sft on
             MATH's solutions as traces, the paper's warm-up. To try the pipeline: a smaller LLAMA,
             --config.total_steps=3, --config.parallel.fsdp=1 --config.parallel.tensor=1.
  cost       unknown, not run. The mesh below is for 64 TPU v5p chips and has not been tried on them. Tested: the
             program traces and lowers.
  expected   not reproduced. [PAPER] has curves but no tables: on MATH the multi-sample bound does about as well as RL
             with a verifier, and better than the single-sample one; more samples are better (1, 2, 4, 8).

Sources of values:
  [PAPER]  arXiv 2503.19618 (NeurIPS 2025), section on practice and experiments, from our notes
  [ours]   a choice of this file. "unknown" means that the paper, or our notes on it, give no value.

Known departures:
  - The paper calls a completion well formatted if it contains "the final answer is"; here, if it contains the marker,
    one added token. In both, the bound's loss excludes traces without it.
  - The warm-up is a separate run, see SFT above; its length and learning rate are unknown.
  - The samples over which std(A) is taken are unknown; here they are those of the prompt.
"""

import shared_settings as shared

from nrt_jax.commands.configs import base_config


def get_config():
  config = base_config("jepo_multi")
  config.seed = 0  # unknown
  config.total_steps = 500  # unknown; about four epochs of MATH
  config.prompts_per_step = 64  # [PAPER] B
  config.samples_per_prompt = 4  # [PAPER] n

  shared.on_a_slice(config, fsdp=16, tensor=4, micro_batches=4)  # [ours] four rows at a time in each device group

  config.data.source = "math.jsonl"  # given by the user; [PAPER] MATH, 7,500 problems

  prompt = config.prompt
  shared.llama3_chat(config)  # unknown
  prompt.marker = "<|final_answer|>"  # [ours] see the departures
  prompt.max_prompt_length = 512  # unknown
  prompt.overlong_prompt = "drop"  # unknown
  prompt.max_answer_length = 64  # unknown
  prompt.overlong_answer = "drop"  # unknown

  sampling = config.sampling
  sampling.max_trace_length = 1024  # unknown
  sampling.temperature = 1.0  # [PAPER]
  sampling.top_p = 1.0  # [PAPER]

  algorithm = config.algorithm
  algorithm.reward = "log_prob"  # [PAPER] summed over the sequence, never divided by its length
  algorithm.baseline = "none"  # [PAPER]
  algorithm.center = "multi_sample"  # [PAPER] the multi-sample bound, which is better on MATH
  algorithm.scale = "advantage_std"  # [PAPER] A / std(A)
  algorithm.advantage_clip = 1.0  # [PAPER] clip(A / std(A), -1, 1)
  algorithm.answer_weight = "group_softmax"  # [PAPER] its gradient g2
  algorithm.answer_coef = 1e-2  # [PAPER] β_sup: 0 to 1e-2 works for short answers
  algorithm.format_penalty = 10.0  # [PAPER] reward -10, as a separate advantage
  algorithm.unmarked = "mask"  # [PAPER] badly formatted samples are excluded from the bound
  algorithm.trace_loss = "reinforce"  # unknown
  algorithm.reference = "frozen"  # [PAPER] KL to the initial policy
  algorithm.kl_coef = 1e-3  # [PAPER] β
  algorithm.kl_estimator = "k3"  # unknown
  algorithm.format_coef = 0.0  # [PAPER] no such term
  algorithm.normalisation = "constant"  # unknown; keeps the equation's weights
  algorithm.normalisation_constant = 0.0  # unknown; the longest trace

  shared.verl_adamw(config, learning_rate=1e-6)  # unknown, like the whole optimizer; verl's values are [ours]
  config.optimizer.minibatches = 1  # unknown

  config.checkpoint.every_steps = 50  # [ours]
  config.evaluation.data = None  # [ours] the paper: 2,500 held-out problems; run `nrt-jax evaluate` on a checkpoint
  return config
