"""What ratios compare with: the policy that a step's updates start from, as they compute it, or as the sampler did."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from nrt_jax.errors import UserError
from nrt_jax.objectives import losses
from nrt_jax.step import programs

B, G, R = 8, 4, 24
# Layers in a scan, as on accelerators: unrolled ones on a CPU round almost alike in sampling and update.
HALF = dataclasses.replace(
  toy.MODEL, hidden_size=128, intermediate_size=256, num_hidden_layers=4, head_dim=32, initializer_range=0.15,
  compute_dtype="bfloat16", layer_loop="scan",
)  # fmt: skip
MODELS = {"bfloat16": HALF, "float32": toy.MODEL}
NO_KL = {"kl_coef": 0.0, "reference": "none"}
CASES = {
  "nrt": ("nrt", {"baseline": "none"}),  # cispo
  "verifree": ("verifree", {}),  # PPO's clip, on the answer too
  "grpo": ("grpo", {"verifier": "host", **NO_KL}),
  "gspo": ("gspo", {"verifier": "host"}),
  "gspo on traces": ("nrt", {"trace_loss": "sequence_clip", "clip_low": 0.9997, "clip_high": 1.0004}),
  "nft": ("nft", {"verifier": "host"}),
  "nft by sequence": ("nft", {"verifier": "host", "ratio": "sequence", "normalisation": "sequence"}),
  "nft on traces": ("nft", {"verifier": "likelihood"}),
}


def first_update(case, dtype="bfloat16", **more):
  """The gradient, and the metrics of the loss as plain numbers."""
  return _first_update(case, dtype, **more)[:2]


@functools.cache
def _first_update(case, dtype="bfloat16", **more):
  """A compiled first update on the policy itself; and, if the case is asked for as it is, REINFORCE's gradient."""
  (name, over), model = CASES[case], MODELS[dtype]
  settings = {f"algorithm__{key}": value for key, value in {**over, **more}.items()}
  setup = toy.setup(name, model, samples_per_prompt=G, sampling__max_trace_length=R, **settings)
  label_N = jnp.asarray(np.random.default_rng(0).integers(0, 2, B * G), jnp.float32)
  tools, config = programs.make_tools(setup)._replace(host_label_N=label_N), setup.run.algorithm
  states = programs.init_states(setup, toy.params(model), jax.random.key(3))

  @jax.jit
  def update():
    batch = programs.collect(setup, tools, states, toy.prompts(B)).batch

    def loss(params, config):
      sums = setup.algorithm.loss(tools, config, params, batch)
      return sums.total, sums.metrics

    found = jax.grad(loss, has_aux=True)(states.policy.params, config)
    if more or name == "nft":
      return *found, None
    return *found, jax.grad(loss, has_aux=True)(states.policy.params, plain_of(config))[0]

  gradient, metrics, plain = update()
  return gradient, {k: float(v[0] / v[1] if isinstance(v, tuple) else v) for k, v in metrics.items()}, plain


def plain_of(config):
  return dataclasses.replace(config, trace_loss="reinforce")


def cosine(left, right):
  return optax.tree.vdot(left, right) / optax.tree.norm(left) / optax.tree.norm(right)


@pytest.mark.parametrize("case", CASES)
def test_the_first_update_on_the_policy_has_ratio_one_in_bfloat16(case):
  """Nothing is clipped and nothing floored, also where a trust region is narrow; and the gradient is REINFORCE's."""
  gradient, metrics, plain = _first_update(case)
  assert metrics["policy/ratio_max"] == 1
  assert metrics.get("policy/clip_fraction", 0) == 0 and metrics.get("policy/floor_fraction", 0) == 0
  assert 1e-3 < metrics["policy/mismatch"] < 0.1
  assert (plain is None) == ("nft" in case)
  if plain is not None:
    assert cosine(gradient, plain) > 0.9999
    np.testing.assert_allclose(optax.tree.norm(gradient), optax.tree.norm(plain), rtol=1e-2)


def test_the_samplers_rounding_is_wider_than_a_narrow_trust_region():
  """What `ratio_base` "sampler" costs GSPO, and what `policy/mismatch` shows of it."""
  (gradient, metrics), (plain, exact) = first_update("gspo", ratio_base="sampler"), first_update("gspo")
  assert metrics["policy/clip_fraction"] > 0.1 and cosine(gradient, plain) < 0.99
  assert metrics["policy/mismatch"] == pytest.approx(exact["policy/mismatch"], rel=1e-3)
  _, single = first_update("gspo", "float32", ratio_base="sampler")
  assert single["policy/mismatch"] < 1e-5 and single["policy/clip_fraction"] == 0


@pytest.mark.parametrize("trace_loss", losses.TRACE_LOSSES)
def test_only_a_trust_region_reports_clipping(trace_loss):
  _, metrics = first_update("nrt", "float32", trace_loss=trace_loss)
  assert ("policy/clip_fraction" in metrics) == (trace_loss in ("ppo_clip", "cispo", "sequence_clip"))
  assert {"policy/ratio_max", "policy/kl", "policy/mismatch"} <= set(metrics)


def several(name="dr_grpo", minibatches=4, **over):
  over = {"algorithm__verifier": "host", "optimizer__minibatches": minibatches, **over}
  setup = toy.setup(name, samples_per_prompt=G, sampling__max_trace_length=R, **over)
  tools = programs.make_tools(setup)._replace(host_label_N=jnp.arange(B * G) % 3 / 2.0)
  states = programs.init_states(setup, toy.params(), jax.random.key(3))
  return setup, tools, states


@pytest.mark.parametrize("name", ["dr_grpo", "nft", "dpo"])
def test_later_minibatches_compare_with_a_pass_over_their_rows(name):
  """Rows of prompts b with b % 4 > 0 have the starting policy's log-probabilities; the first minibatch has its own."""
  setup, tools, states = several(name, parallel__micro_batches=2)
  batch = jax.jit(lambda: programs.collect(setup, tools, states, toy.prompts(B)).batch)()
  whole_NL = jax.jit(tools.log_probs)(states.policy.params, batch)[0]
  first_N = np.arange(len(batch.token_NL)) // setup.rows_per_prompt % 4 == 0
  np.testing.assert_array_equal(batch.at_start_N, first_N)
  np.testing.assert_allclose(batch.start_logp_NL[~first_N], whole_NL[~first_N], atol=1e-5)
  assert not batch.start_logp_NL[first_N].any() and np.abs(whole_NL[first_N]).max() > 1


def test_ratios_of_later_minibatches_by_hand():
  """PPO's ratio is exp(log π - log π_start) where the row has been scored, and 1 in the first minibatch."""
  setup, tools, states = several()
  batch = jax.jit(lambda: programs.collect(setup, tools, states, toy.prompts(B)).batch)()
  mask_NL, coef_NL = np.asarray(batch.trace_mask_NL), np.asarray(batch.trace_coef_NL)
  moved_NL = jnp.where(mask_NL, batch.start_logp_NL + 0.1, 0.0)

  def loss(logp_NL):
    given = tools._replace(log_probs=lambda *_, **__: (logp_NL, -logp_NL, logp_NL))
    sums = setup.algorithm.loss(given, setup.run.algorithm, {}, batch)
    return sums.total, sums.metrics

  slope_NL, metrics = jax.grad(loss, has_aux=True)(moved_NL)
  ratio_N1 = np.where(batch.at_start_N, 1, np.exp(0.1))[:, None]
  np.testing.assert_allclose(slope_NL, -coef_NL * ratio_N1 * mask_NL, rtol=1e-4, atol=1e-7)
  assert np.abs(coef_NL).max() > 0
  assert float(metrics["policy/ratio_max"]) == pytest.approx(np.exp(0.1), rel=1e-4)


@pytest.mark.parametrize(
  "name,over",
  [
    ("dr_grpo", {"ratio_base": "sampler"}),
    ("dr_grpo", {"trace_loss": "truncated_importance"}),  # it corrects for who sampled, not for how far we moved
    ("rft", {}),  # its gradient has no ratio
  ],
)
def test_no_pass_where_no_ratio_asks_for_it(name, over):
  setup, tools, states = several(name, **{f"algorithm__{key}": value for key, value in over.items()})
  assert jax.eval_shape(lambda: programs.collect(setup, tools, states, toy.prompts(B)).batch).start_logp_NL is None
  assert not setup.run.algorithm.ratio_from_start


def test_the_samplers_rounding_is_measured_before_the_policy_moves():
  """A rate of 0.1 takes the policy far from its samples in the second minibatch: the KL shows it, the mismatch not."""
  over = {"algorithm__ratio_base": "sampler", "optimizer__minibatches": 2, "optimizer__learning_rate": 0.1}
  model = dataclasses.replace(toy.MODEL, num_hidden_layers=1)
  setup = toy.setup("nrt", model, samples_per_prompt=G, sampling__max_trace_length=R, **over)
  states = programs.init_states(setup, jax.tree.map(jnp.copy, toy.params(model)), jax.random.key(3))
  metrics = programs.build_train_step(setup)(states, toy.prompts(B))[1]
  assert metrics["policy/mismatch"] < 1e-5 and metrics["policy/kl"] > 1e-3


def test_reinforce_is_on_policy_only():
  text = "optimizer.minibatches: found 2 with algorithm.trace_loss 'reinforce', which has no ratio.*allowed: 1, or"
  for name in ("rloo", "jepo", "latro", "rl_logit"):
    with pytest.raises(UserError, match=text):
      toy.run_config(name, optimizer__minibatches=2)
  assert toy.run_config("rloo", optimizer__minibatches=2, algorithm__trace_loss="truncated_importance")
