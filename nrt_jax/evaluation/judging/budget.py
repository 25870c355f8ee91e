"""Hard limits on what an endpoint is asked: a request is sent only if its worst case still fits."""

import contextlib
import threading


class Exhausted(Exception):
  """The budget is spent. The message says which."""


class Budget:
  """At most so many requests and tokens; None: no limit. Threads may share one.

  A request reserves what it can cost at most, waits where only others that are under way stand in its way, and pays
  what it did cost.
  """

  def __init__(self, requests: int | None = None, tokens: int | None = None):
    self.limits = {"requests": requests, "tokens": tokens}
    self.requests = self.tokens = self.reserved = 0
    self.spent: str | None = None  # which limit was met; nothing is sent from then on
    self._changed = threading.Condition()

  @contextlib.contextmanager
  def reserve(self, most: int):
    """The context of one request that costs `most` tokens or fewer; what it did cost is set in the list given.

    Raises Exhausted instead of letting it go beyond a limit. Where nothing is set, the whole reservation is paid.
    """
    with self._changed:
      self._wait(most)
      self.requests += 1
      self.reserved += most
    cost = [most]
    try:
      yield cost
    finally:
      with self._changed:
        self.reserved -= most
        self.tokens += cost[0]
        self._changed.notify_all()

  def _wait(self, most: int) -> None:
    requests, tokens = self.limits.values()
    while self.spent is None:
      if requests is not None and self.requests >= requests:
        self.spent = f"--budget_requests {requests}"
      elif tokens is None or self.tokens + self.reserved + most <= tokens:
        return
      elif not self.reserved:
        self.spent = f"--budget_tokens {tokens}"
      else:
        self._changed.wait()
    self._changed.notify_all()
    raise Exhausted(self.spent)
