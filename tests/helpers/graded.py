"""A policy that often answers, and runs of it graded on the host or in the program."""

import dataclasses
import functools

import jax.numpy as jnp
import toy

from nrt_jax import sharding

MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)


class Numbers:
  """A tokenizer whose text is the token ids."""

  def decode(self, ids, **_):
    return " ".join(str(i) for i in ids)


@functools.cache
def sharp_params():
  """A policy that writes markers and end tokens often, so that short completions have an answer."""
  params = toy.params(MODEL)
  often = jnp.array([toy.MARKER, toy.EOS])
  return {**params, "head": {"kernel": params["head"]["kernel"].at[:, often].multiply(1.5)}}


def setup_of(verifier, kind, minibatches=1):
  setup = toy.setup(
    "dr_grpo", MODEL, sampling__max_trace_length=9, algorithm__verifier=verifier, parallel__kind=kind,
    optimizer__minibatches=minibatches, prompts_per_step=16,
  )  # fmt: skip
  return setup if kind == "pmap" else setup._replace(mesh=sharding.make_mesh(setup.run.parallel))
