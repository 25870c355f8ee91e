"""What a run writes while it runs: checkpoints, metrics, and the signal that makes it save and stop.

Read checkpoint.py first. Nothing here knows methods or models: states are any tree of arrays, metrics any numbers.
"""
