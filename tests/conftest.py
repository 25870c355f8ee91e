"""JAX settings that all tests share. They must be set before the first array is created."""

import gc
import os
import tempfile

import jaxlib

# Tracing makes many objects that live: looking for garbage at every 700th took 17 s of 270 in tests that trace much.
gc.set_threshold(50_000, 20, 100)

FLAGS = (
  # Tests compile much and compute little: this halves the time that LLVM takes.
  "--xla_backend_optimization_level=0",
  # XLA:CPU aborts the process where one of eight devices waits a minute for another: on a busy machine one does.
  "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
if jaxlib.__version__.startswith("0.10."):  # others may not know these flags, and XLA refuses what it does not know
  # The old way to compile loops takes two thirds of the time; code is not cut into parts, for two tests run at a time.
  FLAGS += ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
# Subprocesses that tests start inherit both: eight devices on one CPU, and one cache of compiled programs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":  # the GPU compiler has no optimization level below 2
  os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"nrt_jax_tests_{os.getuid()}"))

import jax  # noqa: E402  (the environment comes first)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")  # an axis must not appear by accident
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
