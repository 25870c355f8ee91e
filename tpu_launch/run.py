"""What is to be run, and on what: one description, a YAML file, that every engine renders in its own way."""

import dataclasses
import json
import re
import subprocess
import typing
from dataclasses import dataclass, field
from pathlib import Path

from nrt_jax.errors import UserError, require_choice
from tpu_launch.slices import Slice, host_count, parse

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # a DNS label with room for the suffixes that engines append
COMMIT = re.compile(r"[0-9a-f]{40}")
SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)$", re.IGNORECASE)
MOUNT = "bucket"  # where the bucket appears: below the home directory of a VM, at the root of a container
CAPACITIES = ("on-demand", "spot", "reserved")


@dataclass(frozen=True)
class Run:
  """A run. docs/launch.md explains the keys; each engine uses those that it knows."""

  name: str
  config: str
  slice: str
  overrides: dict = field(default_factory=dict)  # config key -> value
  slices: int = 1
  hosts: int | None = None  # of one slice; TPU slices have theirs by definition
  workdir: str | None = None  # as the hosts see it
  bucket: str | None = None  # gs://NAME, mounted on every host
  env: dict = field(default_factory=dict)
  secrets: dict = field(default_factory=dict)  # environment variable -> name in the engine's secret store
  python: str = "python"
  repository: str | None = None
  commit: str | None = None
  # Cloud
  zone: str | None = None
  any_zone: bool = False
  project: str | None = None
  capacity: str = "on-demand"
  runtime_version: str | None = None
  service_account: str | None = None
  image: str | None = None  # GKE
  queue: str | None = None  # Kueue's LocalQueue
  namespace: str = "default"
  gpu: str | None = None  # SkyPilot's name of the GPU, as in H100
  # SLURM
  partition: str | None = None
  account: str | None = None
  time_limit: str | None = None
  # Babysitting
  retries: int = 5  # restarts in a row that bring no new step
  poll_seconds: float = 30.0
  stall_factor: float = 20.0  # a step that takes this many median steps is stalled,
  stall_seconds: float = 900.0  # but not before this long, which must cover an evaluation and a checkpoint
  start_seconds: float = 3600.0  # until the first step: set-up, loading and compiling
  grace_seconds: float = 60.0  # to save, between SIGTERM and SIGKILL

  def __post_init__(self):
    for check in (_check_types, _check_text, _check_numbers, _check_environment):
      check(self)

  @property
  def piece(self) -> Slice:
    return parse(self.slice)

  @property
  def chips(self) -> int:
    return self.piece.chips * self.slices

  def host_count(self, gke: bool = False) -> int:
    """Hosts of all slices together. UserError where `hosts` does not fit the slice."""
    return self.slices * host_count(self.piece, self.hosts, gke)

  def workdir_below(self, mount: str) -> str:
    """The run's directory on a host where the bucket appears at `mount`."""
    return self.workdir or (f"{mount}/{self.name}" if self.bucket else f"runs/{self.name}")

  def train(self, workdir: str, distributed: str | None, python: str | None = None) -> list[str]:
    """The command of one host. `distributed`: None for one process, "" where the engine tells who is who, or HOST:…"""
    overrides = dict(self.overrides)
    if self.slices > 1:  # so that a run which finds other slices than these ends with one line
      overrides["parallel.slices"] = self.slices
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in overrides.items()}
    flags = [f"--config.{key}={text}" for key, text in texts.items()]
    joined = [] if distributed is None else ["--distributed", *([distributed] if distributed else [])]
    command = [python or self.python, "-m", "nrt_jax", "train", "--config", self.config, "--workdir", workdir]
    return [*command, *flags, *joined]


FIELDS = {f.name: f for f in dataclasses.fields(Run)}


def read(path: str, changes: list[str] = ()) -> Run:
  """The run that a YAML file describes, with KEY=VALUE changes laid over it. UserError for every mistake."""
  values = read_mapping(path)
  for change in changes:
    key, equals, text = change.partition("=")
    if not equals:
      raise UserError(f"--set {change}: allowed: KEY=VALUE")
    values[key] = _yaml().safe_load(text)
  return from_values(path, values)


def from_values(where: str, values: dict) -> Run:
  """A run from plain values; `where` names their origin in errors."""
  for key in values:
    require_choice(f"{where}: key", key, FIELDS)
  for key in ("name", "config", "slice"):
    if values.get(key) is None:
      raise UserError(f"{where}: {key}: found none, allowed: a text")
  try:
    return Run(**values)
  except UserError as error:
    raise UserError(f"{where}: {error}") from error


def read_mapping(path: str) -> dict:
  """A YAML file that holds a mapping. UserError names the line of a mistake."""
  yaml = _yaml()
  try:
    with open(path, encoding="utf-8") as file:
      values = yaml.safe_load(file)
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
  except yaml.YAMLError as error:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    raise UserError(f"{path}{line}: no YAML: {getattr(error, 'problem', None) or error}") from error
  if not isinstance(values, dict):
    raise UserError(f"{path}: found {type(values).__name__}, allowed: a mapping of keys to values")
  return values


def to_yaml(values: dict) -> str:
  """Plain values as YAML, in their order."""
  return _yaml().safe_dump(values, sort_keys=False, width=120)


def need(run: Run, engine: str, *keys: str) -> None:
  """Raises UserError where the engine needs a key that the description leaves out."""
  for key in keys:
    if getattr(run, key) is None:
      raise UserError(f"{key}: found none, needed by {engine}")


def need_commit(run: Run, engine: str) -> None:
  """Raises UserError unless the run pins a commit of a repository that a fresh machine can clone."""
  need(run, engine, "repository", "commit")
  if not COMMIT.fullmatch(run.commit):
    raise UserError(f"commit: found {run.commit!r}, allowed: all 40 hexadecimal digits of a commit")
  # Found out now rather than after hours in a queue, where this checkout knows the commit.
  if _in_git(f"{run.commit}^{{commit}}") and not _in_git(f"{run.commit}:{run.config}"):
    raise UserError(f"config: {run.config}: no such file in commit {run.commit[:12]}")


def _in_git(name: str) -> bool:
  """Whether git knows an object here; not where there is no git, or no repository."""
  try:
    return subprocess.run(["git", "cat-file", "-e", name], cwd=ROOT, capture_output=True).returncode == 0
  except OSError:
    return False


def _yaml():
  try:
    import yaml
  except ImportError as error:
    raise UserError("PyYAML is not installed: pip install 'nrt_jax[launch]'") from error
  return yaml


# ---- Checks ----------------------------------------------------------------------------------------------------------


def _check_types(run: Run) -> None:
  for name, f in FIELDS.items():
    value, kinds = getattr(run, name), typing.get_args(f.type) or (f.type,)
    kinds += (int,) if float in kinds else ()
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
      names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}
      raise UserError(f"{name}: found {value!r}, allowed: {names[kinds[0]]}")


def _check_text(run: Run) -> None:
  if not NAME.fullmatch(run.name):
    raise UserError(f"name: found {run.name!r}, allowed: up to 40 of a-z, 0-9 and -, beginning with a letter")
  require_choice("capacity", run.capacity, CAPACITIES)
  run.piece  # noqa: B018  (an unknown slice is a UserError)
  if run.bucket is not None and not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+", run.bucket):
    raise UserError(f"bucket: found {run.bucket!r}, allowed: gs://NAME")
  if run.slices > 1 and not run.piece.is_tpu:
    raise UserError(f"slices: found {run.slices} of {run.slice}, allowed: 1 (several slices are of TPUs)")


def _check_numbers(run: Run) -> None:
  found = run.overrides.get("parallel.slices", run.slices)
  if found not in (0, run.slices):
    raise UserError(f"overrides: parallel.slices: found {found!r}, allowed: {run.slices}, the number of slices")
  for name, least in (("slices", 1), ("hosts", 1), ("retries", 0), ("stall_factor", 1)):
    if getattr(run, name) is not None and getattr(run, name) < least:
      raise UserError(f"{name}: found {getattr(run, name)!r}, allowed: {least} or more")
  for name in ("poll_seconds", "stall_seconds", "start_seconds", "grace_seconds"):
    if not 0 < getattr(run, name) < float("inf"):
      raise UserError(f"{name}: found {getattr(run, name)!r}, allowed: seconds, more than 0")


def _check_environment(run: Run) -> None:
  for key in (*run.env, *run.secrets):
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(key)):
      raise UserError(f"env: found {key!r}, allowed: the name of an environment variable")
  for key in run.env:
    if SECRET.search(key):
      raise UserError(f"env.{key}: a secret would be readable in commands and manifests; name it under secrets")
