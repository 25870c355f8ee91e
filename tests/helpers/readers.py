"""A reader of the docs: a directory with what the pages take as given, and a process that runs their commands there.

The process has one device, as a reader's machine may: programs for one compile in three quarters of the time of those
for a mesh.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import traceback

CRITICS = ("1", "2", "tie", "?")  # words that the critic of RARO needs
MODELS = ("my_model", "Llama-3.2-1B", "QWEN")
PAIRS = ("pairs", "heldout", "train", "test", "demonstrations")
# One layer, and the same sizes of everything, so that commands share their compiled programs. Later flags win.
SMALL = (
  "total_steps=1", "prompts_per_step=8", "samples_per_prompt=2", "prompt.max_prompt_length=24",
  "prompt.max_answer_length=4", "sampling.max_trace_length=6", "parallel.micro_batches=1", "parallel.fsdp=1",
  "parallel.tensor=1", "evaluation.batch_prompts=8", "evaluation.every_steps=0", "evaluation.shots=0",
  "logging.progress=false", "logging.tensorboard=false",
)  # fmt: skip
SMALL_CRITIC = ("algorithm.critic.max_length=6",)


def fill(place: pathlib.Path) -> None:
  """Writes models and data that configs and commands of the pages name."""
  import benchmarks
  import harness_tasks
  import places

  first, *others = (place / name for name in MODELS)
  sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
  places.make_chat_model(first, words=CRITICS, head_dim=4, **sizes)
  for other in others:
    other.symlink_to(first)
  for name in PAIRS:
    places.write_pairs(place / f"{name}.jsonl", 16)
  rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
  write_lines(place / "pairs.jsonl", [{**rows[0], "trace": "the colour"}, *rows[1:]])
  write_lines(place / "ROWS.jsonl", [{"prompt": row["question"], "poem": row["answer"]} for row in rows])
  benchmarks.write(place / "DATA")
  harness_tasks.write_tasks(place / "my_tasks")
  task = (place / "my_tasks" / "local_choice.yaml").read_text().replace("task: local_choice", "task: my_task")
  (place / "my_tasks" / "my_task.yaml").write_text(task)


def write_lines(path: pathlib.Path, rows: list) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Reader:
  """`root` holds what every page may read; each page has a directory of its own beside it, which begins as a copy."""

  def __init__(self, root: pathlib.Path):
    self.root, code = root, pathlib.Path(__file__).parents[2]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    env |= {"PYTHONPATH": str(code), "API_KEY": "key", "KEY": "key"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    self._process = subprocess.Popen([sys.executable, __file__], cwd=root, env=env, **pipes)

  def run(self, place: pathlib.Path, argv: list[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `nrt-jax` with these arguments, run in `place`."""
    print(json.dumps([str(place), argv]), file=self._process.stdin, flush=True)
    return tuple(json.loads(self._process.stdout.readline()))

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait(60)

  def directory(self, name: str) -> pathlib.Path:
    """A new directory in which models and data are at hand, and the repository's experiments."""
    place = self.root.parent / name
    place.mkdir()
    for path in self.root.iterdir():
      (place / path.name).symlink_to(path)
    (place / "experiments").symlink_to(pathlib.Path(__file__).parents[2] / "experiments")
    return place

  def give_run(self, place: pathlib.Path, workdir: str, config: pathlib.Path, flags: list[str]) -> None:
    """Puts a finished run of a config where a page takes one as given; it is trained when it is first asked for."""
    key = hashlib.sha256(repr((config.read_text(), flags)).encode()).hexdigest()[:16]
    finished = self.root.parent / f"finished_{key}"
    if not finished.exists():
      code, _, err = self.run(self.root, ["train", "--config", str(config), "--workdir", str(finished), *flags])
      assert code == 0, err
    shutil.copytree(finished, place / workdir)


def small(algorithm: str) -> list[str]:
  """Flags that make any run of this algorithm small."""
  return [f"--config.{text}" for text in (*SMALL, *(SMALL_CRITIC if algorithm == "raro" else ()))]


def serve() -> None:
  """Runs the commands that come in, as lines of JSON, and answers each with its exit code and what it wrote."""
  from nrt_jax import __main__ as program

  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what others print on the way is no answer
  for line in sys.stdin:
    place, argv = json.loads(line)
    os.chdir(place)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      try:
        code = program.main(argv)
      except BaseException:  # a defect: its traceback goes to the test that asked
        code = 1
        traceback.print_exc(file=err)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)


if __name__ == "__main__":
  serve()
