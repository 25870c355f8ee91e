"""Asks a judge about every item, in both orders, and each only once.

A judge has
  identity      what its replies depend on besides the request; no secrets
  name          for people
  batch         requests that it takes at a time
  workers       threads that may ask it at once; 0: it is asked in this one
  request_for(prompt, attempt) -> request, as JSON: all that the reply depends on
  ask(requests) -> a Reply each, or Refused or Unanswered for one that is left out
  close()
"""

import queue
import threading
from collections import deque
from dataclasses import dataclass

from nrt_jax.evaluation.judging import cache as caches
from nrt_jax.evaluation.judging import prompts
from nrt_jax.evaluation.judging.budget import Exhausted
from nrt_jax.evaluation.judging.items import Item

READ, UNREADABLE, REFUSED, UNANSWERED, LEFT = "read", "unreadable", "refused", "unanswered", "left"
ATTEMPTS = 2  # at a readable verdict
PATIENCE = 3  # prompts without an answer, in a row, after which an endpoint counts as gone; at least one per worker


class Refused(Exception):
  """The judge does not take this prompt; the message says why."""


class Unanswered(Exception):
  """There was no answer to this prompt, however often it was asked for."""


@dataclass
class Judgement:
  """What came of asking about an item."""

  item: int  # its number
  swapped: bool  # B's answer was shown first
  prompt: str
  status: str = LEFT
  verdict: str | int | None = None  # as prompts.read_verdict: of what was shown, not of A and B as files
  reply: caches.Reply | None = None
  attempts: int = 0  # replies that were read
  asked: int = 0  # of these, those that were asked for just now
  why: str = ""  # of one that was refused or not answered


def plan(items: list[Item], template: str, kind: str) -> list[Judgement]:
  """What is to be asked: both orders of a pair behind one another; nothing where `without_judge` knows."""
  orders = (False, True) if kind == prompts.PAIRWISE else (False,)
  return [
    Judgement(i, swapped, prompts.fill(template, item, swapped))
    for i, item in enumerate(items)
    if without_judge(item) is None
    for swapped in orders
  ]


def without_judge(item: Item):
  """The verdict where nobody need be asked: a missing answer loses and has the lowest score, equal ones are a tie.

  None elsewhere. A: the first file's answer wins; B: the other.
  """
  first, *second = item.answers
  if not second:
    return prompts.SCORES[0] if first is None else None
  if first is None or second[0] is None:
    return prompts.TIE if first is second[0] else prompts.B if first is None else prompts.A
  return prompts.TIE if first.split() == second[0].split() else None


def judge_all(judge, judgements: list[Judgement], kind: str, cache, progress=None) -> str | None:
  """Fills the judgements. Returns why some are left, or None.

  A reply without a verdict is asked for once more, as `judge.request_for` has it. progress: called with the number of
  judgements that are done after each reply.
  """
  waiting = deque()
  for one in judgements:
    _take(one, judge, kind, cache, waiting)
  pool = _Pool(judge)
  try:
    return _ask_all(pool, judgements, judge, kind, cache, waiting, progress)
  finally:
    pool.stop()


def _ask_all(pool, judgements: list, judge, kind: str, cache, waiting, progress) -> str | None:
  stopped, silent = None, 0
  while waiting or pool.running:
    while waiting and stopped is None and pool.running < max(1, judge.workers):
      batch = _next(judge, kind, cache, waiting)
      if batch:
        pool.submit(batch)
    if not pool.running:
      break
    batch, found = pool.next()
    if isinstance(found, Exhausted):
      stopped = stopped or f"{found} is spent"
      waiting.extend(batch)
      continue
    if isinstance(found, BaseException):
      raise found
    for (one, key), reply in zip(batch, found, strict=True):
      silent = silent + 1 if isinstance(reply, Unanswered) else 0
      _keep(one, key, reply, judge, kind, cache, waiting)
      if silent >= max(PATIENCE, judge.workers):
        stopped = stopped or f"no answer to {silent} requests in a row: {reply}"
    if progress is not None:
      progress(len(judgements) - len(waiting) - pool.asking)
  return stopped


def _take(one: Judgement, judge, kind: str, cache, waiting) -> None:
  """Reads what the cache has of a judgement; what is still to be asked goes behind the others."""
  while one.attempts < ATTEMPTS and one.status in (LEFT, UNREADABLE):
    key = caches.key_of(judge.identity, judge.request_for(one.prompt, one.attempts))
    reply = cache.get(key)
    if reply is None:
      one.status = LEFT
      waiting.append((one, key))
      return
    _read(one, reply, kind)


def _next(judge, kind: str, cache, waiting) -> list:
  """The next batch to ask for, without what has been answered since it began to wait: equal prompts are asked once."""
  batch = []
  while waiting and len(batch) < judge.batch:
    one, key = waiting.popleft()
    if cache.get(key) is None:
      batch.append((one, key))
    else:
      _take(one, judge, kind, cache, waiting)
  return batch


def _keep(one: Judgement, key: str, reply, judge, kind: str, cache, waiting) -> None:
  """Takes what a judge answered just now."""
  if isinstance(reply, Exception):
    one.status, one.why = REFUSED if isinstance(reply, Refused) else UNANSWERED, str(reply)
    return
  cache.put(key, reply, judge.name)
  one.asked += 1
  _read(one, reply, kind)
  _take(one, judge, kind, cache, waiting)


def _read(one: Judgement, reply: caches.Reply, kind: str) -> None:
  one.attempts, one.reply = one.attempts + 1, reply
  if reply.probabilities:
    one.verdict = prompts.VERDICTS[max(range(len(prompts.VERDICTS)), key=reply.probabilities.__getitem__)]
  else:
    one.verdict = prompts.read_verdict(kind, reply.text, reply.finished)
  one.status = UNREADABLE if one.verdict is None else READ


class _Pool:
  """Threads that ask. They are daemons, so that Ctrl-C need not wait for requests that are under way."""

  def __init__(self, judge):
    self.judge, self.running, self.asking = judge, 0, 0  # batches under way, and requests in them
    self._tasks, self._results = queue.SimpleQueue(), queue.SimpleQueue()
    for _ in range(judge.workers):
      threading.Thread(target=self._work, daemon=True).start()

  def submit(self, batch: list) -> None:
    self.running, self.asking = self.running + 1, self.asking + len(batch)
    self._tasks.put(batch)
    if self.judge.workers == 0:
      self._one()

  def stop(self) -> None:
    """Lets each thread end as soon as it has its reply."""
    for _ in range(self.judge.workers):
      self._tasks.put(None)

  def next(self) -> tuple:
    """(a batch, its replies or the exception that ended it)."""
    batch, found = self._results.get()
    self.running, self.asking = self.running - 1, self.asking - len(batch)
    return batch, found

  def _work(self) -> None:
    while self._one():
      pass

  def _one(self) -> bool:
    """Asks for the next batch. False where there is none any more."""
    batch = self._tasks.get()
    if batch is None:
      return False
    try:
      found = self.judge.ask([self.judge.request_for(one.prompt, one.attempts) for one, _ in batch])
    except Exception as error:  # raised where it can be seen
      found = error
    self._results.put((batch, found))
    return True
