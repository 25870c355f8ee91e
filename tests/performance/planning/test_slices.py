"""What a plan reads of several slices: which collectives span them, and how much crosses the network between them.

golden/planning/two_slices.hlo is written by hand in the notation of a TPU program that libtpu compiled for two slices.
"""

import dataclasses

import pytest
import reference
import toy
from paths import GOLDEN

from nrt_jax.model import costs
from nrt_jax.performance.planning import collectives, groups, guess, hlo, program, roofline, transfers
from nrt_jax.step import hardware

TEXT = (GOLDEN / "planning" / "two_slices.hlo").read_text()


@pytest.mark.parametrize(
  "attributes, expected",
  [
    ("replica_groups={{0,1,2},{3,4,5}}", [[0, 1, 2], [3, 4, 5]]),
    ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b':(2)2}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("source_target_pairs={{0,4},{4,0}}", [[0, 4], [4, 0]]),
    ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
  ],
)
def test_groups_in_every_notation(attributes, expected):
  assert groups.groups_of(f", channel_id=1, {attributes}, dimensions={{0}}", 8) == expected


def test_slices_of_groups():
  assert groups.spread([[0, 1], [2, 3]], 4) == (1, 2)
  assert groups.spread([[0, 1, 4, 5], [2, 3, 6, 7]], 4) == (2, 2)
  assert groups.spread([[0, 2, 4, 6]], 2) == (4, 1)
  assert groups.spread([[0, 1], [3, 4]], 4) == (2, 1)  # of pairs, some may stay inside


@pytest.mark.parametrize("slices, devices", [(1, 1), (1, 3), (2, 1), (2, 3), (4, 1), (4, 3)])
@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"])
def test_bytes_between_slices(kind, slices, devices):
  found = transfers.network_bytes(kind, 96, slices, devices)
  assert found == pytest.approx(reference.network_bytes(kind, 96, slices, devices))


@pytest.fixture(scope="module")
def found():
  module = hlo.parse(TEXT)
  assert module.partitions == 4
  return collectives.collectives(module, hlo.runs(module), devices=8, slices=2)


def test_transfers_of_the_hosts_are_collectives_between_slices(found):
  rows = sorted((c.kind, c.phase, c.bytes, c.network, c.times, c.in_token_loop) for c in found if c.slices == 2)
  assert rows == sorted([
    # Half of it twice. Its loop has an iota of decoding, and is none over tokens.
    ("all-reduce", "gradients", 8 * 128 * 4, 8 * 128 * 4, 3, False),
    ("all-reduce", "collect", 128 * 4, 128 * 4, 20, True),  # whether all rows have ended, in the loop's condition
    ("all-gather", "other", 128 * 128 * 4, 64 * 128 * 4, 1, False),
    ("reduce-scatter", "other", 32 * 128 * 4, 32 * 128 * 4, 1, False),
    ("all-to-all", "other", 4 * 16 * 128 * 4, 2 * 16 * 128 * 4, 1, False),
    ("collective-permute", "other", 64 * 128 * 4, 64 * 128 * 4, 1, False),
  ])  # fmt: skip
  assert not any(c.wire_bytes for c in found if c.slices == 2)


def test_what_stays_inside_a_slice(found):
  """Its channels have the numbers of the transfers', and its groups are of one slice's devices."""
  inside = {(c.kind, c.group, c.times): c for c in found if c.slices == 1}
  assert set(inside) == {("reduce-scatter", 2, 3), ("all-reduce", 4, 1)}
  assert inside["reduce-scatter", 2, 3].wire_bytes == 8 * 128 * 4 and not any(c.network for c in inside.values())


MESH = {"parallel__data": 4, "parallel__fsdp": 2, "parallel__tensor": 1, "prompt__max_prompt_length": 5}


def test_the_network_is_a_ceiling_of_its_own():
  setup, rows = toy.setup(**MESH, parallel__slices=2), program.Rows(32, 16, 11)
  rates = {"flops": 1e12, "hbm_bytes": 2**30, "hbm_bandwidth": 1e12, "link_bandwidth": 1e3, "dcn_bandwidth": 100.0}
  chip = hardware.Chip("x", (), **rates)
  known, unknown = (
    roofline.estimate(setup, rows, one, {}, {"update": 3000}, {"gradients": 700})
    for one in (chip, dataclasses.replace(chip, dcn_bandwidth=None))
  )
  known, unknown = (next(e for e in phases if e.phase == "update") for phases in (known, unknown))
  assert (known.network, known.seconds, known.bottleneck) == (7.0, 7.0, "network")
  assert (unknown.network_bytes, unknown.seconds, unknown.bottleneck) == (700, 3.0, "links")


def test_a_guess_sends_gradients_once_per_micro_batch():
  """Of 4 x 2 devices in 2 slices, each sends a quarter of the gradients: its part of what its slice summed."""
  one, two, pieces = (
    toy.setup(**MESH, parallel__slices=slices, optimizer__minibatches=2, parallel__micro_batches=count)
    for slices, count in ((1, 1), (2, 1), (2, 2))
  )
  pieces = pieces._replace(model=dataclasses.replace(toy.MODEL, compute_dtype="bfloat16"))
  assert guess.network(one) == {"update": 0}
  assert guess.network(two)["update"] == pytest.approx(2 * 4 * costs.parameter_count(toy.MODEL) / 4)
  assert guess.network(pieces)["update"] == pytest.approx(2 * 2 * 2 * costs.parameter_count(toy.MODEL) / 4)
  rows = program.Rows(64, 16, 11)
  assert guess.wire(two, rows)["update"] < guess.wire(one, rows)["update"]


def test_chips_share_their_hosts_network():
  """v5e: 2 cards of 100 Gbit/s for 8 chips; v7x shows two devices per chip."""
  assert hardware.by_name("v5e").dcn_bandwidth == 2 * 100e9 / 8 / 8
  assert hardware.by_name("v7x").per_device().dcn_bandwidth == 100e9 / 8 / 2
  assert hardware.by_name("v4").per_device().dcn_bandwidth is None
