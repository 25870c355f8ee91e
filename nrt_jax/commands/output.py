"""Output paths of commands: checked before any work starts, created when it is done."""

import os
import sys

from nrt_jax import buckets
from nrt_jax.errors import UserError

FOLDERS = ("checkpoints", "compiled", "evaluations", "export", "tensorboard", "tokenizer", "wandb")  # of a workdir
FILES = ("config.json", "metrics.jsonl", "mlflow.db", "samples.jsonl", "trackers.jsonl")


def check_directory(directory: str, flag: str) -> None:
  """Raises UserError if the directory can't be created or written to. Creates nothing."""
  if not directory:
    raise UserError(f"{flag}: found '', allowed: a directory")
  if "://" in directory:  # would become a directory of this name, here
    raise UserError(f"{flag}: found {directory!r}, allowed: a directory of a file system; mount the bucket there")
  existing = os.path.abspath(directory)
  while not os.path.lexists(existing):
    existing = os.path.dirname(existing)
  if not os.path.isdir(existing):
    raise UserError(f"{flag}: {existing}: is a file, allowed: a directory")
  if not os.access(existing, os.W_OK | os.X_OK):
    raise UserError(f"{flag}: {existing}: no permission to write there")


def check_workdir(directory: str) -> None:
  """Raises UserError if a run can't write its files into the directory. Creates nothing."""
  if buckets.is_url(directory):
    buckets.checked(directory, "--workdir")
    return
  check_directory(directory, "--workdir")
  for name in FOLDERS + FILES:
    path = os.path.join(directory, name)
    if os.path.lexists(path) and os.path.isdir(path) != (name in FOLDERS):
      found, wanted = ("a file", "a directory") if name in FOLDERS else ("a directory", "a file")
      raise UserError(f"--workdir: {path}: is {found}, allowed: {wanted} of this name")


def check_file(path: str | None, flag: str) -> None:
  """Raises UserError if the file (None: flag not given) can't be written. Creates nothing."""
  if path is None:
    return
  if not path or path.endswith(os.sep) or os.path.isdir(path):
    raise UserError(f"{flag}: found {path!r}, a directory, allowed: a file")
  check_directory(os.path.dirname(os.path.abspath(path)), flag)


def note(text: str) -> None:
  """Prints a line for people to stderr: standard output holds nothing but results."""
  print(text, file=sys.stderr, flush=True)


def make_parent(path: str) -> None:
  """Creates the parent directories of a file."""
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
