"""RLP on Qwen3-1.7B-Base: a thought before the next token, rewarded by what it gains (arXiv 2510.01265).

  command    nrt-jax train --config experiments/full_size/rlp_qwen3_17b.py --workdir DIR --config.model.path=QWEN
               --config.data.source=TEXTS
             QWEN: a copy of Qwen/Qwen3-1.7B-Base. TEXTS: documents as a file or hub:NAME with the column text. To try
             the pipeline: a smaller QWEN, --config.total_steps=3, --config.parallel.fsdp=1, smaller prompts_per_step
             and sampling lengths.
  cost       [PAPER] 32 H100; hours unknown. Not run; the mesh below is for 16 TPU v5p chips and has not been tried on
             them. Tested: the program traces and lowers.
  expected   not reproduced. [PAPER] average of eight sets: base 30.3, as much continued pretraining 30.9, RLP 36.0;
             behind the same SFT and RLVR 39.3, 39.9, 42.5. An independent replication at 768 tokens and 8 samples saw
             flat rewards; in the paper's own ablation thoughts below 512 tokens hurt.

Sources of values:
  [PAPER]  arXiv 2510.01265 v2, from our notes
  [NOTE]   a note on the paper: the decay of the moving average
  [verl]   the default of verl, where the paper is silent
  [ours]   a choice of this file. "unknown" means that none of them gives a value.

Known departures:
  - [PAPER] passes over its data in order; here each document has one place, drawn when the data is read.
  - A thought that reaches the limit is closed by a marker put in by force. What [PAPER] does then is unknown.
"""

import shared_settings as shared

from nrt_jax.commands.configs import base_config


def get_config():
  config = base_config("nrt")  # whose keys express RLP: docs/equations.md
  config.seed = 0  # unknown
  config.total_steps = 160  # [ours] about the 170 million tokens of the smallest run, if contexts are full
  config.prompts_per_step = 512  # [PAPER]
  config.samples_per_prompt = 16  # [PAPER] G

  shared.on_a_slice(config, fsdp=16, tensor=1, micro_batches=32)  # [ours] one prompt's rows at a time on each device

  data = config.data
  data.source = "texts.jsonl"  # given by the user
  data.document_column = "text"  # [ours]
  data.horizon = 1  # [PAPER] the next token

  prompt = config.prompt
  prompt.template = "plain"  # [PAPER] the text itself
  prompt.trace_open = "<think>"  # unknown; Qwen3's own
  prompt.marker = "</think>"  # unknown; Qwen3's own
  prompt.max_prompt_length = 2048  # [PAPER] context
  prompt.overlong_prompt = "cut_left"  # [ours]
  prompt.max_answer_length = 1  # [PAPER] the next token

  sampling = config.sampling
  sampling.max_trace_length = 2048  # [PAPER] completion; as good as 4,096 in the ablation
  sampling.temperature = 0.7  # [PAPER]
  sampling.top_p = 1.0  # unknown
  sampling.wave_prompts = 128  # [ours] bounds the caches: 2,048 rows at a time

  algorithm = config.algorithm
  algorithm.reward = "log_prob"  # [PAPER] log p(x_t | x, c)
  algorithm.baseline = "subtract"  # [PAPER] less that of the model which does not think
  algorithm.base_policy = "reference"  # [PAPER]
  algorithm.base_place = "prompt"  # [PAPER] right behind the context
  algorithm.reference = "moving_average"  # [PAPER]
  algorithm.reference_decay = 0.999  # [NOTE]
  algorithm.center = "leave_one_out"  # [PAPER] G/(G-1) (r - mean)
  algorithm.scale = "none"  # [PAPER]
  algorithm.answer_weight = "none"  # [PAPER] only tokens of thoughts have a gradient
  algorithm.format_coef = 0.0  # [PAPER] no such term
  algorithm.trace_loss = "ppo_clip"  # [PAPER] clipped surrogate
  algorithm.clip_low = 0.8  # unknown; [PAPER] has two bounds. No effect with one update per rollout
  algorithm.clip_high = 1.28  # unknown
  algorithm.normalisation = "sequence"  # [PAPER] 1/|c|
  algorithm.kl_coef = 0.0  # [PAPER]; 1e-4 and 1e-3 were no better

  shared.verl_adamw(config, learning_rate=1e-6)  # [PAPER] rate and schedule; [verl] the rest
  config.optimizer.minibatches = 1  # unknown

  config.checkpoint.every_steps = 20  # [ours]
  config.evaluation.data = None  # [ours]
  return config
