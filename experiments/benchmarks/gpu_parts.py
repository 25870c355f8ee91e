"""The parts of gpu.py that no command of nrt_jax measures. It starts them; each prints `RESULT {json}` lines."""

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax import config, startup
from nrt_jax.commands import configs
from nrt_jax.data import batches
from nrt_jax.model import kernels
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.performance import ceilings, phases
from nrt_jax.step import programs, tools

REPEATS = 3
# (name, compute dtype, precision of float32 products): by default a GPU multiplies float32 as TF32.
PRECISIONS = (("bfloat16", "bfloat16", None), ("tf32", "float32", None), ("float32", "float32", "highest"))
SHARPER = 8.0  # times the last norm's scale: logits as peaked as those of trained models
PPO, GSPO = (0.2, 0.2), (3e-4, 4e-4)  # how far below and above 1 a ratio may be


def tell(**result) -> None:
  print("RESULT", json.dumps(result), flush=True)


def open_run(args, *overrides):
  """(setup, states, prompts) of the config's run; a step's batch is the first one."""
  values = configs.load_config(args.config, [*args.overrides, *overrides])
  _, stages = startup.open_stages(config.stages_of(values))
  stage = stages[-1]
  with mesh_of(stage.setup):
    states = startup.fresh_states(stage, startup.first_params(stage.setup), jax.random.key(0))
    return stage.setup, states, startup.read_batch(stage, batches.Position())


def mesh_of(setup):
  return jax.set_mesh(setup.mesh) if setup.mesh is not None else contextlib.nullcontext()


# ------------------------------------------------------------------------------------------------- on-policy ratios


def ratios(args) -> None:
  """How far the update's log-probabilities are from the sampler's, on the tokens just sampled by the same weights."""
  for name, dtype, precision in PRECISIONS:
    setup, states, prompts = open_run(args, f"--config.model.compute_dtype={dtype}")
    with mesh_of(setup), jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
      program = jax.jit(functools.partial(differences, setup))
      for sharper in (1.0, SHARPER):
        log_ratio_NL, logp_NL, mask_NL = jax.device_get(program(sharpened(states, sharper), prompts))
        tell(precision=name, sharper=sharper, **describe_ratios(log_ratio_NL, logp_NL, mask_NL))
    del setup, states, prompts, program


def differences(setup, states, prompts):
  """log of the ratio of each sampled token, its log-probability, and which tokens those are: `[N, L]`."""
  batch = programs.collect(setup, programs.step_tools(setup), states, prompts).batch
  logp_NL = tools.score_batch(setup, states.policy.params, batch)
  return logp_NL - batch.behaviour_logp_NL, logp_NL, batch.sampled_mask_NL


def sharpened(states, factor: float):
  norm = jax.tree.map(lambda scale: factor * scale, states.policy.params["final_norm"])
  return states.replace(policy=states.policy.replace(params={**states.policy.params, "final_norm": norm}))


def describe_ratios(log_ratio_NL, logp_NL, mask_NL) -> dict:
  token, logp = (np.float64(x[mask_NL]) for x in (log_ratio_NL, logp_NL))
  sequence = np.where(mask_NL, log_ratio_NL, 0).sum(1, dtype=np.float64) / np.maximum(mask_NL.sum(1), 1)
  return {
    "tokens": int(mask_NL.sum()),
    "mean_logp": float(logp.mean()),
    "token_mean": float(token.mean()),
    "token_std": float(token.std()),
    "token_max": float(np.abs(token).max()),
    "outside_ppo": outside(token, *PPO),
    "sequence_mean": float(sequence.mean()),
    "sequence_std": float(sequence.std()),
    "sequence_max": float(np.abs(sequence).max()),
    "outside_gspo": outside(sequence, *GSPO),
  }


def outside(log_ratio, low: float, high: float) -> float:
  ratio = np.exp(log_ratio)
  return float(np.mean((ratio < 1 - low) | (ratio > 1 + high)))


# --------------------------------------------------------------------------------------------------------- decoding


def decode(args) -> None:
  """Sampling alone, prefill included: the time of a token, and the share of the bandwidth that its reads come to."""
  setup, states, prompts = open_run(args)
  with mesh_of(setup):
    weights = jax.jit(functools.partial(tools.rollout_weights, setup))(states.policy.params)
    key = jax.random.key(1)

    def sample(weights, key, prompts):
      return tools.sample_wave(setup, weights, key, False, prompts)[0]

    start = time.perf_counter()
    program = phases.build(setup, sample, weights, key, prompts)
    compiling = time.perf_counter() - start
    seconds, rollouts = phases.repeat(functools.partial(program, weights, key, prompts), REPEATS)
  steps, median = int(np.max(rollouts.length_N)), statistics.median(seconds)
  moved = phases.decode_bytes(setup, prompts, rollouts)
  share = moved / median / ceilings.find(setup.model.compute_dtype).bandwidth
  tell(rows=len(rollouts.length_N), steps=steps, ms_per_token=1e3 * median / steps, bandwidth_share=share,
       seconds=seconds, compile_seconds=compiling)  # fmt: skip
  for line in describe_kernels(kernels_of(functools.partial(program, weights, key, prompts)), steps):
    tell(**line)


def kernels_of(act) -> list[tuple]:
  """(name, start, duration), in nanoseconds, of what ran on the GPU while `act` ran; empty without one."""
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      jax.block_until_ready(act())
    (path,) = pathlib.Path(directory).rglob("*.xplane.pb")
    planes = [plane for plane in jax.profiler.ProfileData.from_file(str(path)).planes if "/device:GPU" in plane.name]
    lines = [line for plane in planes for line in plane.lines if line.name.startswith("Stream")]
    return [(event.name, event.start_ns, event.duration_ns) for line in lines for event in line.events]


def describe_kernels(events: list[tuple], steps: int, most: int = 16) -> list[dict]:
  """How many kernels a step starts, how long the device works and waits for the next, and where its time goes.

  Of `steps` steps; numbers at the end of a kernel's name do not tell it from others. The first line is the sum.
  """
  busy, end = 0, 0
  for _, start, duration in sorted(events, key=lambda event: event[1]):
    busy += max(0, start + duration - max(start, end))
    end = max(end, start + duration)
  span = end - min((start for _, start, _ in events), default=0)
  spent = collections.defaultdict(list)
  for name, _, duration in events:
    spent[re.sub(r"[._]?\d+$", "", name)].append(duration)
  rows = sorted(spent.items(), key=lambda item: -sum(item[1]))[:most]
  us = 1e3 * steps  # nanoseconds of all steps in a microsecond of each
  lines = [{"kernels": len(events) / steps, "busy_us": busy / us, "idle_us": (span - busy) / us}]
  return lines + [{"kernel": name, "each_step": len(own) / steps, "us": sum(own) / us} for name, own in rows]


# -------------------------------------------------------------------------------------------------------- attention


def attention(args) -> None:
  """Each implementation at rows of Llama-3.1-8B's shape, with pads in front; and the ceilings of the device itself."""
  flops, bandwidth, source = ceilings.measure("bfloat16")
  tell(kind="ceilings", tflops=flops / 1e12, gb_per_s=bandwidth / 1e9, source=source)
  for rows, length in ((2, 64), (1, 128)) if args.tiny else ((4, 2048), (1, 8192)):
    wanted = None
    for kind in ("cudnn", "blocks", "dense"):
      try:
        found, wanted = one_attention(kind, rows, length, args.tiny, wanted)
        tell(kind=kind, rows=rows, length=length, **found)
      except Exception as error:  # too large for the memory, or refused by the kernel
        tell(kind=kind, rows=rows, length=length, error=f"{type(error).__name__}: {error}"[:300])


def one_attention(kind: str, rows: int, length: int, tiny: bool, wanted):
  """({ms, memory, difference from `wanted`}, what the next kind is held against: the first one's outputs)."""
  config_, arguments = attention_inputs(kind, rows, length, tiny)

  def forward(q, k, v, position):
    seen = kernels.sight(config_, kind, position, (position,))(False)
    out = kernels.attend_by(config_, q, ((k, v),), seen).astype(jnp.float32)
    return jnp.where((position >= 0)[:, :, None, None], out, 0)

  def backward(q, k, v, position):
    return jax.grad(lambda *qkv: jnp.sum(jnp.sin(forward(*qkv, position))), (0, 1, 2))(q, k, v)

  programs_ = [jax.jit(function).lower(*arguments).compile() for function in (forward, backward)]
  times = [phases.repeat(functools.partial(program, *arguments), 10) for program in programs_]
  outputs = jax.device_get([out for _, out in times])
  found = {
    "forward_ms": 1e3 * statistics.median(times[0][0]),
    "gradient_ms": 1e3 * statistics.median(times[1][0]),  # forward and backward
    "gradient_mib": programs_[1].memory_analysis().temp_size_in_bytes / 2**20,
  }
  if wanted is not None:
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(wanted), strict=True)
    found["difference"] = max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in as_floats(pairs))
  return found, outputs if wanted is None else wanted


def as_floats(pairs):
  return (tuple(np.float32(x) for x in pair) for pair in pairs)


def attention_inputs(kind: str, rows: int, length: int, tiny: bool):
  """(ModelConfig, (query, key, value, position)); a row has its tokens in front, as kernels.align_left turns them."""
  heads, kv_heads, h = (4, 2, 16) if tiny else (32, 8, 128)
  model = ModelConfig(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=h, compute_dtype="bfloat16")
  model = dataclasses.replace(model, attention="cudnn" if kind == "cudnn" else "xla")
  column, valid = jnp.arange(length)[None], length - 37 * jnp.arange(rows)[:, None] % (length // 2)
  position = jnp.where(column < valid, column, -1)
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = ((rows, length, heads, h), (rows, kv_heads, length, h), (rows, kv_heads, length, h))
  return model, (*(jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes)), position)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("part", choices=("ratios", "decode", "attention"))
  parser.add_argument("--config")
  parser.add_argument("--tiny", action="store_true")
  args, args.overrides = parser.parse_known_args()
  {"ratios": ratios, "decode": decode, "attention": attention}[args.part](args)


if __name__ == "__main__":
  main()
