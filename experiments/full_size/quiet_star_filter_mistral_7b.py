"""Quiet-STaR's filtered gain on Mistral-7B, without its mixing head (arXiv 2403.09629). It is not Quiet-STaR.

  command    nrt-jax train --config experiments/full_size/quiet_star_filter_mistral_7b.py --workdir DIR
               --config.model.path=MISTRAL --config.data.source=TEXTS
             MISTRAL: a copy of mistralai/Mistral-7B-v0.1. TEXTS: documents as a file or hub:NAME with the column text.
             To try the pipeline: a smaller MISTRAL, --config.total_steps=3, --config.parallel.fsdp=1
             --config.parallel.tensor=1.
  cost       unknown, not run. The mesh below is for 16 TPU v5p chips and has not been tried on them. Tested: the
             program traces and lowers.
  expected   nothing: with the mixing head the paper reports GSM8K 5.9 to 10.9 and CommonsenseQA 36.3 to 47.2.

Sources of values:
  [NOTES]  secondary notes on arXiv 2403.09629
  [ours]   a choice of this file. "unknown" means that the notes give no value.

Known departures, each of which may decide the result:
  - No mixing head: predictions are those behind the thought alone (docs/decisions.md).
  - [NOTES] thinks at every token of a span of 256; here at one token of each document.
  - [NOTES] weighs the policy's term by 1e6 and the gradient of the start and end tokens' rows by 1e2. Here the trace's
    term weighs 1, and these rows are trained as any other.
"""

import shared_settings as shared

from nrt_jax.commands.configs import base_config


def get_config():
  config = base_config("nrt")
  config.seed = 0  # unknown
  config.total_steps = 10000  # unknown
  config.prompts_per_step = 16  # [ours] the notes' batch is 8 spans, of 256 places each
  config.samples_per_prompt = 4  # unknown

  shared.on_a_slice(config, fsdp=8, tensor=2, micro_batches=1)  # [ours]

  data = config.data
  data.source = "texts.jsonl"  # given by the user
  data.document_column = "text"  # [ours]
  data.horizon = 12  # [NOTES] tokens ahead, the best

  prompt = config.prompt
  prompt.template = "plain"  # [NOTES] the text itself
  prompt.trace_open = "<|startofthought|>"  # [NOTES] a learnt token; its name is ours
  prompt.marker = "<|endofthought|>"  # [NOTES] the same
  prompt.max_prompt_length = 256  # [NOTES] the span
  prompt.overlong_prompt = "cut_left"  # [ours]
  prompt.max_answer_length = 12  # [NOTES] tokens ahead

  sampling = config.sampling
  sampling.max_trace_length = 25  # [NOTES] 24 tokens of thought, and the marker
  sampling.temperature = 1.0  # [NOTES]
  sampling.top_p = 1.0  # unknown
  config.environment = {"name": "fixed_length", "tokens": 24}  # [NOTES] the best; there all are as long

  algorithm = config.algorithm
  algorithm.reward = "log_prob"  # [NOTES] of the tokens ahead
  algorithm.baseline = "none"  # [NOTES]
  algorithm.center = "mean"  # [NOTES] less the mean over thoughts
  algorithm.scale = "none"  # [NOTES]
  algorithm.positive_only = True  # [NOTES] REINFORCE only where the gain is positive
  algorithm.trace_loss = "reinforce"  # [NOTES]
  algorithm.answer_weight = "one"  # [NOTES] the likelihood of the text is trained too
  algorithm.format_coef = 0.0  # [NOTES] no such term
  algorithm.normalisation = "constant"  # unknown
  algorithm.kl_coef = 0.0  # unknown

  shared.verl_adamw(config, learning_rate=1e-6)  # [NOTES] the rate; the rest is unknown
  config.optimizer.minibatches = 1  # unknown

  config.checkpoint.every_steps = 1000  # [ours]
  config.evaluation.data = None  # [ours]
  return config
