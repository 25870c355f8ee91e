"""One decoder for all families, with one `forward` for training, prefill, decoding and scoring.

Parameters are plain trees, with layers stacked on a leading axis. Attention is in attention.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nrt_jax.model import kernels, lora, mlp
from nrt_jax.model.architecture import LORA, ModelConfig
from nrt_jax.model.attention import MASKED, KVCache, put_slots, visible, write_cache
from nrt_jax.model.axes import logical_axes
from nrt_jax.model.rope import rotate, rotation, rotations
from nrt_jax.sharding import constrain


class RMSNorm(nn.Module):
  """x / rms(x) * (offset + scale) over the last `axes` axes, computed in float32."""

  eps: float
  offset: float = 0.0
  axes: int = 1

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.constant(1 - self.offset, jnp.float32), x.shape[x.ndim - self.axes :])
    scale = scale + self.offset if self.offset else scale
    x32 = x.astype(jnp.float32)
    x32 *= jax.lax.rsqrt(jnp.mean(jnp.square(x32), tuple(range(-self.axes, 0)), keepdims=True) + self.eps)
    return (x32 * scale.reshape((1,) * (x.ndim - self.axes) + scale.shape)).astype(x.dtype)


class Adapter(nn.Module):
  """(alpha / rank) x A B, 0 at the start; A `[inputs, rank]`, B `[rank, features]` (LoRA, arXiv 2106.09685, eq. 3)."""

  rank: int
  alpha: float
  features: tuple
  inputs: int  # trailing axes of x that are contracted
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    shape = x.shape[x.ndim - self.inputs :]
    a = self.param("a", nn.initializers.normal(np.prod(shape) ** -0.5), (*shape, self.rank))
    b = self.param("b", nn.initializers.zeros, (self.rank, *self.features))
    low = jnp.tensordot(x, a.astype(self.dtype), self.inputs)
    return jnp.tensordot(low, b.astype(self.dtype), 1) * (self.alpha / self.rank)


class Weights(nn.Module):
  """Matrices that are multiplied elsewhere: `shapes` has the name of each, its shape and deviation at the start."""

  shapes: tuple

  @nn.compact
  def __call__(self):
    return {name: self.param(name, nn.initializers.normal(std) if std else nn.initializers.zeros, shape)
            for name, shape, std in self.shapes}  # fmt: skip


class Block(nn.Module):
  """One decoder layer: attention and MLP, each with its norms, added to the residual stream."""

  config: ModelConfig

  def _dense(self, name, features, use_bias, axis=-1):
    c = self.config
    init, dtype = nn.initializers.normal(c.initializer_range), jnp.dtype(c.compute_dtype)
    dense = nn.DenseGeneral(features, axis=axis, use_bias=use_bias, dtype=dtype, kernel_init=init, name=name)
    outputs, inputs = (features if isinstance(features, tuple) else (features,)), (1 if axis == -1 else len(axis))

    def flat(x):  # one token axis: with two, XLA:CPU transposes operands of weight gradients, 30 % of an update
      y = dense(x.reshape(-1, *x.shape[x.ndim - inputs :]))
      return y.reshape(*x.shape[: x.ndim - inputs], *outputs)

    if not c.lora_rank or name not in c.lora_targets:
      return flat
    adapter = Adapter(c.lora_rank, c.lora_alpha, outputs, inputs, dtype, name=name + LORA)
    return lambda x: flat(x) + adapter(x)

  def _norm(self, name, x, axes=1):
    return RMSNorm(self.config.rms_norm_eps, self.config.norm_offset, axes, name=name)(x)

  def _before(self, name, x_NTD):
    return x_NTD if self.config.norms == "post" else self._norm(f"{name}_norm", x_NTD)

  def _add(self, name, x_NTD, y_NTD):
    c = self.config
    y_NTD = y_NTD if c.norms == "pre" else self._norm(f"{name}_post_norm", y_NTD)
    return x_NTD + (y_NTD if c.residual_multiplier == 1 else y_NTD * c.residual_multiplier)

  def _query_key_value(self, y_NTD):
    c = self.config
    H, K, h = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    if not self.has_variable("params", "qkv"):
      return [self._dense(name, (heads, h), c.qkv_bias)(y_NTD) for name, heads in (("q", H), ("k", K), ("v", K))]
    all_NTKgh = self._dense("qkv", (K, H // K + 2, h), c.qkv_bias)(y_NTD)
    q_NTKgh, k_NTK1h, v_NTK1h = jnp.split(all_NTKgh, (H // K, H // K + 1), axis=-2)
    return q_NTKgh.reshape(*y_NTD.shape[:-1], H, h), k_NTK1h.squeeze(-2), v_NTK1h.squeeze(-2)

  def _gate_up(self, y_NTD):
    c = self.config
    if not self.has_variable("params", "gate_up"):
      return [self._dense(name, c.intermediate_size, c.mlp_bias)(y_NTD) for name in ("gate", "up")]
    both_NT2F = self._dense("gate_up", (2, c.intermediate_size), c.mlp_bias)(y_NTD)
    return both_NT2F[..., 0, :], both_NT2F[..., 1, :]

  def _mlp(self, y_NTD):
    c = self.config
    if c.num_experts:
      weights = self._expert_weights()
      return y_NTD if self.is_initializing() else mlp.experts(c, weights, y_NTD)
    return self._dense("down", c.hidden_size, c.mlp_bias)(mlp.between(c, *self._gate_up(y_NTD)))

  def _expert_weights(self):
    """The parameters of router and experts, as they are stored."""
    c = self.config
    E, D, F = c.num_experts, c.hidden_size, c.moe_intermediate_size
    shapes, found = {"router": (D, E), "gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}, {}
    for name, shape in shapes.items():
      found[name] = Weights((("kernel", shape, c.initializer_range),), name=name)()
      if c.lora_rank and name in c.lora_targets:
        a, b = (E, shape[1], c.lora_rank), (E, c.lora_rank, shape[2])
        found[name + LORA] = Weights((("a", a, shape[1] ** -0.5), ("b", b, 0.0)), name=name + LORA)()
    return found

  @nn.compact
  def __call__(self, x_NTD, angles, caches, seen, slot=None):
    """`caches`: (key, value) of each cache segment for this layer; `seen`: see kernels.sight.

    The new tokens are the last segment. With `slot`, they are first written into the last cache, which takes its place.
    """
    c = self.config
    q_NTHh, k_NTKh, v_NTKh = self._query_key_value(self._before("attention", x_NTD))
    if c.qk_norm:
      axes = 2 if c.qk_norm_joint else 1
      q_NTHh, k_NTKh = self._norm("q_norm", q_NTHh, axes), self._norm("k_norm", k_NTKh, axes)
    key = rotate(k_NTKh, angles).swapaxes(1, 2)
    value = v_NTKh.swapaxes(1, 2)
    if slot is not None:
      *caches, (old_key, old_value) = caches
      key, value = put_slots(old_key, key, slot, -2), put_slots(old_value, value, slot, -2)
    segments = (*caches, (key, value))
    with jax.named_scope("attention"):
      mixed_NTHh = kernels.attend_by(c, rotate(q_NTHh, angles), segments, seen)
    x_NTD = self._add("attention", x_NTD, self._dense("o", c.hidden_size, c.output_bias, axis=(-2, -1))(mixed_NTHh))
    x_NTD = self._add("mlp", x_NTD, self._mlp(self._before("mlp", x_NTD)))
    return constrain(x_NTD, "batch", None, None), (key, value)


def init_params(config: ModelConfig, key) -> dict:
  """Random parameters, float32: normal(initializer_range) matrices, unit norms, zero biases and padding rows.

  Padding is no part of what is drawn: the same seed gives the same model on every mesh.
  With adapters, frozen parameters are in the compute dtype: without gradients they need no float32 masters. Rows that
  are trained beside them start as the frozen ones.
  """
  embed_key, head_key, layer_key = jax.random.split(key, 3)
  normal = nn.initializers.normal(config.initializer_range)
  rows, padding = config.vocab_size - config.vocab_padding, (0, config.vocab_padding)
  x = jnp.zeros((1, 1, config.hidden_size), jnp.dtype(config.compute_dtype))
  position = jnp.zeros((1, 1), jnp.int32)
  seen = (visible(position, position, None),)

  def init_layer(key):
    return Block(config).init(key, x, rotation(config, position), (), seen)["params"]

  params = {
    "embedder": {"embedding": jnp.pad(normal(embed_key, (rows, config.hidden_size)), (padding, (0, 0)))},
    "layers": jax.vmap(init_layer)(jax.random.split(layer_key, config.num_hidden_layers)),
    "final_norm": {"scale": jnp.full((config.hidden_size,), 1 - config.norm_offset, jnp.float32)},
  }
  if not config.tie_word_embeddings:
    params["head"] = {"kernel": jnp.pad(normal(head_key, (config.hidden_size, rows)), ((0, 0), padding))}
  if config.lora_rank:
    params |= lora.added_rows(params, config)
    return jax.tree_util.tree_map_with_path(
      lambda path, p: p if path[-2].key.endswith(LORA) or path[-1].key == "scale" else p.astype(config.compute_dtype),
      params,
    )
  return params


def _unstack(tree, count: int) -> list:
  """Splits the leading layer axis. `lax.split` transposes to one concatenation, indexing to `count` padded sums."""
  pieces = jax.tree.map(lambda a: [p.squeeze(0) for p in jax.lax.split(a, (1,) * count)], tree)
  return [jax.tree.map(lambda p, i=i: p[i], pieces, is_leaf=lambda p: isinstance(p, list)) for i in range(count)]


def fuse_projections(layers, config: ModelConfig) -> dict:
  """Fuses query, key and value into one matrix, gate and up into another, for fewer and larger products.

  Works on stacked layers or a single one. Kernels are `[..., D, K, H / K + 2, h]` and `[..., D, 2, F]`: heads and F,
  which a mesh shards, remain separate axes. Experts are left alone: their product takes two axes and would copy three.
  """
  layers = dict(layers)

  def joined(names, shape):
    parts = [layers.pop(name) for name in names]
    return jax.tree.map(lambda *xs: jnp.concatenate([x.reshape(*shape(x)) for x in xs], -2), *parts)

  K, h = config.num_key_value_heads, config.head_dim
  qkv = joined("qkv", lambda x: (*x.shape[:-2], K, -1, h))
  gate_up = {} if config.num_experts else {"gate_up": joined(("gate", "up"), lambda x: (*x.shape[:-1], 1, -1))}
  return {**layers, "qkv": qkv, **gate_up}


def decoding_params(params, config: ModelConfig, rules: dict | None = None):
  """The copy of the policy for rollouts: cast to the compute dtype, sharded by `rules` (None: unchanged), with fused
  projections.

  Unrolled layers are unstacked here, so that the decoding loop does not slice stacked weights.
  """

  def cast(path, p):  # the update applies norms with float32 scales, so the rollout must too
    return p if path[-1].key == "scale" else p.astype(config.compute_dtype)

  params = jax.tree_util.tree_map_with_path(cast, params)
  if rules is not None:
    params = jax.tree.map(lambda p, axes: constrain(p, *axes, rules=rules), params, logical_axes(params))
  layers = params["layers"]
  if config.scan_layers:
    return {**params, "layers": fuse_projections(layers, config)}
  return {**params, "layers": [fuse_projections(layer, config) for layer in _unstack(layers, config.num_hidden_layers)]}


def _remat(config: ModelConfig, layer):
  if config.remat == "none":
    return layer
  policies, policy = jax.checkpoint_policies, None
  if config.remat == "dots":  # projections, and values named by attention kernels and experts, but no scores
    named = policies.save_only_these_names(kernels.SAVED, mlp.SAVED)
    policy = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, named)
  return jax.checkpoint(layer, policy=policy, prevent_cse=not config.scan_layers)


def forward(
  params, config: ModelConfig, token_NT, position_NT, caches: tuple[KVCache, ...] = (), slot=None, example_NT=None
):
  """Runs tokens through the decoder, after the tokens in `caches`.

  Args: token_NT, position_NT: int32 (position -1 = pad); caches: segments that the tokens may attend to, by position;
  slot: where the new tokens are written in the last cache, the same slot in all rows (None: no cache is written);
  example_NT: int32, for rows of several examples: the example of each token. Tokens see only their own example and the
  caches.
  Returns: hidden_NTD after the final norm, in the compute dtype; and the last cache with the new tokens in it, or,
  without `slot`, a KVCache of the new tokens alone (T slots).
  """
  cache_rows = tuple(cache.position_MS.shape[0] for cache in caches)
  kind = kernels.choose(config, token_NT.shape, example_NT is not None, cache_rows, slot is not None)
  if kind == "cudnn":
    turn, turn_back = kernels.align_left(position_NT)
    token_NT, position_NT = turn(token_NT), turn(position_NT)
  dtype = jnp.dtype(config.compute_dtype)
  # Gather over fsdp before the lookup: rows taken from a table sharded by columns would have to be resharded.
  table = constrain(params["embedder"]["embedding"].astype(dtype), "vocab", None)
  x_NTD = constrain(lora.embed_added(params, config, token_NT, table[token_NT]), "batch", None, None)
  if config.embedding_multiplier != 1:
    x_NTD *= jnp.asarray(config.embedding_multiplier, dtype)
  # Unrolled layers write before they read, or XLA copies every cache in every step of a decoding loop. Scanned layers
  # read the whole stack and write all layers at once afterwards, or each iteration would return a copy of its cache.
  writes_first = slot is not None and not config.scan_layers
  new_position = put_slots(caches[-1].position_MS, position_NT, slot, -1) if writes_first else position_NT
  positions = (*(cache.position_MS for cache in (caches[:-1] if writes_first else caches)), new_position)
  seen_in = kernels.sight(config, kind, position_NT, positions, example_NT)
  slides = config.sliding_layers or (config.sliding_window is not None,) * config.num_hidden_layers
  turns = config.rope_layers or (True,) * config.num_hidden_layers
  angles_in = rotations(config, position_NT)

  def layer(x_NTD, inputs):
    layer_params, layer_caches, slide, turn = inputs
    angles, block_slot = angles_in(slide, turn), slot if writes_first else None
    return Block(config).apply({"params": layer_params}, x_NTD, angles, layer_caches, seen_in(slide), block_slot)

  layer = _remat(config, layer)
  key_values = tuple((cache.key, cache.value) for cache in caches)
  if config.scan_layers:
    x_NTD, (key, value) = jax.lax.scan(
      layer, x_NTD, (params["layers"], key_values, jnp.asarray(slides), jnp.asarray(turns))
    )
  else:
    new, layers = [], params["layers"]
    if not isinstance(layers, list):  # else already unstacked by `decoding_params`
      layers = _unstack(layers, config.num_hidden_layers)
    for i, layer_params in enumerate(layers):
      caches_i = tuple((k[i], v[i]) for k, v in key_values)
      x_NTD, pair = layer(x_NTD, (layer_params, caches_i, jnp.asarray(slides[i]), jnp.asarray(turns[i])))
      new.append(pair)
    key, value = (tuple(part) for part in zip(*new))
  hidden_NTD = RMSNorm(config.rms_norm_eps, config.norm_offset).apply({"params": params["final_norm"]}, x_NTD)
  if kind == "cudnn":
    hidden_NTD = turn_back(hidden_NTD)
  new = KVCache(key, value, new_position)
  return hidden_NTD, new if slot is None or writes_first else write_cache(caches[-1], new, slot)


def logits(params, config: ModelConfig, hidden):
  """The head: hidden `[..., D]` -> float32 logits `[..., V]`. Callers chunk it if `...` is large.

  Rows that are no tokens, or none that the stage uses, have MASKED, in sampling, scoring and the update alike.
  """
  dtype = jnp.dtype(config.compute_dtype)
  if config.tie_word_embeddings:
    table, letters = params["embedder"]["embedding"], "vd"
  else:
    table, letters = params["head"]["kernel"], "dv"
  out = jnp.einsum(f"...d,{letters}->...v", hidden, table.astype(dtype), preferred_element_type=jnp.float32)
  out = lora.logits_added(params, config, hidden, out)
  if config.logits_scaling != 1:
    out /= config.logits_scaling
  if config.final_logit_softcapping is not None:
    out = config.final_logit_softcapping * jnp.tanh(out / config.final_logit_softcapping)
  if config.vocab_padding or config.vocab_unused or config.vocab_inactive:
    token = jnp.arange(config.vocab_size) < config.vocab_size - config.vocab_padding - config.vocab_unused
    if config.vocab_inactive:
      token &= np.isin(np.arange(config.vocab_size), config.vocab_inactive, invert=True)
    out = jnp.where(token.reshape((1,) * (out.ndim - 1) + (-1,)), out, MASKED)
  return out
