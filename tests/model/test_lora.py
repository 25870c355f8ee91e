"""Low-rank adapters and added rows: all that is trained, no effect at the start, merged for rollouts and exports."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from nrt_jax.config import ModelSource
from nrt_jax.errors import UserError
from nrt_jax.model import hf_weights, lora
from nrt_jax.model.architecture import ADAPTABLE, ModelConfig
from nrt_jax.model.axes import logical_axes
from nrt_jax.model.decoder import forward, init_params, logits
from nrt_jax.step import policy, programs

ADDED = (toy.MARKER, toy.PAD)
MODEL = dataclasses.replace(toy.MODEL, lora_rank=3, lora_alpha=6.0, lora_rows=ADDED)


def trained_adapters(params, seed=5, model=MODEL):
  """Adapters far from zero and added rows far from the frozen ones, as if trained."""
  trainable, frozen = lora.split(params, model)
  keys = iter(jax.random.split(jax.random.key(seed), 100))
  moved = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(next(keys), p.shape), trainable)
  return lora.join(moved, frozen)


@pytest.fixture(scope="module")
def params():
  return trained_adapters(init_params(MODEL, jax.random.key(1)))


def hidden(params, config):
  token = jnp.array([[0, 1, 2, 3, 4, toy.PAD], [6, 7, toy.MARKER, 9, toy.MARKER, 11]])
  return forward(params, config, token, jnp.broadcast_to(jnp.arange(6)[None], (2, 6)))[0]


def fresh():
  return init_params(MODEL, jax.random.key(1))


def test_fresh_adapters_change_nothing():
  adapted = fresh()
  _, frozen = lora.split(adapted, MODEL)
  np.testing.assert_array_equal(hidden(adapted, MODEL), hidden(frozen, lora.without(MODEL)))


def test_merged_experts_compute_the_same():
  """Every expert has adapters of its own, cut as its matrices are; the router has none."""
  sizes = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=8, expert_product="sorted")
  config = dataclasses.replace(MODEL, **sizes)
  params = trained_adapters(init_params(config, jax.random.key(1)), model=config)
  axes = logical_axes(params)["layers"]
  assert axes["up_lora"] == {"a": ("layers", "expert", "embed", "norm"), "b": ("layers", "expert", "norm", "mlp")}
  assert axes["down_lora"] == {"a": ("layers", "expert", "mlp", "norm"), "b": ("layers", "expert", "norm", "embed")}
  assert "router_lora" not in axes and params["layers"]["down_lora"]["a"].shape == (2, 5, 8, 3)
  merged = lora.merge(params, config)
  by_hand = params["layers"]["up"]["kernel"][1, 4] + 2 * (
    params["layers"]["up_lora"]["a"][1, 4] @ params["layers"]["up_lora"]["b"][1, 4]
  )
  np.testing.assert_allclose(merged["layers"]["up"]["kernel"][1, 4], by_hand, atol=1e-5)
  np.testing.assert_allclose(hidden(params, config), hidden(merged, lora.without(config)), atol=5e-5)


@pytest.mark.parametrize("layer_loop", ["scan", "unroll"])
def test_merged_weights_compute_the_same(params, layer_loop):
  config = dataclasses.replace(MODEL, layer_loop=layer_loop)
  plain = hidden(lora.split(params, MODEL)[1], lora.without(config))
  adapted, merged = hidden(params, config), hidden(lora.merge(params, MODEL), lora.without(config))
  np.testing.assert_allclose(adapted, merged, atol=2e-5)
  assert np.abs(adapted - plain).max() > 0.1  # the adapters do something


def test_one_adapter_by_hand(params):
  """W + (alpha / rank) A B of the first layer's output projection, in NumPy."""
  layers = params["layers"]
  a, b = np.asarray(layers["o_lora"]["a"][0]), np.asarray(layers["o_lora"]["b"][0])
  assert a.shape == (4, 4, 3) and b.shape == (3, 16)
  expected = np.asarray(layers["o"]["kernel"][0]) + 2.0 * np.einsum("hdr,rf->hdf", a, b)
  np.testing.assert_allclose(lora.merge(params, MODEL)["layers"]["o"]["kernel"][0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_added_rows_stand_in_for_the_frozen_ones(tied):
  """Embedding and head by hand in NumPy; the frozen rows have no part in anything, nor a gradient."""
  model = dataclasses.replace(MODEL, tie_word_embeddings=tied)
  params = trained_adapters(init_params(model, jax.random.key(1)), model=model)
  table = np.array(params["embedder"]["embedding"])
  head = table if tied else np.array(params["head"]["kernel"]).T
  table[list(ADDED)] = params["embedder_lora"]["rows"]
  if not tied:
    head[list(ADDED)] = params["head_lora"]["rows"]
  token = np.array([[0, toy.PAD, toy.MARKER, 3]])
  got = lora.embed_added(params, model, jnp.asarray(token), params["embedder"]["embedding"][token])
  np.testing.assert_array_equal(got, table[token])
  state = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
  np.testing.assert_allclose(logits(params, model, jnp.asarray(state)), state @ head.T, atol=2e-5)
  merged = lora.merge(params, model)
  np.testing.assert_array_equal(merged["embedder"]["embedding"], table)
  assert tied or np.array_equal(merged["head"]["kernel"], head.T)

  def loss(params):
    out = logits(params, model, hidden(params, model))
    return jnp.sum(jax.nn.log_softmax(out)[..., toy.MARKER])

  grads = jax.grad(loss)(params)
  for leaf in (grads["embedder"]["embedding"], grads["head"]["kernel"].T if not tied else None):
    if leaf is not None:
      assert not np.asarray(leaf)[list(ADDED)].any() and np.asarray(leaf).any()
  assert all(np.abs(grads[name]["rows"]).max(axis=1).min() > 1e-3 for name in grads if name.endswith("_lora"))


def test_split_and_join_are_inverse_and_adapters_are_few(params):
  trainable, frozen = lora.split(params, MODEL)
  assert set(trainable["layers"]) == {f"{name}_lora" for name in ADAPTABLE}
  assert set(trainable) == {"layers", "embedder_lora", "head_lora"}
  assert {trainable[name]["rows"].shape for name in ("embedder_lora", "head_lora")} == {(2, 16)}
  joined = lora.join(trainable, frozen)
  assert jax.tree.structure(joined) == jax.tree.structure(params)
  assert lora.count_trainable(params, MODEL) == sum(leaf.size for leaf in jax.tree.leaves(trainable))
  assert lora.split(frozen, lora.without(MODEL)) == (frozen, {})


def test_every_adapter_is_cut_like_its_matrix(params):
  axes = logical_axes(params)["layers"]
  assert logical_axes(params)["head_lora"] == {"rows": ("norm", "embed")}
  assert axes["q_lora"] == {"a": ("layers", "embed", "norm"), "b": ("layers", "norm", "heads", "head_dim")}
  assert axes["o_lora"] == {"a": ("layers", "heads", "head_dim", "norm"), "b": ("layers", "norm", "embed")}
  for (path, leaf), names in zip(jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(
    logical_axes(params), is_leaf=lambda x: isinstance(x, tuple)
  ), strict=True):
    assert leaf.ndim == len(names), path


@pytest.mark.parametrize("over", [{}, {"parallel__fsdp": 2, "parallel__tensor": 2}])
def test_a_step_changes_adapters_and_nothing_else(over):
  reference = {"algorithm__reference": "frozen", "algorithm__kl_coef": 0.1}
  setup = toy.setup(model=MODEL, **reference, **over)
  params = trained_adapters(init_params(MODEL, jax.random.key(1)))
  states = programs.init_states(setup, params, jax.random.key(0))
  sizes = [leaf.size for leaf in jax.tree.leaves(states.policy.opt_state)]
  assert sum(sizes) < 3 * lora.count_trainable(params, MODEL)  # two moments, of adapters only
  before = jax.device_get(params)
  if setup.mesh is not None:
    states = jax.device_put(states, programs.state_shardings(setup))
    with jax.set_mesh(setup.mesh):
      after, metrics, _ = programs.build_train_step(setup)(states, toy.prompts(8))
  else:
    after, metrics, _ = programs.build_train_step(setup)(states, toy.prompts(8))
  moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), jax.device_get(after.policy.params), before)
  trainable, frozen = lora.split(moved, MODEL)
  assert all(jax.tree.leaves(trainable)) and not any(jax.tree.leaves(frozen))
  assert float(metrics["policy/kl_reference"]) == pytest.approx(0, abs=1e-5)  # the reference is where the policy starts
  assert float(metrics["policy/ratio_max"]) == pytest.approx(1, abs=1e-3)  # merged rollout and adapted update agree


def test_a_pretrained_model_gets_adapters_and_an_export_has_them_merged(tmp_path, params):
  plain = init_params(lora.without(MODEL), jax.random.key(3))
  hf_weights.save_params(plain, lora.without(MODEL), tmp_path / "model")
  source = ModelSource(str(tmp_path / "model"), lora_rank=3, compute_dtype="bfloat16")
  form = dataclasses.replace(toy.form(), added_ids=(toy.MARKER,))
  config = policy.read_architecture(source, form)
  assert config.lora_rows == (toy.MARKER,)
  loaded = policy.load_policy(source, config, form, seed=0)
  dtypes = {jax.tree_util.keystr(p): leaf.dtype for p, leaf in jax.tree_util.tree_flatten_with_path(loaded)[0]}
  trained_or_norm = {path for path in dtypes if "_lora" in path or "scale" in path}
  assert {path for path, dtype in dtypes.items() if dtype == jnp.float32} == trained_or_norm
  assert jax.tree.structure(loaded) == jax.tree.structure(policy.abstract_params(config))
  start = np.asarray(loaded["embedder"]["embedding"][toy.MARKER], np.float32)
  np.testing.assert_array_equal(loaded["embedder_lora"]["rows"], start[None])
  hf_weights.save_params(lora.merge(params, MODEL), lora.without(MODEL), tmp_path / "export")
  again = hf_weights.load_params(tmp_path / "export", hf_weights.read_model_config(tmp_path / "export"))
  np.testing.assert_allclose(again["layers"]["q"]["kernel"], lora.merge(params, MODEL)["layers"]["q"]["kernel"])


def test_adapters_start_as_in_a_random_model_and_are_made_alone():
  """No copy of the frozen weights is made for them: the program needs little more memory than its results."""
  wide = dataclasses.replace(MODEL, hidden_size=64, intermediate_size=1024, vocab_size=4096)
  alone = policy.random_adapters(wide, seed=3)
  assert list(alone) == ["layers"]
  whole = jax.jit(init_params, static_argnums=0)(wide, jax.random.key(3))
  assert toy.largest_difference(alone["layers"], lora.split(whole, wide)[0]["layers"]) == 0
  made = jax.jit(lambda key: lora.split(init_params(wide, key), wide)[0]["layers"]).lower(jax.random.key(3)).compile()
  memory, adapters = made.memory_analysis(), sum(leaf.nbytes for leaf in jax.tree.leaves(alone))
  assert memory.output_size_in_bytes >= adapters
  assert memory.temp_size_in_bytes < 3 * adapters < sum(leaf.nbytes for leaf in jax.tree.leaves(whole)) / 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frozen_weights_are_read_in_the_dtype_that_holds_them(tmp_path, monkeypatch, dtype):
  plain = init_params(lora.without(MODEL), jax.random.key(3))
  hf_weights.save_params(plain, lora.without(MODEL), tmp_path / "model")
  placed = []
  monkeypatch.setattr(hf_weights, "_place", lambda host, cut: placed.append(host.dtype) or jnp.asarray(host))
  source = ModelSource(str(tmp_path / "model"), lora_rank=3, compute_dtype=dtype)
  loaded = policy.load_policy(source, policy.read_architecture(source, toy.form()), toy.form(), seed=0)
  assert {str(d) for d in placed} == {dtype, "float32"}  # norms are in float32
  frozen = lora.split(loaded, dataclasses.replace(MODEL, lora_rows=()))[1]
  expected = jax.tree.map(lambda p, like: p.astype(like.dtype), plain, frozen)
  assert jax.tree.structure(frozen) == jax.tree.structure(plain) and toy.largest_difference(frozen, expected) == 0


def test_bad_settings_name_their_keys():
  with pytest.raises(UserError, match="model.lora_targets.*'qq'"):
    ModelConfig(lora_rank=2, lora_targets=("qq",))
  for rows in ((512,), (-1,)):
    with pytest.raises(UserError, match="model.lora_rows"):
      ModelConfig(lora_rank=2, lora_rows=rows)
  with pytest.raises(UserError, match="model.lora_rank"):
    ModelConfig(lora_rank=-1)
