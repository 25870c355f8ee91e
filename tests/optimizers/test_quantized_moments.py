"""Eight-bit moments: quantization error per block and over updates, and whole runs that use them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import toy
from jax.sharding import PartitionSpec

from nrt_jax.optimizers import quantized_moments as quantized
from nrt_jax.optimizers.update_rule import OptimizerConfig, make_optimizer
from nrt_jax.records.checkpoint import CheckpointConfig, Checkpoints
from nrt_jax.step import programs

CODES = {"first": quantized.FIRST, "second": quantized.SECOND}
encode = jax.jit(quantized.encode, static_argnums=0)
decode = jax.jit(quantized.decode, static_argnums=0)


def entries(code, shape=(3, 128, 12), seed=0, octaves=10):
  """Magnitudes over `octaves` octaves, signed where the code is."""
  rng = np.random.default_rng(seed)
  magnitude = 2.0 ** rng.uniform(-octaves, 0, shape)
  return np.float32(magnitude if code.never_zero else magnitude * rng.choice([-1, 1], shape))


@pytest.mark.parametrize(
  "shape, blocks",
  [
    ((32, 4096, 32, 128), (1, 128)),  # a query matrix: along the axis with most twos
    ((32, 32, 128, 4096), (3, 128)),
    ((28, 3584, 18944), (1, 32)),  # both have nine twos: the shorter one, and 112 blocks divide over 16
    ((152064, 3584), (1, 32)),  # along an embedding's own entries,
    ((3584, 152064), (0, 32)),  # and along those of one token's column of the head
    ((4096, 128257), (0, 128)),
    ((32, 4096, 16), (1, 128)),  # an adapter
    ((2, 64, 128), (2, 32)),
    ((2, 31, 999), None),  # no axis can be cut
    ((1024,), None),  # too few
  ],
)
def test_blocks_follow_from_the_shape(shape, blocks):
  assert quantized.blocks_of(shape) == blocks


@pytest.mark.parametrize("name", CODES)
def test_codes_equal_their_twin(name):
  """Level by level, in float64; float32 may take the neighbour where the dither falls on the border: 1 in 1000."""
  code, (axis, block) = CODES[name], quantized.blocks_of((3, 128, 12))
  x = entries(code, octaves=20)
  for update in (0, 1, 999):
    found, scale = encode(code, x, jnp.int32(update))
    assert found.shape == x.shape and found.dtype == code.dtype and scale.shape == (3, 4, 12)
    off = 0
    for i, n, j in np.ndindex(scale.shape):
      rows = slice(n * block, (n + 1) * block)
      dither = [dither_of(code, (i, k, j), update) for k in range(rows.start, rows.stop)]
      twin = reference.coded_block(x[i, rows, j], code.levels, code.octaves, code.never_zero, dither)
      off += (twin[0] != np.int32(found[i, rows, j])).sum()
      np.testing.assert_allclose(scale[i, n, j], twin[1], rtol=1e-7)
    assert off <= x.size / 1000 and axis == 1


def dither_of(code, index, update):
  """In Python's integers."""
  total = update * code.stride + sum(i * s for i, s in zip(index, quantized.AXIS_STRIDES))
  return (total % 2**32 >> 8) / 2**24


@pytest.mark.parametrize("name", CODES)
def test_an_entry_is_off_by_less_than_the_distance_of_levels(name):
  """Relative to itself, not to its block's largest: 9.2 % for both moments, however small the entry is beside it."""
  code = CODES[name]
  x = entries(code, octaves=15)
  back = np.asarray(decode(code, *encode(code, x, jnp.int32(7))))
  bound = 2 ** (code.octaves / (code.levels - 1)) - 1
  assert bound < 0.0922
  error = np.abs(back / x - 1)
  assert 0.8 * bound < error.max() <= bound * (1 + 1e-4)
  blocks = x.reshape(3, 4, 32, 12)
  largest = np.take_along_axis(blocks, np.abs(blocks).argmax(2, keepdims=True), 2)
  kept = np.take_along_axis(back.reshape(blocks.shape), np.abs(blocks).argmax(2, keepdims=True), 2)
  np.testing.assert_array_equal(kept, largest)  # a block's largest is exact


@pytest.mark.parametrize("name", CODES)
def test_what_is_stored_is_stored_again(name):
  """Without new gradients nothing drifts, whatever the dither."""
  code = CODES[name]
  first = encode(code, entries(code), jnp.int32(1))
  for update in range(2, 30):
    again = encode(code, decode(code, *first), jnp.int32(update))
    jax.tree.map(np.testing.assert_array_equal, again, first)


@pytest.mark.parametrize("name", CODES)
def test_rounding_has_no_bias_over_updates(name):
  """The mean over 100 updates is the entry itself, to a hundredth of the distance of levels (at random: a tenth)."""
  code = CODES[name]
  x = entries(code)
  mean = np.mean([np.float64(decode(code, *encode(code, x, jnp.int32(t)))) for t in range(100)], axis=0)
  assert np.abs(mean / x - 1).max() < 0.03 * 0.092


def test_a_small_second_moment_is_never_zero():
  """Adam divides by its root: below the last level it is rounded up, so the step is too small, never too large."""
  x = np.full((32, 128), 1e-30, np.float32)
  x[:, 0] = 1.0
  back = np.asarray(decode(quantized.SECOND, *encode(quantized.SECOND, x, jnp.int32(3))))
  assert (back[:, 1:] >= x[:, 1:]).all() and (back[:, 1:] <= 2.0**-31).all()
  x[:, 1:] = 0
  back = np.asarray(decode(quantized.SECOND, *encode(quantized.SECOND, x, jnp.int32(3))))
  np.testing.assert_array_equal(back, x)  # nothing stays nothing
  zeros = np.zeros((32, 128), np.float32)
  for code in CODES.values():
    np.testing.assert_array_equal(decode(code, *encode(code, zeros, jnp.int32(3))), zeros)


# ---- The optimizer -------------------------------------------------------------------------------------------------

CONFIG = OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, max_grad_norm=0.0)


def params():
  wide = jnp.zeros((64, 128))
  return {"q": {"kernel": wide}, "norm": {"scale": wide}, "small": {"kernel": wide[0]}}


def noisy_gradients(update):
  """Each entry has a mean and a noise of its own, over four decades, as those of one matrix have."""
  rng = np.random.default_rng(0)
  scale = 10.0 ** rng.uniform(-4, 0, (64, 128))
  mean = scale * rng.normal(size=scale.shape)
  noise = scale * np.random.default_rng(1 + update).normal(size=scale.shape)
  return np.float32(mean + noise)


def moved(dtype, updates=60, **over):
  """Where AdamW has gone from zero, in units of the learning rate."""
  config = dataclasses.replace(CONFIG, moment_dtype=dtype, **over)
  optimizer = make_optimizer(config, updates)

  @jax.jit
  def step(p, s, g):
    u, s = optimizer.update(g, s, p)
    return optax.apply_updates(p, u), s

  p, state = params(), optimizer.init(params())
  for t in range(updates):
    gradient = noisy_gradients(t)
    few = {"kernel": gradient[0]}
    p, state = step(p, state, {"q": {"kernel": gradient}, "norm": {"scale": gradient}, "small": few})
  return jax.tree.map(lambda a: np.asarray(a) / config.learning_rate, p)


@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_adam_in_eight_bits_goes_where_adam_goes(beta2):
  """60 updates, eps 1e-15: off by 3.5 % of the way at the mean, and entries of every size by 12 % of the longest."""
  found, full = moved("int8", beta2=beta2), moved("float32", beta2=beta2)
  way, error = np.abs(full["q"]["kernel"]), np.abs(found["q"]["kernel"] - full["q"]["kernel"])
  assert way.max() > 50  # of 60 learning rates
  assert error.mean() < 0.035 * way.mean() and error.max() < 0.12 * 60
  assert error.max() > 1e-3  # eight bits do something
  for name in ("norm", "small"):  # norms by name, the other by size: in float32
    jax.tree.map(np.testing.assert_array_equal, found[name], full[name])


def test_the_state_takes_a_quarter():
  """Of 8 bytes per parameter for both moments 2.06 are left, where axes have many twos."""
  shapes = {"q": {"kernel": jax.ShapeDtypeStruct((4, 4096, 512), jnp.float32)}}
  count = 4 * 4096 * 512
  for dtype, each in (("float32", 8.0), ("bfloat16", 6.0), ("int8", 2 + 2 * 4 / 128)):
    optimizer = make_optimizer(dataclasses.replace(CONFIG, moment_dtype=dtype), 10)
    state = jax.tree.leaves(jax.eval_shape(optimizer.init, shapes))
    assert sum(a.size * a.dtype.itemsize for a in state) / count == pytest.approx(each, abs=1e-4)


# ---- Whole steps ---------------------------------------------------------------------------------------------------

# Of SFT, which compiles in a third of the time: moments know gradients, not what they are gradients of.
# Wide enough that matrices are coded: gate and up [2, 64, 96], down [2, 96, 64].
MODEL = dataclasses.replace(toy.MODEL, hidden_size=64, intermediate_size=96, initializer_range=0.2)
INT8 = {"optimizer__moment_dtype": "int8", "prompts_per_step": 16, "optimizer__minibatches": 2}
MESH = {"parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2}


def fresh_states(setup):
  states = programs.init_states(setup, jax.tree.map(jnp.copy, toy.params(setup.model)), jax.random.key(3))
  if setup.run.parallel.kind == "pmap":
    return programs.replicate(states)
  return states if setup.mesh is None else jax.device_put(states, programs.state_shardings(setup))


def run(model=MODEL, steps=2, **over):
  """(parameters, states) after the steps."""
  setup = toy.setup("sft", model=model, **{**INT8, **over})
  states, step = fresh_states(setup), programs.build_train_step(setup)
  pmap = setup.run.parallel.kind == "pmap"
  for number in range(steps):
    prompts = toy.prompts(16, seed=number)
    if pmap:
      prompts = jax.tree.map(lambda a: a.reshape(8, 2, *a.shape[1:]), prompts)
    states = step(states, prompts)[0]
  return programs.unreplicate(states) if pmap else states


@pytest.fixture(scope="module")
def plain():
  return run()


def coded_leaves(states):
  return [a for a in jax.tree.leaves(states.policy.opt_state) if a.dtype in (jnp.int8, jnp.uint8)]


@pytest.mark.parametrize("over", [{"parallel__kind": "pmap"}, MESH], ids=["pmap", "mesh"])
def test_every_way_to_run_gives_the_same_parameters(plain, over):
  """Gradients differ by rounding, and now and then a code by one level with them: a tenth of an entry's step."""
  assert len(coded_leaves(plain)) >= 6
  found = jax.device_get(run(**over))
  pairs = zip(*(jax.tree.leaves(states.policy.params) for states in (found, plain)), strict=True)
  difference = [np.abs(a - b) for a, b in pairs]
  assert max(d.max() for d in difference) < 0.2 * 1e-2 and max(d.mean() for d in difference) < 2e-5
  assert any(d.max() > 0 for d in difference)


def test_blocks_do_not_straddle_shards():
  """Codes are cut as their parameters are; of scales an axis that does not divide is whole on every device."""
  setup = toy.setup("sft", model=MODEL, **{**INT8, **MESH})
  states, shardings = programs.abstract_states(setup), programs.state_shardings(setup)
  (moments,) = [part.inner for part in shardings.policy.opt_state if hasattr(part, "updates")]
  shapes = next(part.inner for part in states.policy.opt_state if hasattr(part, "updates"))
  for field in (moments.mu, moments.nu):
    assert jax.tree.leaves(field.code) == jax.tree.leaves(shardings.policy.params)
  assert shapes.mu.code["layers"]["gate"]["kernel"].shape == (2, 64, 96)
  assert shapes.mu.scale["layers"]["gate"]["kernel"].shape == (2, 2, 96)
  assert moments.mu.scale["layers"]["gate"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
  assert moments.mu.scale["final_norm"]["scale"].spec == PartitionSpec()
  jax.tree.map(lambda a, s: s.shard_shape(a.shape), states, shardings)  # raises where one does not divide


def test_a_resumed_run_has_the_same_bits(tmp_path, plain):
  """Rounding depends on the number of updates alone: stopping after the first step changes nothing."""
  setup = toy.setup("sft", model=MODEL, **INT8)
  checkpoints = Checkpoints(tmp_path, CheckpointConfig(async_save=False))
  checkpoints.save(1, run(steps=1), {})
  states, _ = checkpoints.restore(1, programs.abstract_states(setup))
  again = programs.build_train_step(setup)(states, toy.prompts(16, seed=1))[0]
  assert jax.tree.structure(again) == jax.tree.structure(plain)
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(plain)):
    a, b = (jax.random.key_data(x) if x.dtype == plain.policy.key.dtype else x for x in (a, b))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  "over",
  [
    {"model": dataclasses.replace(MODEL, lora_rank=32), "parallel__fsdp": 2},
    {"optimizer__ema_decay": 0.9, "optimizer__name": "sgd"},
  ],
  ids=["adapters", "average_of_sgd"],
)
def test_it_goes_with(over):
  states = run(steps=1, **over)
  assert coded_leaves(states)
  assert all(np.isfinite(np.asarray(a)).all() for a in jax.tree.leaves(states.policy.params))
