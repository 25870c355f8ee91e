"""`nrt-jax judge`: completions -> judgements of a model -> a table."""

import dataclasses
import json
import os
import re
import time

from nrt_jax.commands import output
from nrt_jax.errors import Unfinished, UserError
from nrt_jax.evaluation.judging import asking, items, prompts, summary
from nrt_jax.evaluation.judging.cache import Cache
from nrt_jax.files import json_lines, write_json, write_text
from nrt_jax.records.metrics import duration

EVERY = 10.0  # seconds between two lines that say how far it is
ENDPOINT_ONLY = ("judge", "key_env", "request", "budget_requests", "budget_tokens")
MAX_TOKENS = {True: 1024, False: 256}  # of an endpoint's reply, of a model's


def run(args) -> None:
  check(args)
  kind = prompts.PAIRWISE if len(args.completions) == 2 or args.against else prompts.SCALAR
  paired, alone = items.pair(
    items.read(args.completions[0], args.traces),
    items.read(args.completions[1], args.traces) if len(args.completions) == 2 else None,
    args.against,
    args.limit,
  )
  if any(alone):
    output.note(f"without a partner, and left out: {alone[0]:,} completions of A, {alone[1]:,} of B")
  direct = prompts.DIRECT if args.read == "probabilities" else prompts.TEMPLATES[kind]
  template = prompts.read_template(args.prompt, kind) if args.prompt else direct
  judgements = asking.plan(paired, template, kind)
  cache_path = args.cache or default_cache(args.completions[0])
  output.check_file(cache_path, "--cache")
  cache = Cache(cache_path)
  judge = open_judge(args)
  try:
    output.make_parent(cache.path)
    stopped = asking.judge_all(judge, judgements, kind, cache, Progress(len(judgements)))
  finally:
    judge.close()
  report = make_report(args, kind, judge, paired, judgements, stopped)
  write(args, report, paired, judgements)
  finish(report, stopped)


def check(args) -> None:
  """Raises UserError for flags that don't go together, and for places where nothing can be written."""
  if len(args.completions) > 2 or (len(args.completions) == 2 and args.against):
    found = f"{len(args.completions)} files" + " with --against" * bool(args.against)
    raise UserError(f"FILE: found {found}, allowed: one, one with --against, or two")
  if args.endpoint and not args.judge:
    raise UserError("--judge: found none, allowed with --endpoint: the name of the model to ask for")
  given = [name for name in ENDPOINT_ONLY if getattr(args, name) is not None]
  if given and not args.endpoint:
    raise UserError(f"--{given[0]}: found it without --endpoint, allowed: with --endpoint alone")
  if args.read == "probabilities" and (args.endpoint or (len(args.completions) == 1 and not args.against)):
    raise UserError("--read: found probabilities, allowed with a model of ours that compares pairs; else text")
  if args.step is not None and not args.checkpoint:
    raise UserError(f"--step: found {args.step!r} without --checkpoint, allowed: with --checkpoint alone")
  output.check_file(args.output, "--output")
  output.check_file(args.judgements, "--judgements")


def default_cache(path: str) -> str:
  return f"{path.removesuffix('.jsonl')}.judged.jsonl"


def open_judge(args):
  """See asking.py for what a judge is. A local one takes seconds of imports, which an endpoint need not wait for."""
  tokens = args.max_tokens or MAX_TOKENS[bool(args.endpoint)]
  if not args.endpoint:
    from nrt_jax.commands import judge_model

    return judge_model.open_model(args, tokens)
  from nrt_jax.evaluation.judging.budget import Budget
  from nrt_jax.evaluation.judging.endpoint import Endpoint

  return Endpoint(
    args.endpoint, args.judge, read_key(args.key_env), args.temperature, tokens, args.seed, read_request(args.request),
    args.timeout, args.attempts, args.concurrency, Budget(args.budget_requests, args.budget_tokens),
  )  # fmt: skip


def read_key(name: str | None) -> str | None:
  """The endpoint's key, from the environment alone: flags and configs are logged and shared."""
  if name is None:
    return None
  if not re.fullmatch(r"\w+", name):
    raise UserError("--key_env: found no name of a variable, allowed: a name such as OPENAI_API_KEY, not the key")
  key = os.environ.get(name, "").strip()
  if not key:
    raise UserError(f"--key_env: found {name}, which is not set or empty, allowed: a variable that holds the key")
  if not key.isascii() or not key.isprintable() or " " in key:
    raise UserError(f"--key_env: {name} holds characters that no key has")
  return key


def read_request(text: str | None) -> dict:
  if text is None:
    return {}
  try:
    found = json.loads(text)
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict) or "messages" in found or found.get("stream") or found.get("n", 1) != 1:
    raise UserError(f"--request: found {text!r}, allowed: a JSON object without messages, stream and n")
  return found


class Progress:
  """Says now and then how far it is, and how long it will take."""

  def __init__(self, total: int, clock=time.monotonic):
    self.total, self.clock, self.began = total, clock, clock()
    self.said, self.first = self.began, None

  def __call__(self, done: int) -> None:
    now = self.clock()
    if self.first is None:  # what the cache had took no time
      self.first = max(done - 1, 0)
    if done < self.total and now - self.said < EVERY:
      return
    self.said = now
    seconds = (now - self.began) / max(done - self.first, 1) * (self.total - done)
    output.note(f"judged {done:,} of {self.total:,}" + (f", about {duration(seconds)} left" if seconds else ""))


# ---- Output --------------------------------------------------------------------------------------------------------


def make_report(args, kind: str, judge, paired: list, judgements: list, stopped: str | None) -> dict:
  found = summary.pairwise(paired, judgements) if kind == prompts.PAIRWISE else summary.scalar(paired, judgements)
  names = [*args.completions, *filter(None, [args.against])]
  budget = getattr(judge, "budget", None)
  return {
    "kind": kind,
    **dict(zip("ab", names)),
    "judge": {"name": judge.name, **judge.identity},
    "questions": len({item.group for item in paired}),
    "items": len(paired),
    **found,
    "asked_now": sum(one.asked for one in judgements),
    "spent_now": None if budget is None else {"requests": budget.requests, "tokens": budget.tokens},
    "stopped": stopped,
  }


def write(args, report: dict, paired: list, judgements: list) -> None:
  """Prints the table and writes the requested files."""
  print(table(report))
  for path in filter(None, (args.output, args.judgements)):
    output.make_parent(path)
  if args.output:
    write_json(args.output, report)
  if args.judgements:
    lines = json_lines(line(paired[one.item], one) for one in judgements)
    write_text(args.judgements, lines, errors="backslashreplace")


def table(report: dict) -> str:
  """The metrics with their intervals, then how many judgements ended in which way."""
  what = "pairs" if report["kind"] == prompts.PAIRWISE else "answers"
  sides = " against ".join(report[side] for side in "ab" if side in report)
  lines = [f"{sides}: {report['items']:,} {what} of {report['questions']:,} questions"]
  width = max(map(len, report["metrics"]), default=0)
  for name, value in report["metrics"].items():
    pair = report["intervals"].get(name)
    lines.append(f"{name:<{width}}  {value:.4f}" + ("  [{:.4f}, {:.4f}]".format(*pair) if pair else ""))
  counts = {name: count for name, count in report["counts"].items() if count or name in ("verdicts", "unreadable")}
  lines.append(", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))
  if report["spent_now"]:
    lines.append("now: {requests:,} requests, {tokens:,} tokens".format(**report["spent_now"]))
  return "\n".join(lines)


def line(item: items.Item, one: asking.Judgement) -> dict:
  """What --judgements has of a judgement. `winner`: a or b, whichever was shown first."""
  winner = None
  if one.status == asking.READ and len(item.answers) == 2:
    winner = {1.0: "a", 0.0: "b"}.get(summary.points(one.verdict, one.swapped), "tie")
  reply = None if one.reply is None else dataclasses.asdict(one.reply)
  return {
    "question": item.question, "sample": item.sample, "order": "BA" if one.swapped else "AB", "status": one.status,
    "verdict": one.verdict, "winner": winner, "attempts": one.attempts, "why": one.why, "reply": reply,
  }  # fmt: skip


def finish(report: dict, stopped: str | None) -> None:
  """Raises Unfinished where judgements are left, or were not answered: the same command goes on."""
  counts = report["counts"]
  left = counts[asking.LEFT] + counts[asking.UNANSWERED]
  if left:
    why = stopped or "no answer to some requests"
    raise Unfinished(f"{left:,} of {counts['verdicts']:,} judgements left: {why}; the same command goes on")
