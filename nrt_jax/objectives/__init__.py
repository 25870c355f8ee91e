"""The maths: rewards, advantages and losses as pure functions of arrays.

Read rewards.py first: f(c) of the answer's probabilities, and its derivative weights. Nothing here knows models,
prompts or devices; a reward does not know groups, an advantage not where its reward came from.
"""
