"""`nrt-jax train`: config file -> RunConfigs -> training.train."""

import os

import jax

from nrt_jax import buckets, config, training
from nrt_jax.commands import configs, output
from nrt_jax.errors import UserError


def run(args) -> None:
  if args.distributed:
    join_processes(args.distributed, args.partner_timeout)
  values = configs.load_config(args.config, args.overrides)
  runs = config.stages_of(values)
  output.check_workdir(args.workdir)
  workdir = args.workdir.rstrip("/") if buckets.is_url(args.workdir) else os.path.abspath(args.workdir)
  training.train_to_end(runs, workdir, values, args.allow_change)


def join_processes(where: str, timeout: int) -> None:
  """Connects this process to the run's other processes. `where`: "auto", or "host:port,count,id".

  timeout: seconds without a sign of life after which another process counts as dead, and all stop.
  """
  arguments = ()
  if where != "auto":
    address, *numbers = where.split(",")
    if len(numbers) != 2 or not all(n.isdecimal() for n in numbers) or not address.rpartition(":")[2].isdecimal():
      raise UserError(f"--distributed: found {where!r}, allowed: no value, or HOST:PORT,COUNT,ID")
    arguments = (address, *map(int, numbers))
  try:
    jax.distributed.initialize(*arguments, heartbeat_timeout_seconds=timeout)
  except (ValueError, RuntimeError, TypeError) as error:
    reason = str(error).split("\n")[0]
    raise UserError(f"--distributed: {reason} (give HOST:PORT,COUNT,ID where nothing tells them)") from error
