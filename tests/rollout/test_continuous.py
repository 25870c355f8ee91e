import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from compiled import while_body_copies

from experiments.benchmarks.slots import count_in_slots, count_plain
from nrt_jax.errors import UserError
from nrt_jax.rollout import continuous, sampler
from nrt_jax.rollout.sampler import SamplingConfig, choose
from nrt_jax.step import programs, sizes

B, G, R = 8, 4, 8
N = B * G
ATOL = 1e-5  # sums over a cache in another order


def lowered(slots, whole=False, stages=0, mesh=(), **over):
  """The tool `rollout` or `complete` as one program: (its setup, the jitted function)."""
  over = {"sampling__slots": slots, "sampling__max_trace_length": R, "sampling__cache_stages": stages, **over}
  setup = toy.setup(samples_per_prompt=G, **over, **dict(mesh))
  tools = programs.make_tools(setup)
  return setup, jax.jit(tools.complete if whole else tools.rollout)


@functools.cache
def run(slots, whole=False, stages=0, mesh=()):
  setup, function = lowered(slots, whole, stages, mesh)
  with contextlib.nullcontext() if setup.mesh is None else jax.set_mesh(setup.mesh):
    return jax.device_get(function(toy.params(), toy.prompts(B), jax.random.key(0)))


def check_alike(got, plain):
  for name in ("token_NR", "length_N", "ended_N", "marker_N"):
    np.testing.assert_array_equal(getattr(got[0], name), getattr(plain[0], name))
  assert toy.largest_difference(got[0].logp_NR, plain[0].logp_NR) < ATOL
  assert toy.largest_difference(got[1:], plain[1:]) < ATOL


@pytest.mark.parametrize("slots,stages", [(8, 0), (N, 2)])  # rows queue, and the ring goes round; no row queues
def test_rows_are_those_of_plain_sampling(slots, stages):
  """Tokens to the last bit; log-probabilities and answers' scores to rounding."""
  plain = run(0)
  lengths = plain[0].length_N
  assert lengths.min() < R / 2 and (lengths == R).any() and plain[0].marker_N.any()
  assert lengths.sum() > 2 * 8 * (R + 1)  # eight slots go round more than twice
  check_alike(run(slots, stages=stages), plain)


def test_one_sample_for_each_prompt():
  """Every row has a prompt of its own, the last one too."""
  made = []
  for slots in (2, 0):
    setup = toy.setup(samples_per_prompt=1, algorithm__center="none", algorithm__scale="none", sampling__slots=slots)
    rollout = jax.jit(programs.make_tools(setup).rollout)
    made.append(jax.device_get(rollout(toy.params(), toy.prompts(3), jax.random.key(0))))
  check_alike(*made)


def test_whole_completions_are_scored_behind_their_marker():
  check_alike(run(8, whole=True), run(0, whole=True))


@pytest.mark.parametrize(
  "mesh",
  [
    (("parallel__data", 4), ("parallel__fsdp", 2)),  # each device goes its own way
    (("parallel__data", 2), ("parallel__fsdp", 2), ("parallel__tensor", 2)),  # all take the same turns
  ],
)
def test_over_a_mesh(mesh):
  check_alike(run(16, mesh=mesh), run(0))


def test_under_pmap():
  """One prompt per device, two of its four rows at a time."""
  setup, _ = lowered(16, parallel__kind="pmap")
  rollout = jax.pmap(programs.make_tools(setup).rollout, axis_name=setup.axis_name, in_axes=(None, 0, None))
  prompts = jax.tree.map(lambda a: a.reshape(8, B // 8, *a.shape[1:]), toy.prompts(B))
  got = jax.device_get(rollout(toy.params(), prompts, jax.random.key(0)))
  check_alike(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), got), run(0))


def test_turns_are_those_counted_by_hand(monkeypatch):
  """Which shapes the token loop takes, and for how many tokens: the program against the arithmetic of its benchmark."""
  decoded = []

  def watched(logits_NV, uniform_N, config):
    jax.debug.callback(lambda u: decoded.append(u.size), uniform_N)
    return choose(logits_NV, uniform_N, config)

  monkeypatch.setattr(sampler, "choose", watched)
  _, function = lowered(16, sampling__temperature=1.0 + 1e-6)  # its own entry in the cache of programs
  got = jax.block_until_ready(function(toy.params(), toy.prompts(B), jax.random.key(0)))
  jax.effects_barrier()
  counted = count_in_slots(np.asarray(got[0].length_N), 16, R, 1)
  assert (len(decoded), sum(decoded)) == (counted["steps"], counted["rows"])
  assert set(decoded) == {8, 16} and sum(decoded) < N * R  # what plain sampling decodes


@functools.cache
def planned():
  """Sampling in 16 slots, two replaced at once, of which a plan says after how many tokens each of 64 rows ends.

  plan_N -> Rollouts. What is drawn names its row and place: token (row + place) % 19, log-probability -row - place / 10.
  """
  rows, replaced = 64, pytest.MonkeyPatch()
  setup, _ = lowered(16)
  tools = programs.make_tools(setup)

  def rollout(plan_N):
    def choose(_, place, __):
      row, at = place // 100, place % 100
      token = jnp.where(at + 1 == plan_N[row], toy.MARKER, (row + at) % 19).astype(jnp.int32)
      return token, -row - at / 10

    replaced.setattr(sampler, "row_keys", lambda *_: jnp.arange(rows))
    replaced.setattr(sampler, "uniforms", lambda keys, at: keys * 100 + at)
    replaced.setattr(sampler, "choose", choose)
    try:
      prompts = jax.tree.map(jnp.asarray, toy.prompts(rows // G))
      return tools.rollout(toy.params(), prompts, jax.random.key(0))[0]
    finally:
      replaced.undo()

  return jax.jit(rollout)


@pytest.mark.parametrize("seed", [0, 1, 7, 10, 12, 18, 19, 21])
def test_a_waiting_row_is_scored_before_the_ring_comes_round(seed):
  """Rows of one or two tokens and rows at the limit. With these seeds a row waits alone until its columns are next.

  16 slots, two rows at a time: counted step by step, a row has then to be scored before a second one has ended.
  """
  plan_N = np.random.default_rng(seed).choice([1, 2, R], 64, p=[0.1, 0.1, 0.8])
  plan_N[plan_N == R] += np.arange((plan_N == R).sum()) % 2  # R + 1: cut at the limit
  rollouts = jax.device_get(planned()(jnp.asarray(plan_N)))
  length_N, row, at = np.minimum(plan_N, R), np.arange(64)[:, None], np.arange(R)[None]
  np.testing.assert_array_equal(rollouts.length_N, length_N)
  np.testing.assert_array_equal(rollouts.ended_N, plan_N <= R)
  expected = np.where(at + 1 == plan_N[:, None], toy.MARKER, (row + at) % 19)
  valid = at < length_N[:, None]
  np.testing.assert_array_equal(rollouts.token_NR, np.where(valid, expected, toy.PAD))
  np.testing.assert_allclose(rollouts.logp_NR, np.where(valid, -row - at / 10, 0), rtol=1e-6)


def test_the_count_by_itself():
  """Two slots and rows of 1, 3, 1 and 1 tokens, one at a time: the slots are full until the queue is empty."""
  assert count_in_slots(np.array([1, 3, 1, 1]), 2, 4, 1) == {"steps": 3, "rows": 6, "columns": 30, "scored": 4}
  assert count_plain(np.array([1, 3, 1, 1]), 4, 2) == {"steps": 3, "rows": 12, "columns": 4 * (2 + 2 + 4), "scored": 4}
  length_N = np.full(64, 32)
  assert count_in_slots(length_N, 64, 32, 4)["rows"] == count_plain(length_N, 32, 4)["rows"] == 64 * 32


def test_no_cache_of_all_rows():
  """In the optimised program no array has a cache's axes and N rows, and no turn copies the ring."""
  K, h = toy.MODEL.num_key_value_heads, toy.MODEL.head_dim
  rows = {}
  for slots in (0, 8):
    _, function = lowered(slots)
    text = function.lower(toy.params(), toy.prompts(B), jax.random.key(0)).compile().as_text()
    rows[slots] = {int(found) for found in re.findall(rf"f32\[(\d+),{K},\d+,{h}\]", text)}
  assert N in rows[0] and 8 in rows[8] and N not in rows[8]
  assert f"f32[8,{K},{R + 1},{h}]" in text and f"8,{K},{R + 1},{h}" not in while_body_copies(text, 1)


def test_shapes():
  table = continuous.shapes(64, 128, 4)
  assert table[0] == (8, 128) and table[-1] == (64, 128) and (64, 32) in table and (32, 64) in table
  assert continuous.shapes(6, 10, 1) == [(6, 10)]
  for slots, columns, stages in [(64, 128, 4), (17, 9, 3), (512, 100, 1)]:
    table = continuous.shapes(slots, columns, stages)
    assert table == sorted(set(table)) and max(table) == (slots, columns)
    assert all((rows, columns) in table for rows, _ in table)


def test_scanned_caches_are_taken_and_filled_by_slot():
  """Arrays whose layers come first, and those of one layer: slots are the fourth axis from behind."""
  scanned, single = np.arange(2 * 3 * 1 * 2 * 2.0).reshape(2, 3, 1, 2, 2), np.arange(3.0)
  tree, index = {"a": jnp.asarray(scanned), "b": jnp.asarray(single)}, jnp.array([2, 0])
  taken = continuous.take_slots(tree, index)
  np.testing.assert_array_equal(taken["a"], scanned[:, [2, 0]])
  np.testing.assert_array_equal(taken["b"], [2.0, 0.0])
  filled = continuous.fill_slots(tree, jnp.array([1, 3]), taken)  # the second is behind the last slot
  scanned[:, 1], single[1] = scanned[:, 2], 2.0
  np.testing.assert_array_equal(filled["a"], scanned)
  np.testing.assert_array_equal(filled["b"], single)


def test_errors():
  with pytest.raises(UserError, match="sampling.slots: found -1"):
    SamplingConfig(slots=-1)
  with pytest.raises(UserError, match="sampling.slots: found 8 with wave_prompts 2"):
    SamplingConfig(slots=8, wave_prompts=2)
  with pytest.raises(UserError, match="sampling.slots: found 12, allowed: a multiple of 8"):
    sizes.check(toy.setup(sampling__slots=12, parallel__data=8))
