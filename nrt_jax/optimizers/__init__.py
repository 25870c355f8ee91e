"""The update rule: from OptimizerConfig to an optax transformation, and moments stored in eight bits.

Read update_rule.py first. No gradients are computed here, and nothing is sharded.
"""
