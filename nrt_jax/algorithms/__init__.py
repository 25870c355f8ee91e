"""The table of methods: `algorithm.name` in a config picks a row."""

from nrt_jax.algorithms import sft, verifier_free

ALGORITHMS = {
  "nrt": verifier_free.ALGORITHM,
  "sft": sft.ALGORITHM,
}
