"""Compiles a run's training step for a slice: the programs of step/programs.py, on abstract states and prompts."""

import dataclasses
import math
import pathlib
import re
import time
from typing import NamedTuple

import jax
import numpy as np

from nrt_jax import sharding
from nrt_jax.config import RunConfig
from nrt_jax.data import batches, packing, prompts
from nrt_jax.data.critic_prompts import CriticForm
from nrt_jax.errors import UserError
from nrt_jax.model import hf_config
from nrt_jax.performance import memory
from nrt_jax.step import host_grading, opening, policy, programs, sizes, tools


class Overflow(NamedTuple):
  """The compiler's report on a program that does not fit."""

  used: int  # bytes needed
  limit: int  # bytes available
  reason: str


class Compiled(NamedTuple):
  """A program compiled for the slice, or why it could not be."""

  name: str
  seconds: float
  memory: memory.Memory | None
  text: str | None  # optimized HLO; None if libtpu is newer than JAX can read
  flops_once: float  # XLA's own counts, with every loop body counted once
  bytes_once: float
  overflow: Overflow | None = None


class Rows(NamedTuple):
  """The rows that a step trains on: N x L, and the number of columns from the first predicted one on."""

  count: int
  length: int
  heads: int


def open_setup(run: RunConfig, devices: list) -> tuple[programs.Setup, bool]:
  """The Setup on `devices`, and whether its tokenizer is a placeholder: only config.json is required."""
  if run.parallel.kind != "jit":
    raise UserError(f"parallel.kind: found {run.parallel.kind!r}, allowed for a plan: 'jit'")
  mesh = sharding.make_mesh(run.parallel, devices)
  place = run.prompt.tokenizer or run.model.path
  known = place is not None and has_tokenizer(place)
  tokenizer, form = policy.open_tokenizer(run.model, run.prompt) if known else (None, placeholder_format(run))
  model = policy.read_architecture(run.model, form, run.parallel.tensor, mesh)
  if known:
    setup = opening.open_setup(run, model, tokenizer, form, mesh)
  elif run.environment is None:
    model = dataclasses.replace(model, trained=run.optimizer.trainable)
    setup = programs.Setup(run, model, form, mesh, placeholder_critic(run, form))
  else:
    found = f"found {run.environment_name!r}, whose words are looked up in a tokenizer, and {place} has none"
    raise UserError(f"environment.name: {found}, allowed: prompt.tokenizer")
  sizes.check(setup)
  return setup, not known


def has_tokenizer(place: str) -> bool:
  return any((pathlib.Path(place) / name).exists() for name in prompts.TOKENIZER_FILES)


def placeholder_format(run: RunConfig) -> prompts.PromptFormat:
  """A format with made-up token ids: the marker's first piece is an added token, the others have four letters each."""
  if run.model.path is None:
    raise UserError("model.path: found null, allowed: a directory with a config.json (a tokenizer is optional)")
  size = hf_config.read_model_config(run.model.path).vocab_size
  marker = run.prompt.marker
  rest = marker[len(re.match(r"<[^<>\s]+>|\S+", marker)[0]) :]
  marker_ids = (size, *range(math.ceil(len(rest) / 4)))
  return prompts.PromptFormat("plain", (), marker_ids, (size, size - 1), size - 1, size - 1, size + 1, (size,))


def placeholder_critic(run: RunConfig, form: prompts.PromptFormat) -> CriticForm | None:
  """The form of the run's critic, if it has one, where each four letters of its template are a token."""
  critic = getattr(run.algorithm, "critic", None)
  if critic is None:
    return None
  parts = [math.ceil(len(part) / 4) for part in re.split("|".join(map(re.escape, critic.slots)), critic.shown)]
  *middle, tail = (tuple(range(count)) for count in parts[1:])
  labels = tuple((i,) for i in range(len(critic.words)))
  head = critic.max_head_length or run.prompt.max_prompt_length + parts[0]
  answer = critic.max_answer_length or run.prompt.max_answer_length
  ends = ((*tail, *form.marker_ids) if not critic.reasoning else tail, labels, form.marker_ids, form.end_ids)
  return CriticForm(critic.kind, *(middle or [()]), *ends, critic.reasoning, 0, (), (), head, answer)


def abstract_batch(setup: programs.Setup, draws: int = 1):
  """Shapes of the batch that training would read for `draws` draws, from one made-up example."""
  run, one = setup.run, np.zeros(1, np.int32)
  hints, hint_width = None, 0
  if setup.algorithm.needs_hints:
    template = math.ceil(len(run.prompt.hint_template) / 4)
    hint_width = run.prompt.max_hint_length or run.prompt.max_prompt_length + run.prompt.max_answer_length + template
    hints = [one]
  if setup.critic is not None:
    hints, hint_width = [one], setup.critic.head_width
  if setup.environment is not None and setup.environment.reads_world:
    hints, hint_width = [one], run.environment.max_world_length
  widths = (run.prompt.max_prompt_length, run.prompt.max_answer_length, run.data.max_trace_length)
  ids = ([one], [one], [one[:0]])
  rows = batches.TokenDataset([None], *ids, widths, setup.form.pad_id, {}, hints=hints, hint_width=hint_width)
  if run.data.packing:
    rows = packing.pack_dataset(rows, run.data.packing, setup.form.marker_ids)
  batch = batches.batch(rows, batches.Position(), run.prompts_per_step * draws, run.seed)[0]
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch)


def trained_rows(setup: programs.Setup) -> Rows:
  """The shape of the rows that `collect` builds from a step's prompts."""
  states, batch = programs.abstract_states(setup), abstract_batch(setup, setup.max_draws)
  made = tools.make_tools(setup)
  if setup.grades_on_host:
    made = made._replace(host_label_N=np.zeros(setup.run.prompts_per_step * setup.samples_per_prompt, np.float32))

  def collect(states, batch):
    return setup.algorithm.collect(made, setup.run.algorithm, states, batch, programs.step_key(states))[0]

  with jax.sharding.use_abstract_mesh(setup.mesh.abstract_mesh):
    rows = jax.eval_shape(collect, states, batch)
  count, length = rows.token_NL.shape
  return Rows(count, length, length - rows.first)


def lower(setup: programs.Setup) -> dict:
  """The programs of a step by name, lowered for the slice but not yet compiled."""
  states, batch = programs.abstract_states(setup), abstract_batch(setup, setup.max_draws)
  with jax.sharding.use_abstract_mesh(setup.mesh.abstract_mesh):
    lowered = host_grading.lower_programs(setup, states, batch)
  return dict(zip(("complete", "train_step")[-len(lowered) :], lowered))


def compile_all(setup: programs.Setup, say=lambda text: None) -> list[Compiled]:
  """Compiles the programs of a step, one after another."""
  start = time.monotonic()
  lowered = lower(setup)
  say(f"traced in {time.monotonic() - start:.0f} s")
  platform = setup.mesh.devices.flat[0].platform
  return [compile_one(name, program, platform, say) for name, program in lowered.items()]


def compile_one(name: str, lowered, platform: str, say=lambda text: None) -> Compiled:
  """Compiles one program for devices of `platform`. Not fitting into a chip's memory is a result, not an error."""
  say(f"compiling {name}, which takes minutes for large models")
  start = time.monotonic()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    overflow = read_overflow(str(error))
    if overflow is None:
      raise
    return Compiled(name, time.monotonic() - start, None, None, math.nan, math.nan, overflow)
  seconds = time.monotonic() - start
  say(f"compiled {name} in {seconds:.0f} s")
  counts = compiled.cost_analysis() or {}
  counts = counts[0] if isinstance(counts, list) else counts
  return Compiled(
    name, seconds, memory.read(compiled.memory_analysis(), platform), program_text(compiled),
    counts.get("flops", math.nan), counts.get("bytes accessed", math.nan),
  )  # fmt: skip


def program_text(compiled) -> str | None:
  """The optimized program; None if it cannot be read back, e.g. from a libtpu that is newer than jaxlib."""
  try:
    return compiled.as_text() or None
  except (jax.errors.JaxRuntimeError, RuntimeError, NotImplementedError):
    return None


UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def read_overflow(message: str) -> Overflow | None:
  """Parses the bytes needed and available from the compiler's error; None if it is a different error."""
  size = r"([\d.]+)([KMGT]?)"
  forms = (rf"Used {size} of {size} hbm", rf"required for [^()]*\({size}\) exceeds available HBM \({size}\)")
  found = next(filter(None, (re.search(form, message) for form in forms)), None)
  if found is None:
    return None
  used, limit = (int(float(found[i]) * UNITS[found[i + 1]]) for i in (1, 3))
  return Overflow(used, limit, largest_allocations(message))


def largest_allocations(message: str, count: int = 3) -> str:
  """The first of the compiler's list of large buffers: size, shape and the operation that produces it."""
  entries = re.findall(r"Size: ([\d.]+[KMGT]?)\n(.*?)(?=\n\s*\d+\. Size:|\Z)", message, re.DOTALL)
  lines = []
  for size, body in entries[:count]:
    shape, scope = re.search(r"Shape: (\S+?)[{\s]", body), re.search(r'op_name="([^"]*)"', body)
    lines.append(f"{size} {shape[1] if shape else ''} {scope[1] if scope else ''}".strip())
  return "; ".join(lines)


def with_layout(
  run: RunConfig, data_ways: int, fsdp: int, tensor: int, micro_batches: int, wave: int, remat: str | None = None
) -> RunConfig:
  """The run with another mesh, micro-batches, waves and `model.remat` (None: unchanged)."""
  parallel = dataclasses.replace(run.parallel, data=data_ways, fsdp=fsdp, tensor=tensor, micro_batches=micro_batches)
  sampling = dataclasses.replace(run.sampling, wave_prompts=wave)
  model = dataclasses.replace(run.model, remat=remat or run.model.remat)
  return dataclasses.replace(run, parallel=parallel, sampling=sampling, model=model)
