"""GRPO on Qwen2.5-Math-7B with DAPO-Math-17k: a baseline of the NFT paper (arXiv 2505.18116).

  command    nrt-jax train --config experiments/full_size/grpo_qwen25_math_7b.py --workdir DIR --config.model.path=QWEN
             QWEN: a copy of Qwen/Qwen2.5-Math-7B. To try it small, see nft_qwen25_math_7b.py.
  cost       as nft_qwen25_math_7b.py: unknown, not run. Tested: both programs trace and lower.
  expected   not reproduced. NFT's main table, as an image in NVlabs/NFT: AIME24 30.2, MATH500 80.4, AIME25 17.1,
             AMC23 79.5, OlympiadBench 51.8, Minerva 38.2, average 49.5; the base model 31.6.

Sizes, data, sampling and optimizer are those of nft_qwen25_math_7b.py, with the same sources and departures. The
GRPO-specific settings of that paper's run are unknown. This file uses GRPO as published ([DSM], arXiv 2402.03300), but
like the script without a reference model.
"""

import nft_qwen25_math_7b as nft


def get_config():
  config = nft.setting("grpo")
  algorithm = config.algorithm
  algorithm.wrong_reward = -1.0  # NVlabs/NFT: rewards are 1 and -1; no effect once divided by their deviation
  algorithm.center = "mean"  # [DSM] section 4.1.2
  algorithm.scale = "std"  # [DSM] section 4.1.2
  algorithm.trace_loss = "ppo_clip"  # [DSM] eq. 3
  algorithm.clip_low = 0.8  # NVlabs/NFT: clip_ratio_low 0.2 in its DAPO runs; unknown for GRPO
  algorithm.clip_high = 1.2  # unknown; symmetric, unlike DAPO's
  algorithm.normalisation = "sequence"  # [DSM] eq. 3; unknown for the run
  algorithm.filter_flat_groups = False  # unknown; flat groups have no gradient but count in the mean
  algorithm.max_draws = 1  # unknown
  algorithm.reference = "none"  # NVlabs/NFT: kl_coef and kl_loss_coef are 0
  algorithm.kl_coef = 0.0  # NVlabs/NFT: the same
  return config
