import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.harness import stop_strings

TEXTS = ["a", "b", "ab", " ", "\n", "", None, "ba\n", "xaby", "é", "aab"]  # of the tokens 0 to 10
STOPS = ["ab\n", "\n\n", "éa", "aba"]
MARKER = (1, 1, 0)


def ends(table, ids) -> int:
  """After how many tokens the row is done; one more than there are where it is not."""
  state = stop_strings.START
  for count, token in enumerate(ids, 1):
    state = table[state, token]
    if state == stop_strings.FOUND:
      return count
  return len(ids) + 1


def text_ends(ids, lead=False) -> int:
  """The same by the text, whose blanks in front are left out with `lead`; a part of a character stands for itself."""
  for count in range(1, len(ids) + 1):
    text = "".join("?" if TEXTS[i] is None else TEXTS[i] for i in ids[:count])
    if any(stop in (text.lstrip() if lead else text) for stop in STOPS):
      return count
  return len(ids) + 1


def test_a_row_ends_with_the_token_that_completes_a_stop_string():
  table = stop_strings.build_table(TEXTS, 13, STOPS)
  assert table.shape == (32, 13) and table.dtype == np.int16
  rng, found = np.random.default_rng(0), []
  for _ in range(60):
    ids = rng.integers(0, len(TEXTS), 8).tolist()
    found.append(ends(table, ids))
    assert found[-1] == text_ends(ids), ids
  assert 10 < sum(count <= 8 for count in found) < 50
  assert ends(table, [0, 11, 1, 12, 4]) == 5  # tokens behind the tokenizer's add nothing


def test_a_world_follows_its_table():
  watching = stop_strings.StopStrings(jnp.asarray(stop_strings.build_table(TEXTS, 11, STOPS)))
  first = watching.step(watching.init(None), jnp.int32(2))
  second = watching.step(first.state, jnp.int32(4))
  assert first.state.dtype == watching.init(None).dtype and (bool(first.done), bool(second.done)) == (False, True)
  assert int(second.count) == 0


def test_stop_strings_count_behind_the_marker_and_its_blanks():
  table = stop_strings.build_table(TEXTS, 11, STOPS, MARKER)
  rng, found = np.random.default_rng(1), []
  for _ in range(60):
    before, behind = (rng.integers(0, len(TEXTS), 6).tolist() for _ in range(2))
    behind[: rng.integers(0, 4)] = [4] * int(rng.integers(0, 4))
    ids = [*before, *MARKER, *behind]
    place = next(i for i in range(len(ids)) if tuple(ids[i : i + 3]) == MARKER) + 3
    found.append(ends(table, ids))
    assert found[-1] == place + text_ends(ids[place:], lead=True), ids
  assert len(set(found)) > 4


@pytest.mark.parametrize("ids,count", [([1, 1, 1, 0, 2, 4], 6), ([0, 2, 4, 4, 4], 6), ([1, 1, 0, 4, 4, 4, 2, 4], 8)])
def test_the_marker_overlaps_itself(ids, count):
  assert ends(stop_strings.build_table(TEXTS, 11, STOPS, MARKER), ids) == count
