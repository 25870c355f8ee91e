"""A run's files and progress line: valid JSON for any numbers, the same after resuming, readable on any stderr."""

import io
import os
import resource
import shutil
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from strict_json import strict

from nrt_jax.errors import UserError
from nrt_jax.records.metrics import LoggingConfig, MetricsWriter, Progress, duration

QUIET = LoggingConfig(tensorboard=False, progress=False)


class Screen(io.StringIO):
  """A stderr that is a terminal, or not."""

  def __init__(self, tty):
    super().__init__()
    self._tty = tty

  def isatty(self):
    return self._tty


class Clock:
  """Seconds since the start, moved by hand."""

  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


def lines(path):
  return [strict(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def run(workdir, first, last, start_step=0, config=QUIET):
  """Steps first..last of a ten-step run."""
  writer = MetricsWriter(workdir, config, 10, start_step)
  for step in range(first, last + 1):
    writer.write(step, {"reward/mean": step / 7, "trace/length_max": step})
    writer.write_samples(step, [{"question": f"q{step}", "logp": [-0.1 * step]}])
  writer.close()


def test_lines_hold_step_and_numbers_of_every_kind(tmp_path):
  writer = MetricsWriter(tmp_path, QUIET, 10)
  writer.write(3, {"a": jnp.float32(0.5), "b": np.float64(1 / 3), "c": 7, "d": jnp.int32(2), "e": np.array([1.0, 2.0])})
  writer.close()
  assert lines(tmp_path / "metrics.jsonl") == [{"step": 3, "a": 0.5, "b": 1 / 3, "c": 7, "d": 2, "e": [1.0, 2.0]}]


def test_lines_are_on_disk_at_once(tmp_path):
  writer = MetricsWriter(tmp_path, QUIET, 10)
  writer.write(1, {"a": 1.0})
  assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 1.0}]  # before close: a kill loses nothing
  writer.close()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("-inf"), jnp.float32("nan")], ids=repr)
def test_numbers_that_json_lacks_become_null(tmp_path, bad):
  writer = MetricsWriter(tmp_path, LoggingConfig(), 10, stream=Screen(True))
  writer.write(1, {"reward/mean": bad, "b": 1.0})
  writer.write_samples(1, [{"logp": np.array([bad, -1.0])}])
  writer.close()
  assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "reward/mean": None, "b": 1.0}]
  assert lines(tmp_path / "samples.jsonl") == [{"step": 1, "logp": [None, -1.0]}]


def test_samples_are_cut_to_their_number_and_keep_their_text(tmp_path):
  writer = MetricsWriter(tmp_path, LoggingConfig(tensorboard=False, progress=False, samples_per_step=2), 10)
  texts = ["line\nbreak \u2028 \x85 é 好", "half a character: \udce9", "one too many"]
  writer.write_samples(4, [{"trace": text, "answer": [{"token": "4", "logp": -0.5}]} for text in texts])
  writer.close()
  found = lines(tmp_path / "samples.jsonl")
  assert [sample["trace"] for sample in found] == texts[:2]
  assert found[0]["step"] == 4 and found[0]["answer"] == [{"token": "4", "logp": -0.5}]
  assert "好" in (tmp_path / "samples.jsonl").read_text(encoding="utf-8")  # legible
  MetricsWriter(tmp_path, QUIET, 10, start_step=4).close()
  assert [sample["trace"] for sample in lines(tmp_path / "samples.jsonl")] == texts[:2]


@pytest.mark.parametrize("reached", [4, 5, 9])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, reached):
  """Killed after `reached` steps, in the middle of a line, resumed from the checkpoint of step 4."""
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  run(whole, 1, 10)
  run(cut, 1, reached)
  for name in ("metrics.jsonl", "samples.jsonl"):
    with open(cut / name, "a", encoding="utf-8") as file:
      file.write('{"step": 4, "reward/me')
  run(cut, 5, 10, start_step=4)
  for name in ("metrics.jsonl", "samples.jsonl"):
    assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert len(lines(whole / name)) == 10
  assert not [name for name in os.listdir(cut) if "tmp" in name]


def test_a_run_from_the_start_begins_empty(tmp_path):
  run(tmp_path, 0, 3)
  run(tmp_path, 0, 1)
  assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [0, 1]


def test_lines_that_are_not_ours_are_dropped_at_resume(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\n[]\n{"step": null}\n{"no": 1}\n{"step": 2, "a": 0}\n\xff')
  MetricsWriter(tmp_path, QUIET, 10, start_step=5).close()
  assert lines(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2, "a": 0}]


def test_other_hosts_write_nothing(tmp_path):
  writer = MetricsWriter(tmp_path / "run", LoggingConfig(), 10, primary=False)
  writer.write(1, {"a": 1.0}), writer.write_samples(1, [{}]), writer.note("hello"), writer.close()
  assert not (tmp_path / "run").exists()


# ---- Faults --------------------------------------------------------------------------------------------------------


def noted(stream) -> list[str]:
  return [line for line in stream.getvalue().splitlines() if "lines" in line or "removed" in line]


def test_a_file_that_is_removed_is_begun_again(tmp_path):
  stream = Screen(False)
  writer = MetricsWriter(tmp_path, QUIET, 10, stream=stream)
  writer.write(1, {"a": 1})
  (tmp_path / "metrics.jsonl").unlink()
  writer.write(2, {"a": 2})
  writer.write(3, {"a": 3})
  writer.close()
  assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [2, 3]
  assert noted(stream) == [f"{tmp_path}/metrics.jsonl: was removed; a new one begins here"]


def test_a_workdir_that_is_removed_ends_the_run(tmp_path):
  writer = MetricsWriter(tmp_path / "run", QUIET, 10)
  writer.write(1, {"a": 1})
  shutil.rmtree(tmp_path / "run")
  with pytest.raises(UserError, match=f"{tmp_path}/run: has been removed while the run was going on"):
    writer.write(2, {"a": 2})
  assert not (tmp_path / "run").exists()


def test_a_full_disk_costs_lines_and_never_half_of_one(tmp_path):
  """The size limit of the process stands for the disk: writes then end in the middle of a line, with an error."""
  stream = Screen(False)
  writer = MetricsWriter(tmp_path, QUIET, 10, stream=stream)
  writer.write(1, {"a": 1})
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(tmp_path / "metrics.jsonl") + 5, hard))
  try:
    for step in (2, 3):
      writer.write(step, {"a": step})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  writer.write(4, {"a": 4})
  writer.close()
  assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 1}, {"step": 4, "a": 4}]
  path = tmp_path / "metrics.jsonl"
  assert noted(stream) == [f"{path}: lines are lost: File too large", f"{path}: can be written again; 2 lines are lost"]


@pytest.mark.parametrize("tty", [True, False])
def test_a_stderr_that_is_closed_does_not_end_the_run(tmp_path, tty):
  stream = Screen(tty)
  writer = MetricsWriter(tmp_path, LoggingConfig(tensorboard=False), 10, stream=stream)
  writer.write(1, {"a": 1})
  stream.close()
  writer.write(10, {"a": 2})
  writer.note("something")
  writer.close()
  assert len(lines(tmp_path / "metrics.jsonl")) == 2


def test_the_progress_line_shows_what_is_not_finite_as_such(tmp_path):
  stream = Screen(True)
  writer = MetricsWriter(tmp_path, LoggingConfig(tensorboard=False), 10, stream=stream)
  writer.write(1, {"loss/total": 1.5})
  writer.write(2, {"loss/total": float("nan")})
  writer.close()
  assert "loss 1.500" in stream.getvalue() and "loss nan" in stream.getvalue().rsplit("step 2", 1)[1]


def test_what_a_terminal_would_obey_is_shown_as_text(tmp_path):
  stream = Screen(False)
  MetricsWriter(tmp_path, QUIET, 10, stream=stream).note("name \x1b[2J\x07 é")
  assert stream.getvalue() == "name \\x1b[2J\\x07 é\n"


def test_due():
  writer = MetricsWriter("", LoggingConfig(every_steps=4, samples_every_steps=3), 10, primary=False)
  assert [step for step in range(1, 11) if writer.due(step)] == [4, 8, 10]
  assert [step for step in range(1, 11) if writer.samples_due(step)] == [3, 6, 9]
  for never in (LoggingConfig(samples_every_steps=0), LoggingConfig(samples_per_step=0)):
    assert not any(MetricsWriter("", never, 10, primary=False).samples_due(step) for step in range(1, 11))


METRICS = {"reward/mean": 0.43156, "trace/length_mean": 8.24, "throughput/generated_tokens_per_s": 12345.6, "x": 1.0}


def test_progress_is_drawn_in_place_on_a_terminal(monkeypatch):
  monkeypatch.setenv("COLUMNS", "200")
  screen, clock = Screen(tty=True), Clock()
  progress = Progress(100, screen, clock=clock)
  for step in (1, 2, 3):
    progress.show(step, METRICS)
    clock.now += 2.0
  assert screen.getvalue().split("\r\x1b[K")[1:] == [
    "step 1/100  reward 0.432  trace 8.2  tokens/s 12,346  ETA --",
    "step 2/100  reward 0.432  trace 8.2  tokens/s 12,346  ETA 3m16s",  # 98 steps of 2 s
    "step 3/100  reward 0.432  trace 8.2  tokens/s 12,346  ETA 3m14s",
  ]
  progress.note("checkpoint 3")
  progress.show(4, {"eval/acc": 1.0})  # a write without a reward keeps the last one's
  progress.close()
  tail = screen.getvalue().split("3m14s")[1]
  assert tail == "\r\x1b[Kcheckpoint 3\n\r\x1b[Kstep 4/100  reward 0.432  trace 8.2  tokens/s 12,346  ETA 3m12s\n"


def test_progress_fits_the_terminal(monkeypatch):
  monkeypatch.setenv("COLUMNS", "20")
  screen = Screen(tty=True)
  Progress(100, screen).show(1, METRICS)
  assert screen.getvalue() == "\r\x1b[Kstep 1/100  reward "  # 19 columns: a wrapped line can't be redrawn


def test_progress_off_a_terminal_is_plain_lines_now_and_then():
  screen, clock = Screen(tty=False), Clock()
  progress = Progress(10, screen, clock=clock)
  for step in range(1, 11):
    progress.show(step, METRICS)
    clock.now += 2.0
  progress.show(10, {"eval/x/accuracy": 1.0})  # the end is said once
  progress.note("done")
  progress.close()
  text = screen.getvalue()
  assert "\r" not in text and "\x1b" not in text
  heads = [line.split("  ")[0] for line in text.splitlines()]
  assert heads == ["step 1/10", "step 4/10", "step 7/10", "step 10/10", "done"]
  assert text.splitlines()[-2].endswith("ETA 0s")


def test_the_compiling_first_step_does_not_count_into_the_eta():
  clock = Clock()
  progress = Progress(11, Screen(tty=True), clock=clock)
  clock.now = 500.0  # compiling
  progress.show(1, {})
  clock.now += 3.0
  progress.show(2, {})
  assert progress.seconds_left(2) == 27.0


def test_progress_can_be_turned_off_but_notes_stay(tmp_path):
  screen = Screen(tty=True)
  writer = MetricsWriter(tmp_path, QUIET, 10, stream=screen)
  writer.write(1, METRICS)
  writer.note("resumed from step 5")
  writer.close()
  assert screen.getvalue() == "resumed from step 5\n"


@pytest.mark.parametrize(
  "seconds, text", [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3725, "1h02m"), (float("nan"), "--")]
)
def test_duration(seconds, text):
  assert duration(seconds) == text


def write_events(workdir):
  """Steps 1 to 3, then, resumed from step 2, steps 3 and 4."""
  for start, steps in ((-1, (1, 2, 3)), (2, (3, 4))):  # -1: a fresh run
    writer = MetricsWriter(workdir, LoggingConfig(progress=False), 10, start)
    for step in steps:
      writer.write(step, {"reward/mean": step + max(start, 0) / 4, "loss/total": float("nan")})
    writer.close()


def events(path):
  """Records of an event file: length (8 bytes), its checksum (4), the event, its checksum (4)."""
  event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
  data = path.read_bytes()
  while data:
    (size,) = struct.unpack("<Q", data[:8])
    yield event_pb2.Event.FromString(data[12 : 12 + size])
    data = data[16 + size :]


def test_event_files_hold_the_scalars_and_the_purge(tmp_path):
  pytest.importorskip("tensorboardX")
  write_events(tmp_path)
  files = sorted((tmp_path / "tensorboard").iterdir())
  assert len(files) == 2  # the second run did not overwrite the first's
  assert not any(".-" in file.name for file in files)
  found = [(event.step, value.tag, value.simple_value) for file in files for event in events(file)
           for value in event.summary.value]
  assert found == [(step, "reward/mean", value) for step, value in [(1, 1), (2, 2), (3, 3), (3, 3.5), (4, 4.5)]]
  starts = [[event.step for event in events(file) if event.session_log.status] for file in files]
  assert starts == [[0], [3]]


def test_tensorboard_reads_what_was_written(tmp_path):
  """Step 3 of the interrupted run is purged."""
  accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
  write_events(tmp_path)
  reader = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
  assert reader.Tags()["scalars"] == ["reward/mean"]
  assert [(event.step, event.value) for event in reader.Scalars("reward/mean")] == [(1, 1), (2, 2), (3, 3.5), (4, 4.5)]


def test_without_tensorboardx_a_note_says_so(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)  # what Python does where a package can't be imported
  screen = Screen(tty=False)
  writer = MetricsWriter(tmp_path, LoggingConfig(progress=False), 10, stream=screen)
  writer.write(1, {"a": 1.0})
  writer.close()
  assert "tensorboardX is not installed" in screen.getvalue()
  assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 1.0}] and not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize(
  "key, value, says",
  [
    ("every_steps", 0, "logging.every_steps: found 0, allowed: 1 or more"),
    ("samples_every_steps", -1, "logging.samples_every_steps: found -1, allowed: 0 or more"),
    ("samples_per_step", -2, "logging.samples_per_step: found -2, allowed: 0 or more"),
    ("trace_moved_every", -1, "logging.trace_moved_every: found -1, allowed: 0 or more"),
  ],
)
def test_wrong_values_name_key_value_and_choices(key, value, says):
  with pytest.raises(UserError) as error:
    LoggingConfig(**{key: value})
  assert str(error.value) == says
