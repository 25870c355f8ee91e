"""Cells of a study run in processes of their own: each once, a few at a time, on cores of its own."""

import json
import os
import sys

import pytest
from paths import EXPERIMENTS

from nrt_jax.errors import UserError
from nrt_jax.files import read_json_lines

sys.path.append(str(EXPERIMENTS / "get_go"))
import cells
import common
import e4_widening as e4

PROGRAM = f"""
import json, os, sys
sys.path.append({str(EXPERIMENTS.parent)!r})
from nrt_jax.files import append_json_line
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
append_json_line(os.path.join(flags["--workdir"], "seen.jsonl"), [flags, sorted(os.sched_getaffinity(0))])
sys.exit(flags["--arms"] == "broken")
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
  """A program that says how it was started, in the place of the study's own."""
  path = tmp_path / "program.py"
  path.write_text(PROGRAM)
  monkeypatch.setattr(sys, "argv", [str(path)])
  return path


def test_a_study_starts_a_process_for_each_cell_that_is_left(program, tmp_path, capsys):
  done = {"task": "a", "arm": "x", "seed": 0, "steps": 0.5}
  (tmp_path / "results.jsonl").write_text(json.dumps(done) + "\n")
  flags = ["--processes", "2", "--seeds", "0", "1", "--steps", "0.5", "--workdir", str(tmp_path)]
  tasks = {"a": {"x": (), "y": ()}, "b": {"y": ()}}
  args = common.read_flags("study", tasks, "unused", flags)
  common.study(args, tasks, None)
  seen = read_json_lines(tmp_path / "seen.jsonl")
  found = sorted((one["--tasks"], one["--arms"], one["--seeds"]) for one, _ in seen)
  assert found == [("a", "x", "1"), ("a", "y", "0"), ("a", "y", "1"), ("b", "y", "0"), ("b", "y", "1")]
  assert {(one["--steps"], one["--workdir"]) for one, _ in seen} == {("0.5", str(tmp_path))}
  mine = os.sched_getaffinity(0)
  assert all(set(cores) <= mine and len(cores) <= max(1, -(-len(mine) // 2)) for _, cores in seen)


def test_e4_starts_its_cells_too(program, tmp_path, capsys):
  e4.main(["--processes", "2", "--seeds", "0", "--arms", "widen", "direct", "--steps", "7", "--workdir", str(tmp_path)])
  seen = read_json_lines(tmp_path / "seen.jsonl")
  assert sorted((one["--arms"], one["--seeds"], one["--steps"], one["--form_steps"]) for one, _ in seen) == [
    ("direct", "0", "7", str(e4.FORM_STEPS)), ("widen", "0", "7", str(e4.FORM_STEPS))
  ]  # fmt: skip


def test_a_cell_that_fails_is_named_after_all_have_run(program, tmp_path):
  flags = [["--arms", arm, "--workdir", str(tmp_path)] for arm in ("broken", "x")]
  with pytest.raises(UserError, match="^--processes: 1 of 2 cells failed, the first is --arms broken"):
    cells.run(flags, 1)
  assert len(read_json_lines(tmp_path / "seen.jsonl")) == 2


@pytest.mark.parametrize("read", [lambda flags: common.read_flags("study", {"a": {"x": ()}}, "w", flags), e4.main])
def test_no_processes_are_an_error(read):
  with pytest.raises(UserError, match="^--processes: found 0, allowed: 1 or more"):
    read(["--processes", "0"])
