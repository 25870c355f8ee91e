"""A training step on a TPU slice that you don't have: memory, collectives and roofline of the compiled program.

Read program.py first, which compiles it, then report.py. Nothing here runs a step.
"""
