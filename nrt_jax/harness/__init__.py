"""lm-evaluation-harness on our models: a model class of its interface. Read model.py first, then engine.py.

Needs the package lm-eval: pip install nrt_jax[eval]. docs/harness.md has the command and what is compared with what.
"""
