"""SLURM: one task on each node, joined by JAX's own SLURM support; the job requeues itself after a signal."""

import os
import re
import shlex

from nrt_jax.errors import UserError
from tpu_launch import shell
from tpu_launch.engines import job as jobs
from tpu_launch.engines.job import MISTAKE_CODE, Command, EngineError, Job, Poll, State
from tpu_launch.run import MOUNT, Run

ANSWER = 120  # seconds that a SLURM command may take
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING")

SCRIPT = """\
#!/bin/bash
{options}
{exports}rm -f {place}/exit_code
srun --kill-on-bad-exit=0 --wait={grace} --open-mode=append --output={place}/worker-%t.log \\
  {command}
code=$?
# 0 is done and 2 the user's mistake. Anything else is resumed: 143 is a run that saved after a signal.
if [ "$code" -ne 0 ] && [ "$code" -ne 2 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {retries} ]; then
  scontrol requeue "$SLURM_JOB_ID" && exit "$code"
fi
echo "$code" > {place}/exit_code.part && mv {place}/exit_code.part {place}/exit_code
exit "$code"
"""


class Slurm(Job):
  """A batch job of the run's name. The workdir must be on a file system that nodes and launcher share."""

  def __init__(self, run: Run):
    super().__init__(run)
    if run.piece.is_tpu:
      raise UserError(f"slice: found {run.slice!r}, allowed by slurm: gpu-COUNT, cpu-COUNT")
    if run.bucket is not None:
      raise UserError("bucket: slurm mounts none; name a workdir that all nodes share")
    if "://" in (run.workdir or ""):  # the job's log is kept in it
      raise UserError(f"workdir: found {run.workdir!r}, allowed by slurm: a directory that all nodes share")
    self._workdir = os.path.abspath(run.workdir_below(MOUNT))
    self._place = os.path.join(self._workdir, "launch")
    self._log = jobs.Tail(os.path.join(self._place, "worker-0.log"))

  def plan(self) -> list:
    return [
      Command(["mkdir", "-p", self._place], "first"),
      Command(["sbatch", "--parsable"], "submits the job", self.script()),
      Command(self._squeue(), "every look"),
      Command(self._scancel(), "to stop it"),
    ]

  def script(self) -> str:
    """The batch script."""
    run, nodes = self.run, self.run.host_count()
    each, on_gpus = run.piece.chips // nodes, run.piece.kind == "gpu"
    options = {
      "job-name": run.name, "nodes": nodes, "ntasks-per-node": 1, "gpus-per-node": each if on_gpus else None,
      "output": f"{self._place}/slurm.log", "open-mode": "append", "signal": f"TERM@{max(1, round(run.grace_seconds))}",
      "partition": run.partition, "account": run.account, "time": run.time_limit,
    }  # fmt: skip
    words = ["--requeue", *(f"--{key}={value}" for key, value in options.items() if value is not None)]
    devices = {} if on_gpus else {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": each}
    return SCRIPT.format(
      options="\n".join(f"#SBATCH {word}" for word in words),
      exports="".join(f"export {key}={shlex.quote(str(value))}\n" for key, value in {**devices, **run.env}.items()),
      place=shlex.quote(self._place),
      grace=max(1, round(run.grace_seconds)),
      command=shlex.join(run.train(self._workdir, "" if nodes > 1 else None)),
      retries=run.retries,
    )

  def submit(self) -> None:
    jobs.require_secrets(self.run, os.environ)
    if self._entries():
      return
    jobs.make_directory(self._place, "workdir")
    self._forget_code()
    self._log.skip()
    done = shell.run(["sbatch", "--parsable"], ANSWER, self.script())
    if done.code:
      raise UserError(f"sbatch: {done.reason}")

  def poll(self) -> Poll:
    entries = self._entries()
    if entries:
      state, reason = entries[0]
      return Poll(State.RUNNING) if state in RUNNING else Poll(State.QUEUED, f"{state} {reason}".strip())
    code = self._code()
    if code is None:
      return Poll(State.LOST, "left the queue without an exit code")
    if code in (0, MISTAKE_CODE):
      return Poll(State.DONE) if code == 0 else Poll(State.MISTAKE, self._log.last_line())
    return Poll(State.LOST, f"ended with {code}: {self._log.last_line()}")

  def delete(self) -> None:
    if not self._entries():
      return
    done = shell.run(self._scancel(), ANSWER)
    if done.code:
      raise EngineError(f"scancel: {done.reason}")
    if self._entries():  # until its steps have saved and ended
      raise EngineError(f"{self.run.name} is still in the queue")

  def log(self) -> str:
    return self._log.read()

  def step(self) -> int | None:
    return jobs.last_step(os.path.join(self._workdir, "metrics.jsonl"))

  def _squeue(self) -> list[str]:
    return ["squeue", "--me", "--noheader", f"--name={self.run.name}", "--format=%T %r"]

  def _scancel(self) -> list[str]:
    return ["scancel", "--me", f"--name={self.run.name}"]

  def _entries(self) -> list[tuple[str, str]]:
    """(state, reason) of the run's jobs in the queue."""
    done = shell.run(self._squeue(), ANSWER)
    if done.code:
      raise EngineError(f"squeue: {done.reason}")
    return [re.fullmatch(r"(\S+) ?(.*)", line.strip()).groups() for line in done.out.splitlines() if line.strip()]

  def _code(self) -> int | None:
    try:
      with open(os.path.join(self._place, "exit_code"), encoding="utf-8") as file:
        return int(file.read())
    except (OSError, ValueError):
      return None

  def _forget_code(self) -> None:
    if self._code() is not None:
      os.remove(os.path.join(self._place, "exit_code"))
