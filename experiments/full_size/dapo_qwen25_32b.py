r"""DAPO on Qwen2.5-32B with DAPO-Math-17k, as published (arXiv 2503.14476).

  command    nrt-jax train --config experiments/full_size/dapo_qwen25_32b.py --workdir DIR --config.model.path=QWEN
             QWEN: a copy of Qwen/Qwen2.5-32B. The data set is downloaded from the hub. To try it small, see
             nft_qwen25_math_7b.py.
  cost       unknown, not run. The authors used 128 H20 GPUs (project page). The mesh below is for 256 TPU v5p chips and
             has not been tried on them. Tested: both programs trace and lower.
  expected   not reproduced. The paper's abstract: 50 on AIME 2024, the mean of 32 samples; its GRPO baseline 30.

Sources of values:
  [CODE]   the authors' script in verl, recipe/dapo/run_dapo_qwen2.5_32b.sh
  [PAPER]  arXiv 2503.14476, by section, as cited in nrt_jax/algorithms/rlvr.py
  [ours]   a choice of this file. "unknown" means that none of them gives a value.

Known departures:
  - [CODE] draws 1,536 prompts at a time, up to 10 times; here prompts_per_step prompts, up to 30 times.
  - The data set's own instruction asks for a last line "Answer: ..."; PROMPT asks for the same in our words.
  - The authors' verifier compares normalized texts; here it is the grader "math".
"""

import shared_settings as shared

from nrt_jax.commands.configs import base_config

PROMPT = 'Solve this problem step by step. End with a line "Answer: " and the answer alone.\n\n{question}\n\n'


def get_config():
  config = base_config("dapo")
  config.seed = 0  # unknown
  config.total_steps = 625  # [ours] 10,000 updates, the end of the axis of [PAPER] figure 1; its unit is unknown
  config.prompts_per_step = 512  # [CODE] train_prompt_bsz
  config.samples_per_prompt = 16  # [CODE] n_resp_per_prompt

  shared.on_a_slice(config, fsdp=32, tensor=8, micro_batches=16)  # [ours] one row at a time in each device group
  shared.dapo_math(config)  # [CODE] the data set; its columns and prompt are [ours]
  prompt = config.prompt
  prompt.template = PROMPT  # [ours] plain text for a base model; [CODE] wraps the question in its own instruction
  prompt.max_prompt_length = 2048  # [CODE]
  prompt.overlong_prompt = "cut_left"  # [CODE] truncation

  sampling = config.sampling
  sampling.max_trace_length = 20480  # [CODE] the whole completion; [PAPER] section 4.1
  sampling.temperature = 1.0  # [CODE]
  sampling.top_p = 1.0  # [CODE]
  sampling.top_k = 0  # [CODE] off
  sampling.wave_prompts = 32  # [ours] bounds the caches: 512 rows at a time

  algorithm = config.algorithm
  algorithm.wrong_reward = -1.0  # [PAPER] eq. 7
  algorithm.scale = "std"  # [CODE] adv_estimator=grpo
  algorithm.clip_low = 0.8  # [CODE] clip_ratio_low 0.2
  algorithm.clip_high = 1.28  # [CODE] clip_ratio_high 0.28; [PAPER] section 3.1
  algorithm.filter_flat_groups = True  # [CODE] filter_groups, metric acc; [PAPER] section 3.2
  algorithm.max_draws = 30  # [CODE] max_num_gen_batches 10, each 3 x 512 prompts; [PAPER] section 3.2 has no bound
  algorithm.normalisation = "token"  # [CODE] use_token_level_loss; [PAPER] section 3.3
  algorithm.mask_unended = False  # [CODE] the final recipe uses the penalty instead
  algorithm.long_penalty = 1.0  # [CODE] overlong_penalty_factor; [PAPER] eq. 13
  algorithm.long_buffer = 4096  # [CODE] overlong_buffer_len; [PAPER] section 4.1
  algorithm.reference = "none"  # [CODE]
  algorithm.kl_coef = 0.0  # [CODE]; [PAPER] section 2.3
  algorithm.entropy_coef = 0.0  # [CODE]

  shared.verl_adamw(config, learning_rate=1e-6)  # [CODE]
  config.optimizer.warmup_steps = 10  # [CODE] lr_warmup_steps
  config.optimizer.weight_decay = 0.1  # [CODE]
  config.optimizer.max_grad_norm = 1.0  # [CODE] grad_clip
  config.optimizer.minibatches = 16  # [CODE] 32 prompts each

  config.checkpoint.every_steps = 5  # [CODE] save_freq
  config.evaluation.data = None  # [ours] [CODE] uses AIME 2024 with 32 samples: run `nrt-jax evaluate` on a checkpoint
  return config
