"""`nrt-jax COMMAND` and `python -m nrt_jax COMMAND`: parses flags, runs the command, reports its errors."""

import contextlib
import errno
import importlib
import os
import sys

from nrt_jax import errors
from nrt_jax.commands import flags

# Errors of storage -> exit code: 2 where a person must see to it, 1 where the same command may succeed later.
STORAGE = dict.fromkeys(
  (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP,
  ), 2,
) | dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT), 1)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns its exit code, with one line on stderr where that is not 0.

  2: a user's mistake, which no restart mends; 1: work that ended early, or another error of the operating system, which
  the same command may mend; 130: Ctrl-C.
  """
  open_streams()
  argv = sys.argv[1:] if argv is None else list(argv)
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns if torch is missing; nothing here needs it
  try:
    args = flags.parse(argv)
    # Imported here: jax and transformers take seconds, and --help needs neither.
    importlib.import_module(f"nrt_jax.commands.{args.command}").run(args)
  except errors.UserError as error:
    return say(str(error), 2)
  except errors.Unfinished as error:
    return say(str(error), 1)
  except KeyboardInterrupt:
    return say("interrupted", 130)
  except BrokenPipeError:  # `nrt-jax sample ... | head`: the reader has closed the pipe
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  except OSError as error:
    if error.errno not in STORAGE:  # a mistake of ours
      raise
    where = f"{error.filename}: " if error.filename else ""
    return say(f"{where}{error.strerror}", STORAGE[error.errno])
  return 0


def open_streams() -> None:
  """Opens standard streams that are closed, to nothing.

  Else the next files that are opened would get their numbers, and with them what libraries in C++ write to stderr; and
  print(file=None) would write our errors to stdout, which holds nothing but results.
  """
  while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
    os.set_inheritable(number, True)
  os.close(number)
  sys.stdout = open(os.devnull, "w") if sys.stdout is None else sys.stdout
  sys.stderr = open(os.devnull, "w") if sys.stderr is None else sys.stderr


def say(text: str, code: int) -> int:
  """Writes one line to stderr, if there is one, and returns the exit code."""
  with contextlib.suppress(OSError, ValueError):
    print("nrt-jax:", errors.printable(" ".join(text.split())), file=sys.stderr)
  return code


if __name__ == "__main__":
  sys.exit(main())
