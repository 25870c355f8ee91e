"""Plans of locally compiled programs: the toy's step on eight CPU devices."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
import toy

from nrt_jax.model import costs, decoder
from nrt_jax.performance.planning import collectives, hlo, program, report, sweep, topology


def compiled_step(**over):
  """The toy's step on eight CPU devices; 12 rows on each, so that no activation has the size of a weight."""
  setup = toy.setup(
    parallel__data=2,
    parallel__fsdp=2,
    parallel__tensor=2,
    prompts_per_step=12,
    prompt__max_prompt_length=5,
    prompt__max_answer_length=4,
    sampling__max_trace_length=5,
    **over,
  )
  setup = setup._replace(model=dataclasses.replace(setup.model, layer_loop="scan"))
  (lowered,) = program.lower(setup).values()
  return setup, program.compile_one("train_step", lowered, "cpu")


@pytest.fixture(scope="module")
def step():
  return compiled_step()


def test_a_real_program_is_read(step):
  setup, compiled = step
  plan = report.analyse(topology.parse("v5e-8"), setup, program.trained_rows(setup), True, [compiled])
  found = plan.found["train_step"]
  assert {"all-reduce", "all-gather"} <= {c.kind for c in found}
  assert {"decode", "gradients", "rollout_weights"} <= {c.phase for c in found}
  # Two sums over `tensor` in each of 2 layers for each of 5 tokens, at least.
  assert sum(c.times for c in found if c.phase == "decode" and c.kind == "all-reduce") >= 5 * 2 * 2
  assert (plan.rows.count, plan.rows.length, plan.rows.heads) == (48, 5 + 5 + 1 + 4, 5 + 1 + 4)
  assert {"prefill", "decode", "sample_token", "score_answer", "gradients"} <= set(plan.flops["train_step"])


def test_products_of_a_forward_pass_are_those_of_costs():
  """To the FLOP: 3 scanned layers and the head, and attention to all columns, which no mask spares."""
  N, T = 2, 8
  config = dataclasses.replace(toy.MODEL, num_hidden_layers=3, layer_loop="scan")
  token = jnp.zeros((N, T), jnp.int32)

  def run(params):
    hidden, _ = decoder.forward(params, config, token, jnp.arange(T)[None] + token)
    return decoder.logits(params, config, hidden)

  compiled = jax.jit(run).lower(toy.params(config)).compile()
  module = hlo.parse(compiled.as_text())
  masked = 4 * 3 * config.num_attention_heads * config.head_dim * (T * T - costs.seen_tokens(config, 0, T))
  angles = 2 * 2 * T * (config.head_dim // 2) ** 2  # which the forward pass on CPUs multiplies by one
  expected = N * (costs.forward_flops(config, 0, T, T) + masked + angles)
  assert hlo.flops_by_phase(module, hlo.runs(module)) == {"other": expected}


def test_decoding_on_gathered_weights_gathers_none_of_them(step):
  setup, compiled = step
  module = hlo.parse(compiled.text)
  found = collectives.collectives(module, hlo.runs(module), 8)
  assert any(c.in_token_loop for c in found)
  assert not collectives.weight_gathers(found, setup.model, setup.mesh.shape)


def test_decoding_on_sharded_weights_is_caught():
  setup, compiled = compiled_step(parallel__rollout_weights="sharded")
  plan = report.analyse(topology.parse("v5e-8"), setup, program.trained_rows(setup), True, [compiled])
  text = report.as_text(report.as_data(plan))
  assert "WARNING: a weight moves between chips for every token" in text


def test_memory_is_that_of_the_arguments(step):
  """On one device: a quarter of the state (fsdp x tensor), its rows of the prompts, and little else."""
  setup, compiled = step
  leaves = jax.tree.leaves(program.programs.abstract_states(setup))
  state = sum(leaf.size * 4 for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))
  prompts = 12 * (5 + 4 + 4) * 4 / 4  # four groups of rows
  assert 0 < compiled.memory.arguments - state / 4 - prompts < 0.1 * state / 4  # norms are not cut
  assert compiled.memory.total == sum(compiled.memory) and compiled.memory.temporaries > 0


def test_text_and_data(step):
  setup, compiled = step
  plan = report.analyse(topology.parse("v5e-8"), setup, program.trained_rows(setup), True, [compiled])
  data = report.as_data(plan)
  assert data["fits"] and data["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
  phases = {phase["phase"]: phase for phase in data["roofline"]["phases"]}
  assert {"prefill", "decode", "score_answer", "update", "optimizer"} <= set(phases)
  assert data["roofline"]["step_seconds"] == pytest.approx(sum(phase["seconds"] for phase in phases.values()))
  text = report.as_text(json.loads(json.dumps(data)))
  assert "HBM per device" in text and "roofline" in text and text.endswith("\nfits")


def test_what_xla_takes_beyond_the_memory_does_not_fit(step):
  setup, compiled = step
  large = compiled._replace(memory=compiled.memory._replace(arguments=16 * 2**30))  # of a v5e's 16, with temporaries
  plan = report.analyse(topology.parse("v5e-8"), setup, program.trained_rows(setup), True, [large])
  data = report.as_data(plan)
  text = report.as_text(data)
  assert not data["fits"] and "roofline" in text and text.endswith("\nDOES NOT FIT")
  layout = sweep.Layout(2, 2, 2, 1, 0, "full", 1.0, 1.0)._asdict()
  assert sweep.outcome({"layout": layout, **data}).endswith("micro_batches 1: does not fit, 16.00 GiB")


def test_of_two_slices_only_gradients_cross(step):
  """The same program, its data axis over two slices: nothing of sampling, gradients once for each pass."""
  setup, compiled = step
  parallel = dataclasses.replace(setup.run.parallel, slices=2)
  two = setup._replace(run=dataclasses.replace(setup.run, parallel=parallel))
  slices = topology.parse("v5e:2x2")._replace(slices=2)
  plan = report.analyse(slices, two, program.trained_rows(two), True, [compiled])
  data = report.as_data(plan)
  (one,) = data["programs"]
  sent = {}
  for row in one["between_slices"]:
    assert row["slices"] == 2 and row["seconds"] == row["network"] / (25e9 / 8)
    assert row["phase"] in ("gradients", "collect", "other")  # not prefill, decode, score_answer
    sent[row["kind"]] = sent.get(row["kind"], 0) + row["network"]
  # A quarter of float32 gradients on each device: of layers and embedding from the prompts' and the rows' passes, of
  # the head from the rows'. Norms and metrics are a few numbers more.
  model = setup.model
  layers, table = model.num_hidden_layers * costs.layer_matrix_size(model), costs.head_size(model)
  gradients = 4 / 4 * (2 * (layers + table) + table)
  assert setup.shared_rows > 1 and 1 <= sent.pop("all-reduce") / gradients < 1.05
  assert 0 < sum(sent.values()) < 0.2 * gradients  # prompts and rows that change places
  assert data["chips"] == 8 and data["topology"] == "2 slices of v5e:2x2"
  text = report.as_text(json.loads(json.dumps(data)))
  assert "between slices  over DCN (25 Gbit/s for each device)" in text and "network" in text
  assert "between slices" not in report.as_text({**data, "slices": 1})


def test_rows_are_those_of_one_draw():
  """However often groups may be drawn again; waves divide a draw, not a part of one."""
  lengths = {"prompt__max_prompt_length": 5, "prompt__max_answer_length": 4, "parallel__fsdp": 2, "parallel__data": 4}
  setup = toy.setup("rlpr", algorithm__max_draws=4, sampling__wave_prompts=8, prompts_per_step=16, **lengths)
  assert program.trained_rows(setup).count == 16 * setup.samples_per_prompt


def test_xla_counts_the_body_of_a_loop_once():
  """Why the text is read at all."""
  w = jax.ShapeDtypeStruct((6, 16, 16), jnp.float32)
  x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
  compiled = jax.jit(lambda w, x: jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]).lower(w, x).compile()
  module = hlo.parse(compiled.as_text())
  once = 2 * 8 * 16 * 16
  assert hlo.flops_by_phase(module, hlo.runs(module)) == {"other": 6 * once}
  assert once <= compiled.cost_analysis()["flops"] < 2 * once
