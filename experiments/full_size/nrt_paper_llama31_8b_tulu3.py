"""NRT-WS(-log p) on Llama-3.1-8B with the Tülu 3 mixture, in the paper's form of the method (arXiv 2602.11549).

  command    nrt-jax train --config experiments/full_size/nrt_paper_llama31_8b_tulu3.py --workdir DIR
             --config.model.path=LLAMA
  cost       as nrt_llama31_8b_tulu3.py: unknown, not run. Tested: the program traces and lowers.
  expected   not reproduced. Reported, an average over nine benchmarks: 56.2, against 46.0 for SFT and 50.8 for the
             authors' RLPR (papernotes.org's table; we have not seen the paper's).

We had no access to the full paper. Values come from notes on it, [PN] papernotes.org and [VN] a reader's comparison of
JEPO and NRT, and from the equation in the released code's docstring, [CODE]. The paper's table of hyperparameters was
not available either, so sizes, lengths and optimizer are those of nrt_llama31_8b_tulu3.py, the released code's.
"""

import nrt_llama31_8b_tulu3 as released


def get_config():
  config = released.get_config()

  prompt = config.prompt
  prompt.marker = "</think>"  # [PN][VN] delimiters <think> ... </think>; here the closing one is an added token
  prompt.trace_open = "<think>"  # [PN][VN] appended to the prompt, so that only the closing one has to be learned
  prompt.stop_at_special = False  # unknown; an end token still ends a trace

  algorithm = config.algorithm
  algorithm.reward = "weighted_sum_log_prob"  # [PN] the best of its six: 56.2, geometric mean 54.9, log p 52.9
  algorithm.baseline = "subtract_and_clip"  # [PN][VN] R' = max(0, R - R_base)
  algorithm.base_policy = "current"  # unknown ("base" in the notes); as in the released code
  algorithm.center = "mean"  # [PN][VN] A = (R' - mean) / std
  algorithm.scale = "std"  # [PN][VN]
  algorithm.trace_loss = "cispo"  # unknown: the equation in [CODE] has a ratio r_k; clipped as in the code
  algorithm.answer_weight = "derived"  # [PN][VN] s_i = c_i df/dc_i
  algorithm.format_coef = 0.3  # [PN][VN] cross-entropy on the delimiters only
  algorithm.train_forced_marker = False  # unknown; a token that was not sampled gets no policy gradient
  algorithm.normalisation = "constant"  # unknown; keeps the relative weights of the equation's two terms
  algorithm.normalisation_constant = 0.0  # [ours] the longest trace: undivided sums would be clipped in every update
  return config
