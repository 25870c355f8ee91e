"""Rotary frequencies against transformers' own functions, and rows that are longer than they are right for."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import toy

from nrt_jax.errors import UserError
from nrt_jax.model import hf_config
from nrt_jax.model.architecture import ModelConfig, RopeScaling
from nrt_jax.model.rope import rope_frequencies
from nrt_jax.step import sizes

SIZES = dict(
  vocab_size=40, hidden_size=64, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
  max_position_embeddings=4096, rope_theta=5e4, rms_norm_eps=1e-6,
)  # fmt: skip
EIGHT = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
SCALINGS = {
  "linear": dict(factor=3.0),
  "dynamic": dict(factor=3.0),
  "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512),
  "yarn": dict(factor=4.0, original_max_position_embeddings=1024),
  "yarn_fine": dict(factor=4.0, truncate=False, beta_fast=8.0, beta_slow=2.0),
  "yarn_deepseek": dict(factor=40.0, mscale=1.0, mscale_all_dim=0.7, original_max_position_embeddings=128),
  "yarn_given": dict(factor=40.0, attention_factor=1.25, original_max_position_embeddings=128),
  "longrope": dict(**EIGHT, original_max_position_embeddings=256),
  "longrope_factor": dict(**EIGHT, factor=6.0, original_max_position_embeddings=256),
}


def read(tmp_path, name, **over) -> ModelConfig:
  rope = {"rope_type": name.partition("_")[0], **SCALINGS[name]}
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES, "rope_scaling": rope}))
  return hf_config.read_model_config(tmp_path, **over)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="transformers computes frequencies with torch")
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name, tmp_path):
  from transformers import AutoConfig
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

  ours = read(tmp_path, name)
  theirs = AutoConfig.from_pretrained(tmp_path)
  lengths = {False: None, True: 300} if "longrope" in name else {False: 4096}  # a long row takes the other factors
  for long, length in lengths.items():
    expected, factor = ROPE_INIT_FUNCTIONS[ours.rope_scaling.rope_type](theirs, "cpu", seq_len=length)
    found = rope_frequencies(dataclasses.replace(ours, long_rope=long))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert ours.rope_scaling.attention_factor == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_survive_an_export(name, tmp_path):
  config = read(tmp_path, name)
  hf_config.write_config(config, tmp_path)
  assert hf_config.read_model_config(tmp_path) == config


def test_longest_rows():
  """Of the two types whose frequencies depend on the length of a row."""
  factors = dict(short_factor=(1.0,) * 16, long_factor=(2.0,) * 16)
  scaling = RopeScaling("longrope", original_max_position_embeddings=64, **factors)
  short = ModelConfig(rope_scaling=scaling, max_position_embeddings=512)
  assert (short.longest_row, dataclasses.replace(short, long_rope=True).longest_row) == (64, 512)
  dynamic = RopeScaling("dynamic", factor=2.0)
  assert dataclasses.replace(short, rope_scaling=dynamic).longest_row == 512
  assert dataclasses.replace(short, rope_scaling=RopeScaling("yarn")).longest_row is None


def test_runs_with_longer_rows_are_refused():
  factors = dict(short_factor=(1.0, 1.0), long_factor=(2.0, 2.0))
  scaling = RopeScaling("longrope", original_max_position_embeddings=512, **factors)
  model = dataclasses.replace(toy.MODEL, rope_scaling=scaling, max_position_embeddings=4096)
  lengths = dict(prompt__max_prompt_length=400, sampling__max_trace_length=100, prompt__max_answer_length=20)
  with pytest.raises(UserError, match="longrope' with rows of up to 521 tokens, allowed: 512, or model.long_rope"):
    sizes.check(toy.setup(model=model, **lengths))
  sizes.check(toy.setup(model=dataclasses.replace(model, long_rope=True), **lengths))
  dynamic = dataclasses.replace(model, rope_scaling=RopeScaling("dynamic"), max_position_embeddings=512)
  with pytest.raises(UserError, match="dynamic' with rows of up to 521 tokens, allowed: 512$"):
    sizes.check(toy.setup(model=dynamic, **lengths))
