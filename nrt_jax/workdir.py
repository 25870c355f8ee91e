"""The files of a run's directory (config, tokenizer, checkpoints, export), and how to read them.

    config.json  metrics.jsonl  samples.jsonl  tokenizer/  checkpoints/  tensorboard/  export/   compiled/
"""

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from nrt_jax import buckets
from nrt_jax.config import RunConfig, stages_of
from nrt_jax.data.batches import Position
from nrt_jax.errors import UserError
from nrt_jax.files import write_json, writing
from nrt_jax.model import hf_config, hf_directory, hf_weights, lora
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.records import folders, mirror
from nrt_jax.records.checkpoint import Checkpoints
from nrt_jax.sharding import RULES, where_it_divides
from nrt_jax.step import policy, programs
from nrt_jax.step.state import States


class Progress(NamedTuple):
  """The progress of a run: everything that a checkpoint must hold besides the states."""

  stage: int = 0
  step: int = 0  # steps done in that stage
  position: Position = Position()  # where the next batch starts
  evaluated: bool = True  # False: stopped before the evaluation due at this step
  ends: tuple[int, ...] = ()  # steps that each stage before it took
  window: tuple[float, ...] = ()  # the metric of its stop rule in the last steps
  succeeded: bool = False  # its stop rule has ended it

  @property
  def number(self) -> int:
    """Steps done over all stages."""
    return sum(self.ends) + self.step

  def over(self, run: RunConfig) -> bool:
    """Whether no step of the stage is left."""
    return self.succeeded or self.step >= run.total_steps

  def record(self, stage_name: str) -> dict:
    """As JSON, for the checkpoint."""
    return {
      "stage": self.stage,
      "stage_name": stage_name,
      "step": self.step,
      "position": list(self.position),
      "evaluated": self.evaluated,
      "ends": list(self.ends),
      "window": list(self.window),
      "succeeded": self.succeeded,
    }


def describe(workdir: str, tokenizer, setup: programs.Setup, values: dict | None, step: int = -1) -> None:
  """Writes what readers of the run need: config.json, and, once, tokenizer/ with the marker and the architecture.

  tokenizer/ also holds the token settings of the model's own files: bos, end tokens, generation_config.json; and which
  tokens the run added, if their rows are trained beside adapters. step: where the run resumes. Another config.json from
  before is kept as config.until_STEP.json.
  """
  if jax.process_index() != 0:
    return
  if values is not None:
    keep_config(workdir, values, step)
    write_json(os.path.join(workdir, "config.json"), values)
  directory = os.path.join(workdir, "tokenizer")
  if step < 0:  # whatever is there is of a run that never came to a checkpoint
    shutil.rmtree(directory, ignore_errors=True)
  if not os.path.isdir(directory):
    partial = f"{directory}.partial"
    with writing(directory), hf_directory.removed_on_error(partial):
      tokenizer.save_pretrained(partial)
      config, source = setup.model, setup.run.model.path
      config = dataclasses.replace(config, vocab_size=config.vocab_size - config.vocab_padding, vocab_padding=0)
      hf_config.write_config(config, partial, source=source, token_ids=token_ids(setup.form, tokenizer, source))
      hf_config.write_generation_config(source, partial, setup.form.end_ids)
      if config.lora_rows:
        write_json(os.path.join(partial, hf_weights.SETTINGS_FILE), {policy.ADDED: config.lora_rows})
      os.replace(partial, directory)


def keep_config(workdir: str, values: dict, step: int) -> None:
  """Copies the config of the steps up to `step`, where it differs from the values that come after them."""
  path = os.path.join(workdir, "config.json")
  if step >= 0 and os.path.isfile(path) and hf_config.read_json(Path(path)) != json.loads(json.dumps(values)):
    shutil.copyfile(path, os.path.join(workdir, f"config.until_{step}.json"))


def token_ids(form, tokenizer, source: str) -> dict:
  """The token ids for an exported config.json; bos is the model's own, else the tokenizer's."""
  ids = {"eos_token_id": hf_config.one_or_list(form.end_ids), "pad_token_id": form.pad_id}
  if hf_config.read_json(Path(source) / "config.json").get("bos_token_id") is None:
    ids["bos_token_id"] = tokenizer.bos_token_id
  return ids


def keep_compiled(workdir: str) -> None:
  """Puts JAX's compilation cache into a directory, so that the same program starts quickly; keeps one already set."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(os.path.join(workdir, "compiled")))
    compilation_cache.reset_cache()  # JAX decided whether to cache at the first, small compilation


def read_progress(checkpoints: Checkpoints, step: int, runs: list[RunConfig]) -> Progress:
  """The progress stored with the checkpoint of `step`. UserError if its stage is not among these."""
  record, stage_names = checkpoints.record(step), [run.stage for run in runs]
  number, name = record["stage"], record["stage_name"]
  if stage_names[number : number + 1] != [name]:
    raise UserError(f"workdir: its checkpoint is of stage {name!r}, this config has {', '.join(stage_names)}")
  # Before there were stop rules, stages ended with their last step, and the sum of those is the checkpoint's to check.
  ends = record.get("ends", [run.total_steps for run in runs[:number]])
  window, succeeded = record.get("window", ()), record.get("succeeded", False)
  position = Position(*record["position"])
  return Progress(number, record["step"], position, record["evaluated"], tuple(ends), tuple(window), succeeded)


def restore(setup: programs.Setup, checkpoints: Checkpoints, step: int) -> States:
  """The states of a checkpoint, on the devices they belong to, with the vocabulary padding of their mesh."""
  wanted, shardings = programs.abstract_states(setup), programs.state_shardings(setup)
  rows = setup.model.vocab_size - setup.model.vocab_padding
  table = checkpoints.stored(step).get("policy/params/embedder/embedding")
  padding = setup.model.vocab_padding if table is None else table.shape[0] - rows
  if padding < 0 or padding == setup.model.vocab_padding or setup.run.optimizer.moment_dtype == "int8":
    states, _ = checkpoints.restore(step, placed(wanted, shardings))
  else:
    held = programs.abstract_states(setup._replace(model=policy.with_padding(setup.model, padding)))
    places = shardings and jax.tree.map(lambda a, cut: where_it_divides(cut, a.shape), held, shardings)
    states, _ = checkpoints.restore(step, placed(held, places))
    fit = functools.partial(_with_rows, rows)
    states = jax.jit(lambda states: jax.tree.map(fit, states, wanted), out_shardings=shardings)(states)
  return programs.replicate(states) if setup.axis_name else states


def _with_rows(rows: int, leaf, wanted):
  """`leaf` in the shape of `wanted`: along a vocabulary axis its first `rows`, then zeros, as padding always has."""
  if leaf.shape == wanted.shape:
    return leaf
  kept = leaf[tuple(slice(None if size == other else rows) for size, other in zip(leaf.shape, wanted.shape))]
  return jnp.pad(kept, [(0, size - own) for size, own in zip(wanted.shape, kept.shape)])


def placed(abstract, shardings):
  """Attaches shardings to abstract arrays; with None, returns them unchanged."""
  if shardings is None:
    return abstract
  return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


def read_policy(workdir: str, config: ModelConfig, mesh=None, step: int | None = None, averaged: bool = False):
  """The policy's parameters of `find_policy`."""
  return find_policy(workdir, config, mesh, step, averaged)[1]


def find_policy(workdir: str, config: ModelConfig, mesh=None, step: int | None = None, averaged: bool = False):
  """(step, the policy's parameters alone) of a checkpoint of a workdir (None: the newest whole one), for any optimizer
  and mesh.

  averaged: uses the average over steps for trained parameters; the checkpoint must hold it.
  """
  stored = stored_architecture(workdir, config)
  if stored != config:  # its vocabulary may not divide over this mesh: read it unsharded, pad it again, shard it
    uncut = policy.param_shardings(stored, mesh, {**RULES, "vocab": None})
    step, params = _restore_policy(workdir, stored, uncut, step, averaged)
    params = policy.repad(params, stored, config)
    return step, params if mesh is None else jax.device_put(params, policy.param_shardings(config, mesh))
  return _restore_policy(workdir, config, policy.param_shardings(config, mesh), step, averaged)


def stored_architecture(workdir: str, config: ModelConfig) -> ModelConfig:
  """`config` with the vocabulary padding of the run in `workdir`, which depends on that run's tensor mesh."""
  if not os.path.isfile(os.path.join(workdir, "config.json")):
    return config
  rows = config.vocab_size - config.vocab_padding
  return policy.with_padding(config, policy.vocabulary_padding(rows, read_run(workdir)[-1].parallel.tensor))


def _restore_policy(workdir: str, config: ModelConfig, shardings, step: int | None, averaged: bool):
  """(step, the policy's parameters) as stored in a checkpoint."""
  checkpoints = Checkpoints(mirror.checkpoints_of(workdir), read_only=True)
  params = placed(policy.abstract_params(config), shardings)

  def read(step):
    parts = {"policy": {"params": params}}
    if averaged:
      trained = read_run(workdir)[checkpoints.record(step)["stage"]].optimizer.trainable
      trainable, frozen = lora.split(params, dataclasses.replace(config, trained=trained))
      parts = {"policy": {"params": frozen}, "average": trainable}
    return checkpoints.restore(step, parts, partial=True)[0]

  step, tree = checkpoints.newest(read) if step is None else (step, read(step))
  params = tree["policy"]["params"]
  params = lora.join(tree["average"], params) if averaged else params
  hf_weights.require_finite(params, f"{workdir}: checkpoint {step}")
  return step, params


def read_critic(workdir: str, config: ModelConfig, policy_params, mesh=None, step: int | None = None):
  """The parameters of a critic with weights of its own; with adapters, the policy's frozen ones are given."""
  trainable, frozen = lora.split(placed(policy.abstract_params(config), policy.param_shardings(config, mesh)), config)
  checkpoints = Checkpoints(mirror.checkpoints_of(workdir), read_only=True)
  tree, _ = checkpoints.restore(step, {"critic": {"params": trainable}}, partial=True)
  return lora.join(tree["critic"]["params"], lora.split(policy_params, config)[1] if frozen else {})


def read_run(workdir: str) -> list[RunConfig]:
  """The stages of the run in `workdir`, from its config.json."""
  return stages_of(hf_config.read_json(Path(workdir) / "config.json"))


def find_workdir(directory: str) -> str:
  """`directory` itself if it is a workdir, or the workdir whose checkpoints directory it is."""
  path = mirror.local(directory, "--checkpoint") if buckets.is_url(directory) else os.path.abspath(directory)
  workdir = os.path.dirname(path) if os.path.basename(path) == "checkpoints" else path
  if not folders.open_folder(mirror.checkpoints_of(workdir)).exists():
    raise UserError(f"--checkpoint: found {directory!r}, allowed: a run's workdir, or the checkpoints directory in it")
  return workdir


def find_step(workdir: str, wanted: int | str | None) -> int | None:
  """The step of a checkpoint. `wanted`: a step, "best", or None for the newest whole one, which only reading finds."""
  if wanted != "best":
    return wanted
  settings = read_run(workdir)[0].checkpoint
  if settings.keep_best is None:
    raise UserError("--step: found 'best', but the run's checkpoint.keep_best names no metric to rank by")
  return Checkpoints(mirror.checkpoints_of(workdir), settings, read_only=True).best_step()


def export_checkpoint(workdir: str, directory: str, step: int | None = None, dtype: str = "float32") -> int:
  """Writes the policy of a checkpoint (None: the newest whole one) in Hugging Face format, and returns its step.

  The run may still be active.
  """
  run = read_run(workdir)[-1]
  # The model directory that the run started from may be gone.
  model = dataclasses.replace(run.model, path=os.path.join(workdir, "tokenizer"))
  _, form = policy.open_tokenizer(model, dataclasses.replace(run.prompt, tokenizer=None, chat_template=None))
  config = policy.read_architecture(model, form)
  step, params = find_policy(workdir, config, step=step, averaged=programs.averages(run, "export"))
  export(params, run, config, form, workdir, directory, dtype)
  return step


def export(params, run: RunConfig, config: ModelConfig, form, workdir: str, directory: str, dtype="float32") -> None:
  """Writes parameters in Hugging Face format, with the run's tokenizer and the prompt settings that `sample` reads."""
  settings = {"prompt": dataclasses.asdict(run.prompt), "max_trace_length": run.sampling.max_trace_length}
  # The tokenizer is in the same directory as the settings, with its chat template.
  settings["prompt"] |= {"tokenizer": None, "chat_template": None, "template": form.template}
  params, config = policy.without_padding(params, config)
  hf_weights.save_params(
    params,
    config,
    directory,
    dtype,
    source=os.path.join(workdir, "tokenizer"),
    token_ids={"eos_token_id": hf_config.one_or_list(form.end_ids), "pad_token_id": form.pad_id},
    settings=settings,
  )
