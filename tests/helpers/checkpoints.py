"""States that checkpoints hold, saves that wait, and the bits of an array."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nrt_jax.records.checkpoint import CheckpointConfig, Checkpoints

SYNC = CheckpointConfig(async_save=False, keep_last=2)


def raw(leaf):
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf).tobytes()


@struct.dataclass
class State:
  """Stands for state.TrainState: a dataclass with nested dicts, optax's NamedTuples, a step and a typed key."""

  step: jax.Array
  params: dict
  opt_state: tuple
  key: jax.Array


def mesh(*shape):
  return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def shardings_of(state, on):
  """Kernels over fsdp and tensor, the rest replicated."""
  cut = NamedSharding(on, PartitionSpec("fsdp", "tensor"))
  return jax.tree.map(lambda x: cut if x.ndim == 2 else NamedSharding(on, PartitionSpec()), state)


def make_state(seed, on=None):
  """Values with every awkward bit pattern: NaNs with payload, negative zero, infinities, denormals, bfloat16."""
  rng = np.random.default_rng(seed)
  bits = rng.integers(0, 2**32, size=(8, 16), dtype=np.uint32).view(np.float32)  # about 1 in 256 is a NaN
  bits[0, :4] = [np.float32("nan"), -0.0, np.inf, 1e-42]
  params = {
    "layers": {"q": {"kernel": jnp.asarray(bits), "bias": jnp.asarray(rng.normal(size=16), jnp.bfloat16)}},
    "norm": {"scale": jnp.asarray(rng.normal(size=8), jnp.float32)},
  }
  opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
  state = State(step=jnp.int32(seed), params=params, opt_state=opt_state, key=jax.random.key(seed))
  return state if on is None else jax.device_put(state, shardings_of(state, on))


def abstract(state, on=None):
  shapes = jax.eval_shape(lambda: state)
  if on is None:
    return shapes
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings_of(state, on)
  )


def assert_same_bits(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


def save_all(directory, config, values):
  """One checkpoint per (step, metric), reopened in between, as after a restart."""
  for step, value in values:
    checkpoints = Checkpoints(directory, config)
    checkpoints.save(step, {"w": jnp.full(3, step)}, {"step": step}, None if value is None else {"eval/acc": value})
    checkpoints.close()
  return checkpoints


def array_files(step):
  return sorted(path for path in (step / "state").rglob("*") if path.is_file() and path.parent.name == "d")
