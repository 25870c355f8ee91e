"""Paths that tests read."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
EXPERIMENTS = ROOT / "experiments"
GOLDEN = ROOT / "tests" / "golden"
DATA = ROOT.parent / "shared" / "data"  # real data, beside the repository where there is any; else its tests skip
