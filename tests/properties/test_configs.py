"""Properties of configs and their overrides, whatever they hold."""

import contextlib
import functools
import io
import json
import os

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from inputs import JSON, LEAVES, TEXT, drawn, outcome, reversed_keys

from nrt_jax import __main__, config
from nrt_jax.commands import configs


@functools.cache
def keys_of(algorithm: str) -> tuple:
  """All keys of the config, with groups and leaves: "optimizer", "optimizer.eps", ..."""

  def walk(values, before):
    for key, value in values.items():
      yield before + key
      if isinstance(value, dict):
        yield from walk(value, f"{before}{key}.")

  return tuple(walk(base(algorithm), ""))


def base(algorithm: str) -> dict:
  return {**config.defaults(algorithm), "stages": [], "curriculum": None}


HUGE = (10**400, -(10**400), 2**63, -(2**31), 1e308, 5e-324, -1.0, 0, 1)


def like(value):
  """Values of its type: mild ones, and such as are out of bounds."""
  if isinstance(value, bool):
    return st.booleans()
  if isinstance(value, (int, float)):
    mild = st.integers(1, 64) if isinstance(value, int) else st.floats(0, 1)
    return mild | mild | st.integers() | st.floats() | st.sampled_from(HUGE)
  if isinstance(value, str):
    return st.just(value) | st.sampled_from(["auto", "all", "none", "full", "task:zigzag", "{question}{answer}"]) | TEXT
  return st.just(value) | (st.lists(LEAVES, max_size=3) if isinstance(value, list) else JSON)


STAGE = st.fixed_dictionaries(
  {}, optional={"name": st.sampled_from(["a", "b", ""]) | LEAVES, "total_steps": LEAVES, "data": JSON, "stop": JSON,
                "algorithm": st.fixed_dictionaries({"name": st.sampled_from(["nrt", "sft"])}) | JSON, "optimizer": JSON,
                "curriculum": JSON, "nonsense": JSON}
)  # fmt: skip


@st.composite
def config_values(draw):
  """The values of a config with a few keys changed, most of them to what they can't be."""
  algorithm = draw(st.sampled_from(["nrt", "sft", "grpo", "raro"]))
  values = base(algorithm)
  for key in draw(st.lists(st.sampled_from(keys_of(algorithm)), max_size=2)):
    *groups, last = key.split(".")
    node = functools.reduce(lambda node, key: node.get(key) if isinstance(node, dict) else None, groups, values)
    if isinstance(node, dict):
      node[last] = draw(like(node.get(last)) if draw(st.integers(0, 3)) else LEAVES)
  if draw(st.sampled_from([True, False, False])):
    values["stages"] = draw(st.lists(STAGE, max_size=2) | JSON)
  return values


@drawn
@given(config_values())
def test_a_config_is_read_or_refused(values):
  before = repr(values)
  runs = outcome(config.stages_of, values)
  assert repr(values) == before
  assert repr(runs) == repr(outcome(config.stages_of, values))
  if not isinstance(runs, str):
    assert runs == config.stages_of(reversed_keys(values))  # the order of keys says nothing
    assert runs == config.stages_of(json.loads(json.dumps(values)))  # as config.json keeps them
    hash(tuple(runs))


OVERRIDES = st.one_of(
  st.builds("{}={}".format, st.sampled_from(keys_of("nrt")), TEXT | st.integers() | st.floats() | JSON.map(repr)),
  st.builds("{}={}".format, st.lists(st.text("as.0_x", max_size=6)).map(".".join), TEXT),
  TEXT,
)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("properties") / "config.py"
  path.write_text("from nrt_jax.commands.configs import base_config\nget_config = base_config\n")
  return str(path)


@drawn
@given(st.lists(OVERRIDES, min_size=1, max_size=3))
def test_overrides_are_taken_or_refused_in_one_line(config_file, overrides):
  flags = [configs.CONFIG_PREFIX + text for text in overrides]

  def read():
    return config.stages_of(configs.load_config(config_file, flags))

  if not isinstance(outcome(read), str):
    return  # it would train
  with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()) as stdout:
    code = __main__.main(["train", "--config", config_file, "--workdir", config_file + ".run", *flags])
  assert code == 2 and stdout.getvalue() == "" and not os.path.exists(config_file + ".run")
  assert stderr.getvalue().startswith("nrt-jax: ") and stderr.getvalue().count("\n") == 1
  assert stderr.getvalue()[:-1].isprintable() or "\t" in stderr.getvalue()


@drawn
@given(LEAVES.filter(lambda value: not isinstance(value, str)) | JSON)
def test_a_value_that_is_written_as_json_or_python_is_read_back(value):
  assume(not isinstance(value, str))
  assert repr(configs.parse_value(json.dumps(value))) == repr(json.loads(json.dumps(value)))
  if "inf" not in repr(value) and "nan" not in repr(value):
    assert repr(configs.parse_value(repr(value))) == repr(value)
