"""Counts JAX's compilations by its monitoring events, to measure whether a step is compiled only once."""

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # also for programs read from the cache
READ_FROM_CACHE = "/jax/compilation_cache/cache_hits"


class Compilations:
  """While open, `count` is the number of programs compiled in this process, `cached` how many came from the cache.

  names: the name of each, as `jit(train_step)`, in order.
  """

  def __init__(self):
    self.count = self.cached = 0
    self.names = []

  def __enter__(self):
    jax.monitoring.register_event_duration_secs_listener(self._compiled)
    jax.monitoring.register_event_listener(self._event)
    return self

  def __exit__(self, *_):
    jax.monitoring.unregister_event_duration_listener(self._compiled)
    jax.monitoring.unregister_event_listener(self._event)

  def _compiled(self, name: str, seconds: float, fun_name: str = "", **_):
    if name == COMPILED:
      self.count += 1
      self.names.append(fun_name)

  def _event(self, name: str, **_):
    self.cached += name == READ_FROM_CACHE
