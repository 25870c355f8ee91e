"""RARO's verdicts as rewards, what a step remembers of them, and what to watch: docs/raro.md says what it means."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nrt_jax.algorithms import policy_gradient as pg
from nrt_jax.algorithms import replay
from nrt_jax.algorithms.critic import FIRST, SECOND, TIE, UNPARSED, Pairs
from nrt_jax.algorithms.interface import Tools
from nrt_jax.algorithms.raro_settings import RaroConfig

ALWAYS = 0.98  # share of verdicts from which on the critic always ties, or always names the expert's
ALARMS = {
  "critic/tied_steps": "the critic has said tie to nearly everything for {} steps: no group varies, and nobody "
  "learns. Lower algorithm.tau_critic towards 0.5, or warm the critic up",
  "critic/saturated_steps": "the critic has not been fooled for {} steps: the policy's rewards are all alike. "
  "Take more samples_per_prompt, or lower algorithm.lambda_critic",
}


class Scored(NamedTuple):
  """Verdicts `[B, K, V]` and what they earn."""

  critic_BKV: jax.Array  # float32, the critic's reward
  policy_BKV: jax.Array  # float32, the policy's
  counts_BKV: jax.Array  # bool, whether a verdict speaks of the policy's answer
  parsed_BKV: jax.Array  # bool, whether it says anything
  right_BKV: jax.Array  # bool, it names the expert's answer (single: it says rightly whose the answer is)
  tie_BKV: jax.Array  # bool
  first_BKV: jax.Array  # bool, it says answer 1
  expert_first_BKV: jax.Array  # bool, answer 1 is the expert's


def score(config: RaroConfig, kind: str, verdict_BKV, expert_first_BKV) -> Scored:
  """The table of rewards. Where one answer is shown at a time, verdicts on the expert's say nothing of the policy's."""
  parsed, tie, first = verdict_BKV != UNPARSED, verdict_BKV == TIE, verdict_BKV == FIRST
  # With one answer, FIRST says "the expert's" of it, and expert_first tells that it is.
  right = jnp.where(expert_first_BKV, first, verdict_BKV == SECOND)
  names_policy = parsed & ~tie & ~right
  critic = right + config.tau_critic * tie
  policy = names_policy + config.tau_policy * tie
  counts = parsed & ~expert_first_BKV if kind == "single" else parsed
  return Scored(critic, policy * 1.0, counts, parsed, right, tie, first, expert_first_BKV)


def mean_verdict(x_BKV, counts_BKV):
  """The mean over the verdicts that count `[B, K]`, 0 where none does."""
  return jnp.sum(x_BKV, axis=2, where=counts_BKV) / jnp.maximum(counts_BKV.sum(axis=2), 1)


def remember(tools: Tools, config: RaroConfig, memory, scored: Scored, pairs: Pairs, fresh: Pairs, key):
  """(the critic's accuracy averaged over steps, the memory after the step)."""
  right, decided = accuracy_sums(scored, pairs)
  right, decided = tools.all_sum(right), tools.all_sum(decided)
  now = jnp.where(decided > 0, right / jnp.maximum(decided, 1), memory["accuracy"])
  first = memory["steps"] == 0
  accuracy = jnp.where(first, now, config.accuracy_decay * memory["accuracy"] + (1 - config.accuracy_decay) * now)
  ties, parsed = (tools.all_sum(jnp.sum(x)) for x in (scored.tie_BKV, scored.parsed_BKV))
  wins = tools.all_sum(jnp.sum(scored.policy_BKV, where=scored.counts_BKV))
  counted = tools.all_sum(jnp.sum(scored.counts_BKV))
  tied, saturated = ties > ALWAYS * jnp.maximum(parsed, 1), wins < (1 - ALWAYS) * jnp.maximum(counted, 1)
  kept = {
    "accuracy": accuracy,
    "steps": memory["steps"] + 1,
    "tied_steps": jnp.where(tied, memory["tied_steps"] + 1, 0),
    "saturated_steps": jnp.where(saturated & (counted > 0), memory["saturated_steps"] + 1, 0),
  }
  if config.replay_share:
    kept["replay"] = replay.add(tools, memory["replay"], fresh, config.replay, jax.random.fold_in(key, 3))
  return accuracy, kept


def accuracy_sums(scored: Scored, pairs: Pairs):
  """(right, all) of the verdicts that decide between different answers."""
  B = scored.tie_BKV.shape[0]
  different_BK1 = (pairs.valid_X & ~pairs.equal_X).reshape(B, -1, 1)
  decided_BKV = scored.parsed_BKV & ~scored.tie_BKV & different_BK1
  return jnp.sum(scored.right_BKV & decided_BKV).astype(jnp.float32), jnp.sum(decided_BKV).astype(jnp.float32)


def monitor(tools: Tools, config: RaroConfig, scored: Scored, verdicts, pairs: Pairs, counts, label_N) -> dict:
  """What to watch: docs/raro.md says what each state of it means."""
  B, G = scored.tie_BKV.shape[0], counts.fresh
  valid_BK1 = pairs.valid_X.reshape(B, -1, 1)
  parsed_BKV = scored.parsed_BKV & valid_BK1

  def share(what_BKV, of_BKV):
    return jnp.sum(what_BKV & of_BKV).astype(jnp.float32), jnp.sum(of_BKV).astype(jnp.float32)

  every_BKV = jnp.broadcast_to(valid_BK1, parsed_BKV.shape)
  fresh_BKV = parsed_BKV & (jnp.arange(parsed_BKV.shape[1]) < G)[None, :, None]
  names_policy_BKV = ~scored.tie_BKV & ~scored.right_BKV
  sums = {
    "critic/accuracy": accuracy_sums(scored, pairs),
    "critic/tie_rate": share(scored.tie_BKV, parsed_BKV),
    "critic/parsed": share(scored.parsed_BKV, every_BKV),
    "critic/win_rate": share(names_policy_BKV, fresh_BKV & scored.counts_BKV),
    "critic/first_when_expert_first": share(scored.first_BKV, parsed_BKV & scored.expert_first_BKV),
    "critic/first_when_policy_first": share(scored.first_BKV, parsed_BKV & ~scored.expert_first_BKV),
    "critic/kept": pg.mean_of(verdicts.ended_N),
    "critic/length_mean": pg.mean_of(verdicts.length_N - verdicts.ended_N),
    "pairs/equal": (jnp.sum(pairs.equal_X & pairs.valid_X).astype(jnp.float32), jnp.sum(pairs.valid_X) * 1.0),
    "tokens/critic_generated": jnp.sum(verdicts.length_N),
  }
  if label_N is not None:
    right_BK1 = (label_N > 0.5).reshape(B, G, 1)
    decided = fresh_BKV[:, :G] & ~scored.tie_BKV[:, :G]
    expert_named = scored.right_BKV[:, :G]
    sums |= {
      "critic/accuracy_policy_wrong": share(expert_named, decided & ~right_BK1),
      "critic/accuracy_policy_right": share(expert_named, decided & right_BK1),
      "critic/tie_rate_policy_wrong": share(scored.tie_BKV[:, :G], fresh_BKV[:, :G] & ~right_BK1),
      "critic/tie_rate_policy_right": share(scored.tie_BKV[:, :G], fresh_BKV[:, :G] & right_BK1),
    }
  return sums


def first_memory(config: RaroConfig, critic=None) -> dict:
  """What a stage starts with: an empty buffer, and no steps."""
  counters = {"steps": jnp.int32(0), "tied_steps": jnp.int32(0), "saturated_steps": jnp.int32(0)}
  buffer = {"replay": replay.empty(critic, config.replay_size)} if config.replay_share else {}
  return {"accuracy": jnp.float32(0), **counters, **buffer}


def alarms(config: RaroConfig, metrics: dict) -> list[str]:
  """Lines of warning that a step's metrics call for: one each time a state has lasted another alarm_steps."""
  due = {name: metrics.get(name, 0) for name in ALARMS}
  return [ALARMS[name].format(int(n)) for name, n in due.items() if n and n % config.alarm_steps == 0]
