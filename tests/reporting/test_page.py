"""The HTML report: one file that loads nothing, says what the runs say, and shows foreign text as text."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest

from nrt_jax import __main__
from nrt_jax.reporting import samples

pytest.importorskip("vl_convert", reason='pip install "nrt_jax[report]"')
EVIL = "</script><img src=http://x.example/y onerror=alert(1)><!--"
SAMPLE = {
  "question": f"why {EVIL}", "trace": "ab!", "trace_tokens": ["a", " b", "\n"], "answer_tokens": ["y", " z", "?"],
  "c": [0.9, 0.5, None], "c_empty_trace": [0.1, 0.5, 0.5], "trace_moved": [2.0, -0.5], "trace_moved_every": 1, "reward": 1.0,
}  # fmt: skip


def write(path, algorithm, seed, rewards, shown=()):
  path.mkdir()
  values = {"seed": seed, "algorithm": {"name": algorithm, "eps": 0.1 if algorithm == "nrt" else 0.2}, "note": EVIL}
  (path / "config.json").write_text(json.dumps(values | ({"only": 1} if algorithm == "sft" else {})))
  lines = [{"step": step, "reward/mean": reward, "eval/x/accuracy": 0.5} for step, reward in enumerate(rewards, 1)]
  (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shown))
  return str(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  place = tmp_path_factory.mktemp("page")
  shown = [{"step": step, **SAMPLE} for step in (1, 1, 2)]
  runs = [write(place / f"nrt{seed}", "nrt", seed, (1.0, 2.0 + seed), shown) for seed in (0, 1)]
  runs.append(write(place / "sft", "sft", 0, (0.5, None)))
  assert __main__.main(["report", *runs, "--html", str(place / "new" / "page.html")]) == 0
  return place / "new" / "page.html"


class Reader(html.parser.HTMLParser):
  """Collects tags with attributes, the cells of tables by row, and the content of script elements by id or order."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.rows, self.scripts, self.open = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self.open.append(tag)
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self.rows[-1].append("")
    if tag == "script":
      self.scripts.append([dict(attrs), ""])

  def handle_endtag(self, tag):
    while self.open and self.open.pop() != tag:
      pass

  def handle_data(self, data):
    if self.open and self.open[-1] == "script":
      self.scripts[-1][1] += data
    elif {"td", "th"} & set(self.open):
      self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def read(path):
  return Reader(path.read_text(encoding="utf-8"))


def test_nothing_is_loaded(read):
  """No element refers to anything outside, and the page's policy forbids what a script might load."""
  for tag, attributes in read.tags:
    assert tag not in ("img", "link", "iframe", "object", "embed", "base"), tag
    assert not {"src", "srcset", "data", "action", "onclick", "onerror"} & set(attributes), (tag, attributes)
    assert attributes.get("href", "#").startswith("#"), attributes
  (policy,) = [a["content"] for tag, a in read.tags if a.get("http-equiv") == "Content-Security-Policy"]
  assert policy.startswith("default-src 'none'") and "http" not in policy
  styles = re.findall(r"<style>(.*?)</style>", "".join(read.rawdata), re.DOTALL)
  assert not any("url(" in style or "@import" in style for style in styles)


def test_final_values_and_configs(read):
  assert ["reward/mean", "2.5 (2 to 3)", "0.5"] in read.rows
  assert ["eval/x/accuracy", "0.5 (0.5 to 0.5)", "0.5"] in read.rows
  assert ["algorithm.eps", "0.1", "0.2"] in read.rows and ["only", "–", "1"] in read.rows
  assert not any(row[0] in ("note", "seed") for row in read.rows if row)
  assert {(row[1], row[2], row[3]) for row in read.rows if len(row) == 6} >= {("nrt", "0", "2"), ("nrt", "1", "2")}


def test_curves_hold_the_bands(read):
  specs = [json.loads(text) for attributes, text in read.scripts if attributes == {"type": "application/json"}]
  assert len(specs) == 2
  assert {"g": 0, "s": 2, "m": 2.5, "l": 2.0, "h": 3.0, "n": 2} in specs[0]["data"]["values"]
  assert {"g": 1, "s": 1, "m": 0.5, "l": 0.5, "h": 0.5, "n": 1} in specs[0]["data"]["values"]


def test_samples_are_lines_in_the_order_of_the_index(read):
  held = {attributes["id"]: text for attributes, text in read.scripts if "id" in attributes}
  index, lines = json.loads(held["sample-index"]), held["sample-lines"].split("\n")
  assert [run["steps"] for run in index["runs"]] == [[[1, 2], [2, 1]]] * 2
  assert [(run["label"], run["seed"]) for run in index["runs"]] == [("nrt", 0), ("nrt", 1)]
  assert [json.loads(line) for line in lines] == [samples.compact(SAMPLE)] * 6
  assert index["nats"] == list(samples.NATS) and index["shares"] == list(samples.SHARES)


def test_a_page_of_named_metrics_and_few_samples(path, tmp_path):
  argv = ["report", str(path.parents[1] / "nrt0"), "--metric", "eval/*", "--samples", "1", "--html"]
  assert __main__.main([*argv, str(tmp_path / "page.html")]) == 0
  read = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
  assert ["eval/x/accuracy", "0.5"] in read.rows and not any(row[0] == "reward/mean" for row in read.rows)
  (lines,) = [text for attributes, text in read.scripts if attributes.get("id") == "sample-lines"]
  assert lines.count("\n") == 0


def test_mistakes_in_one_line(path, tmp_path, capsys):
  run = str(path.parents[1] / "sft")
  for argv, says in (
    ([run, "--html", str(tmp_path)], f"--html: found {str(tmp_path)!r}, a directory, allowed: a file"),
    ([run, "--html", f"{path}/x.html"], "is a file, allowed: a directory"),
    ([run, "--samples", "0", "--html", "x.html"], "--samples: found '0', allowed: a whole number, 1 or more"),
  ):
    capsys.readouterr()
    assert __main__.main(["report", *argv]) == 2
    out, err = capsys.readouterr()
    assert says in err and err.count("\n") == 1 and out == ""
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
  (tmp_path / "samples.jsonl").write_text("[]\n")
  assert __main__.main(["report", str(tmp_path), "--html", str(tmp_path / "new.html")]) == 2
  assert "samples.jsonl:1: found '[]'" in capsys.readouterr().err and not (tmp_path / "new.html").exists()


def test_a_browser_shows_it(path, tmp_path):
  """Shades, numbers and names of tokens as the page's script makes them."""
  browser = shutil.which("chromium") or shutil.which("google-chrome")
  if browser is None:
    pytest.skip("there is no chromium here")
  flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", f"--user-data-dir={tmp_path}"]
  command = [browser, *flags, "--dump-dom", path.as_uri()]
  shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
  tokens = re.findall(r'<span class="([^"]*)" role="listitem" aria-label="([^"]*)"', shown)
  assert [classes for classes, _ in tokens] == ["tok p3", "tok n2", "tok unknown", "tok p4", "tok ", "tok unknown"]
  assert tokens[0][1] == "a: +2.000 nats of log p(answer), token 1 of 3 of the trace"
  assert tokens[3][1] == "y: probability 0.100 behind none, 0.900 behind the trace (+0.800)"
  assert 'id="question" class="text">why &lt;/script&gt;&lt;img' in shown and "sample 1 of 2" in shown
  assert shown.count("<svg") >= 4  # two lines of the legend, two plots
