"""Plans a training step on a TPU slice without access to one: memory, collectives and roofline of the compiled program.

Read program.py first, which compiles the step, then report.py. Nothing here runs a step.
"""
