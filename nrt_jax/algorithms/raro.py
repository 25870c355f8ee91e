"""RARO: a policy and a relativistic critic, trained together in one program (Escaping the Verifier, arXiv 2511.21667).

 1. the policy samples G completions for each question, trace, marker and own answer;
 2. the critic reads the question and two answers, the expert's and a sampled one, reasons, and says which is the
    expert's, or that it cannot tell. It never sees a trace;
 3. the verdicts on fresh pairs reward the policy (their mean), and those on fresh and replayed pairs the critic:

        the critic names      critic   policy
        the expert's answer   1        0
        the policy's answer   0        1
        neither (a tie)       τ_crit   τ_pol

 4. advantages within each group of completions, and within each pair's verdicts: no std, no length normalisation;
    what was cut at a length limit is left out of both;
 5. one update of both roles' rows, weighted by λ_pol and λ_crit, with a KL term to the reference.

The paper's body was not at hand: every default that is marked as ours, or as a re-implementation's, is not the paper's.
"""

import jax
import jax.numpy as jnp

from nrt_jax.algorithms import critic as critics
from nrt_jax.algorithms import mixing, replay, rlvr
from nrt_jax.algorithms import policy_gradient as pg
from nrt_jax.algorithms.critic import FIRST, SECOND, TIE, UNPARSED, Pairs
from nrt_jax.algorithms.interface import Algorithm, Collected, Tools
from nrt_jax.algorithms.raro_monitor import Scored, alarms, first_memory, mean_verdict, monitor, remember, score
from nrt_jax.algorithms.raro_settings import RaroConfig
from nrt_jax.arrays import repeat_rows
from nrt_jax.objectives import advantages, losses


def collect(tools: Tools, config: RaroConfig, states, prompts, key) -> Collected:
  G, counts, form = tools.samples_per_prompt, config.pairs(tools.samples_per_prompt), tools.critic
  rollouts = tools.complete(states.policy.params, prompts, key)[0]
  prompts_N = repeat_rows(prompts, G)
  *answers, answered_N = critics.own_answers(tools, rollouts)
  expert_B = critics.expert_answers(tools, prompts)  # token [B, A], length [B]
  fresh = _pairs(prompts_N, repeat_rows(expert_B, G), answers, answered_N)

  critic_key = jax.random.fold_in(key, 1)  # the completions are drawn with `key` itself
  key_B = jax.vmap(lambda example: jax.random.fold_in(critic_key, example))(prompts.example_B)
  pairs = _all_pairs(tools, config, states.memory, prompts, expert_B, fresh, key_B)
  verdict_BKV, expert_first_BKV, verdicts, shown = judge(tools, config, states, prompts, pairs, key_B, critic_key)
  valid_BK1 = pairs.valid_X.reshape(*verdict_BKV.shape[:2], 1)
  scored = score(config, form.kind, jnp.where(valid_BK1, verdict_BKV, UNPARSED), expert_first_BKV)

  label_N = _labels(tools, config, prompts_N, rollouts)
  reward_N = mean_verdict(scored.policy_BKV, scored.counts_BKV)[:, :G].reshape(-1)
  judged_N = scored.counts_BKV[:, :G].any(axis=2).reshape(-1)
  reward_N += config.verifier_weight * (0 if label_N is None else label_N)
  shaped_N = pg.shape(config, reward_N, rollouts, rollouts.token_NR.shape[1])
  valid_N = judged_N | ~answered_N  # no answer earns 0; an answer that no verdict speaks of has no reward
  advantage_N, counts_N = pg.group_advantages(tools, config, shaped_N, rollouts, valid_N=valid_N)

  accuracy, memory = remember(tools, config, states.memory, scored, pairs, fresh, critic_key)
  weight = jnp.where(accuracy >= config.accuracy_floor, config.lambda_policy, 0.0)
  policy_rows = pg.completion_batch(tools, config, prompts_N, rollouts)
  terms = pg.trace_terms(tools, config, advantage_N, policy_rows.trace_mask_NL & counts_N[:, None])
  policy_rows = policy_rows.replace(**{**terms, "trace_coef_NL": weight * terms["trace_coef_NL"]})
  critic_rows, critic_sums = _critic_rows(tools, config, pairs, scored, verdicts, shown)

  sums = {
    "tokens/critic_prompt": jnp.sum(shown.prompt_length_B),
    **pg.reward_metrics(reward_N, advantage_N, G),
    **rlvr.completion_metrics(tools, rollouts, jnp.zeros_like(reward_N) if label_N is None else label_N),
    **critic_sums,
    **monitor(tools, config, scored, verdicts, pairs, counts, label_N),
    "critic/accuracy_average": (accuracy, jnp.float32(1)),
    "critic/tied_steps": (memory["tied_steps"].astype(jnp.float32), jnp.float32(1)),
    "critic/saturated_steps": (memory["saturated_steps"].astype(jnp.float32), jnp.float32(1)),
    "policy/updated": (jnp.float32(weight > 0), jnp.float32(1)),
    "policy/answered": pg.mean_of(answered_N),
    "policy/kept": pg.mean_of(counts_N),
  }
  if label_N is None:
    sums.pop("completion/accuracy")
  if config.replay_share:
    sums["replay/filled"] = (replay.filled(memory["replay"]).astype(jnp.float32), jnp.float32(1))
  samples = rlvr.shown(prompts_N, rollouts, reward_N, advantage_N)
  batch, own = _batches(tools, config, states, policy_rows, critic_rows)
  return Collected(batch, sums, samples, memory, own)


# ------------------------------------------------------------------------------------------------------------ verdicts


def _pairs(prompts_N, expert, answers, valid_N) -> Pairs:
  return Pairs(prompts_N.hint_BQ, prompts_N.hint_length_B, *expert, *answers, valid_N)


def _by_prompt(tree, prompts: int):
  return jax.tree.map(lambda a: a.reshape(prompts, -1, *a.shape[1:]), tree)


def _flat(tree):
  return jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), tree)


def _all_pairs(tools: Tools, config: RaroConfig, memory, prompts, expert_B, fresh: Pairs, key_B) -> Pairs:
  """Each prompt's pairs `[B * K]`: those of its completions, then replayed, then corrupted ones.

  While the buffer is empty, fresh pairs take the place of replayed ones: those that the critic would not learn from.
  """
  counts, B = config.pairs(tools.samples_per_prompt), len(prompts.prompt_length_B)
  parts = [_by_prompt(fresh, B)]
  fold = lambda number: jax.vmap(lambda key: jax.random.fold_in(key, number))(key_B)
  if counts.old:
    old = replay.draw(memory["replay"], fold(0), counts.old)
    other_C = (counts.fresh_learnt + jnp.arange(counts.old)) % counts.fresh
    others = _flat(jax.tree.map(lambda a: a[:, other_C], parts[0]))
    pick = lambda new, instead: jnp.where(old.valid_X.reshape(-1, *(1,) * (new.ndim - 1)), new, instead)
    parts.append(_by_prompt(jax.tree.map(pick, old, others), B))
  if counts.corrupted:
    expert_BA, length_B = expert_B
    wrong_BCA = critics.corrupt(fold(1), expert_BA, length_B, counts.corrupted)
    every = repeat_rows((prompts.hint_BQ, prompts.hint_length_B, expert_BA, length_B), counts.corrupted)
    wrong = (wrong_BCA.reshape(-1, wrong_BCA.shape[2]), every[3], every[3] > 0)
    parts.append(_by_prompt(Pairs(*every, *wrong), B))
  return _flat(jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *parts))


def judge(tools: Tools, config: RaroConfig, states, prompts, pairs: Pairs, key_B, key):
  """The critic's verdicts on pairs `[B * K]`: what each says, whether the expert's answer was the first, `[B, K, V]`,

  their Rollouts, and the critic's prompts. V runs over the orders, and over the samples of each.
  """
  B, orders, role = len(key_B), config.critic.orders, config.role()
  K = len(pairs.valid_X) // B
  keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 2), K))(key_B).reshape(-1)
  expert_first_XO = critics.shown_first(keys, tools.critic, orders)
  example_X = (prompts.example_B[:, None] * K + jnp.arange(K)[None]).reshape(-1)
  shown = critics.build_prompts(tools.critic, pairs, expert_first_XO, example_X, tools.pad_id)
  verdicts = tools.sample(_critic_params(config, states), shown, key, role)
  by_pair = lambda a: a.reshape(B, K, orders * role.samples)
  said = critics.read_verdicts(tools.critic, verdicts)
  return by_pair(said), by_pair(expert_first_XO.reshape(-1).repeat(role.samples)), verdicts, shown


def _critic_params(config: RaroConfig, states):
  return states.critic.params if config.critic.own_weights else states.policy.params


def _labels(tools: Tools, config: RaroConfig, prompts_N, rollouts):
  """What the verifier says of each completion `[N]`, None without one."""
  return None if config.verifier == "none" else rlvr.verify(tools, config, prompts_N, rollouts)


# ---------------------------------------------------------------------------------------------------------------- rows


def _learnt(config: RaroConfig, tools: Tools, tree):
  """Of a tree of `[B, K, ...]`, the pairs that the critic learns from."""
  counts = config.pairs(tools.samples_per_prompt)
  places = jnp.asarray([*range(counts.fresh_learnt), *range(counts.fresh, counts.judged)])
  return jax.tree.map(lambda a: a[:, places], tree)


def _critic_rows(tools: Tools, config: RaroConfig, pairs: Pairs, scored: Scored, verdicts, shown):
  """The TrainBatch of the verdicts that are learnt from, and its metrics."""
  critic, B = config.critic, scored.tie_BKV.shape[0]
  per_pair, V = config.role().samples, critic.samples
  pairs, scored, verdicts = _learnt(config, tools, (_by_prompt(pairs, B), scored, _by_pair(verdicts, B, V)))
  shown = _flat(_flat(_learnt(config, tools, _by_pair(shown, B, critic.orders))))
  verdicts, C = _flat(_flat(verdicts)), scored.tie_BKV.shape[1]
  flat = lambda x_BKV: x_BKV.reshape(-1)
  counts_n = flat(jnp.broadcast_to(pairs.valid_X[:, :, None], scored.tie_BKV.shape))
  counts_n &= verdicts.ended_N if config.mask_unended else True
  if config.unparsed == "masked":
    counts_n &= flat(scored.parsed_BKV)
  reward_n = flat(scored.critic_BKV)
  # A single answer is compared with itself: whether it is the expert's would else be all that an advantage says.
  group = per_pair if critic.kind == "single" else V
  advantage_n = advantages.group_advantages(reward_n, group, config.center, config.scale, counts_n)
  shown_n = repeat_rows(shown, per_pair)
  limit = config.normalisation_constant or critic.max_length

  def weigh(mask_nL):
    how = (config.normalisation, tools.minibatches, C * V, limit)
    return mask_nL * losses.normaliser(mask_nL, *how, tools.all_sum)

  if config.label_coef:
    batch = _labelled(tools, config, pairs, scored, verdicts, shown_n)
  else:
    batch = pg.completion_batch(tools, config, shown_n, verdicts)
  weight_nL = weigh(batch.trace_mask_NL & counts_n[:, None])
  batch = batch.replace(
    trace_coef_NL=config.lambda_critic * config.trace_coef * advantage_n[:, None] * weight_nL,
    trace_weight_NL=weight_nL,
    trace_mask_NL=batch.trace_mask_NL & counts_n[:, None],
  )
  std = lambda x: x.reshape(-1, group).std(axis=1)
  sums = {
    "critic/reward": (jnp.sum(reward_n, where=counts_n), counts_n.sum().astype(jnp.float32)),
    "critic/reward_std": pg.mean_of(std(reward_n)),
    "critic/advantage_abs_mean": pg.mean_of(jnp.abs(advantage_n)),
  }
  return batch, sums


def _by_pair(tree, prompts: int, count: int):
  return jax.tree.map(lambda a: a.reshape(prompts, -1, count, *a.shape[1:]), tree)


def _labelled(tools: Tools, config: RaroConfig, pairs: Pairs, scored: Scored, verdicts, shown_n):
  """Rows whose own label gave way to the right one, which is learnt by cross-entropy; of equal answers: tie, or none.

  Reasoning that was cut at the limit is good enough for it: that is where verdicts of a cold model end.
  """
  shape = scored.tie_BKV.shape
  taught_n = jnp.broadcast_to(pairs.valid_X[:, :, None], shape).reshape(-1)
  label_n = jnp.where(scored.expert_first_BKV, FIRST, SECOND).reshape(-1)
  equal_n = jnp.broadcast_to(_flat_equal(pairs)[:, :, None], shape).reshape(-1)
  if tools.critic.kind == "pairwise_tie":
    label_n = jnp.where(equal_n, TIE, label_n)
  else:
    taught_n &= ~equal_n
  length_n, marker_ids, answer_nA, answer_length_n = critics.forced(tools.critic, verdicts, label_n)
  batch = pg.spliced_batch(tools, shown_n, verdicts, length_n, marker_ids, answer_nA, answer_length_n)
  taught_nL = (batch.answer_mask_NL | batch.format_mask_NL) & taught_n[:, None]
  group = shape[1] * shape[2]
  weight_n1 = losses.normaliser(taught_nL, "sequence", tools.minibatches, group, all_sum=tools.all_sum)
  coef_nL = config.lambda_critic * config.label_coef * taught_nL * weight_n1
  return batch.replace(answer_coef_NL=coef_nL, answer_mask_NL=taught_nL)


def _flat_equal(pairs: Pairs):
  """Pairs.equal_X of pairs `[B, K, ...]`."""
  return _flat(pairs).equal_X.reshape(pairs.valid_X.shape)


def _batches(tools: Tools, config: RaroConfig, states, policy_rows, critic_rows):
  """(batch, the critic's own batch): one mixed batch, or one for each role where the critic has its own weights."""
  kl = 1.0 if config.critic.kl_coef is None or not config.kl_coef else config.critic.kl_coef / config.kl_coef
  temperature = (tools.temperature, config.critic.temperature)
  policy_rows, critic_rows = (
    mixing.as_role(rows, is_critic, heat, weight)
    for rows, is_critic, heat, weight in zip((policy_rows, critic_rows), (False, True), temperature, (1.0, kl))
  )
  if not config.critic.own_weights:
    counts = config.pairs(tools.samples_per_prompt)
    per_prompt = (tools.samples_per_prompt, counts.learnt * config.critic.samples)
    return pg.with_scores(tools, config, states, mixing.mix(policy_rows, critic_rows, *per_prompt, tools.pad_id)), None
  policy_rows = pg.with_scores(tools.for_role("policy"), config, states, policy_rows)
  as_critic = states.replace(policy=states.critic, reference=states.critic_reference)
  return policy_rows, pg.with_scores(tools.for_role("critic"), config, as_critic, critic_rows)


ALGORITHM = Algorithm(
  config=RaroConfig,
  collect=collect,
  loss=pg.loss,
  samples_traces=True,
  has_critic=True,
  memory=first_memory,
  alarms=alarms,
)
