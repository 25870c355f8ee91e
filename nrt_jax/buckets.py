"""Objects of Cloud Storage by their URLs, gs://BUCKET/PLACE, through fsspec and gcsfs, as Orbax reaches them.

An object is read whole and written whole: nothing is appended or renamed, and what is cut off while it is written is no
object. The clients try again where a server fails; what fails for good is an OSError that names the URL.
"""

import contextlib
import errno
import functools
import importlib.util
import logging
import os
import re

from nrt_jax.errors import UserError

URL = re.compile(r"gs://[a-z0-9][\w.-]+(/(?!\.{1,2}(/|$))[\w.=+@,-]+)+")
CLIENTS = ("aiohttp", "gcsfs", "google", "requests", "urllib3")  # packages whose errors are of servers, or the way
# How TensorStore says that a server refuses, or can't be reached; not that an object is gone, or is not what it was.
REFUSED = re.compile(r"\b(UNAVAILABLE|PERMISSION_DENIED|UNAUTHENTICATED|DEADLINE_EXCEEDED|ABORTED)\b")
FORBIDDEN = ("Forbidden", "PERMISSION_DENIED", "UNAUTHENTICATED")


def is_url(path) -> bool:
  return "://" in str(path)


def checked(url: str, flag: str) -> str:
  """The URL of a directory without a slash at its end. UserError if it is none, or can't be reached from here."""
  url = url.rstrip("/")
  if not URL.fullmatch(url):
    raise UserError(f"{flag}: found {url!r}, allowed: a directory, or gs://BUCKET/PLACE; mount other buckets")
  if importlib.util.find_spec("gcsfs") is None:
    raise UserError(f"{flag}: {url}: the package gcsfs is not installed: pip install nrt_jax[gcs]")
  return url


@functools.cache
def filesystem():
  """The client, for us and for Orbax. It must not remember listings: other hosts write to the same places."""
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # would ask through gRPC what kind a bucket is
  import fsspec

  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback of whatever it raises as well
  return fsspec.filesystem("gcs")


def os_error(error: BaseException | None, url: str) -> OSError | None:
  """The refusal of a server, or a failure on the way there, that `error` tells of; None for anything else."""
  if isinstance(error, (FileNotFoundError, FileExistsError, UserError)):
    return None
  text = str(error)
  ours = isinstance(error, OSError) and error.errno is None
  if not (ours or type(error).__module__.split(".")[0] in CLIENTS or REFUSED.search(text)):
    return None
  forbidden = getattr(error, "code", None) in (401, 403) or any(word in text for word in FORBIDDEN)
  kind = errno.EACCES if forbidden else errno.EIO
  reason = " ".join((text or type(error).__name__).split())[:200]
  return OSError(kind, f"Cloud Storage: {reason}", url)


@contextlib.contextmanager
def talking(url: str):
  """Gives refusals their URL. A bucket that is not there is a UserError, for everything else in it is missing, too."""
  try:
    yield
  except Exception as error:
    refusal = os_error(error, url)
    if refusal is None:
      raise
    raise refusal from error


@contextlib.contextmanager
def _writing(url: str):
  """`talking`; what is not found when something is written is the bucket."""
  try:
    with talking(url):
      yield
  except FileNotFoundError as error:
    if error.errno is not None:  # a file here
      raise
    bucket = "/".join(url.split("/")[:3])
    raise UserError(f"{url}: there is no bucket {bucket}, or we may not write to it") from error


def require_bucket(url: str) -> None:
  """UserError unless the bucket is there and tells what kind it is, which Orbax asks before it deletes an old step."""
  try:
    with _writing(url):
      filesystem().call("GET", "b/{}", url.split("/")[2], json_out=True)
  except OSError as error:
    if error.errno != errno.EACCES:
      raise
    role = "storage.buckets.get, as in the role Storage Legacy Bucket Reader"
    raise UserError(f"{url}: {error.strerror}; needed for a workdir: {role}") from error


# ---- Objects


def read(url: str) -> bytes | None:
  """What the object holds; None if there is none."""
  with talking(url), contextlib.suppress(FileNotFoundError):
    return filesystem().cat_file(url)


def write(url: str, data: bytes) -> None:
  with _writing(url):
    filesystem().pipe_file(url, data)


def create(url: str, data: bytes) -> bool:
  """Writes an object that must not exist; False if it does. Of several who try at once, one succeeds."""
  try:
    with _writing(url):
      filesystem().pipe_file(url, data, mode="create")
  except FileExistsError:
    return False
  return True


def upload(path: str, url: str) -> None:
  """Writes the content of a file."""
  with _writing(url):
    filesystem().put_file(path, url)


def download(url: str, path: str) -> None:
  """Writes the object to a file, at once."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  temporary = f"{path}.{os.getpid()}.tmp"
  try:
    with talking(url):
      filesystem().get_file(url, temporary)
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(temporary)


def remove(url: str) -> None:
  """Deletes an object, if it is there."""
  with talking(url), contextlib.suppress(FileNotFoundError):
    filesystem().rm_file(url)


# ---- Everything below a place


def exists(url: str) -> bool:
  """Whether there is an object, or one below it."""
  with talking(url):
    return filesystem().exists(url)


def names(url: str) -> list[str]:
  """What lies directly in a place, objects and places, in order."""
  with talking(url), contextlib.suppress(FileNotFoundError):
    return sorted(path.rstrip("/").rsplit("/", 1)[1] for path in filesystem().ls(url, detail=False))
  return []


def files(url: str) -> list[str]:
  """All objects below a place, by their paths from there, in order."""
  start = len(url.removeprefix("gs://")) + 1
  with talking(url), contextlib.suppress(FileNotFoundError):
    return sorted(path[start:] for path in filesystem().find(url) if len(path) > start)
  return []


def remove_all(url: str) -> None:
  """Deletes all objects below a place."""
  with talking(url), contextlib.suppress(FileNotFoundError):
    filesystem().rm(url, recursive=True)


def copy_all(url: str, target: str) -> None:
  """Copies all objects below a place to another place; the server does the work."""
  for path in files(url):
    with _writing(f"{target}/{path}"):
      filesystem().cp_file(f"{url}/{path}", f"{target}/{path}")
