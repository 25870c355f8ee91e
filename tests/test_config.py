"""Configs: nested mappings to dataclasses, stages, config files and overrides; every error names its key."""

import dataclasses

import pytest

from nrt_jax import config
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.commands import configs
from nrt_jax.errors import UserError


def with_stages(*stages, **top):
  return {**config.defaults("nrt"), "total_steps": 50, "stages": list(stages), **top}


PRETRAIN = {"name": "pretrain", "total_steps": 20, "algorithm": {"name": "sft"}, "optimizer": {"learning_rate": 1e-3}}
NRT = {"name": "nrt", "total_steps": 10, "samples_per_prompt": 4, "optimizer": {"learning_rate": 2e-4}}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_defaults_are_the_dataclasses_own(name):
  (run,) = config.stages_of(config.defaults(name))
  assert run == config.RunConfig(name, ALGORITHMS[name].config())
  assert isinstance(hash(run), int)  # programs are built once per config


def test_nothing_is_required():
  assert config.stages_of({}) == config.stages_of(config.defaults("nrt"))


def test_integers_that_are_too_long(tmp_path):
  """Beyond the floats, and beyond what Python writes: a message that shows one would itself fail."""
  with pytest.raises(UserError, match="optimizer.learning_rate: found an integer of 1329 bits, allowed: up to 1.8e308"):
    config.stages_of({"optimizer": {"learning_rate": 10**400}})
  with pytest.raises(UserError, match="seed: found an integer of 16610 bits, allowed: up to 10000"):
    configs.plain({"seed": 10**5000}, "")


def test_types_that_fit():
  values = config.defaults("nrt")
  values["optimizer"]["learning_rate"] = 1  # an int serves as a float
  values["data"]["task_options"] = {"n_digits": 4, "list": [1, [2]]}
  values["data"]["limit"] = None
  (run,) = config.stages_of(values)
  assert isinstance(run.optimizer.learning_rate, float)
  assert run.data.task_options == (("list", (1, (2,))), ("n_digits", 4))


@pytest.mark.parametrize(
  "key,value,message",
  [
    ("total_step", 3, "config: unknown key: found 'total_step'.*did you mean 'total_steps'"),
    ("model.pth", "x", "model: unknown key: found 'pth'.*did you mean 'path'"),
    ("evaluation.data.sorce", "x", "evaluation.data: unknown key: found 'sorce'.*did you mean 'source'"),
    ("algorithm.rewards", "x", "algorithm: unknown key: found 'rewards'.*did you mean 'reward'"),
    ("total_steps", 1.5, "total_steps: found 1.5, allowed: int"),
    ("total_steps", True, "total_steps: found True, allowed: int"),
    ("total_steps", 0, "total_steps: found 0, allowed: 1 to 2147483647"),
    ("total_steps", 2**31, "total_steps: found 2147483648, allowed: 1 to 2147483647"),
    ("prompts_per_step", 2**40, "prompts_per_step: found 1099511627776, allowed: 1 to 1048576"),
    ("samples_per_prompt", 2**40, "samples_per_prompt: found 1099511627776, allowed: 1 to 65536"),
    ("seed", -1, "seed: found -1, allowed: 0 to 4294967295"),
    ("optimizer.learning_rate", "1e-3x", "optimizer.learning_rate: found '1e-3x', allowed: float"),
    ("optimizer.learning_rate", float("nan"), "optimizer.learning_rate: found nan"),
    ("optimizer.learning_rate", float("inf"), "optimizer.learning_rate: found inf, allowed: finite numbers"),
    ("optimizer.ema_for", "export", "optimizer.ema_for: found 'export', allowed: a list"),
    ("evaluation.data.limit", 0, "evaluation.data.limit: found 0, allowed: 1 or more"),
    ("prompt.system", None, "prompt.system: found None, allowed: str"),
    ("model.path", 3, "model.path: found 3, allowed: str or null"),
    ("checkpoint.async_save", 1, "checkpoint.async_save: found 1, allowed: bool"),
    ("data", 3, "data: found 3, allowed: a mapping of keys"),
    ("data.task_options", 3, "data.task_options: found 3, allowed: a mapping"),
    ("data.task_options", [1], "data.task_options: found .1,., allowed: a mapping"),
    ("algorithm", "nrt", "algorithm: found 'nrt', allowed: a mapping of keys"),
    ("algorithm.name", "nrtt", "algorithm.name: found 'nrtt', allowed: .*did you mean 'nrt'"),
    ("algorithm.name", ["nrt"], "algorithm.name: found .'nrt'., allowed: str"),
    ("algorithm.reward", "best", "algorithm.reward: found 'best', allowed: .*geometric_mean"),
    ("sampling.temperature", 0, "sampling.temperature: found 0 .*above 0"),
    ("stages", 3, "stages: found 3, allowed: a list"),
    ("stages", [3], r"stages\[0\]: found 3, allowed: a mapping"),
    ("stages", [{"total_steps": 3}], r"stages\[0\].name: found None"),
    ("stages", [{"name": "a"}, {"name": "a"}], r"stages\[1\].name: found 'a'"),
    ("stages", [{"name": "a", "model": {}}], r"stages\[0\]: unknown key: found 'model'"),
    ("stages", [{"name": "a", "total_steps": "x"}], r"stages\[0\].total_steps: found 'x', allowed: int"),
    ("stages", [{"name": "a", "data": {"sorce": ""}}], r"stages\[0\].data: unknown key: found 'sorce'"),
    ("stages", [{"name": "a", "data": {"limit": 0}}], r"stages\[0\].data.limit: found 0, allowed: 1 or more"),
  ],
)
def test_mistakes_name_their_key(key, value, message):
  values = config.defaults("nrt")
  values["evaluation"]["data"] = {}
  *parents, last = key.split(".")
  at = values
  for parent in parents:
    at = at[parent]
  at[last] = value
  with pytest.raises(UserError, match=f"^{message}") as raised:
    config.stages_of(values)
  assert "\n" not in str(raised.value)


def test_a_verifier_that_needs_the_marker_is_no_grader_of_whole_completions():
  values = {"algorithm": {"name": "grpo"}, "prompt": {"answer_in": "completion"}}
  with pytest.raises(UserError, match="^algorithm.verifier: found 'token_match', .*prompt.answer_in 'completion'"):
    config.stages_of(values)
  assert (
    config.stages_of({**values, "algorithm": {"name": "grpo", "verifier": "math"}})[0].prompt.answer_in == "completion"
  )


@pytest.mark.parametrize(
  "name,over,setting",
  [
    ("nrt", {}, "algorithm.center 'mean' with algorithm.scale 'std'"),
    ("jepo_multi", {"scale": "none"}, "algorithm.center 'multi_sample'"),
    ("jepo", {"center": "mean"}, "algorithm.scale 'advantage_std'"),
    ("nft", {}, "algorithm.negative_weight 1.0"),
    ("nft", {"filter_flat_groups": False}, "algorithm.negative_weight 1.0"),
    ("nft", {"negative_weight": 0.5}, "algorithm.filter_flat_groups"),
    ("rft", {"verifier": "likelihood", "label_map": "affine_clip"}, "algorithm.label_map 'affine_clip'"),
    ("dr_grpo", {}, "algorithm.center 'mean' with algorithm.scale 'none'"),  # R - R: it would never learn
    ("dpo", {}, "algorithm.chosen 'best'"),
  ],
)
def test_one_sample_is_compared_with_nothing(name, over, setting):
  values = {"algorithm": {"name": name, **over}, "samples_per_prompt": 1}
  with pytest.raises(UserError, match=f"samples_per_prompt: found 1, allowed: 2 or more, since .*{setting}.*compares"):
    config.stages_of(values)
  config.stages_of({"algorithm": {"name": "nrt", "center": "none", "scale": "none"}, "samples_per_prompt": 1})
  config.stages_of({"algorithm": {"name": "rft"}, "samples_per_prompt": 1})


def accepts_one_sample(name):
  try:
    return bool(config.stages_of({"algorithm": {"name": name}, "samples_per_prompt": 1}))
  except UserError as error:
    assert str(error).startswith("samples_per_prompt: found 1")
    return False


def test_which_methods_learn_from_one_sample():
  """At their defaults: those whose tokens are not weighed by a comparison. No other method starts, and never learns."""
  assert {name for name in ALGORITHMS if accepts_one_sample(name)} == {"sft", "rationalization", "rft"}


def test_stages_override_the_top_level():
  pretrain, nrt = config.stages_of(with_stages(PRETRAIN, NRT, samples_per_prompt=2))
  assert (pretrain.stage, pretrain.algorithm_name, pretrain.total_steps) == ("pretrain", "sft", 20)
  assert pretrain.algorithm == ALGORITHMS["sft"].config()  # another algorithm starts from its own defaults
  assert (nrt.stage, nrt.algorithm_name, nrt.total_steps, nrt.samples_per_prompt) == ("nrt", "nrt", 10, 4)
  assert pretrain.samples_per_prompt == 2
  assert (pretrain.optimizer.learning_rate, nrt.optimizer.learning_rate) == (1e-3, 2e-4)
  assert dataclasses.replace(nrt.optimizer, learning_rate=1e-3) == pretrain.optimizer


def test_the_top_level_caps_every_stage():
  assert [run.total_steps for run in config.stages_of(with_stages(PRETRAIN, NRT, total_steps=15))] == [15, 10]


def test_reading_leaves_the_mapping_as_it_was():
  values = with_stages(dict(PRETRAIN), dict(NRT))
  before = repr(values)
  config.stages_of(values)
  assert repr(values) == before


# ---- Config files --------------------------------------------------------------------------------------------------

FILE = """\
from nrt_jax.commands.configs import base_config

def get_config():
  config = base_config()
  {body}
  return config
"""


def write(tmp_path, text):
  path = tmp_path / "run.py"
  path.write_text(text)
  return str(path)


def test_file_to_plain_values(tmp_path):
  body = "config.evaluation.data = {'source': 'a.jsonl'}; config.data.task_options.n_digits = 4; config.stages = []"
  values = configs.load_config(write(tmp_path, FILE.format(body=body)))
  expected = config.defaults("nrt")
  expected["evaluation"]["data"], expected["data"]["task_options"] = {"source": "a.jsonl"}, {"n_digits": 4}
  assert values == {**expected, "stages": [], "curriculum": None}
  assert type(values["model"]) is dict


def test_file_imports_its_neighbours(tmp_path):
  (tmp_path / "neighbour_of_run.py").write_text("STEPS = 7\n")
  text = "import neighbour_of_run\n" + FILE.format(body="config.total_steps = neighbour_of_run.STEPS")
  assert configs.load_config(write(tmp_path, text))["total_steps"] == 7


@pytest.mark.parametrize(
  "text,message",
  [
    ("def get_config(:\n", r"run.py:1: invalid syntax"),
    ("x = 1\n", r"run.py: defines no function get_config\(\)"),
    ("import nothing_of_this_name\n", r"run.py:1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ("\ndef get_config():\n  return 1 / 0\n", r"run.py:3: ZeroDivisionError: division by zero"),
    ("def get_config():\n  return 3\n", r"run.py: get_config\(\) returned int"),
    ("def get_config():\n  return {'a': {'b': print}}\n", r"a.b: found a builtin_function_or_method"),
    ("\x00", r"run.py:1: .*null bytes"),
    (FILE.format(body="config.modle = 1"), r'run.py:5: AttributeError: .*"modle"'),
    (FILE.format(body="config.model.pth = 1"), r'run.py:5: AttributeError: .*"pth"'),
    (FILE.format(body="config.seed = 'x'"), r"run.py:5: TypeError: .*<class 'int'>"),
    (FILE.format(body="config = base_config('nrtt')"), r"^algorithm.name: found 'nrtt'"),
    (
      FILE.format(body="config.stages = [{'name': 'a', 'total_steps': 800}]"),
      r"run.py: stages\[0\].total_steps: found 800, allowed: at most the top-level total_steps \(100\)",
    ),
  ],
)
def test_mistakes_in_the_file_name_its_line(tmp_path, text, message):
  with pytest.raises(UserError, match=message) as raised:
    configs.load_config(write(tmp_path, text))
  assert "\n" not in str(raised.value)


def test_missing_file(tmp_path):
  with pytest.raises(UserError, match="--config: .*nothing.py: no such file"):
    configs.load_config(str(tmp_path / "nothing.py"))


# ---- Overrides -----------------------------------------------------------------------------------------------------


def overridden(*overrides, values=None):
  values = configs.plain(with_stages() if values is None else values, "")
  for text in overrides:
    keys, value = configs._read_override("--config." + text)
    configs.override(values, keys, value)
  return values


@pytest.mark.parametrize(
  "text,old,expected",
  [
    ("3", 1, 3),
    ("-3", None, -3),
    ("1e-5", 0.1, 1e-5),
    ("true", False, True),
    ("True", False, True),
    ("null", "a", None),
    ("none", "a", "none"),  # a choice of several keys
    ("[1, 2]", None, [1, 2]),
    ("['a']", None, ["a"]),
    ('{"a": 1}', {}, {"a": 1}),
    ("2024", "heldout", "2024"),  # a text stays a text
    ("true", "a", "true"),
    ('"2024"', None, "2024"),
    ("runs/a=b", None, "runs/a=b"),
    ("", "a", ""),
    ("</think>", "<|marker|>", "</think>"),
  ],
)
def test_values_of_overrides(text, old, expected):
  value = configs.parse_value(text, old)
  assert value == expected and type(value) is type(expected)


def test_overrides_reach_nested_keys():
  values = overridden("optimizer.learning_rate=3", "data.task_options.n_digits=4", "evaluation.data.source=x.jsonl")
  (run,) = config.stages_of(values)
  assert run.optimizer.learning_rate == 3.0
  assert run.data.task_options == (("n_digits", 4),)
  assert run.evaluation.data.source == "x.jsonl"


def test_another_algorithm_is_one_override(tmp_path):
  path = write(tmp_path, FILE.format(body="pass"))
  values = configs.load_config(path, ["--config.algorithm.train_prompt=true", "--config.algorithm.name=sft"])
  (run,) = config.stages_of(values)
  assert run.algorithm == ALGORITHMS["sft"].config(train_prompt=True)
  same = configs.load_config(path, ["--config.algorithm.name=nrt"])
  assert same == configs.load_config(path)


def test_overrides_reach_into_stages_by_name_and_number():
  values = with_stages(PRETRAIN, NRT)
  values = overridden("stages.nrt.optimizer.learning_rate=5e-5", "stages.0.sampling.max_trace_length=7", values=values)
  pretrain, nrt = config.stages_of(values)
  assert (pretrain.optimizer.learning_rate, nrt.optimizer.learning_rate) == (1e-3, 5e-5)
  assert (pretrain.sampling.max_trace_length, nrt.sampling.max_trace_length) == (7, 64)


def test_total_steps_caps_every_stage_from_the_command_line():
  runs = config.stages_of(overridden("total_steps=3", values=with_stages(PRETRAIN, NRT)))
  assert [run.total_steps for run in runs] == [3, 3]


def test_override_holds_in_the_stages_that_leave_the_key_alone():
  values = overridden("samples_per_prompt=16", "algorithm.reward=prob", values=with_stages(PRETRAIN, NRT))
  runs = config.stages_of(values)
  assert [run.samples_per_prompt for run in runs] == [16, 4]
  assert runs[1].algorithm.reward == "prob"


@pytest.mark.parametrize(
  "text,message",
  [
    ("seed", "--config.seed: allowed: --config.KEY=VALUE"),
    ("a..b=3", "--config.a..b=3: allowed"),
    ("seed.x=3", "--config.seed: found 0 there, which has no keys inside"),
    ("stages.2.total_steps=3", "--config.stages.2: found no such stage, allowed: pretrain, nrt"),
    ("stages.0=3", "--config.stages.0: allowed: a key inside of a stage"),
    ("optimizer.learning_rate=1", "--config.optimizer.learning_rate: every stage sets it for itself"),
  ],
)
def test_overrides_that_cannot_be_placed(text, message):
  with pytest.raises(UserError, match=message):
    overridden(text, values=with_stages(PRETRAIN, NRT))
