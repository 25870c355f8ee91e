"""Programs per CPU second of the interpreters: Python, JAX, and JAX with `vmap`'s own rule for loops.

    python experiments/benchmarks/interpreters.py [--rows 256] [--repeats 15] [--steps 1000]

One row is one program on one input. Three kinds of rows: reference programs of the tasks (every kind in turn, on
random inputs), what a policy writes at random (as many instructions of any kind), and programs that never end, so that
all rows take all steps. Each time is the lowest of several, in seconds of CPU time, for the machine may be busy;
compiling is not counted. The outcomes of all interpreters are compared.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from nrt_jax.interpreters import batching, befunge, befunge_jax, brainfuck, brainfuck_jax
from nrt_jax.tasks import table
from nrt_jax.tasks.programs import KINDS

LANGUAGES = {"brainfuck": (brainfuck, brainfuck_jax), "befunge": (befunge, befunge_jax)}
ENDLESS = {"brainfuck": "+[>+<]", "befunge": "1+:2%"}
N_SYMBOLS, LENGTH = 4, 40


def references(name: str, rows: int, rng) -> list:
  """(ids, inputs) of reference programs."""
  tasks = [table.make_task(name, "train", {"kind": kind}) for kind in KINDS if kind != "factorial"]
  programs = [task.reference() for task in tasks]
  return [(programs[i % len(programs)], rng.integers(1, 6, N_SYMBOLS).tolist()) for i in range(rows)]


def written_at_random(name: str, rows: int, rng) -> list:
  """(ids, inputs) of sequences of instructions."""
  signs = table.make_task(name, "train", {}).signs
  used = [i for i, word in enumerate(signs) if word]
  return [(rng.choice(used, LENGTH).tolist(), rng.integers(1, 6, N_SYMBOLS).tolist()) for _ in range(rows)]


def endless(name: str, rows: int, rng) -> list:
  """(ids, inputs) of a loop."""
  return [(LANGUAGES[name][0].encode(ENDLESS[name]), [1])] * rows


def limits_of(name: str, steps: int):
  """Small memories, as the tasks have them."""
  if name == "brainfuck":
    return brainfuck.Limits(steps=steps, outputs=8, tape=64)
  return befunge.Limits(steps=steps, outputs=8, width=40, height=8)


def seconds(function, repeats: int) -> float:
  """The lowest CPU time of a call, after one that is not counted."""
  function()
  times = []
  for _ in range(repeats):
    start = time.process_time()
    function()
    times.append(time.process_time() - start)
  return min(times)


def compiled(module, limits, arrays):
  """The program that runs all rows."""
  return jax.jit(jax.vmap(lambda *row: module.run(*row, limits))).lower(*arrays).compile()


def measure(name: str, rows: list, steps: int, repeats: int) -> dict:
  """Seconds for all rows by each means."""
  (language, module), limits = LANGUAGES[name], limits_of(name, steps)
  ids, inputs = zip(*rows)
  arrays = jax.device_put((*batching.padded(ids, max(map(len, ids))), *batching.padded(inputs, N_SYMBOLS)))
  run = compiled(module, limits, arrays)
  rule, batching.over_rows = batching.over_rows, lambda function: function
  plain = compiled(module, limits, arrays)
  batching.over_rows = rule
  expected = [language.run(*row, limits) for row in rows]
  for found in (run(*arrays), plain(*arrays)):
    for field, values in (("length", [e.length for e in expected]), ("status", [e.status for e in expected]),
                          ("steps", [e.steps for e in expected])):  # fmt: skip
      np.testing.assert_array_equal(getattr(found, field), values)
  return {
    "mean": statistics.mean(e.steps for e in expected),
    "most": max(e.steps for e in expected),
    "python": seconds(lambda: [language.run(*row, limits) for row in rows], repeats),
    "jax": seconds(lambda: jax.block_until_ready(run(*arrays)), repeats),
    "plain": seconds(lambda: jax.block_until_ready(plain(*arrays)), repeats),
  }


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--rows", type=int, default=256)
  parser.add_argument("--repeats", type=int, default=15, help="of which the lowest time counts")
  parser.add_argument("--steps", type=int, default=1000, help="the limit of steps")
  args = parser.parse_args()
  columns = ("language", "rows", "steps, mean", "steps, most", "Python, programs/CPU s", "JAX, programs/CPU s", "ratio")
  print(f"| {' | '.join(columns)} | with vmap's rule, programs/CPU s |\n|{'---|' * 8}")
  for name in LANGUAGES:
    for kind in (references, written_at_random, endless):
      found = measure(name, kind(name, args.rows, np.random.default_rng(0)), args.steps, args.repeats)
      rates = {means: args.rows / found[means] for means in ("python", "jax", "plain")}
      cells = [f"{rates['python']:,.0f}", f"{rates['jax']:,.0f}", f"{rates['jax'] / rates['python']:.1f}"]
      size = [name, kind.__name__.replace("_", " "), f"{found['mean']:.0f}", f"{found['most']}"]
      print("|", " | ".join([*size, *cells, f"{rates['plain']:,.0f}"]), "|")


if __name__ == "__main__":
  main()
