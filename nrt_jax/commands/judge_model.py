"""A judge in this process: a model directory or a run's checkpoint, sampled with our own programs."""

import argparse
import dataclasses
import os
from dataclasses import dataclass, field

import jax
import numpy as np

from nrt_jax import config
from nrt_jax import workdir as workdirs
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.commands import export, output, sample
from nrt_jax.data import batches, endings
from nrt_jax.data import prompts as texts
from nrt_jax.errors import UserError
from nrt_jax.evaluation.judging import prompts
from nrt_jax.evaluation.judging.asking import Refused
from nrt_jax.evaluation.judging.cache import Reply
from nrt_jax.files import cache_directory
from nrt_jax.processes import fingerprint
from nrt_jax.records import digests
from nrt_jax.rollout.sampler import SamplingConfig
from nrt_jax.step import judge, policy, programs

COLUMNS = 128  # prompts are padded to a multiple: few programs, whatever their lengths
OTHER_TEMPERATURE = 0.7  # at least, where an unreadable reply is asked for again


def open_model(args, tokens: int) -> "Model":
  """The judge that --model or --checkpoint names."""
  workdirs.keep_compiled(cache_directory())
  if args.checkpoint:
    setup, tokenizer, params = open_checkpoint(args)
  else:
    prompt, _ = sample.read_settings(argparse.Namespace(model=args.model, max_trace_length=None, **NO_FLAGS))
    source = config.ModelSource(args.model, compute_dtype=args.compute_dtype)
    run = config.RunConfig("sft", ALGORITHMS["sft"].config(), model=source, prompt=as_asked(prompt, args.read))
    tokenizer, setup = open_setup(run)
    params = policy.load_policy(source, setup.model, setup.form, args.seed)
  output.note(endings.describe(tokenizer, setup.form))
  return Model(args.model or args.checkpoint, setup, tokenizer, params, args.read == "probabilities",
               args.temperature, tokens, args.seed, args.batch)  # fmt: skip


NO_FLAGS = dict.fromkeys(sample.FORMAT_FLAGS)


def open_checkpoint(args):
  """(Setup, tokenizer, parameters) of a run's checkpoint."""
  workdir = export.find_workdir(args.checkpoint)
  step, run = export.find_step(workdir, args.step), workdirs.read_run(workdir)[-1]
  source = dataclasses.replace(
    run.model, path=os.path.join(workdir, "tokenizer"), compute_dtype=args.compute_dtype
  )
  prompt = as_asked(dataclasses.replace(run.prompt, tokenizer=None, chat_template=None), args.read)
  tokenizer, setup = open_setup(dataclasses.replace(run, model=source, prompt=prompt))
  averaged = programs.averages(run, "evaluation")
  return setup, tokenizer, workdirs.read_policy(workdir, setup.model, step=step, averaged=averaged)


def open_setup(run):
  tokenizer, form = policy.open_tokenizer(run.model, run.prompt)
  return tokenizer, programs.Setup(run, policy.read_architecture(run.model, form), form, None)


def as_asked(prompt, read: str):
  """The prompt's settings; where a verdict is the next token, each prompt ends with what stands before it."""
  return dataclasses.replace(prompt, trace_open=prompts.OPENING) if read == "probabilities" else prompt


@dataclass
class Model:
  """See asking.py. A reply does not depend on what else is in the batch."""

  name: str
  setup: programs.Setup
  tokenizer: object
  params: object
  probabilities: bool
  temperature: float
  max_tokens: int
  seed: int
  batch: int
  workers: int = 0
  identity: dict = field(init=False)

  def __post_init__(self):
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(self.params)}
    prompt, words = self.setup.run.prompt, sorted(self.tokenizer.get_vocab().items())
    template = (prompt.system, prompt.trace_open, prompt.template_options, self.tokenizer.chat_template)
    self.identity = {
      "weights": fingerprint(digests.of_arrays(leaves)),
      "text": fingerprint([dataclasses.asdict(self.setup.form), template, words]),
      "compute_dtype": self.setup.run.model.compute_dtype,
    }
    self._programs, self._ids = {}, self._verdict_ids() if self.probabilities else ()

  def request_for(self, prompt: str, attempt: int) -> dict:
    if self.probabilities:
      return {"prompt": prompt, "read": "probabilities"}
    temperature = self.temperature if attempt == 0 else max(self.temperature, OTHER_TEMPERATURE)
    return {"prompt": prompt, "temperature": temperature, "max_tokens": self.max_tokens, "seed": self.seed + attempt}

  def ask(self, requests: list) -> list:
    """A Reply each, or Refused where a prompt is too long for the model."""
    found = [None] * len(requests)
    encoded = texts.encode_prompts(
      self.tokenizer, self.setup.form, self.setup.run.prompt, [request["prompt"] for request in requests]
    )
    positions = min(self.setup.model.max_position_embeddings, self.setup.model.longest_row or 2**31)
    room = positions - (1 if self.probabilities else self.max_tokens)
    alike = {}  # prompts of one program
    for i, (request, ids) in enumerate(zip(requests, encoded)):
      if len(ids) > room:
        found[i] = Refused(f"a prompt of {len(ids)} tokens, where the model has room for {room}")
      else:
        alike.setdefault((request.get("temperature"), request.get("seed")), []).append(i)
    for (temperature, seed), rows in alike.items():
      batch = self._pack([encoded[i] for i in rows], room)
      replies = self._choose(batch) if self.probabilities else self._write(batch, temperature, seed)
      for i, reply in zip(rows, replies):
        found[i] = reply
    return found

  def close(self) -> None:
    pass

  def _pack(self, rows: list, room: int):
    """Prompts of one width and number, so that few programs are compiled; the last is repeated."""
    longest = max(map(len, rows))
    width = max(longest, min(-(-longest // COLUMNS) * COLUMNS, room))
    filled = rows + [rows[-1]] * (self.batch - len(rows))
    own = [int(fingerprint(ids)[:7], 16) for ids in filled]  # random numbers by prompt, not by place
    form, each = self.setup.form, self.batch
    return batches.pack(filled, [[form.eos_id]] * each, [[]] * each, own, (width, 1, 0), form.pad_id)

  def _write(self, batch, temperature: float, seed: int) -> list:
    if temperature not in self._programs:
      self._programs[temperature] = programs.build_generate(self.setup, SamplingConfig(self.max_tokens, temperature))
    made = jax.device_get(self._programs[temperature](self.params, batch, jax.random.key(seed)))
    form, replies = self.setup.form, []
    for token_ids, length in zip(made.token_NR, made.length_N):
      ids = token_ids[:length].tolist()
      trace_ids, answer_ids = texts.split_completion(form, ids)
      text = texts.decode(self.tokenizer, trace_ids if answer_ids is None else answer_ids)
      replies.append(Reply(text.encode("utf-8", "replace").decode(), texts.has_ended(form, ids), int(length)))
    return replies

  def _choose(self, batch) -> list:
    program = self._programs.setdefault("choice", judge.build_choice(self.setup, self._ids))
    chances = np.exp(np.asarray(program(self.params, batch), np.float64))
    return [Reply("", probabilities=tuple(row.tolist())) for row in chances]

  def _verdict_ids(self) -> tuple:
    """The first token of each verdict. UserError where they are not different ones."""
    ids = [texts.encode_data(self.tokenizer, [text])[0] for text in prompts.NEXT]
    first = tuple(one[0] if one else None for one in ids)
    if None in first or len(set(first)) < len(first) or self.tokenizer.unk_token_id in first:
      raise UserError(f"--read: {self.name}: its verdicts do not differ in their first tokens, allowed: text")
    return first
