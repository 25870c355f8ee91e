"""What the sample browser shows of samples.jsonl, as one compact line of JSON for each sample."""

import json
import pathlib

from nrt_jax.errors import UserError
from nrt_jax.files import json_safe

DIGITS = 4
# The least change of each shade, the same on all pages: of log p(answer) by a trace token in nats, and of an answer
# token's probability by the trace.
NATS, SHARES = (0.1, 0.3, 1.0, 3.0, 10.0), (0.1, 0.3, 0.5, 0.7, 0.9)
TEXTS, NUMBERS = ("question", "trace"), ("c", "c_empty_trace", "trace_moved")


def read(directory: str) -> list[dict]:
  """The samples of a run, those of a line that is still being written left out; none without samples.jsonl."""
  path = pathlib.Path(directory) / "samples.jsonl"
  if not path.is_file():
    return []
  return [_read_line(f"{path}:{at}", text) for at, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1)]


def _read_line(where: str, text: bytes) -> dict:
  try:
    line = json.loads(text)
  except ValueError as error:
    raise UserError(f"{where}: not JSON: {error}") from error
  if not isinstance(line, dict) or not isinstance(line.get("step"), int):
    raise UserError(f'{where}: found {text.decode(errors="replace")[:60]!r}, allowed: {{"step": NUMBER, ...}}')
  for key, fits, allowed in (
    *((key, isinstance(line.get(key, ""), str), "text") for key in TEXTS),
    *((key, _are(line.get(key, []), str), "a list of texts") for key in ("trace_tokens", "answer_tokens")),
    *((key, _are(line.get(key, []), int, float, type(None)), "a list of numbers") for key in NUMBERS),
    ("trace_moved_every", _is_count(line.get("trace_moved_every", 1)), "1 or more"),
  ):
    if not fits:
      raise UserError(f"{where}: {key}: found {line[key]!r:.60}, allowed: {allowed}")
  return line


def _is_count(value) -> bool:
  return isinstance(value, int) and value >= 1


def _are(values, *kinds) -> bool:
  return isinstance(values, list) and all(isinstance(value, kinds) for value in values)


def compact(line: dict) -> dict:
  """A sample under short names, its numbers rounded; what it does not have is left out.

    q question   t trace tokens   m what each stretch of e of them moved (nats)
    a answer tokens   c their probabilities   b the same behind an empty trace   r reward   v advantage
  """
  found = {
    "q": line.get("question", ""),
    "t": line.get("trace_tokens") or [text for text in [line.get("trace", "")] if text],
    "a": line.get("answer_tokens", []),
    "m": _rounded(line.get("trace_moved")),
    "e": line.get("trace_moved_every", 1) if "trace_moved" in line else None,
    "c": _rounded(line.get("c")),
    "b": _rounded(line.get("c_empty_trace")),
    "r": _rounded(line.get("reward")),
    "v": _rounded(line.get("advantage")),
  }
  return {key: value for key, value in found.items() if value is not None}


def _rounded(value):
  if isinstance(value, list):
    return [_rounded(item) for item in value]
  return round(value, DIGITS) if isinstance(value, float) else value


def thinned(found: list[list[dict]], most: int) -> tuple[list[list[dict]], int]:
  """The samples of each run of every k-th of its steps that has any, counted from its last one: (samples, k).

  k is as small as `most` samples of all runs together allow; each run's last step is always kept.
  """
  steps = [sorted({line["step"] for line in own}) for own in found]
  longest = max(map(len, steps), default=1)
  every = min(max(1, sum(map(len, found)) // most), longest)
  while True:
    kept = [set(own[::-1][::every]) for own in steps]
    left = [[line for line in own if line["step"] in keep] for own, keep in zip(found, kept)]
    if sum(map(len, left)) <= most or every == longest:
      return left, every
    every += 1


def index(found: list[dict]) -> list[list[int]]:
  """[[step, samples of it], ...] of samples in order of their steps."""
  counts = {}
  for line in found:
    counts[line["step"]] = counts.get(line["step"], 0) + 1
  return [[step, count] for step, count in counts.items()]


def encoded(value) -> str:
  """JSON in one line that may stand inside a script element of HTML."""
  text = json.dumps(json_safe(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
  return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
