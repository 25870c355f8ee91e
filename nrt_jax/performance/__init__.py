"""The cost of a step: measured on the local devices (benchmark.py: read it first), or read from a program compiled
for a TPU slice without access to one (planning/). Training imports nothing from here.
"""
