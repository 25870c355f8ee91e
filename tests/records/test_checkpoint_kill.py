"""Checkpoints are complete or absent, whenever the writing process is killed."""

import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from checkpoints import SYNC, raw
from paths import ROOT

from nrt_jax.records.checkpoint import Checkpoints

# Resumes, checks what it resumed from, then saves without pause; the content is a function of the step.
WRITER = """
import sys
import jax, jax.numpy as jnp, numpy as np
from nrt_jax.records.checkpoint import CheckpointConfig, Checkpoints
def states(step):
  return {"w": jnp.asarray(np.random.default_rng(step).normal(size=2**21)), "key": jax.random.key(step)}
checkpoints = Checkpoints(sys.argv[1], CheckpointConfig(keep_last=1))
step = checkpoints.latest_step() or 0
print("start", step, flush=True)
while True:
  step += 1
  checkpoints.save(step, states(step), {"step": step})
  print("began", step, flush=True)
  checkpoints.wait()
  print("saved", step, flush=True)
"""


def test_sigkill_at_any_moment_leaves_the_newest_whole_checkpoint(tmp_path):
  """Five kills at random moments, the first and the last while the half-written directory is seen on disk."""
  directory = tmp_path / "checkpoints"
  half_written = newest = 0
  delays = random.Random(0)
  for kill in range(5):
    log = tmp_path / f"log{kill}"
    child = start_writer(directory, log)
    try:
      wait_for(child, lambda: "saved" in log.read_text())
      time.sleep(delays.uniform(0, 0.3))
      if kill in (0, 4):
        wait_for(child, lambda: temporaries(directory))
    finally:
      child.send_signal(signal.SIGKILL)
      child.wait()
    half_written += bool(temporaries(directory))
    assert log.read_text().startswith(f"start {newest}\n")  # it resumed from where the killed one had come
    newest = check_newest(directory, at_least=int(log.read_text().split("saved ")[-1].split()[0]))
  assert half_written >= 1  # else no kill fell into a save and the test has shown nothing


def test_sigkill_while_an_old_checkpoint_is_deleted_leaves_no_half_of_it(tmp_path):
  """Step 1 is given 20,000 more files, so that the kill falls into its deletion; its name must be gone before them."""
  directory = tmp_path / "checkpoints"
  writer = Checkpoints(directory, SYNC)
  writer.save(1, {"w": jnp.zeros(2**21), "key": jax.random.key(1)}, {"step": 1})
  (directory / "1" / "more").mkdir()
  for i in range(20_000):
    (directory / "1" / "more" / str(i)).touch()
  child = start_writer(directory, tmp_path / "log")
  try:
    wait_for(child, lambda: 0 < files_below(directory) < 20_000)
  finally:
    child.send_signal(signal.SIGKILL)
    child.wait()
  assert files_below(directory) > 0  # else the kill came too late to show anything
  assert 1 not in Checkpoints(directory, read_only=True).all_steps()
  check_newest(directory, at_least=2)
  Checkpoints(directory, SYNC)
  assert files_below(directory) == 0  # the next run clears the rest away


def test_a_running_run_can_be_read_at_any_time(tmp_path, capsys):
  """It saves without pause and keeps one step, so that what a reader has found is mostly gone when it is read."""
  directory = tmp_path / "checkpoints"
  child = start_writer(directory, tmp_path / "log")
  try:
    wait_for(child, lambda: "saved 1" in (tmp_path / "log").read_text())
    found = [check_newest(directory) for _ in range(25)]
  finally:
    child.kill()
    child.wait()
  assert found == sorted(found) and len(set(found)) > 5
  assert capsys.readouterr().err == ""  # no step was taken for a damaged one


def files_below(directory):
  """How many of the 20,000 are left, under whichever name."""
  return sum(len(names) for folder, _, names in os.walk(directory) if folder.endswith("more"))


def start_writer(directory, log):
  with open(log, "w") as out:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(directory)], cwd=ROOT, stdout=out, stderr=out)


def temporaries(directory):
  return [name for name in os.listdir(directory) if "tmp" in name]


def wait_for(child, true, seconds=60):
  end = time.monotonic() + seconds
  while not true():
    assert child.poll() is None and time.monotonic() < end, "the writer died or hangs"
    time.sleep(0.001)


def check_newest(directory, at_least=None):
  """The newest step, whose content is that of its number; the save after `at_least` may have been completed."""
  reader = Checkpoints(directory, read_only=True)
  shape = {"w": jax.ShapeDtypeStruct((2**21,), jnp.float32), "key": jax.eval_shape(lambda: jax.random.key(0))}
  step, (found, record) = reader.newest(lambda step: reader.restore(step, shape))
  reader.close()
  assert record == {"step": step} and (at_least is None or step in (at_least, at_least + 1))
  wanted = np.random.default_rng(step).normal(size=2**21).astype(np.float32)
  assert np.asarray(found["w"]).tobytes() == wanted.tobytes()
  assert raw(found["key"]) == raw(jax.random.key(step))
  return step
