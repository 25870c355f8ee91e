"""A judge behind an OpenAI-compatible endpoint: chat completions over HTTP, with retries and within a budget.

What may pass by itself (429, 408, 425, 5xx, timeouts, closed connections, replies that are no chat completion) is asked
again after a wait that doubles each time, and not before a Retry-After is over. What no retry mends ends the command
(401, 403, 404, redirects) or leaves out one prompt (other 4xx). Redirects are not followed: the key goes nowhere else.
"""

import contextlib
import email.utils
import json
import random
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

import httpx2

from nrt_jax.errors import UserError
from nrt_jax.evaluation.judging.asking import Refused, Unanswered
from nrt_jax.evaluation.judging.budget import Budget
from nrt_jax.evaluation.judging.cache import Reply

PATH = "/chat/completions"
PASSING = (408, 425, 429)  # and 5xx
FATAL = (401, 402, 403, 404, 405)  # and 3xx
NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
FIRST_WAIT, LONGEST_WAIT, LONGEST_RETRY_AFTER = 0.5, 60.0, 600.0  # seconds
MOST_BYTES = 2**24  # of a reply
TEMPLATE_TOKENS = 64  # more than chat templates add to a message
OTHER_TEMPERATURE = 0.7  # at least, where an unreadable reply is asked for again


@dataclass
class Endpoint:
  """Where to ask, and how. One request at a time for each of `workers` threads."""

  url: str  # http://host/v1, with or without /chat/completions
  model: str
  key: str | None = field(default=None, repr=False)  # never in a request's body, a cache, a line or a log
  temperature: float = 0.0
  max_tokens: int = 1024  # of a reply
  seed: int = 0
  request: dict = field(default_factory=dict)  # further keys of a request; a null removes one of ours
  timeout: float = 120.0  # seconds of one request
  attempts: int = 6  # of one request
  workers: int = 4
  budget: Budget = field(default_factory=Budget)
  sleep: object = None  # seconds -> None; None: waits, until `close`
  jitter: object = random.random  # -> [0, 1)
  batch = 1  # prompts in a request

  def __post_init__(self):
    parsed = _parse(self.url)
    self.url = str(parsed).rstrip("/").removesuffix(PATH) + PATH
    self._closed = threading.Event()
    self.sleep = self.sleep or self._closed.wait
    headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
    limits = httpx2.Limits(max_connections=self.workers, max_keepalive_connections=self.workers)
    self._client = httpx2.Client(headers=headers, timeout=self.timeout, limits=limits, follow_redirects=False)

  @property
  def identity(self) -> dict:
    return {"endpoint": self.url, "model": self.model}

  @property
  def name(self) -> str:
    return self.model

  def request_for(self, prompt: str, attempt: int) -> dict:
    """The body of a request. attempt: 1 is the second try at a readable verdict, with another seed and temperature."""
    body = {
      "model": self.model,
      "messages": [{"role": "user", "content": prompt}],
      "temperature": self.temperature if attempt == 0 else max(self.temperature, OTHER_TEMPERATURE),
      "max_tokens": self.max_tokens,
      "seed": self.seed + attempt,
    }
    return {key: value for key, value in {**body, **self.request}.items() if value is not None}

  def ask(self, requests: list) -> list:
    """[Reply], or what this prompt is left out for: Refused, Unanswered. Exhausted and UserError end all asking."""
    (request,) = requests
    why = "nothing"
    for attempt in range(self.attempts):
      try:
        return [self._once(request)]
      except Refused as refused:
        return [refused]
      except _Passing as passing:
        why, wait = str(passing), passing.wait
      if self._closed.is_set() or attempt + 1 == self.attempts or wait > LONGEST_RETRY_AFTER:
        break
      doubled = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
      self.sleep(max(wait, doubled * (0.5 + self.jitter() / 2)))
    return [Unanswered(f"{self.url}: {why}")]

  def close(self) -> None:
    """Ends waiting and asking, of other threads too."""
    self._closed.set()
    self._client.close()

  def _once(self, request: dict) -> Reply:
    """One request. What it costs is counted: as the endpoint says, else at its worst, a token for each byte."""
    sent = sum(len(message["content"].encode()) for message in request["messages"]) + TEMPLATE_TOKENS
    with self.budget.reserve(sent + self.max_tokens) as cost:
      try:
        status, headers, text = self._post(request)
      except _Passing as passing:
        cost[0] = sent + self.max_tokens if passing.sent else 0
        raise
      if status // 100 != 2:
        cost[0] = 0
        self._refuse(status, headers, text)
      reply = _read(text)
      cost[0] = reply.tokens or sent + len(reply.text.encode())
    return reply

  def _post(self, request: dict):
    """(status, headers, body). The timeout is for all of it, so that a reply that trickles in ends, too."""
    ends = time.monotonic() + self.timeout
    try:
      with self._client.stream("POST", self.url, json=request) as response:
        body = bytearray()
        for part in response.iter_bytes():
          body += part
          if time.monotonic() > ends:
            raise _Passing(f"no whole reply within {self.timeout:g} s")
          if len(body) > MOST_BYTES:
            raise _Passing(f"a reply of more than {MOST_BYTES} bytes")
        return response.status_code, response.headers, body.decode("utf-8", "replace")
    except NEVER_SENT as error:
      raise _Passing(self._safe(f"{type(error).__name__}: {error}"), sent=False) from error
    except httpx2.TimeoutException as error:
      raise _Passing(f"no reply within {self.timeout:g} s") from error
    except (httpx2.HTTPError, httpx2.StreamError, RuntimeError) as error:  # RuntimeError: closed by `close`
      raise _Passing(self._safe(f"{type(error).__name__}: {error}")) from error

  def _refuse(self, status: int, headers, text: str):
    """Raises what a status other than 2xx means."""
    said = self._safe(f"{status}: {_message(text)}")
    if status in PASSING or status >= 500:
      raise _Passing(said, _retry_after(headers.get("retry-after")))
    if status in FATAL or status < 400:
      raise UserError(f"--endpoint: {self.url}: found {said}, allowed: one that answers chat completions")
    raise Refused(f"{self.url}: {said}")

  def _safe(self, text: str) -> str:
    """A short line without the key, which servers like to quote."""
    text = text if not self.key else text.replace(self.key, "***")
    return " ".join(text.split())[:200]


class _Passing(Exception):
  """A failure that may pass. wait: seconds before which asking again is no use; sent: it may have cost something."""

  def __init__(self, why: str, wait: float = 0.0, sent: bool = True):
    super().__init__(why)
    self.wait, self.sent = wait, sent


def _parse(url: str):
  try:
    urllib.parse.urlsplit(url).port  # finds what the next line lets pass
    parsed = httpx2.URL(url)
  except (ValueError, httpx2.InvalidURL):
    parsed = None
  if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
    raise UserError(f"--endpoint: found {url!r}, allowed: http://HOST:PORT/v1 or https://HOST/v1")
  if parsed.userinfo or parsed.query:
    raise UserError("--endpoint: found a URL with a password or a query, allowed: none; see --key_env")
  return parsed


def _read(text: str) -> Reply:
  """The Reply that a chat completion holds."""
  try:
    found = json.loads(text)
    choice = found["choices"][0]
    content, reason = choice["message"].get("content"), choice.get("finish_reason")
    usage = found.get("usage") or {}
    tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
  except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
    raise _Passing(f"a reply that is no chat completion: {' '.join(text.split())[:80]!r}") from error
  content = content if isinstance(content, str) else ""  # null where a model refuses, or spent its tokens on thinking
  counted = sum(tokens) if all(isinstance(one, int) and one >= 0 for one in tokens) else 0
  return Reply(content.encode("utf-8", "replace").decode(), reason != "length", counted)


def _message(text: str) -> str:
  """What an error says, in whichever form."""
  with contextlib.suppress(ValueError, RecursionError):
    found = json.loads(text)
    inner = found.get("error", found) if isinstance(found, dict) else found
    said = inner.get("message", inner) if isinstance(inner, dict) else inner
    return said if isinstance(said, str) else json.dumps(said)
  return text


def _retry_after(value: str | None) -> float:
  """Seconds, of a number or a date; 0 where there is neither."""
  if value is None:
    return 0.0
  try:
    seconds = float(value)
  except ValueError:
    try:
      seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError):
      seconds = 0.0
  return max(0.0, seconds) if seconds == seconds else 0.0
