"""A workdir in a bucket, and its copy on this machine.

Libraries write files to paths, and a run appends to some: all of that happens in a directory here. What of it is new or
longer is uploaded, as whole objects, before each checkpoint and once a minute. Checkpoints alone are never here:
Orbax writes them to the bucket, from all hosts. Every other object is the first process's; the others only fetch.

A reader (export, evaluate, report) fetches the same small files, and restores arrays from the bucket.
"""

import contextlib
import hashlib
import os
import shutil
import threading
from typing import Callable, NamedTuple

import jax

from nrt_jax import buckets, processes
from nrt_jax.errors import UserError, warn
from nrt_jax.files import cache_directory, write_text
from nrt_jax.records import bucket_lock, lock

SOURCE = "bucket.url"  # in the directory here: where it belongs
CHECKPOINTS, TOKENIZER = "checkpoints", "tokenizer/"
EXPORTS = ("export", "export_critic")
KEPT = ("compiled", "evaluations")  # only here, and kept from one run to the next
# Neither fetched nor compared: large, or of no use for the next run.
LEFT = (CHECKPOINTS, "tensorboard", "wandb", *EXPORTS, *KEPT)
EVERY = 60.0  # seconds between uploads without a checkpoint, so that others see how the run goes
PASSING = (".tmp", ".partial", ".lock")  # ends of names of files that are being written, and of locks


class Files(NamedTuple):
  """What a run needs to know of where its files are."""

  workdir: str  # the directory on this machine
  left: str | None  # what is to be said of a run that was killed here
  upload: Callable  # upload(exports=False): brings the bucket up to date; does nothing for a local workdir


@contextlib.contextmanager
def opened(workdir: str):
  """Yields the Files of a run's workdir, which is locked. Every host must call this. UserError if a run is going on."""
  with contextlib.ExitStack() as stack:
    if not buckets.is_url(workdir):
      os.makedirs(workdir, exist_ok=True)
      yield Files(workdir, processes.on_first(lambda: stack.enter_context(lock.held(workdir))), _nothing)
      return
    place, primary = place_of(workdir, f"run-{jax.process_index()}"), jax.process_index() == 0
    os.makedirs(place, exist_ok=True)
    copy = Copy(workdir, place)
    left = processes.on_first(lambda: _lock(stack, copy))
    copy.fetch()
    processes.together("workdir fetched")
    if primary:  # not earlier: what a run before has left here must not go over what another has done since
      stack.enter_context(copy.kept())
    yield Files(place, left, copy.upload if primary else _nothing)


def _nothing(exports: bool = False) -> None:
  """What is to be uploaded of a local workdir, or by hosts other than the first."""


def _lock(stack, copy) -> str | None:
  buckets.require_bucket(copy.url)
  stack.enter_context(lock.held(copy.place))  # of another run on this machine that was taken for dead
  left, copy.require = stack.enter_context(bucket_lock.held(copy.url, copy.place))
  return left


def local(workdir: str, flag: str) -> str:
  """The workdir itself, or a directory here with what is needed to read one in a bucket. UserError if there is none."""
  if not buckets.is_url(workdir):
    return workdir
  url = buckets.checked(workdir, flag).removesuffix(f"/{CHECKPOINTS}")
  if not buckets.exists(url):
    raise UserError(f"{flag}: found {workdir!r}, where nothing is; allowed: a run's workdir")
  copy = Copy(url, place_of(url, "read"))
  copy.fetch()
  return copy.place


def checkpoints_of(workdir: str) -> str:
  """Where the checkpoints of a workdir are: in it, or in the bucket that it is a copy of."""
  try:
    with open(os.path.join(workdir, SOURCE), encoding="utf-8") as file:
      return f"{file.read().strip()}/{CHECKPOINTS}"
  except FileNotFoundError:
    return os.path.join(workdir, CHECKPOINTS)


def place_of(url: str, use: str) -> str:
  """The directory on this machine for a workdir in a bucket, with its name."""
  key = hashlib.sha256(url.encode()).hexdigest()[:12]
  return os.path.join(cache_directory(), "workdirs", f"{key}-{use}", os.path.basename(url))


class Copy:
  """A directory here, and what of it the bucket has."""

  def __init__(self, url: str, place: str):
    self.url, self.place = url, place
    self.require = lambda: None  # raises UserError where the workdir is not this run's any more
    self._there = {}  # path -> (time of change, size) of the file that the bucket has
    self._mutex = threading.Lock()

  def fetch(self) -> None:
    """Makes the directory hold what the bucket does, but for LEFT."""
    wanted = [path for path in buckets.files(self.url) if _is_small(path)]
    for path in self._files():
      if path.split(os.sep)[0] not in KEPT and path not in wanted:
        with contextlib.suppress(FileNotFoundError):  # by another reader
          os.remove(os.path.join(self.place, path))
    for path in wanted:
      buckets.download(f"{self.url}/{path}", os.path.join(self.place, path))
    write_text(os.path.join(self.place, SOURCE), self.url)
    self._there = {path: self._state(path) for path in wanted}

  def upload(self, exports: bool = False) -> None:
    """Writes what has changed since. exports: also the exported models, in place of those that are there."""
    with self._mutex:
      self.require()
      if not os.path.exists(os.path.join(self.place, SOURCE)):
        raise UserError(f"{self.place}: has been removed while the run was going on")
      found = {path: self._state(path) for path in self._files() if path.split(os.sep)[0] not in (*KEPT, *EXPORTS)}
      for path in self._there.keys() - found.keys():
        if path.startswith(TOKENIZER):  # of a run that never came to a checkpoint; nothing else is ever taken back
          buckets.remove(f"{self.url}/{path}")
          del self._there[path]
      for path, state in found.items():
        if state is not None and state != self._there.get(path):
          self._put(path)
          self._there[path] = state
      if exports:
        self._upload_exports()

  def _upload_exports(self) -> None:
    for name in EXPORTS:
      paths = [path for path in self._files() if path.split(os.sep)[0] == name]
      if paths:
        buckets.remove_all(f"{self.url}/{name}")
      for path in sorted(paths, key=lambda path: (path.endswith("config.json"), path)):  # without it, it is no model
        self._put(path)

  @contextlib.contextmanager
  def kept(self):
    """Uploads now and then, and at the end the last lines; removes the copy if the bucket has all of it."""
    end = threading.Event()

    def work():
      while not end.wait(EVERY):
        with contextlib.suppress(Exception):  # a server that fails now may answer later; checkpoints don't go without
          self.upload()

    thread = threading.Thread(target=work, name="bucket-upload", daemon=True)
    thread.start()
    try:
      yield
    finally:
      end.set()
      thread.join()
      self._close()

  def _close(self) -> None:
    try:
      self.upload()
    except (OSError, UserError) as error:
      return warn(f"{self.url}: the newest files are only here, in {self.place}: {getattr(error, 'strerror', error)}")
    for name in os.listdir(self.place):
      if name not in KEPT and name != lock.NAME:
        path = os.path.join(self.place, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)

  def _put(self, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
      buckets.upload(os.path.join(self.place, path), f"{self.url}/{path}")

  def _files(self) -> list[str]:
    """Paths of all files here that belong to the workdir."""
    found = []
    for directory, folders, names in os.walk(self.place):
      folders[:] = [name for name in folders if not name.endswith(PASSING)]
      found += [os.path.relpath(os.path.join(directory, name), self.place) for name in names]
    return sorted(path for path in found if path != SOURCE and not path.endswith(PASSING))

  def _state(self, path: str) -> tuple | None:
    try:
      status = os.stat(os.path.join(self.place, path))
    except FileNotFoundError:
      return None
    return status.st_mtime_ns, status.st_size


def _is_small(path: str) -> bool:
  parts = path.split("/")
  return parts[0] not in LEFT and not path.endswith(PASSING) and not {"", ".", ".."} & set(parts)
