"""The commands: what each says of itself, and its flags. Imports nothing heavy, so that --help is fast."""

import argparse

from nrt_jax import errors
from nrt_jax.commands.parser import Command, Parser, number, step

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


# ---- Flags ---------------------------------------------------------------------------------------------------------


def _config(parser: Parser) -> None:
  """Adds the flags of all commands that read a config file."""
  parser.add_argument("--config", required=True, metavar="FILE", help="Python file with get_config() -> ConfigDict")
  parser.add_argument(
    "--config.KEY=VALUE",
    dest="overrides",
    metavar="",
    help="overrides one key, e.g. --config.optimizer.learning_rate=1e-5; may be repeated",
  )


def _train(parser: Parser) -> None:
  _config(parser)
  parser.add_argument("--workdir", required=True, metavar="DIR", help="directory of the run; resumes what is there")
  parser.add_argument(
    "--allow_change",
    action="append",
    default=[],
    metavar="KEY",
    help="resumes though this key of the config, or the file that it names, has changed; may be repeated",
  )
  parser.add_argument(
    "--distributed",
    nargs="?",
    const="auto",
    metavar="HOST:PORT,COUNT,ID",
    help="joins the processes of a multi-host run before any device is touched: without a value on TPU pods, SLURM and "
    "the like, which name the processes; else the first process's address, the number of processes and this one's id",
  )
  parser.add_argument(
    "--partner_timeout",
    type=number(int, 1),
    default=60,
    metavar="SECONDS",
    help="of a multi-host run: without a sign of life for so long, a process counts as dead and all others end (60)",
  )


def _quickstart(parser: Parser) -> None:
  counts = number(int, 1)
  parser.add_argument(
    "--workdir", default="runs/quickstart", metavar="DIR", help="where its three runs go (runs/quickstart)"
  )
  parser.add_argument(
    "--pretrain_steps", type=counts, default=800, metavar="N", help="steps of next-token prediction (800)"
  )
  parser.add_argument("--steps", type=counts, default=40, metavar="N", help="steps of NRT and of its control (40)")
  parser.add_argument(
    "--seed", type=number(int, 0, 2**32 - 1), default=0, metavar="S", help="of weights, data order and traces (0)"
  )


def _sample(parser: Parser) -> None:
  at_least = number
  parser.add_argument("--model", required=True, metavar="DIR", help="an export of a run, or any model directory")
  parser.add_argument("--prompt", action="append", metavar="TEXT", help="a question; may be repeated")
  parser.add_argument(
    "--file", metavar="FILE", help='JSON Lines of questions, {"question": text} or {"messages": [...]} on each line'
  )
  parser.add_argument("--samples", type=at_least(int, 1), default=1, metavar="N", help="completions per prompt (1)")
  parser.add_argument(
    "--temperature", type=at_least(float, 0), metavar="T", help="0 is greedy (0 for one sample, 1 for several)"
  )
  parser.add_argument("--top_k", type=at_least(int, 0), default=0, metavar="K", help="0 is off (0)")
  parser.add_argument("--top_p", type=at_least(float, 1e-9, 1), default=1.0, metavar="P", help="1 is off (1)")
  parser.add_argument("--seed", type=at_least(int, 0, 2**32 - 1), default=0, metavar="S", help="random seed (0)")
  parser.add_argument(
    "--max_trace_length", type=at_least(int, 1), metavar="N", help="tokens of the trace (as in training, else 512)"
  )
  parser.add_argument(
    "--max_answer_length", type=at_least(int, 1), metavar="N", help="tokens of the answer (as in training, else 256)"
  )
  parser.add_argument("--template", metavar="T", help="prompt template: plain, chat or a text with {question} (auto)")
  parser.add_argument("--system", metavar="TEXT", help="system text of the prompt")
  parser.add_argument("--marker", metavar="TEXT", help="the text that closes a trace, e.g. '</think>'")
  parser.add_argument("--trace_open", metavar="TEXT", help="the text that opens a trace, e.g. '<think>'")
  parser.add_argument(
    "--compute_dtype", default="float32", choices=("float32", "bfloat16"), help="of the model's layers (float32)"
  )
  parser.add_argument("--tensor", type=at_least(int, 1), default=1, metavar="N", help="devices sharing the model (1)")
  parser.add_argument("--batch", type=at_least(int, 1), default=32, metavar="N", help="prompts at a time (32)")
  parser.add_argument("--json", action="store_true", help="JSON Lines instead of text")


def _evaluate(parser: Parser) -> None:
  _config(parser)
  source = parser.add_mutually_exclusive_group()
  source.add_argument("--checkpoint", metavar="DIR", help="a run's workdir, or checkpoints in it")
  source.add_argument("--model", metavar="DIR", help="an export of a run, or any model directory")
  parser.add_argument("--step", type=step, metavar="N|best", help="which checkpoint (the newest)")
  parser.add_argument("--stage", metavar="NAME", help="whose evaluation, in a config of several stages (the last)")
  parser.add_argument("--output", metavar="FILE", help="writes the metrics and their 95 %% intervals as JSON, too")
  parser.add_argument("--completions", metavar="FILE", help="writes every completion, grade and vote as JSON Lines")
  parser.add_argument("--tournament", type=int, default=0, metavar="N", help="lets the critic choose among N samples")
  parser.add_argument("--votes", type=int, default=4, metavar="V", help="verdicts of a match of the tournament (4)")


def _harness(parser: Parser) -> None:
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--model", metavar="DIR", help="an export of a run, or any model directory")
  source.add_argument("--checkpoint", metavar="DIR", help="a run's workdir, or checkpoints in it")
  parser.add_argument("--tasks", required=True, metavar="NAME,...", help="tasks, groups or tags of the harness")
  parser.add_argument("--include_path", metavar="DIR", help="YAML files of more tasks")
  parser.add_argument("--step", type=step, metavar="N|best", help="which checkpoint (the newest)")
  parser.add_argument("--num_fewshot", type=number(int, 0), metavar="K", help="examples in front (as the task has it)")
  parser.add_argument("--limit", type=number(int, 1), metavar="N", help="the first N examples of each task (all)")
  parser.add_argument("--chat", action="store_true", help="asks through the tokenizer's chat template")
  parser.add_argument("--system", metavar="TEXT", help="system text of the prompts")
  parser.add_argument("--keep_traces", action="store_true", help="grades trace and marker with the answer")
  parser.add_argument("--marker", metavar="TEXT", help="the text that closes a trace (as in training)")
  parser.add_argument(
    "--max_trace_length", type=number(int, 0), metavar="N",
    help="tokens of the trace (as in training); 0 asks for answers without any",
  )  # fmt: skip
  parser.add_argument(
    "--max_length", type=number(int, 2), metavar="N", help="tokens of context and continuation (the model's positions)"
  )
  parser.add_argument(
    "--compute_dtype", choices=("float32", "bfloat16"), help="of the model's layers (the run's own, else float32)"
  )
  parser.add_argument("--tensor", type=number(int, 1), default=1, metavar="N", help="devices sharing the model (1)")
  parser.add_argument(
    "--data", type=number(int, 1), default=-1, metavar="N", help="devices sharing a batch's rows (all that are left)"
  )
  parser.add_argument("--batch", type=number(int, 1), default=32, metavar="N", help="rows at a time (32)")
  parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0, metavar="S", help="of sampled answers (0)")
  parser.add_argument("--output", metavar="FILE", help="writes the harness's results as JSON, too")
  parser.add_argument("--samples", metavar="FILE", help="writes every request, response and grade as JSON Lines")


def _report(parser: Parser) -> None:
  parser.add_argument("runs", nargs="+", metavar="RUN", help="a workdir")
  parser.add_argument(
    "--metric", action="append", metavar="NAME", help="a metric, or several as in 'eval/*'; may be repeated (a few)"
  )
  parser.add_argument(
    "--last", type=number(int, 1), default=1, metavar="K", help="means of the last K lines that have the metric (1)"
  )
  parser.add_argument("--output", metavar="FILE", help="writes the table as JSON, too")
  parser.add_argument("--html", metavar="FILE", help="writes a page with curves, configs and a sample browser, too")
  parser.add_argument(
    "--ignore", action="append", metavar="KEY",
    help="on the page, a config key besides the seed in which runs of one line may differ; may be repeated",
  )  # fmt: skip
  parser.add_argument(
    "--samples", type=number(int, 1), default=10_000, metavar="N", help="most samples of the page (10000)"
  )


def _export(parser: Parser) -> None:
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's workdir, or checkpoints in it")
  parser.add_argument("--output", required=True, metavar="DIR", help="new directory; an earlier export is replaced")
  parser.add_argument("--step", type=step, metavar="N|best", help="which checkpoint (the newest)")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights (float32)")


def _benchmark(parser: Parser) -> None:
  _config(parser)
  parser.add_argument("--stage", metavar="NAME", help="which stage of the run (the last)")
  parser.add_argument("--repeats", type=number(int, 1), default=5, metavar="N", help="timed runs of each (5)")
  parser.add_argument("--json", metavar="FILE", help="writes the report as JSON, too")
  parser.add_argument("--profile", metavar="DIR", help="writes a profiler trace of two steps, for xprof or Perfetto")


def _plan(parser: Parser) -> None:
  _config(parser)
  parser.add_argument(
    "--topology", required=True, metavar="NAME", help="the slice: v5p:4x4x4, v5e:4x4, or short v5p-128, v6e-64"
  )
  parser.add_argument(
    "--slices", type=number(int, 1), default=1, metavar="N", help="how many of them, joined by DCN (1)"
  )
  parser.add_argument("--stage", metavar="NAME", help="which stage of the run (the last)")
  parser.add_argument(
    "--sweep", nargs="?", type=number(int, 1), const=3, metavar="N",
    help="tries mesh shapes, micro-batches and waves, compiles the N (3) likeliest and ranks them",
  )  # fmt: skip
  parser.add_argument("--json", metavar="FILE", help="writes the plan as JSON, too")


COMMANDS = {
  "quickstart": Command(
    summary="watch a tiny model learn to reason, in minutes on a CPU",
    details="""\
Trains a model of two layers three times, without network or accelerator: next-token prediction, then supervised
learning on question-answer pairs (the control), and NRT on the same pairs. Prints held-out accuracies, and lets the
exported model answer three questions. Takes about 4 minutes on 2 CPU cores; the same command again resumes.""",
    example="""\
  nrt-jax quickstart --workdir runs/quickstart""",
    add_flags=_quickstart,
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
    add_flags=_train,
  ),
  "evaluate": Command(
    summary="grade a checkpoint or a model directory on a config's evaluation data",
    details="""\
Runs the evaluation of the config file (its evaluation, prompt, sampling and parallel keys) on a checkpoint of a run or
on a model directory, as `train` does every evaluation.every_steps steps, and prints its metrics. Other data, graders
and numbers of samples are overrides: --config.evaluation.grader=math.""",
    example="""\
  nrt-jax evaluate --config experiments/my_run.py --checkpoint runs/my_run --step best --output heldout.json""",
    add_flags=_evaluate,
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
    add_flags=_harness,
  ),
  "report": Command(
    summary="compare the metrics of several runs in a table",
    details="""\
Reads metrics.jsonl of each workdir, of runs that are still going on too, and prints one row per run: its last step, and
the last value of each metric, or the mean of the last K. docs/index.md explains the metrics. With --html, also writes
one page that holds everything it shows: curves with runs that differ in nothing but their seed as one line, what
differs between the configs, and samples token by token (docs/report.md).""",
    example="""\
  nrt-jax report runs/sft runs/nrt --last 10 --metric reward/mean --metric 'eval/*' --output report.json""",
    add_flags=_report,
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
    add_flags=_sample,
  ),
  "export": Command(
    summary="write a checkpoint's policy as a Hugging Face model directory",
    details="""\
Writes the policy of a checkpoint in Hugging Face format: config.json, safetensors, tokenizer, and nrt_jax.json with the
prompt settings that `nrt-jax sample` reads. `train` does so by itself at the end of a run.""",
    example="""\
  nrt-jax export --checkpoint runs/my_run --output my_model --dtype bfloat16""",
    add_flags=_export,
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
    add_flags=_benchmark,
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
    add_flags=_plan,
  ),
}
