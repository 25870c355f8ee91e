"""`nrt-jax evaluate --sets`: built-in evaluation sets, one after the other, as one table.

Programs are compiled for widths that are powers of two, so that sets of similar length share one.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax

from nrt_jax.commands import output
from nrt_jax.data import batches, overlong, prompts
from nrt_jax.data.batches import TokenDataset
from nrt_jax.errors import UserError
from nrt_jax.evaluation import few_shot, held_out, human_eval, sandbox, sets, summary
from nrt_jax.evaluation.held_out import EvaluationConfig
from nrt_jax.step import programs

LEAST_WIDTH = 32


class Loaded(NamedTuple):
  """A set as it will be asked."""

  name: str
  config: EvaluationConfig
  dataset: TokenDataset
  shots: int
  rows: dict  # where -> row, of a set whose grading runs code


# ---- Before anything is compiled -----------------------------------------------------------------------------------


def check(config: EvaluationConfig, run_code: bool, tournament: int) -> None:
  """Raises UserError for sets that are not there, or that would run code without leave."""
  if tournament:
    raise UserError(f"--tournament: found {tournament} with built-in sets, allowed: with evaluation.data")
  runs_code = [name for name in config.sets if sets.SETS[name].runs_code]
  if runs_code and not run_code:
    found = f"found {runs_code[0]!r}, whose grading runs programs that the model writes"
    raise UserError(f"{sets.KEY}: {found}, allowed: with --run_code")
  sets.check(config.sets, config.sets_directory)
  if runs_code:
    sandbox.require()


def load(setup: programs.Setup, tokenizer, sampled: int, limit: int | None) -> list[Loaded]:
  """Reads all sets. sampled: tokens of a completion, at most; limit: questions of a set, or of each group of one."""
  found, config = [], setup.run.evaluation
  for name in config.sets:
    row, directory = sets.SETS[name], config.sets_directory
    examples, rows = sets.load(name, directory, limit)
    count = row.shots if config.shots is None else config.shots
    training = sets.worked(name, directory) if count else None
    examples = few_shot.first(few_shot.add(examples, count, config.shots_seed, training), limit)
    groups = len({example.group for example in examples})
    if groups < row.groups:
      output.note(f"{name}: {groups} of its {row.groups} tasks are there")
    data = sets.data_config(name, directory)
    own = dataclasses.replace(config, name=name, data=data, grader=row.grader)
    found.append(Loaded(name, own, tokenize(setup, tokenizer, examples, data, sampled), count, rows))
  return found


def tokenize(setup: programs.Setup, tokenizer, examples, data, sampled: int) -> TokenDataset:
  """As wide as its longest prompt and reference, as far as the model has positions; what is longer is `overlong`."""
  model, form, prompt = setup.model, setup.form, setup.run.prompt
  positions = min(model.max_position_embeddings, model.longest_row or model.max_position_embeddings)
  answers = width(max(map(len, prompts.encode_answers(tokenizer, form, [one.answer for one in examples]))))
  room = positions - sampled - len(form.marker_ids) - answers
  if room < 1:
    found = f"found {sampled} tokens of a completion and {answers} of a reference answer"
    raise UserError(f"evaluation.max_completion_length: {found}, allowed: room for a prompt in {positions} positions")
  prompt = dataclasses.replace(prompt, max_prompt_length=room, max_answer_length=answers)
  dataset = batches.tokenize(examples, data, prompt, tokenizer, form)
  return dataclasses.replace(dataset, widths=(min(room, width(max(map(len, dataset.prompts)))), answers, 0))


def width(longest: int) -> int:
  """The power of two that holds so many tokens."""
  return max(LEAST_WIDTH, 1 << (longest - 1).bit_length())


# ---- Running -------------------------------------------------------------------------------------------------------


def run(setup: programs.Setup, tokenizer, params, generate, loaded: list[Loaded], reporter, open_store) -> list[tuple]:
  """(Loaded, its part of the report, Completions) of each set. reporter, open_store: see `evaluate`."""
  found = []
  for one in loaded:
    asked = overlong.summary(len(one.dataset), one.dataset.counts)
    output.note(f"{one.name}: {asked}, each behind {one.shots} worked ones")
    key, watch, store = jax.random.key(setup.run.seed), reporter(len(one.dataset)), open_store(one.name)
    ask = functools.partial(ask_for_code, one.rows) if one.rows else held_out.evaluate
    arguments = (generate, params, one.dataset, one.config, tokenizer, setup.form, key, watch, store)
    metrics, completions = ask(*arguments)
    found.append((one, report(one, metrics, completions), completions))
  return found


def ask_for_code(rows, generate, params, dataset, config, tokenizer, form, key, watch, store) -> tuple[dict, list]:
  """`held_out.evaluate` of a set whose answers are programs: all are written first, then run."""

  def read(ids, example):
    return held_out.read_completion(tokenizer, form, ids, example, None, human_eval.normal_form)

  completions, _ = held_out.complete(generate, params, dataset, config, read, key, watch, store)
  asked = [rows[example.where] for example in dataset.examples for _ in range(config.samples)]
  tests = [human_eval.program(row, one.answer) for row, one in zip(asked, completions, strict=True) if one.vote]
  output.note(f"{config.name}: running {len(tests)} programs")
  passed = iter(sandbox.all_pass(tests))
  completions = [dataclasses.replace(one, correct=bool(one.vote) and next(passed)) for one in completions]
  return summary.summarise(config.name, completions, config.samples), completions


def report(one: Loaded, metrics: dict, completions: list) -> dict:
  """What the file of --output says of a set."""
  samples, groups = one.config.samples, [example.group for example in one.dataset.examples]
  row = sets.SETS[one.name]
  found = {"questions": len(one.dataset), "shots": one.shots, "overlong": one.dataset.counts, "metrics": metrics}
  found |= {"source": row.source, "licence": row.licence}
  found["intervals"] = summary.intervals(one.name, completions, samples)
  if set(groups) != {None}:
    means, pairs = summary.macro(one.name, completions, groups, samples)
    found["metrics"], found["intervals"] = metrics | means, found["intervals"] | pairs
    found["groups"] = summary.by_group(one.name, completions, groups, samples)
  return found


# ---- Output --------------------------------------------------------------------------------------------------------


def table(reports: dict) -> str:
  """A line per set and metric; of groups the accuracy, or what there is in its place, and the number of questions."""
  rows = [("set", "questions", "metric", "value", "95 % interval")]
  for name, found in reports.items():
    rows += _lines(name, name, found, found["metrics"])
    for group, part in found.get("groups", {}).items():
      shown = [key for key in part["metrics"] if key.endswith("/accuracy")] or list(part["metrics"])
      rows += _lines(f"{name}/{group}", name, part, shown)
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths)).rstrip() for row in rows)


def _lines(label: str, name: str, found: dict, shown) -> list:
  lines = []
  for key in shown:
    pair = found["intervals"].get(key)
    interval = "[{:.4f}, {:.4f}]".format(*pair) if pair else ""
    value = f"{found['metrics'][key]:.4f}"
    lines.append((label, f"{found['questions']:,}", key.removeprefix(f"eval/{name}/"), value, interval))
  return lines


def as_rows(found: list[tuple]) -> list[dict]:
  """What the file of --completions holds: each completion with its set and group."""
  lines = []
  for one, _, completions in found:
    for i, completion in enumerate(completions):
      group = one.dataset.examples[i // one.config.samples].group
      lines.append({"set": one.name, "group": group, **dataclasses.asdict(completion)})
  return lines
