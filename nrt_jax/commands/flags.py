"""The commands, and what each says of itself. Imports nothing heavy, so that --help is fast."""

import argparse

from nrt_jax import errors
from nrt_jax.commands import arguments
from nrt_jax.commands.parser import Command, Parser

CONFIG_PREFIX = "--config."


def parse(argv: list[str]) -> argparse.Namespace:
  """Parses a command line. `command` is the command's name, `overrides` the --config.KEY=VALUE flags."""
  if argv and argv[0] in ("-h", "--help"):
    print(overview())
    raise SystemExit(0)
  if not argv:
    raise errors.UserError(f"command: found none, allowed: {', '.join(COMMANDS)} (see nrt-jax --help)")
  errors.require_choice("command", argv[0], COMMANDS)
  name, command = argv[0], COMMANDS[argv[0]]
  parser = Parser(
    prog=f"nrt-jax {name}",
    description=command.details,
    epilog=f"example:\n{command.example}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  command.add_flags(parser)
  overrides = [a for a in argv[1:] if a.startswith(CONFIG_PREFIX)]
  args = parser.parse_args([a for a in argv[1:] if not a.startswith(CONFIG_PREFIX)])
  if overrides and "config" not in args:
    parser.error(f"{overrides[0]}: this command reads no config file")
  args.command, args.overrides = name, overrides
  return args


def overview() -> str:
  """What `nrt-jax --help` prints."""
  width = max(map(len, COMMANDS))
  lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
  return "\n".join(["usage: nrt-jax COMMAND [flags]", "", *lines, "", "nrt-jax COMMAND --help lists its flags."])


COMMANDS = {
  "quickstart": Command(
    summary="watch a tiny model learn to reason, in minutes on a CPU",
    details="""\
Trains a model of two layers three times, without network or accelerator: next-token prediction, then supervised
learning on question-answer pairs (the control), and NRT on the same pairs. Prints held-out accuracies, and lets the
exported model answer three questions. Takes about 4 minutes on 2 CPU cores; the same command again resumes.""",
    example="""\
  nrt-jax quickstart --workdir runs/quickstart""",
    add_flags=arguments.quickstart,
  ),
  "train": Command(
    summary="train a model from a config file",
    details="""\
Trains what the config file describes, in one compiled program per stage, and writes into the workdir:
config.json, metrics.jsonl, samples.jsonl, tensorboard/, tokenizer/, checkpoints/, compiled/ (programs, so that a
resumed run need not compile again), and export/ at the end. The same command again resumes from the newest checkpoint;
with another config only where that leaves training as it was, or --allow_change says so.

Any key of the config can be overridden: numbers, true, false, null and [lists] are read as such, anything else as
text. In a run of several stages a key counts where the stage doesn't set it for itself; --config.stages.NAME.KEY
(or .0., .1.) reaches into one stage, and --config.total_steps=N caps them all.
docs/configuration.md lists every key, what it means and what is allowed.""",
    example="""\
  nrt-jax train --config experiments/my_run.py --workdir runs/my_run --config.total_steps=3 --config.parallel.fsdp=4""",
    add_flags=arguments.train,
  ),
  "evaluate": Command(
    summary="grade a checkpoint or a model directory on a config's evaluation data",
    details="""\
Runs the evaluation of the config file (its evaluation, prompt, sampling and parallel keys) on a checkpoint of a run or
on a model directory, as `train` does every evaluation.every_steps steps, and prints its metrics. Other data, graders
and numbers of samples are overrides: --config.evaluation.grader=math. With --sets, built-in sets are asked instead.
An evaluation that was interrupted goes on where it stopped. docs/evaluation.md says more.""",
    example="""\
  nrt-jax evaluate --config experiments/my_run.py --checkpoint runs/my_run --step best --output heldout.json
  nrt-jax evaluate --config experiments/my_run.py --model my_model --sets gsm8k bbh --sets_directory DIR""",
    add_flags=arguments.evaluate,
  ),
  "harness": Command(
    summary="run tasks of lm-evaluation-harness on a checkpoint or a model directory",
    details="""\
Runs tasks of lm-evaluation-harness, from its library or from YAML files of yours, and prints its table. Likelihoods and
greedy answers are those that its Hugging Face backend finds on the same weights. A model that was trained here to write
traces is given room for one, and the task sees what stands behind the marker. Needs: pip install nrt_jax[eval].
`python -m nrt_jax.harness --model nrt_jax --model_args path=DIR` has all flags of the harness's own command.
docs/harness.md says more.""",
    example="""\
  nrt-jax harness --checkpoint runs/my_run --tasks gsm8k,arc_easy --num_fewshot 5 --limit 200 --output harness.json""",
    add_flags=arguments.harness,
  ),
  "judge": Command(
    summary="let a model compare or score answers that nobody can grade",
    details="""\
Asks a judge which of two answers is better, in both orders, or how good single answers are, from 1 to 10: two files of
completions are compared by question and sample; one file is scored, or compared with its reference answers. An answer
wins if the judge prefers it in both orders. Replies are kept in a cache as they come, so the same command goes on where
it was ended, and asks nothing twice. docs/judge.md says how the figures are made, and how far to believe them.""",
    example="""\
  nrt-jax judge after.jsonl before.jsonl --endpoint http://localhost:8000/v1 --judge Qwen3-32B --output judged.json
  nrt-jax judge after.jsonl --against reference --model QWEN --read probabilities""",
    add_flags=arguments.judge,
  ),
  "report": Command(
    summary="compare the metrics of several runs in a table",
    details="""\
Reads metrics.jsonl of each workdir, of runs that are still going on too, and prints one row per run: its last step, and
the last value of each metric, or the mean of the last K. docs/index.md explains the metrics. With --html, also writes
one page that holds everything it shows: curves with runs that differ in nothing but their seed as one line, what
differs between the configs, and samples token by token (docs/report.md).
With --table, puts runs and outputs of `evaluate --output` into the tables of a paper, beside the paper's numbers, and
lists the commands that would make what is missing: docs/tables.md.""",
    example="""\
  nrt-jax report runs/sft runs/nrt --last 10 --metric reward/mean --metric 'eval/*' --output report.json
  nrt-jax report --table nrt runs/tables/nrt --format latex --output nrt.tex""",
    add_flags=arguments.report,
  ),
  "sample": Command(
    summary="ask a trained model: prompt in, trace and answer out",
    details="""\
Writes trace and answer of each prompt to standard output. The prompt format and the lengths come from nrt_jax.json of
the model directory, which a run's export holds; for other model directories, and to try others, the flags set them.
Without --prompt and --file, each line of standard input is a prompt. Compiled programs are kept in nrt_jax/compiled of
your cache directory ($XDG_CACHE_HOME or ~/.cache) unless JAX_COMPILATION_CACHE_DIR is set; delete them at will.""",
    example="""\
  nrt-jax sample --model runs/my_run/export --prompt "add 0 0 0 0 4 2 3 1 modulo 5" --samples 3""",
    add_flags=arguments.sample,
  ),
  "export": Command(
    summary="write a checkpoint's policy as a Hugging Face model directory",
    details="""\
Writes the policy of a checkpoint in Hugging Face format: config.json, safetensors, tokenizer, and nrt_jax.json with the
prompt settings that `nrt-jax sample` reads. `train` does so by itself at the end of a run.""",
    example="""\
  nrt-jax export --checkpoint runs/my_run --output my_model --dtype bfloat16""",
    add_flags=arguments.export,
  ),
  "benchmark": Command(
    summary="time a config's training step and its phases",
    details="""\
Compiles the step that `train` would run and times it on the run's own data and weights: seconds, tokens per second,
model FLOPs utilisation, share of the memory bandwidth in decoding, memory, padding, and programs compiled after the
first step; then prefill, decoding, scoring and update as programs of their own, whose sum may differ from the step.
Peak rates are those of the chip's data sheet, or measured where the chip is not in nrt_jax/step/hardware.py.
Trains for some steps and saves nothing. docs/benchmark.md says how to read the figures.""",
    example="""\
  nrt-jax benchmark --config experiments/my_run.py --repeats 5 --json speed.json --config.parallel.fsdp=4""",
    add_flags=arguments.benchmark,
  ),
  "plan": Command(
    summary="compile a config's training step for a TPU slice that you do not have yet",
    details="""\
Compiles the step that `train` would run ahead of time for the named slice, on this machine's CPU, and prints what it
needs on each device: memory against the chip's, FLOPs, collectives by phase, a roofline of the step, and whether it
fits. model.path need only hold a config.json; no weights, data or tokenizer are read if there are none.
Short names count as Google does: cores for v4, v5p and v7x, two to a chip (v5p-128 is v5p:4x4x4, 64 chips), chips for
v5e and v6e. With --slices, what crosses the network between them is listed, too. Needs libtpu: pip install 'jax[tpu]'.
docs/plan.md says how to read the figures.""",
    example="""\
  nrt-jax plan --config experiments/my_run.py --topology v5p:4x4x4 --json plan.json --config.parallel.fsdp=16""",
    add_flags=arguments.plan,
  ),
}
