"""Kinds of attention in the decoder, over a mesh and under pmap, and which one is selected where."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from toy import assert_same

from nrt_jax import sharding
from nrt_jax.errors import UserError
from nrt_jax.model import kernels
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import forward, logits


def decoder(kind="xla", **over):
  return dataclasses.replace(toy.MODEL, attention=kind, **over)


def rows_of_tokens(count=5, width=40):
  token = jnp.asarray(np.random.default_rng(1).integers(0, toy.VOCAB, (count, width)), jnp.int32)
  start, end = np.resize([0, 7, 0, 4, 0], count)[:, None], np.resize([width, width, 30, 33, 0], count)[:, None]
  column = np.arange(width)[None]
  return token, jnp.asarray(np.where((column >= start) & (column < end), column - start, -1), jnp.int32)


def wave(params, model, token, position, example=None):
  out = logits(params, model, forward(params, model, token, position, example_NT=example)[0])
  return jnp.sum(jnp.where((position >= 0)[:, :, None], jnp.sin(out), 0)), out


@functools.partial(jax.jit, static_argnums=1)
def decoded(params, model, token, position, example=None):
  """Logits at the valid columns, and the gradient of all parameters."""
  gradients, out = jax.grad(wave, has_aux=True)(params, model, token, position, example)
  return jnp.where((position >= 0)[:, :, None], out, 0), gradients


# XLA's form of cuDNN's call, also where the tests run on a GPU: the kernel itself has no float32 and no heads of 4.
KINDS = [("splash", {}), ("cudnn", {"platform": "cpu"}), ("xla", {"attention_block": 16})]
MIXED = dict(
  sliding_window=9, sliding_layers=(False, True), local_rope_theta=50.0, rope_layers=(True, False),
  attention_multiplier=0.4,
)  # fmt: skip


@pytest.fixture(scope="module")
def mixed_reference():
  return decoded(toy.params(), decoder(**MIXED), *rows_of_tokens())


@pytest.mark.parametrize("number,loop", [(0, "scan"), (0, "unroll"), (1, "unroll"), (2, "scan")])
def test_decoder(mixed_reference, number, loop):
  """Two layers, one with a window, recomputed in the backward pass."""
  kind, over = KINDS[number]
  model = decoder(kind, layer_loop=loop, remat="full", **MIXED, **over)
  assert_same(mixed_reference, decoded(toy.params(), model, *rows_of_tokens()), 1e-4)


def test_decoder_of_packed_rows():
  token, _ = rows_of_tokens(2)
  position = jnp.asarray([[*range(10), *range(25), *[-1] * 5], [*range(40)]], jnp.int32)
  example = jnp.asarray([[0] * 10 + [1] * 25 + [-1] * 5, [0] * 40], jnp.int32)
  models = [decoder(kind, **over) for kind, over in (("xla", {}), *KINDS)]
  params = toy.params()
  run = jax.jit(lambda model: wave(params, model, token, position, example), static_argnums=0)
  expected, *got = [jnp.where((position >= 0)[:, :, None], run(model)[1], 0) for model in models]
  for out in got:
    assert_same(expected, out, 1e-4)


@pytest.mark.parametrize("kind", ["splash", "cudnn"])
def test_caches_of_a_kernel_serve_decoding(kind):
  """Prompts prefilled by a kernel (in cuDNN's turned columns), then a token that attends to their cache."""
  token, position = (x[:4] for x in rows_of_tokens())
  following = position.max(axis=1, keepdims=True) + 1
  params = toy.params()

  @functools.partial(jax.jit, static_argnums=0)
  def next_hidden(model):
    hidden, cache = forward(params, model, token, position)
    return hidden[:, -1], forward(params, model, token[:, :1], following, (cache,))[0]

  expected, got = next_hidden(decoder()), next_hidden(decoder(kind, platform="cpu"))
  np.testing.assert_allclose(got[1], expected[1], atol=5e-5)
  np.testing.assert_allclose(got[0][:2], expected[0][:2], atol=5e-5)  # rows whose last column is valid


@pytest.mark.parametrize("kind,over", KINDS[::2], ids=["splash", "blocks"])
def test_mesh(kind, over):
  """Rows over data and fsdp, heads over tensor: as one device has it."""
  mesh = sharding.make_mesh(sharding.ParallelConfig(data=2, fsdp=2, tensor=2))
  switches = dict(sliding_window=9, qk_norm=True, qk_norm_joint=True, norms="both", norm_offset=1.0)
  model, inputs = decoder(kind, **switches, **over), rows_of_tokens(8)
  params = toy.params(model)
  expected = decoded(params, model, *inputs)
  with jax.set_mesh(mesh):
    placed = sharding.place_rows(mesh, inputs)
    lowered = decoded.lower(params, model, *placed)
    got, text = lowered.compile()(params, *placed), lowered.as_text()
  assert ("manual_computation" in text) == (kind == "splash")
  assert_same(jax.device_get(expected), jax.device_get(got), 1e-4)


def test_rows_that_do_not_divide_over_the_mesh_are_left_to_xla():
  model = decoder("splash")
  mesh = sharding.make_mesh(sharding.ParallelConfig(data=4, tensor=2))
  assert kernels.choose(model, (6, 40)) == "splash"
  with jax.set_mesh(mesh):
    assert kernels.choose(model, (6, 40)) == "dense" and kernels.choose(model, (8, 40)) == "splash"
    kinds = []

    def look(_, rows):
      kinds.append(kernels.choose(model, rows.shape))
      return rows

    jax.eval_shape(functools.partial(sharding.on_own_rows, look, ()), jnp.zeros((8, 40)))
    assert kinds == ["dense"]


def test_pmap():
  """Each device has its rows: no mesh, and the kernel is called as it is."""
  params, (token, position) = toy.params(), rows_of_tokens(8)
  model = decoder("splash")
  by_device = [x.reshape(4, 2, -1) for x in (token, position)]
  got = jax.pmap(lambda t, p: wave(params, model, t, p)[0])(*by_device)
  expected = jax.jit(wave, static_argnums=1)(params, decoder(), token, position)[0]
  np.testing.assert_allclose(got.sum(), expected, rtol=1e-4)


# -------------------------------------------------------------------------------------------------------- the switch


def test_auto_follows_the_target_platform():
  """Not the host's: the target may be a TPU that this host only compiles for."""
  wide = functools.partial(decoder, "auto", head_dim=128, compute_dtype="bfloat16")
  long, short = (8, 2048), (8, 64)
  assert kernels.choose(wide(platform="tpu"), long) == "splash"
  assert kernels.choose(wide(platform="tpu"), short) == "dense"
  assert kernels.choose(wide(platform="tpu", head_dim=80), long) == "blocks"
  assert kernels.choose(wide(platform="gpu"), long) == "cudnn"
  assert kernels.choose(wide(platform="gpu"), long, packed=True) == "blocks"
  assert kernels.choose(wide(platform="gpu", compute_dtype="float32"), long) == "blocks"
  assert kernels.choose(wide(platform="cpu"), long) == "blocks"
  assert kernels.choose(wide(platform="cpu", attention_block=2048), long) == "dense"


@pytest.mark.parametrize("kind", ["auto", "splash", "cudnn"])
def test_what_caches_leave_to_the_kernels(kind):
  make = functools.partial(decoder, kind, head_dim=64, platform="tpu")
  assert kernels.choose(make(), (8, 1), cache_rows=(2, 8), writes=True) == "dense"
  assert kernels.choose(make(), (8, 64), cache_rows=(2, 8)) == "dense"  # an answer behind prompt and trace
  assert kernels.choose(make(), (8, 600), cache_rows=(2,)) == ("blocks" if kind == "cudnn" else "splash")
  assert kernels.choose(make(sliding_window=70), (8, 600), cache_rows=(2,)) == "blocks"


@pytest.mark.parametrize("kind,platform", [("auto", "gpu"), ("auto", "tpu"), ("splash", "cpu"), ("cudnn", "cpu")])
def test_soft_capped_scores_are_left_to_xla(kind, platform):
  model = decoder(kind, head_dim=64, platform=platform, compute_dtype="bfloat16", attn_logit_softcapping=50.0)
  assert kernels.choose(model, (8, 2048)) == "blocks" and kernels.choose(model, (8, 300)) == "dense"
  named = {"gpu": "cudnn", "tpu": "splash"}.get(platform)
  if named:
    with pytest.raises(UserError, match=f"model.attention='{named}': found a model with attn_logit_softcapping"):
      kernels.check(dataclasses.replace(model, attention=named))


def test_errors():
  with pytest.raises(UserError, match="model.attention: found 'flash', allowed: auto, cudnn, splash, xla"):
    ModelConfig(attention="flash")
  with pytest.raises(UserError, match="model.attention_block: found 0"):
    ModelConfig(attention_block=0)
  with pytest.raises(UserError, match="model.attention='cudnn': found model.compute_dtype='float32'"):
    kernels.check(decoder("cudnn", platform="gpu"))
  with pytest.raises(UserError, match="model.attention='cudnn': found head_dim 160"):
    kernels.check(decoder("cudnn", head_dim=160, platform="gpu", compute_dtype="bfloat16"))
  with pytest.raises(UserError, match="model.attention='splash': found head_dim 80"):
    kernels.check(decoder("splash", head_dim=80, platform="tpu"))
