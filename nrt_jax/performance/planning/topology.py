"""TPU slices by name, and their devices, which libtpu describes without access to any."""

import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax

from nrt_jax.errors import UserError, choices
from nrt_jax.step import hardware

FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBIC = {
  4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
  1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16",
}  # fmt: skip


class Generation(NamedTuple):
  """The naming of slices of one chip generation."""

  libtpu: str  # libtpu's name for it
  shapes: dict  # chips -> the usual shape of a slice (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x)
  cores: int  # counted per chip by a short name: "v5p-128" has 64 chips, "v6e-64" has 64
  options: tuple = ()  # (name, value) pairs for libtpu's topology description


# JAX shows one device on a v4 chip; libtpu describes two by default.
GENERATIONS = {
  "v4": Generation("v4", CUBIC, 2, (("chip_config_name", "megacore"),)),
  "v5e": Generation("v5e", FLAT, 1),
  "v5p": Generation("v5p", CUBIC, 2),
  "v6e": Generation("v6e", FLAT, 1),
  "v7x": Generation("tpu7x", CUBIC, 2),
}
ALIASES = {"v5litepod": "v5e", "tpu7x": "v7x"}
INSTALL = "libtpu is not installed: pip install 'jax[tpu]' brings the one that fits the installed jax"


class Topology(NamedTuple):
  """A slice, or several alike: `v5p:4x4x4`."""

  generation: str
  shape: tuple[int, ...]
  slices: int = 1  # joined by the data-center network

  @property
  def chips(self) -> int:
    """Of one slice."""
    return math.prod(self.shape)

  @property
  def chip(self) -> hardware.Chip:
    return hardware.by_name(self.generation)

  def __str__(self):
    name = f"{self.generation}:{'x'.join(map(str, self.shape))}"
    return name if self.slices == 1 else f"{self.slices} slices of {name}"


def parse(text: str) -> Topology:
  """Parses "v5p:4x4x4", or a short name in Google's style: "v5p-128" (cores, two per chip), "v5e-16" (chips)."""
  match = re.fullmatch(r"(\w+?)(?::(\d+(?:x\d+)+)|-(\d+))", text.strip().lower())
  name = ALIASES.get(match[1], match[1]) if match else text.split(":")[0].split("-")[0]
  if name not in GENERATIONS:
    raise UserError(f"--topology: {choices(name, GENERATIONS)}, as in v5p:4x4x4, v5e:4x4 or v5p-128")
  generation = GENERATIONS[name]
  if not match:
    raise UserError(f"--topology: found {text!r}, allowed: {allowed(name)}")
  if match[2]:
    shape = tuple(map(int, match[2].split("x")))
    if len(shape) != len(next(iter(generation.shapes.values())).split("x")) or 0 in shape:
      raise UserError(f"--topology: found {text!r}, allowed: {allowed(name)}")
    return Topology(name, shape)
  chips, rest = divmod(int(match[3]), generation.cores)
  if rest or chips not in generation.shapes:
    raise UserError(f"--topology: found {text!r}, allowed: {allowed(name)}")
  return Topology(name, tuple(map(int, generation.shapes[chips].split("x"))))


def allowed(name: str) -> str:
  """The names of the usual slices of a generation."""
  generation = GENERATIONS[name]
  shapes = ", ".join(f"{name}:{shape}" for shape in generation.shapes.values())
  short = f"{name}-{list(generation.shapes)[1] * generation.cores}"
  counts = "cores, two to a chip" if generation.cores == 2 else "chips"
  return f"{shapes}, or short as {short} ({counts})"


def installed() -> bool:
  return importlib.util.find_spec("libtpu") is not None


def prepare() -> None:
  """Configures libtpu to compile only, without looking for or locking devices. UserError without libtpu."""
  if not installed():
    raise UserError(INSTALL)
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no cloud metadata server
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # its lock guards devices; none are used
  # Without these, libtpu complains on stderr that it does not know this machine's slice. There is none.
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)  # programs for absent devices are never read back


def devices(topology: Topology) -> list:
  """The devices of the slices, in JAX's order. UserError if libtpu knows no such slice."""
  from jax.experimental import topologies

  generation = GENERATIONS[topology.generation]
  options = dict(generation.options)
  if topology.slices > 1:
    options["num_slices"] = topology.slices
  if topology.chips < 4:
    options["chips_per_host_bounds"] = (*topology.shape, 1, 1)[:3]
  name = f"{generation.libtpu}:{'x'.join(map(str, topology.shape))}"
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
  except Exception as error:  # libtpu raises several types
    reason = str(error).split("\n")[0]
    raise UserError(f"--topology: {topology}: {reason}; allowed: {allowed(topology.generation)}") from error
  return list(found)
