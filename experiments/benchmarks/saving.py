"""What a checkpoint's digests cost: their seconds beside those of the save that they are part of, and of a restore.

    python experiments/benchmarks/saving.py --millions 135 --directory DIR

The state has so many parameters in float32, cut into matrices as a decoder's are, and both of Adam's moments. Each
figure is the median of five. The first digests also compile, once per shape; that time is shown apart.
"""

import argparse
import shutil
import statistics
import time

import jax
import jax.numpy as jnp

from nrt_jax.records import digests
from nrt_jax.records.checkpoint import CheckpointConfig, Checkpoints

WIDTH, LAYERS = 576, 30  # of SmolLM2-135M: 576 wide, 1,536 in the MLP, 49,152 words


def make_state(millions: float) -> dict:
  """Parameters and moments; about as many leaves, of the same shapes, as the training state of such a model has."""
  scale = millions / 134.5
  words = int(49_152 * scale)
  shapes = {"embedding": (words, WIDTH), "q": (LAYERS, WIDTH, WIDTH), "o": (LAYERS, WIDTH, WIDTH)}
  shapes |= {"k": (LAYERS, WIDTH, WIDTH // 3), "v": (LAYERS, WIDTH, WIDTH // 3)}
  shapes |= {name: (LAYERS, WIDTH, int(1536 * scale)) for name in ("gate", "up", "down")}
  shapes |= {"norm_1": (LAYERS, WIDTH), "norm_2": (LAYERS, WIDTH), "final_norm": (WIDTH,)}
  keys = dict(zip(shapes, jax.random.split(jax.random.key(0), len(shapes))))
  make = jax.jit(lambda: {name: jax.random.normal(keys[name], shape) for name, shape in shapes.items()})
  params = make()
  return {"params": params, "mu": jax.tree.map(jnp.copy, params), "nu": jax.tree.map(jnp.square, params)}


def seconds(work, times: int = 5) -> float:
  """The median time of a call."""
  found = []
  for _ in range(times):
    start = time.perf_counter()
    work()
    found.append(time.perf_counter() - start)
  return statistics.median(found)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--millions", type=float, default=135.0, help="parameters of the state")
  parser.add_argument("--directory", required=True, help="where checkpoints are written, and removed again")
  args = parser.parse_args()
  state = jax.block_until_ready(make_state(args.millions))
  flat = {f"{part}/{name}": leaf for part, tree in state.items() for name, leaf in tree.items()}
  size = sum(leaf.nbytes for leaf in flat.values())
  first = seconds(lambda: digests.of_arrays(flat), 1)
  again = seconds(lambda: digests.of_arrays(flat))
  checkpoints, step = Checkpoints(args.directory, CheckpointConfig(keep_last=1)), iter(range(1, 100))

  def save():
    checkpoints.save(next(step), state, {})
    checkpoints.wait()

  whole = seconds(save)
  restore = seconds(lambda: checkpoints.restore(None, state))
  checkpoints.close()
  shutil.rmtree(args.directory)
  print(f"{jax.devices()[0].device_kind}: {size / 1e9:.2f} GB in {len(flat)} arrays")
  print(f"digests: {again:.2f} s ({size / again / 1e9:.1f} GB/s); the first time {first:.2f} s, with compilation")
  print(f"save, digests included: {whole:.2f} s; restore, verified: {restore:.2f} s")


if __name__ == "__main__":
  main()
