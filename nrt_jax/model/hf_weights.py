"""Hugging Face model directories: safetensors <-> parameter tree (and, from hf_config, config.json <-> ModelConfig).

Names of tensors are in hf_names.py, for reading and writing alike. Weights move tensor by tensor: reading
holds one stacked leaf in host memory (in float32, all layers of one matrix), writing holds one shard. Pickled weights
are never opened, and nothing is fetched.
"""

import dataclasses
import itertools
import math
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nrt_jax.errors import UserError, require_choice
from nrt_jax.files import write_json, writing
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.hf_config import hf_config, read_model_config, write_config
from nrt_jax.model.hf_directory import (
  INDEX_FILE,
  SETTINGS_FILE,
  SINGLE_FILE,
  copy_tokenizer,
  partial_of,
  removed_on_error,
  replace_directory,
  require_replaceable,
)  # fmt: skip
from nrt_jax.model.hf_fields import read_json
from nrt_jax.model.hf_names import EMBEDDING, HEAD, IN_1, IN_2, Entry, tensor_entries, text_name

__all__ = ("copy_tokenizer", "hf_config", "load_params", "locate_tensors", "read_model_config", "resize_vocabulary",
           "save_params", "tensor_entries", "write_config")  # fmt: skip

IGNORED = re.compile(r"\brotary_emb\.inv_freq$")  # a buffer of old Llama checkpoints, computed from the config
EXPORT_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}
READABLE_DTYPES = ("F32", "F16", "BF16")


def _from_file(tensor: np.ndarray, entry: Entry) -> np.ndarray:
  return (tensor.T if entry.layout in (IN_1, IN_2) else tensor).reshape(entry.shape)


def _to_file(array: np.ndarray, entry: Entry, dtype: np.dtype) -> np.ndarray:
  if entry.layout in (IN_1, IN_2):
    array = array.reshape(entry.file_shape[::-1]).T
  # safetensors writes the buffer as it lies in memory: without the copy a transposed view is stored untransposed.
  return np.ascontiguousarray(array.reshape(entry.file_shape), dtype)


def _weight_files(directory: Path) -> tuple[list[Path], dict]:
  """The safetensors files of a directory and the index's name -> file map (empty for a single file)."""
  if (directory / SINGLE_FILE).is_file():
    return [directory / SINGLE_FILE], {}
  index = directory / INDEX_FILE
  if index.is_file():
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
      raise UserError(f"{index}: weight_map: found {type(weight_map).__name__}, allowed: tensor name -> file name")
    # Only the name counts: an index must not lead out of its directory.
    return [directory / Path(name).name for name in sorted(set(weight_map.values()))], weight_map
  pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
  hint = f"; {pickles[0]} is a pickle, which is never loaded: convert it to safetensors" if pickles else ""
  raise UserError(f"{directory}: found neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")


def _open_file(path: Path):
  if not path.is_file():
    raise UserError(f"{path}: no such file, though {INDEX_FILE} names it")
  try:
    return safe_open(path, framework="np")
  except SafetensorError as e:
    raise UserError(f"{path}: not a whole safetensors file: {e}") from None


class Stored(NamedTuple):
  """A tensor of an open file, which may call it by a longer name than ours."""

  file: object
  name: str

  def read(self, entry: Entry) -> np.ndarray:
    """What of it belongs to `entry`."""
    if entry.rows is None and entry.stack is None:
      return self.file.get_tensor(self.name)
    return self.file.get_slice(self.name)[entry.part]


def locate_tensors(directory, config: ModelConfig) -> dict:
  """Opens the files and finds each tensor: name -> Stored. Reads headers only. Tied ones may have HEAD alone.

  Raises UserError, with tensor and file, on a duplicate, unknown, missing or wrongly shaped tensor.
  """
  paths, weight_map = _weight_files(directory := Path(directory))
  expected = {entry.name: entry for entry in stored_entries(directory, config)}
  optional = (HEAD,) if config.tie_word_embeddings else ()
  found, where = {}, {}
  for path in paths:
    file = _open_file(path)
    for stored in file.keys():
      name = text_name(stored, config)
      if name is None or IGNORED.search(name):
        continue
      if name in found:
        raise UserError(f"{path}: duplicate tensor {name}: {where[name].name} holds it too")
      if name not in expected and name not in optional:
        raise UserError(f"{path}: unknown tensor {name}: config.json describes a model without it")
      found[name], where[name] = Stored(file, stored), path
      entry = expected.get(name, expected[EMBEDDING])._replace(name=name)
      _check_tensor(file.get_slice(stored), entry, path)
  tied = found.keys() & set(optional)
  missing = [name for name in expected if name not in found and not (name == EMBEDDING and tied)]
  if missing:
    place = weight_map.get(missing[0], INDEX_FILE if weight_map else SINGLE_FILE)
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    raise UserError(f"{directory / place}: missing tensor {missing[0]}{more}: config.json describes a model with it")
  return found


def stored_entries(directory: Path, config: ModelConfig) -> list[Entry]:
  """The entries of a directory's files: experts one by one, or a layer's in one tensor."""
  entries = tensor_entries(config, stacked=True)
  names = {entry.name for entry in entries if entry.stack is not None}
  files = _weight_files(directory)[0] if names else ()
  stacked = any(name in names for path in files for name in _open_file(path).keys())
  return entries if stacked else tensor_entries(config)


def _check_tensor(tensor, entry: Entry, path: Path) -> None:
  shape = tuple(tensor.get_shape())
  if shape != entry.whole_shape:
    raise UserError(f"{path}: wrong shape of tensor {entry.name}: found {shape}, by config.json: {entry.whole_shape}")
  require_choice(f"{path}: dtype of tensor {entry.name}", tensor.get_dtype(), READABLE_DTYPES)


def _place(host: np.ndarray, sharding) -> jax.Array:
  """Puts a host array on the devices; in a multi-process run each process keeps its own part only."""
  if sharding is None:
    return jnp.asarray(host)
  return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def load_params(directory, config: ModelConfig, shardings=None, dtype: str = "float32") -> dict:
  """Reads a safetensors directory (float32, float16 or bfloat16) into a parameter tree in `dtype`; norms in float32.

  `shardings`: one sharding, or a tree like the parameters. Leaf after leaf is assembled in host memory from all its
  layers and placed before the next, so the host holds one stacked leaf of that dtype at a time.
  Raises UserError on unknown, missing, duplicate and wrongly shaped tensors, before any weight is read, and on a NaN or
  an infinity.
  """
  directory = Path(directory)
  entries = stored_entries(directory, config)
  files = locate_tensors(directory, config)
  placement = {}
  if shardings is not None:
    tree = traverse_util.unflatten_dict({entry.path: 0 for entry in entries}, sep=".")
    placement = traverse_util.flatten_dict(jax.tree.broadcast(shardings, tree), sep=".")
  params = {}
  for path, group in itertools.groupby(entries, key=lambda entry: entry.path):
    group = list(group)
    stack = tuple(i + 1 for i in group[-1].index)
    host = np.empty((*stack, *group[0].shape), np.float32 if path.endswith(".scale") else jnp.dtype(dtype))
    for entry in group:
      name = entry.name if entry.name in files else HEAD  # tied
      part = host[entry.index]
      part[...] = _from_file(files[name].read(entry), entry)
      if not np.isfinite(part).all():
        raise UserError(f"{directory}: tensor {name}: found NaN or infinity, allowed: finite weights")
    if config.tie_word_embeddings and group[0].name == EMBEDDING and HEAD in files:
      _require_tied(files.get(EMBEDDING, files[HEAD]), files[HEAD], directory)
    params[path] = _place(host, placement.get(path))
  return traverse_util.unflatten_dict(params, sep=".")


def _require_tied(embedding: Stored, head: Stored, directory: Path) -> None:
  left, right = (one.file.get_tensor(one.name) for one in (embedding, head))
  if not np.array_equal(left.astype(np.float32), right.astype(np.float32)):
    raise UserError(
      f"{directory}: tensor {HEAD} differs from {EMBEDDING} though config.json says tie_word_embeddings; "
      "set it to false there to keep both"
    )


def save_params(
  params,
  config: ModelConfig,
  directory,
  dtype: str = "float32",
  max_shard_bytes: int = 5 * 10**9,
  source=None,
  token_ids: dict | None = None,
  settings: dict | None = None,
) -> None:
  """Writes a model directory that transformers loads: config.json, safetensors (sharded above `max_shard_bytes`).

  Tokenizer files are copied from the directory `source`; `token_ids` as in write_config; `settings` (JSON) become
  SETTINGS_FILE, for our own commands. All is written beside `directory` (inside, if it is a mount) and renamed at the
  end; an earlier export there is replaced, other content raises UserError. In a multi-process run all processes call
  it, and process 0 writes.
  """
  require_choice("export dtype", dtype, tuple(EXPORT_DTYPES))
  require_finite(params, str(directory))
  directory = Path(directory).resolve()  # a link stays one: what it leads to is replaced
  partial = partial_of(directory)
  require_replaceable(directory, source)
  with writing(directory), removed_on_error(partial):
    if jax.process_index() == 0:
      shutil.rmtree(partial, ignore_errors=True)
      partial.mkdir(parents=True)
      write_config(config, partial, dtype, source, token_ids)
      if source is not None:
        copy_tokenizer(source, partial)
      if settings is not None:
        write_json(partial / SETTINGS_FILE, settings)
    _write_weights(params, config, partial, EXPORT_DTYPES[dtype], max_shard_bytes)
    if jax.process_index() == 0:
      replace_directory(partial, directory)


def require_finite(params, where: str) -> None:
  """Raises UserError, naming the first array, where parameters hold a NaN or an infinity. Every host must call this."""
  for path, leaf in traverse_util.flatten_dict(params, sep=".").items():
    if not bool(jnp.isfinite(leaf).all()):
      raise UserError(f"{where}: {path}: found NaN or infinity, allowed: finite parameters")


def _write_weights(params, config: ModelConfig, directory: Path, dtype: np.dtype, max_shard_bytes: int) -> None:
  leaves = traverse_util.flatten_dict(params, sep=".")
  parts = {}
  for entry in tensor_entries(config):
    parts.setdefault(entry.name, []).append(entry)
  shards = _plan_shards(list(parts.values()), dtype.itemsize, max_shard_bytes)
  weight_map, total = {}, 0
  for number, shard in enumerate(shards, 1):
    name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    tensors = {}
    for entries in shard:
      arrays = [_to_file(_host_array(leaves[entry.path], entry), entry, dtype) for entry in entries]
      tensors[entries[0].name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    weight_map |= dict.fromkeys(tensors, name)
    total += sum(tensor.nbytes for tensor in tensors.values())
    if jax.process_index() == 0:
      save_file(tensors, directory / name, metadata={"format": "pt"})  # transformers refuses files without it
  if len(shards) > 1 and jax.process_index() == 0:
    write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _plan_shards(tensors: list[list[Entry]], itemsize: int, max_bytes: int) -> list[list[list[Entry]]]:
  """Cuts the entries, in their order, into shards of at most `max_bytes` (or one tensor)."""
  shards, size = [[]], 0
  for entries in tensors:
    nbytes = sum(math.prod(entry.shape) for entry in entries) * itemsize
    if shards[-1] and size + nbytes > max_bytes:
      shards.append([])
      size = 0
    shards[-1].append(entries)
    size += nbytes
  return shards


def _host_array(leaf, entry: Entry) -> np.ndarray:
  piece = leaf[entry.index]
  if piece.shape != entry.shape:
    raise ValueError(f"{entry.path}: found {piece.shape}, the config asks for {entry.shape}")
  if isinstance(piece, jax.Array) and not piece.is_fully_addressable:
    piece = multihost_utils.process_allgather(piece, tiled=True)
  return np.asarray(piece)


def _mean_row(table_VD, ids):
  """The mean of some rows, computed in float32. A product with counts does not copy the rows, which may be all."""
  if len(ids) == 1:
    return table_VD[ids[0]]
  count_V = np.bincount(np.asarray(ids), minlength=len(table_VD)).astype(table_VD.dtype)
  options = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
  return (jnp.matmul(count_V, table_VD, **options) / len(ids)).astype(table_VD.dtype)


def resize_vocabulary(params, config: ModelConfig, new_vocab_size: int, like_ids, token_ids=None):
  """(params, config) with `new_vocab_size` rows of embedding and head.

  The rows `token_ids` (default: all new ones; rows that already existed may be named too) become the mean of the rows
  `like_ids`; other new rows, there to pad the vocabulary for a mesh, become 0. Shards anew if needed.
  Raises UserError when the vocabulary would shrink or an id lies outside of it.
  """
  if new_vocab_size < config.vocab_size:
    raise UserError(f"vocabulary: found {config.vocab_size} tokens, allowed: at most the new size {new_vocab_size}")
  token_ids = np.arange(config.vocab_size, new_vocab_size) if token_ids is None else np.asarray(token_ids, np.int32)
  limits = [(i, config.vocab_size) for i in like_ids] + [(i, new_vocab_size) for i in token_ids.tolist()]
  for token_id, size in limits:
    if not 0 <= token_id < size:
      raise UserError(f"vocabulary: found token id {token_id}, allowed: 0 to {size - 1}")

  def resize(table_VD):
    row_D = _mean_row(table_VD, like_ids)
    new_VD = jnp.zeros((new_vocab_size - config.vocab_size, row_D.shape[0]), row_D.dtype)
    rows = jnp.broadcast_to(row_D[None], (len(token_ids), row_D.shape[0]))
    return jnp.concatenate([table_VD, new_VD]).at[token_ids].set(rows)

  params = {**params, "embedder": {"embedding": resize(params["embedder"]["embedding"])}}
  if not config.tie_word_embeddings:
    params["head"] = {"kernel": resize(params["head"]["kernel"].T).T}
  return params, dataclasses.replace(config, vocab_size=new_vocab_size)
