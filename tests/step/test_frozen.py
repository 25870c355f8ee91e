"""A frozen trunk: a step that trains embedding and head alone, on one device, over a mesh and under pmap."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from nrt_jax import config
from nrt_jax.errors import UserError
from nrt_jax.model import lora
from nrt_jax.step import programs

FROZEN = dataclasses.replace(toy.MODEL, trained="token_rows")
# Weight decay would move what has no gradient. Without clipping, Adam moves each entry by its own gradient.
BASE = {"optimizer__weight_decay": 0.5, "optimizer__max_grad_norm": 0.0, "optimizer__ema_decay": 0.9}
WAYS = {
  "mesh": {"parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2},
  "pmap": {"parallel__kind": "pmap"},
}


@functools.cache
def stepped(model, way=None):
  """The parameters after one step of SFT from the toy's, on the host."""
  setup = toy.setup("sft", model, **BASE, **WAYS.get(way, {}))
  prompts = toy.prompts(8, trace_width=6)
  states = programs.init_states(setup, jax.tree.map(jnp.copy, toy.params()), jax.random.key(3))
  if way == "pmap":
    states, prompts = programs.replicate(states), jax.tree.map(lambda a: a[:, None], prompts)
  elif way == "mesh":
    states = jax.device_put(states, programs.state_shardings(setup))
  with jax.set_mesh(setup.mesh) if setup.mesh else contextlib.nullcontext():
    states = programs.build_train_step(setup)(states, prompts)[0]
  states = programs.unreplicate(states) if way == "pmap" else states
  return jax.device_get(states.policy.params)


@pytest.mark.parametrize("way", WAYS)
def test_all_but_the_rows_of_tokens_stays_bit_for_bit(way):
  moved, frozen = lora.split(stepped(FROZEN, way), FROZEN)
  before, same = lora.split(jax.device_get(toy.params()), FROZEN)
  assert set(moved) == {"embedder", "head"} and set(frozen) == {"layers", "final_norm"}
  jax.tree.map(np.testing.assert_array_equal, frozen, same)
  full = lora.split(stepped(toy.MODEL), FROZEN)
  assert toy.largest_difference(full[1], same) > 1e-3  # which a step of all parameters does move
  toy.assert_same(full[0], moved, 1e-4)
  assert toy.largest_difference(moved, before) > 1e-3


def test_the_state_holds_moments_and_averages_of_what_is_trained_alone():
  setup = toy.setup("sft", FROZEN, **BASE)
  states = programs.abstract_states(setup)
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  rows = count(lora.split(states.policy.params, FROZEN)[0])
  assert rows == 2 * toy.VOCAB * toy.MODEL.hidden_size
  assert count(states.average) == rows and count(states.policy.opt_state) == 2 * rows + 2  # and two counts


def test_what_freezes_the_trunk_in_another_way_is_refused():
  with pytest.raises(UserError, match="optimizer.trainable: found 'heads', allowed: all, token_rows"):
    toy.run_config("sft", optimizer__trainable="heads")
  values = config.defaults("sft")
  values["optimizer"]["trainable"], values["model"]["lora_rank"] = "token_rows", 4
  with pytest.raises(UserError, match="optimizer.trainable: found 'token_rows' with model.lora_rank 4, .*allowed: all"):
    config.stages_of(values)
  values = config.defaults("raro")
  values["optimizer"]["trainable"], values["algorithm"]["critic"]["own_weights"] = "token_rows", True
  with pytest.raises(UserError, match="optimizer.trainable: found 'token_rows' with algorithm.critic.own_weights"):
    config.stages_of(values)
