"""Every method and several forms of NRT: name -> (key of ALGORITHMS, config keys)."""

from nrt_jax.algorithms.table import ALGORITHMS

PAPER = {}  # the defaults: nrt.md section 3a
RELEASED = {"baseline": "none", "answer_weight": "one", "train_forced_marker": True, "normalisation_constant": 64.0}
CASES = {
  "nrt_paper": ("nrt", PAPER),
  "nrt_released": ("nrt", RELEASED),
  "nrt_geometric_ppo": (
    "nrt", {"reward": "geometric_mean", "baseline": "subtract", "trace_loss": "ppo_clip", "normalisation": "sequence"}
  ),
  "nrt_product_reinforce": (
    "nrt",
    {"reward": "prob", "baseline": "none", "center": "leave_one_out", "scale": "none", "trace_loss": "reinforce"},
  ),
  "nrt_log_prob_one": (
    "nrt", {"reward": "log_prob", "baseline": "none", "center": "leave_one_out", "answer_weight": "one"}
  ),
  "nrt_arithmetic_token": ("nrt", {"reward": "arithmetic_mean", "answer_weight": "none", "normalisation": "token"}),
  "nrt_inverse_scaled_frozen": (
    "nrt",
    {
      "reward": "weighted_sum_inverse_prob", "answer_weight": "scaled", "base_policy": "reference",
      "reference": "frozen", "kl_coef": 0.1, "entropy_coef": 0.01,
    },
  ),
  "sft_prompt": ("sft", {"train_prompt": True, "train_marker": False, "normalisation": "sequence"}),
  **{name: (name, {}) for name in ALGORITHMS if name != "nrt"},
  "raro": ("raro", {"critic": {"max_length": 9}}),
  "raro_labels": (
    "raro",
    {
      "label_coef": 1.0, "replay_share": 0.0, "corrupt_share": 1 / 3,
      "critic": {"max_length": 7, "pairs": 6},
    },
  ),
  "raro_single": (
    "raro", {"replay_share": 0.0, "unparsed": "masked", "critic": {"max_length": 9, "kind": "single", "kl_coef": 0.1}}
  ),
}  # fmt: skip
