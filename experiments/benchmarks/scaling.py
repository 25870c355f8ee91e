"""Step time from 1 to 8 virtual devices at the same work for each, and from 1 to 64 samples a prompt at 64 rows.

    python experiments/benchmarks/scaling.py
    python experiments/benchmarks/scaling.py --kinds data --devices 1 8 --samples

About 5 minutes on 2 CPU cores. Virtual devices share the cores: n of them do n times the work of one with what one
has, so the ideal is a time that grows by n, and time / n that stays as it is. What rises above it is the cost of being
several: collectives, smaller pieces, threads that take turns. Steps of all settings run in turn, each number of devices
in a process of its own that waits while others run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

DEVICES = (1, 2, 4, 8)
SAMPLES = (1, 2, 4, 8, 16, 32, 64)
ROWS = 64  # of a step whose samples vary
KINDS = {
  "data": ("parallel.data=-1",),
  "fsdp": ("parallel.fsdp={n}",),
  "pmap": ("parallel.kind=pmap",),
}
# No method that compares samples: the same at one sample a prompt.
ALONE = ("algorithm.center=none", "algorithm.scale=none")


def serve(prompts: int, samples: int, overrides: list) -> None:
  """Compiles a step, then runs one for each line on standard input and prints its seconds."""
  import setups  # with the number of devices that the environment says

  step = setups.Step(setups.Sizes(prompts=prompts, samples=samples), overrides)
  print(json.dumps({"where": setups.where(), "compile_seconds": step.compile_seconds}), flush=True)
  for _ in sys.stdin:
    seconds, _ = step()
    print(json.dumps(seconds), flush=True)


class Worker:
  """A process that holds a compiled step."""

  def __init__(self, devices: int, prompts: int, samples: int, overrides):
    command = [sys.executable, __file__, "--serve", str(prompts), str(samples), *overrides]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.about = json.loads(self.process.stdout.readline())

  def __call__(self) -> list:
    """[wall, CPU] seconds of a step."""
    print("step", file=self.process.stdin, flush=True)
    return json.loads(self.process.stdout.readline())

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait()


def measure(workers: dict, repeats: int) -> dict:
  """name -> (wall, CPU) seconds of each step, in turn, after one that is not counted; the workers end."""
  found = {name: [] for name in workers}
  for number in range(repeats + 1):
    for name, worker in workers.items():
      reply = worker()
      found[name] += [reply] if number else []
  for worker in workers.values():
    worker.close()
  return found


def cell(seconds: list, one: list, ways: float) -> str:
  """Wall and CPU, each: median seconds, and the median of how many times they are `ways` times the first setting's."""
  parts = []
  for mine, first in zip(zip(*seconds), zip(*one)):
    ratio = statistics.median(s / (ways * o) for s, o in zip(mine, first, strict=True))
    parts.append(f"{statistics.median(mine):.3f} ({ratio:.2f})")
  return " | ".join(parts)


def devices_table(args) -> None:
  workers = {}
  for n in args.devices:
    for kind in args.kinds:
      overrides = [text.format(n=n) for text in KINDS[kind]]
      workers[kind, n] = Worker(n, args.prompts * n, 8, overrides)
  about = workers[args.kinds[0], args.devices[0]].about["where"]
  found, one = measure(workers, args.repeats), args.devices[0]
  print(f"{about.rsplit(';', 1)[0]}; {os.cpu_count()} cores; {args.prompts} prompts x 8 samples for each device;")
  print(f"{args.repeats} steps in turn. Seconds, median (time / devices, over that of {one} of the same kind):\n")
  print("| devices | " + " | ".join(f"{kind}, wall | CPU" for kind in args.kinds) + " |")
  print("|---|" + "---|" * 2 * len(args.kinds))
  for n in args.devices:
    cells = [cell(found[kind, n], found[kind, one], n / one) for kind in args.kinds]
    print(f"| {n} | " + " | ".join(cells) + " |", flush=True)


def samples_table(args) -> None:
  workers = {g: Worker(1, ROWS // g, g, ALONE) for g in args.samples}
  found, one = measure(workers, args.repeats), args.samples[0]
  print(f"\n{ROWS} rows in each step, one device; seconds, median (times that of {one} a prompt):\n")
  print("| samples a prompt | prompts | wall | CPU |\n|---|---|---|---|")
  for g in args.samples:
    print(f"| {g} | {ROWS // g} | {cell(found[g], found[one], 1)} |", flush=True)


def main() -> None:
  if sys.argv[1:2] == ["--serve"]:
    serve(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    return
  parser = argparse.ArgumentParser()
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--prompts", type=int, default=2, help="of a step, for each device")
  parser.add_argument("--kinds", nargs="*", default=[*KINDS], choices=KINDS)
  parser.add_argument("--devices", nargs="*", type=int, default=DEVICES)
  parser.add_argument("--samples", nargs="*", type=int, default=SAMPLES)
  args = parser.parse_args()
  if args.devices:
    devices_table(args)
  if args.samples:
    samples_table(args)


if __name__ == "__main__":
  main()
