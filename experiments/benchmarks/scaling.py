"""Step time on 1 to 8 virtual devices at constant work per device, and with 1 to 64 samples per prompt at 64 rows.

    python experiments/benchmarks/scaling.py
    python experiments/benchmarks/scaling.py --kinds data --devices 1 8 --samples

About 5 minutes on 2 CPU cores. Virtual devices share the cores: n of them do n times the work of one on the same
hardware, so ideally time / n is constant. Any increase is the cost of distribution: collectives, smaller pieces, and
threads that take turns. Steps of all settings run in turn. Each number of devices has its own process, which waits
while others run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

DEVICES = (1, 2, 4, 8)
SAMPLES = (1, 2, 4, 8, 16, 32, 64)
ROWS = 64  # per step, whatever the number of samples
KINDS = {
  "data": ("parallel.data=-1",),
  "fsdp": ("parallel.fsdp={n}",),
  "pmap": ("parallel.kind=pmap",),
}
# Settings that do not compare samples, so that one sample per prompt is the same method.
ALONE = ("algorithm.center=none", "algorithm.scale=none")


def serve(prompts: int, samples: int, overrides: list) -> None:
  """Compiles a step, then runs it for each line on standard input and prints its seconds."""
  import setups  # imported here: the environment sets the number of devices

  step = setups.Step(setups.Sizes(prompts=prompts, samples=samples), overrides)
  print(json.dumps({"where": setups.where(), "compile_seconds": step.compile_seconds}), flush=True)
  for _ in sys.stdin:
    seconds, _ = step()
    print(json.dumps(seconds), flush=True)


class Worker:
  """A process with a compiled step."""

  def __init__(self, devices: int, prompts: int, samples: int, overrides):
    command = [sys.executable, __file__, "--serve", str(prompts), str(samples), *overrides]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.about = json.loads(self.process.stdout.readline())

  def __call__(self) -> list:
    """Runs a step and returns its [wall, CPU] seconds."""
    print("step", file=self.process.stdin, flush=True)
    return json.loads(self.process.stdout.readline())

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait()


def measure(workers: dict, repeats: int) -> dict:
  """Maps each name to (wall, CPU) seconds per step, run in turn after a warm-up step. Closes the workers."""
  found = {name: [] for name in workers}
  for number in range(repeats + 1):
    for name, worker in workers.items():
      reply = worker()
      found[name] += [reply] if number else []
  for worker in workers.values():
    worker.close()
  return found


def cell(seconds: list, one: list, ways: float) -> str:
  """For wall and CPU: median seconds, and the median ratio to `ways` times the first setting's seconds."""
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
