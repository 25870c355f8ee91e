"""Kernels and blocks against attention.attend, which test_model.py and test_hf.py hold against torch and brute force.

Here splash attention is interpreted, and cuDNN's call is made in XLA's form of it: what is tested is what we hand over.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from nrt_jax import kernels, sharding
from nrt_jax.architecture import ModelConfig
from nrt_jax.attention import attend, store, visible
from nrt_jax.errors import UserError
from nrt_jax.model import forward, logits

N, T, H, K, h = 5, 300, 4, 2, 16  # three blocks of 128 columns for splash attention
WINDOW = 70


def row_positions(T=T):
  """No pads; pads in front, behind, on both sides; and a row of nothing else."""
  start, end = np.array([[0], [70], [0], [37], [0]]), np.array([[T], [T], [T - 90], [T - 13], [0]])
  column = np.arange(T)[None]
  return jnp.asarray(np.where((column >= start) & (column < end), column - start, -1), jnp.int32)


def packed_rows(T=T):
  """(position, example): examples of uneven lengths one behind the other, as packing.py lays them."""
  lengths = [[T], [100, 60, 90], [1, 1, 150], [40] * 7, []]
  position, example = np.full((2, N, T), -1, np.int32)
  for n, row in enumerate(lengths):
    flat = [(i, number) for number, length in enumerate(row) for i in range(length)]
    position[n, : len(flat)], example[n, : len(flat)] = zip(*flat) if flat else ((), ())
  return jnp.asarray(position), jnp.asarray(example)


def config(kind="xla", **over) -> ModelConfig:
  shape = dict(num_attention_heads=H, num_key_value_heads=K, head_dim=h, num_hidden_layers=1)
  return ModelConfig(attention=kind, **{**shape, **over})


def values_and_gradients(run, position_NT):
  """Outputs at the valid columns, and the gradients of a scalar that depends on each of them in a way of its own."""
  keys = jax.random.split(jax.random.key(0), 3)
  inputs = [jax.random.normal(k, s) for k, s in zip(keys, ((N, T, H, h), (N, K, T, h), (N, K, T, h)))]
  valid = (position_NT >= 0)[:, :, None, None]

  @jax.jit
  def both(inputs):
    out = run(*inputs)
    return out, jax.grad(lambda inputs: jnp.sum(jnp.where(valid, jnp.sin(3 * run(*inputs)), 0)))(inputs)

  out, gradients = both(inputs)
  assert jnp.isfinite(out).all()
  return jnp.where(valid, out, 0), gradients


def reference(position_NT, example_NT, window):
  seen = visible(position_NT, position_NT, window, example_NT)
  return values_and_gradients(lambda q, k, v: attend(q, [(k, v, seen)]), position_NT)


def by_kind(kind, model, position_NT, example_NT):
  rows = kernels.Rows(kind, (position_NT,), example_NT)
  return values_and_gradients(lambda q, k, v: kernels.attend_by(model, q, [(k, v)], rows), position_NT)


def assert_same(expected, got, tolerance=2e-5):
  assert toy.largest_difference(expected, got) < tolerance * max(1.0, toy.largest(expected))


CASES = [(packed, window) for packed in (False, True) for window in (None, WINDOW)]


@pytest.mark.parametrize("packed,window", CASES)
@pytest.mark.parametrize("kind,block", [("blocks", 64), ("blocks", 128), ("splash", 0)])
def test_parity(kind, block, packed, window):
  """Ragged pads or packed examples, grouped heads, windows; outputs and the gradients of q, k and v."""
  position, example = packed_rows() if packed else (row_positions(), None)
  model = config("splash" if kind == "splash" else "xla", sliding_window=window, attention_block=block or 512)
  assert_same(reference(position, example, window), by_kind(kind, model, position, example))


@pytest.mark.parametrize("window", [None, WINDOW])
def test_parity_of_the_cudnn_call(window):
  """On rows turned to the left, and turned back."""
  position = row_positions()
  turn, back = kernels.align_left(position)
  rows = kernels.Rows("cudnn", (turn(position),))
  model = config("cudnn", sliding_window=window)

  def run(q, k, v):
    segments = [(turn(k.swapaxes(1, 2)).swapaxes(1, 2), turn(v.swapaxes(1, 2)).swapaxes(1, 2))]
    return back(kernels.attend_by(model, turn(q), segments, rows))

  assert_same(reference(position, None, window), values_and_gradients(run, position))


def test_align_left():
  position = row_positions()
  turn, back = kernels.align_left(position)
  valid = np.asarray(turn(position)) >= 0
  np.testing.assert_array_equal(valid, np.arange(T)[None] < valid.sum(1, keepdims=True))
  assert valid.sum() == (np.asarray(position) >= 0).sum()
  x = jnp.arange(N * T * 2).reshape(N, T, 2)
  np.testing.assert_array_equal(back(turn(x)), x)
  np.testing.assert_array_equal(turn(x)[1, 0], x[1, 70])


def test_caches_in_front():
  """A segment that two rows share, and own tokens that begin behind a gap; in blocks that do not divide the row."""
  rng = np.random.default_rng(0)
  key, value_ = (jnp.asarray(rng.normal(size=(2, K, 9, h)), jnp.float32) for _ in range(2))
  cached = jnp.asarray(np.where(np.arange(9) >= [[3], [0]], np.arange(9) - [[3], [0]], -1), jnp.int32)
  gap, length = np.array([[0], [11], [3], [50]]), np.array([[6], [6], [9], [9]])  # the last row is empty
  column = np.arange(50)[None]
  own = jnp.asarray(np.where(column >= gap, column - gap + length, -1), jnp.int32)
  valid = (own >= 0)[:, :, None, None]
  q, k, v = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4, 50, H, h), (4, K, 50, h), (4, K, 50, h)))

  def both(run):
    def value(q, *segments):
      out = jnp.where(valid, run(q, [segments[:2], segments[2:]]), 0)
      return jnp.sum(jnp.sin(3 * out)), out

    return jax.jit(jax.grad(value, (0, 1, 2, 3, 4), has_aux=True))(q, key, value_, k, v)

  for kind, window in (("blocks", None), ("blocks", 20), ("splash", None)):
    model = config(sliding_window=window, attention_block=16)
    masks = [visible(own, p, window) for p in (cached, own)]
    expected = both(lambda q, kv: attend(q, [(*x, mask) for x, mask in zip(kv, masks)]))
    rows = kernels.Rows(kind, (cached, own))
    assert_same(expected, both(lambda q, kv: kernels.attend_by(model, q, kv, rows)))


@pytest.mark.parametrize("kind", ["blocks", "splash"])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_caches_in_other_dtypes(kind, dtype):
  """They are read as the float32 numbers that they stand for."""
  rng = np.random.default_rng(0)
  q, *arrays = (rng.normal(size=s) for s in ((2, 20, H, h), (2, K, 9, h), (2, K, 9, h), (2, K, 20, h), (2, K, 20, h)))
  key, value, k, v = (jnp.asarray(x, jnp.float32) for x in arrays)
  cached, own = (jnp.broadcast_to(jnp.arange(*ends)[None], (2, ends[1] - ends[0])) for ends in ((0, 9), (9, 29)))
  segments = [(store(key, jnp.dtype(dtype)), store(value, jnp.dtype(dtype))), (k, v)]
  q, masks = jnp.asarray(q, jnp.float32), [visible(own, p, None) for p in (cached, own)]
  stored = [x.number * x.scale if dtype == "int8" else jnp.float32(x) for x in segments[0]]
  assert 0 < float(jnp.abs(stored[0] - key).max()) < 0.02
  expected = attend(q, [(*stored, masks[0]), (k, v, masks[1])])
  run = jax.jit(functools.partial(kernels.attend_by, config(attention_block=8)))
  np.testing.assert_allclose(run(q, segments, kernels.Rows(kind, (cached, own))), expected, atol=2e-5)


def test_blocks_bound_the_memory():
  """Of the gradient too: by what the compiler sets aside. Four heads of 512 x 512 scores are 4 MiB a row."""
  q, k = jax.ShapeDtypeStruct((2, 512, H, h), jnp.float32), jax.ShapeDtypeStruct((2, K, 512, h), jnp.float32)
  position = jnp.broadcast_to(jnp.arange(512)[None], (2, 512))

  def temporary(kind):
    model = config(attention_block=32)
    seen = kernels.sight(model, kind, position, (position,))(False)
    gradient = jax.grad(lambda q, k, v: jnp.sum(kernels.attend_by(model, q, [(k, v)], seen)), (0, 1, 2))
    return jax.jit(gradient).lower(q, k, k).compile().memory_analysis().temp_size_in_bytes

  assert temporary("dense") > 8 * 2**20
  assert temporary("blocks") < temporary("dense") / 4


def test_bfloat16():
  """Scores and sums are float32 in all forms: what they differ by is the rounding of inputs and outputs."""
  position = row_positions()
  seen = visible(position, position, None)
  keys = jax.random.split(jax.random.key(1), 3)
  shapes = ((N, T, H, h), (N, K, T, h), (N, K, T, h))
  q, k, v = (jax.random.normal(key, s).astype(jnp.bfloat16) for key, s in zip(keys, shapes))
  valid = (position >= 0)[:, :, None, None]
  exact = jnp.where(valid, attend(jnp.float32(q), [(jnp.float32(k), jnp.float32(v), seen)]), 0)
  for kind in ("blocks", "splash"):
    rows = kernels.Rows(kind, (position,))
    got = kernels.attend_by(config(kind if kind == "splash" else "xla", attention_block=100), q, [(k, v)], rows)
    assert got.dtype == jnp.bfloat16
    difference = jnp.abs(jnp.where(valid, got.astype(jnp.float32), 0) - exact).max()
    assert 0 < difference < 2**-7 * jnp.abs(exact).max()


# ---------------------------------------------------------------------------------------------------- in the decoder


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


KINDS = [("splash", {}), ("cudnn", {}), ("xla", {"attention_block": 16})]


MIXED = dict(sliding_window=9, sliding_layers=(False, True))


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

  expected, got = next_hidden(decoder()), next_hidden(decoder(kind))
  np.testing.assert_allclose(got[1], expected[1], atol=5e-5)
  np.testing.assert_allclose(got[0][:2], expected[0][:2], atol=5e-5)  # rows whose last column is valid


@pytest.mark.parametrize("kind,over", KINDS[::2], ids=["splash", "blocks"])
def test_mesh(kind, over):
  """Rows over data and fsdp, heads over tensor: as one device has it."""
  mesh = sharding.make_mesh(sharding.ParallelConfig(data=2, fsdp=2, tensor=2))
  model, params, inputs = decoder(kind, sliding_window=9, **over), toy.params(), rows_of_tokens(8)
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
  wide = functools.partial(config, "auto", head_dim=128, compute_dtype="bfloat16")
  long, short = (8, 2048), (8, 64)
  assert kernels.choose(wide(platform="tpu"), long) == "splash"
  assert kernels.choose(wide(platform="tpu"), short) == "dense"
  assert kernels.choose(wide(platform="tpu", head_dim=80), long) == "blocks"
  assert kernels.choose(wide(platform="gpu"), long) == "cudnn"
  assert kernels.choose(wide(platform="gpu"), long, packed=True) == "blocks"
  assert kernels.choose(wide(platform="gpu", compute_dtype="float32"), long) == "blocks"
  assert kernels.choose(wide(), long) == "blocks"  # the tests run on CPU
  assert kernels.choose(wide(attention_block=2048), long) == "dense"


@pytest.mark.parametrize("kind", ["auto", "splash", "cudnn"])
def test_what_caches_leave_to_the_kernels(kind):
  make = functools.partial(config, kind, head_dim=64, platform="tpu")
  assert kernels.choose(make(), (8, 1), cache_rows=(2, 8), writes=True) == "dense"
  assert kernels.choose(make(), (8, 64), cache_rows=(2, 8)) == "dense"  # an answer behind prompt and trace
  assert kernels.choose(make(), (8, 600), cache_rows=(2,)) == ("blocks" if kind == "cudnn" else "splash")
  assert kernels.choose(make(sliding_window=70), (8, 600), cache_rows=(2,)) == "blocks"


def test_errors():
  with pytest.raises(UserError, match="model.attention: found 'flash', allowed: auto, cudnn, splash, xla"):
    ModelConfig(attention="flash")
  with pytest.raises(UserError, match="model.attention_block: found 0"):
    ModelConfig(attention_block=0)
  with pytest.raises(UserError, match="model.attention='cudnn': found model.compute_dtype='float32'"):
    kernels.check(config("cudnn", platform="gpu"))
  with pytest.raises(UserError, match="model.attention='cudnn': found head_dim 160"):
    kernels.check(config("cudnn", head_dim=160, platform="gpu", compute_dtype="bfloat16"))
  with pytest.raises(UserError, match="model.attention='splash': found head_dim 80"):
    kernels.check(config("splash", head_dim=80, platform="tpu"))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
@pytest.mark.parametrize("window", [None, WINDOW])
def test_cudnn_itself(window):
  """The kernel against XLA's form of the same call, in bfloat16."""
  position = kernels.align_left(row_positions())[0](row_positions())
  keys, shapes = jax.random.split(jax.random.key(1), 3), ((N, T, H, 64), (N, K, T, 64), (N, K, T, 64))
  q, k, v = (jax.random.normal(key, s).astype(jnp.bfloat16) for key, s in zip(keys, shapes))
  rows, valid = kernels.Rows("cudnn", (position,)), (position >= 0)[:, :, None, None]

  def value_and_gradients(platform):
    model = config("cudnn", head_dim=64, sliding_window=window, compute_dtype="bfloat16", platform=platform)
    run = functools.partial(kernels.attend_by, model)

    def loss(q, k, v):
      return jnp.sum(jnp.where(valid, run(q, [(k, v)], rows).astype(jnp.float32), 0) ** 2)

    return jax.tree.map(jnp.float32, jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v))

  assert_same(value_and_gradients("cpu"), value_and_gradients("gpu"), 2e-2)
