"""nrt_jax: teach language models to reason without a verifier, as one sharded XLA program.

Read training.py first, then step/programs.py and one page of algorithms/.
"""

__version__ = "0.1.0"
