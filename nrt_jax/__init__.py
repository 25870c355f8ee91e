"""nrt_jax: teach language models to reason without a verifier, as one sharded XLA program."""

__version__ = "0.1.0"
