r"""NFT on Qwen2.5-Math-7B with DAPO-Math-17k (arXiv 2505.18116).

  command    nrt-jax train --config experiments/full_size/nft_qwen25_math_7b.py --workdir DIR --config.model.path=QWEN
             QWEN: a copy of Qwen/Qwen2.5-Math-7B. The data set is downloaded from the hub. The grader needs
             math-verify (extra [eval]). To try the pipeline: a smaller QWEN, --config.total_steps=3,
             --config.parallel.fsdp=1 --config.parallel.tensor=1, and smaller prompts_per_step and sampling lengths.
  cost       unknown, not run. [NOTES] 64 H100 for the paper's 7B runs; [CODE]'s README has four nodes of 8. The mesh
             below is for 64 TPU v5p chips and has not been tried on them. Tested: both programs trace and lower.
  expected   not reproduced. The paper's main table, as an image in [CODE]: AIME24 32.0, MATH500 83.2, AIME25 18.3,
             AMC23 88.5, OlympiadBench 47.3, Minerva 40.8, average 51.7; the base model 31.6, RFT 48.3, DPO 48.9.
             AIME and AMC are means of 32 samples. GRPO and DAPO in the same setting are in files of their own.

Sources of values:
  [CODE]   github.com/NVlabs/NFT at b358fae: train_7B.sh, dp_actor.py, ray_nft_trainer.py, from our notes
  [NOTES]  others' excerpts of the paper's third version, which agree with each other; we have not seen the full paper
  [ours]   a choice of this file. "unknown" means that none of them gives a value.

Known departures:
  - [CODE] samples with vLLM at bfloat16 and recomputes log-probabilities with the trainer; here they are the sampler's.
  - [CODE] sums token losses over all sequences and divides by 1000; here the mean over rows replaces the sum. Adam is
    invariant to the factor, clipping by norm is not.
  - [CODE] draws 1,536 prompts at a time, up to 10 times; here prompts_per_step prompts, up to 30 times.
  - [CODE] validates with top-p 0.7 on six sets, AIME and AMC with 32 samples each; here on MATH500, without top-p.
"""

import shared_settings as shared

from nrt_jax.commands.configs import base_config

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."


def setting(algorithm: str):
  """Everything but the algorithm's own values; [CODE] runs its baselines in the same setting."""
  config = base_config(algorithm)
  config.seed = 0  # unknown
  config.total_steps = 320  # [NOTES] rollout steps, about 5,000 updates
  config.prompts_per_step = 512  # [CODE] train_prompt_bsz
  config.samples_per_prompt = 16  # [CODE] n_resp_per_prompt

  shared.on_a_slice(config, fsdp=16, tensor=4, micro_batches=16)  # [ours] two rows at a time in each device group
  shared.dapo_math(config)  # [CODE] the data set; its columns and prompt are [ours]

  prompt = config.prompt
  prompt.template = "chat"  # [ours] the model's own chat template; [CODE] rewrites prompts to ask for a box
  prompt.system = BOXED  # [ours] the model's own system text
  prompt.max_prompt_length = 512  # [CODE]
  prompt.overlong_prompt = "drop"  # [CODE] filter_overlong_prompts

  sampling = config.sampling
  sampling.max_trace_length = 3584  # [CODE] the whole completion: 4,096 minus the prompt
  sampling.temperature = 1.0  # [CODE]
  sampling.top_p = 1.0  # [CODE]
  sampling.wave_prompts = 128  # [ours] bounds the caches: 2,048 rows at a time

  config.algorithm.normalisation_constant = 1000.0  # [CODE] used if normalisation is "constant"
  config.algorithm.mask_unended = False  # [NOTES] truncated completions count as wrong
  config.algorithm.filter_flat_groups = True  # [CODE] filter_groups, metric acc

  shared.verl_adamw(config, learning_rate=1e-6)  # [CODE]
  config.optimizer.warmup_steps = 10  # [CODE]
  config.optimizer.weight_decay = 0.1  # [CODE]
  config.optimizer.max_grad_norm = 1.0  # [CODE]
  config.optimizer.minibatches = 16  # [CODE] 32 prompts each, so 512 completions, one pass over them

  config.checkpoint.every_steps = 20  # [ours]; [CODE] every second step
  evaluation = config.evaluation
  evaluation.name = "math500"  # [CODE] one of its six data sets
  evaluation.data = {  # [ours] its place on the hub
    "source": "hub:HuggingFaceH4/MATH-500", "split": "test", "question_column": "problem", "answer_column": "answer",
  }  # fmt: skip
  evaluation.grader = "math"  # [CODE] math-verify
  evaluation.temperature = 0.6  # [CODE]
  evaluation.every_steps = 20  # [ours]; [CODE] every second step
  evaluation.batch_prompts = 128  # [ours]
  return config


def get_config():
  config = setting("nft")
  algorithm = config.algorithm
  algorithm.prompt_weight = "negative_rate"  # [CODE] normalize=1: ω = 1 - r̂
  algorithm.negative_weight = 1.0  # [CODE] neg_weight
  algorithm.floor = 1.0  # [CODE] clamp_negative, ε
  algorithm.ratio = "token"  # [CODE] ratio_type
  algorithm.normalisation = "constant"  # [CODE]
  algorithm.entropy_coef = 0.0  # [CODE]
  algorithm.kl_coef = 0.0  # [CODE]
  algorithm.max_draws = 30  # [CODE] max_num_gen_batches 10, each 3 x 512 prompts
  return config
