"""`nrt-jax plan`: compiles a config's training step for a TPU slice, without access to one."""

import sys

from nrt_jax import config
from nrt_jax.commands import configs, output
from nrt_jax.errors import UserError
from nrt_jax.files import write_json
from nrt_jax.performance.planning import report, sweep, topology


def run(args) -> None:
  output.check_file(args.json, "--json")
  slice_ = topology.parse(args.topology)._replace(slices=args.slices)
  topology.prepare()
  runs = config.stages_of(configs.load_config(args.config, args.overrides))
  chosen = choose_stage(runs, args.stage)
  devices = topology.devices(slice_)
  if args.sweep:
    plans = sweep.sweep(chosen, slice_, devices, args.sweep, say)
    data, text = plans, sweep.as_text(plans)
  else:
    data = report.as_data(sweep.plan(chosen, slice_, devices, say))
    text = report.as_text(data)
  print(text)
  if args.json:
    output.make_parent(args.json)
    write_json(args.json, data)


def choose_stage(runs: list, name: str | None):
  """The named stage; the last stage if `name` is None."""
  names = [one.stage for one in runs]
  if name is not None and name not in names:
    raise UserError(f"--stage: found {name!r}, allowed: {', '.join(names)}")
  return runs[names.index(name) if name else -1]


def say(text: str) -> None:
  print(f"plan: {text}", file=sys.stderr, flush=True)
