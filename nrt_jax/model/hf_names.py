"""The tensors of a Hugging Face model's files: their names and layouts, and the places of our tree that they fill."""

import collections
import itertools
import math
from typing import NamedTuple

import jax
from flax import traverse_util

from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import init_params
from nrt_jax.model.hf_families import FAMILIES

# How a tensor lies in its file: as ours, with its axes merged into one, or as a matrix [output, input] of which the
# input is made of our leading IN_1 or IN_2 axes.
SAME, FLAT, IN_1, IN_2 = "same", "flat", 1, 2

# Name in the file ({} is the layer's number, {expert} the expert's), path in our tree, layout. A name counts where the
# tree has its path, and a name that several paths have is a tensor that holds them one behind the other.
KEYS = (
  ("model.embed_tokens.weight", "embedder.embedding", SAME),
  ("model.layers.{}.input_layernorm.weight", "layers.attention_norm.scale", SAME),
  ("model.layers.{}.self_attn.q_proj.weight", "layers.q.kernel", IN_1),
  ("model.layers.{}.self_attn.q_proj.bias", "layers.q.bias", FLAT),
  ("model.layers.{}.self_attn.k_proj.weight", "layers.k.kernel", IN_1),
  ("model.layers.{}.self_attn.k_proj.bias", "layers.k.bias", FLAT),
  ("model.layers.{}.self_attn.v_proj.weight", "layers.v.kernel", IN_1),
  ("model.layers.{}.self_attn.v_proj.bias", "layers.v.bias", FLAT),
  ("model.layers.{}.self_attn.o_proj.weight", "layers.o.kernel", IN_2),
  ("model.layers.{}.self_attn.o_proj.bias", "layers.o.bias", SAME),
  ("model.layers.{}.self_attn.q_norm.weight", "layers.q_norm.scale", FLAT),
  ("model.layers.{}.self_attn.k_norm.weight", "layers.k_norm.scale", FLAT),
  ("model.layers.{}.post_attention_layernorm.weight", "layers.attention_post_norm.scale", SAME),
  ("model.layers.{}.pre_feedforward_layernorm.weight", "layers.mlp_norm.scale", SAME),
  ("model.layers.{}.post_feedforward_layernorm.weight", "layers.mlp_post_norm.scale", SAME),
  ("model.layers.{}.mlp.gate.weight", "layers.router.kernel", IN_1),
  ("model.layers.{}.mlp.gate_proj.weight", "layers.gate.kernel", IN_1),
  ("model.layers.{}.mlp.gate_proj.bias", "layers.gate.bias", SAME),
  ("model.layers.{}.mlp.up_proj.weight", "layers.up.kernel", IN_1),
  ("model.layers.{}.mlp.up_proj.bias", "layers.up.bias", SAME),
  ("model.layers.{}.mlp.down_proj.weight", "layers.down.kernel", IN_1),
  ("model.layers.{}.mlp.down_proj.bias", "layers.down.bias", SAME),
  ("model.norm.weight", "final_norm.scale", SAME),
  ("lm_head.weight", "head.kernel", IN_1),
)
EMBEDDING, HEAD = KEYS[0][0], KEYS[-1][0]
QKV, GATE_UP = "model.layers.{}.self_attn.qkv_proj.weight", "model.layers.{}.mlp.gate_up_proj.weight"
FUSED = {
  **{f"layers.{name}.kernel": QKV for name in ("q", "k", "v")},
  **{f"layers.{name}.kernel": GATE_UP for name in ("gate", "up")},
}
EXPERTS = {
  "layers.gate.kernel": "model.layers.{}.mlp.experts.{expert}.gate_proj.weight",
  "layers.up.kernel": "model.layers.{}.mlp.experts.{expert}.up_proj.weight",
  "layers.down.kernel": "model.layers.{}.mlp.experts.{expert}.down_proj.weight",
}
# As transformers 5 holds them, and writes them where told to: all experts of a layer in one tensor, gate before up.
STACKED = {
  "layers.gate.kernel": "model.layers.{}.mlp.experts.gate_up_proj",
  "layers.up.kernel": "model.layers.{}.mlp.experts.gate_up_proj",
  "layers.down.kernel": "model.layers.{}.mlp.experts.down_proj",
}
PRE_NORMS = {"layers.mlp_norm.scale": "model.layers.{}.post_attention_layernorm.weight"}  # its name with norms="pre"


TEXT_PART = "language_model."  # before the names of a text part's tensors in the files of the whole model
OTHER_PARTS = ("vision_tower.", "multi_modal_projector.")


def text_name(stored: str, config: ModelConfig) -> str | None:
  """What a text model calls a tensor of the files; None where it belongs to another part of a whole model."""
  if FAMILIES[config.family].whole is None:
    return stored
  return None if stored.startswith(OTHER_PARTS) else stored.removeprefix(TEXT_PART)


class Entry(NamedTuple):
  """One tensor of a file, or some rows of one, and where it belongs in the parameter tree."""

  name: str
  path: str  # in our tree, joined by dots
  index: tuple  # into the leaf's leading axes: () | (layer,) | (layer, expert)
  layout: str | int
  shape: tuple  # ours, without these axes
  first: int = 0  # row of the file's tensor that it begins with
  rows: int | None = None  # of the file's tensor; None: it holds nothing else
  stack: int | None = None  # experts on the leading axis of the file's tensor; None: it has no such axis

  @property
  def whole_shape(self) -> tuple:
    """The shape of the file's tensor."""
    shape = self.file_shape if self.rows is None else (self.rows, *self.file_shape[1:])
    return shape if self.stack is None else (self.stack, *shape)

  @property
  def part(self) -> tuple:
    """Where it lies in the file's tensor."""
    rows = slice(self.first, self.first + self.file_shape[0])
    return (rows,) if self.stack is None else (self.index[-1], rows)

  @property
  def file_shape(self) -> tuple:
    """The shape of its part of the file's tensor."""
    if self.layout == SAME:
      return self.shape
    if self.layout == FLAT:
      return (math.prod(self.shape),)
    return math.prod(self.shape[self.layout :]), math.prod(self.shape[: self.layout])


def tensor_entries(config: ModelConfig, stacked: bool = False) -> list[Entry]:
  """Every tensor that a checkpoint of `config` holds, the layers of one leaf in a row, and in each layer its experts.

  stacked: the experts of a layer are one tensor.
  """
  tree = traverse_util.flatten_dict(jax.eval_shape(lambda: init_params(config, jax.random.key(0))), sep=".")
  names = (PRE_NORMS if config.norms == "pre" else {}) | (FUSED if FAMILIES[config.family].fused else {})
  names |= (STACKED if stacked else EXPERTS) if config.num_experts else {}
  entries = []
  for name, path, layout in KEYS:
    if path not in tree:
      continue
    name, lead = names.get(path, name), 1 if path.startswith("layers.") else 0
    experts = path in EXPERTS and config.num_experts
    shape = tree[path].shape[lead + bool(experts) :]
    for index in itertools.product(*map(range, tree[path].shape[: lead + bool(experts)])):
      entry = Entry(name.format(*index[:1], expert=index[-1] if index else None), path, index, layout, shape)
      entries.append(entry._replace(stack=config.num_experts) if experts and stacked else entry)
  return _with_rows(entries)


def _with_rows(entries: list[Entry]) -> list[Entry]:
  """The same entries; those that share a tensor know which of its rows are theirs."""
  rows, first = collections.Counter(), collections.Counter()
  for entry in entries:
    rows[entry.name, entry.index] += entry.file_shape[0]
  found = []
  for entry in entries:
    key = entry.name, entry.index
    shared = rows[key] != entry.file_shape[0]
    found.append(entry._replace(first=first[key], rows=rows[key]) if shared else entry)
    first[key] += entry.file_shape[0]
  return found
