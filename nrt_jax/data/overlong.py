"""What becomes of examples that are longer than their columns: dropped, cut or refused, and counted."""

from nrt_jax import errors

LIMITS = {
  "prompt": "prompt.max_prompt_length",
  "hint": "prompt.max_hint_length",
  "head": "algorithm.critic.max_head_length",
  "world": "environment.max_world_length",
  "answer": "prompt.max_answer_length",
  "trace": "data.max_trace_length",
}  # what is counted -> the key that bounds it


def fit(example, row, limits, shorten, counts):
  """The row within the limits, or None where a policy drops it. Counts each example under the first reason only."""
  if not row["prompt"]:
    raise errors.UserError(f"{example.where}: the prompt has no tokens")
  over = [kind for kind in row if len(row[kind]) > limits[kind][0]]
  for kind in over:
    limit, policy = limits[kind]
    if policy == "error":
      raise errors.UserError(f"{example.where}: the {kind} has {len(row[kind])} tokens, {LIMITS[kind]} allows {limit}")
    shorter = None if policy == "drop" else shorten(kind)
    if shorter is None:  # nor does a prompt fit of which nothing but the template is left
      counts[f"{kind}s_dropped"] += 1
      return None
    row = {**row, kind: shorter}
  for kind in over:
    counts[f"{kind}s_cut"] += 1
  return row


def summary(kept: int, counts: dict) -> str:
  """How many examples are left, and why: "2 of 4 examples (2 prompts over prompt.max_prompt_length dropped)"."""
  total = kept + sum(count for name, count in counts.items() if name.endswith("_dropped"))
  examples = f"{kept:,} of {total:,} examples" if total > kept else f"{kept:,} examples"
  return f"{examples} ({reasons(counts)})" if any(counts.values()) else examples


def reasons(counts: dict) -> str:
  """What the overlong policies did, and by which key."""
  done = [(kind, how, counts.get(f"{kind}s_{how}", 0)) for kind in LIMITS for how in ("dropped", "cut")]
  return ", ".join(f"{count:,} {kind}s over {LIMITS[kind]} {how}" for kind, how, count in done if count)
