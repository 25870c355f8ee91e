"""Slices by name: chips, hosts, and where Google offers them. Every table names its source.

A TPU slice goes by the names of `nrt-jax plan --topology`: v5p-128, v6e-16, v5e:4x4. `gpu-16` is 16 GPUs and `cpu-4`
four virtual CPU devices, spread over as many hosts as the description says.
"""

import re
from typing import NamedTuple

from nrt_jax.errors import UserError, require_choice

PLAIN = ("gpu", "cpu")  # kinds without a topology
EIGHT_CHIP_HOSTS = ("v5e", "v6e")  # docs.cloud.google.com/tpu/docs/v5e and v6e: 2x4 is one host of the Cloud TPU API

# Names of the Cloud TPU API, docs.cloud.google.com/tpu/docs/v5e and tpu7x; the other generations have one name.
API_NAMES = {"v5e": "v5litepod", "v7x": "tpu7x"}

# Node labels of GKE: the accelerators of src/xpk/core/system_characteristics.py in AI-Hypercomputer/xpk.
GKE_ACCELERATORS = {
  "v4": "tpu-v4-podslice", "v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice",
  "v7x": "tpu7x",
}  # fmt: skip

# docs.cloud.google.com/tpu/docs/runtimes, "PyTorch and JAX"; it lists none for v7x.
RUNTIME_VERSIONS = {
  "v4": "tpu-ubuntu2204-base", "v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e",
}  # fmt: skip

# docs.cloud.google.com/tpu/docs/regions-zones, as far as a stored copy of it could be read: all of North America, and
# v6e in Europe. Zones come and go, so `any_zone: true` in a description skips the check.
ZONES = {
  "v4": ("us-central2-b",),
  "v5e": ("us-central1-a", "us-south1-a", "us-west1-c", "us-west4-a"),
  "v5p": ("us-central1-a", "us-east5-a"),
  "v6e": ("us-central1-b", "us-east1-d", "us-east5-a", "us-east5-b", "us-south1-ai1b", "europe-west4-a"),
  "v7x": ("us-central1-c", "us-central1-ai1a"),
}


class Slice(NamedTuple):
  """One slice: a TPU generation and its shape, or ("gpu" | "cpu", (count,))."""

  kind: str
  shape: tuple[int, ...]
  chips: int

  @property
  def is_tpu(self) -> bool:
    return self.kind not in PLAIN

  @property
  def topology(self) -> str:
    return "x".join(map(str, self.shape))


def parse(text: str) -> Slice:
  """Reads the name of a slice. UserError names what is allowed."""
  match = re.fullmatch(r"(gpu|cpu)-([1-9]\d*)", str(text))
  if match:
    return Slice(match[1], (int(match[2]),), int(match[2]))
  try:
    found = _topology().parse(str(text))
  except UserError as error:
    raise UserError(f"slice: {str(error).removeprefix('--topology: ')}; or gpu-COUNT, cpu-COUNT") from error
  return Slice(found.generation, found.shape, found.chips)


def accelerator_type(piece: Slice) -> str:
  """The Cloud TPU API's name of a slice. UserError where it has no name of its own: an unusual shape."""
  generation = _topology().GENERATIONS[piece.kind]
  usual = generation.shapes.get(piece.chips)
  if usual != piece.topology:
    raise UserError(f"slice: found {piece.kind}:{piece.topology}, allowed here: {_topology().allowed(piece.kind)}")
  return f"{API_NAMES.get(piece.kind, piece.kind)}-{piece.chips * generation.cores}"


def host_count(piece: Slice, hosts: int | None, gke: bool = False) -> int:
  """Hosts of one slice. `hosts` is what the description says, if anything; UserError where it does not fit.

  Four chips to a host, but for single chips, and for 8 chips of v5e and v6e, which the Cloud TPU API puts on one host
  and XPK's clusters on two.
  """
  if not piece.is_tpu:
    if hosts is None or piece.chips % hosts:
      count = "none" if hosts is None else hosts
      raise UserError(f"hosts: found {count} for {piece.chips} devices, allowed: a divisor of {piece.chips}")
    return hosts
  whole = piece.kind in EIGHT_CHIP_HOSTS and piece.chips == 8 and not gke
  per_host = piece.chips if whole or piece.chips < 4 else 4
  expected = piece.chips // per_host
  if hosts not in (None, expected):
    raise UserError(
      f"hosts: found {hosts}, allowed: {expected} for {piece.kind}:{piece.topology} ({piece.chips} chips, {per_host} "
      "to a host)"
    )
  return expected


def check_zone(piece: Slice, zone: str | None) -> None:
  """Raises UserError where the zone does not have this generation."""
  if zone is None:
    raise UserError(f"zone: found none, allowed for {piece.kind}: {', '.join(ZONES[piece.kind])}")
  try:
    require_choice(f"zone of a {piece.kind} slice", zone, ZONES[piece.kind])
  except UserError as error:
    raise UserError(f"{error}; any_zone: true skips this check") from error


def _topology():
  """Imported when a TPU slice is named: it needs JAX, which takes seconds."""
  from nrt_jax.performance.planning import topology

  return topology
