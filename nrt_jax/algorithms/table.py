"""The table of methods: `algorithm.name` in a config picks a row."""

from nrt_jax.algorithms import completions, dpo, nft, raro, rationalization, relatives, rlvr, sft, verifier_free

ALGORITHMS = {
  "nrt": verifier_free.ALGORITHM,
  "jepo": relatives.JEPO,
  "jepo_multi": relatives.JEPO_MULTI,
  "verifree": relatives.VERIFREE,
  "latro": relatives.LATRO,
  "rl_logit": relatives.RL_LOGIT,
  "dro": relatives.DRO,
  "rlpr": completions.RLPR,
  "nover": completions.NOVER,
  "sft": sft.ALGORITHM,
  "grpo": rlvr.GRPO,
  "dr_grpo": rlvr.DR_GRPO,
  "dapo": rlvr.DAPO,
  "rloo": rlvr.RLOO,
  "gspo": rlvr.GSPO,
  "nft": nft.NFT,
  "rft": nft.RFT,
  "dpo": dpo.ALGORITHM,
  "rationalization": rationalization.ALGORITHM,
  "raro": raro.ALGORITHM,
}
