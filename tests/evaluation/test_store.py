"""What was written is found again by what determines it, and by nothing else."""

import dataclasses
import json
import math

import numpy as np
import pytest

from nrt_jax.data.batches import TokenDataset
from nrt_jax.evaluation.store import Store, Written

WRITTEN = Written([[1, 2], []], [-0.1, -2.0 / 3], -1e-17)
SETTINGS = {"seed": 0, "weights": "ab"}


def dataset(prompts=((1, 2), (3,)), answers=((4,), (4,)), hints=None) -> TokenDataset:
  columns = ([np.array(ids, np.int32) for ids in column] for column in (prompts, answers, [[]] * len(prompts)))
  hints = hints and [np.array(ids, np.int32) for ids in hints]
  return TokenDataset([None] * len(prompts), *columns, (2, 1, 0), 0, {}, hints=hints)


@pytest.fixture
def place(tmp_path):
  store = Store(str(tmp_path / "new"), "gsm8k", SETTINGS)
  store.add(dataset(), 0, WRITTEN)
  return tmp_path / "new"


def test_a_line_is_found_again_to_the_last_bit(place):
  assert Store(str(place), "gsm8k", SETTINGS).find(dataset(), 0) == WRITTEN
  (path,) = place.iterdir()
  settings, line = map(json.loads, path.read_text().splitlines())
  assert settings == {"settings": SETTINGS} and line["tokens"] == [[1, 2], []] and "earned" not in line


def test_all_of_a_line_is_kept(place):
  store, whole = Store(str(place), "x", SETTINGS), Written([[1]], [0.5], 0.25, [1.0], [0.0])
  store.add(dataset(), 1, whole)
  assert Store(str(place), "x", SETTINGS).find(dataset(), 1) == whole == store.find(dataset(), 1)
  assert None not in dataclasses.astuple(whole)


@pytest.mark.parametrize("change", [{"seed": 1}, {"weights": "ac"}, {"more": None}])
def test_other_settings_are_another_file(place, change):
  store = Store(str(place), "gsm8k", SETTINGS | change)
  assert store.find(dataset(), 0) is None
  store.add(dataset(), 0, WRITTEN)
  assert len(list(place.iterdir())) == 2


def test_another_question_is_not_known(place):
  store = Store(str(place), "gsm8k", SETTINGS)
  assert store.find(dataset(), 1) is None and Store(str(place), "svamp", SETTINGS).find(dataset(), 0) is None
  assert store.find(dataset(prompts=((1, 3), (3,))), 0) is None
  assert store.find(dataset(answers=((5,), (4,))), 0) is None  # it is scored, too
  assert store.find(dataset(prompts=((3,), (1, 2))), 1) is None  # its place seeds its samples
  assert store.find(dataset(hints=((7,), (8,))), 0) is None


def test_lines_that_are_not_whole_are_no_lines(place):
  (path,) = place.iterdir()
  settings, line = path.read_text().splitlines()
  wrong = [line[:-9], "3", "null", "[]", line.replace("[[1, 2], []]", "7"), line.replace("tokens", "words")]
  path.write_text("\n".join([settings, *wrong]))
  store = Store(str(place), "gsm8k", SETTINGS)
  assert store.find(dataset(), 0) is None
  store.add(dataset(), 0, WRITTEN)
  assert Store(str(place), "gsm8k", SETTINGS).find(dataset(), 0) == WRITTEN


def test_what_json_cannot_hold_is_not_kept(place):
  store = Store(str(place), "gsm8k", SETTINGS)
  for value in (math.nan, -math.inf):
    store.add(dataset(), 1, Written([[1], [2]], [-1.0, value], -2.0))
  assert store.find(dataset(), 1) is None and len(next(place.iterdir()).read_text().splitlines()) == 2
