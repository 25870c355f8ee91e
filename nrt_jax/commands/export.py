"""`nrt-jax export`: a checkpoint's policy as a Hugging Face model directory."""

import os

import jax

from nrt_jax import workdir as workdirs
from nrt_jax.commands import output
from nrt_jax.errors import UserError
from nrt_jax.records.checkpoint import Checkpoints


def run(args) -> None:
  jax.config.update("jax_platforms", "cpu")  # weights are only copied, which needs no accelerator
  output.check_directory(args.output, "--output")
  workdir = find_workdir(args.checkpoint)
  step = workdirs.export_checkpoint(workdir, args.output, find_step(workdir, args.step), args.dtype)
  print(f"wrote the policy of step {step} to {args.output}")


def find_workdir(directory: str) -> str:
  """`directory` itself if it is a workdir, or the workdir whose checkpoints directory it is."""
  path = os.path.abspath(directory)
  workdir = os.path.dirname(path) if os.path.basename(path) == "checkpoints" else path
  if not os.path.isdir(os.path.join(workdir, "checkpoints")):
    raise UserError(f"--checkpoint: found {directory!r}, allowed: a run's workdir, or the checkpoints directory in it")
  return workdir


def find_step(workdir: str, wanted: int | str | None) -> int | None:
  """The step of a checkpoint. `wanted`: a step, "best", or None for the newest whole one, which only reading finds."""
  if wanted != "best":
    return wanted
  settings = workdirs.read_run(workdir)[0].checkpoint
  if settings.keep_best is None:
    raise UserError("--step: found 'best', but the run's checkpoint.keep_best names no metric to rank by")
  return Checkpoints(os.path.join(workdir, "checkpoints"), settings, read_only=True).best_step()
