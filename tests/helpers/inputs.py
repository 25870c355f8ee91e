"""What tests/properties/ share: properties that hold for any input, which Hypothesis draws.

NRT_JAX_CASES sets how many it draws for each property: few, and always the same ones, unless it is set.
docs/results/reliability.md has the counts of a long run and what it found.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from nrt_jax.errors import UserError

FEW = 25
CASES = int(os.environ.get("NRT_JAX_CASES", FEW))

drawn = settings(
  max_examples=CASES, derandomize=CASES == FEW, deadline=None, database=None,
  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip

# Any text but half characters; and one with those, as JSON may hold them.
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
WORDS = TEXT.filter(str.strip)
LEAVES = st.one_of(
  st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=20), st.just(""),
  st.sampled_from([10**400, -(2**64), 1e308, 5e-324, "auto", "all", "null", "\ud800", "\x1b[2J", "a\nb"]),
)  # fmt: skip
JSON = st.recursive(
  LEAVES,
  lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
  max_leaves=8,
)


def outcome(function, *arguments):
  """What it returns; the message of a UserError. Anything else that it raises fails the test."""
  try:
    return function(*arguments)
  except UserError as error:
    assert str(error).strip()
    return str(error)


def reversed_keys(value):
  if isinstance(value, dict):
    return {key: reversed_keys(value[key]) for key in reversed(value)}
  return [reversed_keys(item) for item in value] if isinstance(value, list) else value
