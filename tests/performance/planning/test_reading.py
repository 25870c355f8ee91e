"""What a plan reads from compiled programs (loops, collectives, FLOPs, memory), and slice names.

golden/planning/step.hlo is written by hand in the notation of a TPU program, so that each figure can be checked by
counting.
"""

import dataclasses

import pytest
import toy
from paths import GOLDEN

from nrt_jax import __main__
from nrt_jax.errors import UserError
from nrt_jax.performance.planning import collectives, hlo, topology
from nrt_jax.step import hardware

TEXT = (GOLDEN / "planning" / "step.hlo").read_text()
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
    ("all-reduce", "collect", 1, 20, 4, True),  # whether all rows have ended, in the loop's condition
    ("all-reduce", "decode", 8 * 16 * 2, 30, 2, True),
    ("collective-permute", "gradients", 16 * 32 * 2, 4, 2, False),
    ("reduce-scatter", "gradients", 4 * 32 * 4, 1, 4, False),  # without a scope of its own: its fusion's
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
  experts = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=7)
  sizes = collectives.weight_sizes(dataclasses.replace(GOLDEN_MODEL, **experts), {"tensor": 7})
  assert {5 * 16 * 7, 2 * 5 * 16 * 7, 5 * 16 * 7 * 2, 5 * 16 * 1} <= sizes  # all experts, gate and up, layers, a part


CHAIN = """
%cond (p: s32[]) -> pred[] {
  ROOT %p = s32[] parameter(0)
}

%fusion_a (x: bf16[8]) -> bf16[16] {
  %x = bf16[8]{0} parameter(0)
  ROOT %part.1 = bf16[16]{0} all-gather(%x), channel_id=5, replica_groups={{0,1}}, frontend_attributes={chain_id="3"}
}

%fusion_b (y: bf16[8]) -> bf16[16] {
  %y = bf16[8]{0} parameter(0)
  ROOT %part.2 = bf16[16]{0} all-gather(%y), channel_id=5, replica_groups={{0,1}}, frontend_attributes={chain_id="3"}
}

%ring (r: bf16[8]) -> bf16[16] {
  %r = bf16[8]{0} parameter(0)
  ROOT %in_ring = bf16[16]{0} fusion(%r), kind=kCustom, calls=%fusion_b
}

%layers (l: bf16[8]) -> bf16[16] {
  %l = bf16[8]{0} parameter(0)
  %inner = bf16[16]{0} while(%l), condition=%cond, body=%ring, backend_config={"known_trip_count":{"n":"4"}}
  ROOT %in_layer = bf16[16]{0} fusion(%l), kind=kCustom, calls=%fusion_a
}

ENTRY %main (m: bf16[8]) -> bf16[16] {
  %m = bf16[8]{0} parameter(0)
  ROOT %outer = bf16[16]{0} while(%m), condition=%cond, body=%layers, backend_config={"known_trip_count":{"n":"32"}}
}
"""


def test_a_gather_that_runs_beside_an_inner_loop_counts_once_per_layer():
  """As on v5e, where one gather of a layer's weight lies in the ring loops of its other products, too."""
  module = hlo.parse(CHAIN)
  (one,) = collectives.collectives(module, hlo.runs(module), devices=2)
  assert (one.kind, one.times, one.bytes) == ("all-gather", 32, 32)


SUMS = """
%add.1 (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum.1 = bf16[] add(%a, %b)
}

ENTRY %main (m: bf16[8]) -> bf16[8] {
  %m = bf16[8]{0} parameter(0)
  %one = bf16[8]{0} all-reduce(%m), channel_id=1, replica_groups={{0,1}}, to_apply=%add.1
  ROOT %two = bf16[8]{0} all-reduce(%one), channel_id=1, replica_groups={{0,1}}, to_apply=%add.2
}
"""


def test_sums_of_a_shard_map_share_a_channel_and_are_several():
  """As the gradients of the experts of gate, up and down; XLA gives each a reducer of its own."""
  module = hlo.parse(SUMS)
  found = collectives.collectives(module, hlo.runs(module), devices=2)
  assert [(c.kind, c.times, c.bytes) for c in found] == [("all-reduce", 1, 16)] * 2


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
