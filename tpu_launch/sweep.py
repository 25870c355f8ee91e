"""Sweeps: configs x slices, some at a time. Every run has a launcher, a workdir and a record of its own."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nrt_jax.errors import UserError, require_choice
from nrt_jax.files import write_json, write_text
from tpu_launch import shell
from tpu_launch.engines.job import make_directory
from tpu_launch.run import ROOT, Run, from_values, read_mapping, to_yaml

POLL_SECONDS = 1.0
COLUMNS = ("run", "slice", "state", "step", "restarts", "chip-hours", "cost")
KEYS = ("engine", "directory", "at_once", "run", "configs", "slices", "price_per_chip_hour")


class Entry(NamedTuple):
  """One run of a sweep."""

  run: Run
  values: dict  # what its description holds


@dataclass(frozen=True)
class Sweep:
  """What a sweep's file describes."""

  engine: str
  directory: Path
  at_once: int
  prices: dict  # slice kind -> price of a chip-hour; "" is that of every kind
  entries: list[Entry]

  def place(self, entry: Entry, ending: str) -> Path:
    return self.directory / f"{entry.run.name}.{ending}"

  def record(self, entry: Entry) -> dict:
    """How the run stands; an empty mapping where it was never started."""
    try:
      return json.loads(self.place(entry, "json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
      return {}


def read(path: str, engines) -> Sweep:
  """The sweep that a YAML file describes. UserError for every mistake in it and in its runs."""
  values = read_mapping(path)
  for key in values:
    require_choice(f"{path}: key", key, KEYS)
  require_choice(f"{path}: engine", values.get("engine"), engines)
  for key, kind in (("directory", str), ("configs", list), ("slices", list)):
    if not isinstance(values.get(key), kind) or not values[key]:
      raise UserError(f"{path}: {key}: found {values.get(key)!r}, allowed: {'a text' if kind is str else 'a list'}")
  at_once = values.get("at_once", 1)
  if not isinstance(at_once, int) or at_once < 1:
    raise UserError(f"{path}: at_once: found {at_once!r}, allowed: 1 or more")
  entries = [_entry(path, values, c, s) for c in values["configs"] for s in values["slices"]]
  names = [entry.run.name for entry in entries]
  twice = next((name for name in names if names.count(name) > 1), None)
  if twice:
    raise UserError(f"{path}: two runs are named {twice!r}; give their configs a name")
  return Sweep(values["engine"], Path(values["directory"]), at_once, _prices(path, values), entries)


def _entry(path: str, values: dict, config, piece) -> Entry:
  config = {"config": config} if isinstance(config, str) else config
  piece = {"slice": piece} if isinstance(piece, str) else piece
  base = values.get("run") or {}
  if not all(isinstance(part, dict) for part in (base, config, piece)):
    raise UserError(f"{path}: allowed in run, configs and slices: mappings of a run's keys")
  merged = {**base, **config, **piece}
  merged["overrides"] = {**(base.get("overrides") or {}), **(config.get("overrides") or {})}
  stem = config.get("name") or Path(str(config.get("config"))).stem
  merged["name"] = re.sub(r"[^a-z0-9]+", "-", f"{stem}-{piece.get('slice')}".lower()).strip("-")
  if merged.get("workdir"):
    merged["workdir"] = f"{merged['workdir']}/{merged['name']}"
  return Entry(from_values(f"{path}: {merged['name']}", merged), merged)


def _prices(path: str, values: dict) -> dict:
  found = values.get("price_per_chip_hour")
  prices = found if isinstance(found, dict) else {} if found is None else {"": found}
  for price in prices.values():
    if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 <= price < float("inf"):
      raise UserError(f"{path}: price_per_chip_hour: found {price!r}, allowed: a number, or one for each kind of slice")
  return prices


# ---- Table -----------------------------------------------------------------------------------------------------------


def state_of(record: dict, alive: bool) -> str:
  """queued, running, done or failed; a run in the engine's queue is queued as well."""
  if record.get("outcome") in ("done", "failed"):
    return record["outcome"]
  return "running" if alive and record.get("state") in ("running", "ready") else "queued"


def table(sweep: Sweep, alive=()) -> str:
  """One line for each run, and the sums."""
  rows, hours, costs = [COLUMNS], 0.0, []
  for entry in sweep.entries:
    record, run = sweep.record(entry), entry.run
    price = sweep.prices.get(run.piece.kind, sweep.prices.get(""))
    used = record.get("chip_hours", 0.0)
    hours += used
    costs += [] if price is None else [price * used]
    cost = "-" if price is None else f"{price * used:.2f}"
    state = state_of(record, run.name in alive)
    rows.append((run.name, run.slice, state, record.get("step", 0), record.get("restarts", 0), f"{used:.2f}", cost))
  rows.append(("sum", "", "", "", "", f"{hours:.2f}", f"{sum(costs):.2f}" if costs else "-"))
  widths = [max(len(str(row[i])) for row in rows) for i in range(len(COLUMNS))]
  return "\n".join("  ".join(f"{cell!s:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows)


# ---- Running ---------------------------------------------------------------------------------------------------------


class Runner:
  """Starts launchers, `at_once` at a time, and collects them."""

  def __init__(self, sweep: Sweep, retry_failed: bool = False):
    self._sweep, self._running = sweep, {}
    outcomes = ("done",) if retry_failed else ("done", "failed")
    self._waiting = [entry for entry in sweep.entries if sweep.record(entry).get("outcome") not in outcomes]

  def run(self) -> int:
    """Runs what is left of the sweep; 0 where every run is done. An interruption stops the runs under way."""
    make_directory(str(self._sweep.directory), "directory")
    with self._alone():
      try:
        shown = None
        while self._waiting or self._running:
          while self._waiting and len(self._running) < self._sweep.at_once:
            self._start(self._waiting.pop(0))
          self._collect()
          states = [state_of(self._sweep.record(e), e.run.name in self._running) for e in self._sweep.entries]
          if states != shown:
            print(table(self._sweep, self._running), end="\n\n", flush=True)
            shown = states
          time.sleep(POLL_SECONDS if self._running else 0)
      finally:
        self._stop()
    return 0 if all(self._sweep.record(e).get("outcome") == "done" for e in self._sweep.entries) else 1

  def _start(self, entry: Entry) -> None:
    description, record = self._sweep.place(entry, "yaml"), self._sweep.place(entry, "json")
    write_text(description, to_yaml(entry.values))
    write_json(record, {**self._sweep.record(entry), "outcome": None})
    argv = [sys.executable, "-m", "tpu_launch", self._sweep.engine, str(description), "--record", str(record)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(self._sweep.place(entry, "log"), "ab") as log:
      child = shell.start(
        argv, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
      )
    self._running[entry.run.name] = (child, entry)

  def _collect(self) -> None:
    for name, (child, entry) in list(self._running.items()):
      if child.poll() is None:
        continue
      del self._running[name]
      record = self._sweep.record(entry)
      if record.get("outcome") is None:  # it ended before it began, or was killed
        lines = self._sweep.place(entry, "log").read_text(encoding="utf-8", errors="replace").splitlines()
        write_json(self._sweep.place(entry, "json"), {**record, "outcome": "failed", "detail": (lines or [""])[-1]})

  def _stop(self) -> None:
    for child, _ in self._running.values():
      shell.kill(child, signal.SIGTERM)
    for child, _ in self._running.values():
      child.wait()

  @contextlib.contextmanager
  def _alone(self):
    """Raises UserError where another launcher runs this sweep."""
    with open(self._sweep.directory / "lock", "w", encoding="utf-8") as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        raise UserError(f"{self._sweep.directory}: another launcher runs this sweep") from error
      yield
