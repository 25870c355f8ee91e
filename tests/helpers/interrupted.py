"""Runs that a signal stops."""

import contextlib
import signal

from nrt_jax.records.metrics import MetricsWriter


@contextlib.contextmanager
def stopping_at(monkeypatch, stop_at: int):
  """While open, a run gets SIGTERM once the metrics of training step `stop_at` are written."""
  write = MetricsWriter.write

  def write_then_stop(self, step, metrics):
    write(self, step, metrics)
    if step == stop_at and "loss/total" in metrics:
      signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(MetricsWriter, "write", write_then_stop)
    yield
