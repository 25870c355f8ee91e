"""Redrawing groups without signal: which are kept, on any number of devices, and the resulting step."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from graded import Numbers, setup_of, sharp_params

from nrt_jax import sharding
from nrt_jax.algorithms import rlvr
from nrt_jax.algorithms.interface import Attempt
from nrt_jax.data import batches
from nrt_jax.data.prompts import split_completion
from nrt_jax.errors import UserError
from nrt_jax.performance.compilations import Compilations
from nrt_jax.rollout import draws
from nrt_jax.step import host_grading, programs

B, G, COUNT = 16, 3, 4


# -------------------------------------------------------------------------------------------------- which are kept


def varying(share, seed):
  """For each prompt of all draws, whether its group varies."""
  return np.random.default_rng(seed).random(COUNT * B) < share


def attempt_of(varies, prompts):
  """What a method would sample: rows that carry the number of their prompt, and three metrics."""
  example_N = (prompts.example_B - 100).repeat(G)
  sampled = {"row_NR": example_N[:, None] * 10 + jnp.arange(example_N.size)[:, None] % G, "none": None}
  total = example_N.sum()
  sums = {"mean": (total, jnp.float32(example_N.size)), "tokens": total, "length_max": example_N.max()}
  return Attempt(sampled, jnp.asarray(varies)[example_N], sums)


def draw(varies, prompts, axis=None):
  return draws.draw(COUNT, G, axis, prompts, functools.partial(attempt_of, varies))


def on_devices(kind, varies):
  prompts = toy.prompts(COUNT * B)
  if kind == "one":
    return jax.jit(functools.partial(draw, varies))(prompts)
  if kind == "mesh":
    mesh = sharding.make_mesh(sharding.ParallelConfig(fsdp=2))
    with jax.set_mesh(mesh):
      made = jax.jit(functools.partial(draw, varies))(sharding.place_rows(mesh, prompts))
    assert made[1]["row_NR"].sharding.shard_shape((B * G, 1)) == (B * G // 8, 1)  # as evenly spread as one draw
    return made
  cut = jax.tree.map(lambda a: a.reshape(8, a.shape[0] // 8, *a.shape[1:]), prompts)
  prompts, sampled, sums = jax.pmap(functools.partial(draw, varies, axis="d"), axis_name="d")(cut)
  joined = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), (prompts, sampled))
  whole = {name: value.max() if name.endswith("_max") else jax.tree.map(jnp.sum, value) for name, value in sums.items()}
  return *joined, whole


@pytest.mark.parametrize("kind", ["one", "mesh", "pmap"])
@pytest.mark.parametrize("share,seed", [(1.0, 0), (0.6, 1), (0.3, 2), (0.1, 3), (0.0, 4)])
def test_kept_groups_against_lists(kind, share, seed):
  """All vary: one draw. Some do: as many as it takes. Too few: flat ones fill up, and all draws were made."""
  varies = varying(share, seed)
  prompts, sampled, sums = on_devices(kind, varies)
  parts = [[(b, varies[b]) for b in range(number, COUNT * B, COUNT)] for number in range(COUNT)]
  kept, count, varied = reference.draw_groups(parts, B)
  assert count == {1.0: 1, 0.6: 2}.get(share, COUNT)
  np.testing.assert_array_equal(np.asarray(prompts.example_B) - 100, kept)
  np.testing.assert_array_equal(prompts.prompt_BP, toy.prompts(COUNT * B).prompt_BP[kept])
  np.testing.assert_array_equal(np.asarray(sampled["row_NR"])[:, 0], [b * 10 + k for b in kept for k in range(G)])
  drawn = [b for part in parts[:count] for b, _ in part]
  mean = {name: float(value[0] / value[1]) for name, value in sums.items() if isinstance(value, tuple)}
  assert mean["draws/count"] == count and mean["draws/kept_groups"] == sum(varies[kept])
  assert mean["draws/varied_fraction"] == pytest.approx(varied / (count * B))
  assert mean["mean"] == pytest.approx(np.mean(drawn))  # metrics are over all that was drawn
  assert sums["tokens"] == G * sum(drawn) and sums["length_max"] == max(drawn)


def test_one_draw_adds_nothing():
  made = draws.draw(1, G, None, toy.prompts(B), functools.partial(attempt_of, varying(0.5, 0)))
  np.testing.assert_array_equal(made[0].example_B, toy.prompts(B).example_B)
  assert set(made[2]) == {"mean", "tokens", "length_max"}


def test_draws_follow_the_stream():
  """Draw 0 has the stream's next B examples, draw 1 those behind them, on whichever host they are read."""
  ids = [np.array([i], np.int32) for i in range(11)]
  dataset = batches.TokenDataset(list(range(11)), ids, ids, [[]] * 11, (1, 1, 0), 0, {})
  position = batches.Position(0, 7)
  expected = [batches.batch(dataset, batches.advance(dataset, position, 4 * k), 4, 0)[0].example_B for k in range(3)]
  halves = [batches.batch(dataset, position, 12, 0, host, 2, 3)[0].example_B for host in (0, 1)]
  parts = [draws.part(np.concatenate(halves), 3, number) for number in range(3)]
  np.testing.assert_array_equal(parts, expected)
  assert batches.advance(dataset, position, 8) == (1, 4) == batches.batch(dataset, position, 8, 0)[1]


def test_errors():
  for found in (0, -1):
    with pytest.raises(UserError, match=f"algorithm.max_draws: found {found}, allowed: 1"):
      rlvr.DapoConfig(max_draws=found)


# ------------------------------------------------------------------------------------------------- the whole step

MAX_DRAWS, NOBODYS = 3, [19, 19, 19, toy.EOS]


def drawing(verifier, kind, max_draws=MAX_DRAWS):
  """A setup that leaves flat groups out, and draws again."""
  setup = setup_of(verifier, kind)
  over = {"algorithm__filter_flat_groups": True, "algorithm__max_draws": max_draws}
  over |= {"algorithm__verifier": verifier, "parallel__kind": kind, "prompts_per_step": B}
  run = toy.run_config("dr_grpo", sampling__max_trace_length=9, **over)
  return setup._replace(run=run)


@functools.cache
def answerable():
  """MAX_DRAWS * B prompts: of some the reference is what one of their completions answers, of others nobody's."""
  setup = drawing("token_match", "jit", 1)._replace(mesh=None)
  prompts, key = toy.prompts(MAX_DRAWS * B), jax.random.fold_in(jax.random.key(0), 0)
  rollouts = jax.device_get(jax.jit(programs.make_tools(setup).complete)(sharp_params(), prompts, key)[0])
  answer_BA, length_B = toy.own_answers(prompts, rollouts, 4)
  answer_BA[length_B == 1], length_B[length_B == 1] = NOBODYS, 4
  prompts = prompts.replace(answer_BA=answer_BA, answer_length_B=length_B)
  repeated = jax.tree.map(lambda a: a.repeat(4, axis=0), prompts)
  right_N = np.array(rlvr.token_match((toy.MARKER,), repeated, rollouts))
  for n in np.flatnonzero(rollouts.marker_N & ~right_N):  # the texts are equal, but the end token is not there
    own = split_completion(setup.form, rollouts.token_NR[n, : rollouts.length_N[n]])[1]
    if [*own, toy.EOS] == answer_BA[n // 4, : length_B[n // 4]].tolist():
      answer_BA[n // 4], length_B[n // 4] = NOBODYS, 4
      right_N[n // 4 * 4 : n // 4 * 4 + 4] = False
  right = right_N.reshape(-1, 4)
  prompts = prompts.replace(answer_BA=answer_BA, answer_length_B=length_B)
  return prompts, right.any(1) & ~right.all(1)


def one_step(setup, prompts):
  states = programs.init_states(setup, jax.tree.map(jnp.copy, sharp_params()), jax.random.key(0))
  if setup.axis_name:
    states = programs.replicate(states)
    prompts = jax.tree.map(lambda a: a.reshape(8, a.shape[0] // 8, *a.shape[1:]), prompts)
  elif setup.mesh is not None:
    states = jax.device_put(states, programs.state_shardings(setup))
    prompts = sharding.place_rows(setup.mesh, prompts)
  with contextlib.nullcontext() if setup.mesh is None else jax.set_mesh(setup.mesh):
    states, metrics, _ = host_grading.compile_train_step(setup, states, prompts, Numbers())(states, prompts)
  single = programs.unreplicate if setup.axis_name else lambda tree: tree
  return jax.device_get(single(states.policy.params)), jax.device_get(single(metrics))


@pytest.fixture(scope="module")
def on_the_kept():
  """The plain step on the groups that should be kept, and how they were found."""
  prompts, varies = answerable()
  parts = [[(b, varies[b]) for b in range(number, MAX_DRAWS * B, MAX_DRAWS)] for number in range(MAX_DRAWS)]
  kept, count, _ = reference.draw_groups(parts, B)
  chosen = jax.tree.map(lambda a: a[np.array(kept)], prompts)
  plain = one_step(drawing("token_match", "jit", 1)._replace(mesh=None), chosen)
  return *plain, count, int(sum(varies[kept]))


@pytest.mark.parametrize("verifier", ["token_match", "exact_match"])
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_step_is_the_step_on_what_it_keeps(verifier, kind, on_the_kept):
  """In one program and around a grader on the host, where later draws compile nothing; over a mesh and under pmap."""
  expected, metrics, count, varied = on_the_kept
  assert 1 < count and 3 < varied
  with Compilations() as compiled:
    params, found = one_step(drawing(verifier, kind), answerable()[0])
  assert (found["draws/count"], found["draws/kept_groups"]) == (count, varied)
  if verifier == "exact_match" and kind == "jit":  # pmap's programs have no names; they are made of the same functions
    names = ("jit(add)", "jit(part)", "jit(start)")
    assert sorted(name for name in compiled.names if name in names) == [*names]
  for name in ("reward/mean", "advantage/abs_mean", "loss/total", "optimizer/grad_norm"):
    assert found[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-5), name
  moved = toy.largest_difference(expected, jax.device_get(sharp_params()))
  assert moved > 1e-3 and toy.largest_difference(params, expected) < 1e-3 * moved


