"""GKE: a JobSet, one replicated job for each slice, which Kubernetes itself restarts."""

import json
import shlex

from nrt_jax.errors import UserError
from tpu_launch import shell, slices
from tpu_launch.engines.job import MISTAKE_CODE, Command, EngineError, Job, Poll, State
from tpu_launch.run import MOUNT, Run, need, to_yaml

ANSWER, DELETE = 120, 600  # seconds that kubectl may take
JOBSETS, WORKERS, CONTAINER = "jobsets.jobset.x-k8s.io", "slice", "train"


class Gke(Job):
  """A JobSet of the run's name, on a cluster that kubectl knows as the current one."""

  def __init__(self, run: Run):
    super().__init__(run)
    if not run.piece.is_tpu:
      raise UserError(f"slice: found {run.slice!r}, allowed by gke: a TPU slice, as in v6e-16")
    need(run, "gke", "image")
    self._hosts = run.host_count(gke=True) // run.slices
    self._stream = None

  def plan(self) -> list:
    return [
      Command(self._kubectl("create", "--filename=-"), "makes the JobSet", self.manifest()),
      Command(self._get(), "every look"),
      Command(self._logs("--tail=-1"), "meanwhile"),
      Command(self._delete(), "at the end, and before it is made anew after a stall"),
      Command(self._gcluster(), "instead of all this, with Cluster Toolkit, which makes a JobSet of its own"),
    ]

  def manifest(self) -> str:
    """The JobSet, as YAML."""
    return to_yaml(self.jobset())

  def jobset(self) -> dict:
    """The JobSet (jobset.x-k8s.io/v1alpha2) as plain values."""
    run = self.run
    metadata = {"name": run.name, "namespace": run.namespace}
    if run.queue:
      metadata["labels"] = {"kueue.x-k8s.io/queue-name": run.queue}
    if self._hosts > 1:  # a slice's hosts are a node pool, which no two jobs may share
      metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    mistake = {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
      "apiVersion": "jobset.x-k8s.io/v1alpha2",
      "kind": "JobSet",
      "metadata": metadata,
      "spec": {
        "failurePolicy": {"maxRestarts": run.retries, "rules": [mistake]},
        "replicatedJobs": [{"name": WORKERS, "replicas": run.slices, "template": {"spec": self._job()}}],
      },
    }

  def _job(self) -> dict:
    """One slice. The exit code for a user's mistake fails the JobSet at once; others restart all of it."""
    codes = {"containerName": CONTAINER, "operator": "In", "values": [MISTAKE_CODE]}
    return {
      "parallelism": self._hosts,
      "completions": self._hosts,
      "completionMode": "Indexed",
      "backoffLimit": 0,
      "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": codes}]},
      "template": {"metadata": self._pod_metadata(), "spec": self._pod()},
    }

  def _pod_metadata(self) -> dict:
    return {"annotations": {"gke-gcsfuse/volumes": "true"}} if self.run.bucket else {}

  def _pod(self) -> dict:
    run, piece = self.run, self.run.piece
    selector = {
      "cloud.google.com/gke-tpu-accelerator": slices.GKE_ACCELERATORS[piece.kind],
      "cloud.google.com/gke-tpu-topology": piece.topology,
    }
    grace = max(1, round(run.grace_seconds))
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": grace, "nodeSelector": selector}
    if run.capacity == "spot":
      selector["cloud.google.com/gke-spot"] = "true"
      pod["tolerations"] = [
        {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
      ]
    if run.service_account:
      pod["serviceAccountName"] = run.service_account
    pod["containers"] = [self._container()]
    if run.bucket:
      options = "implicit-dirs,rename-dir-limit=200000"  # as in setup_tpu_vm.sh
      attributes = {"bucketName": run.bucket.removeprefix("gs://"), "mountOptions": options}
      driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
      pod["volumes"] = [{"name": MOUNT, "csi": driver}]
    return pod

  def _container(self) -> dict:
    run, chips = self.run, self.run.piece.chips // self._hosts
    variables = [{"name": key, "value": str(value)} for key, value in run.env.items()]
    variables += [
      {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}} for key, secret in run.secrets.items()
    ]
    container = {
      "name": CONTAINER,
      "image": run.image,
      "command": self._train(),
      "env": variables,
      "resources": {"requests": {"google.com/tpu": chips}, "limits": {"google.com/tpu": chips}},
      # cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice: libtpu's port and that between slices
      "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
    }
    if run.bucket:
      container["volumeMounts"] = [{"name": MOUNT, "mountPath": f"/{MOUNT}"}]
    return container

  def _train(self) -> list[str]:
    return self.run.train(self.run.workdir_below(f"/{MOUNT}"), "" if self._hosts * self.run.slices > 1 else None)

  # ---- The Job

  def submit(self) -> None:
    found = self._look()
    if found is not None and _finished(found):
      self.delete()
      found = None
    if found is None:
      done = shell.run(self._kubectl("create", "--filename=-"), ANSWER, self.manifest())
      if done.code:
        transient = done.code == shell.TIMED_OUT or "connect" in done.err or "timeout" in done.err.lower()
        raise (EngineError if transient else UserError)(f"kubectl: {done.reason}")

  def poll(self) -> Poll:
    found = self._look()
    if found is None:
      return Poll(State.LOST, "there is no such JobSet")
    ended = _finished(found)
    if ended is not None:
      kind, reason, message = ended
      if kind == "Completed":
        return Poll(State.DONE)
      return Poll(State.MISTAKE if "FailJobSet" in reason else State.LOST, f"{reason}: {message}")
    status = found.get("status", {})
    attempt = status.get("restarts", 0)
    restarts = f"{attempt} restarts by JobSet" if attempt else ""
    ready = sum(job.get("ready", 0) for job in status.get("replicatedJobsStatus", []))
    if ready == self.run.slices:
      return Poll(State.RUNNING, restarts, attempt)
    detail = f"{ready} of {self.run.slices} slices ready{'; ' * bool(restarts)}{restarts}"
    return Poll(State.QUEUED, detail, attempt)

  def delete(self) -> None:
    self.close()
    done = shell.run(self._delete(), DELETE)
    if done.code:
      raise EngineError(f"{self.run.name} still exists and may cost money: {done.reason}")

  def log(self) -> str:
    if self._stream is None:
      self._stream = shell.Stream(self._logs("--tail=-1"), self._logs("--tail=0"))
    return self._stream.read()

  def close(self) -> None:
    if self._stream is not None:
      self._stream.close()
      self._stream = None

  def _look(self) -> dict | None:
    done = shell.run(self._get(), ANSWER)
    if done.code:
      raise EngineError(f"kubectl: {done.reason}")
    return json.loads(done.out) if done.out.strip() else None

  def _kubectl(self, *words: str) -> list[str]:
    return ["kubectl", f"--namespace={self.run.namespace}", *words]

  def _get(self) -> list[str]:
    return self._kubectl("get", JOBSETS, self.run.name, "--output=json", "--ignore-not-found")

  def _logs(self, tail: str) -> list[str]:
    labels = {
      "jobset.sigs.k8s.io/jobset-name": self.run.name,
      "jobset.sigs.k8s.io/job-index": 0,
      "batch.kubernetes.io/job-completion-index": 0,
    }
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    return self._kubectl("logs", "--follow", f"--selector={selector}", f"--container={CONTAINER}", tail)

  def _delete(self) -> list[str]:
    return self._kubectl("delete", JOBSETS, self.run.name, "--ignore-not-found", "--cascade=foreground")

  def _gcluster(self) -> list[str]:
    """docs.cloud.google.com/cluster-toolkit/docs/reference/gcluster-job-submit"""
    run = self.run
    words = ["gcluster", "job", "submit", f"--name={run.name}", f"--image={run.image}"]
    words += [f"--command={shlex.join(self._train())}"]
    words += [f"--compute-type={slices.accelerator_type(run.piece)}", f"--topology={run.piece.topology}"]
    words += [f"--num-slices={run.slices}", *([f"--queue={run.queue}"] if run.queue else [])]
    words += [f"--env={key}={value}" for key, value in run.env.items()]
    return words + ([f"--mount={run.bucket};/{MOUNT}"] if run.bucket else [])


def _finished(jobset: dict) -> tuple[str, str, str] | None:
  """(Completed or Failed, reason, message) of a JobSet that has ended."""
  for condition in jobset.get("status", {}).get("conditions", []):
    if condition["type"] in ("Completed", "Failed") and condition["status"] == "True":
      return condition["type"], condition.get("reason", ""), condition.get("message", "")
  return None
