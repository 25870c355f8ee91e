"""The table of environments: `environment.name` in a config picks a row."""

from typing import NamedTuple

from nrt_jax.environments import fixed_length, memory, program


class Row(NamedTuple):
  config: type  # frozen dataclass of the keys under `environment`
  environment: type  # subclass of Environment


ENVIRONMENTS = {
  "fixed_length": Row(fixed_length.FixedLengthConfig, fixed_length.FixedLength),
  "memory": Row(memory.MemoryConfig, memory.Memory),
  "program": Row(program.ProgramConfig, program.Program),
}
