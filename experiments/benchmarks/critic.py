"""A step with a critic (RARO) against a GRPO step with as many sampled and trained tokens.

    python experiments/benchmarks/critic.py

About a minute on 2 quiet CPU cores. Targets: at most 1.2 of its time, and 1.1 of its memory. Random weights, made-up
prompts; every completion and every verdict runs to its limit. RARO's policy and critic share their weights, all pairs
are fresh, and all verdicts are trained on. The GRPO step has a prompt for each of RARO's question and critic prompts,
of their mean length, and the same frozen reference.
"""

import argparse

import setups


def grpo_sizes(sizes: setups.Sizes) -> setups.Sizes:
  """As many rows, in groups of as many samples, with prompts of the mean length.

  A random policy gives no answer, so the critic's prompts hold the expert's alone, without its end token.
  """
  critic = sizes.prompt_length + sizes.answer_length - 1 + setups.TEMPLATE
  count = 1 + sizes.samples  # a question, and the critic's prompts of its pairs
  mean = round((sizes.prompt_length + sizes.samples * critic) / count)
  return setups.Sizes(**{**vars(sizes), "prompts": sizes.prompts * count, "prompt_length": mean})


def memory(program) -> int:
  """Bytes of arguments and temporaries of a compiled step; donated outputs lie in the arguments."""
  found = program.memory_analysis()
  return found.argument_size_in_bytes + found.temp_size_in_bytes


def main() -> None:
  parser = argparse.ArgumentParser()
  for name, default in (("prompts", 8), ("samples", 8), ("trace", 64), ("repeats", 5)):
    parser.add_argument(f"--{name}", type=int, default=default)
  args = parser.parse_args()
  sizes = setups.Sizes(prompts=args.prompts, samples=args.samples, trace_length=args.trace)
  shared = ["algorithm.reference=frozen", "algorithm.kl_coef=0.001"]
  critic = [
    f"algorithm.critic.samples={args.samples}", f"algorithm.critic.max_length={args.trace}",
    "algorithm.critic.order=random", "algorithm.replay_share=0.0",
  ]  # fmt: skip
  steps = {
    "raro": setups.Step(sizes, shared + critic, "raro"),
    "grpo": setups.Step(grpo_sizes(sizes), shared, "dr_grpo"),
  }
  results = setups.in_turn(steps, args.repeats)
  print(setups.where())
  tokens = {name: results[name][0][1] for name in steps}
  generated = {name: int(t["tokens/generated"] + t.get("tokens/critic_generated", 0)) for name, t in tokens.items()}
  print("\n| step | seconds, median | CPU seconds, median | sampled | trained | MiB |\n|---|---|---|---|---|---|")
  for name, step in steps.items():
    seconds, trained = setups.medians([s for s, _ in results[name]]), int(tokens[name]["tokens/trained"])
    print(f"| {name} | {seconds} | {generated[name]:,} | {trained:,} | {memory(step.program) / 2**20:.0f} |")
  ratio = setups.paired(*([s for s, _ in results[name]] for name in ("raro", "grpo")))
  of_memory = memory(steps["raro"].program) / memory(steps["grpo"].program)
  print(f"| ratio, median of pairs (lowest to highest) | {ratio} | | | {of_memory:.2f} |")


if __name__ == "__main__":
  main()
