"""Tiny models, prompts and runs that several test files share. Token ids are made up; there is no tokenizer."""

import copy
import functools

import jax
import numpy as np

from nrt_jax import config, sharding
from nrt_jax.arrays import Prompts
from nrt_jax.data.critic_prompts import CriticForm
from nrt_jax.data.prompts import PromptFormat
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import init_params
from nrt_jax.step import policy, programs

VOCAB, MARKER, SECOND_MARKER, EOS, PAD = 24, 20, 21, 22, 23  # text is 0 to 19: id 0 is a word like any other

# Weights far from zero: traces, and with them rewards, must differ clearly, or std-scaled advantages amplify rounding.
MODEL = ModelConfig(
  vocab_size=VOCAB,
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=4,
  initializer_range=0.4,
)


def form(marker_ids=(MARKER,), stop_ids=None, pad_id=PAD) -> PromptFormat:
  stop_ids = (marker_ids[0], EOS) if stop_ids is None else stop_ids
  return PromptFormat("plain", (), marker_ids, stop_ids, EOS, pad_id, VOCAB, ())


def critic_form(critic, prompt_format=None, head_width=7, answer_width=4) -> CriticForm:
  """The critic's prompts are [head | answer | 16 | answer | 17 18]; 10, 11 and 12 13 are its labels."""
  prompt_format, single = prompt_format or form(), critic.kind == "single"
  tail = (17, 18) if critic.reasoning else (17, 18, *prompt_format.marker_ids)
  labels = ((10,), (11,), (12, 13))[: len(critic.words)]
  return CriticForm(
    kind=critic.kind,
    middle_ids=() if single else (16,),
    tail_ids=tail,
    label_ids=labels,
    marker_ids=prompt_format.marker_ids,
    end_ids=(EOS,),
    reasoning=critic.reasoning,
    neutral_id=0,
    forbidden_ids=(MARKER, SECOND_MARKER, EOS, PAD),
    forbidden=((16, 17),),
    head_width=head_width,
    answer_width=answer_width,
  )


def prompts(count, seed=0, prompt_width=5, answer_width=4, trace_width=0, hint_width=7) -> Prompts:
  """`count` ragged examples: full, shortest and everything between."""
  rng = np.random.default_rng(seed)

  def ragged(width, low, left, last=None):
    length = rng.integers(low, width + 1, count)
    length[:2] = [width, low][: len(length[:2])]
    token = rng.integers(0, MARKER, (count, width)).astype(np.int32)
    if last is not None:
      token[np.arange(count), length - 1] = last
    column = np.arange(width)[None]
    valid = column >= width - length[:, None] if left else column < length[:, None]
    return np.where(valid, token, PAD).astype(np.int32), length.astype(np.int32)

  prompt = ragged(prompt_width, 1, left=True)
  answer = ragged(answer_width, 1, left=False, last=EOS)
  trace = ragged(trace_width, 0, left=False)
  hint = ragged(hint_width, 1, left=True)
  return Prompts(*prompt, *answer, *trace, np.arange(100, 100 + count, dtype=np.int32), *hint)


@functools.cache
def params(model=MODEL, seed=1):
  """Random parameters, made once for each architecture. Never donate them: others read them too."""
  return jax.jit(init_params, static_argnums=0)(model, jax.random.key(seed))


def run_config(algorithm="nrt", **over) -> config.RunConfig:
  """A run with small defaults; `over` holds keys like `optimizer__learning_rate=1e-3` or `samples_per_prompt=4`."""
  values = config.defaults(algorithm)
  values.update(prompts_per_step=8, samples_per_prompt=4)
  values["sampling"]["max_trace_length"] = 6
  # At Adam's default 1e-15 the first step is the sign of the gradient, and rounding of a zero gradient decides it.
  values["optimizer"].update(learning_rate=1e-2, eps=1e-3)
  for key, value in over.items():
    *parents, last = key.split("__")
    at = values
    for parent in parents:
      at = at[parent]
    assert last in at, key
    at[last] = value
  return config.stages_of(values)[0]


def changed(values: dict, **changes) -> dict:
  """A copy of a config's values; `optimizer__eps=1e-8` changes what lies deeper."""
  values = copy.deepcopy(values)
  for key, value in changes.items():
    *parents, last = key.split("__")
    functools.reduce(dict.__getitem__, parents, values)[last] = value
  return values


def setup(algorithm="nrt", model=MODEL, prompt_format=None, **over) -> programs.Setup:
  run = run_config(algorithm, **over)
  needs_mesh = any(key in ("parallel__data", "parallel__fsdp", "parallel__tensor") for key in over)
  mesh = sharding.make_mesh(run.parallel) if needs_mesh else None
  prompt_format = prompt_format or form()
  critic = critic_form(run.algorithm.critic, prompt_format) if run.algorithm_name == "raro" else None
  environment = policy.open_environment(run, None, prompt_format)
  return programs.Setup(run, model, prompt_format, mesh, critic, environment=environment)


def largest_difference(left, right) -> float:
  """Over all leaves of two trees of the same structure, which must not be empty."""
  pairs = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
  assert pairs and all(a.shape == b.shape and a.size for a, b in pairs)
  return max(float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()) for a, b in pairs)


def largest(tree) -> float:
  return max(float(np.abs(a).max()) for a in jax.tree.leaves(tree))


def own_answers(prompts, rollouts, samples: int):
  """(answer_BA, answer_length_B): what one of a prompt's completions answers, where one has an answer that fits."""
  answer_BA, length_B = prompts.answer_BA.copy(), prompts.answer_length_B.copy()
  for n in np.flatnonzero(rollouts.marker_N & rollouts.ended_N):
    text = rollouts.token_NR[n, : rollouts.length_N[n]].tolist()
    own = text[text.index(MARKER) + 1 :]
    if len(own) <= answer_BA.shape[1] and MARKER not in own:
      answer_BA[n // samples, : len(own)], length_B[n // samples] = own, len(own)
  return answer_BA, length_B


def assert_same(expected, got, tolerance=2e-5):
  assert largest_difference(expected, got) < tolerance * max(1.0, largest(expected))
