"""SkyPilot: a managed job, which SkyPilot itself recovers after a preemption."""

import json
import os
import shlex
import tempfile

from nrt_jax.errors import UserError
from tpu_launch import shell, slices
from tpu_launch.engines.job import Command, EngineError, File, Job, Poll, State, require_secrets
from tpu_launch.engines.tpu_vm import checkout
from tpu_launch.run import MOUNT, Run, need, need_commit, to_yaml

ANSWER, LAUNCH = 300, 1800  # seconds that sky may take
STOPPED = 143  # exit code of a run that saved after a signal
PORT = 8476  # of JAX's coordinator, as in jax.distributed for GPUs

# docs.skypilot.co, `sky jobs queue --help`
QUEUED = ("PENDING", "SUBMITTED", "STARTING", "RECOVERING")
RUNNING = ("RUNNING", "WINDING_DOWN", "CANCELLING")
LOST = ("FAILED_NO_RESOURCE", "FAILED_CONTROLLER")


class SkyPilot(Job):
  """A managed job of the run's name."""

  def __init__(self, run: Run):
    super().__init__(run)
    if run.slices > 1:
      raise UserError(f"slices: found {run.slices}, allowed by skypilot: 1")
    if run.piece.kind == "cpu":
      raise UserError(f"slice: found {run.slice!r}, allowed by skypilot: a TPU slice, gpu-COUNT")
    if run.piece.kind == "gpu":
      need(run, "skypilot", "gpu")
    need_commit(run, "skypilot")
    if run.piece.is_tpu and run.zone and not run.any_zone:
      slices.check_zone(run.piece, run.zone)
    self._hosts, self._stream = run.host_count(), None

  def plan(self) -> list:
    return [
      File(self._file(), self.text()),
      Command(self._launch(), "submits the job"),
      Command(self._queue(), "every look"),
      Command(self._logs(), "meanwhile"),
      Command(self._cancel(), "to stop it"),
    ]

  def text(self) -> str:
    """The task file."""
    return to_yaml(self.task())

  def task(self) -> dict:
    """The task as plain values (docs.skypilot.co/en/latest/reference/yaml-spec.html)."""
    run = self.run
    bucket = {"file_mounts": {f"/{MOUNT}": {"source": run.bucket, "mode": "MOUNT"}}} if run.bucket else {}
    secrets = {"secrets": dict.fromkeys(run.secrets)} if run.secrets else {}  # their values come from --secret
    extra = "tpu" if run.piece.is_tpu else "cuda"
    return {
      "name": run.name,
      "num_nodes": 1 if run.piece.is_tpu else self._hosts,  # the hosts of a slice are found by themselves
      "resources": self._resources(),
      "envs": {key: str(value) for key, value in run.env.items()},
      **secrets,
      **bucket,
      "setup": f"{checkout(run)} && bash tpu_launch/setup_tpu_vm.sh --extra {extra}",
      "run": f"cd nrt_jax && {self._train()}",
    }

  def _resources(self) -> dict:
    run = self.run
    found = {
      # A run that stopped for a signal is recovered always, one that failed a few times.
      "job_recovery": {"max_restarts_on_errors": run.retries, "recover_on_exit_codes": [STOPPED]},
      "use_spot": run.capacity == "spot",
    }
    if run.zone:
      found["infra"] = f"gcp/{run.zone.rpartition('-')[0]}/{run.zone}"
    if not run.piece.is_tpu:
      return {"accelerators": f"{run.gpu}:{run.piece.chips // self._hosts}", **found}
    version = run.runtime_version or slices.RUNTIME_VERSIONS.get(run.piece.kind)
    if version is None:
      raise UserError(f"runtime_version: found none, and none is known for {run.piece.kind}")
    accelerator = f"tpu-{slices.accelerator_type(run.piece)}:1"
    return {"accelerators": accelerator, "accelerator_args": {"runtime_version": version}, **found}

  def _train(self) -> str:
    """The command of one host, in shell words. TPU slices tell JAX who is who; for GPUs SkyPilot does."""
    workdir = self.run.workdir_below(f"/{MOUNT}")
    several = self._hosts > 1
    train = shlex.join(self.run.train(workdir, "" if several and self.run.piece.is_tpu else None, ".venv/bin/python"))
    if several and not self.run.piece.is_tpu:
      first = '$(echo "$SKYPILOT_NODE_IPS" | head -n 1)'
      train += f' --distributed "{first}:{PORT},$SKYPILOT_NUM_NODES,$SKYPILOT_NODE_RANK"'
    return train

  # ---- The Job

  def submit(self) -> None:
    require_secrets(self.run, os.environ)
    if self._status() in (*QUEUED, *RUNNING):
      return
    with tempfile.TemporaryDirectory() as directory:
      path = os.path.join(directory, self._file())
      with open(path, "w", encoding="utf-8") as file:
        file.write(self.text())
      done = shell.run([path if word == self._file() else word for word in self._launch()], LAUNCH)
    if done.code:
      raise UserError(f"sky: {done.reason}")

  def poll(self) -> Poll:
    status = self._status()
    if status in QUEUED:
      return Poll(State.QUEUED, status)
    if status in RUNNING:
      return Poll(State.RUNNING)
    if status == "SUCCEEDED":
      return Poll(State.DONE)
    if status is None or status in LOST:
      return Poll(State.LOST, status or "there is no such managed job")
    # SkyPilot has tried again as often as it was told to, or somebody cancelled it.
    return Poll(State.MISTAKE, f"{status}; sky jobs logs --name {self.run.name}")

  def delete(self) -> None:
    self.close()
    if self._status() not in (*QUEUED, *RUNNING):
      return
    done = shell.run(self._cancel(), ANSWER)
    if done.code:
      raise EngineError(f"{self.run.name} may still run and cost money: {done.reason}; {shlex.join(self._cancel())}")

  def log(self) -> str:
    if self._stream is None:
      self._stream = shell.Stream(self._logs(), self._logs("--tail", "1"))
    return self._stream.read()

  def close(self) -> None:
    if self._stream is not None:
      self._stream.close()
      self._stream = None

  def _status(self) -> str | None:
    """The status of the newest managed job of this name."""
    done = shell.run(self._queue(), ANSWER)
    try:
      records = json.loads(done.out) if done.code == 0 else None
    except ValueError:
      records = None
    if records is None:
      raise EngineError(f"sky: {done.reason}")
    ours = [record for record in records if record.get("job_name") == self.run.name]
    return max(ours, key=lambda record: record["job_id"])["status"] if ours else None

  def _file(self) -> str:
    return f"{self.run.name}.yaml"

  def _launch(self) -> list[str]:
    secrets = [word for name in self.run.secrets for word in ("--secret", name)]
    return ["sky", "jobs", "launch", "--yes", "--detach-run", "--name", self.run.name, *secrets, self._file()]

  def _queue(self) -> list[str]:
    return ["sky", "jobs", "queue", "--output", "json"]

  def _logs(self, *words: str) -> list[str]:
    return ["sky", "jobs", "logs", "--name", self.run.name, *words]

  def _cancel(self) -> list[str]:
    return ["sky", "jobs", "cancel", "--yes", "--name", self.run.name]
