"""E5: places of the facts differ in what they say, texts fit, and an arm in a memory with a small window runs."""

import json
import sys

import pytest
from paths import EXPERIMENTS

from nrt_jax.tasks import table as tasks

sys.path.append(str(EXPERIMENTS / "get_go"))
import common
import e5_memory as e5


@pytest.mark.parametrize("name", e5.PLACES)
def test_places_differ_in_where_the_facts_are(name, monkeypatch):
  made = {}
  monkeypatch.setattr(
    common, "Bench", lambda *arguments: made.update(zip(("root", "sets", "lengths", "env", "win"), arguments))
  )
  e5.make_bench(name, "root")
  sets, lengths = made["sets"], made["lengths"]
  assert (made["env"] is not None) == ("memory" in name or "cues" in name) and (made["win"] == e5.WINDOW) == (
    "window" in name
  )
  for key, values in {**sets.train, **sets.test}.items():
    task = tasks.make_task("facts", values["split"], values["task_options"])
    question, answer, trace = task.example(0)
    assert {*question.split(), *answer.split(), *(trace or "").split(), *task.world(0).split()} <= {*sets.words}
    assert len(question.split()) <= lengths.prompt and len(task.world(0).split()) <= e5.FACTS
    read = 4 * task.hops + 1 if made["env"] else task.hops + 1  # "read", a key, its value; a stop token
    assert read <= lengths.trace
    assert task.cue_share == (0.8 if "cues" in name and key in ("train", "traced") else 0.0)
  split = "train" if name == "weights" else "test"
  assert {values["split"] for values in sets.test.values()} == {split}
  swapped, test = (tasks.make_task("facts", split, sets.test[key]["task_options"]) for key in ("swapped", "test"))
  assert (swapped.world(0) == test.world(0)) is False and test.fixed == (name == "weights")


def test_a_memory_with_a_small_window_runs(tmp_path, capsys):
  e5.main(["--seeds", "0", "--tasks", "memory_window", "--steps", "0.002", "--workdir", str(tmp_path)])
  line = json.loads((tmp_path / "results.jsonl").read_text())
  assert {"test", "swapped", "hops", "far", "extra"} <= line["end"].keys() and line["curve"][-1]["sampled"] > 0
  config = json.loads((tmp_path / "memory_window" / "model" / "config.json").read_text())
  assert config["sliding_window"] == e5.WINDOW
  assert "### memory_window" in capsys.readouterr().out
