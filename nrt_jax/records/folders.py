"""The directory of a run's checkpoints, apart from what Orbax does with it: on a file system, or in a bucket.

In a bucket nothing is renamed: a step is whole once COMMITTED lies in it, and is none again once that is deleted.
"""

import contextlib
import errno
import os
import shutil

from nrt_jax import buckets, files

TRASH = "trash"
DAMAGED = "damaged"  # where a run puts steps that are not whole, for a person to look at
PARTIAL = ".orbax-checkpoint-tmp"  # in the name of a step that Orbax has not written to the end
COMMITTED = "commit_success.txt"  # in a bucket, Orbax's last object of a step


def open_folder(directory: str):
  return Bucket(directory) if buckets.is_url(directory) else Local(directory)


class Local:
  """A directory of a file system."""

  reopens = False  # whether Orbax must be opened anew after a refusal, of which it would tell again at the next save

  def __init__(self, directory: str):
    self.place = os.path.abspath(directory)

  def path(self, *names: str) -> str:
    return os.path.join(self.place, *names)

  def exists(self) -> bool:
    return os.path.isdir(self.place)

  def is_gone(self) -> bool:
    """Whether somebody has removed it since it was made."""
    return not self.exists()

  def steps(self) -> list[int]:
    """The steps that are written to the end, in any order."""
    return [int(name) for name in os.listdir(self.place) if name.isdecimal()]

  def read(self, *names: str) -> str:
    with open(self.path(*names), encoding="utf-8") as file:
      return file.read()

  def has(self, *names: str) -> bool:
    """Whether there is such a directory."""
    return os.path.isdir(self.path(*names))

  def write_json(self, value, *names: str) -> None:
    files.write_json(self.path(*names), value)

  def set_aside(self, step: int) -> str:
    """Moves a step to DAMAGED, and returns that directory."""
    place = self.path(DAMAGED, str(step))
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    os.rename(self.path(str(step)), place)
    return os.path.dirname(place)

  def remove_partial(self) -> None:
    """Removes steps that are not written to the end. Nothing may be being written."""
    with contextlib.suppress(FileNotFoundError):
      for name in os.listdir(self.place):
        if PARTIAL in name:
          shutil.rmtree(self.path(name), ignore_errors=True)

  def empty_trash(self) -> None:
    shutil.rmtree(self.path(TRASH), ignore_errors=True)

  def refusal(self, error: BaseException | None) -> OSError | None:
    """What storage says where it refuses to write; None for another error."""
    return files.os_error(error, self.place)

  def require_reached(self, error: BaseException) -> None:
    """Raises an OSError where `error` says that nothing could be read at all: the checkpoint may well be whole."""


class Bucket(Local):
  """A place in a bucket."""

  reopens = True

  def __init__(self, url: str):
    self.place = url
    buckets.filesystem()  # before Orbax asks for it

  def exists(self) -> bool:
    return buckets.exists(self.place)

  def is_gone(self) -> bool:
    """Never known: a place in a bucket is there while an object is. The run's lock tells."""
    return False

  def steps(self) -> list[int]:
    found = [name for name in buckets.names(self.place) if name.isdecimal()]
    return [int(name) for name in found if buckets.exists(self.path(name, COMMITTED))]

  def read(self, *names: str) -> str:
    data = buckets.read(self.path(*names))
    if data is None:
      raise FileNotFoundError(f"{self.path(*names)}: no such object")
    return data.decode()

  def has(self, *names: str) -> bool:
    return buckets.exists(self.path(*names))

  def write_json(self, value, *names: str) -> None:
    buckets.write(self.path(*names), files.json_text(value).encode(errors="backslashreplace"))

  def set_aside(self, step: int) -> str:
    target = self.path(DAMAGED, str(step))
    buckets.remove_all(target)
    buckets.copy_all(self.path(str(step)), target)
    buckets.remove(self.path(str(step), COMMITTED))
    buckets.remove_all(self.path(str(step)))
    return os.path.dirname(target)

  def remove_partial(self) -> None:
    """Orbax's own: it removes a step without COMMITTED at the start of a run, and before it writes that step again."""

  def empty_trash(self) -> None:
    """There is none: Orbax deletes steps of a bucket where they are."""

  def refusal(self, error: BaseException | None) -> OSError | None:
    if (isinstance(error, FileNotFoundError) and error.errno is None) or "NOT_FOUND" in str(error):
      return OSError(errno.EIO, "the bucket, or what was being written to it, is gone", self.place)
    return buckets.os_error(error, self.place) or files.os_error(error, self.place)

  def require_reached(self, error: BaseException) -> None:
    said = isinstance(error, OSError) and str(error.filename).startswith(self.place)  # by `buckets`
    if (found := error if said else buckets.os_error(error, self.place)) is not None:
      raise found from (None if said else error)
