import numpy as np

from nrt_jax.harness import batching


def test_widths_are_few_and_waste_a_third_at_most():
  widths = [batching.width(n, 8192) for n in range(1, 8193)]
  assert len(set(widths)) == 19 and widths[-1] == 8192
  assert all(n <= width <= max(16, 1.5 * n) for n, width in enumerate(widths, 1))
  assert [batching.width(n, 9, 1) for n in range(1, 10)] == [1, 2, 3, 4, 6, 6, 8, 8, 9]


def test_rows_that_differ_in_their_last_token_alone_are_one():
  pairs = [([1, 2], [3, 4]), ([1, 2], [3, 5]), ([1, 2, 3], [4]), ([1, 2], [3, 5]), ([1], [2])]
  first, second = batching.gather(pairs, 10)
  assert first.input_ids == (1, 2, 3) and first.scored == 2 and first.final_ids == [4, 5]
  assert first.members == [(0, (3, 4)), (1, (3, 5)), (2, (4,)), (3, (3, 5))]
  assert second.input_ids == (1,) and second.members == [(4, (2,))]


def test_contexts_lose_their_oldest_tokens():
  (row,) = batching.gather([(range(10), [10, 11])], 4)
  assert row.input_ids == (7, 8, 9, 10) and row.final_ids == [11]


def test_batches_hold_rows_of_one_width_and_the_longest_come_first():
  lengths = [3, 40, 17, 16, 50, 20]
  found = batching.batches(range(6), lengths.__getitem__, 2, 50)
  found = [(width, [lengths[i] for i in some]) for width, some in found]
  assert found == [(50, [50]), (48, [40]), (24, [20, 17]), (16, [16, 3])]


def test_rows_are_packed_to_the_right():
  rows = batching.gather([([1], [2, 3]), ([1], [2, 4]), ([1], [2, 5]), ([6, 7], [8])], 10)
  token_NL, length_N, final_NK, scored = batching.pack_rows(rows, 4, 3, pad_id=9)
  np.testing.assert_array_equal(token_NL, [[9, 9, 1, 2], [9, 9, 6, 7], [9, 9, 6, 7]])
  np.testing.assert_array_equal(length_N, [2, 2, 2])
  np.testing.assert_array_equal(final_NK, [[3, 4, 5], [8, 0, 0], [8, 0, 0]])
  assert scored == 2
