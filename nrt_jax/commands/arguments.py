"""The flags of each command, by the command's name."""

from nrt_jax.commands.parser import Parser, checkpoint_step, number


def config_file(parser: Parser) -> None:
  """Adds the flags of all commands that read a config file."""
  parser.add_argument("--config", required=True, metavar="FILE", help="Python file with get_config() -> ConfigDict")
  parser.add_argument(
    "--config.KEY=VALUE",
    dest="overrides",
    metavar="",
    help="overrides one key, e.g. --config.optimizer.learning_rate=1e-5; may be repeated",
  )


def train(parser: Parser) -> None:
  config_file(parser)
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


def quickstart(parser: Parser) -> None:
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


def sample(parser: Parser) -> None:
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


def evaluate(parser: Parser) -> None:
  config_file(parser)
  source = parser.add_mutually_exclusive_group()
  source.add_argument("--checkpoint", metavar="DIR", help="a run's workdir, or checkpoints in it")
  source.add_argument("--model", metavar="DIR", help="an export of a run, or any model directory")
  parser.add_argument("--step", type=checkpoint_step, metavar="N|best", help="which checkpoint (the newest)")
  parser.add_argument("--stage", metavar="NAME", help="whose evaluation, in a config of several stages (the last)")
  parser.add_argument("--output", metavar="FILE", help="writes the metrics and their 95 %% intervals as JSON, too")
  parser.add_argument("--completions", metavar="FILE", help="writes every completion, grade and vote as JSON Lines")
  parser.add_argument(
    "--sets", nargs="+", metavar="NAME", help="built-in sets, in place of evaluation.data: gsm8k, bbh (evaluation.sets)"
  )
  parser.add_argument(
    "--sets_directory", metavar="DIR", help="where their files lie; hub: fetches them (evaluation.sets_directory)"
  )
  parser.add_argument(
    "--limit", type=number(int, 1), metavar="N", help="questions at most, of each set, and of each task of a set (all)"
  )
  parser.add_argument(
    "--run_code", action="store_true", help="allows sets whose grading runs programs that the model wrote (humaneval)"
  )
  parser.add_argument(
    "--cache", metavar="DIR", help="keeps what the model writes, to go on where it stopped (a run's evaluations/)"
  )
  parser.add_argument("--tournament", type=int, default=0, metavar="N", help="lets the critic choose among N samples")
  parser.add_argument("--votes", type=int, default=4, metavar="V", help="verdicts of a match of the tournament (4)")


def harness(parser: Parser) -> None:
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--model", metavar="DIR", help="an export of a run, or any model directory")
  source.add_argument("--checkpoint", metavar="DIR", help="a run's workdir, or checkpoints in it")
  parser.add_argument("--tasks", required=True, metavar="NAME,...", help="tasks, groups or tags of the harness")
  parser.add_argument("--include_path", metavar="DIR", help="YAML files of more tasks")
  parser.add_argument("--step", type=checkpoint_step, metavar="N|best", help="which checkpoint (the newest)")
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


def judge(parser: Parser) -> None:
  parser.add_argument(
    "completions", nargs="+", metavar="FILE", help="one file of nrt-jax evaluate --completions, or two: A and B"
  )
  parser.add_argument("--against", choices=("reference",), help="compares the one file with the reference answers")
  judge = parser.add_mutually_exclusive_group(required=True)
  judge.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible endpoint, say http://localhost:8000/v1")
  judge.add_argument("--model", metavar="DIR", help="a model directory, or an export of a run")
  judge.add_argument("--checkpoint", metavar="DIR", help="a run's workdir, or checkpoints in it")
  parser.add_argument("--judge", metavar="NAME", help="of an endpoint: the model's name")
  parser.add_argument("--step", type=checkpoint_step, metavar="N|best", help="which checkpoint (the newest)")

  parser.add_argument("--prompt", metavar="FILE", help="a template of your own, with {question}, {first} and {second}")
  parser.add_argument("--traces", action="store_true", help="shows the judge the traces too, before the answers")
  parser.add_argument("--limit", type=number(int, 1), metavar="N", help="only the first N questions")
  parser.add_argument(
    "--read", choices=("text", "probabilities"), default="text",
    help="of a model: its verdict from what it writes, or from the probabilities of the next token, in pairs (text)",
  )  # fmt: skip
  parser.add_argument("--temperature", type=number(float, 0), default=0.0, metavar="T", help="0 is greedy (0)")
  parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0, metavar="S", help="random seed (0)")
  parser.add_argument("--max_tokens", type=number(int, 1), metavar="N", help="of a reply (1024; of a model 256)")
  parser.add_argument("--batch", type=number(int, 1), default=8, metavar="N", help="of a model: prompts at a time (8)")
  parser.add_argument(
    "--compute_dtype", default="float32", choices=("float32", "bfloat16"), help="of a model's layers (float32)"
  )

  parser.add_argument("--key_env", metavar="NAME", help="the environment variable that holds the endpoint's key")
  parser.add_argument(
    "--request", metavar="JSON", help="further keys of every request; null removes one, as in '{\"seed\": null}'"
  )
  parser.add_argument("--concurrency", type=number(int, 1, 256), default=4, metavar="N", help="requests at a time (4)")
  parser.add_argument("--timeout", type=number(float, 0.01), default=120.0, metavar="S", help="of a request (120)")
  parser.add_argument("--attempts", type=number(int, 1), default=6, metavar="N", help="at each request (6)")
  parser.add_argument("--budget_requests", type=number(int, 1), metavar="N", help="this command sends at most so many")
  parser.add_argument("--budget_tokens", type=number(int, 1), metavar="N", help="this command spends at most so many")

  parser.add_argument(
    "--cache", metavar="FILE", help="the replies so far, which are not asked for again (beside the first FILE)"
  )
  parser.add_argument("--output", metavar="FILE", help="writes the table as JSON, too")
  parser.add_argument("--judgements", metavar="FILE", help="writes every judgement as JSON Lines")


def report(parser: Parser) -> None:
  parser.add_argument("runs", nargs="*", metavar="RUN", help="a workdir; with --table also what evaluations wrote")
  parser.add_argument(
    "--metric", action="append", metavar="NAME", help="a metric, or several as in 'eval/*'; may be repeated (a few)"
  )
  parser.add_argument(
    "--last", type=number(int, 1), default=1, metavar="K", help="means of the last K lines that have the metric (1)"
  )
  parser.add_argument("--html", metavar="FILE", help="writes a page with curves, configs and a sample browser, too")
  parser.add_argument(
    "--ignore", action="append", metavar="KEY",
    help="on the page, a config key besides the seed in which runs of one line may differ; may be repeated",
  )  # fmt: skip
  parser.add_argument(
    "--samples", type=number(int, 1), default=10_000, metavar="N", help="most samples of the page (10000)"
  )
  parser.add_argument("--output", metavar="FILE", help="writes the table as JSON, too; with --table in its format")
  parser.add_argument(
    "--table", metavar="NAME|FILE.py", help="the tables of a paper, with the runs in them: nrt, raro, nft, ..."
  )
  parser.add_argument(
    "--format", default="markdown", choices=("markdown", "latex", "csv"), help="of --table (markdown)"
  )


def export(parser: Parser) -> None:
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's workdir, or checkpoints in it")
  parser.add_argument("--output", required=True, metavar="DIR", help="new directory; an earlier export is replaced")
  parser.add_argument("--step", type=checkpoint_step, metavar="N|best", help="which checkpoint (the newest)")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights (float32)")


def benchmark(parser: Parser) -> None:
  config_file(parser)
  parser.add_argument("--stage", metavar="NAME", help="which stage of the run (the last)")
  parser.add_argument("--repeats", type=number(int, 1), default=5, metavar="N", help="timed runs of each (5)")
  parser.add_argument("--json", metavar="FILE", help="writes the report as JSON, too")
  parser.add_argument("--profile", metavar="DIR", help="writes a profiler trace of two steps, for xprof or Perfetto")


def plan(parser: Parser) -> None:
  config_file(parser)
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
