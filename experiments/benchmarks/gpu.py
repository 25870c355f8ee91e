"""What one GPU makes of it: tests, whole steps from 0.5B to 8B, on-policy ratios, decoding, attention.

    python experiments/benchmarks/gpu.py --output gpu.jsonl --budget 330

Made for one H100 with 80 GB; docs/results/gpu.md says how to read what comes out. Each measurement is a process of its
own with a time limit: one that fails is one line, and the others go on. Every result is a JSON line in `--output` as
soon as it is there; `--output`.log has what the processes printed; a table ends the run. `--list` lists them all,
`--only NAME ...` runs some, in the given order. `--tiny` tries each at toy sizes, in a minute or two on a CPU.

Weights are random, prompts are made-up words, and nothing is fetched. Traces of random weights run to their limit.
Leave the machine's cores to it: a GPU's program is compiled there, and on five busy cores takes more than its limit.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from nrt_jax.data.prompts import word_tokenizer  # noqa: E402  (this file is started by its path; jax is not imported here)

WORDS = [f"w{i}" for i in range(1000)]
EXAMPLES = 256
CONFIG = "from nrt_jax.commands.configs import base_config\n\n\ndef get_config():\n  return base_config('nrt')\n"
TINY_MODEL = dict(
  vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
  num_key_value_heads=2, head_dim=16,
)  # fmt: skip
LEAST = 25  # seconds: with less left of the budget, nothing is started


@dataclass(frozen=True)
class Shape:
  """A model and a step. Prompts and answers are as long as allowed."""

  model: str  # directory of experiments/architectures
  prompts: int
  samples: int
  prompt: int = 256
  trace: int = 512
  answer: int = 32
  settings: tuple = ()  # KEY=VALUE of the config

  def overrides(self, place: pathlib.Path) -> list[str]:
    """Flags of `nrt-jax` for a run in `place`."""
    values = {
      "model.path": place / "model", "model.weights": "random", "model.compute_dtype": "bfloat16",
      "model.remat": "full", "data.source": place / "pairs.jsonl", "prompts_per_step": self.prompts,
      "samples_per_prompt": self.samples, "prompt.max_prompt_length": self.prompt,
      "prompt.max_answer_length": self.answer, "sampling.max_trace_length": self.trace,
    }  # fmt: skip
    return [f"--config.{text}" for text in (*(f"{key}={value}" for key, value in values.items()), *self.settings)]

  def tiny(self) -> "Shape":
    return replace(self, prompts=8, samples=4, prompt=16, trace=8, answer=4)


@dataclass(frozen=True)
class Measurement:
  """One process."""

  kind: str  # tests | benchmark | ratios | decode | attention
  limit: int  # seconds after which it is stopped
  shape: Shape | None = None
  repeats: int = 2
  xla_flags: str = ""

  def describe(self) -> str:
    s = self.shape
    if s is None:
      return self.kind
    sizes = f"{s.model}, {s.prompts} x {s.samples}, {s.prompt} + {s.trace} + {s.answer}"
    return " ".join([self.kind, f"{sizes};", *s.settings, self.xla_flags]).strip()


QWEN_05B = Shape("qwen25_05b", 8, 16, trace=1024)
LORA = ("model.lora_rank=32", "model.lora_alpha=32", "optimizer.learning_rate=1e-4")
INT8 = ("optimizer.moment_dtype=int8",)
DECODED = replace(QWEN_05B, trace=128, settings=("sampling.cache_stages=1", "model.layer_loop=scan"))
UNROLLED = replace(DECODED, settings=("sampling.cache_stages=1", "model.layer_loop=unroll"))
GRAPHS = "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"

# One micro-batch each, as is the default on a GPU: with remat=full the layers' inputs take less memory than the second
# copy of all gradients that micro-batches add up in.
# By value: the first are wanted most. Full fine-tuning of 8B is left out: float32 parameters, gradients and two moments
# are 8.03e9 x 16 bytes = 128 GB.
MEASUREMENTS = {
  "tests": Measurement("tests", 90),
  "05b": Measurement("benchmark", 170, QWEN_05B, repeats=3),
  "ratios": Measurement("ratios", 110, Shape("qwen25_05b", 4, 8, trace=256, settings=("sampling.cache_stages=1",))),
  "8b_lora": Measurement("benchmark", 190, Shape("llama31_8b", 4, 8, settings=LORA)),
  "15b": Measurement("benchmark", 150, Shape("qwen25_15b", 8, 8)),
  "3b": Measurement("benchmark", 170, Shape("llama32_3b", 8, 4, settings=INT8)),
  "attention": Measurement("attention", 90),
  "decode_scan": Measurement("decode", 60, DECODED),
  "decode_unroll": Measurement("decode", 90, UNROLLED),
  "decode_graphs": Measurement("decode", 60, UNROLLED, xla_flags=GRAPHS),
}

# What makes sense on one GPU, by value. Left out are files that compile for TPUs, read or write files, and know no
# arrays; files that start processes of their own; and the tests below.
TEST_FILES = (
  "model/kernels", "model/attention", "rollout/sampler", "rollout/scoring", "model/decoder", "objectives/losses",
  "objectives/rewards", "objectives/advantages", "step/update", "algorithms/verifier_free", "rows", "rollout/one_draw",
  "objectives/masked", "rollout/caches", "model/lora", "optimizers/update_rule", "optimizers/quantized_moments",
  "model/remat", "rollout/continuous", "data/packing", "step/programs",
)  # fmt: skip
SEVERAL_DEVICES = (
  "model/kernels::test_mesh", "model/kernels::test_rows_that_do_not_divide_over_the_mesh_are_left_to_xla",
  "model/kernels::test_pmap", "rollout/one_draw::test_tokens_are_drawn_where_the_vocabulary_lies",
  "rollout/continuous::test_over_a_mesh", "rollout/continuous::test_under_pmap", "rollout/continuous::test_errors",
  "step/update::test_kernels_run_rows_that_have_their_own_prompt",
  "step/update::test_a_shared_prompt_must_not_be_cut",
  "model/lora::test_a_step_changes_adapters_and_nothing_else[over1]",
  "optimizers/quantized_moments::test_every_way_to_run_gives_the_same_parameters",
  "optimizers/quantized_moments::test_blocks_do_not_straddle_shards",
  "optimizers/quantized_moments::test_it_goes_with[adapters]",
  "step/programs::test_every_way_to_run_gives_the_same_numbers[mesh", "step/programs::test_state_is_cut_by_the_mesh",
  "step/programs::test_supervised_steps_are_the_same_too",
  "step/programs::test_nothing_leaves_the_program_but_its_results[mesh",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ processes


def make_place(shape: Shape, tiny: bool, place: pathlib.Path) -> None:
  """A model directory without weights, its tokenizer, a config file and data, all in `place`."""
  (place / "model").mkdir(parents=True)
  architecture = json.loads((ROOT / "experiments" / "architectures" / shape.model / "config.json").read_text())
  architecture |= TINY_MODEL if tiny else {}
  (place / "model" / "config.json").write_text(json.dumps(architecture))
  word_tokenizer(WORDS, str(place / "model"))
  (place / "config.py").write_text(CONFIG)
  draw = random.Random(0)
  with open(place / "pairs.jsonl", "w") as file:
    for _ in range(EXAMPLES):  # the end token closes an answer
      texts = (" ".join(draw.choices(WORDS, k=count)) for count in (shape.prompt, shape.answer - 1))
      file.write(json.dumps(dict(zip(("question", "answer"), texts))) + "\n")


def command(name: str, args, place: pathlib.Path) -> list[str]:
  """What the process of a measurement runs."""
  m = MEASUREMENTS[name]
  if m.kind == "tests":
    return [sys.executable, "-m", "pytest", *test_flags(args)]
  if m.kind == "attention":
    return [sys.executable, str(HERE / "gpu_parts.py"), "attention", *(["--tiny"] if args.tiny else [])]
  shape = m.shape.tiny() if args.tiny else m.shape
  shape = replace(shape, settings=(*shape.settings, *args.set))
  make_place(shape, args.tiny, place)
  config = ["--config", str(place / "config.py"), *shape.overrides(place)]
  if m.kind == "benchmark":
    repeats = str(args.repeats or m.repeats)
    return [sys.executable, "-m", "nrt_jax", "benchmark", "--repeats", repeats, "--json", str(place / "out"), *config]
  return [sys.executable, str(HERE / "gpu_parts.py"), m.kind, *config]


def test_file(name: str) -> str:
  folder, _, stem = name.rpartition("/")
  return "/".join(filter(None, ["tests", folder, f"test_{stem}.py"]))


def test_flags(args) -> list[str]:
  """What pytest is given. It deselects what starts with a name."""
  flags = ["-v", "--tb=line", "--color=no", "-p", "no:cacheprovider", "-n", str(args.workers), "--dist=worksteal"]
  for file, _, name in (test.partition("::") for test in SEVERAL_DEVICES):
    flags.append(f"--deselect={test_file(file)}::{name}")
  return [*flags, *map(test_file, TEST_FILES[5:8] if args.tiny else TEST_FILES)]


def environment(name: str, args) -> dict:
  """Its environment. XLA sets memory of the GPU aside at its start: nearly all, or for tests side by side none."""
  m, env = MEASUREMENTS[name], dict(os.environ)
  env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
  flags = m.xla_flags
  if m.kind == "tests":  # tiny programs, compiled once and run once: choosing their kernels by timing pays nothing
    env |= {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_deterministic_ops=true"  # some compare bits
  else:
    env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.93")
  if not args.tiny:
    env.setdefault("JAX_PLATFORMS", "cuda,cpu")  # callbacks hand their arguments over on a CPU device
  env["XLA_FLAGS"] = " ".join(filter(None, [env.get("XLA_FLAGS"), flags]))
  return env


def run(name: str, args, limit: float) -> dict:
  """Runs one measurement: its line of the output."""
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile("w+") as printed:
    place = pathlib.Path(scratch)
    argv = command(name, args, place)
    how = {"stdout": printed, "stderr": subprocess.STDOUT, "start_new_session": True}
    process = subprocess.Popen(argv, env=environment(name, args), cwd=ROOT, **how)
    try:
      code, status = process.wait(limit), "ok"
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)  # and those that it has started
      code, status = process.wait(), "timeout"
    printed.seek(0)
    text = printed.read()
    result = read_result(name, text, place)
  keep_log(args, name, text)
  what = " ".join([MEASUREMENTS[name].describe(), *args.set])
  line = {"name": name, "what": what, "status": status, "result": result}
  if status == "ok" and code:
    line["status"] = "failed"
  if line["status"] != "ok":
    line["error"] = f"stopped after {limit:.0f} s" if status == "timeout" else last_line(text)
  return line | {"seconds": round(time.monotonic() - start, 1)}


def read_result(name: str, text: str, place: pathlib.Path):
  """What a process found, as far as it came."""
  kind = MEASUREMENTS[name].kind
  if kind == "tests":
    return count_tests(text)
  if kind == "benchmark":
    return json.loads((place / "out").read_text()) if (place / "out").exists() else None
  return [json.loads(line.removeprefix("RESULT ")) for line in text.splitlines() if line.startswith("RESULT ")]


def count_tests(text: str) -> dict:
  """Counts of pytest -v, and the names of what failed; also of a run that was stopped."""
  found = {word: set() for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
  for line in text.splitlines():
    words = line.split()
    for word in found:
      if word in words[:4] and any("::" in w for w in words):
        found[word].add(next(w for w in words if "::" in w).removeprefix("tests/"))
  failed = sorted(found["FAILED"] | found["ERROR"])
  return {**{word.lower(): len(names) for word, names in found.items()}, "failures": failed}


def keep_log(args, name: str, text: str) -> None:
  with open(f"{args.output}.log", "a") as file:
    file.write(f"\n======== {name}\n{text[-200_000:]}\n")


def last_line(text: str) -> str:
  """The line that says what went wrong: an error's own, else the last one."""
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  errors = [line for line in lines if "Error" in line or "RESOURCE_EXHAUSTED" in line]
  return (errors or lines or ["printed nothing"])[-1][:300]


# ---------------------------------------------------------------------------------------------------------------- text


def lines_of(line: dict) -> list[str]:
  """A result for people: one line or a few."""
  result, kind = line["result"], MEASUREMENTS[line["name"]].kind
  head = f"{line['name']:14} {line['status']:8} {line['seconds']:6.1f} s"
  told = [f"{head}  {line['error'] if 'error' in line else line['what']}"]
  if not result:
    return told
  if kind == "tests":
    counts = ", ".join(f"{count} {word}" for word, count in result.items() if word != "failures")
    return [*told, f"  {counts}", *(f"  failed: {name}" for name in result["failures"])]
  if kind == "benchmark":
    return [*told, *benchmark_lines(result)]
  return [*told, *(f"  {', '.join(f'{key} {short(value)}' for key, value in row.items())}" for row in result)]


def benchmark_lines(report: dict) -> list[str]:
  step, memory, phases = report["step"], report["memory"], report["phases"]
  planned, peak = memory["planned_bytes"], memory["peak_bytes"]
  rates = [f"{name} {step[f'{name}_tokens_per_s']:,.0f} tokens/s" for name in ("generated", "trained")]
  sizes = (("peak", peak), ("planned", (planned or {}).get("total")))
  gib = [f"{word} {size / 2**30:.1f} GiB" for word, size in sizes if size]
  parts = []
  for phase in phases:
    words = (("MFU", "mfu"), ("bandwidth", "bandwidth_share"))
    shares = [f"{word} {phase[key]:.1%}" for word, key in words if key in phase]
    parts.append(" ".join([f"{phase['name']} {phase['seconds']['median']:.3f} s", *shares]))
  whole = f"step {step['seconds']['median']:.3f} s, MFU {step['mfu']:.1%}, compile {report['compile']['seconds']:.0f} s"
  return [f"  {', '.join([whole, *rates, *gib])}", f"  {'; '.join(parts) or 'stopped before its phases'}"]


def short(value) -> str:
  return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------------------------- main


def skipped(name: str, left: float) -> dict:
  what, error = MEASUREMENTS[name].describe(), f"{left:.0f} s are left of the budget"
  return {"name": name, "what": what, "status": "skipped", "result": None, "error": error, "seconds": 0.0}


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser()
  parser.add_argument("--output", default="gpu.jsonl", help="file that results are appended to")
  parser.add_argument("--budget", type=float, default=3600, help="seconds for everything")
  parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help="these, in this order")
  parser.add_argument("--limit", action="append", default=[], metavar="NAME=SECONDS", help="another time limit")
  parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config, for all runs")
  parser.add_argument("--repeats", type=int, help="timed steps of each benchmark")
  parser.add_argument("--workers", type=int, default=12, help="processes that share the tests")
  parser.add_argument("--tiny", action="store_true", help="toy sizes, on any platform")
  parser.add_argument("--list", action="store_true")
  return parser.parse_args()


def main() -> None:
  args, start = arguments(), time.monotonic()
  if args.list:
    print("\n".join(f"{name:14} {m.limit:4} s  {m.describe()}" for name, m in MEASUREMENTS.items()))
    return
  limits = {name: m.limit for name, m in MEASUREMENTS.items()}
  limits |= {name: int(seconds) for name, _, seconds in (text.partition("=") for text in args.limit)}
  table = []
  for name in args.only or MEASUREMENTS:
    left = args.budget - (time.monotonic() - start)
    line = skipped(name, left) if left < LEAST else run(name, args, min(limits[name], left))
    with open(args.output, "a") as file:
      file.write(json.dumps(line) + "\n")
    table += lines_of(line)
    print(f"[{time.monotonic() - start:5.0f} s] {name}: {line['status']}", flush=True)
  print("\n".join(["", *table]))


if __name__ == "__main__":
  main()
