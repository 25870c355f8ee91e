"""`nrt-jax COMMAND` and `python -m nrt_jax COMMAND`: parses flags, runs the command, reports its errors."""

import importlib
import os
import sys

from nrt_jax import errors
from nrt_jax.commands import flags


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns its exit code: 0, 2 for a user's mistake (one line on stderr), 130 for Ctrl-C."""
  argv = sys.argv[1:] if argv is None else list(argv)
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns if torch is missing; nothing here needs it
  try:
    args = flags.parse(argv)
    # Imported here: jax and transformers take seconds, and --help needs neither.
    importlib.import_module(f"nrt_jax.commands.{args.command}").run(args)
  except errors.UserError as error:
    print("nrt-jax:", " ".join(str(error).split()), file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("nrt-jax: interrupted", file=sys.stderr)
    return 130
  except BrokenPipeError:  # `nrt-jax sample ... | head`: the reader has closed the pipe
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  return 0


if __name__ == "__main__":
  sys.exit(main())
