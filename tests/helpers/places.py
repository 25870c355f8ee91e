"""The files a user of the commands has: a tiny model directory and a config file."""

import pathlib

from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.tasks.running_sum import RunningSum

CONFIG = """\
from nrt_jax.commands.configs import base_config

def get_config():
  config = base_config({algorithm!r})
  config.model.path = {model!r}
  config.model.weights = "random"
  config.prompt.max_prompt_length = 11
  config.prompt.max_answer_length = 8
  config.sampling.max_trace_length = 4
  config.data.examples = 40
{more}
  return config
"""


def make(path: pathlib.Path, algorithm: str = "nrt", **settings) -> pathlib.Path:
  """Makes both in `path`; `settings` holds keys like `optimizer__eps=1e-8`."""
  model = path / "model"
  model.mkdir()
  tokenizer = word_tokenizer(RunningSum().words, str(model))
  sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
  architecture = ModelConfig(vocab_size=len(tokenizer), head_dim=4, max_position_embeddings=64, **sizes)
  hf_weights.write_config(architecture, model)
  more = "\n".join(f"  config.{key.replace('__', '.')} = {value!r}" for key, value in settings.items())
  (path / "config.py").write_text(CONFIG.format(algorithm=algorithm, model=str(model), more=more))
  return path
