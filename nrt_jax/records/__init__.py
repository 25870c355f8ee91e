"""What a run writes as it runs: checkpoints and metrics; and the signal that makes it save and stop.

Read checkpoint.py first. Nothing here depends on methods or models: a state is any tree of arrays, a metric any number.
"""
