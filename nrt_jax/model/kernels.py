"""Attention of long rows without materializing their scores: XLA in blocks of queries, cuDNN on GPUs, splash on TPUs.

All compute the same as `attention.attend`, which decoding and short rows use. Unlike it, they also use columns, so
they require rows whose valid tokens are adjacent and in order of position (rows.Rows, packed rows, prompts); then a
token sees by column what it would see by position. `config` is an architecture.ModelConfig.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from nrt_jax.errors import UserError
from nrt_jax.model.attention import Int8, attend, visible
from nrt_jax.sharding import MESH_AXES, batch_ways, spec_for

ATTENTION = ("auto", "xla", "cudnn", "splash")
STAGES = 4  # in `in_blocks`, of keys that grow with the queries: computes 5/8 of all scores; the limit is 1/2
LANES = 128  # block sizes of splash attention are multiples of a TPU register's width
SAVED = "splash_attention"  # jax.ad_checkpoint name of what the kernel's backward pass needs from its forward pass
SHORTEST_SPLASH = 256  # columns; shorter rows don't fill two blocks, and their scores are small


@struct.dataclass
class Rows:
  """What the attention of whole rows takes instead of masks. The last segment is the rows' own."""

  kind: str = struct.field(pytree_node=False)  # blocks | cudnn | splash
  positions: tuple  # int32 [M, S] of each segment, as in attention.visible
  example_NT: jax.Array | None = None  # int32, for packed rows
  slide: jax.Array | None = None  # bool []: whether this layer has the sliding window; None: all layers or none do


def check(config) -> None:
  """Raises UserError if `model.attention` names a kernel that cannot run this architecture on the target platform."""
  kind, target, head_dim = config.attention, config.target, config.head_dim
  if (kind, target) not in (("cudnn", "gpu"), ("splash", "tpu")):
    return
  if config.attn_logit_softcapping is not None:
    raise UserError(f"model.attention={kind!r}: found a model with attn_logit_softcapping, allowed: auto, xla")
  if kind == "cudnn" and config.compute_dtype == "float32":
    raise UserError("model.attention='cudnn': found model.compute_dtype='float32', allowed: bfloat16")
  if kind == "cudnn" and (head_dim % 8 or head_dim > 128):
    raise UserError(f"model.attention='cudnn': found head_dim {head_dim}, allowed: multiples of 8 up to 128")
  if kind == "splash" and head_dim % 64:
    raise UserError(f"model.attention='splash': found head_dim {head_dim}, allowed: multiples of 64")


def choose(config, shape, packed: bool = False, cache_rows: tuple = (), writes: bool = False) -> str:
  """The attention for `shape` = (rows, columns) new tokens: dense (attention.attend) | blocks | cudnn | splash.

  Kernels require rows that divide over the mesh; cuDNN also requires rows of one example that attend only to
  themselves. Splash attention accepts caches of `cache_rows` rows each, but then no windows, since it cannot tell how
  far back their tokens are, and no packed rows, since it cannot let all examples of a row see them.
  Tokens written into a cache (`writes`) are being decoded: dense.
  """
  check(config)
  rows, columns = shape
  if writes:
    return "dense"
  kind = config.attention
  if kind == "auto":
    long, target = columns >= SHORTEST_SPLASH, config.target
    if target == "tpu" and long and config.head_dim % 64 == 0:
      kind = "splash"
    elif target == "gpu" and config.compute_dtype != "float32" and config.head_dim in (64, 128):
      kind = "cudnn"
  # Inside sharding.on_own_rows some mesh axes are manual: no kernels there.
  divides = all(n % batch_ways() == 0 for n in (rows, *cache_rows)) and not jax.sharding.get_abstract_mesh().manual_axes
  divides &= config.attn_logit_softcapping is None  # which no kernel here has
  behind = not cache_rows or (config.sliding_window is None and columns >= SHORTEST_SPLASH and not packed)
  if divides and (kind == "splash" and behind or kind == "cudnn" and not packed and not cache_rows):
    return kind
  return "blocks" if columns > config.attention_block else "dense"


def sight(config, kind: str, position_NT, positions, example_NT=None):
  """Returns a function from whether a layer has a sliding window (bool `[]`) to the `seen` argument of `attend_by`.

  That is one mask per segment if `kind` is dense, else Rows. positions: `[M, S]` of each segment.
  """
  slides = set(config.sliding_layers or (True,)) if config.sliding_window is not None else {False}
  if kind != "dense":
    rows = Rows(kind, tuple(positions), example_NT)
    return (lambda slide: rows.replace(slide=slide)) if len(slides) == 2 else (lambda slide: rows)
  windows = [config.sliding_window if slide else None for slide in sorted(slides)]
  own = [None] * (len(positions) - 1) + [example_NT]  # caches, which all examples of a row see, have no example
  masks = [tuple(visible(position_NT, p, window, e) for p, e in zip(positions, own)) for window in windows]
  if len(masks) == 1:
    return lambda slide: masks[0]
  return lambda slide: jax.tree.map(lambda full, cut: jnp.where(slide, cut, full), *masks)


def attend_by(config, query_NTHh, segments, seen):
  """Attention, `[N, T, H, h]`. `segments`: (key_MKSh, value_MKSh) of each, the rows' own last; `seen`: see `sight`.

  Outputs at pads are finite but meaningless.
  """
  if not isinstance(seen, Rows):
    how = config.target, config.score_multiplier, config.attn_logit_softcapping
    return attend(query_NTHh, [(*key_value, mask) for key_value, mask in zip(segments, seen)], *how)
  run = functools.partial(KINDS[seen.kind], config, query_NTHh, segments, seen)
  window = config.sliding_window
  if seen.slide is not None:
    return jax.lax.cond(seen.slide, lambda: run(window), lambda: run(None))
  return run(window if config.sliding_layers is None or all(config.sliding_layers) else None)


# ---------------------------------------------------------------------------------------------------- XLA, in blocks


def in_blocks(config, query_NTHh, segments, rows: Rows, window):
  """`attend` in blocks of queries, on any platform: scores `[N, H, T, S]` are never all in memory.

  The queries are split into `STAGES` ranges, each with the keys up to its end. A range is one loop over its blocks,
  whose scores are recomputed in the backward pass. A single loop over all queries, with all keys, takes twice the time;
  blocks without a loop run concurrently in XLA and take several times the memory.
  """
  N, T, H, h = query_NTHh.shape
  *shared, (key_NKTh, value_NKTh) = segments
  position_NT = rows.positions[-1]
  blocks = -(-T // config.attention_block)
  stages = min(STAGES, blocks)
  width = -(-T // blocks)
  range_width = -(-blocks // stages) * width
  out = []
  for first in range(0, T, range_width):
    last = min(first + range_width, T)
    low = 0 if window is None else max(0, first - window + 1)
    own = (key_NKTh[:, :, low:last], value_NKTh[:, :, low:last])
    # Sum gradients of keys over blocks in float32, as one product over all queries would.
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (*shared, own))
    known = (*rows.positions[:-1], position_NT[:, low:last])
    slots_NS = None if rows.example_NT is None else rows.example_NT[:, low:last]

    @jax.checkpoint
    def block(inputs, wide=wide, known=known, slots_NS=slots_NS):
      query, position_Nt, example_Nt = inputs
      seen = [visible(position_Nt, position, window) for position in known]
      if example_Nt is not None:
        seen[-1] &= (example_Nt[:, :, None] == slots_NS[:, None])[:, None]
      pairs = [(*(x.astype(query.dtype) for x in kv), mask) for kv, mask in zip(wide, seen)]
      return attend(query, pairs, multiplier=config.score_multiplier, softcap=config.attn_logit_softcapping)

    inputs = (query_NTHh, position_NT, rows.example_NT)
    pieces = jax.tree.map(functools.partial(_cut, first=first, last=last, width=width), inputs)
    mixed = jax.lax.map(block, pieces).swapaxes(0, 1)
    out.append(mixed.reshape(N, -1, H, h)[:, : last - first])
  return jnp.concatenate(out, 1)


def _cut(x, first: int, last: int, width: int):
  """Splits columns `first` to `last` of x into pieces: `[pieces, N, width, ...]`, the last padded with zeros."""
  x = x[:, first:last]
  x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % width)) + ((0, 0),) * (x.ndim - 2))
  return x.reshape(x.shape[0], -1, width, *x.shape[2:]).swapaxes(0, 1)


# --------------------------------------------------------------------------------------------------- cuDNN, on GPUs


def align_left(position_NT):
  """Two functions of `[N, T, ...]`: one rotates rows so that their first valid token is in column 0, one rotates back.

  cuDNN masks by lengths counted from column 0. Without leading pads, a causal mask is enough to hide trailing ones.
  """
  T = position_NT.shape[1]
  start_N1 = jnp.argmax(position_NT >= 0, axis=1)[:, None]
  column = jnp.arange(T)[None]

  def turn(source_NT, x):
    return jnp.take_along_axis(x, source_NT.reshape(*source_NT.shape, *(1,) * (x.ndim - 2)), axis=1)

  there, back = (column + start_N1) % T, (column - start_N1) % T
  return functools.partial(turn, there), functools.partial(turn, back)


def in_cudnn(config, query_NTHh, segments, rows: Rows, window):
  """cuDNN's flash attention of rows rotated by `align_left`; off GPUs, XLA's implementation of the same call.

  XLA partitions the call over rows and heads by itself. With a window, no lengths are passed: a causal mask is enough.
  JAX rejects an odd number of columns if there is a gradient: such rows get one more column, which the mask hides.
  """
  (key_NKTh, value_NKTh), position_NT, T = segments[-1], rows.positions[-1], query_NTHh.shape[1]
  length_N = jnp.maximum(jnp.sum(position_NT >= 0, axis=1, dtype=jnp.int32), 1)  # 0 keys would give 0 / 0
  lengths = {"query_seq_lengths": length_N, "key_value_seq_lengths": length_N}
  query, key, value = (
    jnp.pad(x, ((0, 0), (0, T % 2), (0, 0), (0, 0)))
    for x in (query_NTHh, key_NKTh.swapaxes(1, 2), value_NKTh.swapaxes(1, 2))
  )
  mixed = jax.nn.dot_product_attention(
    query,
    key,
    value,
    scale=config.score_multiplier,
    is_causal=True,
    implementation="cudnn" if config.target == "gpu" else "xla",
    **(lengths if window is None else {"local_window_size": (window - 1, 0)}),
  )
  return mixed[:, :T]


# ------------------------------------------------------------------------------------------- splash attention, on TPUs


def splash_block(columns: int) -> int:
  """The largest block size, in columns, that pads a row by less than an eighth, or by less than 128 columns."""
  return next(b for b in (512, 256, LANES) if -columns % b < max(LANES, columns / 8))


def in_splash(config, query_NTHh, segments, rows: Rows, window):
  """Splash attention (flash attention that skips masked blocks), on each device's own rows and heads.

  Pads and examples are segments of the kernel: a pad sees pads, at least itself, so that its softmax is not 0 / 0.
  Caches are copied in front of each row's own keys. Off TPUs the kernel is interpreted, for tests.
  """
  T = query_NTHh.shape[1]
  block = splash_block(T)
  columns = T + -T % block
  before = sum(position.shape[1] for position in rows.positions[:-1])
  slots = before + columns + -(before + columns) % block
  groups = [jnp.where(position >= 0, 0, -1) for position in rows.positions]
  if rows.example_NT is not None:
    groups[-1] = jnp.where(groups[-1] < 0, -1, rows.example_NT)

  def attend_here(query_NHTh, segments, groups):
    key, value, group = (
      _in_a_row([part.repeat(query_NHTh.shape[0] // part.shape[0], axis=0) for part in parts], axis, slots, fill)
      for parts, axis, fill in (*((part, 2, 0) for part in zip(*segments)), (groups, 1, -1))
    )
    own = _in_a_row(groups[-1:], 1, columns, -1)
    kernel = _splash_kernel(query_NHTh.shape[1], columns, slots, before, block, window, config.target != "tpu")
    return jax.vmap(kernel)(_in_a_row([query_NHTh], 2, columns, 0), key, value, splash.SegmentIds(own, group))

  query_NHTh = (query_NTHh.astype(jnp.float32) * config.score_multiplier).astype(query_NTHh.dtype).swapaxes(1, 2)
  heads, kv_heads = ("batch", "heads", None, None), ("batch", "kv_heads", None, None)
  run = _on_each_device(attend_here, (heads, kv_heads, ("batch", None)), heads)
  segments = [tuple(_wide(x_MKSh, query_NTHh.dtype) for x_MKSh in key_value) for key_value in segments]
  return run(query_NHTh, segments, groups)[:, :, :T].swapaxes(1, 2)


def _wide(x_MKSh, dtype):
  """Converts keys or values from any storage to plain arrays of this dtype."""
  return (x_MKSh.number * x_MKSh.scale if isinstance(x_MKSh, Int8) else x_MKSh).astype(dtype)


def _in_a_row(parts, axis: int, size: int, fill):
  """Concatenates `parts` along `axis` and pads to `size`."""
  x = jnp.concatenate(parts, axis)
  width = [(0, size - x.shape[axis] if i == axis else 0) for i in range(x.ndim)]
  return jnp.pad(x, width, constant_values=fill)


def _splash_kernel(heads: int, columns: int, slots: int, before: int, block: int, window, interpret: bool):
  """The kernel of one row: (query_HTh, key_KSh, value_KSh, segment ids) -> `[H, T, h]`. Scores are float32.

  Query i is at slot `before` + i.
  """
  shape = (columns, slots)
  mask = splash.CausalMask(shape, before) if window is None else splash.LocalMask(shape, (window - 1, 0), before)
  names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
  return splash.make_splash_mha(
    splash.MultiHeadMask([mask] * heads),
    block_sizes=splash.BlockSizes(**dict.fromkeys(names, block)),
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=SAVED,
    interpret=interpret,
  )


def _on_each_device(function, in_axes, out_axes):
  """Runs `function` on each device's shard of its arguments: XLA cannot partition a Pallas call. Axes are logical."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not set(MESH_AXES) <= set(mesh.axis_names):
    return function
  specs = tuple(spec_for(axes) for axes in in_axes)  # one for all arrays of an argument
  return jax.shard_map(function, in_specs=specs, out_specs=spec_for(out_axes), check_vma=False)


KINDS = {"blocks": in_blocks, "cudnn": in_cudnn, "splash": in_splash}
