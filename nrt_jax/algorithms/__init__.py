"""The methods: one page for each method or family, and the table that `algorithm.name` picks a row of.

Read interface.py first (what a method is given and what it returns), then verifier_free.py, which is NRT. A page knows
nothing of devices, files or tokenizers.
"""
