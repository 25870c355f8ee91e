"""A step whose traces average a quarter of the cap, against an ideal step without padding.

    python experiments/benchmarks/padding.py
    python experiments/benchmarks/padding.py --set parallel.micro_batches=8 --set parallel.length_buckets=4

A few minutes on 2 CPU cores. Target: at most 1.4 of the ideal step. A random model gives every word a probability near
1 / vocabulary, so with `vocabulary / mean` words that end a trace, its length is geometric: one in sixty reaches the
cap of four times the mean. The ideal step has as many rows, each with a trace of the mean length, so it has as many
valid tokens and no padding. It runs with the same settings and with one micro-batch; the faster one counts.
"""

import argparse
import statistics

import setups

ONE_PIECE = ("parallel.micro_batches=1", "parallel.length_buckets=1")


def mean_lengths(found: list) -> tuple[float, float]:
  """Means over steps: (sampled tokens per row, stop token included; valid tokens per row)."""
  metrics = [values for _, values in found]
  rows = statistics.mean(values["tokens/sequences"] for values in metrics)
  return tuple(
    statistics.mean(values[f"tokens/{name}"] for values in metrics) / rows for name in ("generated", "trained")
  )


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--cap", type=int, default=128, help="longest trace, tokens")
  parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for the padded step")
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args()
  cap = setups.Sizes(hidden=256, mlp=1024, layers=4, head_dim=64, trace_length=args.cap, answer_length=32)
  heavy = setups.Step(setups.dataclasses.replace(cap, stops=round(cap.vocab / (args.cap / 4))), args.set)
  sampled, valid = mean_lengths([heavy() for _ in range(3)])
  # In a row, the marker replaces the sampled stop token.
  trace = round(valid - cap.prompt_length - cap.answer_length - 1)
  even = setups.dataclasses.replace(cap, trace_length=trace)
  steps = {"padded": heavy, "ideal": setups.Step(even, args.set), "ideal, one piece": setups.Step(even, ONE_PIECE)}
  found = setups.in_turn(steps, args.repeats)
  seconds = {name: [s for s, _ in values] for name, values in found.items()}
  best = min(("ideal", "ideal, one piece"), key=lambda name: statistics.median(each.cpu for each in seconds[name]))

  print(setups.where())
  print(f"{cap.layers} layers of width {cap.hidden}; {cap.prompts} prompts x {cap.samples} samples; prompt")
  print(
    f"{cap.prompt_length}, answer {cap.answer_length} tokens; cap {args.cap}, mean trace {sampled:.1f} sampled tokens;"
  )
  print(f"settings: {' '.join(args.set) or 'defaults'}; {args.repeats} repeats in turn\n")
  print("| step | seconds, median | CPU seconds, median | valid tokens | padded share of the update |")
  print("|---|---|---|---|---|")
  for name, values in found.items():
    tokens = statistics.mean(metrics["tokens/trained"] for _, metrics in values)
    share = statistics.mean(metrics["update/padded_fraction"] for _, metrics in values)
    print(f"| {name} | {setups.medians(seconds[name])} | {tokens:,.0f} | {share:.1%} |")
  print(
    f"| padded to {best}, median of pairs (lowest to highest) | {setups.paired(seconds['padded'], seconds[best])} |||"
  )


if __name__ == "__main__":
  main()
