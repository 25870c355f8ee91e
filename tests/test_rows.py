import jax.numpy as jnp
import numpy as np
import pytest
import reference

from nrt_jax import rows
from nrt_jax.algorithms import sft

PAD = 3  # also an ordinary token: lengths, never ids, say what is valid


def random_rows(seed=0, count=12, P=4, R=5, A=3):
  """Ragged lists with the extremes: empty trace, full trace, shortest prompt."""
  rng = np.random.default_rng(seed)

  def ragged(low, high):
    lengths = rng.integers(low, high + 1, count)
    lengths[:2] = (low, high) if high >= low else 0
    return [list(rng.integers(0, 9, n)) for n in lengths]

  return ragged(1, P)[::-1], ragged(0, R), ragged(1, A)


def pad(lists, width, left):
  filled = [[7] * (width - len(x)) + list(x) if left else list(x) + [7] * (width - len(x)) for x in lists]
  return jnp.asarray(np.array(filled, np.int32).reshape(len(lists), width)), jnp.asarray([len(x) for x in lists])


def splice(prompts, traces, marker, answers, P=4, R=5, A=3):
  return rows.splice(*pad(prompts, P, True), *pad(traces, R, False), marker, *pad(answers, A, False), PAD)


def test_example_of_the_docstring():
  got = splice([[10, 11]], [[20]], (30,), [[40, 41]], P=2, R=4, A=3)
  np.testing.assert_array_equal(got.token_NL, [[PAD, PAD, PAD, 10, 11, 20, 30, 40, 41, PAD]])
  np.testing.assert_array_equal(got.position_NL, [[-1, -1, -1, 0, 1, 2, 3, 4, 5, -1]])
  np.testing.assert_array_equal(np.flatnonzero(got.trace_mask_NL[0]), [5])
  np.testing.assert_array_equal(np.flatnonzero(got.marker_mask_NL[0]), [6])
  np.testing.assert_array_equal(np.flatnonzero(got.answer_mask_NL[0]), [7, 8])
  assert got.first == 2


@pytest.mark.parametrize("marker", [(8,), (8, 1)])
@pytest.mark.parametrize("R", [0, 5])
def test_twin(marker, R):
  prompts, traces, answers = random_rows(R=R)
  got = splice(prompts, traces, marker, answers, R=R)
  assert got.token_NL.shape == (12, 4 + R + len(marker) + 3)
  for n, (prompt, trace, answer) in enumerate(zip(prompts, traces, answers)):
    text, kinds = reference.spliced_row(prompt, trace, marker, answer)
    valid = np.asarray(got.position_NL[n]) >= 0
    np.testing.assert_array_equal(got.token_NL[n][valid], text)
    np.testing.assert_array_equal(got.position_NL[n][valid], np.arange(len(text)))
    masks = {"trace": got.trace_mask_NL, "marker": got.marker_mask_NL, "answer": got.answer_mask_NL}
    for kind, mask_NL in masks.items():
      np.testing.assert_array_equal(mask_NL[n][valid], np.array(kinds) == kind)
      assert not mask_NL[n][~valid].any()
    assert (got.token_NL[n][~valid] == PAD).all()


def test_no_gap_before_the_marker():
  """The probe's bug: with a pad between a short trace and the marker, the marker is learnt from a pad's query."""
  prompts, traces, answers = random_rows()
  got = splice(prompts, traces, (8,), answers)
  for n in range(12):
    columns = np.flatnonzero(got.position_NL[n] >= 0)
    np.testing.assert_array_equal(columns, np.arange(columns[0], columns[-1] + 1))  # contiguous
    before_marker = np.flatnonzero(got.marker_mask_NL[n])[0] - 1
    assert got.token_NL[n, before_marker] == (prompts[n] + traces[n])[-1]


def test_values_land_on_their_tokens():
  prompts, traces, answers = random_rows()
  marker = (8, 1)
  got = splice(prompts, traces, marker, answers)
  rng = np.random.default_rng(1)
  trace_values, answer_values = [rng.normal(size=len(t)) for t in traces], [rng.normal(size=len(a)) for a in answers]
  marker_NM = rng.normal(size=(12, 2)).astype(np.float32)
  trace_NR = reference.padded(trace_values, 5, fill=99.0)[0]
  answer_NA = reference.padded(answer_values, 3, fill=99.0)[0]
  length_N = jnp.asarray([len(t) for t in traces])
  aligned = rows.align_trace(jnp.asarray(trace_NR), length_N, got, 2, 3) + rows.align_suffix(
    jnp.asarray(marker_NM), jnp.asarray(answer_NA), got
  )
  for n in range(12):
    expected = np.concatenate([np.zeros(len(prompts[n])), trace_values[n], marker_NM[n], answer_values[n]])
    valid = np.asarray(got.position_NL[n]) >= 0
    np.testing.assert_allclose(aligned[n][valid], expected, rtol=1e-6)
    assert not aligned[n][~valid].any()


@pytest.mark.parametrize("spare", [0, 3])
def test_joining_pieces(spare):
  """Ragged pieces, padded on either side, one without columns: back to back, at the right end of the row."""
  heads, answers, others = random_rows(seed=2)
  constant = [[5, 6]] * 12
  pieces = [(*pad(heads, 4, True), True), (*pad(answers, 5, False), False), (*pad([[]] * 12, 0, False), False)]
  pieces += [(*pad(constant, 2, False), False), (*pad(others, 3, True), True)]
  joined, length = rows.concatenate(pieces, 14 + spare, PAD)
  lists = [head + answer + [5, 6] + other for head, answer, other in zip(heads, answers, others)]
  np.testing.assert_array_equal(length, [len(row) for row in lists])
  assert joined.dtype == jnp.int32 and joined.shape == (12, 14 + spare)
  for n, row in enumerate(lists):
    np.testing.assert_array_equal(joined[n], [PAD] * (14 + spare - len(row)) + row)


def test_cutting_rows():
  tree = {"a": jnp.arange(24).reshape(12, 2), "b": jnp.arange(12)}
  pieces = rows.cut_rows(tree, 3)
  np.testing.assert_array_equal(pieces["b"], [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])
  for name in tree:
    np.testing.assert_array_equal(rows.join_rows(pieces)[name], tree[name])


def test_cutting_groups():
  tree = {"a": jnp.arange(24).reshape(12, 2), "b": jnp.arange(12)}  # 6 prompts of 2 samples
  pieces = rows.cut_groups(tree, 3, 2)
  # Piece m holds the prompts b with b % 3 == m, whole: prompts 0 and 3 are rows 0, 1, 6, 7.
  np.testing.assert_array_equal(pieces["b"], [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]])
  np.testing.assert_array_equal(pieces["a"][1], tree["a"][jnp.array([2, 3, 8, 9])])
  for name in tree:
    np.testing.assert_array_equal(rows.join_groups(pieces, 2)[name], tree[name])


def test_cutting_by_length():
  """Pairs of rows, two devices with six rows each: within a device the pair that needs least comes first."""
  tree = {"a": jnp.arange(24).reshape(12, 2), "b": jnp.arange(12)}
  needed_N = jnp.array([9, 1, 2, 3, 5, 8] + [1, 1, 4, 4, 3, 2])  # by pair 9, 3, 8 and 1, 4, 3
  pieces = rows.cut_by_length(tree, needed_N, pieces=3, rows_together=2, ways=2)
  np.testing.assert_array_equal(pieces["b"], [[2, 3, 6, 7], [4, 5, 10, 11], [0, 1, 8, 9]])
  np.testing.assert_array_equal(pieces["a"], np.asarray(tree["a"])[np.asarray(pieces["b"])])


def test_packing():
  """Two groups of two rows: what is valid lies one behind the other, knows its row, and finds its way back."""
  valid = jnp.asarray([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 1, 0]], bool)
  x = jnp.arange(12).reshape(4, 3)
  bring, put_back, row = rows.pack(valid, 2, 5)
  np.testing.assert_array_equal(bring(x, -1), [[1, 2, 3, -1, -1], [6, 7, 8, 10, -1]])
  np.testing.assert_array_equal(row[:, :3], [[0, 0, 1], [0, 0, 0]])
  assert row[1, 3] == 1
  np.testing.assert_array_equal(put_back(bring(x, -1)), np.where(valid, x, 0))
  np.testing.assert_array_equal(rows.pack(valid, 2, 4)[0](x, -1)[1], [6, 7, 8, 10])  # just enough columns


def test_last_columns():
  """Of the docstring's row nothing but its first three pads goes; what has no columns stays whole."""
  spliced = splice([[10, 11]], [[20]], (30,), [[40, 41]], P=2, R=4, A=3)
  batch = sft.supervised_batch(spliced, jnp.arange(10.0)[None])
  batch = batch.replace(prompt_NP=jnp.array([[10, 11]]), prompt_length_N=jnp.array([2]))
  cut = rows.last_columns(batch, 7)
  np.testing.assert_array_equal(cut.token_NL, [[10, 11, 20, 30, 40, 41, PAD]])
  np.testing.assert_array_equal(cut.position_NL, [[0, 1, 2, 3, 4, 5, -1]])
  np.testing.assert_array_equal(cut.answer_coef_NL, [[3, 4, 5, 6, 7, 8, 9]])
  np.testing.assert_array_equal(cut.prompt_NP, [[10, 11]])
  assert batch.first == 2 and cut.first == 1  # the first token is predicted from nothing
