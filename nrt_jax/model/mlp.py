"""What a layer's MLP computes between its matrices; and experts, among which a router chooses for each token.

No token is dropped, whatever the others of its batch choose: its output depends on itself alone, so pads, packing,
micro-batches and decoding token by token change nothing. `config` is an architecture.ModelConfig.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

from nrt_jax.model.architecture import LORA
from nrt_jax.model.axes import axes_of
from nrt_jax.sharding import on_own_parts

TILES = (256, 512, 128)  # of group_products: rows, most columns, fewest columns
SAVED = "experts"  # jax.ad_checkpoint name of the products of tokens and experts that remat="dots" saves


@jax.custom_vjp
def gated(gate, up):
  """silu(gate) * up, with gradients computed once: XLA:CPU would recompute them in the copies for both uses."""
  return jax.nn.silu(gate) * up


def _gated_backward(saved, d_out):
  gate, up = saved
  s = jax.nn.sigmoid(gate)
  d_gate, d_up = d_out * up * s * (1 + gate * (1 - s)), d_out * gate * s
  return jax.lax.optimization_barrier((d_gate, d_up))


gated.defvjp(lambda gate, up: (gated(gate, up), (gate, up)), _gated_backward)


def between(config, gate, up):
  """The activation of `gate` times `up`."""
  if config.activation == "gelu_tanh":
    return jax.nn.gelu(gate) * up
  return gated(gate, up) if config.target == "cpu" else jax.nn.silu(gate) * up


# --------------------------------------------------------------------------------------------------------- experts


def route(config, x_MD, router_DE):
  """(weight_Mk float32, expert_Mk): the k most probable experts of each token, by a softmax over all of them.

  Scores are sums in float32 of products that are exact in bfloat16, so that a near tie is not decided by rounding them.
  """
  exact = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
  weight_Mk, expert_Mk = jax.lax.top_k(jax.nn.softmax(jnp.matmul(x_MD, router_DE, **exact)), config.num_experts_per_tok)
  if config.norm_topk_prob:
    weight_Mk /= weight_Mk.sum(-1, keepdims=True)
  return weight_Mk, expert_Mk


def experts(config, weights, x_NTD):
  """The sum over each token's experts of weight x expert(token). `weights`: a layer's parameters of router and experts.

  On a mesh each device routes its own rows, and has its part of every expert's width.
  """
  weights = jax.tree.map(lambda w: w.astype(x_NTD.dtype), weights)
  axes = jax.tree_util.tree_map_with_path(lambda path, w: axes_of(path[0].key, path[1].key, w.ndim), weights)
  run = _all_for_all if config.dense_experts else _sorted

  def own(weights, x_NTD):
    x_MD = x_NTD.reshape(-1, x_NTD.shape[-1])
    return run(config, weights, x_MD, *route(config, x_MD, weights["router"]["kernel"])).reshape(x_NTD.shape)

  return on_own_parts(own, weights, axes, x_NTD)


def _all_for_all(config, weights, x_MD, weight_Mk, expert_Mk):
  """Every expert runs every token, with weight 0 where it was not chosen."""
  chosen_MkE = jax.nn.one_hot(expert_Mk, config.num_experts)
  weight_EM = jnp.sum(chosen_MkE * weight_Mk[..., None], 1).T
  return _run(config, weights, x_MD, weight_EM[..., None], jnp.matmul).sum(0)


def _sorted(config, weights, x_MD, weight_Mk, expert_Mk):
  """Each expert runs its own tokens: S = M k slots, sorted by expert, in one product with matrices of ragged groups."""
  expert_S = expert_Mk.reshape(-1)
  order_S = jnp.argsort(expert_S, stable=True)
  places = (order_S, jnp.argsort(order_S).reshape(expert_Mk.shape))
  count_E = jnp.sum(expert_S[:, None] == jnp.arange(config.num_experts)[None], 0, dtype=jnp.int32)
  weight_S1 = deal(weight_Mk.reshape(-1, 1), (order_S, places[1].reshape(-1, 1)))
  product = ragged_on_tpus if config.target == "tpu" else jax.lax.ragged_dot
  out_SD = _run(config, weights, deal(x_MD, places), weight_S1, lambda x, w: product(x, w, count_E))
  return collect(out_SD, places)


def _run(config, weights, x, weight, product):
  """Weighted outputs of experts. The weight comes before `down`, whose wider output need not be saved then."""

  def by(name, x):
    y = product(x, weights[name]["kernel"])
    if name + LORA not in weights:
      return y
    pair = weights[name + LORA]
    return y + product(product(x, pair["a"]), pair["b"]) * (config.lora_alpha / config.lora_rank)

  gate, up = (checkpoint_name(by(name, x), SAVED) for name in ("gate", "up"))
  inner = between(config, gate, up) * weight
  return by("down", inner.astype(x.dtype))


@jax.custom_vjp
def ragged_on_tpus(x_SI, kernel_EIO, count_E):
  """jax.lax.ragged_dot, whose gradient of the kernels XLA would compute with masks: E times the work."""
  return jax.lax.ragged_dot(x_SI, kernel_EIO, count_E)


def _ragged_backward(saved, g_SO):
  x_SI, kernel_EIO, count_E = saved
  _, to_rows = jax.vjp(lambda x: jax.lax.ragged_dot(x, kernel_EIO, count_E), x_SI)
  _, to_kernels = jax.vjp(lambda kernel: jax.lax.ragged_dot(x_SI, kernel, count_E), kernel_EIO)
  narrow = min(kernel_EIO.shape[1:]) < TILES[-1]  # such as adapters
  return *to_rows(g_SO), *(to_kernels(g_SO) if narrow else (group_products(x_SI, g_SO, count_E),)), None


ragged_on_tpus.defvjp(lambda *inputs: (jax.lax.ragged_dot(*inputs), inputs), _ragged_backward)


def group_products(x_SI, g_SO, count_E, interpret: bool = False):
  """`[E, I, O]`: the product x^T g over the rows of each group, by the kernel that JAX has for TPUs."""
  rows = -len(x_SI) % TILES[0]  # the kernel takes whole tiles: rows of zeros, in the last group
  x_SI, g_SO = (jnp.pad(x, ((0, rows), (0, 0))) for x in (x_SI, g_SO))
  tiles = (TILES[0], *(max(TILES[-1], min(TILES[1], size)) for size in (x_SI.shape[1], g_SO.shape[1])))
  return tgmm(x_SI.T, g_SO, count_E.at[-1].add(rows), x_SI.dtype, tiles, interpret=interpret)


# Tokens are dealt to slots, and the slots of a token are collected. Each is the gradient of the other, and both read:
# JAX's own gradient of reading is an addition to places in memory, which is slow.


def _deal(x_MD, places):
  order_S, place_Mk = places
  return x_MD[order_S // place_Mk.shape[1]]


def _collect(y_SD, places):
  return y_SD[places[1]].sum(1)


@jax.custom_vjp
def deal(x_MD, places):
  """`[S, D]`: to each slot its token. places: (order_S, place_Mk): slot s holds choice order_S[s], of which token
  order_S[s] // k; choice j of token m is in slot place_Mk[m, j]."""
  return _deal(x_MD, places)


@jax.custom_vjp
def collect(y_SD, places):
  """`[M, D]`: the sum over the slots of each token."""
  return _collect(y_SD, places)


deal.defvjp(lambda x, places: (_deal(x, places), places), lambda places, g: (_collect(g, places), None))
collect.defvjp(lambda y, places: (_collect(y, places), places), lambda places, g: (_deal(g, places), None))
