"""What the grader tests share: answers from real benchmarks, and what grading needs."""

import json

import pytest
from paths import DATA

from nrt_jax.tasks import symbolic

GENEROUS = 10.0  # seconds for what takes milliseconds
needs_math_verify = pytest.mark.skipif(not symbolic.installed(), reason="math-verify (extra [eval]) is not installed")


def real(name):
  path = DATA / name
  if not path.exists():
    pytest.skip(f"real data is absent: ../shared/data/{name}")
  return path


def rows(name):
  return [json.loads(line) for line in real(name).read_text(encoding="utf-8").splitlines()]
