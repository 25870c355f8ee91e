"""How a step's rows are laid out for the update: pieces, widths, shared prompts.

test_programs.py checks that none of this changes the numbers.
"""

import dataclasses

import jax
import numpy as np
import pytest
import toy

from nrt_jax.algorithms import policy_gradient
from nrt_jax.errors import UserError
from nrt_jax.step import programs, sizes
from nrt_jax.step import setup as steps_setup
from nrt_jax.step.tools import needed_columns, slots_run
from nrt_jax.step.update import bucket_widths

P, R, A = 5, 6, 4  # of the toy's prompts and runs; one marker token


def setup(algorithm="nrt", model=toy.MODEL, **over):
  """Lengths in the config as the toy's arrays have them: that is what layouts are chosen by."""
  lengths = {"prompt__max_prompt_length": P, "prompt__max_answer_length": A}
  return toy.setup(algorithm, model, **{**lengths, **over})


def collected(setup):
  """The rows of a step on 8 prompts, and the prompts."""
  states = programs.init_states(setup, toy.params(), jax.random.key(3))
  tools, prompts = programs.make_tools(setup), toy.prompts(8)
  batch = jax.jit(lambda: programs.collect(setup, tools, states, prompts).batch)()
  return batch, prompts


@pytest.fixture(scope="module")
def nrt():
  return collected(setup())


@pytest.mark.parametrize(
  "name, over, rows",
  [
    ("nrt", {}, 4),  # 5 of 16 columns are the prompt: three quarters of them, 15 of 64 slots, are more than an eighth
    ("nrt", {"sampling__max_trace_length": 20}, 4),  # 15 of 120 slots: an eighth
    ("nrt", {"sampling__max_trace_length": 21}, 1),  # 15 of 124
    ("nrt", {"parallel__share_prompts": "off"}, 1),
    ("nrt", {"parallel__micro_batches": 8}, 4),  # one group in each
    ("nrt", {"parallel__micro_batches": 16}, 1),  # two rows in each
    ("nrt", {"samples_per_prompt": 1, "algorithm__center": "none", "algorithm__scale": "none"}, 1),
    ("dpo", {}, 2),  # the two rows of a pair
    ("sft", {"parallel__share_prompts": "on"}, 1),
  ],
)
def test_where_prompts_are_shared(name, over, rows):
  assert setup(name, **over).shared_rows == rows


def test_kernels_run_rows_that_have_their_own_prompt():
  def on(platform, **over):
    model = dataclasses.replace(toy.MODEL, platform=platform, head_dim=64, compute_dtype="bfloat16")
    return setup(model=model, prompt__max_prompt_length=512, **over).shared_rows

  assert [on(platform) for platform in ("cpu", "gpu", "tpu")] == [4, 1, 1]
  assert on("tpu", parallel__share_prompts="on") == 4
  # Before the mesh is set, where sizes are checked, and while it is, where the step is traced.
  with jax.set_mesh(setup(parallel__fsdp=2).mesh):
    over = {"prompts_per_step": 16, "parallel__fsdp": 2}
    assert [on(platform, **over) for platform in ("cpu", "gpu", "tpu")] == [4, 1, 1]


def test_micro_batches_of_a_cpu_are_as_large_as_its_caches():
  """8 prompts of 4 rows, 16 columns: 512 slots. An MLP of 2**15 activations has 2**24 then, of which 2**21 may be in a
  piece; one of 2**18 would need 64 pieces, but a prompt is not cut."""
  wide = [dataclasses.replace(toy.MODEL, platform="cpu", intermediate_size=2**i) for i in (12, 15, 18)]
  assert [setup(model=model).micro_batches for model in wide] == [1, 8, 8]
  assert setup(model=wide[1], parallel__micro_batches=2).micro_batches == 2
  assert setup(model=dataclasses.replace(wide[1], platform="tpu")).micro_batches == 1


def test_a_shared_prompt_must_not_be_cut():
  given = setup(parallel__kind="pmap", parallel__micro_batches=2, parallel__share_prompts="on")  # a prompt a device
  with pytest.raises(UserError, match="micro_batches: found 2, allowed: a divisor of 1, the groups of rows that share"):
    sizes.check(given)


def test_widths(nrt):
  batch, _ = nrt
  widths = {
    (buckets, share): bucket_widths(setup(parallel__length_buckets=buckets, parallel__share_prompts=share), batch)
    for buckets in (1, 3) for share in ("on", "off")
  }
  assert widths == {(1, "on"): [16], (1, "off"): [16], (3, "off"): [6, 11, 16], (3, "on"): [9, 13, 16]}
  packed = setup(parallel__length_buckets=3, parallel__share_prompts="packed")
  assert bucket_widths(packed, batch) == [29, 36, 44]  # 4 rows of 11 columns behind the prompt, times 0.8 and 0.64
  with pytest.raises(UserError, match="share_prompts='packed': found parallel.length_buckets 1, allowed: 2 or more"):
    setup(parallel__share_prompts="packed")


@pytest.mark.parametrize("limit, expected", [(1e-3, 1), (1e6, 0), (0.0, 0)])
def test_clipped_updates_are_counted(limit, expected):
  model = dataclasses.replace(toy.MODEL, num_hidden_layers=1)
  over = {"optimizer__max_grad_norm": limit, "optimizer__minibatches": 2}
  given = toy.setup("sft", model, **over)
  states = programs.init_states(given, jax.tree.map(jax.numpy.copy, toy.params(model)), jax.random.key(3))
  metrics = programs.build_train_step(given)(states, toy.prompts(8))[1]
  assert metrics["optimizer/clipped"] == expected and metrics["optimizer/grad_norm"] > 1e-3


@pytest.mark.parametrize("name", ["nrt", "verifree", "dr_grpo", "nft"])
def test_a_rows_sum_is_divided_by_the_longest_trace(name):
  """By default: a sum over hundreds of tokens, divided by nothing, would be clipped in every update."""
  lengths = [5, 640]
  weights = []
  for length in lengths:
    tools = programs.make_tools(toy.setup(name, sampling__max_trace_length=length))
    config = toy.run_config(name).algorithm
    weights.append(np.asarray(policy_gradient.weigh(tools, config, np.ones((8, 3), bool))).max())
  np.testing.assert_allclose(weights, [1 / (8 * length) for length in lengths], rtol=1e-6)
  tools = programs.make_tools(toy.setup(name))
  config = toy.run_config(name, algorithm__normalisation_constant=7.0).algorithm
  np.testing.assert_allclose(policy_gradient.weigh(tools, config, np.ones((8, 3), bool)), 1 / 56, rtol=1e-6)


def test_what_packed_rows_need_and_run(nrt):
  """No column but the own tokens of all rows of a prompt."""
  batch, prompts = nrt
  given = setup(parallel__length_buckets=2, parallel__share_prompts="packed")
  tokens_N = (np.asarray(batch.position_NL) >= 0).sum(1)
  own_B = (tokens_N - np.repeat(prompts.prompt_length_B, 4)).reshape(8, 4).sum(1)
  np.testing.assert_array_equal(needed_columns(given, batch), np.repeat(own_B, 4))
  slots, valid = slots_run(given, batch.replace(packed=36))
  assert (slots, valid) == (8 * (P + 36), own_B.sum() + prompts.prompt_length_B.sum())


@pytest.mark.parametrize("share", ["on", "off"])
def test_what_rows_need_and_run(nrt, share):
  """Counted row by row from lengths: what a row needs ends at its last column, however short its answer."""
  batch, prompts = nrt
  given = setup(parallel__share_prompts=share)
  G, position = given.samples_per_prompt, np.asarray(batch.position_NL)
  prompt_length_N = np.repeat(prompts.prompt_length_B, G)
  answer_gap_N = A - np.repeat(prompts.answer_length_B, G)
  tokens_N = (position >= 0).sum(1)
  own_N = tokens_N - prompt_length_N
  assert own_N.min() >= 2 and len(set(own_N.tolist())) > 2
  wanted = P + own_N + answer_gap_N if share == "on" else tokens_N + answer_gap_N
  np.testing.assert_array_equal(needed_columns(given, batch), wanted)
  slots, valid = slots_run(given, batch)
  if share == "on":
    assert (slots, valid) == (8 * P + 32 * (R + 1 + A), own_N.sum() + prompts.prompt_length_B.sum())
  else:
    assert (slots, valid) == (32 * (P + R + 1 + A), tokens_N.sum())


@pytest.mark.parametrize("name, packed", [("nrt", 0), ("nrt", 44), ("grpo", 0), ("dpo", 0), ("dpo", 22)])
def test_shared_prompts_give_the_same_log_probabilities(name, packed):
  """Of groups and of pairs, behind prompts of 1 to 5 tokens; only what follows the prompt is scored."""
  shared, own = (setup(name, parallel__share_prompts=share) for share in ("on", "off"))
  batch, _ = collected(own)
  batch = batch.replace(packed=packed)
  if packed:
    packing = setup(name, parallel__share_prompts="packed", parallel__length_buckets=2)
    assert np.max(needed_columns(packing, batch)) <= packed
  assert shared.shared_rows == (2 if name == "dpo" else 4) and own.shared_rows == 1
  follows_NL = np.asarray(batch.position_NL) >= np.asarray(batch.prompt_length_N)[:, None]
  assert len(set(np.asarray(batch.prompt_length_N).tolist())) > 2
  if name != "grpo":  # traces that end by another stop token, which the marker has taken the place of
    assert 0 < (np.asarray(batch.target_NL) != np.asarray(batch.token_NL)).sum() < len(batch.token_NL)
  got, wanted = (jax.jit(programs.make_tools(one).log_probs)(toy.params(), batch) for one in (shared, own))
  assert (np.asarray(wanted[0]) != np.asarray(wanted[2])).any() == (name != "grpo")
  for x_NL, expected_NL in zip(got, wanted, strict=True):
    x_NL, expected_NL = np.asarray(x_NL), np.asarray(expected_NL)
    np.testing.assert_allclose(x_NL[follows_NL], expected_NL[follows_NL], rtol=1e-4, atol=2e-5)
    assert np.abs(expected_NL[follows_NL]).max() > 1 and not x_NL[~follows_NL].any()


@pytest.mark.parametrize("pieces,chosen", [(1, 1), (2, 2), (3, 3), (4, 6), (5, 6), (7, 6)])
def test_the_automatic_micro_batches_divide_the_prompts(monkeypatch, pieces, chosen):
  """As many as the caches need, or the next number that cuts six prompts evenly; one prompt at least."""
  made = setup(prompts_per_step=6)
  made = made._replace(model=dataclasses.replace(made.model, platform="cpu"))
  size = 6 * made.rows_per_prompt * made._row_columns * made.model.intermediate_size
  monkeypatch.setattr(steps_setup, "CACHED", -(-size // pieces))
  assert made.micro_batches == chosen
