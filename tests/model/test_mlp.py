"""Router and experts, against a NumPy twin that takes one token after the other; the same on meshes and in parts."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from nrt_jax import sharding
from nrt_jax.model import mlp
from nrt_jax.model.decoder import forward
from nrt_jax.step import programs

EXPERTS = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=8, norm_topk_prob=True)
MODEL = dataclasses.replace(toy.MODEL, **EXPERTS)
E, D, F = 5, 16, 8
PRODUCTS = ("sorted", "all")


def model(product, **over):
  return dataclasses.replace(MODEL, expert_product=product, **over)


def draw(rows=4, columns=6):
  """(weights, x) in float32, of which every part matters."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(0, shape[-2] ** -0.5, shape).astype(np.float32)

  shapes = {"router": (D, E), "gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
  weights = {name: {"kernel": normal(*shape) * (3 if name == "router" else 1)} for name, shape in shapes.items()}
  return weights, rng.normal(size=(rows, columns, D)).astype(np.float32)


def twin(weights, x, chosen=2, normalised=True):
  """The NumPy twin on every token, float64."""
  kernels = {name: part["kernel"].astype(np.float64) for name, part in weights.items()}
  options = {**kernels, "chosen": chosen, "normalised": normalised}
  return np.stack([reference.experts(t, **options) for t in x.reshape(-1, D).astype(np.float64)]).reshape(x.shape)


@pytest.mark.parametrize("product", PRODUCTS)
def test_experts_by_hand(product):
  weights, x = draw()
  for chosen, normalised in ((2, True), (3, False), (5, True), (1, False)):
    config = model(product, num_experts_per_tok=chosen, norm_topk_prob=normalised)
    got = jax.jit(functools.partial(mlp.experts, config))(weights, x)
    np.testing.assert_allclose(got, twin(weights, x, chosen, normalised), atol=5e-6)


@pytest.mark.parametrize("product", PRODUCTS)
def test_gradients_by_differences_of_the_twin(product):
  """Along a random direction in each parameter and in the tokens. No choice of an expert changes within the step."""
  weights, x = draw(rows=2, columns=3)
  loss = jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.sin(3 * mlp.experts(model(product), w, x))), argnums=(0, 1)))
  grads = loss(weights, x)
  rng = np.random.default_rng(1)
  for name in (*weights, "x"):
    along = rng.normal(size=(x if name == "x" else weights[name]["kernel"]).shape)

    def moved(step, name=name, along=along):
      if name == "x":
        return np.sin(3 * twin(weights, x.astype(np.float64) + step[0] * along)).sum()
      other = {**weights, name: {"kernel": weights[name]["kernel"].astype(np.float64) + step[0] * along}}
      return np.sin(3 * twin(other, x)).sum()

    expected = reference.central_difference(moved, np.zeros(1))[0]
    got = np.sum(np.asarray(grads[1] if name == "x" else grads[0][name]["kernel"], np.float64) * along)
    assert abs(expected) > 0.1 and got == pytest.approx(expected, rel=2e-4), name


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_token_depends_on_itself_alone(product):
  """Other tokens, such as pads, may choose what they like: all the same expert, or none of its experts."""
  weights, x = draw()
  run = jax.jit(functools.partial(mlp.experts, model(product)))
  whole = run(weights, x)
  crowd = np.broadcast_to(100 * x[:1, :1], x.shape).copy()
  crowd[2, 3] = x[2, 3]
  np.testing.assert_allclose(run(weights, crowd)[2, 3], whole[2, 3], atol=2e-6)


def test_products_of_groups_by_hand():
  """The kernel that TPUs have, interpreted: ragged rows that fill no tiles, and a group of none."""
  rng, counts = np.random.default_rng(2), (70, 0, 201)
  x, g = (rng.normal(size=(271, size)).astype(np.float32) for size in (128, 200))
  found = jax.jit(functools.partial(mlp.group_products, interpret=True))(x, g, jnp.array(counts))
  ends = np.cumsum(counts)
  expected = np.stack([x[end - count : end].T @ g[end - count : end] for count, end in zip(counts, ends)])
  np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("width,kernels", [(128, 1), (8, 0)])
def test_wide_gradients_of_kernels_are_a_kernel_on_tpus(width, kernels):
  """Narrow ones, such as adapters', are JAX's own, and the same numbers as those of its product."""
  rng = np.random.default_rng(3)
  x, w = (rng.normal(size=shape).astype(np.float32) for shape in ((9, 128), (3, 128, width)))
  count = jnp.array([4, 0, 5])

  def loss(product, x, w):
    return jnp.sum(jnp.sin(product(x, w, count)))

  own, theirs = (jax.grad(functools.partial(loss, p), argnums=(0, 1)) for p in (mlp.ragged_on_tpus, jax.lax.ragged_dot))
  assert operations(jax.make_jaxpr(own)(x, w).jaxpr)["pallas_call"] == kernels
  if not kernels:
    toy.assert_same(theirs(x, w), own(x, w))


def test_equal_experts_are_one():
  """Weights that sum to 1 over experts that are all the same: one dense MLP."""
  weights, x = draw()
  same = {name: {"kernel": np.repeat(part["kernel"][:1], E, 0)} for name, part in weights.items() if name != "router"}
  same["router"] = weights["router"]
  gate, up, down = (same[name]["kernel"][0] for name in ("gate", "up", "down"))
  expected = (jax.nn.silu(x @ gate) * (x @ up)) @ down
  np.testing.assert_allclose(mlp.experts(model("sorted"), same, x), expected, atol=5e-6)


def test_scores_are_summed_in_float32():
  """Two experts whose scores differ by less than bfloat16 can tell: 256 and 256.5."""
  x_MD, router_DE = jnp.full((1, 2), 16, jnp.bfloat16), jnp.array([[16, 16], [0, 2**-5]], jnp.bfloat16)
  weight_Mk, expert_Mk = mlp.route(dataclasses.replace(MODEL, num_experts=2), x_MD, router_DE)
  np.testing.assert_array_equal(expert_Mk, [[1, 0]])
  assert weight_Mk.dtype == jnp.float32
  np.testing.assert_allclose(weight_Mk[0, 0], 1 / (1 + np.exp(-0.5)), rtol=1e-5)


def test_remat_saves_what_gate_and_up_give():
  """Products of sorted tokens with experts: 3 forward, 6 back, and with `full` two again."""
  token = jnp.zeros((2, 6), jnp.int32)
  position = jnp.arange(6)[None] + token
  for remat, expected in (("none", 9), ("dots", 9), ("full", 11)):
    config = model("sorted", remat=remat, layer_loop="scan")

    def loss(params, config=config):
      return jnp.sum(forward(params, config, token, position)[0])

    jaxpr = jax.make_jaxpr(jax.grad(loss))(toy.params(config)).jaxpr
    assert operations(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])["ragged_dot_general"] == expected, remat


def operations(jaxpr) -> collections.Counter:
  found = collections.Counter(equation.primitive.name for equation in jaxpr.eqns)
  for equation in jaxpr.eqns:
    for inner in jaxprs_in_params(equation.params):
      found += operations(inner)
  return found


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_mesh_changes_nothing(product):
  """Rows over data and fsdp, widths of experts over tensor: outputs and gradients; inside of on_own_rows; by pmap."""
  weights, x = draw(rows=8)
  axes = {"router": ("embed", "expert"), "down": ("expert", "mlp", "embed")}

  def loss(weights, x):
    out = mlp.experts(model(product), weights, x)
    return jnp.sum(jnp.sin(out)), out

  expected = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(weights, x)
  mesh = sharding.make_mesh(sharding.ParallelConfig(data=2, fsdp=2, tensor=2))
  cuts = sharding.shardings_for(
    mesh, weights, {name: {"kernel": axes.get(name, ("expert", "embed", "mlp"))} for name in weights}
  )
  assert cuts["up"]["kernel"].shard_shape((E, D, F)) == (E, D // 2, F // 2)
  placed = jax.device_put(weights, cuts), jax.device_put(x, sharding.rows_sharding(mesh))
  with jax.set_mesh(mesh):
    got = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*placed)
    own = jax.jit(lambda w, x: sharding.on_own_rows(functools.partial(mlp.experts, model(product)), w, x))(*placed)
  toy.assert_same(expected, got)
  mapped = jax.pmap(functools.partial(mlp.experts, model(product)), in_axes=(None, 0))(weights, x[:, None])
  for out in (own, mapped[:, 0]):
    np.testing.assert_allclose(out, expected[1], atol=5e-6)


def test_a_step_of_nrt_on_a_mesh():
  """The sampler's fused copy and the update agree on each token's probability, and every expert learns."""
  mesh = dict(parallel__data=2, parallel__fsdp=2, parallel__tensor=2, parallel__micro_batches=2)
  setup = toy.setup(model=model("sorted", layer_loop="scan", remat="dots"), sampling__cache_stages=1, **mesh)
  start = jax.device_get(toy.params(MODEL))
  states = programs.init_states(setup, jax.tree.map(jnp.asarray, start), jax.random.key(0))
  with jax.set_mesh(setup.mesh):
    states = jax.device_put(states, programs.state_shardings(setup))
    after, metrics, _ = programs.build_train_step(setup)(states, toy.prompts(8))
  assert float(metrics["policy/ratio_max"]) == pytest.approx(1, abs=1e-4)
  assert float(metrics["reward/std"]) > 0 and np.isfinite(float(metrics["loss/total"]))
  for name in ("router", "gate", "up", "down"):
    moved = np.abs(after.policy.params["layers"][name]["kernel"] - start["layers"][name]["kernel"])
    assert moved.max(-1).max(-1).min() > 1e-4, name
