"""Plans of programs that do not fit, rooflines, the ranking of layouts, and the command with libtpu."""

import dataclasses
import json

import jax
import pytest
import toy
from jax.experimental import mesh_utils

from nrt_jax import __main__, config, sharding
from nrt_jax.commands import configs
from nrt_jax.errors import UserError
from nrt_jax.model import costs, hf_config
from nrt_jax.model.architecture import REMATS
from nrt_jax.performance.planning import guess, program, roofline, sweep, topology
from nrt_jax.step import hardware

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


def test_an_overflow_without_a_list_of_buffers():
  message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (113.10G) "
  over = program.read_overflow(message + "exceeds available HBM (95.74G).")
  assert over == (int(113.10 * 2**30), int(95.74 * 2**30), "")


def test_roofline_of_known_figures():
  """One phase at a time against figures worked out here: Llama-like sizes play no part, the formula does."""
  setup = toy.setup(parallel__data=2, parallel__fsdp=2, parallel__tensor=2, prompt__max_prompt_length=5)
  rows = program.Rows(32, 16, 11)
  chip = hardware.Chip("x", (), flops=1e9, hbm_bytes=2**30, hbm_bandwidth=1e6, link_bandwidth=1e3)
  wire = {"sample_token": 700, "decode": 300}
  found = {e.phase: e for e in roofline.estimate(setup, rows, chip, {"gradients": 5e9}, wire, {})}
  assert found["update"].compute == 5.0  # compiled FLOPs are more than the model's
  assert found["decode"].links == 1.0
  assert found["decode"].bottleneck == "links" and found["decode"].seconds == 1.0
  trained = costs.parameter_count(setup.model)
  assert found["optimizer"].memory == pytest.approx(28 * trained / 4 / 1e6)
  # Each of 6 tokens reads the weights of one tensor device; caches besides, of 8 / 4 prompts and 8 rows.
  weights = 2 * 6 * (2 * costs.layer_matrix_size(setup.model) + costs.head_size(setup.model)) / 2
  assert found["decode"].hbm_bytes > weights


def test_passes_read_the_experts_that_their_tokens_choose():
  """Decoding 4 rows of a device reads fewer of 40 experts than prefilling its 10 tokens, and both fewer than all."""
  experts = dict(num_experts=40, num_experts_per_tok=1, moe_intermediate_size=8)
  mesh = dict(parallel__data=2, parallel__fsdp=2, parallel__tensor=2, prompt__max_prompt_length=5)
  setup = toy.setup(model=dataclasses.replace(toy.MODEL, **experts), samples_per_prompt=2, **mesh)
  found, model = roofline.hbm_bytes(setup, program.Rows(16, 16, 11)), setup.decoder
  assert found["prefill"] == pytest.approx(costs.weight_bytes(model, 10) / 2)
  few, more = (costs.weight_bytes(model, tokens) for tokens in (4, 10))
  assert few < more < 2 * costs.parameter_count(model)
  caches = found["decode"] - 6 * few / 2
  assert 0 < caches < 6 * (more - few) / 2
  assert roofline.model_flops(setup, program.Rows(16, 16, 11))["prefill"] == 8 * costs.forward_flops(model, 0, 5, 0)


CRITIC = config.defaults("raro")["algorithm"]["critic"]


def test_a_critics_tokens_are_decoded_too():
  """RARO's 8 questions, each with 4 fresh and 2 old pairs in both orders: 96 verdicts of 3 tokens."""
  over = {"algorithm__critic": {**CRITIC, "order": "both", "samples": 2, "max_length": 3}}
  mesh = dict(parallel__data=2, parallel__fsdp=2, parallel__tensor=2)
  alone, both = (toy.setup(name, **mesh, **more) for name, more in (("grpo", {}), ("raro", over)))
  rows, c = program.Rows(32, 16, 11), both.model
  width, judged = both.critic.prompt_width, 8 * (4 + 2) * 2
  plain, found = (roofline.model_flops(setup, rows) for setup in (alone, both))
  decoded = judged * costs.forward_flops(c, width, 3, 3)
  assert found["decode"] - plain["decode"] == pytest.approx(decoded) and decoded > 0
  assert found["prefill"] - plain["prefill"] == pytest.approx(judged * costs.forward_flops(c, 0, width, 0))
  bytes_alone, bytes_both = (roofline.hbm_bytes(setup, rows)["decode"] for setup in (alone, both))
  read = costs.decode_bytes(c, judged / 4, judged / 4, costs.Lengths(judged, 1, width, 3, 0, 0))
  assert bytes_both - bytes_alone == pytest.approx(3 * sum(read.values()) / 2)
  cache, hidden = judged / 4 * (width + 3) * 2 * 2 * 4 * c.num_hidden_layers * 4 / 2, 3 * judged / 4 * width * 16 * 4
  assert guess.critic_bytes(both) == pytest.approx(4 * costs.parameter_count(c) / 2 + cache + hidden)
  assert guess.critic_bytes(alone) == 0 and guess.working_bytes(both, rows) >= guess.critic_bytes(both)


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
  assert len(found) == len(REMATS) * len(meshes) == len({(*layout[:3], layout.remat) for layout in found})
  assert [layout.seconds for layout in found] == sorted(layout.seconds for layout in found)  # all fit


def test_a_run_that_no_mesh_can_run_says_why(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURE))
  slice_, devices = topology.parse("v5e:2x2"), jax.devices()[:4]
  run = toy.run_config("nrt", prompts_per_step=3, model__path=str(tmp_path))
  with pytest.raises(UserError, match="--sweep: no mesh of 4 devices .*: prompts_per_step: found 3, .*on data 4 x fsdp 1"):
    sweep.layouts(run, slice_, devices)
  run = toy.run_config("nrt", prompts_per_step=16, model__path=str(tmp_path), environment={"name": "fixed_length"})
  with pytest.raises(UserError, match="no mesh of 4 devices can run this step: environment.name: .* prompt.tokenizer"):
    sweep.layouts(run, slice_, devices)


@pytest.mark.parametrize("tensor", [1, 2])
def test_what_a_layer_saves_follows_remat(tensor):
  """In float32 entries of a token: the layer's input; and of matrix products all outputs but the last one's."""
  saved = {
    remat: guess.saved_bytes(dataclasses.replace(toy.MODEL, remat=remat), tensor, 8) / (4 * 8) for remat in REMATS
  }
  assert saved["full"] == 16
  assert saved["dots"] == 16 + (16 + 2 * 8 + 2 * 32) / tensor + 16  # query, key, value, gate and up; attention's output
  assert saved["none"] > 2 * saved["dots"]
  experts = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=16, platform="tpu")  # together as wide
  experts = dataclasses.replace(toy.MODEL, remat="dots", **experts)
  assert guess.saved_bytes(experts, tensor, 8) / (4 * 8) == saved["dots"] + 5  # and the router's scores
  adapted = dataclasses.replace(toy.MODEL, remat="full", lora_rank=2)
  rows = dataclasses.replace(adapted, lora_rows=(toy.MARKER,))  # an id beyond the few rows that are traced
  assert guess.saved_bytes(rows, tensor, 8) == guess.saved_bytes(adapted, tensor, 8)


def test_the_state_holds_a_reference():
  mesh = {"parallel__fsdp": 2, "parallel__tensor": 2}
  plain, kept = (
    guess.state_bytes(toy.setup("nrt", algorithm__reference=reference, **mesh)) for reference in ("none", "frozen")
  )
  parameters = 4 * costs.parameter_count(toy.MODEL) / 4
  assert plain == pytest.approx(3 * parameters, abs=8)  # with both moments; and counters
  assert kept - plain == parameters


def test_recomputing_layers_costs_another_forward_pass():
  lengths = {"prompt__max_prompt_length": 5, "parallel__share_prompts": "off"}
  setups = [toy.setup(model=dataclasses.replace(toy.MODEL, remat=remat), **lengths) for remat in REMATS]
  rows = program.Rows(32, 16, 11)
  flops = [guess.update_flops(setup, rows) for setup in setups]
  model = roofline.model_flops(setups[0], rows)["update"]
  assert model < flops[0] == flops[1] < flops[2] == pytest.approx(model * 4 / 3)


def test_the_flags_of_a_layout_give_it(tmp_path):
  (tmp_path / "run.py").write_text(CONFIG.format(path=None))
  layout = sweep.Layout(2, 4, 8, 16, 32, "dots", seconds=1.0, bytes=1.0)
  overrides = [flag.removeprefix("--config.") for flag in sweep.as_flags(layout).split()]
  plain, given = (
    config.stages_of(configs.load_config(str(tmp_path / "run.py"), over))[0] for over in ([], overrides)
  )
  assert given != plain and given == program.with_layout(plain, *layout[:6])


def test_where_memory_is_short_layouts_are_cut_smaller(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURE | {"vocab_size": 400_000}))
  run = toy.run_config("nrt", prompts_per_step=64, samples_per_prompt=16, model__path=str(tmp_path))
  run = dataclasses.replace(run, prompt=dataclasses.replace(run.prompt, max_prompt_length=4096))
  best = sweep.layouts(run, topology.parse("v5e:2x2"), jax.devices()[:2])[0]
  assert best.micro_batches > 1 and best.bytes <= 0.9 * 16 * 2**30
  program.open_setup(program.with_layout(run, *best[:6]), jax.devices()[:2])  # raises where something does not divide


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


with_libtpu = pytest.mark.skipif(not topology.installed(), reason="libtpu is not installed (pip install 'jax[tpu]')")


@pytest.fixture
def flags(tmp_path, monkeypatch):
  """Of `plan`, for a small model on four v5e chips."""
  for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE"):
    monkeypatch.setenv(name, "cpu" if name == "JAX_PLATFORMS" else "1" if "SKIP" in name else "localhost")
  (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURE))
  (tmp_path / "run.py").write_text(CONFIG.format(path=str(tmp_path)))
  return ["plan", "--config", str(tmp_path / "run.py"), "--topology", "v5e:2x2", "--json", str(tmp_path / "plan.json")]


@with_libtpu
def test_a_step_is_planned_for_a_tpu_slice(flags, tmp_path, capsys):
  assert __main__.main(flags) == 0
  assert capsys.readouterr().out.rstrip().endswith("fits")
  data = json.loads((tmp_path / "plan.json").read_text())
  (one,) = data["programs"]
  assert data["chips"] == 4 and one["memory"]["hbm"] == 16 * 2**30 and one["readable"]
  assert {"decode", "gradients"} <= set(one["flops_by_phase"])
  assert not one["weights_in_token_loop"] and not one["loops_of_unknown_length"]
  assert __main__.main([*flags[:4], "v5e:3x3"]) == 2


@with_libtpu
def test_a_sweep_compiles_the_likeliest_layouts(flags, tmp_path, capsys):
  assert __main__.main([*flags, "--sweep", "2"]) == 0
  ranked = capsys.readouterr().out.split("\n\n")[0].splitlines()
  plans = json.loads((tmp_path / "plan.json").read_text())
  assert len(plans) == 2 and len(ranked) == 4 and all(plan["fits"] for plan in plans)
  seconds = [plan["roofline"]["step_seconds"] for plan in plans]
  assert seconds == sorted(seconds)
  for plan, line in zip(plans, ranked[1:3]):
    layout = plan["layout"]
    assert plan["mesh"] == {axis: layout[axis] for axis in ("data", "fsdp", "tensor")}
    assert plan["remat"] == layout["remat"] and f"remat {layout['remat']}" in line


@with_libtpu
def test_a_mesh_may_cut_an_axis_of_the_slice():
  """JAX by itself refuses 2 of the 8 x 8 chips of a v6e."""
  slice_ = topology.parse("v6e:8x8")
  mesh = sharding.make_mesh(sharding.ParallelConfig(data=4, fsdp=2, tensor=8), topology.devices(slice_))
  assert mesh.shape == {"data": 4, "fsdp": 2, "tensor": 8} and len({d.id for d in mesh.devices.flat}) == 64


@with_libtpu
def test_slices_of_a_tpu_are_those_that_its_devices_are_of():
  """As JAX's own hybrid mesh has them; another number is one line."""
  devices = topology.devices(topology.parse("v5p:2x2x1")._replace(slices=2))
  mesh = sharding.make_mesh(sharding.ParallelConfig(fsdp=2, tensor=2), devices)
  hybrid = mesh_utils.create_hybrid_device_mesh((1, 2, 2), (2, 1, 1), devices)
  assert mesh.devices.tolist() == hybrid.tolist() and mesh.shape["data"] == 2
  assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
  with pytest.raises(UserError, match="parallel.slices: found 4, allowed: 2, the slices"):
    sharding.make_mesh(sharding.ParallelConfig(slices=4), devices)


@with_libtpu
def test_a_step_is_planned_for_two_slices(flags, tmp_path):
  """What crosses between them are the gradients, once, and a few numbers; inside each, no group is larger than it."""
  assert __main__.main([*flags, "--slices", "2"]) == 0
  data = json.loads((tmp_path / "plan.json").read_text())
  (one,) = data["programs"]
  assert (data["chips"], data["slices"], data["mesh"]["data"]) == (8, 2, 2)
  assert max(row["group"] for row in one["collectives"]) <= 4
  sent = {}
  for row in one["between_slices"]:
    sent[row["phase"]] = sent.get(row["phase"], 0) + row["network"]
  gradients = 4 * costs.parameter_count(hf_config.read_model_config(str(tmp_path))) / 4
  assert sent["gradients"] == pytest.approx(gradients, rel=0.02)
  assert sum(sent.values()) < 1.02 * sent["gradients"]
  assert __main__.main([*flags, "--slices", "2", "--config.parallel.slices=4"]) == 2
