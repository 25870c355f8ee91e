"""RLPR on Qwen2.5-7B with its training set of general questions (arXiv 2506.18254).

  command    nrt-jax train --config experiments/full_size/rlpr_qwen25_7b.py --workdir DIR --config.model.path=QWEN
             QWEN: a copy of Qwen/Qwen2.5-7B. The data set is downloaded from the hub. To try the pipeline: a smaller
             QWEN, --config.total_steps=3, --config.parallel.fsdp=1 --config.parallel.tensor=1, and smaller
             prompts_per_step and sampling lengths.
  cost       unknown, not run. The mesh below is for 64 TPU v5p chips and has not been tried on them. Tested: the
             program traces and lowers.
  expected   not reproduced. [PAPER] MMLU-Pro 56.0, TheoremQA 55.4; 7.6 above VeriFree on TheoremQA, 7.5 on
             Minerva, and 1.6 above General-Reasoner on the average of seven sets.

Sources of values:
  [CODE]   github.com/OpenBMB/RLPR, its Qwen values, from our notes
  [PAPER]  abstract and model card
  [CARD]   the card of openbmb/RLPR-Benchmarks, for the columns: those of verl
  [verl]   the default of verl, on which the code is built
  [ours]   a choice of this file. "unknown" means that none of them gives a value.

Known departures:
  - [CODE]'s format R1 needs <think>, </think>, <answer> and </answer> as text, once each. Here the marker "<answer>" is
    one added token, and a completion is well formatted if it has marker and end token.
  - [CODE] scores r' once before training; here the frozen first policy scores it every step, with the same result.
  - [CODE] rounds r to bfloat16. It also appends the reference to badly formatted completions, without effect.
"""

import shared_settings as shared

from nrt_jax.commands.configs import base_config


def get_config():
  config = base_config("rlpr")
  config.seed = 0  # unknown
  config.total_steps = 200  # unknown
  config.prompts_per_step = 768  # [CODE] batch
  config.samples_per_prompt = 8  # [CODE] K

  shared.on_a_slice(config, fsdp=16, tensor=4, micro_batches=48)  # [ours] two rows at a time in each device group

  data = config.data
  data.source = "hub:openbmb/RLPR-Train-Dataset"  # [CODE]
  data.split = "train"  # [ours] the hub's only one
  data.question_column = "prompt"  # [CARD] a conversation with its own instruction on the format
  data.answer_column = "reward_model.ground_truth"  # [CARD]

  prompt = config.prompt
  prompt.template = "chat"  # [CODE] the tokenizer's own chat template
  prompt.marker = "<answer>"  # [ours] see the departures
  prompt.max_prompt_length = 2048  # [CODE]
  prompt.overlong_prompt = "drop"  # unknown
  prompt.max_answer_length = 256  # unknown
  prompt.overlong_answer = "drop"  # unknown

  sampling = config.sampling
  sampling.max_trace_length = 3072  # [CODE] the whole completion
  sampling.temperature = 1.0  # [verl]; [CODE] has 0.6 for Llama
  sampling.top_p = 1.0  # [verl]
  sampling.wave_prompts = 192  # [ours] bounds the caches: 1,536 rows at a time

  algorithm = config.algorithm
  algorithm.reward = "arithmetic_mean"  # [CODE] mean_exp_log_softmax
  algorithm.baseline = "subtract_and_clip"  # [CODE] clip(r - r', 0, 1)
  algorithm.base_policy = "reference"  # [CODE] r' under the initial actor
  algorithm.reference = "frozen"  # [CODE] the same
  algorithm.format_share = 0.1  # [CODE]
  algorithm.center = "mean"  # [CODE] adv_estimator=grpo
  algorithm.scale = "std"  # [CODE] 0 below 1e-6
  algorithm.trace_loss = "ppo_clip"  # [CODE]
  algorithm.clip_low = 0.8  # [CODE] 0.2
  algorithm.clip_high = 1.27  # [CODE] 0.27
  algorithm.normalisation = "token"  # unknown; [verl]
  algorithm.std_filter = 0.5  # [CODE] β for Qwen; 0.9 Llama, 1.0 Gemma
  algorithm.std_filter_start = 11  # [CODE]
  algorithm.std_average_start = 6  # [CODE]
  algorithm.std_average_decay = 0.99  # [CODE]
  algorithm.max_draws = 4  # unknown; [CODE] redraws until the batch is full
  algorithm.repetition_penalty = 1.0  # [CODE] -1 where a 10-gram occurs 10 times or more
  algorithm.repetition_ngram = 10  # [CODE] of tokens or of words: unknown
  algorithm.repetition_times = 10  # [CODE]
  algorithm.kl_coef = 0.0  # [CODE]
  algorithm.entropy_coef = 0.0  # unknown

  shared.verl_adamw(config, learning_rate=1e-6)  # [CODE]
  config.optimizer.minibatches = 4  # [CODE] 192 prompts each

  config.checkpoint.every_steps = 20  # [ours]
  config.evaluation.data = None  # [ours] for the paper's seven sets run `nrt-jax evaluate` on a checkpoint
  return config
