"""Settings of JAX that every test shares. They must be made before the first array."""

import os
import tempfile

# Tests compile much and compute little: this halves the time that LLVM takes.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
# Subprocesses that tests start inherit both: eight devices on one CPU, and one cache of compiled programs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"nrt_jax_tests_{os.getuid()}"))

import jax  # noqa: E402  (the environment comes first)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")  # an axis must not appear by accident
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
