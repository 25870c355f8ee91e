"""Runs without a tokenizer for the benchmarks in this directory: a random model, made-up prompts, one program."""

import contextlib
import dataclasses
import datetime
import platform
import statistics
import time
from typing import NamedTuple

import jax
import numpy as np
import workload

from nrt_jax import config, sharding
from nrt_jax.commands.configs import override
from nrt_jax.data import batches
from nrt_jax.data.critic_prompts import CriticForm
from nrt_jax.data.prompts import PromptFormat
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import init_params
from nrt_jax.step import programs

TEMPLATE = 8  # tokens of a critic's prompt that are neither question nor answers
MARKER, END = 0, 1  # ids that close a trace and an answer; all others are words


@dataclasses.dataclass(frozen=True)
class Sizes(workload.Sizes):
  """A smaller model and step than in peers.py. Every prompt and answer has the maximum length."""

  hidden: int = 128
  mlp: int = 512
  layers: int = 2
  head_dim: int = 32
  trace_length: int = 64
  answer_length: int = 16
  stops: int = 0  # words that end a trace, each with probability near 1 / vocab; 0: every trace runs to its limit


def model_config(sizes: workload.Sizes, run: config.RunConfig, **over) -> ModelConfig:
  """The decoder of these sizes, with the run's compute settings."""
  computed = {f.name for f in dataclasses.fields(ModelConfig)} & {f.name for f in dataclasses.fields(run.model)}
  return ModelConfig(
    vocab_size=sizes.vocab,
    hidden_size=sizes.hidden,
    intermediate_size=sizes.mlp,
    num_hidden_layers=sizes.layers,
    num_attention_heads=sizes.heads,
    num_key_value_heads=sizes.kv_heads,
    head_dim=sizes.head_dim,
    max_position_embeddings=4096,
    **over,
    **{name: getattr(run.model, name) for name in computed},
  )


def make_setup(sizes: Sizes, overrides=(), algorithm: str = "nrt", devices=None) -> programs.Setup:
  """A run of `sizes`. `overrides` are KEY=VALUE, as on the command line without --config."""
  values = config.defaults(algorithm)
  values.update(prompts_per_step=sizes.prompts, samples_per_prompt=sizes.samples)
  values["sampling"]["max_trace_length"] = sizes.trace_length
  values["prompt"].update(max_prompt_length=sizes.prompt_length, max_answer_length=sizes.answer_length)
  for text in overrides:
    key, _, value = text.partition("=")
    override(values, key.split("."), value)
  run = config.stages_of(values)[0]
  mesh = None if run.parallel.kind == "pmap" else sharding.make_mesh(run.parallel, devices)
  # Ids beyond the vocabulary can't be sampled, so such a trace runs to its limit.
  stop_ids = tuple(range(2, 2 + sizes.stops)) or (sizes.vocab,)
  form = PromptFormat("plain", (), (MARKER,), stop_ids, END, END, sizes.vocab, ())
  critic = critic_form(run, form, sizes) if hasattr(run.algorithm, "critic") else None
  return programs.Setup(run, model_config(sizes, run), form, mesh, critic)


def critic_form(run: config.RunConfig, form: PromptFormat, sizes: Sizes) -> CriticForm:
  """A critic whose heads are as long as questions, with made-up ids."""
  words, labels = tuple(range(2, 2 + TEMPLATE // 2)), tuple((word,) for word in range(10, 13))
  ids = (words, words, labels, form.marker_ids, form.end_ids, True, 2, (), ())
  return CriticForm(run.algorithm.critic.kind, *ids, sizes.prompt_length, sizes.answer_length)


def make_prompts(setup: programs.Setup, sizes: Sizes, seed: int = 0):
  """The prompts of a step, placed on its devices."""
  rng, B = np.random.default_rng(seed), sizes.prompts
  words = rng.integers(2 + sizes.stops, sizes.vocab, (B, sizes.prompt_length + sizes.answer_length))
  prompts, answers = words[:, : sizes.prompt_length], words[:, sizes.prompt_length :].copy()
  answers[:, -1] = END
  widths = (sizes.prompt_length, sizes.answer_length, 0)
  rows = batches.pack(list(prompts), list(answers), [[]] * B, np.arange(B), widths, END)
  if setup.critic is not None:
    rows = rows.replace(hint_BQ=rows.prompt_BP, hint_length_B=rows.prompt_length_B)
  if setup.mesh is not None:
    return sharding.place_rows(setup.mesh, rows)
  ways = jax.device_count()
  return jax.tree.map(lambda a: a.reshape(ways, len(a) // ways, *a.shape[1:]), rows)


def make_states(setup: programs.Setup):
  shardings = programs.state_shardings(setup)

  def init(key):
    return programs.init_states(setup, init_params(setup.model, key), key)

  states = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
  return programs.replicate(states) if setup.axis_name else states


class Seconds(NamedTuple):
  """The time that a call took."""

  wall: float
  cpu: float  # over all threads of this process; more reliable than wall time on a shared machine


def timed(program, *arguments):
  """Runs `program`; returns (Seconds, its result)."""
  start, cpu = time.perf_counter(), time.process_time()
  out = jax.block_until_ready(program(*arguments))
  return Seconds(time.perf_counter() - start, time.process_time() - cpu), out


class Step:
  """A compiled step with its states, which can be run repeatedly."""

  def __init__(self, sizes: Sizes, overrides=(), algorithm: str = "nrt", devices=None):
    self.sizes, self.setup = sizes, make_setup(sizes, overrides, algorithm, devices)
    with self.mesh():
      self.states, self.prompts = make_states(self.setup), make_prompts(self.setup, sizes)
      start = time.perf_counter()
      self.program = programs.build_train_step(self.setup).lower(self.states, self.prompts).compile()
      self.compile_seconds = time.perf_counter() - start

  def mesh(self):
    return jax.set_mesh(self.setup.mesh) if self.setup.mesh is not None else contextlib.nullcontext()

  def __call__(self) -> tuple[tuple, dict]:
    """Runs one step; returns its Seconds and metrics."""
    with self.mesh():
      seconds, (self.states, metrics, _) = timed(self.program, self.states, self.prompts)
    metrics = programs.unreplicate(metrics) if self.setup.axis_name else metrics
    return seconds, {name: float(value) for name, value in jax.device_get(metrics).items()}


def in_turn(functions: dict, repeats: int) -> dict:
  """Maps each name to its results. Calls run in turn after a warm-up call each, so that drift affects all equally."""
  for function in functions.values():
    function()
  found = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      found[name].append(function())
  return found


def medians(seconds: list) -> str:
  """Table cells: wall and CPU."""
  return " | ".join(f"{statistics.median(each):.3f}" for each in zip(*seconds))


def paired(above: list, below: list) -> str:
  """Table cells, wall and CPU: median and range of the ratios of each turn."""
  cells = []
  for a, b in zip(zip(*above), zip(*below)):  # wall, then CPU
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    cells.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
  return " | ".join(cells)


def where() -> str:
  """Versions, machine and date, for a results page."""
  devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
  date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
  return f"{date}; Python {platform.python_version()}, jax {jax.__version__}; {devices}"
