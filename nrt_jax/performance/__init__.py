"""What a step costs: measured on the devices at hand (benchmark.py: read it first), or read off a program that was
compiled for a TPU slice without one (planning/). Training imports nothing from here.
"""
