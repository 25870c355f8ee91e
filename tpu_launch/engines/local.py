"""Several processes on this machine, joined as hosts of a slice are: for tests, and for a machine with GPUs."""

import json
import os
import shlex
import signal
import socket
import subprocess
import time

from nrt_jax.errors import UserError
from nrt_jax.files import write_json
from tpu_launch import shell
from tpu_launch.engines.job import (
  MISTAKE_CODE,
  Command,
  Job,
  Poll,
  State,
  Tail,
  last_step,
  make_directory,
  require_secrets,
)
from tpu_launch.run import MOUNT, Run


class Local(Job):
  """The processes are children of the launcher; their ids are kept in the workdir for --status and --stop."""

  def __init__(self, run: Run):
    super().__init__(run)
    if run.piece.is_tpu:
      raise UserError(f"slice: found {run.slice!r}, allowed by local: gpu-COUNT, cpu-COUNT")
    if run.bucket is not None:
      raise UserError("bucket: local mounts none; name a workdir")
    if "://" in (run.workdir or ""):  # ids and logs of the processes are kept in it
      raise UserError(f"workdir: found {run.workdir!r}, allowed by local: a directory")
    self._workdir = run.workdir_below(MOUNT)
    self._processes, self._log = [], Tail(self._place("worker-0.log"))
    self._foreign = False  # another launcher's processes are not ours to end

  def plan(self) -> list:
    return [self._command(number, "PORT") for number in range(self.run.host_count())]

  def submit(self) -> None:
    require_secrets(self.run, os.environ)
    alive = self.alive()
    if alive:
      self._foreign = True
      raise UserError(f"{self.run.name}: runs already, as processes {', '.join(map(str, alive))}; --stop ends them")
    make_directory(self._place(), "workdir")
    port = str(_free_port())
    self._processes = []
    self._log.skip()
    for number in range(self.run.host_count()):
      with open(self._place(f"worker-{number}.log"), "ab") as log:
        process = shell.start(
          self._command(number, port).argv,
          env={**os.environ, **self._environment(number)},
          stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
      self._processes.append(process)
      write_json(self._place("processes.json"), [p.pid for p in self._processes])

  def poll(self) -> Poll:
    if not self._processes:
      return Poll(State.RUNNING, "of another launcher") if self.alive() else Poll(State.LOST, "not running")
    codes = [process.poll() for process in self._processes]
    ended = [(number, code) for number, code in enumerate(codes) if code]
    if ended:
      mistake = [number for number, code in ended if code == MISTAKE_CODE]
      number, code = (mistake[0], MISTAKE_CODE) if mistake else _cause(ended)
      detail = f"worker {number} ended with {code}: {Tail(self._place(f'worker-{number}.log')).last_line()}"
      return Poll(State.MISTAKE if mistake else State.LOST, detail)
    return Poll(State.RUNNING if None in codes else State.DONE)

  def delete(self) -> None:
    crippled = any(process.poll() for process in self._processes)  # the others wait for it, and can't save
    alive = [] if self._foreign else self.alive()
    for pid in alive:
      _signal(pid, signal.SIGKILL if crippled else signal.SIGTERM)
    until = time.monotonic() + self.run.grace_seconds
    while alive and self.alive() and time.monotonic() < until:
      time.sleep(0.05)
    for pid in self.alive() if alive else ():
      _signal(pid, signal.SIGKILL)
    for process in self._processes:
      process.wait()

  def log(self) -> str:
    return self._log.read()

  def step(self) -> int | None:
    return last_step(os.path.join(self._workdir, "metrics.jsonl"))

  def alive(self) -> list[int]:
    """The ids of the run's processes that live, whoever started them."""
    if self._processes:
      return [process.pid for process in self._processes if process.poll() is None]
    try:
      with open(self._place("processes.json"), encoding="utf-8") as file:
        return [pid for pid in json.load(file) if _is_ours(pid, self._workdir)]
    except (OSError, ValueError, TypeError):
      return []

  def _command(self, number: int, port: str) -> Command:
    count = self.run.host_count()
    joined = f"127.0.0.1:{port},{count},{number}" if count > 1 else None
    shown = " ".join(f"{key}={shlex.quote(value)}" for key, value in self._environment(number).items())
    return Command(self.run.train(self._workdir, joined), f"process {number}, with {shown}")

  def _environment(self, number: int) -> dict:
    each = self.run.piece.chips // self.run.host_count()
    if self.run.piece.kind == "cpu":
      devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(each)}
    else:
      devices = {"CUDA_VISIBLE_DEVICES": ",".join(str(number * each + i) for i in range(each))}
    return {**devices, **{key: str(value) for key, value in self.run.env.items()}}

  def _place(self, *names: str) -> str:
    return os.path.join(self._workdir, "launch", *names)


def _cause(ended: list[tuple]) -> tuple:
  """Of (worker, exit code), who took the others along: these end with a line of their own, or by JAX's abort."""
  killed = [one for one in ended if one[1] < 0 and one[1] != -signal.SIGABRT]
  return (killed or ended)[0]


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def _is_ours(pid: int, workdir: str) -> bool:
  """Whether a process lives and is of this run: ids are used again."""
  try:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
      return workdir.encode() in file.read().split(b"\0")
  except OSError:
    return False


def _signal(pid: int, number: int) -> None:
  try:
    os.killpg(pid, number)
  except (ProcessLookupError, PermissionError):
    pass
