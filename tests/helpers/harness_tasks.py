"""Tasks of lm-evaluation-harness whose data are files here, and a model directory that any backend can open."""

import json
import pathlib

import jax
import yaml

from nrt_jax.data import prompts
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import init_params

TEXT = "The red fox ran over the hill. A dog sat by the door, and the cat slept. Why? Nobody knows. "
MARKER = "<|response_start|>"

CHOICES = [
  {"question": "The fox is", "choices": ["red", "blue and old", "a door"], "label": 0},
  {"question": "The cat slept. Why did the dog sit?", "choices": ["Nobody knows", "hill", "The"], "label": 1},
  {"question": "A", "choices": ["a", "b", "c", "d"], "label": 2},  # of one token each
  {"question": "One", "choices": ["x", "y", "z", "x y"], "label": 3},
  {"question": "Over the hill ran the fox, and " * 8, "choices": ["a fox", "a dog"], "label": 0},  # longer than rows
]
QUESTIONS = [{"question": f"{word} fox", "answer": word} for word in ("red", "old", "a", "the door")]
QUESTIONS += [{"question": "the cat slept by the door " * 12, "answer": "Nobody"}]  # loses its beginning
DOCUMENTS = [{"text": TEXT[:20]}, {"text": TEXT * 4}, {"text": "a"}]  # the second fills several windows

TASKS = {
  "local_choice": {
    "output_type": "multiple_choice", "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "label",
    "doc_to_choice": "choices", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}], "rows": CHOICES,
  },
  "local_answer": {
    "output_type": "generate_until", "doc_to_text": "{{question}} is", "doc_to_target": "answer", "rows": QUESTIONS,
    "generation_kwargs": {"until": ["e", " \n"], "max_gen_toks": 12}, "metric_list": [{"metric": "exact_match"}],
  },
  "local_perplexity": {
    "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}", "rows": DOCUMENTS,
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
  },
}  # fmt: skip


def write_tasks(path: pathlib.Path) -> pathlib.Path:
  """The tasks as YAML files beside their data; data sets are cached there, too."""
  path.mkdir()
  for name, task in TASKS.items():
    file = path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in task["rows"]))
    given = {key: value for key, value in task.items() if key != "rows"}
    data = {"data_files": {"test": str(file)}, "cache_dir": str(path / "cache")}
    given |= {"task": name, "dataset_path": "json", "dataset_kwargs": data, "metadata": {"version": 1.0}}
    given |= {"test_split": "test", "fewshot_split": "test"}
    (path / f"{name}.yaml").write_text(yaml.safe_dump(given))
  return path


def make_model(path: pathlib.Path, marker: bool = False, chat_template: str | None = None, **settings) -> pathlib.Path:
  """A Llama with random weights and a byte-level tokenizer. marker: it has the marker's token, as an export does."""
  words = path.with_name(f"{path.name}_words")
  special = ("<|im_start|>", "<|im_end|>", *((MARKER,) if marker else ()))
  tokenizer = prompts.byte_pair_tokenizer([TEXT], 310, special=special)
  tokenizer.chat_template = chat_template
  tokenizer.save_pretrained(str(words))
  sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
  sizes |= dict(head_dim=8, max_position_embeddings=64, initializer_range=0.3, rope_theta=1e4)
  model = ModelConfig(vocab_size=len(tokenizer) + 6, **sizes)  # rows behind the last token, as many models have them
  params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(2))
  ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
  hf_weights.save_params(params, model, path, source=words, token_ids=ids, settings=settings or None)
  return path
