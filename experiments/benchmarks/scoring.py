"""Scoring the answers of a group on the rollout's caches, against scoring whole sequences (prompt, trace, answer).

    python experiments/benchmarks/scoring.py

About a minute on 2 quiet CPU cores. Target: at most 0.15 of the time, with trace 1024 and answer 64. Both use the same
weights and score the same sampled traces; the script stops if their log-probabilities differ by more than 1e-3. For a
fair comparison, the head of the whole sequences runs on marker and answer only.
"""

import argparse
import functools

import jax
import numpy as np
import setups

from nrt_jax import rows
from nrt_jax.arrays import repeat_rows
from nrt_jax.rollout import scoring
from nrt_jax.step import programs, tools


def whole_sequences(setup, weights, prompts, rollouts):
  """log c of each answer token `[N, A]`, by one forward pass over the whole sequence."""
  prompts_N, form = repeat_rows(prompts, setup.samples_per_prompt), setup.form
  spliced = rows.splice(
    prompts_N.prompt_BP,
    prompts_N.prompt_length_B,
    rollouts.token_NR,
    rollouts.length_N - rollouts.ended_N,
    form.marker_ids,
    prompts_N.answer_BA,
    prompts_N.answer_length_B,
    form.pad_id,
  )
  answer = prompts.answer_BA.shape[1]
  first = spliced.token_NL.shape[1] - answer - len(form.marker_ids)
  logp_NL, _ = scoring.row_log_probs(weights, setup.decoder, spliced.token_NL, spliced.position_NL, first)
  return logp_NL[:, -answer:]


def on_caches(setup, weights, prompts, rollouts, context):
  """The same, on the caches that sampling left."""
  return tools.score_wave(setup, weights, False, prompts, rollouts, context)[1].answer_logp_NA


def compare(sizes: setups.Sizes, repeats: int) -> dict:
  """Maps each way to the Seconds of its repeats, run in turn."""
  setup = setups.make_setup(sizes)
  with jax.set_mesh(setup.mesh):
    states, prompts = setups.make_states(setup), setups.make_prompts(setup, sizes)
    weights = jax.jit(functools.partial(tools.rollout_weights, setup))(states.policy.params)
    sample = jax.jit(lambda w, s, p: tools.sample_wave(setup, w, programs.step_key(s), False, p))
    rollouts, context = sample(weights, states, prompts)
    whole, cached = jax.jit(functools.partial(whole_sequences, setup)), jax.jit(functools.partial(on_caches, setup))
    arguments = (weights, prompts, rollouts)
    difference = float(np.abs(whole(*arguments) - cached(*arguments, context)).max())
    assert difference < 1e-3, f"log-probabilities differ by {difference}"
    return setups.in_turn(
      {
        "whole": lambda: setups.timed(whole, *arguments)[0],
        "cached": lambda: setups.timed(cached, *arguments, context)[0],
      },
      repeats,
    )


def main() -> None:
  parser = argparse.ArgumentParser()
  for name, default in (("trace", 1024), ("answer", 64), ("prompt", 128), ("prompts", 1), ("samples", 8)):
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--hidden", type=int, default=256)
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args()
  sizes = setups.Sizes(
    hidden=args.hidden,
    mlp=4 * args.hidden,
    head_dim=args.hidden // 4,
    layers=args.layers,
    prompts=args.prompts,
    samples=args.samples,
    prompt_length=args.prompt,
    trace_length=args.trace,
    answer_length=args.answer,
  )
  seconds = compare(sizes, args.repeats)
  print(setups.where())
  print(f"{sizes.layers} layers of width {sizes.hidden}; {args.prompts} prompts x {args.samples} samples; prompt")
  print(f"{args.prompt}, trace {args.trace}, answer {args.answer} tokens; {args.repeats} repeats in turn\n")
  print("| scoring | seconds, median | CPU seconds, median |\n|---|---|---|")
  for name, label in (("whole", "whole sequences"), ("cached", "answers on the rollout's caches")):
    print(f"| {label} | {setups.medians(seconds[name])} |")
  print(f"| ratio, median of pairs (lowest to highest) | {setups.paired(seconds['cached'], seconds['whole'])} |")


if __name__ == "__main__":
  main()
