import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from nrt_jax.errors import UserError
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.attention import KVCache, empty_cache, grow_cache
from nrt_jax.model.axes import logical_axes
from nrt_jax.model.decoder import decoding_params, forward, logits

EVERY_SWITCH = {
  "qkv_bias": True, "qk_norm": True, "qk_norm_joint": True, "output_bias": True, "mlp_bias": True,
  "tie_word_embeddings": True, "norms": "both", "norm_offset": 1.0, "activation": "gelu_tanh",
  "partial_rotary_factor": 0.5, "rope_layers": (True, False), "attention_multiplier": 0.4, "embedding_multiplier": 1.5,
  "residual_multiplier": 0.7, "logits_scaling": 0.5, "final_logit_softcapping": 4.0,
  "attn_logit_softcapping": 3.0,
}  # fmt: skip


EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "norm_topk_prob": True}


def toy_model(**over):
  return dataclasses.replace(toy.MODEL, **over)


@functools.partial(jax.jit, static_argnums=1)
def run(params, model, token_NT, position_NT):
  """float32 logits `[N, T, V]` without a cache."""
  return logits(params, model, forward(params, model, token_NT, position_NT)[0])


def wave(params, model, token_NT, position_NT, columns=(None, None)):
  """A scalar that depends on every logit of some columns, each in a different way."""
  return jnp.sum(jnp.sin(run(params, model, token_NT, position_NT)[:, slice(*columns)]))


gradient = jax.jit(jax.grad(wave), static_argnums=(1, 4))


@pytest.fixture(scope="module")
def params():
  return toy.params()


@pytest.fixture(scope="module")
def token_NT():
  return jnp.asarray(np.random.default_rng(0).integers(0, toy.VOCAB, (3, 7)), jnp.int32)


def positions(token_NT):
  return jnp.broadcast_to(jnp.arange(token_NT.shape[1])[None], token_NT.shape)


def influence(model, T=9):
  """bool [T, T]: do the logits at position t change with the token at position s?"""
  token = jnp.arange(T, dtype=jnp.int32)[None]
  changed = jnp.where(jnp.eye(T, dtype=bool), toy.PAD, token)  # row s: another token at position s
  out = run(toy.params(model), model, jnp.concatenate([token, changed]), positions(jnp.zeros((T + 1, T))))
  return np.asarray(jnp.abs(out[1:] - out[:1]).max(-1) > 0).T


def test_causality():
  """By gradient, through the embedding: exactly 0 from every later position, and not 0 from the others."""
  T, params = 9, toy.params()
  token = jnp.arange(T, dtype=jnp.int32)[None]  # all different: row s of the embedding is the input at position s

  def outputs(table):
    return run({**params, "embedder": {"embedding": table}}, toy.MODEL, token, positions(token))[0].sum(-1)

  jacobian = jax.jit(jax.jacrev(outputs))(params["embedder"]["embedding"])  # [T, V, D]
  np.testing.assert_array_equal(jnp.abs(jacobian[:, :T]).sum(-1) > 0, np.tril(np.ones((T, T), bool)))


def test_sliding_window():
  """One layer sees the last w tokens, itself included; two layers see 2w - 1; a mixture adds up likewise."""
  back = np.arange(9)[:, None] - np.arange(9)[None]
  one = toy_model(num_hidden_layers=1, sliding_window=3)
  np.testing.assert_array_equal(influence(one), (back >= 0) & (back < 3))
  two = toy_model(sliding_window=3)
  np.testing.assert_array_equal(influence(two), (back >= 0) & (back < 5))
  for loop in ("scan", "unroll"):
    half = toy_model(sliding_window=3, sliding_layers=(False, True), layer_loop=loop)
    np.testing.assert_array_equal(influence(half), back >= 0)
  narrow = run(toy.params(), toy_model(sliding_window=9), jnp.ones((1, 9), jnp.int32), jnp.arange(9)[None])
  wide = run(toy.params(), toy_model(), jnp.ones((1, 9), jnp.int32), jnp.arange(9)[None])
  np.testing.assert_array_equal(narrow, wide)  # as wide as the sequence: no window


@pytest.mark.parametrize("left,right", [(4, 0), (0, 3), (2, 2)])
def test_padding(params, token_NT, left, right):
  """Pads on either side change nothing and get no gradient, whatever token fills them."""
  T = token_NT.shape[1]
  width = ((0, 0), (left, right))
  position = jnp.pad(positions(token_NT), width, constant_values=-1)

  filled = [jnp.pad(token_NT, width, constant_values=fill) for fill in (0, toy.PAD)]
  expected = run(params, toy.MODEL, token_NT, positions(token_NT))
  for token in filled:
    np.testing.assert_allclose(run(params, toy.MODEL, token, position)[:, left : left + T], expected, atol=2e-5)
  grad = gradient(params, toy.MODEL, token_NT, positions(token_NT))
  padded = gradient(params, toy.MODEL, filled[1], position, (left, left + T))
  assert toy.largest_difference(grad, padded) < 1e-4 * toy.largest(grad)


def test_rows_do_not_mix(params, token_NT):
  whole = run(params, toy.MODEL, token_NT, positions(token_NT))
  other = token_NT.at[1:].set((token_NT[1:] + 5) % toy.VOCAB)
  np.testing.assert_array_equal(whole[0], run(params, toy.MODEL, other, positions(token_NT))[0])


@pytest.mark.parametrize("loop", ["scan", "unroll"])
@pytest.mark.parametrize(
  "over", [{}, {"sliding_window": 4, **EVERY_SWITCH}, {**EXPERTS, "expert_product": "sorted"}],
  ids=["plain", "every_switch", "experts"],
)  # fmt: skip
def test_cache_path_equals_full_path(loop, over):
  """Ragged prompts prefilled once, each shared by 3 rows that go on token by token, against whole rows at once."""
  model = toy_model(layer_loop=loop, **over)
  params = toy.params(model)
  B, G, P, R = 2, 3, 5, 4
  rng = np.random.default_rng(3)
  prompt_BP = jnp.asarray(rng.integers(0, toy.VOCAB, (B, P)), jnp.int32)
  length_B = jnp.array([5, 2])
  trace_NR = jnp.asarray(rng.integers(0, toy.VOCAB, (B * G, R)), jnp.int32)
  prompt_position = jnp.maximum(jnp.arange(P)[None] - (P - length_B[:, None]), -1)
  weights = decoding_params(params, model)

  @jax.jit
  def by_cache(weights):
    _, prompt_cache = forward(weights, model, prompt_BP, prompt_position)
    cache = empty_cache(model, B * G, 0, jnp.float32)
    out = []
    for t in range(R):
      cache = grow_cache(cache, 2 if t < 2 else R)  # room for two tokens, then for all
      position = (length_B.repeat(G) + t)[:, None]
      hidden, cache = forward(weights, model, trace_NR[:, t : t + 1], position, (prompt_cache, cache), slot=t)
      out.append(logits(weights, model, hidden)[:, 0])
    return jnp.stack(out, 1)

  token = jnp.concatenate([prompt_BP.repeat(G, 0), trace_NR], 1)
  trace_position = length_B.repeat(G)[:, None] + jnp.arange(R)[None]
  position = jnp.concatenate([prompt_position.repeat(G, 0), trace_position], 1)
  full = run(params, model, token, position)[:, P:]
  np.testing.assert_allclose(by_cache(weights), full, atol=5e-5)


def test_empty_cache_slots_are_invisible(params, token_NT):
  """A cache of empty slots, whatever is in them, is as good as none."""
  def poisoned(shape):
    return tuple(jnp.full(shape, 1e4) for _ in range(toy.MODEL.num_hidden_layers))

  model = toy_model(layer_loop="unroll")  # its caches are one array for each layer
  cache = KVCache(poisoned((3, 2, 4, 4)), poisoned((3, 2, 4, 4)), jnp.full((3, 4), -1))
  with_cache = jax.jit(lambda params, caches: forward(params, model, token_NT, positions(token_NT), caches)[0])
  expected, got = with_cache(params, ()), with_cache(params, (cache,))
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_scan_equals_unroll(token_NT):
  models = [toy_model(layer_loop=loop, **EVERY_SWITCH) for loop in ("scan", "unroll")]
  params = toy.params(models[0])
  inputs = (token_NT, positions(token_NT))
  grads = [gradient(params, model, *inputs) for model in models]
  texts = [str(jax.make_jaxpr(wave, static_argnums=1)(params, model, *inputs)) for model in models]
  assert ["scan[" in text for text in texts] == [True, False]  # two different programs
  assert toy.largest_difference(*grads) < 1e-4 * toy.largest(grads[0])


def test_the_target_platform_decides_the_layer_loop():
  """Not the host's: a program may be compiled ahead of time for a TPU on a machine that has none."""
  assert [toy_model(platform=p).dense_experts for p in ("cpu", "gpu", "tpu")] == [True, True, False]
  assert toy_model(platform="tpu", expert_product="all").dense_experts
  assert toy_model().scan_layers == (jax.default_backend() != "cpu")
  assert [toy_model(platform=p).scan_layers for p in ("cpu", "gpu", "tpu")] == [False, True, True]
  assert not toy_model(platform="tpu", layer_loop="unroll").scan_layers
  # Many layers would take minutes to compile on a CPU, and run no faster.
  deep = [toy_model(platform="cpu", num_hidden_layers=count).scan_layers for count in (1, 8, 9, 30)]
  assert deep == [False, False, True, True]
  assert not toy_model(platform="cpu", num_hidden_layers=30, layer_loop="unroll").scan_layers


@pytest.mark.parametrize("loop", ["scan", "unroll"])
def test_remat(params, token_NT, loop):
  """Recomputing changes the program and not the numbers (trap 1: a test that compares remat off with remat off)."""
  models = [toy_model(remat=remat, layer_loop=loop) for remat in ("none", "dots", "full")]
  inputs = (token_NT, positions(token_NT))
  texts = [str(jax.make_jaxpr(gradient, static_argnums=1)(params, model, *inputs)) for model in models]
  assert len(set(texts)) == 3
  grads = [gradient(params, model, *inputs) for model in models]
  for other in grads[1:]:
    assert toy.largest_difference(grads[0], other) < 1e-4 * toy.largest(grads[0])


@pytest.mark.parametrize("loop", ["scan", "unroll"])
def test_decoding_params_are_the_same_function(token_NT, loop):
  """With biases, and with two queries for each key: the heads of the one fused matrix are dealt out as they were."""
  model = toy_model(layer_loop=loop, qkv_bias=True, mlp_bias=True, qk_norm=True, qk_norm_joint=True, norms="post")
  params = jax.tree_util.tree_map_with_path(
    lambda path, p: jnp.linspace(-1, 1, p.size).reshape(p.shape) if path[-1].key in ("bias", "scale") else p,
    toy.params(model),
  )
  weights, inputs = decoding_params(params, model), (model, token_NT, positions(token_NT))
  layer = weights["layers"] if loop == "scan" else weights["layers"][0]
  assert {"qkv", "gate_up"} < set(layer) and not {"q", "k", "v", "gate", "up"} & set(layer)
  np.testing.assert_allclose(run(weights, *inputs), run(params, *inputs), atol=2e-5)


def test_bfloat16_compute(params, token_NT):
  model = toy_model(compute_dtype="bfloat16")
  hidden, cache = jax.eval_shape(lambda p: forward(p, model, token_NT, positions(token_NT)), params)
  assert hidden.dtype == jnp.bfloat16 and jax.tree.leaves(cache.key)[0].dtype == jnp.bfloat16
  low, full = (run(params, m, token_NT, positions(token_NT)) for m in (model, toy.MODEL))
  assert low.dtype == jnp.float32
  difference = float(jnp.abs(low - full).max())
  assert 0 < difference < 0.1 * float(jnp.abs(full).max())  # 8 bits of mantissa, a few layers: some per cent
  grad = jax.eval_shape(lambda p: gradient(p, model, token_NT, positions(token_NT)), params)
  assert {leaf.dtype for leaf in jax.tree.leaves(grad)} == {jnp.dtype("float32")}


def test_positions_past_257_are_told_apart_in_bfloat16():
  """Angles in bfloat16 would round position 257 to 256: the next-to-last token would then look like the last."""
  model = toy_model(compute_dtype="bfloat16", num_hidden_layers=1)
  params = toy.params(model)
  token = jnp.array([[1, 2, 3]], jnp.int32)
  near, far = (run(params, model, token, jnp.array([[256, 257, p]])) for p in (258, 259))
  assert float(jnp.abs(near[0, 2] - far[0, 2]).max()) > 0


def test_initialisation():
  params = toy.params(toy_model(initializer_range=0.1, hidden_size=64, head_dim=16))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  for name in ("q", "k", "v", "o", "gate", "up", "down"):
    kernel = params["layers"][name]["kernel"]
    assert abs(float(kernel.std()) - 0.1) < 0.01
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.1  # layers have keys of their own
  assert abs(float(params["embedder"]["embedding"].std()) - 0.1) < 0.01
  assert float(jnp.abs(params["embedder"]["embedding"].T - params["head"]["kernel"]).max()) > 0.1
  assert (params["final_norm"]["scale"] == 1).all()


def test_logical_axes_of_every_parameter():
  params = toy.params(toy_model(**{**EVERY_SWITCH, "tie_word_embeddings": False}))
  experts = logical_axes(toy.params(toy_model(**EXPERTS)))["layers"]
  assert experts["down"]["kernel"] == ("layers", "expert", "mlp", "embed")
  assert experts["router"]["kernel"] == ("layers", "embed", "expert")
  jax.tree.map(lambda p, axes: np.testing.assert_equal(len(axes), p.ndim), params, logical_axes(params))


def test_errors():
  with pytest.raises(UserError, match="model.num_attention_heads: 4 is not a multiple of num_key_value_heads 3"):
    ModelConfig(num_attention_heads=4, num_key_value_heads=3)
  with pytest.raises(UserError, match="model.sliding_layers: found 1"):
    ModelConfig(sliding_layers=(True,))
  for change, message in (
    ({"num_experts_per_tok": 6}, "num_experts_per_tok: found 6, allowed: 1 to num_experts = 5"),
    ({"moe_intermediate_size": 0}, "moe_intermediate_size: found 0, allowed with experts: 1 or more"),
    ({"mlp_bias": True}, "mlp_bias: found True, allowed with experts: False"),
    ({"expert_product": "some"}, "expert_product: found 'some', allowed: all, auto, sorted"),
  ):
    with pytest.raises(UserError, match=f"model.{message}"):
      ModelConfig(**{**EXPERTS, **change})
  with pytest.raises(UserError, match="model.remat: found 'some', allowed: dots, full, none"):
    ModelConfig(remat="some")
