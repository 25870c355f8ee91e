"""The engines by name."""

from tpu_launch.engines.local import Local

ENGINES = {"local": Local}
