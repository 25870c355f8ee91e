"""Programs with a time limit, and output that is read as it comes."""

import sys
import time

import pytest

from nrt_jax.errors import UserError
from tpu_launch import shell


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path):
  start = time.monotonic()
  done = shell.run(["sh", "-c", f"(sleep 60; touch {tmp_path}/late) & sleep 60"], 0.5)
  assert done.code == shell.TIMED_OUT and "no answer within 0.5 s" in done.reason
  assert time.monotonic() - start < 30


def test_the_reason_of_a_failure():
  assert shell.Done(1, "", "WARNING: old\nERROR: (gcloud) no\nrun gcloud help\n").reason == "ERROR: (gcloud) no"
  assert shell.Done(1, "out\n", "").reason == "out" and shell.Done(3, "", "").reason == "exit code 3"


def test_a_missing_program_is_the_users_to_install():
  with pytest.raises(UserError, match="no-such-program: No such file"):
    shell.run(["no-such-program"], 1)


def test_a_stream_begins_again_when_it_ends(tmp_path):
  """All that there is at first, then only what is new; what was printed last is not lost."""
  stream = shell.Stream(["echo", "first"], [sys.executable, "-S", "-c", "print('again', flush=True); input()"])
  text, until = "", time.monotonic() + 30
  while "again" not in text and time.monotonic() < until:
    text += stream.read()
    time.sleep(0.02)
  stream.close()
  assert text.startswith("first\nagain\n") and text.count("first") == 1
