"""From a model directory, or a run's workdir, to a model that answers requests: tokenizer, weights, longest trace."""

import contextlib
import dataclasses
import os
import pathlib
from typing import NamedTuple

import jax

from nrt_jax import config, sharding
from nrt_jax import workdir as workdirs
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.data import prompts
from nrt_jax.data.prompts import PromptConfig, PromptFormat
from nrt_jax.errors import UserError
from nrt_jax.model import hf_weights
from nrt_jax.model.hf_config import read_json
from nrt_jax.step import policy, programs
from nrt_jax.step.tools import rollout_weights

TRACE_LENGTH = 512  # of a model whose marker is given, but no longest trace


@dataclasses.dataclass(frozen=True)
class Source:
  """Which model it is, and how it is run: what the harness calls model_args."""

  path: str | None = None  # a model directory, such as an export
  checkpoint: str | None = None  # a run's workdir, or checkpoints in it
  step: int | str | None = None  # which checkpoint: a step or "best"; None: the newest
  compute_dtype: str | None = None  # float32 or bfloat16; None: the run's own, and float32 of a directory
  data: int = -1  # devices that share the rows of a batch; -1: all that `tensor` leaves
  tensor: int = 1  # devices that share the model
  marker: str | None = None  # closes a trace; None: the one of its training, if it was trained here
  max_trace_length: int | None = None  # tokens; None: as in training; 0: the model is asked without any trace
  max_length: int | None = None  # tokens of context and continuation; None: the model's own positions

  def __post_init__(self):
    if (self.path is None) == (self.checkpoint is None):
      found = "neither" if self.path is None else "both"
      raise UserError(f"--model, --checkpoint: found {found}, allowed: one of them")
    if self.checkpoint is None and self.step is not None:
      raise UserError(f"--step: found {self.step!r} with --model, which holds no checkpoints, allowed: --checkpoint")
    for name, least in (("tensor", 1), ("max_trace_length", 0), ("max_length", 2)):
      value = getattr(self, name)
      if value is not None and (not isinstance(value, int) or value < least):
        raise UserError(f"--{name}: found {value!r}, allowed: a whole number, {least} or more")


class Opened(NamedTuple):
  """A model that is ready."""

  tokenizer: object
  prompt: PromptConfig
  setup: programs.Setup
  weights: dict  # as the decoding loop reads them
  step: int | None  # of the checkpoint; None of a directory
  trace_length: int  # tokens of its longest trace; 0: it writes none
  max_length: int  # tokens of a row

  @property
  def form(self) -> PromptFormat:
    return self.setup.form

  def on_mesh(self):
    """The context in which its programs are built and called."""
    return contextlib.nullcontext() if self.setup.mesh is None else jax.set_mesh(self.setup.mesh)


def open_model(source: Source) -> Opened:
  """Reads a model. UserError where the directory, a flag or the mesh is wrong."""
  workdir = None if source.checkpoint is None else workdirs.find_workdir(source.checkpoint)
  model, prompt, trained, trace_length = _directory(source) if workdir is None else _run(source, workdir)
  if source.marker is not None:
    prompt = dataclasses.replace(prompt, marker=source.marker)
  tokenizer, form = policy.open_tokenizer(model, prompt)
  knows = not form.added_ids
  if not knows:  # a model that has never seen the marker writes no traces, and its vocabulary stays as it is
    if source.marker is not None:
      raise UserError(f"--marker: found {source.marker!r}, which begins with no token that this model has")
    tokenizer = prompts.load_tokenizer(model.path)
    form = dataclasses.replace(form, added_ids=(), vocab_size_needed=max(tokenizer.get_vocab().values()) + 1)
  thinks = knows and (trained or source.marker is not None)
  mesh = make_mesh(source)
  architecture = policy.read_architecture(model, form, source.tensor, mesh)
  # Elsewhere rows behind the tokenizer's last token are tokens like others. Likelihoods must be those that others find.
  architecture = dataclasses.replace(architecture, vocab_unused=0)
  run = config.RunConfig("sft", ALGORITHMS["sft"].config(), model=model, prompt=prompt)
  setup = programs.Setup(run, architecture, form, mesh)
  step, weights = read_weights(setup, workdir, source.step)
  longest = source.max_length or architecture.max_position_embeddings
  longest = min(longest, architecture.longest_row or longest)
  return Opened(tokenizer, prompt, setup, weights, step, trace_length if thinks else 0, longest)


def _directory(source: Source):
  """(ModelSource, prompt format, whether a run wrote it, longest trace) of a model directory."""
  path = pathlib.Path(source.path) / hf_weights.SETTINGS_FILE
  settings = read_json(path) if path.is_file() else {}
  prompt = config.build(PromptConfig, settings.get("prompt") or {}, f"{path.name}: prompt")
  model = config.ModelSource(str(source.path), compute_dtype=source.compute_dtype or "float32")
  longest = settings.get("max_trace_length") or TRACE_LENGTH
  return model, prompt, "prompt" in settings, _given(source.max_trace_length, longest)


def _run(source: Source, workdir: str):
  """The same of a run, whose starting model may be gone."""
  run = workdirs.read_run(workdir)[-1]
  dtype = source.compute_dtype or run.model.compute_dtype
  model = dataclasses.replace(run.model, path=os.path.join(workdir, "tokenizer"), compute_dtype=dtype)
  prompt = dataclasses.replace(run.prompt, tokenizer=None, chat_template=None)
  longest = max(run.sampling.max_trace_length, run.data.max_trace_length)
  return model, prompt, True, _given(source.max_trace_length, longest)


def _given(value, default):
  return default if value is None else value


def make_mesh(source: Source):
  """The mesh over the devices that are asked for; None for a single one."""
  devices = jax.devices()
  if source.data != -1:
    devices = devices[: source.data * source.tensor]
  mesh = sharding.make_mesh(sharding.ParallelConfig(data=source.data, tensor=source.tensor), devices)
  return None if len(devices) == 1 else mesh


def read_weights(setup: programs.Setup, workdir: str | None, wanted):
  """(step, weights): the policy cast, fused and placed once for all batches; the parameters themselves are let go."""
  with contextlib.nullcontext() if setup.mesh is None else jax.set_mesh(setup.mesh):
    if workdir is None:
      step, params = None, policy.load_policy(setup.run.model, setup.model, setup.form, 0, setup.mesh)
    else:
      averaged = programs.averages(workdirs.read_run(workdir)[-1], "evaluation")
      step = workdirs.find_step(workdir, wanted)
      step, params = workdirs.find_policy(workdir, setup.model, setup.mesh, step, averaged)
    return step, jax.jit(lambda params: rollout_weights(setup, params))(params)
