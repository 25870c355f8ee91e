"""What the processes of a run tell one another: between real processes, over the loopback."""

import socket
import subprocess
import sys

import pytest
from paths import ROOT

from nrt_jax import processes
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


def test_one_process_asks_nobody():
  processes.require_same({"config": 1})
  assert processes.on_first(lambda: 7) == 7
  with pytest.raises(UserError, match="no"):
    processes.on_first(lambda: (_ for _ in ()).throw(UserError("no")))


def test_fingerprints_differ_where_values_do():
  values = [{"a": 1}, {"a": 2}, {"b": 1}, ["a", 1], {"a": "1"}, {"a": 1.5}, None]
  assert len({processes.fingerprint(value) for value in values}) == len(values)
  assert processes.fingerprint({"a": 1, "b": (2,)}) == processes.fingerprint({"b": [2], "a": 1})
