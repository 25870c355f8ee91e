"""`nrt-jax sample`: samples traces and answers for prompts from a model directory."""

import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator

import jax
import numpy as np

from nrt_jax import config, sharding
from nrt_jax import workdir as workdirs
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.commands import output
from nrt_jax.data import batches, columns, endings, prompts
from nrt_jax.data.prompts import PromptConfig
from nrt_jax.data.readers import read_jsonl
from nrt_jax.errors import UserError
from nrt_jax.files import cache_directory
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.hf_config import read_json
from nrt_jax.rollout.sampler import SamplingConfig
from nrt_jax.step import policy, programs

TRACE_LENGTH = 512  # if set by neither a flag nor the model directory
FORMAT_FLAGS = ("template", "system", "marker", "trace_open", "max_answer_length")


def run(args) -> None:
  questions = read_questions(args)
  prompt, trace_length = read_settings(args)
  source = config.ModelSource(args.model, compute_dtype=args.compute_dtype)
  tokenizer, form = policy.open_tokenizer(source, prompt)
  workdirs.keep_compiled(cache_directory())
  mesh = None
  if args.tensor > 1:
    mesh = sharding.make_mesh(sharding.ParallelConfig(tensor=args.tensor), jax.devices()[: args.tensor])
  model = policy.read_architecture(source, form, args.tensor, mesh)
  temperature = args.temperature if args.temperature is not None else float(args.samples > 1)
  new_tokens = trace_length + len(form.marker_ids) + prompt.max_answer_length
  sampling = SamplingConfig(new_tokens, temperature, args.top_k, args.top_p)
  ids = encode(tokenizer, form, prompt, questions, model, new_tokens)
  run_config = config.RunConfig("sft", ALGORITHMS["sft"].config(), model=source, prompt=prompt)
  setup = programs.Setup(run_config, model, form, mesh)
  with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    params = policy.load_policy(source, model, form, args.seed, mesh)
    output.note(endings.describe(tokenizer, form))
    generate = programs.build_generate(setup, sampling, args.samples)
    for number, token_ids in completions(generate, params, ids, form, args):
      write(questions[number], tokenizer, form, token_ids, args.json)


# ---- Input ---------------------------------------------------------------------------------------------------------


def read_questions(args) -> list:
  """Strings, or tuples of messages: from --prompt, then --file; from standard input if neither is given."""
  questions = list(args.prompt or ())
  if args.file:
    if not pathlib.Path(args.file).is_file():
      raise UserError(f"--file: {args.file}: no such file")
    questions += [_question(where, row) for where, row in read_jsonl(pathlib.Path(args.file))]
  if not args.prompt and not args.file:
    if sys.stdin.isatty():
      raise UserError("--prompt: found none, allowed: --prompt TEXT, --file FILE, or lines on standard input")
    questions = read_standard_input()
  if not questions:
    raise UserError(f"--file: {args.file or 'standard input'} holds no prompt")
  for number, question in enumerate(questions, 1):
    texts = [question] if isinstance(question, str) else [message["content"] for message in question]
    if not all(is_unicode(text) for text in texts):
      raise UserError(f"prompt {number}: is not valid Unicode text")
  return questions


def read_standard_input() -> list[str]:
  try:
    return [line for line in sys.stdin.read().splitlines() if line.strip()]
  except UnicodeDecodeError as error:
    raise UserError("standard input: not UTF-8 text") from error


def is_unicode(text: str) -> bool:
  """Whether `text` has no lone surrogates, which JSON escapes and non-UTF-8 flags may contain."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _question(where: str, row: dict):
  if isinstance(row.get("messages"), list):
    return columns.question(row, "messages", where)
  if isinstance(row.get("question"), str):
    return row["question"]
  raise UserError(f'{where}: allowed: {{"question": text}}, or {{"messages": [...]}} whose last turn is the user\'s')


def read_settings(args) -> tuple[PromptConfig, int]:
  """(prompt format, longest trace): from the flags, else nrt_jax.json of the model directory, else defaults."""
  path = pathlib.Path(args.model) / hf_weights.SETTINGS_FILE
  settings = read_json(path) if path.is_file() else {}
  prompt = dict(settings.get("prompt") or {})
  prompt |= {name: getattr(args, name) for name in FORMAT_FLAGS if getattr(args, name) is not None}
  trace_length = args.max_trace_length or settings.get("max_trace_length") or TRACE_LENGTH
  return config.build(PromptConfig, prompt, f"{path.name}: prompt"), trace_length


def encode(tokenizer, form, prompt: PromptConfig, questions: list, model: ModelConfig, new_tokens: int) -> list:
  """Token ids of each prompt. Raises UserError if one is empty, or too long for the model."""
  encoded = prompts.encode_prompts(tokenizer, form, prompt, questions)
  positions = min(model.max_position_embeddings, model.longest_row or model.max_position_embeddings)
  room = positions - new_tokens
  for number, ids in enumerate(encoded, 1):
    if not 1 <= len(ids) <= room:
      raise UserError(
        f"prompt {number}: found {len(ids)} tokens, allowed: 1 to {room} (the model's {positions} "
        f"positions less {new_tokens} for trace, marker and answer)"
      )
  return encoded


# ---- Output --------------------------------------------------------------------------------------------------------


def completions(generate, params, prompt_ids: list, form, args) -> Iterator[tuple[int, list]]:
  """Yields (index of the prompt, token ids of a completion), in order. All batches have the same shape.

  Says which prompts are next: a batch may take minutes, and its completions come all at once.
  """
  width, size = max(map(len, prompt_ids)), min(args.batch, len(prompt_ids))
  key = jax.random.key(args.seed)
  for start in range(0, len(prompt_ids), size):
    numbers = np.minimum(np.arange(start, start + size), len(prompt_ids) - 1)  # pads the last batch
    rows = [prompt_ids[n] for n in numbers]
    batch = batches.pack(rows, [[form.eos_id]] * size, [[]] * size, numbers, (width, 1, 0), form.pad_id)
    output.note(f"sampling prompts {start + 1} to {min(start + size, len(prompt_ids))} of {len(prompt_ids)}")
    rollouts = generate(params, batch, key)
    tokens, lengths = np.asarray(rollouts.token_NR), np.asarray(rollouts.length_N)
    for row in range(min(size, len(prompt_ids) - start) * args.samples):
      yield start + row // args.samples, tokens[row, : lengths[row]].tolist()


def write(question, tokenizer, form, token_ids: list, as_json: bool) -> None:
  """Prints one completion."""
  trace_ids, answer_ids = prompts.split_completion(form, token_ids)
  trace = prompts.decode(tokenizer, trace_ids).strip()
  answer = None if answer_ids is None else prompts.decode(tokenizer, answer_ids).strip()
  if as_json:
    shown = {"question": question, "trace": trace, "answer": answer, "trace_length": len(trace_ids)}
    print(json.dumps(shown, ensure_ascii=False), flush=True)
    return
  text = question if isinstance(question, str) else question[-1]["content"]
  answer = "(none: the model did not close its trace)" if answer is None else answer
  print(f"prompt: {text}\ntrace:  {trace}\nanswer: {answer}\n", flush=True)
