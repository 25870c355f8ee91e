"""Brainf**k and Befunge-93, each twice: in plain Python, and in JAX for many programs at once inside a program.

Read outcome.py first, then brainfuck.py and its twin brainfuck_jax.py. Nothing here executes a text as Python.
"""
