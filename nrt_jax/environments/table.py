"""The table of environments: `environment.name` in a config picks a row."""

from typing import NamedTuple

from nrt_jax.environments import fixed_length, memory, nim, program


class Row(NamedTuple):
  config: type  # frozen dataclass of the keys under `environment`
  environment: type  # subclass of Environment


ENVIRONMENTS = {
  "fixed_length": Row(fixed_length.FixedLengthConfig, fixed_length.FixedLength),
  "memory": Row(memory.MemoryConfig, memory.Memory),
  "nim": Row(nim.NimConfig, nim.Nim),
  "program": Row(program.ProgramConfig, program.Program),
}
