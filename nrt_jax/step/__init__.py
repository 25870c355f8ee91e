"""Every compiled program of a run. The one that matters is `train_step` in programs.py: read it first.

tools.py has what a method may call inside the program, update.py the gradients and optimizer steps. No files are read
or written here, except by policy.py, which opens a model directory.
"""
