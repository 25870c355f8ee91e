"""Limits hold at every moment, with threads too; what cannot fit is not begun."""

import threading

import pytest

from nrt_jax.evaluation.judging.budget import Budget, Exhausted


def spend(budget, most, cost=None):
  with budget.reserve(most) as paid:
    if cost is not None:
      paid[0] = cost


def test_requests_are_counted_and_limited():
  budget = Budget(requests=2)
  spend(budget, 10, 3)
  spend(budget, 10)
  with pytest.raises(Exhausted, match="^--budget_requests 2$"):
    spend(budget, 1)
  assert (budget.requests, budget.tokens, budget.reserved) == (2, 13, 0)


def test_a_request_whose_worst_case_does_not_fit_is_not_begun():
  budget = Budget(tokens=100)
  spend(budget, 60, 30)
  spend(budget, 70, 20)  # 30 + 70 fits
  with pytest.raises(Exhausted, match="^--budget_tokens 100$"):
    spend(budget, 51)
  with pytest.raises(Exhausted):  # and nothing else is, so that pairs are not left half judged
    spend(budget, 1)
  assert (budget.requests, budget.tokens) == (2, 50)


def test_a_failure_pays_what_it_may_have_cost():
  budget = Budget(tokens=100)
  with pytest.raises(ZeroDivisionError), budget.reserve(40):
    1 / 0
  assert budget.tokens == 40 and budget.reserved == 0


def test_who_does_not_fit_beside_others_waits_for_them():
  budget, order = Budget(tokens=100), []
  entered = threading.Event()

  def second():
    entered.set()
    spend(budget, 80, 80)
    order.append("second")

  with budget.reserve(50) as paid:
    thread = threading.Thread(target=second)
    thread.start()
    assert entered.wait(5)
    paid[0] = 10
    order.append("first")
  thread.join(5)
  assert order == ["first", "second"] and budget.tokens == 90


def test_threads_together_stay_within_the_limits():
  budget, over = Budget(requests=1000, tokens=500), []

  def work():
    try:
      while True:
        with budget.reserve(20) as paid:
          over.append(budget.tokens + budget.reserved > 500)
          paid[0] = 7
    except Exhausted:
      pass

  threads = [threading.Thread(target=work) for _ in range(8)]
  [thread.start() for thread in threads]
  [thread.join(10) for thread in threads]
  assert not any(over) and 480 < budget.tokens <= 500 and budget.tokens == 7 * budget.requests
