"""The update rule against hand-written NumPy twins (Loshchilov & Hutter 2019, Algorithm 2; nrt.md section 4)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nrt_jax.errors import UserError
from nrt_jax.optimizers.update_rule import OptimizerConfig, decay_mask, learning_rate, make_optimizer

BASE = OptimizerConfig(
  learning_rate=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.3, max_grad_norm=0.0, warmup_steps=2
)


def tiny_params():
  """The names and stacking of model/decoder.py: a norm's scale and a bias under `layers` have two axes."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {
    "embed": {"embedding": draw(5, 3)},
    "layers": {"attention_norm": {"scale": draw(2, 3)}, "q": {"kernel": draw(2, 3, 4), "bias": draw(2, 4)}},
    "final_norm": {"scale": draw(3)},
  }


def gradients(params, update):
  rng = np.random.default_rng(100 + update)
  return jax.tree.map(lambda p: (10.0 ** rng.integers(-2, 2) * rng.normal(size=p.shape)).astype(np.float32), params)


def twin_adamw(config, params, updates, rates):
  """AdamW in float64 on flat lists, decay on embedding and kernel only."""
  names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
  p = [np.float64(leaf) for leaf in jax.tree.leaves(params)]
  m = [np.zeros_like(x) for x in p]
  v = [np.zeros_like(x) for x in p]
  for t in range(1, updates + 1):
    g = [np.float64(leaf) for leaf in jax.tree.leaves(gradients(params, t))]
    norm = np.sqrt(sum((x**2).sum() for x in g))
    if config.max_grad_norm and norm > config.max_grad_norm:
      g = [x * config.max_grad_norm / norm for x in g]
    for i, name in enumerate(names):
      m[i] = config.beta1 * m[i] + (1 - config.beta1) * g[i]
      v[i] = config.beta2 * v[i] + (1 - config.beta2) * g[i] ** 2
      m_hat = m[i] / (1 - config.beta1**t)
      v_hat = v[i] / (1 - config.beta2**t)
      decay = config.weight_decay if "kernel" in name or "embedding" in name else 0.0
      p[i] = p[i] - rates[t - 1] * (m_hat / (np.sqrt(v_hat) + config.eps) + decay * p[i])
      m[i] = np.float64(m[i].astype(config.moment_dtype))
  return p


def run(config, updates=3, total_steps=10):
  params = tiny_params()
  optimizer = make_optimizer(config, total_steps)
  state = optimizer.init(params)
  step = jax.jit(lambda p, s, g: (lambda u, s: (optax.apply_updates(p, u), s))(*optimizer.update(g, s, p)))
  for t in range(1, updates + 1):
    params, state = step(params, state, gradients(params, t))
  return params


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05, 1e6], ids=["off", "clips", "never_clips"])
def test_adamw_equals_its_twin(max_grad_norm):
  config = dataclasses.replace(BASE, max_grad_norm=max_grad_norm)
  found = jax.tree.leaves(run(config))
  wanted = twin_adamw(config, tiny_params(), 3, rates=[0.05, 0.1, 0.1])
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_a_first_moment_in_bfloat16_equals_its_twin():
  """What is stored is rounded after its use; the second moment stays as it is, and so does the difference it makes."""
  config = dataclasses.replace(BASE, moment_dtype="bfloat16")
  adam = make_optimizer(config, 10).init(tiny_params())[1]
  assert {a.dtype.name for a in jax.tree.leaves(adam.mu)} == {"bfloat16"}
  assert {a.dtype.name for a in jax.tree.leaves(adam.nu)} == {"float32"}
  found, full = jax.tree.leaves(run(config)), jax.tree.leaves(run(BASE))
  wanted = twin_adamw(config, tiny_params(), 3, rates=[0.05, 0.1, 0.1])
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
  assert max(np.abs(a - b).max() for a, b in zip(found, full, strict=True)) > 1e-5


def test_clipping_scales_to_the_global_norm():
  """With plain gradient descent the update is the clipped gradient itself."""
  config = OptimizerConfig(name="sgd", learning_rate=1.0, beta1=0.0, weight_decay=0.0, max_grad_norm=2.0)
  optimizer = make_optimizer(config, 1)
  params = {"a": {"kernel": jnp.zeros(2)}, "b": {"kernel": jnp.zeros(1)}}
  grads = {"a": {"kernel": jnp.array([3.0, 0.0])}, "b": {"kernel": jnp.array([4.0])}}  # global norm 5
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  np.testing.assert_allclose(updates["a"]["kernel"], [-1.2, 0.0], rtol=1e-6)
  np.testing.assert_allclose(updates["b"]["kernel"], [-1.6], rtol=1e-6)


def test_sgd_is_heavy_ball_with_decoupled_decay():
  """p = 1, g = 1 twice, lr 0.1, momentum 0.5, decay 0.1: 1 - 0.1(1 + 0.1) = 0.89; 0.89 - 0.1(1.5 + 0.089) = 0.7311."""
  config = OptimizerConfig(name="sgd", learning_rate=0.1, beta1=0.5, weight_decay=0.1, max_grad_norm=0.0)
  optimizer = make_optimizer(config, 2)
  params = {"kernel": jnp.ones(1)}
  state = optimizer.init(params)
  for wanted in (0.89, 0.7311):
    updates, state = optimizer.update({"kernel": jnp.ones(1)}, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["kernel"], [wanted], rtol=1e-6)


def test_norms_and_biases_are_not_decayed():
  """By name: going by ndim would decay the stacked scale and bias, which have two axes."""
  mask = decay_mask(tiny_params())
  assert mask == {
    "embed": {"embedding": True},
    "layers": {"attention_norm": {"scale": False}, "q": {"kernel": True, "bias": False}},
    "final_norm": {"scale": False},
  }


def test_decay_shrinks_weights_without_gradient():
  config = dataclasses.replace(BASE, warmup_steps=0)
  optimizer = make_optimizer(config, 5)
  params = tiny_params()
  zeros = jax.tree.map(np.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates["layers"]["q"]["kernel"], -0.03 * params["layers"]["q"]["kernel"], rtol=1e-5)
  assert not np.any(updates["layers"]["q"]["bias"]) and not np.any(updates["final_norm"]["scale"])


def twin_rate(config, total_steps, update):
  """The schedule written out: linear rise over W updates, then the decay over the rest."""
  total = total_steps * config.minibatches
  warmup = (config.warmup_steps or round(config.warmup_ratio * total_steps)) * config.minibatches
  if update < warmup:
    return config.learning_rate * (update + 1) / warmup
  share = (update - warmup) / (total - warmup)
  fall = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + np.cos(np.pi * share))}[config.schedule]
  end = 1.0 if config.schedule == "constant" else config.end_ratio
  return config.learning_rate * (end + (1 - end) * fall)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize(
  "warmup", [{}, {"warmup_steps": 1}, {"warmup_steps": 3}, {"warmup_ratio": 0.3}], ids=["none", "one", "steps", "ratio"]
)
@pytest.mark.parametrize("minibatches", [1, 4])
def test_schedules_equal_their_twin(schedule, warmup, minibatches):
  config = OptimizerConfig(
    learning_rate=2e-3, schedule=schedule, end_ratio=0.1, minibatches=minibatches, **warmup
  )
  rate = learning_rate(config, 10)
  updates = np.arange(10 * minibatches)
  found = [float(rate(u)) for u in updates]
  np.testing.assert_allclose(found, [twin_rate(config, 10, u) for u in updates], rtol=1e-5)


def test_schedule_golden_values():
  """Ten steps, two of warm-up, cosine to a tenth: peak 1, halfway (update 6) 0.55, the end would be 0.1."""
  rate = learning_rate(OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_ratio=0.2, end_ratio=0.1), 10)
  np.testing.assert_allclose([rate(0), rate(1), rate(2), rate(6), rate(10)], [0.5, 1.0, 1.0, 0.55, 0.1], rtol=1e-6)


def test_a_run_shorter_than_its_warmup_still_warms_up():
  rate = learning_rate(OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_steps=100), 4)
  np.testing.assert_allclose([rate(u) for u in range(4)], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)


def test_schedule_traces_under_jit():
  config = dataclasses.replace(BASE, schedule="linear")
  rate = learning_rate(config, 10)
  np.testing.assert_allclose(jax.jit(rate)(jnp.int32(4)), twin_rate(config, 10, 4), rtol=1e-5)


@pytest.mark.parametrize(
  "key, value, says",
  [
    ("name", "adam", "optimizer.name: found 'adam', allowed: adamw, sgd (did you mean 'adamw'?)"),
    ("schedule", "exp", "optimizer.schedule: found 'exp', allowed: constant, cosine, linear"),
    ("learning_rate", -1e-3, "optimizer.learning_rate: found -0.001, allowed: 0 to 3.402823e+38"),
    ("learning_rate", float("nan"), "optimizer.learning_rate: found nan, allowed: 0 to 3.402823e+38"),
    ("eps", 0.0, "optimizer.eps: found 0.0, allowed: 1.2e-38 or more, or a moment of 0 gives 0/0"),
    ("max_skipped_steps", 0, "optimizer.max_skipped_steps: found 0, allowed: 1 or more"),
    ("warmup_ratio", 1.5, "optimizer.warmup_ratio: found 1.5, allowed: 0 to 1"),
    ("beta2", 1.0, "optimizer.beta2: found 1.0, allowed: 0 to below 1"),
    ("minibatches", 0, "optimizer.minibatches: found 0, allowed: 1 or more"),
  ],
)
def test_wrong_values_name_key_value_and_choices(key, value, says):
  with pytest.raises(UserError) as error:
    OptimizerConfig(**{key: value})
  assert str(error.value) == says


def test_two_warmups_at_once_are_an_error():
  with pytest.raises(UserError, match="optimizer.warmup_ratio: found 0.1, allowed: 0 where warmup_steps is set"):
    OptimizerConfig(warmup_steps=5, warmup_ratio=0.1)
  assert hash(OptimizerConfig()) == hash(OptimizerConfig())
