"""The logical axes of every parameter. sharding.py says which of them a mesh cuts."""

import jax

from nrt_jax.model.architecture import EXPERT_MATRICES, LORA

# By the last two names of its path; in layers, after a leading "layers" axis, with experts after an "expert" axis.
LOGICAL_AXES = {
  ("embedder", "embedding"): ("vocab", "embed"),
  ("head", "kernel"): ("embed", "vocab"),
  ("q", "kernel"): ("embed", "heads", "head_dim"),
  ("k", "kernel"): ("embed", "kv_heads", "head_dim"),
  ("v", "kernel"): ("embed", "kv_heads", "head_dim"),
  ("o", "kernel"): ("heads", "head_dim", "embed"),
  ("router", "kernel"): ("embed", "expert"),
  ("gate", "kernel"): ("embed", "mlp"),
  ("up", "kernel"): ("embed", "mlp"),
  ("down", "kernel"): ("mlp", "embed"),
  ("q", "bias"): ("heads", "head_dim"),
  ("k", "bias"): ("kv_heads", "head_dim"),
  ("v", "bias"): ("kv_heads", "head_dim"),
  ("o", "bias"): ("norm",),
  ("gate", "bias"): ("mlp",),
  ("up", "bias"): ("mlp",),
  ("down", "bias"): ("norm",),
  ("embedder" + LORA, "rows"): ("norm", "embed"),
  ("head" + LORA, "rows"): ("norm", "embed"),
}


def axes_of(name: str, part: str, ndim: int) -> tuple:
  """The axes of one parameter of a layer or outside of layers, by the last two names of its path."""
  if part == "scale":
    return ("norm",) * ndim
  if part not in ("a", "b"):
    axes = LOGICAL_AXES[name, part]
    return ("expert",) * (ndim - len(axes)) + axes
  target = name.removesuffix(LORA)  # A has the matrix's inputs, B its outputs; the rank is not sharded
  kernel, lead = LOGICAL_AXES[target, "kernel"], ("expert",) * (target in EXPERT_MATRICES and ndim == 3)
  cut = ndim - 1 - len(lead)
  return (*lead, *kernel[:cut], "norm") if part == "a" else (*lead, "norm", *kernel[-cut:])


def logical_axes(params):
  """The logical axes of every parameter: a tree like `params` whose leaves are tuples of names."""

  def one(path, leaf):
    names = tuple(entry.key for entry in path)
    lead = ("layers",) * (names[0] == "layers")
    return (*lead, *axes_of(*names[-2:], leaf.ndim - len(lead)))

  return jax.tree_util.tree_map_with_path(one, params)
