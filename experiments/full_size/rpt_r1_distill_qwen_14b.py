"""RPT on R1-Distill-Qwen-14B: next-token prediction as a task to reason about, by GRPO (arXiv 2506.08007).

  command    nrt-jax train --config experiments/full_size/rpt_r1_distill_qwen_14b.py --workdir DIR
               --config.model.path=QWEN --config.data.source=PLACES
             QWEN: a copy of deepseek-ai/DeepSeek-R1-Distill-Qwen-14B. PLACES: a .jsonl file with a row for each place
             of a text: context, what precedes it, with an instruction to think and to write the next tokens alone;
             continuation, the text's next words. To try the pipeline: a smaller QWEN, --config.total_steps=3,
             --config.parallel.fsdp=1 --config.parallel.tensor=1, smaller prompts_per_step and sampling lengths.
  cost       unknown, not run. The mesh below is for 64 TPU v5p chips and has not been tried on them. Tested: its
             sizes divide; its program is that of grpo with a verifier inside of it.
  expected   not reproduced. [PAPER] next-token accuracy on easy, medium and hard places: 45.1, 33.6, 23.8; the model
             before, without reasoning, 41.6, 29.5, 20.4, with reasoning 3.3, 1.7, 1.4.

Sources of values:
  [PAPER]  arXiv 2506.08007, from our notes
  [verl]   the default of verl, with which the paper trains
  [ours]   a choice of this file. "unknown" means that none of them gives a value.

Known departures:
  - [PAPER] keeps those places of 4,428 problems of OmniMATH where R1-Distill-Qwen-1.5B's entropy over its 16 likeliest
    next tokens is above a threshold. Whoever makes PLACES does that; without it, data.document_column cuts texts at
    random places, behind prompt.template "plain".
  - [PAPER] reads the last boxed text behind the end of the thought and compares bytes, up to a border of the text's
    tokens. Here all that follows the marker is the prediction, and tokens are compared.
  - [PAPER] draws flat groups again from step 500 on; here no group is.
"""

import shared_settings as shared

from nrt_jax.commands.configs import base_config


def get_config():
  config = base_config("grpo")
  config.seed = 0  # unknown
  config.total_steps = 1000  # [PAPER]
  config.prompts_per_step = 256  # [PAPER]
  config.samples_per_prompt = 8  # [PAPER]

  shared.on_a_slice(config, fsdp=16, tensor=4, micro_batches=16)  # [ours] one prompt's rows at a time

  data = config.data
  data.source = "places.jsonl"  # given by the user
  data.question_column = "context"  # [ours]
  data.answer_column = "continuation"  # [ours]

  prompt = config.prompt
  prompt.template = "chat"  # unknown; [PAPER] has several prompts
  prompt.trace_open = "<think>\n"  # [ours] the model's own; not twice where its template writes it
  prompt.marker = "</think>"  # [PAPER] the model's own
  prompt.max_prompt_length = 4096  # unknown
  prompt.overlong_prompt = "drop"  # unknown
  prompt.max_answer_length = 32  # [ours] of the continuation, the longest prediction that can be right
  prompt.overlong_answer = "cut"  # [ours]

  sampling = config.sampling
  sampling.max_trace_length = 8192  # [PAPER] the completion
  sampling.temperature = 0.8  # [PAPER]
  sampling.top_p = 1.0  # unknown
  sampling.wave_prompts = 128  # [ours] bounds the caches: 1,024 rows at a time

  algorithm = config.algorithm
  algorithm.verifier = "token_prefix"  # [PAPER] right so far, up to a border of tokens
  algorithm.wrong_reward = 0.0  # [PAPER]
  algorithm.format_reward = 0.0  # [PAPER]
  algorithm.center = "mean"  # [PAPER] GRPO
  algorithm.scale = "std"  # [PAPER] GRPO
  algorithm.trace_loss = "ppo_clip"  # [PAPER] GRPO
  algorithm.clip_low = 0.8  # unknown; [verl]
  algorithm.clip_high = 1.2  # unknown; [verl]
  algorithm.normalisation = "token"  # unknown; [verl]
  algorithm.filter_flat_groups = False  # [ours] see the departures
  algorithm.reference = "none"  # [PAPER] KL 0
  algorithm.kl_coef = 0.0  # [PAPER]

  shared.verl_adamw(config, learning_rate=1e-6)  # [PAPER] the rate; [verl] the rest
  config.optimizer.minibatches = 1  # unknown

  config.checkpoint.every_steps = 50  # [ours]
  config.evaluation.data = None  # [ours]
  return config
