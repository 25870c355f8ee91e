"""The table of methods: `algorithm.name` in a config picks a row."""

from nrt_jax.algorithms import dpo, nft, rlvr, sft, verifier_free

ALGORITHMS = {
  "nrt": verifier_free.ALGORITHM,
  "sft": sft.ALGORITHM,
  "grpo": rlvr.GRPO,
  "dr_grpo": rlvr.DR_GRPO,
  "dapo": rlvr.DAPO,
  "rloo": rlvr.RLOO,
  "gspo": rlvr.GSPO,
  "nft": nft.NFT,
  "rft": nft.RFT,
  "dpo": dpo.ALGORITHM,
}
