"""DAPO on Qwen2.5-Math-7B with DAPO-Math-17k: a baseline of the NFT paper (arXiv 2505.18116).

  command    nrt-jax train --config experiments/full_size/dapo_qwen25_math_7b.py --workdir DIR --config.model.path=QWEN
             QWEN: a copy of Qwen/Qwen2.5-Math-7B. To try it small, see nft_qwen25_math_7b.py.
  cost       as nft_qwen25_math_7b.py: unknown, not run. Tested: both programs trace and lower.
  expected   not reproduced. NFT's main table, as an image in NVlabs/NFT: AIME24 33.1, MATH500 81.6, AIME25 18.7,
             AMC23 85.0, OlympiadBench 49.9, Minerva 39.3, average 51.2; the base model 31.6.

Sizes, data, sampling and optimizer are those of nft_qwen25_math_7b.py, with the same sources and departures. [CODE] is
its train_7B.sh with neg_weight=-1, which its README calls the DAPO run. For DAPO's own paper, with a model of 32
billion parameters, see dapo_qwen25_32b.py.
"""

import nft_qwen25_math_7b as nft


def get_config():
  config = nft.setting("dapo")
  algorithm = config.algorithm
  algorithm.wrong_reward = -1.0  # [CODE] rewards are 1 and -1
  algorithm.scale = "std"  # [CODE] adv_estimator=grpo
  algorithm.clip_low = 0.8  # [CODE] clip_ratio_low 0.2
  algorithm.clip_high = 1.28  # [CODE] clip_ratio_high 0.28
  algorithm.max_draws = 30  # [CODE] max_num_gen_batches 10, each 3 x 512 prompts
  algorithm.normalisation = "token"  # [CODE] use_token_level_loss
  algorithm.long_buffer = 0  # [CODE] enable_overlong_buffer=False at 7B
  algorithm.kl_coef = 0.0  # [CODE]
  return config
