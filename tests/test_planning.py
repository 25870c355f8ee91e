"""What a plan reads off compiled programs: loops, collectives, FLOPs and memory; and the names of slices.

golden/planning/step.hlo is written by hand in the notation of a TPU program, so that each figure below can be counted.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

import toy
from nrt_jax import __main__, costs, hardware, model
from nrt_jax.errors import UserError
from nrt_jax.planning import collectives, hlo, program, report, roofline, sweep, topology

TEXT = (pathlib.Path(__file__).parent / "golden" / "planning" / "step.hlo").read_text()
MESH = {"data": 1, "fsdp": 2, "tensor": 2}
# A gate of 16 x 64 entries, 16 x 32 on each tensor device.
GOLDEN_MODEL = dataclasses.replace(toy.MODEL, hidden_size=16, intermediate_size=64, vocab_size=56)

# ---- Names of slices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "text,name,chips",
  [
    ("v5p:4x4x4", "v5p:4x4x4", 64),
    ("v5p-128", "v5p:4x4x4", 64),  # cores
    ("v4-8", "v4:2x2x1", 4),
    ("v7x-8", "v7x:2x2x1", 4),
    ("tpu7x:2x2x1", "v7x:2x2x1", 4),
    ("v5e-16", "v5e:4x4", 16),  # chips
    ("v5litepod-64", "v5e:8x8", 64),
    ("V6E:8x8", "v6e:8x8", 64),
  ],
)
def test_topology_names(text, name, chips):
  slice_ = topology.parse(text)
  assert (str(slice_), slice_.chips) == (name, chips)
  assert slice_.chip is hardware.by_name(slice_.generation) is not None


@pytest.mark.parametrize(
  "text,words",
  [
    ("v99:2x2", ["'v99'", "v4, v5e, v5p, v6e, v7x"]),
    ("v5p-63", ["'v5p-63'", "v5p:4x4x4", "cores"]),
    ("v5e-3", ["v5e:4x4", "v5e-4 (chips)"]),
    ("v5e:2x2x1", ["v5e:2x2"]),
    ("v5p:4x4", ["v5p:4x4x4"]),
    ("v5p", ["v5p:4x4x4"]),
    ("v5p:0x4x4", ["v5p:4x4x4"]),
    ("", ["allowed: v4, v5e"]),
  ],
)
def test_a_wrong_topology_is_one_line(text, words):
  with pytest.raises(UserError) as error:
    topology.parse(text)
  assert "\n" not in str(error.value) and "--topology" in str(error.value)
  assert all(word in str(error.value) for word in words), error.value


def test_without_libtpu_a_line_says_how_to_install_it(capsys, monkeypatch):
  monkeypatch.setattr(topology, "installed", lambda: False)
  assert __main__.main(["plan", "--config", "any.py", "--topology", "v5e:2x2"]) == 2
  written = capsys.readouterr()
  assert written.err.count("\n") == 1 and "pip install 'jax[tpu]'" in written.err and not written.out


# ---- Loops, collectives and FLOPs of the golden program ------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
  module = hlo.parse(TEXT)
  return module, hlo.runs(module)


def test_trips_follow_bounds_starts_and_steps(golden):
  _, found = golden
  times = {run.computation: run.times for run in found}
  assert times["token_body"] == 20
  assert times["token_body_2"] == 30  # from 20, where the first loop ended, to 50
  assert times["layers_body"] == 3 * 20
  assert times["rolled_body"] == 4  # from 0 to 8 in steps of 2
  assert not any(run.guessed for run in found)


def test_of_a_conditional_the_branch_with_most_work_counts(golden):
  _, found = golden
  names = [run.computation for run in found]
  assert "long_branch" in names and "short_branch" not in names


def test_flops_by_phase(golden):
  products = hlo.flops_by_phase(*golden)
  assert products == {"decode": 60 * 2 * 8 * 16 * 32, "gradients": 2 * 4 * 4 * 32}


def test_collectives_with_their_bytes(golden):
  found = collectives.collectives(*golden, devices=4)
  rows = sorted((c.kind, c.phase, c.bytes, c.times, c.group, c.in_token_loop) for c in found)
  assert rows == sorted([
    ("all-gather", "decode", 16 * 32 * 2, 60, 2, True),  # in two fusions, with one channel
    ("all-reduce", "decode", 8 * 16 * 2, 60, 2, True),
    ("all-gather", "sample_token", 8 * 40 * 4, 20, 2, True),
    ("all-reduce", "other", 1, 20, 4, False),  # whether all rows have ended
    ("all-reduce", "decode", 8 * 16 * 2, 30, 2, True),
    ("collective-permute", "gradients", 16 * 32 * 2, 4, 2, False),
    ("reduce-scatter", "other", 4 * 32 * 4, 1, 4, False),
  ])  # fmt: skip


def test_wire_bytes_are_the_least_that_a_device_receives(golden):
  wire = {(c.kind, c.times): c.wire_bytes for c in collectives.collectives(*golden, devices=4)}
  assert wire["all-gather", 60] == 16 * 32 * 2 / 2
  assert wire["all-reduce", 60] == 2 * 8 * 16 * 2 / 2
  assert wire["reduce-scatter", 1] == 3 * 4 * 32 * 4
  assert wire["collective-permute", 4] == 16 * 32 * 2


def test_a_weight_gathered_for_each_token_is_found(golden):
  found = collectives.collectives(*golden, devices=4)
  (only,) = collectives.weight_gathers(found, GOLDEN_MODEL, MESH)
  assert (only.bytes, only.times) == (16 * 32 * 2, 60) and "Block/gate" in only.scope
  other = dataclasses.replace(GOLDEN_MODEL, hidden_size=22, intermediate_size=48)
  assert not collectives.weight_gathers(found, other, MESH)


@pytest.mark.parametrize(
  "attributes,size",
  [
    ("replica_groups={{0,1,2},{3,4,5}}", 3),
    ("replica_groups=[16,4]<=[64]", 4),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}", 8),
    ("replica_groups=mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'a','b'}", 16),
    ("replica_groups=mesh['a'=2,'b'=8] {'a','b':(2)4}", 8),
    ("replica_groups={}", 64),
  ],
)
def test_group_sizes_in_every_notation(attributes, size):
  assert collectives._group_size(", channel_id=1, " + attributes + ", dimensions={0}", 64) == size


def test_the_innermost_scope_is_the_phase():
  assert hlo.phase_of("jit(train_step)/collect/while/body/decode/while/body/Block/q/dot_general") == "decode"
  assert hlo.phase_of("jit(train_step)/update/while/body/gradients/transpose(jvp(decode))/add") == "decode"
  assert hlo.phase_of("jit(train_step)/collect/score_answer/head/dot") == "score_answer"
  assert hlo.phase_of("jit(train_step)/broadcast") == "other"


def test_convolutions_that_are_batched_products():
  """XLA's TPU form of 8 products [4, 16] x [16, 32]: the batch is a spatial axis, of which each output meets one."""
  line = (
    "  ROOT %c = f32[8,4,32]{2,1,0} convolution(%x, %y), window={size=8 stride=7 pad=0_0 lhs_dilate=8}, "
    "dim_labels=0bf_0io->0bf"
  )
  made = "  %x = f32[8,4,16]{2,1,0} parameter(0)\n  %y = f32[8,16,32]{2,1,0} parameter(1)\n" + line
  module = hlo.parse(f"ENTRY %main (x: f32[8,4,16]) -> f32[8,4,32] {{\n{made}\n}}\n")
  computation = module.computations["main"]
  assert hlo.product_flops(computation, computation["c"]) == 2 * 8 * 4 * 16 * 32


# ---- Programs compiled here ----------------------------------------------------------------------------------------


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
  return setup, program.compile_one("train_step", lowered)


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
    hidden, _ = model.forward(params, config, token, jnp.arange(T)[None] + token)
    return model.logits(params, config, hidden)

  compiled = jax.jit(run).lower(toy.params(config)).compile()
  module = hlo.parse(compiled.as_text())
  masked = 4 * 3 * config.num_attention_heads * config.head_dim * (T * T - costs.seen_tokens(config, 0, T))
  assert hlo.flops_by_phase(module, hlo.runs(module)) == {"other": N * (costs.forward_flops(config, 0, T, T) + masked)}


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
  assert "HBM per device" in text and "roofline" in text and text.endswith("fits")


def test_xla_counts_the_body_of_a_loop_once():
  """Why the text is read at all."""
  w = jax.ShapeDtypeStruct((6, 16, 16), jnp.float32)
  x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
  compiled = jax.jit(lambda w, x: jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]).lower(w, x).compile()
  module = hlo.parse(compiled.as_text())
  once = 2 * 8 * 16 * 16
  assert hlo.flops_by_phase(module, hlo.runs(module)) == {"other": 6 * once}
  assert once <= compiled.cost_analysis()["flops"] < 2 * once


# ---- What does not fit, and layouts --------------------------------------------------------------------------------

MESSAGE = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space \
hbm. Used 21.31G of 15.75G hbm. Exceeded hbm capacity by 5.56G.

Total hbm usage >= 21.56G:
    reserved        258.00M
    program          21.31G
    arguments            0B

  Largest program allocations in hbm:

  1. Size: 8.00G
     Operator: op_name="jit(train_step)/collect/score_answer/while/body/Block/attention/dot_general"
     Shape: f32[16,2047,8191,8]{2,1,0:T(8,128)}
     Unpadded size: 8.00G
     ==========================

  2. Size: 512.50M
     Operator: op_name="jit(train_step)/update/gradients/add"
     Shape: bf16[8192,4096]{1,0}
"""


def test_the_compilers_overflow_is_an_answer():
  over = program.read_overflow(MESSAGE)
  assert (over.used, over.limit) == (int(21.31 * 2**30), int(15.75 * 2**30))
  first, second = over.reason.split("; ")
  assert (
    first == "8.00G f32[16,2047,8191,8] jit(train_step)/collect/score_answer/while/body/Block/attention/dot_general"
  )
  assert second.startswith("512.50M bf16[8192,4096]")
  assert program.read_overflow("INVALID_ARGUMENT: something else") is None


def test_roofline_of_known_figures():
  """One phase at a time against figures worked out here: Llama-like sizes play no part, the formula does."""
  setup = toy.setup(parallel__data=2, parallel__fsdp=2, parallel__tensor=2, prompt__max_prompt_length=5)
  rows = program.Rows(32, 16, 11)
  chip = hardware.Chip("x", (), flops=1e9, hbm_bytes=2**30, hbm_bandwidth=1e6, link_bandwidth=1e3)
  found = {
    e.phase: e for e in roofline.estimate(setup, rows, chip, {"gradients": 5e9}, {"sample_token": 700, "decode": 300})
  }
  assert found["update"].compute == 5.0  # compiled FLOPs are more than the model's
  assert found["decode"].links == 1.0
  assert found["decode"].bottleneck == "links" and found["decode"].seconds == 1.0
  trained = costs.parameter_count(setup.model)
  assert found["optimizer"].memory == pytest.approx(28 * trained / 4 / 1e6)
  # Each of 6 tokens reads the weights of one tensor device; caches besides, of 8 / 4 prompts and 8 rows.
  weights = 2 * 6 * (2 * costs.layer_matrix_size(setup.model) + costs.head_size(setup.model)) / 2
  assert found["decode"].hbm_bytes > weights


ARCHITECTURE = {
  "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 511,
  "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 2048,
}  # fmt: skip


def test_layouts_divide_and_are_ranked(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURE))
  run = toy.run_config("nrt", prompts_per_step=16, model__path=str(tmp_path))
  found = sweep.layouts(run, topology.parse("v5e:2x2"), jax.devices()[:4])
  meshes = {layout[:3] for layout in found}
  assert meshes == {mesh for mesh in sweep.meshes(4) if mesh[2] <= 2}  # two key/value heads
  assert [layout.seconds for layout in found] == sorted(layout.seconds for layout in found)  # all fit


def test_where_memory_is_short_layouts_are_cut_smaller(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURE | {"vocab_size": 400_000}))
  run = toy.run_config("nrt", prompts_per_step=64, samples_per_prompt=16, model__path=str(tmp_path))
  run = dataclasses.replace(run, prompt=dataclasses.replace(run.prompt, max_prompt_length=4096))
  best = sweep.layouts(run, topology.parse("v5e:2x2"), jax.devices()[:2])[0]
  assert best.micro_batches > 1 and best.bytes <= 0.9 * 16 * 2**30
  program.open_setup(program.with_layout(run, *best[:5]), jax.devices()[:2])  # raises where something does not divide


# ---- With libtpu ---------------------------------------------------------------------------------------------------

CONFIG = """
from nrt_jax.commands.configs import base_config

def get_config():
  config = base_config("nrt")
  config.model.path = {path!r}
  config.model.compute_dtype = "bfloat16"
  config.prompts_per_step, config.samples_per_prompt = 8, 2
  config.prompt.max_prompt_length, config.prompt.max_answer_length = 16, 8
  config.sampling.max_trace_length = 8
  config.parallel.fsdp, config.parallel.tensor = 2, 2
  return config
"""


@pytest.mark.skipif(not topology.installed(), reason="libtpu is not installed (pip install 'jax[tpu]')")
def test_a_step_is_planned_for_a_tpu_slice(tmp_path, capsys, monkeypatch):
  for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE"):
    monkeypatch.setenv(name, "cpu" if name == "JAX_PLATFORMS" else "1" if "SKIP" in name else "localhost")
  (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURE))
  (tmp_path / "run.py").write_text(CONFIG.format(path=str(tmp_path)))
  flags = ["plan", "--config", str(tmp_path / "run.py"), "--topology", "v5e:2x2", "--json", str(tmp_path / "plan.json")]
  assert __main__.main(flags) == 0
  assert capsys.readouterr().out.rstrip().endswith("fits")
  data = json.loads((tmp_path / "plan.json").read_text())
  (one,) = data["programs"]
  assert data["chips"] == 4 and one["memory"]["hbm"] == 16 * 2**30 and one["readable"]
  assert {"decode", "gradients"} <= set(one["flops_by_phase"])
  assert not one["weights_in_token_loop"] and not one["loops_of_unknown_length"]
  assert __main__.main([*flags[:4], "v5e:3x3"]) == 2
