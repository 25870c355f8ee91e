"""NRT-WS(-log p) on Llama-3.1-8B with the Tülu 3 mixture, as the released code trains it (arXiv 2602.11549).

  command    nrt-jax train --config experiments/full_size/nrt_llama31_8b_tulu3.py --workdir DIR
             --config.model.path=LLAMA
             LLAMA: a copy of meta-llama/Llama-3.1-8B (config.json, safetensors, tokenizer). The data set is downloaded
             from the hub. To try the pipeline: a smaller LLAMA, --config.total_steps=3, --config.parallel.fsdp=1
             --config.parallel.tensor=1, and data.source=rows.jsonl with a messages column.
  cost       unknown, not run. The released example used one node of 8 GPUs; the mesh below is for 64 TPU v5p chips
             (fsdp 16 x tensor 4) and has not been tried on them. Tested: both programs trace and lower.
  expected   not reproduced. Reported for the paper's own run, an average over nine benchmarks: 56.2, against 46.0 for
             SFT on the same data (papernotes.org's table; we have not seen the paper's).

Sources of values:
  [CODE]  github.com/sharkwyf/native-reasoning-models at ad3a7e9c: nrt_trainer.yaml, run_example_log_prob.sh and
          recipe/nrt, from our notes. Its README warns that details may differ from the paper's own runs.
  [PN]    papernotes.org's notes on the paper: secondary.
  [ours]  a choice of this file. "unknown" means that neither gives a value.

The paper's own form of the method is in nrt_paper_llama31_8b_tulu3.py.
"""

import shared_settings as shared

from nrt_jax.commands.configs import base_config


def get_config():
  config = base_config("nrt")
  config.seed = 42  # unknown; [CODE] uses 42 to shuffle the data only
  config.total_steps = 810  # [CODE] about 207,000 prompts, one epoch
  config.prompts_per_step = 256  # [CODE]
  config.samples_per_prompt = 8  # [CODE] rollout.n (the example's name contains an unexplained "-K1")

  # [ours] 64 chips; one row of 8,192 tokens per device group at a time
  shared.on_a_slice(config, fsdp=16, tensor=4, micro_batches=32)

  data = config.data
  data.source = "hub:allenai/tulu-3-sft-mixture"  # [CODE][PN]
  data.split = "train"  # [ours] the hub's only split
  data.messages_column = "messages"  # [CODE] the last assistant turn is the answer, earlier turns stay in the prompt
  data.shuffle_seed = 42  # [CODE] but with another generator, so other examples
  data.limit = 220_000  # [CODE] train_size; we skip its 1,024 test examples: log p is measured on unseen prompts

  prompt = config.prompt
  shared.llama3_chat(config)  # [CODE] a chat template with generation prompt; unknown which one for the base model
  prompt.system = ""  # [CODE] no instruction is added
  prompt.marker = "<|response_start|>"  # [CODE] one added token
  config.model.new_rows = "end_token"  # [CODE] its embedding and head row are copied from the end token
  prompt.trace_open = ""  # [CODE] generation starts directly with the trace
  prompt.stop_at_special = True  # [CODE] stop string "<|": any special token ends a trace
  prompt.max_prompt_length = 4096  # [CODE]
  prompt.overlong_prompt = "drop"  # [CODE]
  # [CODE] bounds trace + marker + answer by 4,096 and shortens the trace for a longer answer. Here each part has its
  # own columns, 2,048 + 1 + 2,047, and an example with a longer answer is dropped.
  prompt.max_answer_length = 2047  # [ours]
  prompt.overlong_answer = "drop"  # [ours]

  sampling = config.sampling
  sampling.max_trace_length = 2048  # [CODE] the example; the yaml's default is 4,096
  sampling.temperature = 1.0  # [CODE]
  sampling.top_p = 1.0  # [CODE]
  sampling.top_k = 0  # [CODE] off

  algorithm = config.algorithm
  algorithm.reward = "weighted_sum_log_prob"  # [PN] the best average; unknown which f the example run uses
  algorithm.baseline = "none"  # [CODE] the empty-trace pass is used for the weights only
  algorithm.base_policy = "current"  # [CODE] recomputed every step with the policy before its update
  algorithm.center = "mean"  # [CODE] center_reward_by, over the whole group
  algorithm.scale = "std"  # [CODE] scale_reward_by, unbiased; 0 where the group has no variance
  algorithm.trace_loss = "cispo"  # [CODE]
  algorithm.clip_low = 0.8  # [CODE] clip_ratio_low, a bound on the ratio itself
  algorithm.clip_high = 1.28  # [CODE] clip_ratio_high
  algorithm.answer_weight = "one"  # [CODE] use_fixed_token_reward=True "in main experiments"
  algorithm.trace_coef = 1.0  # [CODE]
  algorithm.answer_coef = 1.0  # [CODE]
  algorithm.format_coef = 0.3  # [CODE] the example; the yaml's default is 1.0
  algorithm.train_forced_marker = True  # [CODE] the trace's mask includes the marker, forced or not
  # [CODE] sums over tokens and divides by the padded response width. It sums over the rows of a micro-batch, while we
  # take their mean. Adam cancels this factor, clipping by norm does not. The example's micro-batch size is unknown.
  algorithm.normalisation = "constant"
  algorithm.normalisation_constant = 4096.0  # [CODE]

  optimizer = config.optimizer
  optimizer.name = "adamw"  # [CODE]
  optimizer.learning_rate = 2e-6  # [CODE]
  optimizer.warmup_ratio = 0.1  # [CODE]
  optimizer.schedule = "constant"  # [CODE] default of verl
  optimizer.beta1 = 0.9  # [CODE]
  optimizer.beta2 = 0.95  # [CODE]
  optimizer.eps = 1e-15  # [CODE]
  optimizer.weight_decay = 0.01  # [CODE]
  optimizer.max_grad_norm = 1.0  # [CODE] default of verl
  optimizer.minibatches = 4  # [CODE] 64 prompts each, one pass over them

  config.checkpoint.every_steps = 90  # [ours]
  config.evaluation.data = None  # [ours] answers are free text; watch log p and trace length in metrics.jsonl
  return config
