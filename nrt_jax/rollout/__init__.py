"""Sampling traces, and scoring answers on the sampler's own caches.

Read sampler.py first, then scoring.py. Nothing here knows rewards or methods.
"""
