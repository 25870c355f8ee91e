"""Fixtures for the task tests."""

import pytest

from nrt_jax.tasks import symbolic


@pytest.fixture
def plain(monkeypatch):
  """Grading as it is without math-verify."""
  monkeypatch.setattr(symbolic, "installed", lambda: False)
