"""`python -m nrt_jax.harness`: the harness's own command line, with our model class among its models.

    python -m nrt_jax.harness run --model nrt_jax --model_args path=DIR --tasks NAME

The package has no place where others could announce a model to its own command `lm_eval`.
"""

import sys

from lm_eval.__main__ import cli_evaluate

from nrt_jax.errors import UserError, printable
from nrt_jax.harness import model  # noqa: F401  (registers the class)


def main() -> int:
  """Runs what the command line says; a user's mistake that our code finds is one line, and exit code 2."""
  try:
    cli_evaluate()
  except UserError as error:
    print("nrt-jax:", printable(" ".join(str(error).split())), file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
