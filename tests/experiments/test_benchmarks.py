"""The scripts in experiments/benchmarks run at toy size. For the comparison with other frameworks see test_peers.py."""

import sys

from paths import EXPERIMENTS, ROOT

BENCHMARKS = EXPERIMENTS / "benchmarks"
sys.path.append(str(BENCHMARKS))  # as if started there: the scripts import their neighbour by its bare name

import gpu
import gpu_parts
import interpreters
import numpy as np
import padding
import scaling
import scoring
import setups
import slots

TINY = setups.Sizes(
  hidden=16, mlp=64, layers=1, head_dim=4, vocab=32, prompts=8, samples=4,
  prompt_length=4, trace_length=6, answer_length=3, stops=8,
)


def rows_of_table(text: str) -> list[list[str]]:
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]


def test_scoring(monkeypatch, capsys):
  flags = "--trace 6 --answer 3 --prompt 4 --prompts 8 --samples 2 --hidden 16 --layers 1 --repeats 2"
  monkeypatch.setattr(sys, "argv", ["scoring.py", *flags.split()])
  scoring.main()  # stops where both ways differ
  head, whole, cached, ratio = rows_of_table(capsys.readouterr().out)
  assert len(head) == len(whole) == len(cached) == len(ratio) == 3
  assert all(float(cell) > 0 for cell in (*whole[1:], *cached[1:]))


def test_interpreters():
  rows = interpreters.endless("brainfuck", 3, None)
  found = interpreters.measure("brainfuck", rows, steps=20, repeats=1)  # stops where the outcomes differ
  assert (found["mean"], found["most"]) == (20, 20) and min(found["python"], found["jax"], found["plain"]) > 0
  for name, (language, _) in interpreters.LANGUAGES.items():
    limits = interpreters.limits_of(name, 2000)
    ran = [language.run(*row, limits) for row in interpreters.references(name, 5, np.random.default_rng(0))]
    assert [one.status for one in ran] == [0] * 5 and len({one.output for one in ran}) > 3
    drawn = interpreters.written_at_random(name, 100, np.random.default_rng(0))
    assert {len(ids) for ids, _ in drawn} == {interpreters.LENGTH}
    assert len({language.run(*row, limits).status for row in drawn}) > 2


def test_slots(capsys):
  slots.main()
  head, *rows = rows_of_table(capsys.readouterr().out)
  assert head[:3] == ["rows", "cap", "slots"] and [row[2] for row in rows if row[0]].count("off") == 3
  assert all(float(row[4]) >= 1 for row in rows if row[0])  # no token is decoded without a row


def test_padded_steps():
  """Traces end by themselves, and the valid tokens of a row are what padding.py takes them for."""
  step = setups.Step(TINY, ("parallel.micro_batches=1", "parallel.length_buckets=2"))
  found = [step() for _ in range(2)]
  sampled, valid = padding.mean_lengths(found)
  assert 1 < sampled < TINY.trace_length
  ends = valid - TINY.prompt_length - TINY.answer_length - 1  # less the prompt, the answer and the marker
  assert sampled - 1 <= ends <= sampled
  assert 0 < found[0][1]["update/padded_fraction"] < 1


def test_a_cell_is_the_median_and_its_ratio():
  mine, first = [[4.0, 8.0], [6.0, 9.0], [8.0, 10.0]], [[1.0, 2.0], [1.0, 3.0], [2.0, 2.0]]
  assert scaling.cell(mine, first, 2) == "6.000 (2.00) | 9.000 (2.00)"


def test_a_gpus_kernels_are_summed_up_by_name():
  """Two streams: what overlaps is busy once, and what lies between kernels is idle."""
  events = [("gemm_2", 0, 4000), ("gemm_11", 6000, 2000), ("copy", 3000, 2000), ("gemm.x", 8000, 1000)]
  total, *kernels = gpu_parts.describe_kernels(events, steps=2)
  assert total == {"kernels": 2.0, "busy_us": 4.0, "idle_us": 0.5}
  assert kernels[0] == {"kernel": "gemm", "each_step": 1.0, "us": 3.0}
  assert [one["kernel"] for one in kernels] == ["gemm", "copy", "gemm.x"]
  assert gpu_parts.describe_kernels([], 1) == [{"kernels": 0.0, "busy_us": 0.0, "idle_us": 0.0}]


def test_the_tests_for_a_gpu_are_there():
  """Files and, but for what stands in brackets, names of tests: pytest takes a deselected name that is none."""
  assert all((ROOT / gpu.test_file(name)).is_file() for name in gpu.TEST_FILES)
  for file, _, name in (test.partition("::") for test in gpu.SEVERAL_DEVICES):
    assert file in gpu.TEST_FILES
    assert f"\ndef {name.partition('[')[0]}" in (ROOT / gpu.test_file(file)).read_text(), name
