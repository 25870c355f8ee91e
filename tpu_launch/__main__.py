"""`python -m tpu_launch ENGINE RUN.yaml`: reads the description, then shows, watches, asks about or stops the run."""

import argparse
import os
import signal
import sys

from nrt_jax.errors import UserError, require_choice
from tpu_launch import run as runs
from tpu_launch import sweep as sweeps
from tpu_launch.engines.job import EngineError
from tpu_launch.engines.table import ENGINES
from tpu_launch.watch import Watch

SWEEP = "sweep"
DETAILS = """\
Submits the run and stays with it: waits for capacity, starts it on all workers, shows worker 0's log, and resumes it
after a preemption, a dead worker or a stall, until it is done. Ctrl-C stops it and gives everything back. Engines:
{engines}. `sweep` in the place of an engine runs configs x slices, some at a time; again, it goes on with what is left.
docs/launch.md explains the descriptions and every engine."""


class Parser(argparse.ArgumentParser):
  """A parser whose mistakes are UserErrors: one line, without the usage."""

  def error(self, message):
    raise UserError(f"{message} (see {self.prog} --help)")


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags of a command line."""
  engines = ", ".join(ENGINES)
  parser = Parser(prog="python -m tpu_launch", description=DETAILS.format(engines=engines), allow_abbrev=False)
  parser.add_argument("engine", metavar="ENGINE", help=f"one of {engines}; or sweep")
  parser.add_argument("file", metavar="FILE", help="the description of a run, or of a sweep, in YAML")
  parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes a key of it; repeatable")
  parser.add_argument("--record", metavar="FILE", help="keeps the run's state, steps and chip-hours there, as JSON")
  what = parser.add_mutually_exclusive_group()
  what.add_argument("--dry-run", action="store_true", help="prints what would be run, and runs nothing")
  what.add_argument("--status", action="store_true", help="says where the run stands")
  what.add_argument("--stop", action="store_true", help="stops the run and deletes what was made for it")
  parser.add_argument("--retry-failed", action="store_true", help="has a sweep try again what failed")
  args = parser.parse_args(argv)
  require_choice("engine", args.engine, [*ENGINES, SWEEP])
  if args.engine == SWEEP and (args.set or args.record or args.stop):
    parser.error("allowed with sweep: --dry-run, --status, --retry-failed; Ctrl-C stops it")
  return args


def main(argv: list[str] | None = None) -> int:
  """Returns the exit code: 0, 1 where the run or its engine failed, 2 for a user's mistake, 130 for Ctrl-C."""
  try:
    args = parse(sys.argv[1:] if argv is None else argv)
    return launch_sweep(args) if args.engine == SWEEP else launch(args)
  except UserError as error:
    print("tpu_launch:", " ".join(str(error).split()), file=sys.stderr)
    return 2
  except EngineError as error:
    print("tpu_launch:", " ".join(str(error).split()), file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("tpu_launch: interrupted", file=sys.stderr)
    return 130


def launch(args) -> int:
  """Does what the flags ask for, with one run."""
  if args.record is not None and not os.path.isdir(os.path.dirname(os.path.abspath(args.record))):
    raise UserError(f"--record: {args.record}: its directory does not exist")
  job = ENGINES[args.engine](runs.read(args.file, args.set))
  plan = job.plan()  # checks the description for every use of it
  if args.dry_run:
    print("\n\n".join(map(str, plan)))
    return 0
  if args.status:
    poll = job.poll()
    print(f"{job.run.name}: {poll.state.value}{': ' * bool(poll.detail)}{poll.detail}")
    return 0
  if args.stop:
    Watch(job, args.engine).stop()
    return 0
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # machines are given back then, too
  return Watch(job, args.engine, args.record).run()


def launch_sweep(args) -> int:
  """Does what the flags ask for, with a sweep."""
  sweep = sweeps.read(args.file, ENGINES)
  jobs = [ENGINES[sweep.engine](entry.run) for entry in sweep.entries]
  plans = [job.plan() for job in jobs]
  if args.dry_run:
    print("\n\n".join(f"# ---- {job.run.name}\n" + "\n\n".join(map(str, p)) for job, p in zip(jobs, plans)))
    return 0
  if args.status:
    print(sweeps.table(sweep))
    return 0
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  return sweeps.Runner(sweep, args.retry_failed).run()


if __name__ == "__main__":
  sys.exit(main())
