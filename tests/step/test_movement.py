"""The part of a step that measures how traces moved answers: when it runs, on which devices, and for which methods."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from nrt_jax.step import movement, programs

PROMPTS = toy.prompts(4, seed=2, trace_width=6)


def samples_of(trace_BR=None, length_B=None):
  given = PROMPTS
  return {
    "prompt": given.prompt_BP,
    "prompt_length": given.prompt_length_B,
    "trace": given.trace_BR if trace_BR is None else trace_BR,
    "trace_length": given.trace_length_B if length_B is None else length_B,
    "answer": given.answer_BA,
    "answer_length": given.answer_length_B,
  }


def added(step=1, samples=None, **over):
  """What a step whose number is one more than `step` shows of samples."""
  setup = toy.setup(**{"logging__trace_moved_every": 2, "logging__samples_every_steps": 2, **over})
  samples = samples_of() if samples is None else samples
  with jax.set_mesh(setup.mesh) if setup.mesh else contextlib.nullcontext():
    states = programs.init_states(setup, toy.params(), jax.random.key(0), step)
    add = functools.partial(movement.add, setup)
    if setup.axis_name:
      one = jax.pmap(add, axis_name=setup.axis_name)(
        programs.replicate(states), jax.tree.map(lambda a: np.stack([a] * 8), samples)
      )
      return programs.unreplicate(jax.device_get(one))
    return jax.device_get(jax.jit(add)(states, samples))


@pytest.fixture(scope="module")
def plain():
  return added()


def test_it_runs_where_samples_are_written(plain):
  gained = plain["answer_logp"].sum(1) - plain["answer_logp_empty_trace"].sum(1)
  np.testing.assert_allclose(plain["trace_moved"].sum(1), gained, atol=1e-5)
  assert np.abs(gained).max() > 0.1 and plain["trace_moved"].shape == (4, 3)
  assert set(plain["trace_moved_every"]) == {2}
  idle = added(step=2)
  assert not idle["trace_moved"].any() and plain.keys() == idle.keys()


@pytest.mark.parametrize("over", [
  {"parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2}, {"parallel__data": 8}, {"parallel__kind": "pmap"},
])  # fmt: skip
def test_every_mesh_measures_the_same(plain, over):
  """Four samples also on eight data-parallel devices."""
  toy.assert_same(plain["trace_moved"], added(**over)["trace_moved"])


def test_without_its_key_nothing_is_measured():
  for off in ({"logging__trace_moved_every": 0}, {"logging__samples_every_steps": 0}, {"logging__samples_per_step": 0}):
    assert added(**off).keys() == samples_of().keys()


def test_what_a_method_scored_itself_stays(plain):
  own = np.full((4, 4), -1.5, np.float32)
  found = added(samples={**samples_of(), "answer_logp": own})
  np.testing.assert_array_equal(found["answer_logp"], own)
  np.testing.assert_array_equal(found["trace_moved"], plain["trace_moved"])


def test_the_trace_ends_before_its_stop_token_or_its_marker():
  one, two, eos = toy.MARKER, toy.SECOND_MARKER, toy.EOS
  trace = np.array([[3, 4, 5, 6], [3, 4, one, 9], [3, eos, 9, 9], [one, 9, 9, 9], [3, one, two, 7], [3, 4, 9, 9]])
  length = np.array([4, 3, 2, 1, 4, 0])
  found = [movement.text_length(jnp.array(trace), length, toy.form(marker)).tolist() for marker in ((one,), (one, two))]
  assert found == [[4, 2, 1, 0, 1, 0], [4, 2, 1, 0, 1, 0]]
  assert movement.text_length(jnp.zeros((2, 0), int), np.zeros(2, int), toy.form()).tolist() == [0, 0]
