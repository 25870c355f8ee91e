"""The update rule: OptimizerConfig -> Optax transformation, and moments stored in eight bits.

Read update_rule.py first. Gradients and sharding are handled elsewhere.
"""
