"""Plain NumPy twins of the math, from the papers' equations: float64, one row or token at a time, no masks.

It uses probabilities c and plain loops where the library uses padded arrays of log-probabilities.
"""

import itertools

import numpy as np

AGGREGATION_NAMES = (
  "log_prob", "mean_log_prob", "prob", "geometric_mean", "arithmetic_mean",
  "weighted_sum_inverse_prob", "weighted_sum_log_prob",
)  # fmt: skip


def softmax(x):
  weight = np.exp(np.asarray(x, np.float64) - np.max(x))
  return weight / weight.sum()


def token_weights(name, base):
  """w_i of the two weighted sums, from the probabilities after an empty trace."""
  return 1 / base if name == "weighted_sum_inverse_prob" else -np.log(base)


def aggregate(name, c, base):
  """f(c) of one answer's token probabilities (NRT, table of aggregations)."""
  if name == "log_prob":
    return np.log(c).sum()
  if name == "mean_log_prob":
    return np.log(c).mean()
  if name == "prob":
    return c.prod()
  if name == "geometric_mean":
    return c.prod() ** (1 / len(c))
  if name == "arithmetic_mean":
    return c.mean()
  return (token_weights(name, base) * c).mean()


def answer_weights(name, c, base):
  """s_i = α_i c_i with α_i = ∂f/∂c_i as that table has it."""
  length = len(c)
  if name == "log_prob":
    alpha = 1 / c
  elif name == "mean_log_prob":
    alpha = 1 / (length * c)
  elif name == "prob":
    alpha = np.array([np.delete(c, i).prod() for i in range(length)])
  elif name == "geometric_mean":
    alpha = c.prod() ** (1 / length) / (length * c)
  elif name == "arithmetic_mean":
    alpha = np.full(length, 1 / length)
  else:
    alpha = token_weights(name, base) / length
  return alpha * c


def group_advantages(rewards, group_size, center, scale, valid):
  """Advantages of one valid row at a time against the valid rows of its group."""
  if scale == "advantage_std":
    centred = group_advantages(rewards, group_size, center, "none", valid)
    return group_advantages(centred, group_size, "none", "std", valid)
  advantages = np.zeros(len(rewards))
  for n in range(len(rewards)):
    first = n // group_size * group_size
    members = [m for m in range(first, first + group_size) if valid[m]]
    others = [m for m in members if m != n]
    if not valid[n] or (center in ("leave_one_out", "multi_sample") and not others):
      continue
    if center == "multi_sample":
      bounds = [np.log(np.mean([np.exp(rewards[m]) for m in rows])) for rows in (members, others)]
      advantage = group_size * (bounds[0] - bounds[1])
    else:
      baseline = {"mean": members, "leave_one_out": others, "none": []}[center]
      advantage = rewards[n] - (np.mean([rewards[m] for m in baseline]) if baseline else 0)
    if scale == "std":
      std = np.std([rewards[m] for m in members], ddof=1) if len(members) > 1 else 0
      advantage = advantage / std if std > 0 else 0
    advantages[n] = advantage
  return advantages


def standardised_tokens(rows, group_size):
  """Each group's answer weights (ragged lists), centred and scaled over all tokens of the group."""
  out = []
  for first in range(0, len(rows), group_size):
    tokens = np.concatenate(rows[first : first + group_size])
    out += [(np.asarray(row) - tokens.mean()) / tokens.std(ddof=1) for row in rows[first : first + group_size]]
  return out


def ppo_clip(logp, behaviour_logp, advantage, low, high):
  """Loss of one token and its derivative by logp."""
  ratio = np.exp(logp - behaviour_logp)
  clipped = min(max(ratio, low), high)
  if ratio * advantage <= clipped * advantage:
    return -ratio * advantage, -ratio * advantage
  return -clipped * advantage, 0.0


def cispo(logp, behaviour_logp, advantage, low, high):
  """Loss of one token and its derivative by logp."""
  ratio = np.exp(logp - behaviour_logp)
  if (advantage > 0 and ratio > high) or (advantage < 0 and ratio < low):
    return 0.0, 0.0
  weight = min(max(ratio, low), high)
  return -advantage * weight * logp, -advantage * weight


def normalised_losses(rows, how, minibatches, group_size, constant):
  """The loss of each minibatch, from ragged lists of token losses."""
  losses = []
  for m in range(minibatches):
    chosen = [row for n, row in enumerate(rows) if (n // group_size) % minibatches == m]
    if how == "token":
      losses.append(np.concatenate(chosen).mean())
    elif how == "sequence":
      losses.append(np.mean([np.mean(row) for row in chosen if len(row)]))
    else:
      losses.append(np.mean([np.sum(row) / constant for row in chosen]))
  return losses


def central_difference(f, x, step=1e-6):
  """Gradient of a scalar function at x, one coordinate at a time."""
  gradient = np.zeros_like(x)
  for i in range(x.size):
    offset = np.zeros_like(x)
    offset.flat[i] = step
    gradient.flat[i] = (f(x + offset) - f(x - offset)) / (2 * step)
  return gradient


def padded(rows, width, fill=0.0):
  """Ragged rows as a padded float32 array and its boolean mask."""
  values = np.full((len(rows), width), fill, np.float32)
  mask = np.zeros((len(rows), width), bool)
  for n, row in enumerate(rows):
    values[n, : len(row)] = row
    mask[n, : len(row)] = True
  return values, mask


class ToyPolicy:
  """A softmax policy small enough to enumerate: 9 traces of 2 tokens, then one reference answer of 3 tokens.

  Logits are linear in parameters that trace and answer share, so that both terms of the gradient move the same numbers.
  """

  traces = [(a, b) for a in range(3) for b in range(3)]
  answer = (0, 2, 1)

  def __init__(self, seed=0, parameters=6):
    features = np.random.default_rng(seed).normal
    self.first = features(size=(3, parameters))
    self.second = features(size=(3, 3, parameters))
    self.after = features(size=(9, 3, 3, parameters))
    self.theta = features(size=parameters)
    self.base = np.array([0.9, 0.2, 0.05])

  def chosen(self, k):
    """(Features of the three symbols, symbol) at each of the 2 trace and 3 answer tokens of trace k."""
    a, b = self.traces[k]
    return [(self.first, a), (self.second[a], b)], [(self.after[k, i], y) for i, y in enumerate(self.answer)]

  def probability(self, tokens, theta):
    return np.array([np.exp(f[y] @ theta) / np.exp(f @ theta).sum() for f, y in tokens])

  def scores(self, tokens, theta):
    """∇ log π of each token: the chosen feature minus the expected one."""
    return np.array([f[y] - np.exp(f @ theta) @ f / np.exp(f @ theta).sum() for f, y in tokens])

  def objective(self, name, theta):
    """J(θ) = Σ_z π(z) f(c(z)), exactly."""
    total = 0.0
    for k in range(len(self.traces)):
      trace, answer = self.chosen(k)
      total += self.probability(trace, theta).prod() * aggregate(name, self.probability(answer, theta), self.base)
    return total

  def two_terms(self, name, theta):
    """The trace term and the answer term of ∇J, each the exact expectation over traces."""
    trace_term, answer_term = 0.0, 0.0
    for k in range(len(self.traces)):
      trace, answer = self.chosen(k)
      p, c = self.probability(trace, theta).prod(), self.probability(answer, theta)
      trace_term += p * aggregate(name, c, self.base) * self.scores(trace, theta).sum(axis=0)
      answer_term += p * answer_weights(name, c, self.base) @ self.scores(answer, theta)
    return trace_term, answer_term


# ------------------------------------------------------------------------------------ rows and their coefficients


def spliced_row(prompt, trace, marker, answer):
  """One training sequence as a list of tokens, and the kind of each."""
  parts = {"prompt": prompt, "trace": trace, "marker": marker, "answer": answer}
  kinds = [kind for kind, tokens in parts.items() for _ in tokens]
  return [token for tokens in parts.values() for token in tokens], kinds


def kept_tokens(logits, top_k, top_p):
  """Which tokens top-k, then nucleus sampling among those, leave: the likeliest ones until their mass reaches top_p."""
  order = sorted(range(len(logits)), key=lambda i: -logits[i])
  order = order[:top_k] if top_k else order
  weights = np.exp(np.array([float(logits[i]) for i in order]))
  kept, mass = np.zeros(len(logits), bool), 0.0
  for i, weight in zip(order, weights):
    if mass >= top_p and top_p < 1:
      break
    kept[i] = True
    mass += weight / weights.sum()
  return kept


def row_weights(counts, how, minibatches, group_size, constant):
  """The factor of each row's token terms, from its number of tokens in the term."""
  weights = []
  for n in range(len(counts)):
    mine = [c for m, c in enumerate(counts) if (m // group_size - n // group_size) % minibatches == 0]
    if how == "token":
      weights.append(1 / max(sum(mine), 1))
    elif how == "sequence":
      weights.append(1 / max(sum(c > 0 for c in mine), 1) / max(counts[n], 1))
    else:
      weights.append(1 / len(mine) / constant)
  return weights


def verifier_free_rows(config, samples, group_size, minibatches, marker, limit):
  """NRT's training rows from plain lists: each row's tokens with the coefficient of every term at every token.

  A sample is a dict: prompt, sampled (tokens), logp (of those), stop ("marker", "other" or None for a trace that ran
  into the limit), answer, c (its probabilities), marker_logp, base (probabilities whose sum f is the baseline).
  """
  rewards = np.array([aggregate(config.reward, s["c"], s["base"]) for s in samples])
  base_rewards = np.array([aggregate(config.reward, s["base"], s["base"]) for s in samples])
  gains = rewards if config.baseline == "none" else rewards - base_rewards
  gains = np.maximum(gains, 0) if config.baseline == "subtract_and_clip" else gains
  advantages = group_advantages(gains, group_size, config.center, config.scale, np.ones(len(samples), bool))
  advantages = encouraged(config, advantages)
  weights = [answer_weights(config.reward, s["c"], s["base"]) for s in samples]
  if config.answer_weight == "scaled":
    weights = standardised_tokens(weights, group_size)
  elif config.answer_weight != "derived":
    weights = [np.full(len(w), float(config.answer_weight == "one")) for w in weights]

  traces = [s["sampled"][:-1] if s["stop"] else s["sampled"] for s in samples]
  # Is the place of marker[0] part of the trace, with what was sampled there or with a marker that was put in by force?
  drawn = [s["stop"] == "marker" or (s["stop"] == "other" and not config.train_forced_marker) for s in samples]
  trained = [d or config.train_forced_marker for d in drawn]
  how, constant = config.normalisation, config.normalisation_constant or limit
  trace_w = row_weights([len(t) + m for t, m in zip(traces, trained)], how, minibatches, group_size, constant)
  answer_w = row_weights([len(s["answer"]) for s in samples], how, minibatches, group_size, constant)
  rows = []
  for n, s in enumerate(samples):
    tokens, kinds = spliced_row(s["prompt"], traces[n], marker, s["answer"])
    first_marker = kinds.index("marker")
    row = {name: np.zeros(len(tokens)) for name in ("trace", "behaviour", "answer", "format")}
    for t, kind in enumerate(kinds):
      if kind == "trace" or (t == first_marker and trained[n]):
        row["trace"][t] = config.trace_coef * advantages[n] * trace_w[n]
      if kind == "trace":
        row["behaviour"][t] = s["logp"][t - len(s["prompt"])]
      if t == first_marker:
        row["behaviour"][t] = s["logp"][-1] if drawn[n] else s["marker_logp"][0]
      if kind == "marker" and not (t == first_marker and s["stop"] == "marker"):
        rows_of_minibatch = len(samples) / minibatches
        row["format"][t] = config.format_coef / rows_of_minibatch / (constant if how == "constant" else 1)
      if kind == "answer":
        row["answer"][t] = config.answer_coef * weights[n][t - first_marker - len(marker)] * answer_w[n]
    rows.append({"tokens": tokens, "reward": rewards[n], "advantage": advantages[n], **row})
  return rows


def encouraged(config, advantages):
  """Quiet-STaR (arXiv 2403.09629) reinforces only what is better than the mean: other traces have no gradient."""
  return [a if a > 0 or not config.positive_only else 0.0 for a in advantages]


def trace_loss(name, logp, behaviour, coef, low, high):
  """Loss of one token and its derivative by logp."""
  if name == "reinforce":
    return -coef * logp, -coef
  return {"ppo_clip": ppo_clip, "cispo": cispo}[name](logp, behaviour, coef, low, high)


# ------------------------------------------------------------------------------------------------------ preferences


def dpo(chosen, chosen_ref, rejected, rejected_ref, beta):
  """DPO's loss of one pair from lists of token log-probabilities, and its derivative by each (chosen, rejected)."""
  margin = (sum(chosen) - sum(chosen_ref)) - (sum(rejected) - sum(rejected_ref))
  slope = -beta / (1 + np.exp(beta * margin))  # -β σ(-β m)
  return np.log(1 + np.exp(-beta * margin)), (slope, -slope)


# --------------------------------------------------------------------------- verifiable rewards, negatives (NFT)


def entropy_drift(logits, advantages):
  """-Cov(log π, A) over the actions of one state: what a natural-gradient step changes its entropy by, per step size."""
  p = softmax(logits)
  log_p = np.log(p)
  return -(np.sum(p * log_p * advantages) - np.sum(p * log_p) * np.sum(p * advantages))


def truncated_importance(logp, behaviour_logp, advantage, low, high):
  """Loss of one token and its derivative by logp."""
  weight = min(np.exp(logp - behaviour_logp), high)
  return -advantage * weight * logp, -advantage * weight


def gspo(logp, behaviour_logp, advantage, low, high):
  """Loss of one whole sequence (GSPO, eq. 5, for a mean over sequences of one) and its derivative by each logp."""
  ratio = (np.exp(logp).prod() / np.exp(behaviour_logp).prod()) ** (1 / len(logp))  # eq. 7
  clipped = min(max(ratio, low), high)
  if ratio * advantage <= clipped * advantage:
    return -ratio * advantage, np.full(len(logp), -ratio * advantage / len(logp))
  return -clipped * advantage, np.zeros(len(logp))


def nft(logp, behaviour_logp, label, rate, floor, negative_weight, ratio):
  """Token losses of one row (NFT, eq. 10; with `ratio` "sequence" one loss, eq. 9) and the derivative by each logp."""
  if ratio == "sequence":
    (loss,), (slope,) = nft([np.sum(logp)], [np.sum(behaviour_logp)], label, rate, floor, negative_weight, "token")
    return np.full(len(logp), loss), np.full(len(logp), slope)
  losses, slopes = [], []
  for new, old in zip(logp, behaviour_logp):
    r = np.exp(min(new - old, 10))
    v = (1 - rate * r) / (1 - rate)
    floored = max(v, floor)
    losses.append(-label * np.log(r) - negative_weight * (1 - label) * np.log(floored))
    dv = -rate * r / (1 - rate)  # dV / d log R; the floor leaves it as it is
    slopes.append((-label - negative_weight * (1 - label) * dv / floored) if new - old < 10 else 0.0)
  return losses, slopes


def counted_groups(verdicts, valid, group_size):
  """Rows of groups whose valid rows have more than one verdict."""
  counted = []
  for n in range(len(verdicts)):
    first = n // group_size * group_size
    seen = {verdicts[m] for m in range(first, first + group_size) if valid[m]}
    counted.append(bool(valid[n] and len(seen) > 1))
  return counted


def rlvr_rows(config, samples, group_size, limit, minibatches=1):
  """Reward, advantage and the coefficient of each sampled token, from plain lists.

  A sample is a dict: sampled (tokens), right, ended, marker (did the completion have one?).
  """
  rewards = []
  for s in samples:
    reward = 1.0 if s["right"] else config.wrong_reward
    rewards.append(reward + (config.format_reward if s["marker"] and s["ended"] else 0))
  shaped = []
  for reward, s in zip(rewards, samples):
    over = (len(s["sampled"]) - (limit - config.long_buffer)) / config.long_buffer if config.long_buffer else 0
    shaped.append(reward - config.long_penalty * min(max(over, 0), 1))
  valid = [s["ended"] or not config.mask_unended for s in samples]
  advantages = group_advantages(np.array(shaped), group_size, config.center, config.scale, valid)
  counts = list(valid)
  if config.filter_flat_groups:
    counts = counted_groups([s["right"] for s in samples], valid, group_size)
  lengths = [len(s["sampled"]) if c else 0 for s, c in zip(samples, counts)]
  constant = config.normalisation_constant or limit
  weights = row_weights(lengths, config.normalisation, minibatches, group_size, constant)
  advantages = np.where(counts, advantages, 0)
  return [
    {"reward": rewards[n], "advantage": advantages[n], "coef": np.full(len(s["sampled"]), advantages[n] * weights[n])}
    for n, s in enumerate(samples)
  ]


def rationalized_rows(config, samples, group_size, minibatches, marker):
  """The rows learnt by rationalization from plain lists: tokens, and the weight of each token's cross-entropy.

  A sample is a dict: prompt (the plain one), trace, ended, answer, c (the answer's probabilities), base (after none).
  """
  f = config.reward
  gains = [aggregate(f, s["c"], s["base"]) - aggregate(f, s["base"], s["base"]) for s in samples]
  kept = []
  for n, s in enumerate(samples):
    group = range(n // group_size * group_size, (n // group_size + 1) * group_size)
    able = [m for m in group if (samples[m]["ended"] or config.keep_unended)]
    if config.keep == "best":
      able = sorted(able, key=lambda m: -gains[m])[:1]
    kept.append(n in able and (config.keep == "all" or gains[n] > config.threshold))
  counts = [(len(s["trace"]) + len(marker) + len(s["answer"])) * k for s, k in zip(samples, kept)]
  weights = row_weights(counts, config.normalisation, minibatches, group_size, config.normalisation_constant)
  rows = []
  for n, s in enumerate(samples):
    tokens, kinds = spliced_row(s["prompt"], s["trace"], marker, s["answer"])
    rows.append((tokens, [weights[n] * kept[n] * (kind != "prompt") for kind in kinds], kept[n], gains[n]))
  return rows


# -------------------------------------------------------------------------------- methods rewarded by likelihood


def spread_weights(logps):
  """DRO's weights of a group's tokens from rows of log c_j: σ_j over the mean σ."""
  sigma = np.std(np.array(logps), axis=0)
  return sigma / sigma.mean() if sigma.mean() > 0 else np.ones_like(sigma)


def nover_terms(log_perplexities, lengths, valid):
  """Rank and efficiency of each valid completion of one group, 0 for the others (NOVER)."""
  members = [k for k in range(len(valid)) if valid[k]]
  rank, efficiency = np.zeros(len(valid)), np.zeros(len(valid))
  for k in members:
    others = [j for j in members if j != k]
    rank[k] = (len(members) - sum(log_perplexities[j] < log_perplexities[k] for j in others)) / len(members)
    beaten = [j for j in others if lengths[j] > lengths[k] and log_perplexities[j] > log_perplexities[k]]
    efficiency[k] = len(beaten) / len(others) if others else 0
  return rank, efficiency


def std_filter(stds_of_steps, beta, decay, average_start, filter_start):
  """Which prompts each step keeps, and the moving average after it (RLPR), from the stds of the prompts' rewards."""
  average, history = 0.0, []
  for step, stds in enumerate(stds_of_steps, start=1):
    kept = [step < filter_start or std >= beta * average for std in stds]
    if step == average_start:
      average = np.mean(stds)
    elif step > average_start:
      average = decay * average + (1 - decay) * np.mean(stds)
    history.append((kept, average))
  return history


def repeats(tokens, ngram, times):
  """Whether some n-gram of the list occurs so often."""
  windows = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)]
  return any(windows.count(window) >= times for window in windows)


def draw_groups(parts, count):
  """Which groups a step keeps, in order, after how many draws, and how many of those drawn vary (DAPO, algorithm 1).

  parts: a list for each possible draw, of (group, does it vary?); `count` groups are kept, flat ones only if need be.
  """
  varied, flat, draws = [], [], 0
  for part in parts:
    draws += 1
    for group, varies in part:
      (varied if varies else flat).append(group)
    if len(varied) >= count:
      break
  return (varied + flat)[:count], draws, len(varied)


def own_answer(completion, ended, marker, width):
  """What the critic is shown of a policy's completion: what stands behind the first marker. None: there is no answer.

  The completion ends with its end token unless it was cut at the limit; an answer-less one is never sent to the critic.
  """
  starts = [t for t in range(len(completion)) if completion[t : t + len(marker)] == marker]
  answer = completion[starts[0] + len(marker) : -1] if starts else []
  return answer[:width] if ended and answer else None


def begins(own, ended, answer, ends):
  """RPT (arXiv 2506.08007): an own answer, its end token left out, whose tokens are the first ones of the reference."""
  wanted = answer[:-1] if answer[-1] in ends else answer
  return bool(ended and 0 < len(own) <= len(wanted) and all(a == b for a, b in zip(own, wanted)))


def hidden(tokens, forbidden, sequences, neutral):
  """An answer in which each forbidden token, and each token of a forbidden sequence, is the neutral one."""
  bad = {t for t, token in enumerate(tokens) if token in forbidden}
  for sequence in sequences:
    for start in range(len(tokens) - len(sequence) + 1):
      if tokens[start : start + len(sequence)] == list(sequence):
        bad |= set(range(start, start + len(sequence)))
  return [neutral if t in bad else token for t, token in enumerate(tokens)]


def critic_prompts(single, head, expert, answer, middle, tail, expert_first):
  """A critic's prompt for each of a pair's orders. With one answer at a time, "expert first" is "the expert's"."""
  shown = []
  for first in expert_first:
    one, other = (expert, answer) if first else (answer, expert)
    shown.append(head + one + tail if single else head + one + middle + other + tail)
  return shown


def verdict(completion, ended, marker, labels, reasoning):
  """Which label a critic's completion ends with, strictly: all that stands behind its last marker; None: no label."""
  said = completion[:-1]
  if reasoning:
    starts = [t for t in range(len(said)) if said[t : t + len(marker)] == marker]
    said = said[starts[-1] + len(marker) :] if starts else None
  return labels.index(said) if ended and said in labels else None


def taught_verdict(completion, ended, marker, label, end, reasoning):
  """(reasoning that is kept, marker, label and end token) of a verdict whose own label gives way to the right one."""
  said = completion[:-1] if ended else completion
  starts = [t for t in range(len(said)) if said[t : t + len(marker)] == marker]
  return (said[: starts[0]] if starts else said) if reasoning else [], marker if reasoning else [], [*label, end]


def replay_buffer(kind, size, offered, places):
  """What a buffer holds after these pairs came one by one: a list of `size` places, None where nothing was written.

  fifo: over the oldest. reservoir: Vitter's algorithm R; pair number t >= size goes to places[t], drawn from 0 to t.
  """
  held = [None] * size
  for t, pair in enumerate(offered):
    place = t % size if kind == "fifo" else t if t < size else places[t]
    if place < size:
      held[place] = pair
  return held


def eight_bits(x):
  """(integers, scale) of symmetric eight-bit quantisation with one scale for each vector along the last axis.

  The largest magnitude of a vector becomes 127; halves are rounded to even.
  """
  number, scale = np.zeros(x.shape, np.int8), np.zeros((*x.shape[:-1], 1), np.float64)
  for at in np.ndindex(x.shape[:-1]):
    top = max(abs(float(v)) for v in x[at])
    if top:
      scale[at] = top / 127
      number[at] = [round(float(v) * 127 / top) for v in x[at]]
  return number, scale


def coded_block(x, levels, octaves, never_zero, dither):
  """(signed levels, scale) of one block of a moment; level k > 0 stands for 2^(octaves (k - levels) / (levels - 1))."""
  scale, codes = max(abs(v) for v in x), []
  values = [0.0] + [2 ** (octaves * (k - levels) / (levels - 1)) for k in range(1, levels + 1)]
  for v, d in zip(np.float64(x), dither):
    share = abs(v) / scale
    k = max(i for i in range(levels) if values[i] <= share)  # the level below, at most the last but one
    up = d < (share - values[k]) / (values[k + 1] - values[k])
    if never_zero and k == 0:
      up = share > 0
    codes.append(int(np.sign(v)) * (k + bool(up)))
  return np.array(codes), scale


# ---- records/digests.py ----------------------------------------------------------------------------------------------


def digest(array) -> int:
  """The digest of an array with Python's integers: one word per element, mixed with its index and summed."""
  array = np.asarray(array)
  words = array.astype(np.uint8) if array.dtype == bool else array.view(f"u{array.dtype.itemsize}")
  total = 0
  for i, word in enumerate(words.reshape(-1).tolist()):
    word ^= i * 0x9E3779B1 % 2**32
    word = (word ^ word >> 16) * 0x7FEB352D % 2**32
    word = (word ^ word >> 15) * 0x846CA68B % 2**32
    total += word ^ word >> 16
  return total % 2**32


# ------------------------------------------------------------------------------------------------ RARO (raro.md 1)


def raro_rewards(verdict, expert_first, tau_policy, tau_critic):
  """(critic's, policy's) by the table of raro.md 1.3; (0, None) of an unparsable verdict."""
  if verdict is None:
    return 0.0, None
  if verdict == 2:
    return tau_critic, tau_policy
  names_expert = (verdict == 0) == expert_first
  return (1.0, 0.0) if names_expert else (0.0, 1.0)


def raro_advantages(rewards, counts):
  """R - mean(R) of a group (no std), over those that count; 0 for the others."""
  kept = [r for r, count in zip(rewards, counts) if count]
  return [r - sum(kept) / len(kept) if count else 0.0 for r, count in zip(rewards, counts)]


# ---------------------------------------------------------------- feasibility (nft_and_get_go.md 2.7)


def chance_of_random_answers(places, grade):
  """The share of right answers among all that have one of its words at each place: every one is written and graded."""
  found = [""]
  for words in places:
    found = [f"{text} {word}".strip() for text in found for word in words]
  return sum(map(grade, found)) / len(found)


def chance_of_group(chance, samples):
  """1 - (1 - p0)^G, as the sum over which sample is the first right one."""
  return sum(chance * (1 - chance) ** k for k in range(samples))


def last_step(values, bar, steps):
  """The step, from 1, with which a stage ends whose metric is values[t - 1] in step t; its limit where no mean is high.

  The rule sees the metrics of a step while the next one runs.
  """
  for t in range(steps, len(values)):
    if np.mean(values[t - steps : t]) >= bar:
      return t + 1
  return len(values)


def new_row(old_rows, noise, normal):
  """A row of a token that comes into use, from the rows in use before it: one entry at a time."""
  return [np.mean(entries) + noise * np.std(entries) * z for entries, z in zip(np.transpose(old_rows), normal)]


def program_score(outputs, wanted, ended, length, weights):
  """Brain Coder's score, place by place: a missing value, or one too many, is `base` away from its counterpart."""
  best = len(wanted) * (1 + weights.exact + weights.short)
  if not all(ended):
    return weights.failure / best
  total = 0
  for found, goal in zip(outputs, wanted, strict=True):
    places = itertools.zip_longest(found, goal)
    apart = [weights.base if None in (a, b) else min(weights.base, max(a, b) - min(a, b)) for a, b in places]
    total += 1 - sum(apart) / weights.base / (len(goal) or 1)
    if sum(apart) == 0:
      total += weights.exact + weights.short * max(0, weights.max_length - length) / weights.max_length
  return total / best


def experts(x, router, gate, up, down, chosen, normalised):
  """One token through its `chosen` most probable experts: sum of weight x down(silu(gate x) * up x)."""
  score = np.exp(x @ router - np.max(x @ router))
  probability = score / score.sum()
  best = sorted(range(len(probability)), key=lambda e: -probability[e])[:chosen]
  total = sum(probability[e] for e in best) if normalised else 1.0
  out = np.zeros(len(x))
  for e in best:
    g, u = x @ gate[e], x @ up[e]
    out += probability[e] / total * ((g / (1 + np.exp(-g)) * u) @ down[e])
  return out


def network_bytes(kind, size, slices, devices):
  """Bytes that one of a slice's devices receives from other slices, for a result of `size` bytes: block by block.

  What a slice lacks comes to it once. A sum is first made in pieces, each in one slice, and the pieces then exchanged.
  """
  here, all_slices, total = 0, range(slices), 0.0
  for there in all_slices:
    if there == here:
      continue
    if kind == "all-gather":
      total += devices * size / (slices * devices)  # the blocks that the other slice has
    elif kind == "reduce-scatter":
      total += devices * size  # the other's share of this slice's part of the sum
    elif kind == "all-reduce":
      total += size / slices + size / slices  # the other's share of this slice's piece; then the other's piece
    elif kind == "all-to-all":
      total += devices * devices * size / (slices * devices)  # from each of the other's devices to each one here
    else:
      total += devices * size / (slices - 1)  # each device receives from one other
  return total / devices


def nim_wins(heaps, wins):
  """Whether the player to move can force a win, by search: some move leaves heaps from which the other cannot."""
  return any(
    not wins((*heaps[:i], heap - n, *heaps[i + 1 :]), wins) for i, heap in enumerate(heaps) for n in range(1, heap + 1)
  )


def pass_at_k(right, k):
  """The share of all choices of k samples that hold a right one, of the flags `right`: by trying each (2107.03374)."""
  choices = list(itertools.combinations(right, k))
  return sum(any(choice) for choice in choices) / len(choices)


def log_mean_exp(logps):
  return np.log(np.mean([np.exp(logp) for logp in logps]))


def score_interval(share, count, z):
  """The shares from which the observed one is at most z of their own deviations away: Wilson's, by its quadratic."""
  # (share - p)^2 = z^2 p (1 - p) / count
  return sorted(np.roots([1 + z**2 / count, -2 * share - z**2 / count, share**2]).real)


def ratio_deviation(tops, bottoms):
  """The standard error of sum(tops) / sum(bottoms) over independent questions, linearised: one question at a time."""
  count, mean = len(tops), np.mean(bottoms)
  ratio = np.mean(tops) / mean
  residuals = [(top - ratio * bottom) / mean for top, bottom in zip(tops, bottoms)]
  return np.std(residuals, ddof=1) / np.sqrt(count)


def trace_movements(answer_logp, length, every):
  """Nats by which each `every` trace tokens move the answer; answer_logp(k): its tokens', behind k of the trace."""
  cuts = [*range(0, length, every), length]
  totals = [float(sum(answer_logp(cut))) for cut in cuts]
  return [after - before for before, after in zip(totals, totals[1:])]


def pair_outcome(verdict, swapped_verdict):
  """("win" | "tie" | "loss", score, consistent) of A, of what a judge names in the orders A B and B A (2306.05685)."""
  named = {"A": "A", "B": "B", "tie": None}[verdict], {"A": "B", "B": "A", "tie": None}[swapped_verdict]
  outcome = {("A", "A"): "win", ("B", "B"): "loss"}.get(named, "tie")
  score = sum({"A": 1, "B": 0, None: 0.5}[one] for one in named) / 2
  return outcome, score, named[0] == named[1]


def score_at_equal_length(points, differences, groups):
  """(score, low, high) at no difference in length: a logistic fit by slow descent, its variance by jackknifed sums.

  2404.04475 with one weight, of prior deviation 1; derivatives by differences.
  """
  points, differences = np.asarray(points, float), np.asarray(differences, float)
  width = np.sqrt(np.mean((differences - differences.mean()) ** 2))
  tilt = np.tanh(differences / width) if width else differences * 0

  def loss(a, b, rows=slice(None)):
    eta = a + b * tilt[rows]
    return np.sum(np.logaddexp(0, eta) - points[rows] * eta)

  def slope(a, b, rows=slice(None), step=1e-5):
    return np.array([
      (loss(a + step, b, rows) - loss(a - step, b, rows)) / (2 * step),
      (loss(a, b + step, rows) - loss(a, b - step, rows)) / (2 * step),
    ])  # fmt: skip

  at = np.zeros(2)
  for _ in range(4000):
    at = at - (slope(*at) + [0, at[1]]) / len(points)
  bend = np.array([(slope(*(at + one)) - slope(*(at - one))) / 2e-3 for one in np.eye(2) * 1e-3]) + np.diag([0, 1])
  pulls = np.array([slope(*at, rows=np.flatnonzero(groups == group)) for group in np.unique(groups)])
  spread = np.linalg.solve(bend, np.linalg.solve(bend, pulls.T @ pulls).T)[0, 0] * len(pulls) / (len(pulls) - 1)
  ends = at[0] + 1.959963984540054 * np.sqrt(spread) * np.array([0, -1, 1])
  return tuple(1 / (1 + np.exp(-ends)))


def macro_interval(flags):
  """(mean of the groups' shares, low, high): normal, with each group's unbiased variance; flags: one list per group."""
  shares = [np.mean(group) for group in flags]
  variance = sum(np.var(group, ddof=1) / len(group) for group in flags) / len(flags) ** 2
  half = 1.959963984540054 * np.sqrt(variance)
  return np.mean(shares), np.mean(shares) - half, np.mean(shares) + half
