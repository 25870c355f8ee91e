"""Problems: tasks that generate examples, and graders that compare answers. Pure Python and NumPy on plain text.

Read table.py first. Nothing here knows tokens, models or JAX, and no text of a model is ever evaluated as Python.
"""
