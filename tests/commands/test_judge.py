"""`nrt-jax judge` against fake endpoints, from files of completions to the table; and what a kill leaves."""

import json
import os
import signal
import subprocess
import sys
import threading

import judges
import pytest
from paths import ROOT

from nrt_jax import __main__
from nrt_jax.commands import judge as command
from nrt_jax.evaluation.judging.cache import Cache

A = {"q0": "a long answer", "q1": "short", "q2": [None, "the same"], "q3": "quite a long answer"}
B = {"q0": "b short", "q1": "b is longer", "q2": ["there", "the  same"], "q3": "b"}


@pytest.fixture
def place(tmp_path):
  judges.write(tmp_path / "a.jsonl", A)
  judges.write(tmp_path / "b.jsonl", B)
  return tmp_path


def argv(place, url, *more, files="ab"):
  files = [str(place / f"{name}.jsonl") for name in files]
  return ["judge", *files, "--endpoint", url, "--judge", "m", *map(str, more)]


def run(place, url, *more, code=0, files="ab"):
  """The report."""
  assert __main__.main(argv(place, url, "--output", place / "out.json", *more, files=files)) == code
  return json.loads((place / "out.json").read_text())


def refused(arguments, capsys) -> str:
  capsys.readouterr()
  assert __main__.main(arguments) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.startswith("nrt-jax: ") and err.count("\n") == 1
  return err


def test_two_files_are_compared_in_both_orders(place, capsys):
  with judges.serving(judges.longest) as (url, asked):
    report = run(place, url, "--judgements", place / "each.jsonl")
  metrics, counts = report["metrics"], report["counts"]
  assert (metrics["win"], metrics["tie"], metrics["loss"]) == (0.4, 0.2, 0.4) and metrics["consistent"] == 1
  assert (metrics["first_named"], metrics["longer_wins"]) == (0.5, 1)
  assert (counts["compared"], counts["without_judge"], counts["verdicts"], counts["read"]) == (5, 2, 6, 6)
  assert (report["questions"], report["items"], len(asked), report["spent_now"]["requests"]) == (4, 5, 6, 6)
  out, err = capsys.readouterr()
  assert "5 pairs of 4 questions" in out and "win                    0.4000  [" in out
  assert "judged 6 of 6" in err
  lines = [json.loads(line) for line in (place / "each.jsonl").read_text().splitlines()]
  assert [(line["question"], line["order"], line["verdict"], line["winner"]) for line in lines[:4]] == [
    ("q0", "AB", "A", "a"), ("q0", "BA", "B", "a"), ("q1", "AB", "B", "b"), ("q1", "BA", "A", "b")
  ]  # fmt: skip
  shown = asked[0]["body"]["messages"][0]["content"]
  assert "thought" not in shown and "reference of" not in shown  # unless asked for


def test_a_rerun_asks_nothing_and_says_the_same(place, capsys):
  with judges.serving(judges.longest) as (url, asked):
    first = run(place, url)
    again = run(place, url)
    assert len(asked) == 6 and again["asked_now"] == 0
    assert {**first, "asked_now": 0, "spent_now": {"requests": 0, "tokens": 0}} == again
    assert len(Cache(str(place / "a.judged.jsonl")).replies) == 6  # beside the first file
    run(place, url, "--temperature", 0.5)
    assert len(asked) == 12


def test_a_judge_that_prefers_a_place_makes_no_winner(place):
  with judges.serving(lambda *_: "Verdict: A") as (url, _):
    report = run(place, url, "--limit", 2)
  metrics = report["metrics"]
  assert (metrics["win"], metrics["tie"], metrics["loss"], metrics["score"]) == (0, 1, 0, 0.5)
  assert (metrics["consistent"], metrics["first_in_both"], metrics["first_named"]) == (0, 1, 1)


def test_a_judge_that_rambles_is_counted(place, capsys):
  def rambles(body, number):
    if "q0" in body["messages"][0]["content"]:
      return ["Both are fine.", "Verdict: A\nor so", "Verdict: A or B", "Verdict: A Verdict: B"][number % 4]
    return judges.longest(body, number)

  with judges.serving(rambles) as (url, asked):
    report = run(place, url, "--concurrency", 1)
    counts = report["counts"]
    assert (counts["unreadable"], counts["read"], counts["left_out"], counts["asked_again"]) == (2, 4, 1, 2)
    assert (counts["compared"], len(asked)) == (4, 8)
    assert report["metrics"]["win"] == 1 / 4 and report["metrics"]["score_if_left_out_win"] > report["metrics"]["score"]
    assert "unreadable 2" in capsys.readouterr().out
    run(place, url)
    assert len(asked) == 8


def test_one_file_is_scored_or_compared_with_its_references(place):
  with judges.serving(lambda body, number: f"Fine.\nScore: {min(10, len(judges.shown(body)[0]))}") as (url, asked):
    report = run(place, url, files="a")
  assert report["kind"] == "scalar" and len(asked) == 4
  assert report["metrics"]["score"] == (10 + 5 + 1 + 8 + 10) / 5 and report["counts"]["without_judge"] == 1
  with judges.serving(judges.longest) as (url, asked):
    report = run(place, url, "--against", "reference", files="a")
  assert report["b"] == "reference" and len(asked) == 8 and report["metrics"]["loss"] == 0.8  # one without asking


def test_a_budget_ends_in_order_and_the_same_command_goes_on(place, capsys):
  with judges.serving(judges.longest) as (url, asked):
    report = run(place, url, "--budget_requests", 4, code=1)
    assert len(asked) == 4 and report["counts"]["left"] == 2 and report["counts"]["compared"] == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "nrt-jax: 2 of 6 judgements left: --budget_requests 4 is spent; the same command goes on"
    report = run(place, url, "--budget_requests", 4)
    assert len(asked) == 6 and report["counts"]["left"] == 0 and report["stopped"] is None
  with judges.serving(judges.longest) as (url, asked):
    report = run(place, url, "--budget_tokens", 100, "--cache", place / "other", code=1)
    assert not asked and report["counts"]["left"] == 6 and report["metrics"]["tie"] == 0.5  # what needs no judge
    assert "--budget_tokens 100 is spent" in capsys.readouterr().err


def test_an_endpoint_that_is_down_ends_in_one_line(place, capsys):
  with judges.serving(lambda *_: judges.Fails(500, "down")) as (url, asked):
    report = run(place, url, "--attempts", 1, "--concurrency", 1, code=1)
  assert len(asked) == 3 and report["counts"]["unanswered"] == 3 and report["counts"]["left"] == 3
  assert "6 of 6 judgements left: no answer to 3 requests in a row" in capsys.readouterr().err


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(place, capsys, monkeypatch):
  monkeypatch.setenv("JUDGE_KEY", "sk-secret")
  with judges.serving(lambda *_: judges.Fails(401, "no such key: sk-secret")) as (url, asked):
    assert "found 401: no such key: ***" in refused(argv(place, url, "--key_env", "JUDGE_KEY"), capsys)
  with judges.serving(judges.longest) as (url, asked):
    run(place, url, "--key_env", "JUDGE_KEY", "--judgements", place / "each.jsonl")
  assert {one["authorization"] for one in asked} == {"Bearer sk-secret"}
  out, err = capsys.readouterr()
  written = [path.read_text() for path in place.iterdir()]
  assert len(written) == 5 and "sk-secret" not in "".join([out, err, *written])


def test_a_killed_command_asks_only_what_is_left(place):
  """The fourth request kills it, in the middle of a line of the cache, too."""
  killed = []

  def judge(body, number):
    if number == 3 and not killed:
      killed.append(True)
      os.kill(process.pid, signal.SIGKILL)
      process.wait()
      return judges.CLOSE
    return judges.longest(body, number)

  with judges.serving(judge) as (url, asked):
    process = subprocess.Popen(
      [sys.executable, "-m", "nrt_jax", *argv(place, url, "--concurrency", 1)],
      env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.wait(60) == -signal.SIGKILL
    cache = place / "a.judged.jsonl"
    before = {one["body"]["messages"][0]["content"] for one in asked[:3]}
    assert len(Cache(str(cache)).replies) == 3
    with open(cache, "ab") as file:  # half a line more
      file.write(cache.read_bytes()[:50])
    del asked[:]
    report = run(place, url)
    after = [one["body"]["messages"][0]["content"] for one in asked]
  assert len(after) == len(set(after)) == 3 and not before & set(after)
  assert report["metrics"]["win"] == 0.4 and report["counts"]["read"] == 6


def test_ctrl_c_does_not_wait_for_a_stalled_endpoint(place):
  stalled = threading.Event()

  def judge(body, number):
    if number == 1:
      os.kill(process.pid, signal.SIGINT)
      stalled.wait(30)
    return judges.longest(body, number)

  # A job in the background ignores SIGINT, and its children do.
  code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
  code += "from nrt_jax.__main__ import main; sys.exit(main(sys.argv[1:]))"
  with judges.serving(judge) as (url, asked):
    process = subprocess.Popen(
      [sys.executable, "-c", code, *argv(place, url, "--concurrency", 1)],
      env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
      _, err = process.communicate(timeout=20)
    finally:
      stalled.set()
  assert process.returncode == 130 and err == "nrt-jax: interrupted\n"
  assert len(asked) == 2 and len(Cache(str(place / "a.judged.jsonl")).replies) == 1


def test_a_template_and_a_request_of_ones_own(place, tmp_path):
  (place / "t.txt").write_text("Judge.\n{question}\n{reference}\n{first}\n{second}\nSay Verdict: A, B or tie.")
  with judges.serving(judges.longest) as (url, asked):
    run(place, url, "--prompt", place / "t.txt", "--request", '{"seed": null, "top_p": 0.5}', "--traces")
  body = asked[0]["body"]
  assert body["top_p"] == 0.5 and "seed" not in body
  shown = body["messages"][0]["content"]
  assert shown.startswith("Judge.\n<question-") and "reference of q" in shown and "thought 0\n\n" in shown


def test_completions_without_a_partner_are_told(place, capsys):
  judges.write(place / "b.jsonl", {"q0": "x", "z": "y"})
  with judges.serving(judges.longest) as (url, _):
    run(place, url)
  assert "without a partner, and left out: 4 completions of A, 1 of B" in capsys.readouterr().err


def test_how_far_it_is(capsys):
  now = [0.0]
  progress = command.Progress(100, clock=lambda: now[0])
  for done, seconds in ((41, 6), (42, 12), (43, 18), (60, 24), (100, 30)):
    now[0] = seconds
    progress(done)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == "judged 42 of 100, about 5m48s left"  # two since the cache's 40, in 12 s
  assert lines[-2:] == ["judged 60 of 100, about 48s left", "judged 100 of 100"] and len(lines) == 3


@pytest.mark.parametrize(
  "more,message",
  [
    ("a b --model m --endpoint http://x/v1", "not allowed with argument"),
    ("a b", "one of the arguments --endpoint --model --checkpoint is required"),
    ("a b --endpoint http://x/v1", "--judge: found none, allowed with --endpoint"),
    ("a b c --endpoint http://x/v1 --judge m", "FILE: found 3 files, allowed: one, one with --against, or two"),
    ("a b --against reference --endpoint http://x/v1 --judge m", "FILE: found 2 files with --against"),
    ("a b --endpoint x --judge m", "--endpoint: found 'x', allowed: http://HOST:PORT/v1"),
    ("a b --model m --budget_tokens 5", "--budget_tokens: found it without --endpoint"),
    ("a b --endpoint http://x/v1 --judge m --read probabilities", "--read: found probabilities, allowed with a model"),
    ("a --model m --read probabilities", "--read: found probabilities, allowed with a model of ours that compares"),
    ("a b --model m --step 3", "--step: found 3 without --checkpoint"),
    ("a b --endpoint http://x/v1 --judge m --key_env NOT_SET_ANYWHERE", "--key_env: found NOT_SET_ANYWHERE, which is"),
    ("a b --endpoint http://x/v1 --judge m --key_env sk-123", "--key_env: found no name of a variable"),
    ("a b --endpoint http://x/v1 --judge m --request [1]", "--request: found '[1]', allowed: a JSON object"),
    ("a b --endpoint http://x/v1 --judge m --request {\"stream\":true}", "--request: found"),
    ("a b --endpoint http://x/v1 --judge m --cache a", "--cache: {place}/a.jsonl: holds something else than replies"),
    ("a b --endpoint http://x/v1 --judge m --cache {place}", "--cache: found '{place}', a directory"),
    ("a b --endpoint http://x/v1 --judge m --output {place}", "--output: found '{place}', a directory"),
    ("a z --endpoint http://x/v1 --judge m", "z.jsonl: no such file"),
    ("a b --endpoint http://x/v1 --judge m --prompt z", "--prompt: {place}/z.jsonl: no file of UTF-8 text"),
  ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(place, capsys, more, message):
  words = [str(place / f"{w}.jsonl") if w in "abcz" else w.replace("{place}", str(place)) for w in more.split()]
  assert message.format(place=place) in refused(["judge", *words], capsys)
  assert {path.name for path in place.iterdir()} == {"a.jsonl", "b.jsonl"}
