"""What a run leaves in its directory: config, tokenizer, checkpoints, export; and how it is read again.

    config.json  metrics.jsonl  samples.jsonl  tokenizer/  checkpoints/  tensorboard/  export/   compiled/
"""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from nrt_jax.config import RunConfig, stages_of
from nrt_jax.data.batches import Position
from nrt_jax.errors import UserError
from nrt_jax.files import write_json
from nrt_jax.model import hf_config, hf_weights, lora
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.records.checkpoint import Checkpoints
from nrt_jax.sharding import RULES
from nrt_jax.step import policy, programs
from nrt_jax.step.state import States


class Progress(NamedTuple):
  """Where a run stands: everything besides the states that a checkpoint must hold."""

  stage: int = 0
  step: int = 0  # steps done in that stage
  position: Position = Position()  # where its next batch starts
  evaluated: bool = True  # False: stopped before the evaluation that this step is due

  def record(self, stage_name: str) -> dict:
    """As JSON, for the checkpoint."""
    return {
      "stage": self.stage,
      "stage_name": stage_name,
      "step": self.step,
      "position": list(self.position),
      "evaluated": self.evaluated,
    }


def describe(workdir: str, tokenizer, setup: programs.Setup, values: dict | None) -> None:
  """Writes what others need to read the run: config.json, and once tokenizer/, with the marker and the architecture.

  Beside them, what the model's own files say of its tokens: bos, end tokens, generation_config.json.
  """
  if jax.process_index() != 0:
    return
  if values is not None:
    write_json(os.path.join(workdir, "config.json"), values)
  directory = os.path.join(workdir, "tokenizer")
  if not os.path.isdir(directory):
    partial = f"{directory}.partial"
    tokenizer.save_pretrained(partial)
    config, source = setup.model, setup.run.model.path
    config = dataclasses.replace(config, vocab_size=config.vocab_size - config.vocab_padding, vocab_padding=0)
    hf_config.write_config(config, partial, source=source, token_ids=token_ids(setup.form, tokenizer, source))
    hf_config.write_generation_config(source, partial, setup.form.end_ids)
    os.replace(partial, directory)


def token_ids(form, tokenizer, source: str) -> dict:
  """What an exported config.json says of tokens; bos is the model's own, else the tokenizer's."""
  ids = {"eos_token_id": hf_config.one_or_list(form.end_ids), "pad_token_id": form.pad_id}
  if hf_config.read_json(Path(source) / "config.json").get("bos_token_id") is None:
    ids["bos_token_id"] = tokenizer.bos_token_id
  return ids


def keep_compiled(workdir: str) -> None:
  """Has JAX keep its compiled programs in the workdir, so that a resumed run starts at once; not if it has a place."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(os.path.join(workdir, "compiled")))
    compilation_cache.reset_cache()  # whether there is one was decided at the first, small compilation


def read_progress(checkpoints: Checkpoints, step: int, stage_names: list[str]) -> Progress:
  """Where the checkpoint of `step` stands. UserError where it is of a stage that this config does not have."""
  record = checkpoints.record(step)
  number, name = record["stage"], record["stage_name"]
  if stage_names[number : number + 1] != [name]:
    raise UserError(f"workdir: its checkpoint is of stage {name!r}, this config has {', '.join(stage_names)}")
  return Progress(number, record["step"], Position(*record["position"]), record["evaluated"])


def restore(setup: programs.Setup, checkpoints: Checkpoints, step: int) -> States:
  """The states of a checkpoint, on the devices they belong to."""
  abstract = placed(programs.abstract_states(setup), programs.state_shardings(setup))
  states, _ = checkpoints.restore(step, abstract)
  return programs.replicate(states) if setup.axis_name else states


def placed(abstract, shardings):
  """Shapes with the shardings that their arrays shall have; as they are without shardings."""
  if shardings is None:
    return abstract
  return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


def read_policy(workdir: str, config: ModelConfig, mesh=None, step: int | None = None, averaged: bool = False):
  """The policy's parameters alone from a checkpoint of a workdir (None: its newest), whatever its optimizer and mesh.

  averaged: of those that are trained the average over the steps, which the checkpoint must hold.
  """
  stored = stored_architecture(workdir, config)
  if stored != config:  # its vocabulary may not divide over this mesh: read it whole, pad it anew, then cut it
    uncut = policy.param_shardings(stored, mesh, {**RULES, "vocab": None})
    params = policy.repad(_restore_policy(workdir, stored, uncut, step, averaged), stored, config)
    return params if mesh is None else jax.device_put(params, policy.param_shardings(config, mesh))
  return _restore_policy(workdir, config, policy.param_shardings(config, mesh), step, averaged)


def stored_architecture(workdir: str, config: ModelConfig) -> ModelConfig:
  """`config` with the vocabulary padding of the run in `workdir`, which its own tensor mesh asked for."""
  if not os.path.isfile(os.path.join(workdir, "config.json")):
    return config
  rows = config.vocab_size - config.vocab_padding
  return policy.with_padding(config, policy.vocabulary_padding(rows, read_run(workdir)[-1].parallel.tensor))


def _restore_policy(workdir: str, config: ModelConfig, shardings, step: int | None, averaged: bool):
  """The policy's parameters as a checkpoint holds them."""
  checkpoints = Checkpoints(os.path.join(workdir, "checkpoints"), read_only=True)
  params = placed(policy.abstract_params(config), shardings)
  if not averaged:
    tree, _ = checkpoints.restore(step, {"policy": {"params": params}}, partial=True)
    return tree["policy"]["params"]
  trainable, frozen = lora.split(params, config)
  tree, _ = checkpoints.restore(step, {"policy": {"params": frozen}, "average": trainable}, partial=True)
  return lora.join(tree["average"], tree["policy"]["params"])


def read_run(workdir: str) -> list[RunConfig]:
  """The stages of the run in `workdir`, from its config.json."""
  return stages_of(hf_config.read_json(Path(workdir) / "config.json"))


def export_checkpoint(workdir: str, directory: str, step: int | None = None, dtype: str = "float32") -> None:
  """Writes the policy of a checkpoint (None: the newest) in Hugging Face format; the run may still be going on."""
  run = read_run(workdir)[-1]
  # The directory that it started from may be gone by now.
  model = dataclasses.replace(run.model, path=os.path.join(workdir, "tokenizer"))
  _, form = policy.open_tokenizer(model, dataclasses.replace(run.prompt, tokenizer=None, chat_template=None))
  config = policy.read_architecture(model, form)
  params = read_policy(workdir, config, step=step, averaged=programs.averages(run, "export"))
  export(params, run, config, form, workdir, directory, dtype)


def export(params, run: RunConfig, config: ModelConfig, form, workdir: str, directory: str, dtype="float32") -> None:
  """Writes parameters in Hugging Face format, with the run's tokenizer and the prompt settings that `sample` reads."""
  settings = {"prompt": dataclasses.asdict(run.prompt), "max_trace_length": run.sampling.max_trace_length}
  settings["prompt"] |= {"tokenizer": None, "chat_template": None}  # both lie beside the settings
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
