"""What the processes of a run tell one another: between real processes, over the loopback."""

import json
import socket
import subprocess
import sys
import time

import places
import pytest
from paths import ROOT

from nrt_jax import config, processes, training
from nrt_jax.commands import configs
from nrt_jax.errors import UserError

PARTNER = """
import sys
import jax
address, number = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(address, 3, number)
from nrt_jax import processes
from nrt_jax.errors import UserError

def says(call, *arguments):
  try:
    return call(*arguments)
  except UserError as error:
    return f"refused: {error}"

def refuse():
  raise UserError("no: \\u00fc")

print(says(processes.require_same, {"config": {"seed": 1}, "data": [1, 2]}))
print(says(processes.require_same, {"config": {"seed": 1}, "data": [1, number // 2]}))
print(says(processes.on_first, lambda: "mine"))
print(says(processes.on_first, refuse))
"""


def test_three_processes(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  command = [sys.executable, "-c", PARTNER, address]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
  running = [subprocess.Popen([*command, str(number)], **pipes) for number in range(3)]
  outputs = [process.communicate(timeout=120) for process in running]
  assert [process.returncode for process in running] == [0] * 3, outputs
  differs = "refused: data: found another in process 2 than in process 0, allowed: the same in all"
  expected = [["None", differs, "mine", "refused: no: ü"], *[["None", differs, "None", "refused: no: ü"]] * 2]
  assert [[line for line in out.splitlines() if "[Gloo]" not in line] for out, _ in outputs] == expected


def start(place, workdir, *more):
  """Two processes of one device each that train the config in `place`."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  command = [sys.executable, "-m", "nrt_jax", "train", "--config", str(place / "config.py"), "--workdir", str(workdir)]
  pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
  return [subprocess.Popen([*command, *more, "--distributed", f"{address},2,{n}"], **pipes) for n in range(2)]


def lines_of(workdir):
  path = workdir / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_killed_partner_ends_the_others_and_the_same_command_goes_on(tmp_path):
  """Process 1 is killed in mid-run: process 0 ends in time, with one line. Both again: as if nothing had happened.

  The run that nothing happens to has one process of eight devices, so numbers are equal to rounding.
  """
  # Killed far from a checkpoint, in whose middle the others wait for it until its time is over.
  over = {"prompts_per_step": 8, "total_steps": 2000, "checkpoint__every_steps": 100, "logging__tensorboard": False}
  place = places.make(tmp_path, algorithm="sft", logging__every_steps=1, **over)
  workdir = tmp_path / "run"
  first, second = start(place, workdir, "--partner_timeout", "5")
  deadline = time.monotonic() + 200
  while len(lines_of(workdir)) < 150 and time.monotonic() < deadline and second.poll() is None:
    time.sleep(0.05)
  second.kill()
  killed = time.monotonic()
  said = first.communicate(timeout=100)[1]
  assert time.monotonic() - killed < 30 and first.returncode == 1, said
  assert "another process of the run has ended; the same command on all of them resumes it" in said
  assert "Traceback" not in said
  second.communicate()
  done = len(lines_of(workdir))
  assert 150 <= done < 200
  last = done + 4
  again = start(place, workdir, f"--config.total_steps={last}")
  ended = [process.communicate(timeout=200)[1] for process in again]
  assert [process.returncode for process in again] == [0, 0], ended
  found = lines_of(workdir)
  assert [line["step"] for line in found] == list(range(1, last + 1))
  values = configs.load_config(str(place / "config.py"), [f"total_steps={last}"])
  training.train(config.stages_of(values), str(tmp_path / "whole"), values)
  for line, other in zip(found, lines_of(tmp_path / "whole"), strict=True):
    for name in ("loss/total", "optimizer/grad_norm"):
      assert line[name] == pytest.approx(other[name], rel=1e-4), (line["step"], name)


def test_one_process_asks_nobody():
  processes.require_same({"config": 1})
  assert processes.on_first(lambda: 7) == 7
  with pytest.raises(UserError, match="no"):
    processes.on_first(lambda: (_ for _ in ()).throw(UserError("no")))


def test_fingerprints_differ_where_values_do():
  values = [{"a": 1}, {"a": 2}, {"b": 1}, ["a", 1], {"a": "1"}, {"a": 1.5}, None]
  assert len({processes.fingerprint(value) for value in values}) == len(values)
  assert processes.fingerprint({"a": 1, "b": (2,)}) == processes.fingerprint({"b": [2], "a": 1})
