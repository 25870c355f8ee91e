"""Cloud TPU VMs through queued resources, by gcloud: the one engine whose machines are set up and watched by us."""

import re
import shlex

from nrt_jax.errors import UserError
from tpu_launch import shell, slices
from tpu_launch.engines.job import MISTAKE_CODE, Command, EngineError, Job, Poll, State
from tpu_launch.run import MOUNT, Run, need, need_commit

# States of a queued resource, cloud.google.com/tpu/docs/queued-resources and the REST reference of QueuedResource.
WAITING = ("ACCEPTED", "CREATING", "PROVISIONING", "WAITING_FOR_RESOURCES")
ENDED = ("FAILED", "SUSPENDING", "SUSPENDED")
ABSENT = "ABSENT"  # our word for: there is none of this name

# What no second attempt mends; the last is gcloud's "You do not currently have an active account selected."
HOPELESS = re.compile(
  r"quota|PERMISSION_DENIED|INVALID_ARGUMENT|UNAUTHENTICATED|not currently have an active account", re.I
)
ABSENT_TEXT = re.compile(r"NOT_FOUND|was not found|could not fetch resource", re.I)
WORKER = re.compile(r"^worker (\S+) (running|absent|exited (\d+))\s*$", re.MULTILINE)
SILENT_POLLS = 3  # in a row in which a worker does not answer, until it counts as dead

DESCRIBE, CREATE, DELETE, SSH, SETUP = 120, 600, 1800, 600, 1800  # seconds that gcloud may take


class TpuVm(Job):
  """A queued resource of the run's name, and the program on its workers."""

  def __init__(self, run: Run):
    super().__init__(run)
    if not run.piece.is_tpu:
      raise UserError(f"slice: found {run.slice!r}, allowed by tpu_vm: a TPU slice, as in v6e-16")
    need_commit(run, "tpu_vm")
    need(run, "tpu_vm", "zone")
    if not run.any_zone:
      slices.check_zone(run.piece, run.zone)
    self._hosts = run.host_count()
    self._started, self._silent, self._stream = False, 0, None
    self._runtime()

  def plan(self) -> list:
    return [
      Command(self._create(), "asks for the slices"),
      Command(self._describe(), "every look, until ACTIVE; it is deleted and made anew once SUSPENDED or FAILED"),
      Command(self._ssh(self._setup()), "once ACTIVE, on all workers"),
      Command(self._ssh(self._start()), "then"),
      Command(self._ssh(self._worker("status")), "every look from then on"),
      Command(self._ssh(self._tail("+1"), "0"), "meanwhile"),
      Command(self._ssh(self._worker("stop", f"{self.run.grace_seconds:.0f}")), "after a stall or a dead worker"),
      Command(self._delete(), "at the end, however it ends"),
    ]

  def submit(self) -> None:
    try:
      state = self._state()
    except EngineError as error:
      if HOPELESS.search(str(error)):
        raise UserError(str(error)) from error
      raise
    if state in ENDED:
      self.delete()
    if state in ENDED or state == ABSENT:
      done = shell.run(self._create(), CREATE)
      if done.code and HOPELESS.search(done.err):
        raise UserError(f"gcloud: {done.reason}")
      if done.code and "ALREADY_EXISTS" not in done.err:
        raise EngineError(f"gcloud could not create {self.run.name}: {done.reason}")

  def poll(self) -> Poll:
    state = self._state()
    if state == "ACTIVE":
      return self._poll_workers()
    if state in ENDED:
      return Poll(State.LOST, f"the queued resource is {state}: preempted, or not provided")
    return Poll(State.LOST, "there is no such queued resource") if state == ABSENT else Poll(State.QUEUED, state)

  def start(self) -> None:
    for command, seconds in ((self._setup(), SETUP), (self._start(), SSH)):
      done = shell.run(self._ssh(command), seconds)
      if done.code:
        raise EngineError(done.reason)
    self._started, self._silent = True, 0

  def restart(self) -> None:
    """Keeps machines that are all there; asks for new ones otherwise."""
    self._close_stream()
    self._started, self._silent = False, 0
    if self._state() == "ACTIVE":
      done = shell.run(self._ssh(self._worker("stop", f"{self.run.grace_seconds:.0f}")), SSH + self.run.grace_seconds)
      if len(WORKER.findall(done.out)) == self._hosts:
        return
    self.delete()
    self.submit()

  def delete(self) -> None:
    self._close_stream()
    if self._state() == ABSENT:
      return
    done = shell.run(self._delete(), DELETE)
    if done.code and not ABSENT_TEXT.search(done.err):
      raise EngineError(f"{self.run.name} still exists and may cost money: {done.reason}; {shlex.join(self._delete())}")

  def log(self) -> str:
    if not self._started:
      return ""
    if self._stream is None:
      self._stream = shell.Stream(self._ssh(self._tail("+1"), "0"), self._ssh(self._tail("0"), "0"))
    return self._stream.read()

  def close(self) -> None:
    self._close_stream()

  # ---- What the answers mean

  def _state(self) -> str:
    done = shell.run(self._describe(), DESCRIBE)
    if done.code and ABSENT_TEXT.search(done.err):
      return ABSENT
    if done.code or not done.out.strip():
      raise EngineError(f"gcloud does not say how {self.run.name} is: {done.reason}")
    return done.out.strip()

  def _poll_workers(self) -> Poll:
    done = shell.run(self._ssh(self._worker("status")), SSH)
    found = WORKER.findall(done.out)
    codes = {host: int(code) for host, _, code in found if code}
    bad = {host: code for host, code in codes.items() if code}
    if bad:
      mistake = MISTAKE_CODE in bad.values()
      host = next(host for host, code in bad.items() if not mistake or code == MISTAKE_CODE)
      detail = f"worker {host} exited with {bad[host]}: {self._last_line(host)}"
      return Poll(State.MISTAKE if mistake else State.LOST, detail)
    if len(found) < self._hosts and (self._started or found):
      return self._silence(self._hosts - len(found), done)
    self._silent = 0
    if len(codes) == self._hosts:
      return Poll(State.DONE)
    if any(word == "running" for _, word, _ in found):
      self._started = True  # by an earlier launcher, perhaps
      gone = [host for host, word, _ in found if word == "absent"]
      return Poll(State.LOST, f"worker {gone[0]} runs nothing") if gone else Poll(State.RUNNING)
    return Poll(State.LOST, "the workers were restarted") if self._started else Poll(State.READY)

  def _silence(self, missing: int, done: shell.Done) -> Poll:
    self._silent += 1
    detail = f"{missing} of {self._hosts} workers do not answer"
    if self._silent >= SILENT_POLLS:
      return Poll(State.LOST, f"{detail}: {done.reason}")
    return Poll(State.RUNNING, detail)

  def _last_line(self, host: str) -> str:
    """The last line of a worker's log. Which number a host has is not known, so all are asked."""
    done = shell.run(self._ssh('echo "last $(hostname) $(tail -n 1 run/log)"'), SSH)
    found = re.search(rf"^last {re.escape(host)} (.+)$", done.out, re.MULTILINE)
    return found[1].strip() if found else "no output"

  def _close_stream(self) -> None:
    if self._stream is not None:
      self._stream.close()
      self._stream = None

  # ---- Commands

  def _gcloud(self, verb: str, *flags: str) -> list[str]:
    project = [f"--project={self.run.project}"] if self.run.project else []
    zone = [f"--zone={self.run.zone}", *project, "--quiet"]
    return ["gcloud", "compute", "tpus", "queued-resources", verb, self.run.name, *zone, *flags]

  def _runtime(self) -> str:
    version = self.run.runtime_version or slices.RUNTIME_VERSIONS.get(self.run.piece.kind)
    if version is None:
      raise UserError(f"runtime_version: found none, and none is known for {self.run.piece.kind}")
    return version

  def _create(self) -> list[str]:
    nodes = [f"--node-id={self.run.name}"]
    if self.run.slices > 1:
      nodes = [f"--node-count={self.run.slices}", f"--node-prefix={self.run.name}"]
    tier = {"on-demand": [], "spot": ["--spot"], "reserved": ["--reserved"]}[self.run.capacity]
    account = [f"--service-account={self.run.service_account}"] if self.run.service_account else []
    kind = [f"--accelerator-type={slices.accelerator_type(self.run.piece)}", f"--runtime-version={self._runtime()}"]
    return self._gcloud("create", *kind, *nodes, *tier, *account)

  def _describe(self) -> list[str]:
    return self._gcloud("describe", "--format=value(state.state)")

  def _delete(self) -> list[str]:
    return self._gcloud("delete", "--force")

  def _ssh(self, command: str, worker: str = "all") -> list[str]:
    return self._gcloud("ssh", f"--node={worker}", f"--worker={worker}", f"--command={command}")

  def _setup(self) -> str:
    bucket = ["--bucket", self.run.bucket.removeprefix("gs://"), "--mount"] if self.run.bucket else []
    words = shlex.join(["bash", "tpu_launch/setup_tpu_vm.sh", *bucket]) + (f' "$HOME/{MOUNT}"' if bucket else "")
    return f"{checkout(self.run)} && {words}"

  def _start(self) -> str:
    words = [word for key, value in self.run.env.items() for word in ("--env", f"{key}={value}")]
    words += [word for key, value in self.run.secrets.items() for word in ("--secret", f"{key}={value}")]
    # The command runs in the home directory's checkout; a relative workdir would lie in it.
    workdir = self.run.workdir_below(f"../{MOUNT}")
    train = self.run.train(workdir, "" if self._hosts > 1 else None, ".venv/bin/python")
    return f"cd nrt_jax && {shlex.join(['bash', 'tpu_launch/worker.sh', 'start', *words, '--', *train])}"

  def _worker(self, *words: str) -> str:
    return shlex.join(["bash", "nrt_jax/tpu_launch/worker.sh", *words])

  def _tail(self, lines: str) -> str:
    return f"tail -n {lines} -F run/log"


def checkout(run: Run) -> str:
  """Shell words that clone the repository into nrt_jax, if need be, and go to the commit."""
  url, commit = shlex.quote(run.repository), run.commit
  clone = f"{{ [ -d nrt_jax/.git ] || git clone -q {url} nrt_jax; }}"
  return f"{clone} && cd nrt_jax && git fetch -q origin {commit} && git checkout -q {commit}"
