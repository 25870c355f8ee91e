"""From a stage's config to its Setup, and to what it reads of each example beside question, answer and trace."""

import dataclasses

from nrt_jax.config import RunConfig
from nrt_jax.data.critic_prompts import CriticHeads
from nrt_jax.data.worlds import Worlds
from nrt_jax.errors import UserError
from nrt_jax.step import policy
from nrt_jax.step.setup import Setup


def open_setup(run: RunConfig, model, tokenizer, form, mesh=None) -> Setup:
  """The Setup of a stage, whose tokenizer, PromptFormat and architecture are those of the whole run."""
  if getattr(run.algorithm, "base_place", None) == "prompt" and form.template == "chat" and run.prompt.trace_open:
    raise UserError(
      f"algorithm.base_place: found 'prompt' with prompt.trace_open {run.prompt.trace_open!r} and a chat template, "
      "which may write it itself, allowed: prompt.template plain, or a text that holds {question}"
    )
  model = dataclasses.replace(model, trained=run.optimizer.trainable)
  critic, environment = policy.open_critic(run, tokenizer, form), policy.open_environment(run, tokenizer, form)
  return Setup(run, model, form, mesh, critic, environment=environment)


def second_texts(setup: Setup, tokenizer):
  """The second text of each training example, as batches.tokenize asks for it; False where none is read."""
  run, critic = setup.run, setup.critic
  if critic is not None:
    return CriticHeads(tokenizer, setup.form, run.prompt, run.algorithm.critic, critic.head_width)
  return setup.algorithm.needs_hints or worlds(setup, tokenizer)


def worlds(setup: Setup, tokenizer):
  """The worlds of the examples, as batches.tokenize asks for them; False where no environment reads them."""
  environment = setup.environment
  if environment is None or not environment.reads_world:
    return False
  return Worlds(tokenizer, environment, setup.run.environment.max_world_length)
