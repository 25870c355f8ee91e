"""The engines by name."""

from tpu_launch.engines.gke import Gke
from tpu_launch.engines.local import Local
from tpu_launch.engines.skypilot import SkyPilot
from tpu_launch.engines.slurm import Slurm
from tpu_launch.engines.tpu_vm import TpuVm

ENGINES = {"tpu_vm": TpuVm, "gke": Gke, "skypilot": SkyPilot, "slurm": Slurm, "local": Local}
