"""What the RARO files share: the game's settings, Qwen2.5's mesh and optimizer. Not a run itself.

Every value is [ours] or has its source next to it, as in the files that call this. The sources are those of our notes
on the paper, whose body could not be read:
  [S3]  Chinese notes on the paper
  [S4]  a third-party re-implementation, which says that its values are the paper's for DeepMath
"""

import shared_settings as shared

from nrt_jax.commands.configs import base_config


def setting():
  """Everything but the data. The same for 1.5B, 3B and 7B; the mesh is for 7B, and holds the smaller ones too."""
  config = base_config("raro")
  config.seed = 0  # unknown
  config.total_steps = 1000  # unknown
  config.prompts_per_step = 64  # unknown
  config.samples_per_prompt = 16  # [S4] said for DeepMath

  shared.on_a_slice(config, fsdp=16, tensor=4, micro_batches=64)  # [ours] few rows at a time in each device group

  prompt = config.prompt
  prompt.template = "chat"  # [ours] instruct models' own
  prompt.trace_open = "<think>\n"  # [ours] a think-then-answer form; the paper's words are unknown
  prompt.marker = "</think>"  # [ours]
  prompt.overlong_prompt = "drop"  # unknown

  sampling = config.sampling
  sampling.max_trace_length = 2048  # [S3] tokens of reasoning; here of the whole completion
  sampling.temperature = 1.0  # unknown
  sampling.wave_prompts = 64  # [ours] all at once

  algorithm = config.algorithm
  algorithm.tau_policy = 0.6  # [S4] said for DeepMath
  algorithm.tau_critic = 0.55  # [S4] said for DeepMath
  algorithm.lambda_policy = 1 / 9  # [S4] said for DeepMath; its direction is unsure
  algorithm.lambda_critic = 8 / 9  # [S4]
  algorithm.replay_share = 0.5  # [S4]
  algorithm.replay_size = 10_000  # [S4] its own choice
  algorithm.replay = "fifo"  # [S4] its own choice
  algorithm.scale = "none"  # [S3] no standard deviation
  algorithm.normalisation = "constant"  # [S3] no length normalisation
  algorithm.mask_unended = True  # [S3] over-length filter
  algorithm.clip_low = 0.8  # [S4]
  algorithm.clip_high = 1.2  # [S4]
  algorithm.kl_coef = 1e-3  # [S4]
  algorithm.reference = "frozen"  # [S3] KL to a reference; which one: unknown

  critic = algorithm.critic
  critic.kind = "pairwise_tie"  # [S3]
  critic.reasoning = True  # [S3]
  critic.max_length = 1024  # unknown
  critic.samples = 4  # unknown
  critic.pairs = 8  # unknown
  critic.order = "both"  # [ours] removes position bias from the policy's reward
  critic.temperature = 1.0  # unknown

  shared.verl_adamw(config, learning_rate=1e-6)  # [S4]
  config.optimizer.minibatches = 1  # [S4] one epoch of one update
  config.checkpoint.every_steps = 50  # [ours]
  return config
