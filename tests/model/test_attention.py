"""Kernels and blocks against attention.attend, which test_decoder.py and test_hf_weights.py test against torch.

Splash attention is interpreted here, and cuDNN's call runs in XLA's version of it: the tests cover the arguments that
we pass.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import assert_same

from nrt_jax.model import kernels
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.attention import attend, store, visible

N, T, H, K, h = 5, 300, 4, 2, 16  # three blocks of 128 columns for splash attention
WINDOW = 70


def row_positions(T=T):
  """No pads; pads in front, behind, on both sides; and a row of nothing else."""
  start, end = np.array([[0], [70], [0], [37], [0]]), np.array([[T], [T], [T - 90], [T - 13], [0]])
  column = np.arange(T)[None]
  return jnp.asarray(np.where((column >= start) & (column < end), column - start, -1), jnp.int32)


def packed_rows(T=T):
  """(position, example): examples of uneven lengths one behind the other, as data/packing.py lays them."""
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
  T = position_NT.shape[1]
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


@pytest.mark.parametrize("target", ["cpu", "tpu"])
def test_multiplied_and_capped_scores(target):
  """c tanh(m q k / c) in NumPy, dense and in blocks."""
  shapes = (2, 40, H, h), (2, K, 40, h), (2, K, 40, h)
  q, k, v = (np.asarray(jax.random.normal(jax.random.key(i), shape)) for i, shape in enumerate(shapes))
  position = jnp.broadcast_to(jnp.arange(40)[None], (2, 40))
  scores = np.einsum("nthd,nhsd->nhts", q, k.repeat(H // K, 1))
  weights = np.where(np.tri(40, dtype=bool), np.exp(2 * np.tanh(0.7 * scores / 2)), 0)
  expected = np.einsum("nhts,nhsd->nthd", weights / weights.sum(-1, keepdims=True), v.repeat(H // K, 1))
  model = config(attention_multiplier=0.7, attn_logit_softcapping=2.0, attention_block=16, platform=target)
  for seen in (kernels.Rows("blocks", (position,)), kernels.sight(model, "dense", position, (position,))(False)):
    np.testing.assert_allclose(kernels.attend_by(model, q, [(k, v)], seen), expected, atol=2e-5)


CASES = [(packed, window) for packed in (False, True) for window in (None, WINDOW)]


@pytest.mark.parametrize("packed,window", CASES)
@pytest.mark.parametrize("kind,block", [("blocks", 64), ("blocks", 128), ("splash", 0)])
def test_parity(kind, block, packed, window):
  """Ragged pads or packed examples, grouped heads, windows; outputs and the gradients of q, k and v."""
  position, example = packed_rows() if packed else (row_positions(), None)
  model = config("splash" if kind == "splash" else "xla", sliding_window=window, attention_block=block or 512)
  assert_same(reference(position, example, window), by_kind(kind, model, position, example))


@pytest.mark.parametrize("columns", [T, T - 1])
@pytest.mark.parametrize("window", [None, WINDOW])
def test_parity_of_the_cudnn_call(window, columns, monkeypatch):
  """On rows turned to the left, and turned back. JAX's check lets no odd number of columns pass where it trains."""
  position, handed_over, call = row_positions(columns), [], jax.nn.dot_product_attention
  monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *qkv, **o: handed_over.append(qkv) or call(*qkv, **o))
  turn, back = kernels.align_left(position)
  rows = kernels.Rows("cudnn", (turn(position),))
  model = config("cudnn", sliding_window=window, platform="cpu")  # the kernel itself has no float32

  def run(q, k, v):
    segments = [(turn(k.swapaxes(1, 2)).swapaxes(1, 2), turn(v.swapaxes(1, 2)).swapaxes(1, 2))]
    return back(kernels.attend_by(model, turn(q), segments, rows))

  assert_same(reference(position, None, window), values_and_gradients(run, position))
  assert handed_over and {x.shape[1] for qkv in handed_over for x in qkv} == {T}


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


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the bounds are those of XLA:CPU's plan")
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
