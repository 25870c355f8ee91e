r"""VeriFree on Qwen3-8B-Base with its WebData (arXiv 2505.21493).

  command    nrt-jax train --config experiments/full_size/verifree_qwen3_8b.py --workdir DIR --config.model.path=QWEN
               --config.data.source=webdata.parquet
             QWEN: a copy of Qwen/Qwen3-8B-Base. webdata: the authors' datasets/webdata, about 61,000 rows with the
             columns problem and answer, saved as a single .parquet or .jsonl file. To try the pipeline: a smaller QWEN,
             --config.total_steps=3, --config.parallel.fsdp=1, and your own rows.
  cost       [PAPER] one node of 8 H100; hours unknown. Not run; the mesh below is for 16 TPU v5p chips and has not been
             tried on them. Tested: the program traces and lowers.
  expected   not reproduced. [PAPER] MMLU-Pro 67.2 and SuperGPQA 38.0, against 59.8 and 31.0 of the base model and
             65.9 and 37.1 with a verifier; GPQA 44.4 against 38.9 and 43.9.

Sources of values:
  [PAPER]  arXiv 2505.21493, methods and appendices from our notes, without table numbers
  [CODE]   github.com/sail-sg/VeriFree at c9ae30c: run.sh, verifree.py
  [ours]   a choice of this file. "unknown" means that neither gives a value.

Known departures:
  - The paper splices at the text "<answer" (no token of Qwen's contains "r>"), which is several tokens. A marker here
    begins with one token: "<answer>" is added to the vocabulary, and is also in the prompt.
  - The reference text therefore begins after ">", and the end token comes after "</answer>".
  - A sample of [CODE] ends at "</answer>", here at the marker; the sampled answer was never used.
"""

import shared_settings as shared

from nrt_jax.commands.configs import base_config

# [CODE] the template "ours", verbatim
TEMPLATE = (
  "<|im_start|>user\n{question}\nPlease reason step by step, and put your final answer within <answer> \\boxed{} "
  "</answer>.<|im_end|>\n<|im_start|>assistant\n"
)


def get_config():
  config = base_config("verifree")
  config.seed = 0  # [CODE] a random one
  config.total_steps = 3000  # [PAPER] about, for the 8B model; 4,000 for 1.7B and 4B
  config.prompts_per_step = 16  # [PAPER][CODE] rollout_batch_size
  config.samples_per_prompt = 8  # [PAPER][CODE] num_samples

  shared.on_a_slice(config, fsdp=8, tensor=2, micro_batches=8)  # [ours] two rows at a time in each device group

  data = config.data
  data.source = "webdata.parquet"  # given by the user
  data.question_column = "problem"  # [CODE] input_key
  data.answer_column = "answer"  # [CODE] output_key; fewer than 7 tokens each [PAPER]

  prompt = config.prompt
  prompt.template = TEMPLATE  # [CODE]
  prompt.marker = "<answer>"  # [ours] see the departures
  prompt.answer_template = r" \boxed{ {answer} } </answer>"  # [CODE] the text after ">"
  prompt.max_prompt_length = 1024  # [CODE] prompt_max_length
  prompt.overlong_prompt = "drop"  # [ours]
  prompt.max_answer_length = 32  # [ours]
  prompt.overlong_answer = "drop"  # [ours]

  sampling = config.sampling
  sampling.max_trace_length = 3000  # [PAPER][CODE] generate_max_length, there for trace and answer
  sampling.temperature = 1.0  # [PAPER][CODE]
  sampling.top_p = 1.0  # [PAPER][CODE]

  algorithm = config.algorithm
  algorithm.reward = "prob"  # [PAPER][CODE] reward_source p
  algorithm.baseline = "none"  # [PAPER]
  algorithm.center = "leave_one_out"  # [PAPER][CODE] critic_type rloo
  algorithm.scale = "none"  # [PAPER]
  algorithm.answer_weight = "derived"  # [PAPER] R; [CODE] sft_coef_source reward
  algorithm.unmarked = "zero"  # [PAPER][CODE] no "<answer", or cut off: R = 0
  algorithm.trace_loss = "ppo_clip"  # [PAPER]
  algorithm.clip_answer = True  # [PAPER] both terms
  algorithm.clip_low = 0.8  # unknown; no effect with one update per rollout
  algorithm.clip_high = 1.2  # unknown
  algorithm.normalisation = "constant"  # [CODE] mean over rows of sums over tokens
  algorithm.normalisation_constant = 1.0  # [CODE]
  algorithm.kl_coef = 0.0  # [PAPER][CODE] beta 0
  algorithm.format_coef = 0.0  # [PAPER] no such term

  shared.verl_adamw(config, learning_rate=1e-6)  # [PAPER][CODE]; the rest of AdamW is unknown: [CODE] does not use verl
  config.optimizer.weight_decay = 0.0  # unknown
  config.optimizer.schedule = "constant"  # [PAPER][CODE] lr_scheduler
  config.optimizer.minibatches = 1  # [PAPER] 128 samples, one update; [CODE] train_batch_size

  config.checkpoint.every_steps = 128  # [CODE] save_steps
  config.evaluation.data = None  # [ours] the paper's sets are multiple choice: run `nrt-jax evaluate` on a checkpoint
  return config
