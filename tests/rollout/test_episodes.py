import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from worlds import DONE, Echo, replay

from nrt_jax.environments.fixed_length import FixedLength
from nrt_jax.rollout import episodes
from nrt_jax.step import programs

B, G, R = 8, 4, 12
STOPS = (toy.MARKER, toy.EOS)
MESH = (("parallel__data", 2), ("parallel__fsdp", 2), ("parallel__tensor", 2))


@functools.cache
def run(slots=0, mesh=(), whole=False, environment=Echo(), **over):
  """(Rollouts, answer scores, empty-trace scores) of the toy model in an environment."""
  over |= {"sampling__slots": slots, "sampling__max_trace_length": R, "samples_per_prompt": G, **dict(mesh)}
  setup = toy.setup(**over)._replace(environment=environment)
  tools = programs.make_tools(setup)
  function = tools.complete if whole else tools.rollout
  arguments = (toy.params(), toy.prompts(B), jax.random.key(0))
  if setup.axis_name:
    split = jax.tree.map(lambda a: a.reshape(8, B // 8, *a.shape[1:]), arguments[1])
    got = jax.pmap(function, axis_name=setup.axis_name, in_axes=(None, 0, None))(arguments[0], split, arguments[2])
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), jax.device_get(got))
  with contextlib.nullcontext() if setup.mesh is None else jax.set_mesh(setup.mesh):
    return jax.device_get(jax.jit(function)(*arguments))


@pytest.mark.parametrize("whole", [False, True])
def test_rows_are_those_of_a_simulation_in_python(whole):
  """Token by token: what is forced, what is earned, where a row ends, and the verdict."""
  rollouts, stops, ends = run(whole=whole)[0], (toy.EOS,) if whole else STOPS, 0
  for n in range(B * G):
    token_R, length = rollouts.token_NR[n], int(rollouts.length_N[n])
    last = int(toy.prompts(B).prompt_BP[n // G, -1])
    forced_R, earned, verdict, ended = replay(token_R, length, last, stops)
    np.testing.assert_array_equal(rollouts.forced_NR[n], forced_R)
    assert rollouts.ended_N[n] == ended and (ended or length == R)
    np.testing.assert_allclose([rollouts.earned_N[n], rollouts.verdict_N[n]], [earned, verdict], rtol=1e-5)
    assert (rollouts.logp_NR[n][forced_R] == 0).all() and (rollouts.logp_NR[n, :length][~forced_R[:length]] < 0).all()
    ends += ended and token_R[length - 1] == DONE
  assert rollouts.forced_NR.sum() > 20 and ends and 0 < rollouts.ended_N.mean() < 1


def test_before_the_first_turn_rows_are_those_without_an_environment():
  """A row has its random numbers by place: until something is forced, it is the row that it was."""
  plain, got = run(environment=None)[0], run()[0]
  compared = 0
  for n in range(B * G):
    own = int(np.argmax(np.append(got.forced_NR[n], True)))
    own = min(own, int(got.length_N[n]))
    np.testing.assert_array_equal(got.token_NR[n, :own], plain.token_NR[n, :own])
    compared += own
  assert compared > B * G


@pytest.mark.parametrize("how", ["slots", "slots, complete", "mesh", "slots on a mesh", "pmap"])
def test_other_ways_to_sample_give_the_same(how):
  whole = "complete" in how
  expected = run(whole=whole)
  over = {"parallel__kind": "pmap"} if how == "pmap" else {}
  slots = 0 if how in ("mesh", "pmap") else 16 if "mesh" in how else 8
  got = run(slots=slots, mesh=MESH if "mesh" in how else (), whole=whole, **over)
  for name in ("token_NR", "length_N", "ended_N", "marker_N", "forced_NR"):
    np.testing.assert_array_equal(getattr(got[0], name), getattr(expected[0], name))
  assert toy.largest_difference(got[0].logp_NR, expected[0].logp_NR) < 1e-5
  assert (
    toy.largest_difference((got[0].earned_N, got[0].verdict_N), (expected[0].earned_N, expected[0].verdict_N)) < 1e-5
  )
  assert toy.largest_difference(got[1:], expected[1:]) < 1e-5


def test_an_environment_can_end_the_trace_by_the_marker():
  """A fixed number of tokens to think, then the answer's slot: the marker ends the row, whoever wrote it."""
  rollouts = run(environment=FixedLength(2, (toy.MARKER,)))[0]
  own_N = rollouts.length_N == 3
  assert own_N.sum() > B and (rollouts.length_N <= 3).all()
  assert (rollouts.marker_N & rollouts.ended_N)[own_N].all() and rollouts.forced_NR[own_N, 2].all()
  assert rollouts.verdict_N is None and (rollouts.earned_N == 0).all()


def test_rows_that_have_ended_stay_as_they_are():
  prompts = toy.prompts(2)
  before = episodes.begin(Echo(), prompts)
  after, done_N = episodes.follow(
    Echo(), before, jnp.array([14, DONE]), jnp.array([False, False]), jnp.array([False, True])
  )
  assert done_N.tolist() == [False, True] and after.count_N.tolist() == [0, 0]
  np.testing.assert_allclose(after.reward_N, [0, 0.07], rtol=1e-6)
  assert after.state["tokens"].tolist() == [0, 1]
