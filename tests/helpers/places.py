"""The files a user of the commands has: tiny model directories, a config file and data."""

import json
import pathlib

import chats
import jax

from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import init_params
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


CHAT_WORDS = ("user", "assistant", "system", "what", "is", "the", "colour", "of", "red", "green", "blue")
THINGS = tuple(f"thing{i}" for i in range(64))


def make_chat_model(path: pathlib.Path, tied: bool = False, words: tuple = (), **over) -> pathlib.Path:
  """A directory as an instruct model is published: weights, a tokenizer of words and a ChatML template. Untrained.

  words: further ones. over: fields of ModelConfig.
  """
  tokenizer = word_tokenizer((*CHAT_WORDS, *THINGS, *words), special=("<|im_start|>", "<|im_end|>"))
  tokenizer.chat_template = chats.CHATML
  source = path.with_name(f"{path.name}_words")
  tokenizer.save_pretrained(str(source))
  sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
  sizes |= dict(head_dim=8, max_position_embeddings=128, initializer_range=0.2) | over
  model = ModelConfig(vocab_size=len(tokenizer), tie_word_embeddings=tied, **sizes)
  hf_weights.save_params(init_params(model, jax.random.key(0)), model, path, source=source)
  return path


def write_pairs(path: pathlib.Path, count: int = 64) -> pathlib.Path:
  """Questions of `make_chat_model`'s words and their answers, as JSON Lines."""
  rows = [{"question": f"what is the colour of {THINGS[i]}", "answer": CHAT_WORDS[8 + i % 3]} for i in range(count)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path
