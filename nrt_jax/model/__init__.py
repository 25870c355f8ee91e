"""One decoder for Llama, Mistral, Qwen2 and Qwen3, and Hugging Face directories in both directions.

Read decoder.py first: one forward pass for training, prefill and decoding. Parameters are plain trees. No sampling and
no losses here.
"""
