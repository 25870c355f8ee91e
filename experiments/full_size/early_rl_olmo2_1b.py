"""GRPO on a checkpoint out of OLMo2-1B's pretraining: how early does RL work? (RL Excursions, arXiv 2606.04272)

  command    nrt-jax train --config experiments/full_size/early_rl_olmo2_1b.py --workdir DIR --config.model.path=OLMO
             OLMO: a checkpoint of a 1B model in Hugging Face format, with its tokenizer. The paper's own are of 50B
             tokens of DOLMino, from scratch; those that Ai2 publishes of OLMo-2-0425-1B come from another run. Start it
             once for each checkpoint. To try the pipeline: --config.total_steps=3, --config.parallel.fsdp=1
             --config.parallel.tensor=1, smaller prompts_per_step and sampling lengths.
  cost       unknown, not run. The mesh below is for 16 TPU v5p chips and has not been tried on them. Tested: its
             sizes divide; its programs are those of grpo_qwen25_math_7b.py.
  expected   not reproduced. [BLOG] GSM8K pass@1 of the checkpoint at 4B tokens: about 2 before, 18 after; from 10B on
             as good as SFT and then RL; seeds differ widely between 4B and 10B.

Sources of values:
  [BLOG]   the authors' page on the paper, rl-excursions.github.io
  [verl]   the default of verl, on which an earlier version of that page says the code is built
  [ours]   a choice of this file. "unknown" means that none of them gives a value; so it is for most of RL's.

Known departures:
  - Parallel averaging, two optimizers of which each step takes the mean, is no config: a step has one optimizer. It is
    an arm of experiments/get_go/e8_checkpoints.py.
  - OpenMathInstruct-1 has about 23 solutions to a question, and so many rows of it.
"""

import shared_settings as shared

from nrt_jax.commands.configs import base_config


def get_config():
  config = base_config("grpo")  # [BLOG]
  config.seed = 0  # unknown
  config.total_steps = 1000  # unknown
  config.prompts_per_step = 128  # unknown
  config.samples_per_prompt = 64  # unknown; an outline of the page compares 5 with 64

  shared.on_a_slice(config, fsdp=8, tensor=2, micro_batches=16)  # [ours] one prompt's rows at a time

  data = config.data
  data.source = "hub:nvidia/OpenMathInstruct-1"  # [BLOG]
  data.split = "train"  # [ours]
  data.question_column = "question"  # [ours] the hub's
  data.answer_column = "expected_answer"  # [ours] the hub's

  prompt = config.prompt
  prompt.template = "plain"  # unknown
  prompt.answer_in = "completion"  # [ours] where the grader looks for \boxed{}
  prompt.marker = "<|fim_pad|>"  # [ours] hardly ever written; nothing after it is read; added where it is missing
  prompt.max_prompt_length = 512  # unknown
  prompt.overlong_prompt = "drop"  # unknown
  prompt.max_answer_length = 64  # [ours] for the reference only
  prompt.overlong_answer = "drop"  # [ours]

  sampling = config.sampling
  sampling.max_trace_length = 1024  # unknown
  sampling.temperature = 1.0  # unknown; [BLOG] evaluates at 0.6
  sampling.top_p = 1.0  # unknown
  sampling.wave_prompts = 32  # [ours] bounds the caches: 2,048 rows at a time

  algorithm = config.algorithm
  algorithm.verifier = "math"  # [BLOG] a binary reward; its grader is unknown
  algorithm.wrong_reward = 0.0  # [BLOG] binary
  algorithm.center = "mean"  # [BLOG] GRPO
  algorithm.scale = "std"  # [BLOG] GRPO
  algorithm.trace_loss = "ppo_clip"  # [BLOG] GRPO
  algorithm.clip_low = 0.8  # unknown; [verl]
  algorithm.clip_high = 1.2  # unknown; [verl]
  algorithm.normalisation = "token"  # unknown; [verl]
  algorithm.reference = "none"  # unknown
  algorithm.kl_coef = 0.0  # unknown

  shared.verl_adamw(config, learning_rate=1e-6)  # unknown; [verl]
  config.optimizer.minibatches = 1  # unknown

  config.checkpoint.every_steps = 50  # [ours]
  config.evaluation.data = None  # [ours]
  config.evaluation.temperature = 0.6  # [BLOG]
  return config
