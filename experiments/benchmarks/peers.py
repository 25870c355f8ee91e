"""Times a training step of nrt_jax, TRL and tunix on the same weights, prompts and number of tokens.

    python experiments/benchmarks/peers.py --trl-python ENV/bin/python --tunix-python ENV/bin/python

Every side runs in its own environment:

    python3.11 -m venv peers-trl && peers-trl/bin/pip install torch==2.13.0 && peers-trl/bin/pip install trl==1.16.0
    python3.11 -m venv peers-tunix && peers-tunix/bin/pip install google-tunix==0.1.7

There are two workloads (see workload.py). `grpo` runs on all three. `verifier_free` compares nrt_jax's `nrt` with TRL,
whose reward function scores the reference answer by another forward pass. The sides run in turn, A B C A B C, so that
other load on the machine affects them equally; ratios are taken within a round. Cost on 2 CPU cores: 13 minutes, 3
rounds of 4 steps. Use `taskset` to pin cores. Results: docs/results/speed.md.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time

import numpy as np
import workload

from nrt_jax.errors import UserError
from nrt_jax.files import write_json

HERE = pathlib.Path(__file__).parent
SIDES = {"nrt_jax": "side_nrt_jax.py", "trl": "side_trl.py", "tunix": "side_tunix.py"}
DISTRIBUTION = {"nrt_jax": "jax", "trl": "trl", "tunix": "google-tunix"}  # required in its environment
TAKES_PART = {"grpo": ("nrt_jax", "trl", "tunix"), "verifier_free": ("nrt_jax", "trl")}
TO_REACH = {("grpo", "trl"): 0.70, ("grpo", "tunix"): 0.35, ("verifier_free", "trl"): 0.55}
LOGITS_AGREE = 1e-4  # maximum difference over the largest logit
QUIET = 0.95  # minimum share of the machine's busy time that is the side's own


def parse(argv=None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--trl-python", help="Python of an environment with trl")
  parser.add_argument("--tunix-python", help="Python of an environment with google-tunix")
  parser.add_argument("--workloads", nargs="+", choices=workload.WORKLOADS, default=workload.WORKLOADS)
  parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
  parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default: %(default)s)")
  parser.add_argument(
    "--steps", type=int, default=4, help="timed steps of a run, after the first (default: %(default)s)"
  )
  parser.add_argument("--workdir", default="runs/peers", help="weights, outputs, results.json (default: %(default)s)")
  parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of nrt_jax's config")
  parser.add_argument("--tiny", action="store_true", help="a much smaller model and step, to try the command")
  return parser.parse_args(argv)


# -------------------------------------------------------------------------------------------------------------- running


def find_pythons(args) -> dict:
  """Maps each side to its Python. Raises UserError if an environment is missing or lacks the side's package."""
  pythons = {"nrt_jax": sys.executable, "trl": args.trl_python, "tunix": args.tunix_python}
  wanted = {side for name in args.workloads for side in TAKES_PART[name] if side in args.sides}
  for side in sorted(wanted):
    flag, needs = f"--{side}-python", DISTRIBUTION[side]
    if not pythons[side]:
      raise UserError(
        f"{flag}: found none, allowed: the Python of an environment with {needs}, or --sides without {side}"
      )
    probe = [pythons[side], "-c", f"import importlib.metadata as m; m.version({needs!r})"]
    try:
      found = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
      raise UserError(f"{flag}: found {pythons[side]}, which can't be run, allowed: a Python with {needs}") from None
    if not found:
      raise UserError(f"{flag}: found {pythons[side]}, which has no {needs}, allowed: a Python with {needs}")
  return {side: pythons[side] for side in wanted}


def usable_cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def run_side(python: str, side: str, name: str, args) -> dict:
  """Runs one side and returns its RESULT line. Raises UserError with its last error line if it fails."""
  command = [python, str(HERE / SIDES[side]), "--workload", name, "--steps", str(args.steps)]
  command += ["--model", os.path.join(args.workdir, "model"), "--scratch", args.workdir]
  command += ["--threads", str(usable_cores()), *(["--tiny"] if args.tiny else [])]
  if side == "nrt_jax":
    command += [word for text in args.set for word in ("--set", text)]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(usable_cores())}
  environment["JAX_COMPILATION_CACHE_DIR"] = os.path.join(args.workdir, "compiled", side)  # speeds up later rounds
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
  if done.returncode or not lines:
    raise UserError(f"{side}, {name}: failed: {last_error(done.stderr)}")
  return json.loads(lines[-1])


def last_error(text: str) -> str:
  """The line of a traceback that names the exception, else the last line."""
  lines = [line for line in text.splitlines() if line.strip()] or ["no output"]
  return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1])


def run_rounds(pythons: dict, args) -> list:
  """Runs all sides in turn, round by round."""
  runs = []
  for name in args.workloads:
    for number in range(args.rounds):
      for side in TAKES_PART[name]:
        if side in pythons:
          start = time.monotonic()
          run = {"round": number, **run_side(pythons[side], side, name, args)}
          runs.append(run)
          took = f"{time.monotonic() - start:.0f} s in all"
          print(f"{name} round {number + 1}: {side}: steps {run['step_s']} s, {took}", file=sys.stderr, flush=True)
          write_json(os.path.join(args.workdir, "runs.json"), runs)
  return runs


# ------------------------------------------------------------------------------------------------------------- checking


def check_tokens(runs: list, sizes: workload.Sizes) -> None:
  """Raises UserError unless every side sampled the same number of tokens in every step."""
  for run in runs:
    if set(run["tokens"]) != {sizes.sampled_tokens} or len(run["tokens"]) != len(run["step_s"]) + 1:
      allowed = f"{sizes.sampled_tokens} in each of {len(run['step_s']) + 1} steps"
      raise UserError(f"{run['side']}, {run['workload']}: sampled {run['tokens']} tokens, allowed: {allowed}")


def logit_difference(logits: np.ndarray, reference: np.ndarray) -> float:
  """The largest difference over the largest logit."""
  return float(np.abs(logits - reference).max() / np.abs(reference).max())


def check_logits(sides, workdir: str) -> dict:
  """Maps each side to the distance of its first logits from nrt_jax's. Raises UserError if the weights differ."""
  arrays = {side: np.load(os.path.join(workdir, f"{side}.npy")) for side in sides}
  apart = {side: logit_difference(arrays[side], arrays["nrt_jax"]) for side in arrays if side != "nrt_jax"}
  for side, difference in apart.items():
    if not difference <= LOGITS_AGREE:
      raise UserError(f"{side}: first logits differ by {difference:.1e} of the largest, allowed: {LOGITS_AGREE:.0e}")
  return apart


def check_rewards(runs: list, sizes: workload.Sizes) -> None:
  """Raises UserError if the first step's mean rewards differ by more than chance: nothing has been learned yet."""
  for name in {run["workload"] for run in runs}:
    first = {run["side"]: run["rewards"][0] for run in runs if run["workload"] == name}
    # A share of even words has deviation 0.5 / sqrt(tokens); answers' likelihoods hardly depend on random traces.
    allowed = 7 * 0.5 / sizes.sampled_tokens**0.5 if name == "grpo" else 0.05 * max(first.values())
    if max(first.values()) - min(first.values()) > allowed:
      raise UserError(f"{name}: mean rewards of the first step {first}, allowed: {allowed:.2g} apart")


# ---------------------------------------------------------------------------------------------------------- summarising


def step_time(run: dict) -> float:
  """Median seconds over the run's timed steps."""
  return statistics.median(run["step_s"])


def paired_ratios(runs: list, name: str, peer: str) -> list:
  """nrt_jax's step time over the peer's, for each round that has both."""
  times = {(run["side"], run["round"]): step_time(run) for run in runs if run["workload"] == name}
  rounds = sorted({number for side, number in times if side == peer and ("nrt_jax", number) in times})
  return [times["nrt_jax", number] / times[peer, number] for number in rounds]


def own_share(run: dict) -> float:
  """The run's share of the machine's busy time; below QUIET, other processes were running."""
  return run["own_s"] / max(run["busy_s"], 1e-9)


def quiet_rounds(runs: list) -> list:
  """The runs of a workload's quiet rounds, or all of its runs if it has none."""
  loud = {(run["workload"], run["round"]) for run in runs if own_share(run) < QUIET}
  quiet = {run["workload"] for run in runs if (run["workload"], run["round"]) not in loud}
  return [run for run in runs if run["workload"] not in quiet or (run["workload"], run["round"]) not in loud]


def summarise(runs: list) -> dict:
  """Step times of each side, ratios, and each side's least share of busy time."""
  names = [name for name in workload.WORKLOADS if any(run["workload"] == name for run in runs)]
  summary = {}
  for name in names:
    of_name = [run for run in runs if run["workload"] == name]
    sides = [side for side in TAKES_PART[name] if any(run["side"] == side for run in of_name)]
    times = {side: [step_time(run) for run in of_name if run["side"] == side] for side in sides}
    ratios = {side: paired_ratios(runs, name, side) for side in sides if side != "nrt_jax"}
    shares = {side: min(own_share(run) for run in of_name if run["side"] == side) for side in sides}
    summary[name] = {"step_s": times, "ratios": {side: r for side, r in ratios.items() if r}, "own_share": shares}
  return summary


def spread(values: list, digits: int = 2) -> str:
  """Formats the median with the smallest and largest value."""
  low, middle, high = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
  return f"{middle} ({low} to {high})"


def table(summary: dict) -> str:
  """The summary as a Markdown table: one line per side, medians with the range over rounds."""
  lines = ["| workload | side | s per step | nrt_jax / side | target | own share of busy time, least |"]
  lines.append("|---|---|---|---|---|---|")
  for name, part in summary.items():
    for side, times in part["step_s"].items():
      ratio, limit = part["ratios"].get(side), TO_REACH.get((name, side))
      cells = [name, side, spread(times), spread(ratio) if ratio else "", f"{limit:.2f}" if ratio and limit else ""]
      lines.append(f"| {' | '.join(cells)} | {part['own_share'][side]:.2f} |")
  return "\n".join(lines)


def describe(runs: list, apart: dict) -> list:
  """The lines under the table: date, machine, versions, and whether the machine was quiet."""
  versions = {name: version for run in runs for name, version in run["versions"].items() if run["side"] != "tunix"}
  tunix = next((run["versions"] for run in runs if run["side"] == "tunix"), {})
  lines = [f"{time.strftime('%Y-%m-%d %H:%M')} UTC, {usable_cores()} cores, {platform.machine()}, "]
  lines[0] += f"Python {platform.python_version()}"
  lines.append("Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
  if tunix:
    lines.append("Versions beside tunix: " + ", ".join(f"{name} {version}" for name, version in tunix.items()))
  lines.append("First logits against nrt_jax's: " + ", ".join(f"{side} {d:.0e}" for side, d in apart.items()))
  loaded = sorted({run["side"] for run in quiet_rounds(runs) if own_share(run) < QUIET})
  lines.append(f"Others were at work during: {', '.join(loaded)}" if loaded else "The machine was quiet.")
  left_out = sorted(
    {(run["workload"], run["round"] + 1) for run in runs}
    - {(run["workload"], run["round"] + 1) for run in quiet_rounds(runs)}
  )
  if left_out:
    lines.append("Left out, since others were at work: " + ", ".join(f"{name} round {n}" for name, n in left_out))
  return lines


def save_model(args, sizes: workload.Sizes) -> None:
  """The weights that all sides start from."""
  import side_nrt_jax  # imported here: the driver does not need JAX otherwise

  side_nrt_jax.save_model(sizes, os.path.join(args.workdir, "model"))


def main(argv=None) -> int:
  args = parse(argv)
  sizes = workload.TINY if args.tiny else workload.Sizes()
  args.workdir = os.path.abspath(args.workdir)
  try:
    pythons = find_pythons(args)
    os.makedirs(args.workdir, exist_ok=True)
    save_model(args, sizes)
    runs = run_rounds(pythons, args)
    check_tokens(runs, sizes)
    check_rewards(runs, sizes)
    apart = check_logits({run["side"] for run in runs}, args.workdir)
  except UserError as error:
    print(f"peers: {error}", file=sys.stderr)
    return 2
  summary = summarise(quiet_rounds(runs))
  result = {"command": sys.argv, "summary": summary, "logits_apart": apart, "runs": runs}
  write_json(os.path.join(args.workdir, "results.json"), result)
  print("\n".join([table(summary), "", *describe(runs, apart)]))
  return 0


if __name__ == "__main__":
  sys.exit(main())
