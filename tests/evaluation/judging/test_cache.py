"""Replies are kept as they come, survive a kill, and are found by all that they depend on."""

import pytest

from nrt_jax.errors import UserError
from nrt_jax.evaluation.judging.cache import Cache, Reply, key_of

REPLIES = {"k1": Reply("Verdict: A\nünd 'mehr'", True, 12), "k2": Reply("", False, 0, (0.5, 0.25, 0.25))}


@pytest.fixture
def path(tmp_path):
  cache = Cache(str(tmp_path / "c.jsonl"))
  for key, reply in REPLIES.items():
    cache.put(key, reply, "judge")
  return tmp_path / "c.jsonl"


def test_replies_are_found_again(path):
  again = Cache(str(path))
  assert again.replies == REPLIES and again.get("k3") is None


def test_half_a_line_is_dropped_and_written_behind(path):
  whole = path.read_bytes()
  for cut in range(len(whole) - 25, len(whole) - 1):
    path.write_bytes(whole[:cut])
    cache = Cache(str(path))
    assert list(cache.replies) == ["k1"]
    cache.put("k3", Reply("x"), "judge")
    assert list(Cache(str(path)).replies) == ["k1", "k3"]
  path.write_bytes(whole[:10])  # all that a first reply left
  assert Cache(str(path)).replies == {}


def test_a_file_of_something_else_is_not_written_to(path, tmp_path):
  for text in ('{"question": "q", "answer": "a"}\n', "a poem\n", path.read_text() + "[1]\n"):
    (tmp_path / "other").write_text(text)
    with pytest.raises(UserError, match="--cache: .*other: holds something else"):
      Cache(str(tmp_path / "other"))
  (tmp_path / "empty").touch()
  assert Cache(str(tmp_path / "empty")).replies == {} and Cache(None).replies == {}


def test_a_key_depends_on_judge_and_request():
  keys = {key_of({"model": m}, {"prompt": p, "seed": s}) for m in "xy" for p in "ab" for s in (0, 1)}
  assert len(keys) == 8 and all(len(key) == 24 for key in keys)
  assert key_of({"a": 1, "b": 2}, {"c": 3, "d": 4}) == key_of({"b": 2, "a": 1}, {"d": 4, "c": 3})
