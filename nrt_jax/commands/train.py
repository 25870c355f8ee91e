"""`nrt-jax train`: config file -> RunConfigs -> training.train."""

import os

import jax

from nrt_jax import config, training
from nrt_jax.commands import configs
from nrt_jax.errors import UserError


STOPPED = 143  # as a process that SIGTERM ends: whoever watches the run knows that it is not finished


def run(args) -> None:
  if args.distributed:
    join_processes(args.distributed)
  values = configs.load_config(args.config, args.overrides)
  runs = config.stages_of(values)
  workdir = os.path.abspath(args.workdir)
  check_writable(workdir)
  if not training.train(runs, workdir, values):
    raise SystemExit(STOPPED)


def join_processes(where: str) -> None:
  """Connects this process to the others of the run. `where`: "auto", or "host:port,count,id"."""
  arguments = ()
  if where != "auto":
    address, *numbers = where.split(",")
    if len(numbers) != 2 or not all(n.isdecimal() for n in numbers) or not address.rpartition(":")[2].isdecimal():
      raise UserError(f"--distributed: found {where!r}, allowed: no value, or HOST:PORT,COUNT,ID")
    arguments = (address, *map(int, numbers))
  try:
    jax.distributed.initialize(*arguments)
  except (ValueError, RuntimeError, TypeError) as error:
    reason = str(error).split("\n")[0]
    raise UserError(f"--distributed: {reason} (give HOST:PORT,COUNT,ID where nothing tells them)") from error


def check_writable(directory: str, flag: str = "--workdir") -> None:
  """Raises UserError where the directory can't be made or written to. Makes nothing."""
  existing = directory
  while not os.path.lexists(existing):
    existing = os.path.dirname(existing)
  if not os.path.isdir(existing):
    raise UserError(f"{flag}: {existing}: is a file, allowed: a directory")
  if not os.access(existing, os.W_OK | os.X_OK):
    raise UserError(f"{flag}: {existing}: no permission to write there")
