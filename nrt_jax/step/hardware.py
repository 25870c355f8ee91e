"""Peak rates of accelerators, as stated by their vendors: the ceilings of utilization and roofline figures.

All rates are dense (no structured sparsity). Those in CHIPS are per chip; `lookup` returns those of one JAX device.
Vendors count memory in units of 2**30 bytes, however they write it. Links: the sum over a chip's links, in one
direction; vendors give the sum of both. The data-center network (DCN), which joins slices, is given by Google as what a
host's network cards carry divided by its chips, so in each direction.
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
  """The peak rates of one chip."""

  name: str  # the common name: v5e, H100
  kinds: tuple[str, ...]  # jax.Device.device_kind, exactly
  flops: float  # multiplications and additions per second, bfloat16 with float32 sums
  hbm_bytes: int
  hbm_bandwidth: float  # bytes per second
  link_bandwidth: float  # bytes per second, one direction: ICI of TPUs, NVLink of GPUs
  devices: int = 1  # JAX devices per chip
  dcn_bandwidth: float | None = None  # bytes per second of a chip's share of its host's network; None: no public figure

  def per_device(self) -> "Chip":
    """The share of one JAX device: half a chip if JAX shows two."""
    n = self.devices
    rates = (self.flops / n, self.hbm_bytes // n, self.hbm_bandwidth / n, self.link_bandwidth / n)
    dcn = None if self.dcn_bandwidth is None else self.dcn_bandwidth / n
    return Chip(self.name, self.kinds, *rates, dcn_bandwidth=dcn)


CHIPS = (
  # docs.cloud.google.com/tpu/docs/v4: 275 teraflops, 32 GiB, 1200 GBps. It has no figure for the links: 6 x 50 GB/s is
  # recalled from arXiv 2304.01433 and unchecked. It has none for the DCN either.
  Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 1200e9, 300e9),
  # docs.cloud.google.com/tpu/docs/v5e: 197 TFLOPs, 16 GB, 819 GBps (older page; the current one has 800 GiBps),
  # bidirectional ICI 400 GBps; DCN 6.4 Tbps per Pod of 256 chips, 2 x 100 Gbps NIC per host of 8 chips.
  Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 200e9, dcn_bandwidth=25e9 / 8),
  # docs.cloud.google.com/tpu/docs/v5p: 459 TFLOPs, 95 GiB, 2765 GBps, bidirectional ICI 1200 GBps, DCN 50 Gbps.
  Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 600e9, dcn_bandwidth=50e9 / 8),
  # docs.cloud.google.com/tpu/docs/v6e: 918 TFLOPs, 32 GB, 1638 GB/s (tpu7x page), bidirectional ICI 800 GBps; DCN 25.6
  # Tbps per Pod of 256 chips, 4 x 200 Gbps NIC per host of 8 chips.
  Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1638e9, 400e9, dcn_bandwidth=100e9 / 8),
  # docs.cloud.google.com/tpu/docs/tpu7x: 2307 TFLOPs, 192 GiB, 7380 GB/s, bidirectional ICI 1200 GB/s, DCN 100 Gb/s;
  # two devices.
  Chip("v7x", ("TPU7x", "TPU v7x"), 2307e12, 192 * GIB, 7380e9, 600e9, devices=2, dcn_bandwidth=100e9 / 8),
  # NVIDIA A100 datasheet (2021): 312 TFLOPS, 80 GB 2,039 GB/s or 40 GB 1,555 GB/s (SXM), 1,935 (PCIe); NVLink 600 GB/s.
  Chip("A100", ("NVIDIA A100-SXM4-80GB",), 312e12, 80 * GIB, 2039e9, 300e9),
  Chip("A100-40GB", ("NVIDIA A100-SXM4-40GB",), 312e12, 40 * GIB, 1555e9, 300e9),
  Chip("A100-PCIe", ("NVIDIA A100 80GB PCIe",), 312e12, 80 * GIB, 1935e9, 300e9),
  # NVIDIA H100 datasheet: 1,979 TFLOPS with sparsity, 80 GB, 3.35 TB/s, NVLink 900 GB/s (SXM).
  Chip("H100", ("NVIDIA H100 80GB HBM3", "NVIDIA H100"), 989.5e12, 80 * GIB, 3350e9, 450e9),
  # NVIDIA H100 datasheet (2022), PCIe: 1,513 TFLOPS with sparsity, 80 GB, 2 TB/s, NVLink 600 GB/s.
  Chip("H100-PCIe", ("NVIDIA H100 PCIe",), 756.5e12, 80 * GIB, 2000e9, 300e9),
  # NVIDIA H200 datasheet: compute as H100, 141 GB, 4.8 TB/s, NVLink 900 GB/s (SXM).
  Chip("H200", ("NVIDIA H200",), 989.5e12, 141 * GIB, 4800e9, 450e9),
)


def lookup(device_kind: str) -> Chip | None:
  """The rates of one device of this jax.Device.device_kind; None if it is not in the table."""
  return next((chip.per_device() for chip in CHIPS if device_kind in chip.kinds), None)


def by_name(name: str) -> Chip | None:
  """The whole chip named `name` ("v5p"); None if it is not in the table."""
  return next((chip for chip in CHIPS if chip.name == name), None)
