"""Quickstart: the command `nrt-jax quickstart`, from a clone. nrt_jax/commands/quickstart.py has the three configs.

    python experiments/quickstart.py                      # three runs under runs/quickstart; the same command resumes

Cost: 4 minutes on 2 CPU cores. Measured: held-out greedy accuracy 0.22 -> 0.15 (sft) and 0.22 -> 1.00 (nrt), with
traces of 8 tokens after nrt and none before. See docs/results/quickstart.md.
"""

import sys

from nrt_jax.__main__ import main

if __name__ == "__main__":
  sys.exit(main(["quickstart", *sys.argv[1:]]))
