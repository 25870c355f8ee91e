"""Programs that a model wrote, each in a process of its own that can do little: see guard.py.

It has limits of time, memory and files, no network, no environment, an empty directory, cannot write to any file, start
a process or signal one, and dies with us. It may read what its user may read, but has no way to tell anybody.
"""

import dataclasses
import json
import os
import pathlib
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from nrt_jax.errors import UserError

GUARD = pathlib.Path(__file__).with_name("guard.py")
MACHINES = ("x86_64", "aarch64")


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of one program."""

  cpu_s: int = 10  # of all its threads together
  wall_s: float = 30.0
  memory_bytes: int = 2**30  # of addresses
  file_bytes: int = 2**16
  files: int = 16  # open at once


def passes(program: str, limits: Limits = Limits()) -> bool:
  """Whether the program comes to its end within the limits. One that exits by itself, with whatever code, does not."""
  word = secrets.token_hex(16)
  told = {name: value for name, value in dataclasses.asdict(limits).items() if name != "wall_s"}
  command = [sys.executable, "-I", "-S", "-B", str(GUARD), json.dumps(told)]
  with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
    given.write(f"{word}\n{program}".encode(errors="surrogatepass"))
    given.seek(0)
    how = dict(stdin=given, stdout=said, stderr=subprocess.DEVNULL, cwd=empty, env={}, start_new_session=True)
    with subprocess.Popen(command, **how) as process:
      try:
        process.wait(limits.wall_s)
      except subprocess.TimeoutExpired:
        pass
      finally:
        if process.returncode is None:  # not waited for, so the group is still its own; others it has none
          os.killpg(process.pid, signal.SIGKILL)
    said.seek(0)
    return process.returncode == 0 and said.read(len(word) + 1).decode(errors="replace") == word


def all_pass(programs: list[str], limits: Limits = Limits(), progress=None) -> list[bool]:
  """`passes` of each, as many at a time as there are cores; equal programs run once."""
  different, found = list(dict.fromkeys(programs)), {}
  pool = ThreadPoolExecutor(os.cpu_count() or 1)
  try:
    for program, passed in zip(different, pool.map(lambda one: passes(one, limits), different)):
      found[program] = passed
      if progress is not None:
        progress(len(found), len(different))
  finally:
    pool.shutdown(cancel_futures=True)
  return [found[program] for program in programs]


def require() -> None:
  """Raises UserError where programs can't be shut in: they are not run there."""
  works = platform.system() == "Linux" and platform.machine() in MACHINES and passes("pass")
  if not works or passes("import socket\nsocket.socket()"):
    system = f"{platform.system()} on {platform.machine()}"
    allowed = f"Linux with filters of system calls (seccomp), on {' or '.join(MACHINES)}"
    raise UserError(f"--run_code: found {system}, which can't shut programs in, allowed: {allowed}")
