"""Packed rows: every example once, and their own row counts."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from paths import DATA

from nrt_jax import config, startup
from nrt_jax.algorithms import sft
from nrt_jax.data import batches, packing, sources
from nrt_jax.errors import UserError
from nrt_jax.model import decoder
from nrt_jax.step import programs

MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)
MARKER_IDS = (toy.MARKER, toy.SECOND_MARKER)
WIDTH = 24
GSM8K = DATA / "gsm8k" / "train.jsonl"


def token_dataset(lengths, widths=(6, 5, 4)):
  """Examples of random tokens; lengths: of prompt, answer and trace."""
  rng = np.random.default_rng(4)
  ids = [[rng.integers(0, toy.MARKER, n).astype(np.int32) for n in column] for column in zip(*lengths)]
  examples = [sources.Example("q", "a", None, f"file:{i + 1}") for i in range(len(lengths))]
  return batches.TokenDataset(examples, *ids, widths, toy.PAD, {})


# 24 of them: rows hold from one example to many, and the last marker and answer of a row may touch its end.
LENGTHS = [(p, a, r) for p, a in [(1, 1), (6, 5), (3, 2), (2, 4)] for r in (0, 1, 2, 3, 4, 0)]


@functools.cache
def packed():
  return packing.pack_dataset(token_dataset(LENGTHS), WIDTH, MARKER_IDS)


# ------------------------------------------------------------------------------------------------------- the rows


def test_best_fit_by_hand():
  """Longest first, each where the least room is left: 4 goes with 6, 3 with 7, though 7 was there first."""
  assert packing.best_fit(np.array([3, 7, 4, 6, 2, 1]), 10) == [[1, 0], [3, 2], [4, 5]]
  assert packing.best_fit(np.array([10, 10]), 10) == [[0], [1]]


def test_rows_hold_every_example_once_and_little_else():
  rng = np.random.default_rng(0)
  length = rng.integers(1, 200, 3000)
  groups = packing.best_fit(length, 256)
  assert sorted(i for group in groups for i in group) == list(range(3000))
  assert max(length[group].sum() for group in groups) <= 256
  assert len(groups) <= 1.02 * length.sum() / 256


def test_columns_of_a_row():
  dataset = packed()
  rows = dataset.gather(range(len(dataset)), np.arange(len(dataset)))
  for b, group in enumerate(dataset.groups):
    token, position, example, kind = [], [], [], []
    for number, i in enumerate(group):
      source = dataset.dataset
      parts = (source.prompts[i], source.traces[i], MARKER_IDS, source.answers[i])
      for k, part in enumerate(parts):
        token += [int(t) for t in part]
        kind += [k] * len(part)
      position += range(sum(map(len, parts)))
      example += [number] * sum(map(len, parts))
    used = len(token)
    pads = [-1] * (WIDTH - used)
    np.testing.assert_array_equal(rows.token_BL[b], token + [toy.PAD] * (WIDTH - used))
    np.testing.assert_array_equal(rows.position_BL[b], position + pads)
    np.testing.assert_array_equal(rows.example_BL[b], example + pads)
    np.testing.assert_array_equal(rows.kind_BL[b], kind + pads)
    length = rows.shown.prompt_length_B[b]
    np.testing.assert_array_equal(rows.shown.prompt_BP[b, -length:], dataset.dataset.prompts[group[0]])
  share = 1 - (rows.position_BL >= 0).mean()
  np.testing.assert_allclose(dataset.padded_share, share, rtol=1e-6)


def test_the_stream_goes_on_at_any_position():
  """Each epoch has every row once, in an order of its own; a batch depends on nothing but where it starts."""
  dataset = packed()
  size, position, seen = len(dataset), batches.Position(), []
  found = []
  while len(seen) < 2 * size:
    rows, after = batches.batch(dataset, position, 3, seed=1)
    again, _ = batches.batch(packing.pack_dataset(token_dataset(LENGTHS), WIDTH, MARKER_IDS), position, 3, seed=1)
    jax.tree.map(np.testing.assert_array_equal, rows, again)
    seen += [row.tobytes() for row in rows.token_BL]
    found.append(rows)
    position = after
  assert len(set(seen[:size])) == len(set(seen[size : 2 * size])) == size
  assert seen[:size] != seen[size : 2 * size]
  halves = [batches.batch(dataset, batches.Position(), 4, 1, host, 2)[0] for host in (0, 1)]
  whole = batches.batch(dataset, batches.Position(), 4, 1)[0]
  jax.tree.map(lambda a, b, c: np.testing.assert_array_equal(np.concatenate([a, b]), c), *halves, whole)


def test_an_example_longer_than_a_row():
  with pytest.raises(UserError, match="data.packing: found 10, allowed: 17 or more, the tokens of file:11"):
    packing.pack_dataset(token_dataset(LENGTHS), 10, MARKER_IDS)


# ------------------------------------------------------------------------------------------------------ the numbers


def setups(**over):
  return toy.setup("sft", model=MODEL, prompt_format=toy.form(MARKER_IDS), **over)


@functools.cache
def gradient_of():
  tools = programs.make_tools(setups())

  @jax.jit
  def gradient(params, batch):
    return jax.value_and_grad(lambda p: sft.loss(tools, None, p, batch).total)(params)

  return gradient


def collect(given, **over):
  setup = setups(**{f"algorithm__{key}": value for key, value in over.items()})
  given = jax.tree.map(jnp.asarray, given)
  return sft.collect(programs.make_tools(setup), setup.run.algorithm, None, given, None).batch


def both_ways():
  """The same examples in rows of their own, and packed."""
  dataset, indices = packed(), [i for group in packed().groups for i in group]
  assert len(indices) > 2 * len(dataset)
  single = dataset.dataset.gather(indices, np.arange(len(indices)))
  return single, dataset.gather(range(len(dataset)), np.arange(len(dataset)))


@pytest.mark.parametrize("over", [
  {}, {"normalisation": "sequence"}, {"normalisation": "constant", "normalisation_constant": 7.0},
  {"train_prompt": True, "train_marker": False},
], ids=["token", "sequence", "constant", "prompt"])  # fmt: skip
def test_packed_rows_train_as_rows_of_their_own(over):
  """Loss and gradient to 1e-5. Without the mask between examples, or counting rows for examples, they'd be others."""
  made = [collect(given, **over) for given in both_ways()]
  (loss, grads), (packed_loss, packed_grads) = (gradient_of()(toy.params(MODEL), batch) for batch in made)
  np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
  assert toy.largest_difference(grads, packed_grads) < 1e-5 * max(1, toy.largest(grads)) and toy.largest(grads) > 0.1

  unmasked = gradient_of()(toy.params(MODEL), made[1].replace(example_NL=None))
  assert abs(float(unmasked[0]) - float(loss)) > 1e-3 and toy.largest_difference(grads, unmasked[1]) > 1e-3
  if over.get("normalisation", "token") != "token":
    tools, run = programs.make_tools(setups()), setups(**{f"algorithm__{k}": v for k, v in over.items()}).run
    rows_counted = sft.weigh(tools, run.algorithm, made[1].answer_coef_NL > 0, made[1].position_NL, None)
    wrong = gradient_of()(toy.params(MODEL), made[1].replace(answer_coef_NL=rows_counted))[0]
    assert abs(float(wrong) - float(loss)) > 0.02


@pytest.mark.parametrize("over", [{"layer_loop": "scan"}, {"sliding_window": 3}], ids=["scan", "window"])
def test_hidden_states_know_nothing_of_other_examples(over):
  """Token by token what a row of its own gives; a window counts positions, which start again in each example."""
  architecture, rows = dataclasses.replace(MODEL, **over), both_ways()[1]
  params = toy.params(architecture)
  forward = jax.jit(lambda t, p, e=None: decoder.forward(params, architecture, t, p, example_NT=e)[0])
  hidden_BLD = np.asarray(forward(rows.token_BL, rows.position_BL, rows.example_BL))
  checked = 0
  for b in range(3):
    for number in range(rows.example_BL[b].max() + 1):
      (at,) = np.nonzero(rows.example_BL[b] == number)
      token, position = np.full((1, WIDTH), toy.PAD, np.int32), np.full((1, WIDTH), -1, np.int32)
      token[0, : len(at)], position[0, : len(at)] = rows.token_BL[b, at], np.arange(len(at))
      np.testing.assert_allclose(hidden_BLD[b, at], forward(token, position)[0, : len(at)], atol=2e-5)
      checked += 1
  assert checked > 4


def test_minibatches_and_micro_batches_of_packed_rows():
  """The whole step: cut into micro-batches, each row counts its own examples, and the step is the same."""
  rows = batches.batch(packed(), batches.Position(), 4, seed=0)[0]

  def step(**over):
    setup = setups(prompts_per_step=4, algorithm__normalisation="sequence", optimizer__minibatches=2, **over)
    states = programs.init_states(setup, jax.tree.map(jnp.copy, toy.params(MODEL)), jax.random.key(2))
    states, metrics, samples = programs.build_train_step(setup)(states, rows)
    assert samples["prompt"].shape[1] == rows.shown.prompt_BP.shape[1]
    return states.policy.params, metrics

  (whole, metrics), (pieces, again) = step(), step(parallel__micro_batches=2)
  assert toy.largest_difference(whole, toy.params(MODEL)) > 1e-3
  assert toy.largest_difference(whole, pieces) < 1e-5
  np.testing.assert_allclose(metrics["loss/total"], again["loss/total"], rtol=1e-5)
  np.testing.assert_allclose(metrics["answer/logp"], again["answer/logp"], rtol=1e-5)


# -------------------------------------------------------------------------------------------------------- the option


def test_training_packs_what_the_config_says(monkeypatch):
  monkeypatch.setattr(batches, "load_dataset", lambda *args: token_dataset(LENGTHS))
  run = toy.run_config("sft", data__packing=WIDTH)
  train_data, _ = startup.read_data(programs.Setup(run, MODEL, toy.form(MARKER_IDS), None), None)
  assert train_data.groups == packed().groups and train_data.marker_ids == MARKER_IDS
  assert isinstance(startup.read_data(toy.setup("sft"), None)[0], batches.TokenDataset)
  stage = startup.Stage(programs.Setup(run, MODEL, toy.form(), None), train_data, None)
  assert startup.describe_data(stage) == f"stage main: 24 examples, packed into {len(packed())} rows"


def test_config_errors():
  with pytest.raises(UserError, match="data.packing: found 64, allowed: 0, or algorithm.name sft"):
    toy.run_config("nrt", data__packing=64)
  with pytest.raises(UserError, match="data.packing: found -1, allowed: 0 or more"):
    sources.DataConfig(packing=-1)
  values = config.defaults("sft")
  values["evaluation"]["data"] = {"packing": 8}
  with pytest.raises(UserError, match="evaluation.data.packing: found 8, allowed: 0"):
    config.stages_of(values)


def test_padding_on_gsm8k():
  """Widths that fit all examples leave two thirds of the columns empty; packed into rows of 1024 it is next to none."""
  if not GSM8K.exists():
    pytest.skip("needs ../shared/data/gsm8k")
  lines = [json.loads(line) for line in GSM8K.read_text().splitlines()[:4000]]
  pieces = {kind: [line[kind].replace("\n", " \n ").split(" ") for line in lines] for kind in ("question", "answer")}
  lengths = [(len(q), len(a), 0) for q, a in zip(pieces["question"], pieces["answer"])]
  widths = tuple(max(column) for column in zip(*lengths))
  dataset = token_dataset(lengths, widths)
  rows = packing.pack_dataset(dataset, 1024, MARKER_IDS)
  tokens = packing.lengths(dataset, MARKER_IDS).sum()
  unpacked = 1 - tokens / (len(lengths) * (sum(widths) + 2))
  assert unpacked > 0.6 and rows.padded_share < 0.01
