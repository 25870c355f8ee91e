"""The directory of a model: its tokenizer files, which an export copies, and how an export replaces an earlier one."""

import contextlib
import os
import shutil
from pathlib import Path

from nrt_jax.errors import UserError

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
SETTINGS_FILE = "nrt_jax.json"
TOKENIZER_FILES = (
  "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tekken.json",
  "*.tiktoken", "spiece.model", "chat_template*", "additional_chat_templates/*.jinja", "generation_config.json",
)  # fmt: skip


def copy_tokenizer(source, directory) -> None:
  """Copies tokenizer, chat template and generation_config.json of a model directory. UserError where it is absent."""
  source, directory = Path(source), Path(directory)
  if not source.is_dir():
    raise UserError(f"{source}: no such directory to copy the tokenizer from")
  require_own_files(source)
  for pattern in TOKENIZER_FILES:
    for path in filter(Path.is_file, source.glob(pattern)):
      target = directory / path.relative_to(source)
      target.parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(path, target)


def require_own_files(directory) -> None:
  """Raises UserError where a tokenizer file is a link to somewhere else, which would be read and passed on.

  The hub's cache is allowed: its snapshots/REVISION holds links into the blobs beside it.
  """
  home = Path(directory).resolve()
  homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
  for pattern in TOKENIZER_FILES:
    for path in Path(directory).glob(pattern):
      if not any(path.resolve().is_relative_to(place) for place in homes):
        raise UserError(f"{path}: is a link out of the model's directory, allowed: a file; copy it there")


def require_replaceable(directory: Path, source) -> None:
  if source is not None and Path(source).resolve() == directory:
    raise UserError(f"{directory}: the export would replace the model it takes the tokenizer from; choose another one")
  if directory.exists() and not directory.is_dir():
    raise UserError(f"{directory}: is a file, allowed: a directory")
  ours = ("config.json", SETTINGS_FILE, "model*.safetensors", INDEX_FILE, "additional_chat_templates", *TOKENIZER_FILES)
  for path in directory.glob("*"):
    if path != partial_of(directory) and not any(path.match(pattern) for pattern in ours):
      raise UserError(f"{directory}: holds {path.name}, which is no part of an export; choose a new or empty directory")


def partial_of(directory: Path) -> Path:
  """Where an export is written until it is complete: on the same file system."""
  name = f".{directory.name}.partial"
  return directory / name if os.path.ismount(directory) else directory.with_name(name)


@contextlib.contextmanager
def removed_on_error(partial):
  """Removes a directory that was not written to the end: it may hold what a full disk lacks."""
  try:
    yield
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def replace_directory(new: Path, directory: Path) -> None:
  if new.parent == directory:
    _replace_content(new, directory)
    return
  old = directory.with_name(f".{directory.name}.old")
  shutil.rmtree(old, ignore_errors=True)
  if directory.exists():
    directory.rename(old)
  new.rename(directory)
  shutil.rmtree(old, ignore_errors=True)


def _replace_content(new: Path, directory: Path) -> None:
  """Moves an export out of `new` into the directory that holds it; config.json, without which it is none, last."""
  (directory / "config.json").unlink(missing_ok=True)
  for path in directory.iterdir():
    if path != new:
      shutil.rmtree(path) if path.is_dir() else path.unlink()
  for path in sorted(new.iterdir(), key=lambda path: path.name == "config.json"):
    path.rename(directory / path.name)
  new.rmdir()
