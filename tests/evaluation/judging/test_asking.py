"""Each judgement is asked for once: not if the cache has it, once more if it is unreadable; what is left is known."""

import threading
import time

import judges
import pytest

from nrt_jax.errors import UserError
from nrt_jax.evaluation.judging import asking, prompts
from nrt_jax.evaluation.judging.budget import Exhausted
from nrt_jax.evaluation.judging.cache import Cache, Reply
from nrt_jax.evaluation.judging.items import Item

ITEMS = [Item(f"q{i}", None, (f"a{i}" * (1 + i), f"b{i}"), 0, i) for i in range(4)]
PAIRWISE = prompts.TEMPLATES[prompts.PAIRWISE]


class Says:
  """A judge that replies as a function of (prompt, attempt) says; exceptions are raised if they end all asking."""

  name, identity = "says", {"model": "says"}

  def __init__(self, reply, batch=1, workers=0):
    self.reply, self.batch, self.workers, self.asked, self.sizes = reply, batch, workers, [], []

  def request_for(self, prompt, attempt):
    return {"prompt": prompt, "attempt": attempt}

  def ask(self, requests):
    self.sizes.append(len(requests))
    self.asked += requests
    made = [self.reply(request["prompt"], request["attempt"]) for request in requests]
    for one in made:
      if isinstance(one, (Exhausted, UserError)):
        raise one
    return [Reply(one) if isinstance(one, str) else one for one in made]


def by_length(prompt, attempt):
  return judges.longest({"messages": [{"content": prompt}]}, 0)


def judged(judge, items=ITEMS, cache=None, kind=prompts.PAIRWISE, progress=None):
  found = asking.plan(items, PAIRWISE if kind == prompts.PAIRWISE else prompts.TEMPLATES[kind], kind)
  return found, asking.judge_all(judge, found, kind, cache or Cache(None), progress)


@pytest.mark.parametrize("batch,workers", [(1, 0), (3, 0), (1, 4)])
def test_every_pair_is_asked_about_in_both_orders(batch, workers):
  judge, seen, threads = Says(by_length, batch, workers), [], threading.active_count()
  found, stopped = judged(judge, progress=seen.append)
  assert stopped is None and len(judge.asked) == len({one["prompt"] for one in judge.asked}) == 8
  assert [(one.item, one.swapped) for one in found] == [(i, swapped) for i in range(4) for swapped in (False, True)]
  assert [one.verdict for one in found] == ["tie", "tie", *["A", "B"] * 3]
  assert all((one.status, one.attempts, one.asked) == (asking.READ, 1, 1) for one in found)
  assert seen[-1] == 8 and seen == sorted(seen) and max(judge.sizes) == batch
  deadline = time.monotonic() + 5
  while threading.active_count() > threads and time.monotonic() < deadline:
    time.sleep(0.01)
  assert threading.active_count() == threads  # none is left behind


def test_nobody_is_asked_where_the_outcome_is_clear():
  clear = [Item("q", None, answers, 0, 0) for answers in ((None, "b"), ("a", None), (None, None), ("a b", " a  b\n"))]
  assert [asking.without_judge(one) for one in clear] == ["B", "A", "tie", "tie"]
  assert judged(Says(None), clear) == ([], None)
  alone = [Item("q", None, (answer,), 0, 0) for answer in (None, "a")]
  assert [asking.without_judge(one) for one in alone] == [1, None]


@pytest.mark.parametrize(
  "first,status,verdict,attempts",
  [
    ("I like both.", asking.READ, "B", 2),
    ("Verdict: A\nbut who am I to say", asking.READ, "B", 2),
    ("Verdict: A", asking.READ, "A", 1),
  ],
)
def test_an_unreadable_reply_is_asked_for_once_more(first, status, verdict, attempts):
  judge = Says(lambda prompt, attempt: first if attempt == 0 else "Verdict: B")
  found, _ = judged(judge, ITEMS[:1])
  assert [(one.status, one.verdict, one.attempts) for one in found] == [(status, verdict, attempts)] * 2
  assert [one["attempt"] for one in judge.asked] == [0, 0, 1, 1][: 2 * attempts]


def test_what_stays_unreadable_is_neither_dropped_nor_a_tie(tmp_path):
  path = str(tmp_path / "c")
  judge = Says(lambda prompt, attempt: "Verdict: A or B")
  found, stopped = judged(judge, ITEMS[:1], Cache(path))
  assert stopped is None and [(one.status, one.verdict, one.attempts) for one in found] == [("unreadable", None, 2)] * 2
  again = Says(None)
  found, _ = judged(again, ITEMS[:1], Cache(path))
  assert [(one.status, one.attempts, one.asked) for one in found] == [("unreadable", 2, 0)] * 2 and not again.asked


def test_a_rerun_asks_only_what_is_left(tmp_path):
  path, judge = str(tmp_path / "c"), Says(by_length)
  judged(judge, ITEMS[:2], Cache(path))
  again = Says(by_length)
  found, _ = judged(again, ITEMS, Cache(path))
  assert {one["prompt"] for one in again.asked} == {one.prompt for one in found if one.item >= 2}
  assert [one.asked for one in found] == [0] * 4 + [1] * 4 and all(one.status == asking.READ for one in found)


def test_equal_prompts_are_asked_once():
  twins = [Item("q", None, ("long answer", "short"), sample, 0) for sample in range(3)]
  judge = Says(by_length)
  found, _ = judged(judge, twins)
  assert len(judge.asked) == 2 and [one.verdict for one in found] == ["A", "B"] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_spent_budget_leaves_the_rest(workers):
  judge = Says(None, workers=workers)
  spent = Exhausted("--budget_requests 5")
  judge.reply = lambda prompt, attempt: by_length(prompt, 0) if len(judge.asked) <= 5 else spent
  found, stopped = judged(judge)
  assert stopped == "--budget_requests 5 is spent"
  assert sum(one.status == asking.READ for one in found) == 5 and sum(one.status == asking.LEFT for one in found) == 3


def test_what_is_refused_or_not_answered_is_known():
  replies = {0: asking.Refused("too long"), 1: asking.Unanswered("500")}
  judge = Says(lambda prompt, attempt: replies.get(int(prompt.partition("\nq")[2][0]), "Verdict: A"))
  found, stopped = judged(judge)
  assert [one.status for one in found] == ["refused"] * 2 + ["unanswered"] * 2 + ["read"] * 4 and stopped is None
  assert [one.why for one in found] == ["too long"] * 2 + ["500"] * 2 + [""] * 4


def test_an_endpoint_that_is_gone_is_not_asked_for_ever():
  judge = Says(lambda *_: asking.Unanswered("no reply within 1 s"))
  found, stopped = judged(judge)
  assert stopped == "no answer to 3 requests in a row: no reply within 1 s" and len(judge.asked) == 3
  assert [one.status for one in found] == ["unanswered"] * 3 + ["left"] * 5


@pytest.mark.parametrize("workers", [0, 2])
def test_what_no_retry_mends_is_raised(workers, tmp_path):
  path = str(tmp_path / "c")
  judge = Says(None, workers=workers)
  judge.reply = lambda *_: "Verdict: A" if len(judge.asked) <= 2 else UserError("401")
  with pytest.raises(UserError, match="401"):
    judged(judge, cache=Cache(path))
  assert len(Cache(path).replies) == 2  # what came before is kept


def test_scores_are_read_by_their_own_form():
  alone = [Item("q", None, ("a",), 0, 0)]
  assert judged(Says(lambda *_: "Good.\nScore: 8"), alone, kind=prompts.SCALAR)[0][0].verdict == 8
  assert judged(Says(lambda *_: "Verdict: A"), alone, kind=prompts.SCALAR)[0][0].status == "unreadable"


def test_probabilities_name_the_likeliest_verdict():
  found, _ = judged(Says(lambda *_: Reply("", probabilities=(0.2, 0.5, 0.3))), ITEMS[:1])
  assert [one.verdict for one in found] == ["B", "B"]
