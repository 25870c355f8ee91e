"""What a compiled program needs of a device's memory, from XLA's own statistics."""

from typing import NamedTuple


class Memory(NamedTuple):
  """Bytes per device."""

  arguments: int  # state and prompts; the returned state reuses their memory
  outputs: int  # outputs that do not reuse it
  temporaries: int
  code: int
  host: int = 0  # state in host memory (parallel.offload)
  peak: int = 0  # of what is in use at once without code, by XLA's schedule; 0: not known

  @property
  def total(self) -> int:
    """Bytes of device memory."""
    parts = self.arguments + self.outputs + self.temporaries + self.code
    return min(parts, self.peak + self.code) if self.peak else parts


def read(stats, platform: str) -> Memory:
  """Converts XLA's statistics of one device.

  On TPUs its "temporaries" are more than are ever in use at once: of a 14 GiB tree of weights, their moments and four
  micro-batches the parts sum to 106 GiB, its peak is 84.7, and the compiler takes it for a chip of 95.74. Its refusal
  of a larger one names the peak. So the peak counts there; on CPUs it leaves temporaries out.
  """
  host = stats.host_argument_size_in_bytes
  return Memory(
    arguments=stats.argument_size_in_bytes,
    outputs=max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0),
    temporaries=stats.temp_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
    host=host,
    peak=stats.peak_memory_in_bytes - host if platform == "tpu" else 0,  # XLA's counts the host's arguments, too
  )
