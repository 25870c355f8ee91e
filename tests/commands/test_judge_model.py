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
from nrt_jax.evaluation.judging import asking, items, prompts, summary
from nrt_jax.evaluation.judging.cache import Cache
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.tasks.running_sum import RunningSum

TEMPLATE = "{question} {first} {second}"  # a model of 64 positions has no room for ours
ANSWERS = {"add 1 2": "3", "add 2 2": "4 4 4 4", "add": "modulo"}
OTHERS = {"add 1 2": "4", "add 2 2": "1", "add": "0 1 2"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A run of one step with its export, whose tokenizer knows verdicts; two files of completions; a short template."""
  path = places.make(
    tmp_path_factory.mktemp("judge_model"), "sft", prompts_per_step=8, total_steps=1, logging__tensorboard=False
  )
  words = (*RunningSum().words, "Verdict:", *prompts.VERDICTS)
  tokenizer = word_tokenizer(words, str(path / "model"))
  sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
  sizes |= dict(head_dim=4, max_position_embeddings=64, initializer_range=0.5)
  hf_weights.write_config(ModelConfig(vocab_size=len(tokenizer), **sizes), path / "model")
  assert __main__.main(["train", "--config", str(path / "config.py"), "--workdir", str(path / "run")]) == 0
  judges.write(path / "a.jsonl", ANSWERS)
  judges.write(path / "b.jsonl", OTHERS)
  (path / "t.txt").write_text(TEMPLATE)
  return path


def argv(place, *more, source=None):
  source = source or ("--model", place / "run" / "export")
  return [*map(str, (place / "a.jsonl", place / "b.jsonl", "--prompt", place / "t.txt", *source, *more))]


@pytest.fixture(scope="module")
def model(place):
  """The judge that reads verdicts from text, opened once."""
  parser = Parser()
  arguments.judge(parser)
  return judge_model.open_model(parser.parse_args(argv(place)), 6)


def planned(place):
  pairs, _ = items.pair(items.read(place / "a.jsonl"), items.read(place / "b.jsonl"))
  return pairs, asking.plan(pairs, TEMPLATE, prompts.PAIRWISE)


def test_probabilities_of_an_export_and_of_its_checkpoint(place, tmp_path):
  """The cache knows the model by its weights: the second command, with other words for it, asks nothing."""
  reports, lines = [], tmp_path / "lines"
  for source in (("--model", place / "run" / "export"), ("--checkpoint", place / "run")):
    more = ("--read", "probabilities", "--cache", tmp_path / "c", "--output", tmp_path / "o", "--judgements", lines)
    assert __main__.main(["judge", *argv(place, *more, source=source)]) == 0
    reports.append(json.loads((tmp_path / "o").read_text()))
  first, again = reports
  assert [one["judge"].pop("name") for one in reports] == [str(place / "run" / "export"), str(place / "run")]
  assert (first["asked_now"], again["asked_now"]) == (6, 0) and first["counts"]["read"] == 6
  assert {**first, "asked_now": 0} == again and first["spent_now"] is None
  found = [json.loads(line) for line in lines.read_text().splitlines()]
  sides = [one["reply"]["probabilities"] for one in found]
  assert all(one["verdict"] == prompts.VERDICTS[int(np.argmax(p))] for one, p in zip(found, sides))
  assert all(0 < sum(p) < 1 for p in sides) and len({tuple(p) for p in sides}) == 6
  # of A: shown first in the order AB, second in BA
  shares = [(p[one["order"] == "BA"] + p[2] / 2) / sum(p) for one, p in zip(found, sides)]
  assert first["metrics"]["preference"] == pytest.approx(np.mean(shares))


def test_a_reply_depends_on_its_own_request_alone(place, model):
  """Neither on its place nor on what else is in the batch, greedy or not."""
  requests = [model.request_for(one.prompt, attempt) for one in planned(place)[1] for attempt in (0, 1)]
  assert {(one["temperature"], one["seed"]) for one in requests} == {(0.0, 0), (0.7, 1)}
  whole = model.ask(requests[:8])
  assert model.ask(requests[7:2:-1]) == whole[7:2:-1] and len({one.text for one in whole}) > 1
  assert all(1 <= one.tokens <= 6 for one in whole)


def test_a_rambling_model_is_asked_twice_and_then_counted(place, model):
  pairs, judgements = planned(place)
  cache = Cache(None)
  assert asking.judge_all(model, judgements, prompts.PAIRWISE, cache) is None
  counts = summary.pairwise(pairs, judgements)["counts"]
  assert counts["unreadable"] + counts["read"] == counts["verdicts"] == 6
  assert counts["asked_again"] >= counts["unreadable"] > 0  # random weights
  assert len(cache.replies) == 6 + counts["asked_again"]


def test_a_prompt_that_is_too_long_is_left_out(model):
  judgements = asking.plan([items.Item("q", None, ("0 " * 60, "1"), 0, 0)], TEMPLATE, prompts.PAIRWISE)
  assert asking.judge_all(model, judgements, prompts.PAIRWISE, Cache(None)) is None
  assert [one.status for one in judgements] == ["refused"] * 2 and "has room for 58" in judgements[0].why


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
  assert __main__.main(["judge", *argv(place, "--cache", tmp_path / "c", *more, source=source)]) == 2
  out, err = capsys.readouterr()
  assert out == "" and message in err.splitlines()[-1] and not (tmp_path / "c").exists()
