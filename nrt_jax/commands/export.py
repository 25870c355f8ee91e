"""`nrt-jax export`: a checkpoint's policy as a Hugging Face model directory."""

import jax

from nrt_jax import workdir as workdirs
from nrt_jax.commands import output
from nrt_jax.workdir import find_step, find_workdir


def run(args) -> None:
  jax.config.update("jax_platforms", "cpu")  # weights are only copied, which needs no accelerator
  output.check_directory(args.output, "--output")
  workdir = find_workdir(args.checkpoint)
  step = workdirs.export_checkpoint(workdir, args.output, find_step(workdir, args.step), args.dtype)
  print(f"wrote the policy of step {step} to {args.output}")
