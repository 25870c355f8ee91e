"""A user's own instruct model, tiny: from a published directory with a chat template to a trained export."""

import json

import numpy as np
import places
import pytest

from nrt_jax import __main__, workdir
from nrt_jax.commands import configs
from nrt_jax.config import stages_of
from nrt_jax.errors import UserError
from nrt_jax.model import hf_weights

MARKER = "<|response_start|>"
RUN = """\
from nrt_jax.commands.configs import base_config

def get_config():
  config = base_config("sft")
  config.model.path = {model!r}
  config.model.lora_rank = 8
  config.data.source = {pairs!r}
  config.evaluation.data = {{"source": {pairs!r}}}
  config.evaluation.batch_prompts = 64
  config.evaluation.every_steps = 0
  config.evaluation.max_completion_length = 6
  config.prompt.max_prompt_length = 16
  config.prompt.max_answer_length = 3
  config.prompts_per_step = 64
  config.total_steps = 160
  config.optimizer.learning_rate = 1e-2
  config.optimizer.eps = 1e-8
  config.logging.progress = False
  config.logging.tensorboard = False
  return config
"""


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def run(request, tmp_path_factory):
  """SFT with adapters on 64 fixed pairs; the marker is a token that model and tokenizer lack."""
  path = tmp_path_factory.mktemp("instruct")
  model, pairs = places.make_chat_model(path / "model", request.param), places.write_pairs(path / "pairs.jsonl")
  (path / "run.py").write_text(RUN.format(model=str(model), pairs=str(pairs)))
  assert __main__.main(["train", "--config", str(path / "run.py"), "--workdir", str(path / "run")]) == 0
  return path


def metrics(path) -> list[dict]:
  return [json.loads(line) for line in (path / "run" / "metrics.jsonl").read_text().splitlines()]


def test_adapters_learn_to_write_an_added_marker(run):
  evaluated = [line for line in metrics(run) if "eval/heldout/accuracy" in line]
  before, after = evaluated[0], evaluated[-1]
  assert before["eval/heldout/accuracy"] == 0
  assert after["eval/heldout/marker_fraction"] == 1 and after["eval/heldout/accuracy"] > 0.9
  assert after["eval/heldout/trace_length"] == 0  # the marker is the first token that it writes


@pytest.mark.parametrize("source", ["checkpoint", "export"])
def test_added_rows_are_kept_and_merged(run, source, tmp_path):
  """What is read from the checkpoint, and the plain model of the export, answer as the run did at its end."""
  where = ("--checkpoint", run / "run") if source == "checkpoint" else ("--model", run / "run" / "export")
  output = tmp_path / "x.json"
  argv = ["evaluate", "--config", run / "run.py", *where, "--output", output]
  assert __main__.main(list(map(str, argv))) == 0
  found, expected = json.loads(output.read_text())["metrics"], metrics(run)[-1]
  assert {name: found[name] for name in found} == pytest.approx({name: expected[name] for name in found}, abs=1e-4)


def test_only_the_added_row_of_the_vocabulary_moves(run, tmp_path):
  stored = hf_weights.load_params(run / "model", hf_weights.read_model_config(run / "model"))
  workdir.export_checkpoint(str(run / "run"), str(tmp_path / "again"))
  config = hf_weights.read_model_config(tmp_path / "again")
  trained = hf_weights.load_params(tmp_path / "again", config)
  new, old = (np.asarray(tree["embedder"]["embedding"]) for tree in (trained, stored))
  assert len(new) == len(old) + 1
  np.testing.assert_array_equal(new[:-1], old)
  if not config.tie_word_embeddings:
    new, old = (np.asarray(tree["head"]["kernel"]).T for tree in (trained, stored))
    np.testing.assert_array_equal(new[:-1], old)
  assert np.abs(new[-1] - old).max(axis=1).min() > 0.05  # it equals no other row: nothing is left of its start
  record = json.loads((run / "run" / "tokenizer" / "nrt_jax.json").read_text())
  assert record == {"added_ids": [len(old)]}


def stderr_of(capsys, *argv) -> str:
  capsys.readouterr()
  assert __main__.main(list(map(str, argv))) == 0
  return capsys.readouterr().err


def test_every_command_says_how_it_asks(run, capsys):
  """A directory with a chat template is chatted with unless told otherwise."""
  lengths = ("--max_trace_length", "2", "--max_answer_length", "2")
  chat, plain = ("sample", "--model", run / "model", "--prompt", "what is red", *lengths), "plain template"
  line = f"prompts: chat template; marker '{MARKER}' (added); end tokens '<|im_end|>', '<eos>'\n"
  assert stderr_of(capsys, *chat) == line + "sampling prompts 1 to 1 of 1\n"
  assert plain in stderr_of(capsys, *chat, "--template", "plain")
  evaluate = ("evaluate", "--config", run / "run.py", "--model", run / "model")
  assert line in stderr_of(capsys, *evaluate)
  assert plain in stderr_of(capsys, *evaluate, "--config.prompt.template=plain")
  train = ("train", "--config", run / "run.py", "--workdir", run / "run")
  assert line in stderr_of(capsys, *train)  # it has ended: no step is made
  settings = json.loads((run / "run" / "export" / "nrt_jax.json").read_text())
  assert settings["prompt"]["template"] == "chat"  # what the run used


def test_a_start_replaces_defaults_and_nothing_else():
  plain, instruct = (configs.plain(configs.base_config("nrt", start=start), "") for start in (None, "instruct"))
  chosen = configs.STARTS["instruct"]
  for key, value in chosen.items():
    group, name = key.split(".")
    assert instruct[group].pop(name) == value != plain[group].pop(name)
  assert instruct == plain
  assert stages_of(configs.plain(configs.base_config("sft", start="instruct"), ""))[0].prompt.template == "chat"
  with pytest.raises(UserError, match="base_config: start: found 'instuct', allowed: instruct"):
    configs.base_config(start="instuct")
