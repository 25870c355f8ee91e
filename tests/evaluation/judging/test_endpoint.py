"""An endpoint that fails, stalls, rambles or hangs up: what is asked again, what it costs, and that no key gets out."""

import email.utils
import time

import judges
import pytest

from nrt_jax.errors import UserError
from nrt_jax.evaluation.judging.asking import Refused, Unanswered
from nrt_jax.evaluation.judging.budget import Budget, Exhausted
from nrt_jax.evaluation.judging.cache import Reply
from nrt_jax.evaluation.judging.endpoint import Endpoint, _retry_after

FAST = 0.15  # seconds of a request, where it shall fail


def make(url, waits=None, **settings):
  """An Endpoint that notes its waits instead of waiting."""
  waits = [] if waits is None else waits
  settings = {"attempts": 4, "workers": 1, "max_tokens": 50, "timeout": 5.0, **settings}
  return Endpoint(url, "m", sleep=waits.append, jitter=lambda: 1.0, **settings)


def ask(endpoint, prompt="compare"):
  try:
    (found,) = endpoint.ask([endpoint.request_for(prompt, 0)])
    return found
  finally:
    endpoint.close()


def after(failures, then="Verdict: A"):
  """A judge that fails so often first."""
  return lambda body, number: failures[number] if number < len(failures) else then


def test_a_request_is_a_chat_completion():
  with judges.serving(lambda *_: judges.said("Verdict: B", usage={"prompt_tokens": 7, "completion_tokens": 3})) as (
    url, asked,
  ):  # fmt: skip
    endpoint = make(url, key="secret", temperature=0.2, seed=5, request={"top_p": 0.9, "seed": None})
    assert ask(endpoint) == Reply("Verdict: B", True, 10)
  assert asked == [{
    "path": "/v1/chat/completions",
    "authorization": "Bearer secret",
    "body": {"model": "m", "messages": [{"role": "user", "content": "compare"}], "temperature": 0.2, "max_tokens": 50,
             "top_p": 0.9},
  }]  # fmt: skip
  assert (endpoint.budget.tokens, endpoint.budget.requests) == (10, 1)
  assert "secret" not in repr(endpoint) + str(endpoint.identity)
  assert make(url + "/chat/completions/").url == endpoint.url == url + "/chat/completions"


def test_another_try_at_a_verdict_has_another_seed_and_temperature():
  endpoint = make("http://localhost/v1", seed=3)
  first, second = (endpoint.request_for("p", attempt) for attempt in (0, 1))
  assert (first["temperature"], first["seed"]) == (0, 3) and (second["temperature"], second["seed"]) == (0.7, 4)
  assert make("http://localhost/v1", temperature=1.2).request_for("p", 1)["temperature"] == 1.2


@pytest.mark.parametrize(
  "failure",
  [
    judges.Fails(500, "oops"), judges.Fails(429, {"error": {"message": "slow down"}}), judges.Fails(503), judges.CLOSE,
    judges.stalls(3 * FAST, "late"), judges.Trickles("Verdict: A", FAST / 10), b"{not json", b"[]", b'{"choices": []}',
    b'{"choices": [{"message": null}]}', {"error": {"message": "overloaded"}}, b"\xff\xfe",
  ],
  ids=["500", "429", "503", "closed", "stalls", "trickles", "no json", "list", "no choice", "null", "error", "bytes"],
)  # fmt: skip
def test_what_may_pass_is_asked_again(failure):
  slow = callable(failure) or isinstance(failure, judges.Trickles)
  with judges.serving(after([failure] * 2)) as (url, asked):
    waits = []
    assert ask(make(url, waits, timeout=FAST if slow else 5.0)).text == "Verdict: A"
    assert len(asked) == 3 and waits == [0.5, 1.0]


def test_waits_double_up_to_a_minute_and_vary():
  with judges.serving(lambda *_: judges.Fails(500, "oops")) as (url, asked):
    waits = []
    found = ask(make(url, waits, attempts=10))
    assert isinstance(found, Unanswered) and "500: oops" in str(found)
    assert len(asked) == 10 and waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    waits.clear()
    endpoint = make(url, waits, attempts=2)
    endpoint.jitter = lambda: 0.0
    ask(endpoint)
    assert waits == [0.25]


def test_retry_after_is_honoured():
  with judges.serving(after([judges.Fails(429, Retry_After="7"), judges.Fails(503, Retry_After="0.1")])) as (url, _):
    waits = []
    assert ask(make(url, waits)).text == "Verdict: A"
    assert waits == [7, 1.0]
  with judges.serving(lambda *_: judges.Fails(429, "come tomorrow", Retry_After="86400")) as (url, asked):
    assert isinstance(ask(make(url, waits)), Unanswered) and len(asked) == 1 and len(waits) == 2
  date = email.utils.formatdate(time.time() + 90, usegmt=True)
  assert 85 < _retry_after(date) <= 90
  assert [_retry_after(value) for value in (None, "soon", "-3", "nan", "2.5")] == [0, 0, 0, 0, 2.5]


def test_any_success_is_read():
  with judges.serving(lambda *_: judges.Fails(201, judges.said("Verdict: A"))) as (url, _):
    assert ask(make(url)).text == "Verdict: A"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_is_not_taken_is_left_out(status):
  with judges.serving(lambda *_: judges.Fails(status, {"error": {"message": "too long"}})) as (url, asked):
    found = ask(make(url))
    assert isinstance(found, Refused) and f"{status}: too long" in str(found) and len(asked) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404, 302])
def test_what_no_retry_mends_ends_in_one_line_without_the_key(status):
  said = {"error": {"message": "Incorrect API key provided: sk-12345.\nSee the docs"}}
  with judges.serving(lambda *_: judges.Fails(status, said, Location="http://elsewhere.invalid/")) as (url, asked):
    with pytest.raises(UserError) as raised:
      ask(make(url, key="sk-12345"))
    assert f"found {status}: Incorrect API key provided: ***. See the docs" in str(raised.value) and len(asked) == 1


def test_nobody_there():
  with judges.serving(judges.longest) as (url, _):
    pass  # nobody listens any more
  endpoint = make(url, attempts=2)
  found = ask(endpoint)
  assert isinstance(found, Unanswered) and "ConnectError" in str(found)
  assert (endpoint.budget.requests, endpoint.budget.tokens) == (2, 0)


def test_a_reply_that_was_cut_or_is_empty():
  replies = [judges.said("Verdict: A", "length"), judges.said(None), judges.said("a\ud800")]
  with judges.serving(after(replies)) as (url, _):
    endpoint = make(url)
    found = [endpoint.ask([endpoint.request_for("p", 0)])[0] for _ in range(3)]
    assert [(one.text, one.finished) for one in found] == [("Verdict: A", False), ("", True), ("a?", True)]
    endpoint.close()


def test_the_budget_counts_what_the_endpoint_says_else_the_worst_case():
  """Prompt of 7 bytes: at most 7 + 64 + 50 tokens."""
  usage = {"prompt_tokens": 11, "completion_tokens": 4}
  replies = [judges.said("Verdict: A", usage=usage), "four", judges.Fails(500), judges.CLOSE, "four"]
  with judges.serving(lambda body, number: replies[number]) as (url, asked):
    endpoint = make(url, budget=Budget(requests=5))
    spent = []
    for _ in range(3):
      endpoint.ask([endpoint.request_for("compare", 0)])
      spent.append(endpoint.budget.tokens)
    assert spent == [15, 15 + 71 + 4, 90 + 121 + 75] and len(asked) == 5
    with pytest.raises(Exhausted, match="--budget_requests 5"):
      endpoint.ask([endpoint.request_for("compare", 0)])
    endpoint.close()
  with judges.serving(lambda *_: "Verdict: A") as (url, asked):
    with pytest.raises(Exhausted, match="--budget_tokens 120"):
      ask(make(url, budget=Budget(tokens=120)))
    assert not asked and ask(make(url, budget=Budget(tokens=121))).text == "Verdict: A"


def test_closing_ends_the_waiting_of_another_thread():
  with judges.serving(lambda *_: judges.Fails(500)) as (url, asked):
    endpoint = Endpoint(url, "m", attempts=3)
    endpoint.close()
    began = time.monotonic()
    assert isinstance(endpoint.ask([endpoint.request_for("p", 0)])[0], Unanswered)
    assert time.monotonic() - began < 0.4 and len(asked) == 0


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "http://[x", "http://x:99999", ""])
def test_urls_that_are_none(url):
  with pytest.raises(UserError, match="--endpoint: found .*, allowed: http://HOST:PORT/v1"):
    make(url)


@pytest.mark.parametrize("url", ["http://me:secret@localhost/v1", "http://localhost/v1?key=secret"])
def test_a_url_holds_no_secrets(url):
  with pytest.raises(UserError) as raised:
    make(url)
  assert "secret" not in str(raised.value) and "--key_env" in str(raised.value)
