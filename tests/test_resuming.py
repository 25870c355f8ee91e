"""What may change between two runs of one workdir."""

import dataclasses
import json
import shutil
import types

import pytest
import toy

from nrt_jax import config, resuming
from nrt_jax.data.sources import Example
from nrt_jax.errors import UserError

INPUTS = {
  "model.path": {"rope_theta": 10000.0, "hidden_size": 16},
  "prompt.tokenizer": {"tokens": "aaa", "chat template": "bbb", "format": "ccc"},
  "data.source": {"pretrain": "40 examples d1", "main": "50 examples d2"},
  "evaluation.data.source": {"main": "9 examples e1"},
  "tokens.active": {"pretrain": "all but 3 t1", "main": "all but 0 t0"},
}


def values(**changes) -> dict:
  """Two stages, with keys like `optimizer__eps=1e-8` set at the top, and `pretrain__KEY` in the first stage."""
  run = config.defaults("nrt")
  stages = [{"name": "pretrain", "algorithm": {"name": "sft"}, "total_steps": 4}, {"name": "main"}]
  run.update(total_steps=8, stages=stages)
  run["evaluation"]["data"] = {"source": "held.jsonl"}
  for key, value in changes.items():
    *parents, last = key.split("__")
    at = run
    if parents[:1] == ["pretrain"]:
      at, parents = run["stages"][0], parents[1:]
    for parent in parents:
      at = at.setdefault(parent, {})
    at[last] = value
  return run


@pytest.fixture
def workdir(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(values()))
  resuming.write_inputs(str(tmp_path), INPUTS)
  return tmp_path


def check(workdir, stage=1, allowed=(), inputs=INPUTS, **changes) -> list[str]:
  return resuming.check(str(workdir), config.stages_of(values(**changes)), inputs, stage, allowed)


MATTER = [
  ("seed", 3, "seed: 0 in the workdir, 3 now"),
  ("prompts_per_step", 64, "prompts_per_step: 32 in the workdir, 64 now"),
  ("samples_per_prompt", 4, "samples_per_prompt: 8 in the workdir, 4 now"),
  ("from_checkpoint", "other", 'from_checkpoint: null in the workdir, "other" now'),
  ("optimizer__learning_rate", 1e-3, "optimizer.learning_rate: 2e-06 in the workdir, 0.001 now"),
  ("prompt__template", "chat", 'prompt.template: "auto" in the workdir, "chat" now'),
  ("sampling__temperature", 0.5, "sampling.temperature: 1.0 in the workdir, 0.5 now"),
  ("model__compute_dtype", "bfloat16", 'model.compute_dtype: "float32" in the workdir, "bfloat16" now'),
  ("algorithm__name", "verifree", 'algorithm.name: "nrt" in the workdir, "verifree" now'),
  ("algorithm__center", "none", 'algorithm.center: "mean" in the workdir, "none" now'),
  ("data__limit", 5, "data.limit: "),
  ("evaluation__temperature", 1.0, "evaluation.temperature: 0.0 in the workdir, 1.0 now"),
  ("pretrain__samples_per_prompt", 2, "samples_per_prompt: 8 in the workdir, 2 now"),
]


@pytest.mark.parametrize("key, value, says", MATTER)
def test_what_matters_is_refused_by_name_with_both_values(workdir, key, value, says):
  name = key.replace("__", ".").removeprefix("pretrain.")
  with pytest.raises(UserError) as error:
    check(workdir, **{key: value})
  text = str(error.value)
  assert says in text and f"allowed: the same, --allow_change {name}, or another --workdir" in text and "\n" not in text
  for allowed in (name, name.split(".")[0]):
    (note,) = check(workdir, allowed=[allowed], **{key: value})
    assert says in note
  with pytest.raises(UserError):
    check(workdir, allowed=["optimizer.eps", "see", f"{name}.x"], **{key: value})


@pytest.mark.parametrize(
  "key, value",
  [
    ("total_steps", 9), ("stop__bar", 0.5), ("logging__every_steps", 7), ("checkpoint__keep_last", 5),
    ("parallel__fsdp", 2), ("evaluation__every_steps", 3), ("model__remat", "full"), ("evaluation__sets", ["bbh"]),
    ("optimizer__max_skipped_steps", 9),
  ],
)  # fmt: skip
def test_what_is_harmless_is_taken_and_noted(workdir, key, value):
  notes = check(workdir, **{key: value})
  assert notes and all(f"{key.replace('__', '.')}: " in note and note.endswith(" now") for note in notes)


def test_nothing_changed_is_nothing_to_say(workdir):
  assert check(workdir) == []


def test_several_changes_are_named_together(workdir):
  says = "seed: .* 1 now; optimizer.eps: .*--allow_change seed --allow_change optimizer.eps"
  with pytest.raises(UserError, match=says):
    check(workdir, seed=1, optimizer__eps=1e-8)
  assert len(check(workdir, allowed=["seed", "optimizer"], seed=1, optimizer__eps=1e-8)) == 2


def test_stages_that_have_not_begun_may_change(workdir):
  assert check(workdir, stage=0, algorithm__center="none") == []  # the first stage is sft's
  with pytest.raises(UserError, match="algorithm.center"):
    check(workdir, stage=1, algorithm__center="none")
  with pytest.raises(UserError, match="samples_per_prompt"):
    check(workdir, stage=0, pretrain__samples_per_prompt=2)


def changed(key, **fields):
  return {**INPUTS, key: {**INPUTS[key], **fields}}


@pytest.mark.parametrize(
  "key, field, value, says",
  [
    ("data.source", "main", "50 examples d3", 'its content: "50 examples d2" in the workdir, "50 examples d3" now'),
    ("data.source", "main", "49 examples d4", 'its content: "50 examples d2" in the workdir, "49 examples d4" now'),
    ("evaluation.data.source", "main", "9 examples e2", 'its content: "9 examples e1" in the workdir, "9 examples e2"'),
    ("model.path", "rope_theta", 5e5, "its rope_theta: 10000.0 in the workdir, 500000.0 now"),
    ("prompt.tokenizer", "tokens", "abb", 'its tokens: "aaa" in the workdir, "abb" now'),
  ],
)
def test_files_are_known_by_their_content(workdir, key, field, value, says):
  inputs = changed(key, **{field: value})
  with pytest.raises(UserError) as error:
    check(workdir, inputs=inputs)
  assert f"{key}: {says}" in str(error.value) and f"--allow_change {key}," in str(error.value)
  (note,) = check(workdir, inputs=inputs, allowed=[key])
  assert says in note
  if field == "main":  # of a stage that has not begun
    assert check(workdir, stage=0, inputs=inputs) == []


def test_the_tokens_of_stages_that_have_begun_may_not_change(workdir):
  """A stage that is no longer the last one does not use all of them."""
  inputs = changed("tokens.active", main="all but 2 t2")
  with pytest.raises(UserError, match='tokens.active: its main: "all but 0 t0" in the workdir, "all but 2 t2" now'):
    check(workdir, inputs=inputs)
  assert check(workdir, stage=0, inputs=inputs) == []
  (note,) = check(workdir, inputs=inputs, allowed=["tokens"])
  assert "tokens.active" in note


def test_a_file_may_have_moved(workdir):
  (note,) = check(workdir, stage=0, data__source="elsewhere.jsonl")
  assert note.endswith('data.source: "task:running_sum" in the workdir, "elsewhere.jsonl" now')
  (workdir / "inputs.json").unlink()  # of an earlier version: then only the name is known
  with pytest.raises(UserError, match='data.source: "task:running_sum" in the workdir, '):
    check(workdir, stage=0, data__source="elsewhere.jsonl")


def test_an_allowed_setting_may_change_what_is_left_of_a_file(workdir):
  inputs = changed("data.source", main="5 examples d5")
  assert len(check(workdir, allowed=["data.limit"], inputs=inputs, data__limit=5)) == 1
  assert len(check(workdir, allowed=["prompt"], inputs=inputs, prompt__max_prompt_length=5)) == 1


def test_what_one_version_does_not_know_is_not_compared(workdir):
  assert check(workdir, inputs={**INPUTS, "new.file": {"x": 1}, "model.path": {**INPUTS["model.path"], "new": 1}}) == []


def test_a_workdir_without_a_config_or_with_a_broken_one(workdir):
  (workdir / "config.json").write_text("{")
  with pytest.raises(UserError, match="config.json: unreadable: "):
    check(workdir)
  (workdir / "config.json").write_text('{"sede": 1}')
  with pytest.raises(UserError, match="config.json: config: unknown key: found 'sede'"):
    check(workdir)
  shutil.rmtree(workdir)
  workdir.mkdir()
  assert check(workdir) == []


def test_steps_must_be_where_the_config_has_them():
  first, last = toy.run_config("nrt", total_steps=4), toy.run_config("nrt", total_steps=8)
  resuming.check_steps(12, (4,), 8, [first, last])
  for step, ends in ((11, (4,)), (11, (3,)), (13, (5,))):
    says = f"total_steps: found 4 in the stages before 'main', allowed: {step - 8}"
    with pytest.raises(UserError, match=says):
      resuming.check_steps(step, ends, 8, [first, last])
  with pytest.raises(UserError, match="total_steps: found 8 for stage 'main', .* has 9 behind it, allowed: 9 or more"):
    resuming.check_steps(13, (4,), 9, [first, last])


def test_a_stage_with_a_stop_rule_may_have_ended_early_but_not_late():
  first, last = toy.run_config("nrt", total_steps=4, stop__metric="reward/mean"), toy.run_config("nrt", total_steps=8)
  resuming.check_steps(11, (3,), 8, [first, last])
  with pytest.raises(UserError, match="total_steps: found 4 in the stages before 'main', allowed: 5"):
    resuming.check_steps(13, (5,), 8, [first, last])


def test_a_data_fingerprint_depends_on_texts_weights_and_order():
  examples = [Example("q", "a", None, "f:1"), Example("r", "b", "t", "f:2")]
  other = [
    examples[::-1], examples[:1], [Example("q", "a", "", "f:1"), examples[1]],
    [Example("q", "a", None, "f:1", weight=2.0), examples[1]], [Example("qa", "", None, "f:1"), examples[1]],
  ]  # fmt: skip
  found = {resuming.data_fingerprint(rows) for rows in (examples, *other)}
  assert len(found) == 6
  moved = [Example("q", "a", None, "g:9"), examples[1]]  # the same in another file
  assert resuming.data_fingerprint(moved) == resuming.data_fingerprint(examples)


def test_inputs_are_described_without_what_a_mesh_or_setting_adds():
  tokenizer = types.SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1}, chat_template=None)
  data = types.SimpleNamespace(examples=[Example("q", "a", None, "f:1")])

  def described(model, tokens={"a": 0, "b": 1}):
    stage = types.SimpleNamespace(setup=toy.setup(model=model), train_data=data, eval_data=None)
    tokenizer.get_vocab = lambda: tokens
    return resuming.describe_inputs(tokenizer, [stage])

  plain = described(toy.MODEL)
  assert json.loads(json.dumps(plain)) == plain and plain["evaluation.data.source"] == {}
  change = lambda **over: described(dataclasses.replace(toy.MODEL, **over))
  assert change(vocab_size=26, vocab_padding=2, remat="full", compute_dtype="bfloat16", lora_rank=2) == plain
  assert change(rope_theta=5e5) != plain and change(rms_norm_eps=1e-6) != plain
  assert described(toy.MODEL, {"a": 1, "b": 0}) != plain
