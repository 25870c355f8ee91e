"""Next tokens to reason about: the text's places, the papers' settings, what is measured and reported."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import EXPERIMENTS

from nrt_jax.commands.configs import load_config
from nrt_jax.model.decoder import forward, logits

sys.path += [str(EXPERIMENTS / "miniature"), str(EXPERIMENTS / "get_go")]
import common
import next_token
import next_token_report as report
import next_token_text as text

EASY = {"every", "cook", "sings", "add", "gives", "."}


# ----------------------------------------------------------------------------------------------------------- the text


def test_a_document_has_places_of_three_kinds_and_its_sum_is_right():
  rng = np.random.default_rng(0)
  for pairs in (text.document(rng, "train") for _ in range(50)):
    words, kinds = zip(*pairs)
    hard = kinds.index("hard")
    assert kinds.count("hard") == 1 and words[hard - 1] == "gives" and words[hard - 10] == "add"
    assert int(words[hard]) == sum(map(int, words[hard - 9 : hard - 1])) % 5
    assert len(words) == text.PROMPT and set(words) < set(text.words())  # THINK takes the last word's column
    assert {word for word, kind in pairs if kind == "easy"} == EASY


def test_a_thought_at_a_hard_place_is_empty_or_the_running_sums():
  rng, context = np.random.default_rng(1), [(word, "") for word in "add 0 0 3 1 4 2 0 1 gives".split()]
  assert {text.thought(rng, context, "hard") for _ in range(40)} == {"", "0 0 3 4 3 0 0 1"}
  others = [text.thought(rng, context, "noise").split() for _ in range(400)]
  assert {len(words) for words in others} == set(range(9)) and set().union(*others) == set("01234")
  assert sum(not words for words in others) / 400 == pytest.approx(text.EMPTY, abs=0.1)


def test_places_are_of_the_kinds_asked_for():
  rng = np.random.default_rng(2)
  rows = text.test_places(rng)
  hard = rows[: len(rows) // 3]
  assert len(rows) == 450 and all(row["question"].endswith("gives") for row in hard)
  assert {len([row for row in hard if row["answer"] == word]) for word in "01234"} == {30}
  assert all(row["answer"] in EASY for row in rows[150:300]) and not any(row["answer"] in EASY for row in rows[300:])
  seen, asked = ({row["question"][-21:] for row in rows} for rows in ([text.problem(rng) for _ in range(400)], hard))
  assert not seen & asked  # no sum is in both splits
  uncertain = [text.FILES["uncertain"](rng) for _ in range(200)]
  assert {row["answer"] for row in uncertain} >= {*"01234", *text.COLOURS}
  assert not {row["answer"] for row in uncertain} & EASY
  asked = text.problem(rng)
  add, *digits, gives = asked["question"].split()
  assert (add, gives, int(asked["answer"])) == ("add", "gives", sum(map(int, digits)) % 5)


# ----------------------------------------------------------------------------------------------------------- the arms


@pytest.mark.parametrize(
  "arm, file",
  [("rpt", "rpt_r1_distill_qwen_14b"), ("rlp", "rlp_qwen3_17b"), ("quiet_star", "quiet_star_filter_mistral_7b")],
)
def test_a_paper_is_as_in_its_file_of_full_size(arm, file, bench):
  full = load_config(str(EXPERIMENTS / "full_size" / f"{file}.py"))
  run = bench.config(next_token.FIRST[arm][0])
  assert dataclasses.asdict(run.algorithm) == {key: value for key, value in full["algorithm"].items() if key != "name"}
  assert (run.algorithm_name, run.sampling.temperature) == (full["algorithm"]["name"], full["sampling"]["temperature"])
  assert (run.environment is None) == (full["environment"] is None)


def test_arms_share_their_start_and_later_ones_their_first_stage():
  for name, phases in next_token.FIRST.items():
    assert next_token.ARMS[name] == (*next_token.START, *phases) and all(phase.given for phase in next_token.START)
  for name in next_token.AGAIN:
    assert next_token.ARMS[f"{name}_rlvr"] == (*next_token.ARMS[name], next_token.RLVR)


# ---------------------------------------------------------------------------------------------------------- the bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text, "SIZES", {name: 16 for name in text.SIZES} | {"test": 3})
    patch.setattr(common, "LAYERS", 1)
    return next_token.make_bench("text", str(tmp_path_factory.mktemp("next_token")))


def test_measures_are_those_of_the_model(bench):
  """The word behind a bare context, by a forward pass over it alone."""
  params = bench._start(0)["params"]
  found = bench.accuracy(params, "test")
  names = [word for word in text.words() if word != text.THINK]
  ids, expected = bench.tokenizer.convert_tokens_to_ids(names), {"logp": [], "right": []}
  for example in bench._held_out["test"].examples[:3]:
    token_BT = jnp.asarray([bench.tokenizer(example.question)["input_ids"]])
    hidden, _ = forward(params, bench.model, token_BT, jnp.arange(token_BT.shape[1])[None])
    logp = np.asarray(jax.nn.log_softmax(logits(params, bench.model, hidden)[0, -1, jnp.asarray(ids)]))
    expected["logp"].append(logp[names.index(example.answer)])
    expected["right"].append(names[logp.argmax()] == example.answer)
  assert found["hard_bare_logp"] == pytest.approx(np.mean(expected["logp"]), abs=1e-4)
  assert found["hard_bare_right"] == np.mean(expected["right"])
  assert found["test"] == found["hard_right"] and found["pass_1"] == found["hard_prob"]
  assert found["noise_prob"] == pytest.approx(1 / len(bench.tokenizer), rel=0.5)
  assert 0 <= found["easy_length"] <= text.TRACE + 3


def test_it_runs_and_reports(bench, tmp_path, capsys, monkeypatch):
  small = lambda phase: dataclasses.replace(phase, steps=2, prompts=4, samples=min(phase.samples, 2))
  first = dataclasses.replace(small(next_token.FIRST["ntp"][0]), given=True)
  arms = {"rlp": (first, small(next_token.FIRST["rlp"][0])), "ntp_rlvr": (first, first)}
  monkeypatch.setattr(next_token, "ARMS", arms)
  monkeypatch.setattr(next_token, "make_bench", lambda task, root: bench)
  next_token.main(["--seeds", "0", "--workdir", str(tmp_path)])
  lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
  assert [line["arm"] for line in lines] == ["rlp", "ntp_rlvr"]
  assert lines[0]["curve"][-1]["sampled"] > 0 and lines[1]["curve"][-1]["sampled"] == 0
  shown = capsys.readouterr().out
  assert "| `rlp` | 1 |" in shown and "| before |" in shown


def test_the_tables_are_of_the_lines():
  def line(seed: int, right: float) -> dict:
    end = {key: 0.5 for _, key, _ in report.COLUMNS} | {"hard_right": right}
    counts = {"sampled": 2000.0, "trained": 1000.0, "flops": 2e9}
    curve = [{"phase": 1, "step": 9, "test": 0.25, **counts}, *(
      {"phase": 2, "step": step, "test": value, **counts} for step, value in ((1, 0.5), (2, right))
    )]  # fmt: skip
    return {"arm": "rlp", "seed": seed, "curve": curve, "end": end, "cpu_seconds": 3.0}

  lines = [line(0, 0.5), line(1, 1.0)]
  *_, row = report.ends(lines).splitlines()
  assert row.endswith("| 0.50, 1.00 | 2k | 1k | 0.002 | 3 |") and "| 0.750 ± 0.354 |" in row
  assert report.curves(lines).splitlines()[-1] == "| `rlp` | 2 | 0.250 ± 0.000 | 0.500 ± 0.000 | 0.750 ± 0.354 |"
