"""`nrt-jax judge` with a model of ours: an export and its checkpoint are one judge, by text or by probabilities."""

import json
import shutil

import judges
import numpy as np
import places
import pytest

from nrt_jax import __main__
from nrt_jax.commands import arguments, judge_model
from nrt_jax.commands.parser import Parser
from nrt_jax.data.prompts import load_tokenizer, word_tokenizer
from nrt_jax.evaluation.judging import asking, items, prompts
from nrt_jax.evaluation.judging.cache import Cache
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.tasks.running_sum import RunningSum

ANSWERS = {"add 1 2": "3", "add 2 2": "4 4 4 4", "add": "modulo"}
OTHERS = {"add 1 2": "4", "add 2 2": "1", "add": "0 1 2"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A run of one step with its export, whose tokenizer knows verdicts; two files of completions; a short template."""
  path = places.make(tmp_path_factory.mktemp("judge_model"), "sft", prompts_per_step=8, total_steps=1)
  words = (*RunningSum().words, "Verdict:", *prompts.VERDICTS)
  tokenizer = word_tokenizer(words, str(path / "model"))
  sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
  sizes |= dict(head_dim=4, max_position_embeddings=64, initializer_range=0.5)
  hf_weights.write_config(ModelConfig(vocab_size=len(tokenizer), **sizes), path / "model")
  assert __main__.main(["train", "--config", str(path / "config.py"), "--workdir", str(path / "run")]) == 0
  judges.write(path / "a.jsonl", ANSWERS)
  judges.write(path / "b.jsonl", OTHERS)
  (path / "t.txt").write_text("{question} {first} {second}")
  return path


def argv(place, *more, source=None):
  source = source or ("--model", place / "run" / "export")
  files = [place / "a.jsonl", place / "b.jsonl", "--prompt", place / "t.txt", "--max_tokens", 6]
  return ["judge", *map(str, (*files, *source, *more))]


def run(place, cache, *more, source=None):
  """The report."""
  output = cache.with_suffix(".json")
  assert __main__.main(argv(place, "--cache", cache, "--output", output, *more, source=source)) == 0
  return json.loads(output.read_text())


def test_an_export_and_its_checkpoint_are_one_judge(place, tmp_path):
  cache, checkpoint = tmp_path / "c", ("--checkpoint", place / "run")
  first = run(place, cache, "--read", "probabilities")
  again = run(place, cache, "--read", "probabilities", source=checkpoint)
  assert (first["asked_now"], again["asked_now"]) == (6, 0) and again["metrics"] == first["metrics"]
  fresh = run(place, tmp_path / "other", "--read", "probabilities", source=checkpoint)
  assert fresh["asked_now"] == 6 and fresh["metrics"] == pytest.approx(first["metrics"], abs=1e-6)
  assert fresh["judge"] == first["judge"] and fresh["counts"]["read"] == 6


def test_probabilities_do_not_depend_on_the_batch_and_name_the_likeliest(place, tmp_path):
  lines = tmp_path / "lines"
  report = run(place, tmp_path / "c", "--read", "probabilities", "--judgements", lines)
  run(place, tmp_path / "one", "--read", "probabilities", "--batch", 1)
  whole, single = (Cache(str(tmp_path / name)).replies for name in ("c", "one"))
  assert whole.keys() == single.keys() and len(whole) == 6
  for key, reply in whole.items():
    np.testing.assert_allclose(reply.probabilities, single[key].probabilities, rtol=1e-5)
    assert 0 < sum(reply.probabilities) < 1
  found = [json.loads(line) for line in lines.read_text().splitlines()]
  named = [(one["verdict"], prompts.VERDICTS[int(np.argmax(one["reply"]["probabilities"]))]) for one in found]
  assert all(verdict == likeliest for verdict, likeliest in named)
  # of A: shown first in the order AB, second in BA
  sides = [one["reply"]["probabilities"] for one in found]
  shares = [(p[one["order"] == "BA"] + p[2] / 2) / sum(p) for one, p in zip(found, sides)]
  assert report["metrics"]["preference"] == pytest.approx(np.mean(shares))


def test_replies_are_sampled_and_a_rambling_model_is_asked_twice(place, tmp_path):
  report = run(place, tmp_path / "c")
  counts = report["counts"]
  assert counts["unreadable"] + counts["read"] == counts["verdicts"] == 6
  assert counts["asked_again"] >= counts["unreadable"] > 0  # random weights
  assert report["asked_now"] == 6 + counts["asked_again"] and report["spent_now"] is None
  again = run(place, tmp_path / "c", "--batch", 4)
  assert again["asked_now"] == 0 and again["counts"] == counts
  run(place, tmp_path / "four", "--batch", 4)
  assert Cache(str(tmp_path / "four")).replies == Cache(str(tmp_path / "c")).replies


def test_a_prompt_that_is_too_long_is_left_out(place, tmp_path):
  judges.write(place / "long.jsonl", {"add 1 2": "0 " * 60})
  arguments = [str(place / "long.jsonl"), str(place / "b.jsonl"), "--model", str(place / "run" / "export"),
               "--prompt", str(place / "t.txt"), "--max_tokens", "6"]  # fmt: skip
  parser = Parser()
  arguments.judge(parser)
  judge = judge_model.open_model(parser.parse_args(arguments), 6)
  pair = items.pair(items.read(arguments[0]), items.read(arguments[1]))[0]
  found = asking.plan(pair, "{first} {second}", prompts.PAIRWISE)
  assert asking.judge_all(judge, found, prompts.PAIRWISE, Cache(None)) is None
  assert [one.status for one in found] == ["refused"] * 2 and "has room for 58" in found[0].why


@pytest.mark.parametrize(
  "source,more,message",
  [
    (("--model", "nowhere"), (), "nowhere: no such directory"),
    (("--checkpoint", "nowhere"), (), "--checkpoint: found 'nowhere', allowed: a run's workdir"),
    (("--model", "words"), ("--read", "probabilities"), "its verdicts do not differ in their first tokens"),
  ],
)
def test_mistakes_end_in_one_line(place, tmp_path, capsys, monkeypatch, source, more, message):
  monkeypatch.chdir(tmp_path)
  if "words" in source:
    shutil.copytree(place / "run" / "export", tmp_path / "words")
    tokenizer = load_tokenizer(tmp_path / "words")
    word_tokenizer([f"word{i}" for i in range(len(tokenizer) - 3)], str(tmp_path / "words"))
  capsys.readouterr()
  assert __main__.main(argv(place, "--cache", tmp_path / "c", *more, source=source)) == 2
  out, err = capsys.readouterr()
  assert out == "" and message in err.splitlines()[-1] and not (tmp_path / "c").exists()
