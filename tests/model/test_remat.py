"""What model.remat saves for the backward pass, from the gradient's jaxpr: which kernels and products it runs."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import pytest
import toy
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from nrt_jax.model.decoder import forward

# Splash attention needs 64 columns of a head and 256 of a row; nothing is run here.
MODEL = dataclasses.replace(toy.MODEL, head_dim=64, layer_loop="scan", platform="tpu", attention="splash")


def operations(jaxpr) -> collections.Counter:
  """How often each primitive stands in a jaxpr, those inside of loops and calls included."""
  found = collections.Counter()
  for equation in jaxpr.eqns:
    found[equation.primitive.name] += 1
    if equation.primitive.name != "pallas_call":
      for inner in jaxprs_in_params(equation.params):
        found += operations(inner)
  return found


@pytest.mark.parametrize("remat,kernels", [("none", 3), ("dots", 3), ("full", 4)])
def test_how_often_splash_attention_runs(remat, kernels):
  """Once forward and two kernels back; only `full` runs the forward kernel again."""
  config = dataclasses.replace(MODEL, remat=remat)
  token = jnp.zeros((2, 256), jnp.int32)
  position = jnp.arange(256)[None] + token

  def loss(params):
    return jnp.sum(forward(params, config, token, position)[0])

  jaxpr = jax.make_jaxpr(jax.grad(loss))(toy.params(config)).jaxpr
  used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))  # as XLA leaves out what nothing reads
  assert operations(used)["pallas_call"] == kernels
