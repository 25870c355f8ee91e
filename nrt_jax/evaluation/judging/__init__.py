"""Judgements of answers that nobody can grade: pairwise in both orders, or scores, by any model that reads and writes.

Read asking.py first: it says what a judge is. No JAX and no model is imported here, so an endpoint is asked at once.
"""
