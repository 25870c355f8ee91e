"""One decoder for all families, and Hugging Face directories in both directions.

Read decoder.py first: one forward pass for training, prefill and decoding. Parameters are plain trees. No sampling and
no losses here.
"""
