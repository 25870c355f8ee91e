"""Every entry of ALGORITHMS traces; docs/methods.md is up to date and matches what batches contain."""

import dataclasses
import functools
import importlib.util

import jax
import pytest
import toy
from likelihoods import given, split
from paths import DOCS

from nrt_jax.algorithms import verifier_free
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.step import programs


def load(name: str):
  """A script of docs/."""
  spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


make_methods = load("make_methods")

ONE_LAYER = dataclasses.replace(toy.MODEL, num_hidden_layers=1)
FAMILY = [name for name, row in ALGORITHMS.items() if issubclass(row.config, verifier_free.VerifierFreeConfig)]


def test_methods_are_up_to_date():
  page = (DOCS / "methods.md").read_text(encoding="utf-8")
  assert make_methods.page() == page, "run: python docs/make_methods.py"


def test_every_method_has_its_page(monkeypatch):
  """With an equation, a source, a config that test_docs_commands.py loads, when to use it, and how it fails."""
  monkeypatch.syspath_prepend(str(DOCS))
  maker = load("make_method_pages")
  assert {path.stem for path in (DOCS / "methods").glob("*")} == set(ALGORITHMS) == set(maker.method_notes.NOTES)
  for name in ALGORITHMS:
    page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert maker.page(name) == page, "run: python docs/make_method_pages.py"
    parts = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    assert list(parts) == ["Equation", "Defaults", "Config", "When to use it", "Known failures"]
    assert f'base_config("{name}")' in parts["Config"] and "\n    " in parts["Equation"]
    assert all("\n- " in parts[part] for part in ("When to use it", "Known failures"))


def test_a_method_without_a_description_is_an_error():
  @dataclasses.dataclass(frozen=True)
  class Config:
    pass

  with pytest.raises(TypeError, match="describe Config"):
    make_methods.cells(Config())


@pytest.mark.parametrize("name", FAMILY)
def test_tokens_with_gradient(name):
  """What the page says of a row's tokens is what its coefficients do."""
  batch = given(name, [split(x) for x in (-1, -2, -3)], split(-4), ends=["marker", "marker", "other"]).batch
  said = make_methods.trace_tokens(ALGORITHMS[name].config()).split(", ")
  assert ("reference answer" in said) == bool(batch.answer_coef_NL.any())
  assert any(part.startswith("forced marker") for part in said) == bool(batch.format_coef_NL.any())
  assert {"trace", "marker"} <= set(said) and batch.trace_coef_NL.any()


def test_other_settings_are_told():
  over = {"reward": "mean_log_prob", "answer_coef": 0.5, "trace_loss": "cispo", "clip_answer": True, "format_coef": 0.3}
  config = ALGORITHMS["rl_logit"].config(**over)
  reward, baseline, advantage, weight, region, tokens = make_methods.cells(config)
  assert (reward, weight, advantage) == ("mean log c", "0.5 · 1/T", "unscaled") and baseline == "mean of the others"
  assert region == "CISPO 0.8, 1.28, the answer's tokens too" and "forced marker (0.3 cross-entropy)" in tokens


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_is_a_program(name):
  """With minibatches and micro-batches the step traces, and returns states of the shapes that it took."""
  over = {"algorithm__trace_loss": "ppo_clip"} if name in ("rloo", "jepo", "jepo_multi", "latro", "rl_logit") else {}
  setup = toy.setup(name, ONE_LAYER, optimizer__minibatches=2, parallel__micro_batches=2, **over)
  states = programs.abstract_states(setup)
  after, metrics, _ = jax.eval_shape(functools.partial(programs.train_step, setup), states, toy.prompts(8))
  assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), states)
  assert "loss/total" in metrics and all(value.shape == () for value in metrics.values())
