"""From a ModelSource to what a run starts with: tokenizer, prompt format, architecture and parameters."""

import dataclasses
import functools
from pathlib import Path

import jax

from nrt_jax.config import ModelSource
from nrt_jax.data import critic_prompts, prompts
from nrt_jax.environments.interface import Environment
from nrt_jax.environments.table import ENVIRONMENTS
from nrt_jax.errors import UserError
from nrt_jax.model import hf_config, hf_directory, hf_weights, kernels, lora
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.axes import logical_axes
from nrt_jax.model.decoder import init_params
from nrt_jax.rollout.sampler import BLOCK
from nrt_jax.sharding import RULES, shardings_for

ADDED = "added_ids"  # in hf_weights.SETTINGS_FILE of a workdir's tokenizer directory

NOT_COMPUTED = ("path", "weights", "new_rows", "new_rows_description")  # keys of a ModelSource: where weights come from


def open_tokenizer(model: ModelSource, prompt: prompts.PromptConfig):
  """(tokenizer, PromptFormat): the prompt's own tokenizer, else the one in the model's directory.

  End tokens are those that the tokenizer's directory names, else the model's.
  """
  where = prompt.tokenizer or model.path
  if where is None:
    raise UserError("model.path: found null, allowed: a directory in Hugging Face format (config.json and a tokenizer)")
  places = [place for place in (prompt.tokenizer, model.path) if place and not str(place).startswith(prompts.HUB)]
  for place in places:
    hf_directory.require_own_files(place)
  tokenizer = prompts.load_tokenizer(where)
  like_ids = description_ids(model, tokenizer)  # before the marker becomes a token
  end_ids = next(filter(None, map(hf_config.read_end_ids, places)), ())
  form = prompts.make_format(tokenizer, prompt, end_ids)
  return tokenizer, dataclasses.replace(form, like_ids=(form.eos_id,) if model.new_rows == "end_token" else like_ids)


def description_ids(model: ModelSource, tokenizer) -> tuple:
  """The tokens of model.new_rows_description, where new rows start as their mean; else ()."""
  if model.new_rows != "description":
    return ()
  ids = tuple(prompts.encode_data(tokenizer, [model.new_rows_description])[0])
  if not ids:
    raise UserError("model.new_rows_description: found '', allowed: a text of one token or more")
  return ids


def open_critic(run, tokenizer, form: prompts.PromptFormat) -> critic_prompts.CriticForm | None:
  """The token ids that a stage's critic needs; None where its algorithm has none."""
  critic = getattr(run.algorithm, "critic", None)
  return None if critic is None else critic_prompts.make_form(tokenizer, form, run.prompt, critic)


def open_environment(run, tokenizer, form: prompts.PromptFormat) -> Environment | None:
  """The environment that a stage's policy lives in; None without one."""
  if run.environment is None:
    return None
  return ENVIRONMENTS[run.environment_name].environment.open(run.environment, tokenizer, form)


def read_architecture(model: ModelSource, form: prompts.PromptFormat, tensor_ways: int = 1, mesh=None) -> ModelConfig:
  """The architecture of `model.path`, its vocabulary grown to the tokenizer's and padded to divide over the mesh.

  Rows of the stored vocabulary behind the tokenizer's last token stay, and are never sampled: they have no text.
  Its `platform` is that of the mesh's devices, which may be of another kind than this host's (ahead-of-time compiling).
  """
  if model.path is None:
    raise UserError("model.path: found null, allowed: a directory in Hugging Face format (config.json and a tokenizer)")
  computed = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in NOT_COMPUTED}
  config = hf_weights.read_model_config(model.path, **computed)
  rows, added = max(config.vocab_size, form.vocab_size_needed), added_ids(model.path, config.vocab_size, form)
  padding = vocabulary_padding(rows, tensor_ways)
  platform = None if mesh is None else mesh.devices.flat[0].platform
  config = dataclasses.replace(
    config,
    vocab_size=rows + padding,
    vocab_unused=rows - form.vocab_size_needed,
    vocab_padding=padding,
    platform=platform,
    lora_rows=added if config.lora_rank else (),
  )
  kernels.check(config)
  return config


def added_ids(directory, stored_rows: int, form: prompts.PromptFormat) -> tuple:
  """The tokens whose rows a run has made or will make: its tokenizer has them, the model it started from did not.

  The tokenizer directory of a workdir has them too; a file there names them (see `workdir.describe`).
  """
  record, recorded = Path(directory) / hf_weights.SETTINGS_FILE, ()
  if record.is_file():
    recorded = hf_config.read_json(record).get(ADDED, ())
  return tuple(sorted({*recorded, *form.added_ids, *range(stored_rows, form.vocab_size_needed)}))


def vocabulary_padding(rows: int, tensor_ways: int) -> int:
  """Rows to add so that each tensor device has as many: whole blocks of sampler.draw, where that adds below 1 %."""
  blocks = -rows % (tensor_ways * BLOCK)
  return blocks if tensor_ways > 1 and 100 * blocks < rows else -rows % tensor_ways


def load_policy(model: ModelSource, config: ModelConfig, form: prompts.PromptFormat, seed: int, mesh=None):
  """The parameters, on the mesh if there is one. New tokens' rows are the mean of those of `form.like_ids`, or of all.

  Random weights are made on the devices, under jit; pretrained ones are read leaf by leaf, in float32, with adapters in
  the compute dtype.
  """
  if config.lora_rank and model.weights == "pretrained":
    frozen = load_pretrained(model, lora.without(config), form, mesh, config.compute_dtype)
    params = lora.attach(frozen, random_adapters(config, seed, mesh), config)
    return params if mesh is None else jax.device_put(params, param_shardings(config, mesh))
  shardings = param_shardings(config, mesh)
  if model.weights == "random":
    init = jax.jit(functools.partial(init_params, config), out_shardings=shardings)
    return init(jax.random.key(seed))
  return load_pretrained(model, config, form, mesh)


def random_adapters(config: ModelConfig, seed: int, mesh=None) -> dict:
  """The adapters that random parameters would have: the compiler leaves out all that is not among its results."""
  shardings = None if mesh is None else {"layers": lora.split(param_shardings(config, mesh), config)[0]["layers"]}

  def init(key):
    return {"layers": lora.split(init_params(config, key), config)[0]["layers"]}

  return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))


def load_pretrained(model: ModelSource, config: ModelConfig, form: prompts.PromptFormat, mesh=None, dtype="float32"):
  """The parameters of `model.path` in `dtype`, with rows for the tokens of `form` and padding for the mesh."""
  shardings = param_shardings(config, mesh)
  stored = hf_weights.read_model_config(model.path)
  if stored.vocab_size == config.vocab_size and not form.added_ids:
    return hf_weights.load_params(model.path, stored, shardings, dtype)
  # The stored vocabulary may not divide over the mesh: read it whole, grow it, then cut it.
  params = hf_weights.load_params(model.path, stored, param_shardings(stored, mesh, {**RULES, "vocab": None}), dtype)
  new_ids = added_ids(model.path, stored.vocab_size, form)
  like_ids = form.like_ids or sorted({*range(min(stored.vocab_size, form.vocab_size_needed))} - {*new_ids})
  params, _ = hf_weights.resize_vocabulary(params, stored, config.vocab_size, like_ids, new_ids)
  return params if shardings is None else jax.device_put(params, shardings)


def without_padding(params, config: ModelConfig) -> tuple[dict, ModelConfig]:
  """The parameters and architecture that a model directory holds: adapters merged, no rows that are no tokens."""
  params, config = lora.merge(params, config), lora.without(config)
  plain = with_padding(config, 0)
  return repad(params, config, plain), plain


def with_padding(config: ModelConfig, padding: int) -> ModelConfig:
  """The same tokens, followed by `padding` rows that are no tokens."""
  rows = config.vocab_size - config.vocab_padding
  return dataclasses.replace(config, vocab_size=rows + padding, vocab_padding=padding)


def repad(params, old: ModelConfig, new: ModelConfig):
  """Parameters of `old` with the vocabulary padding of `new`, which differs in nothing else."""
  rows = old.vocab_size - old.vocab_padding
  if old.vocab_padding:
    params = {**params, "embedder": {"embedding": params["embedder"]["embedding"][:rows]}}
    if not old.tie_word_embeddings:
      params["head"] = {"kernel": params["head"]["kernel"][:, :rows]}
  if new.vocab_padding:
    params, _ = hf_weights.resize_vocabulary(params, with_padding(old, 0), new.vocab_size, (0,), ())
  return params


def abstract_params(config: ModelConfig):
  """Shapes and dtypes of the parameters."""
  return jax.eval_shape(functools.partial(init_params, config), jax.eval_shape(jax.random.key, 0))


def param_shardings(config: ModelConfig, mesh, rules: dict = RULES):
  """How the mesh cuts the parameters; None without a mesh. UserError where a size does not divide."""
  if mesh is None:
    return None
  params = abstract_params(config)
  return shardings_for(mesh, params, logical_axes(params), rules)
