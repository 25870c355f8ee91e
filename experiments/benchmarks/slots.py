"""How much a rollout in slots decodes, by arithmetic. No model and no device; takes seconds.

    python experiments/benchmarks/slots.py

Simulates nrt_jax/rollout/continuous.py on given trace lengths and counts rows decoded and cache columns read;
tests/rollout/test_continuous.py compares the count with the program's. Lengths are geometric, three quarters with a
mean of a tenth of the cap and one quarter with a mean of 1.2 caps, so about one row in ten is cut at the cap and the
mean is about a quarter of it. To measure times, use padding.py with `--set sampling.slots=...`.
"""

import numpy as np

from nrt_jax.rollout.continuous import shapes
from nrt_jax.rollout.sampler import cache_sizes


def heavy_tail(rows: int, cap: int, seed: int = 0):
  """Trace lengths, including the stop token."""
  rng = np.random.default_rng(seed)
  long = rng.random(rows) < 0.25
  return np.minimum(np.where(long, rng.geometric(1 / (1.2 * cap), rows), rng.geometric(10 / cap, rows)), cap)


def count_plain(length_N, cap: int, stages: int) -> dict:
  sizes = cache_sizes(cap, stages)
  steps, rows = int(length_N.max()), len(length_N)
  columns = sum(next(size for size in sizes if step < size) for step in range(steps))
  return {"steps": steps, "rows": rows * steps, "columns": rows * columns, "scored": rows}


def count_in_slots(length_N, slots: int, cap: int, stages: int) -> dict:
  """Counts steps of the token loop, rows decoded, cache columns read, and rows scored."""
  N, S, K = len(length_N), slots, max(1, slots // 8)
  W = cap if S == N else cap + max(1, cap // 8)
  table = shapes(S, W, stages)
  row, start, ended = np.arange(S), np.zeros(S, int), np.zeros(S, bool)
  queue, step, found = S, 0, {"steps": 0, "rows": 0, "columns": 0, "scored": 0}
  while (row < N).any():
    rows, columns = next((n, w) for n, w in table if n >= (~ended).sum() and (step < w or w == W))
    fewer = max([n for n, _ in table if n < rows], default=0) if queue >= N else 0
    while True:
      waits = ended & (row < N)
      late = (waits & (step - start >= W)).any()
      if (~ended).sum() <= fewer or (step >= columns and columns < W) or waits.sum() >= K or late:
        break
      step += 1
      found["rows"] += rows
      found["columns"] += rows * columns
      ended |= step - start >= np.where(row < N, length_N[np.minimum(row, N - 1)], 0)
    if waits.sum() < K and not late and not ended.all():
      continue
    found["scored"] += K
    for slot in sorted(np.flatnonzero(waits), key=lambda s: start[s])[:K]:
      row[slot], start[slot], ended[slot] = min(queue, N), step, queue >= N
      queue += queue < N
  return found | {"steps": step}


def main() -> None:
  print("| rows | cap | slots | steps | rows decoded per token | cache columns read, of those seen | rows scored |")
  print("|---|---|---|---|---|---|---|")
  for N, cap in ((64, 128), (512, 128), (512, 1024)):
    length_N = heavy_tail(N, cap)
    tokens, seen = length_N.sum(), (length_N * (length_N + 1) // 2).sum()
    for slots in (0, N, N // 2, N // 4, N // 8):
      counts = count_in_slots(length_N, slots, cap, 4) if slots else count_plain(length_N, cap, 4)
      shares = f"{counts['rows'] / tokens:.2f} | {counts['columns'] / seen:.2f} | {counts['scored'] / N:.2f}"
      print(f"| {N} | {cap} | {slots or 'off'} | {counts['steps']} | {shares} |")
    print(f"| | | mean length {tokens / N / cap:.2f} of the cap, {(length_N == cap).mean():.0%} at it | | | | |")


if __name__ == "__main__":
  main()
