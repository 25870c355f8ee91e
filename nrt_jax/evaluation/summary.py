"""The metrics of an evaluation, from its completions: the n samples of a question stand behind one another.

Every metric is a quotient: the sum of a number of each question over the sum of another. So are means, with a 1 or the
number of samples below; log-probabilities are per token of the reference answers, pooled.
"""

from nrt_jax.evaluation import estimates

MEANS = ("accuracy", "marker_fraction", "trace_length")
WORLD = ("earned", "verdict")  # of an environment
LIKELIHOODS = ("answer_logp", "answer_logp_empty_trace", "answer_logp_gain")
SHARES = ("accuracy", "marker_fraction", "verdict", "avg@", "pass@", "maj@")  # starts of names; what lies in [0, 1]


def metric_names(config) -> list[str]:
  """What an evaluation (an EvaluationConfig) may measure; no accuracy where nobody can grade, no likelihoods where
  nothing was scored, and nothing of an environment where there is none.
  """
  if config.data is None:
    return []
  n = config.samples
  several = [f"avg@{n}", *(f"pass@{k}" for k in estimates.sizes(n)), f"maj@{n}", f"answer_logp@{n}"] if n > 1 else []
  return [f"eval/{config.name}/{key}" for key in (*MEANS, *LIKELIHOODS, *WORLD, *several)]


def summarise(name: str, completions: list, samples: int = 1) -> dict:
  """{"eval/<name>/<metric>": value}; the accuracy is over those that could be graded, if any could.

  Log-probabilities are all that can be said of answers that nobody grades, as in verse.
  """
  found = quotients(completions, samples)
  return {f"eval/{name}/{key}": sum(tops) / sum(bottoms) for key, (tops, bottoms) in found.items()}


def intervals(name: str, completions: list, samples: int = 1) -> dict:
  """{"eval/<name>/<metric>": [low, high]}: the 95 % intervals of `summarise`; None where one question says nothing."""
  found = {}
  for key, (tops, bottoms) in quotients(completions, samples).items():
    shared = key.startswith(SHARES)
    pair = estimates.wilson(tops, bottoms, samples) if shared else estimates.normal(tops, bottoms)
    found[f"eval/{name}/{key}"] = None if pair is None else list(pair)
  return found


def by_group(name: str, completions: list, groups: list, samples: int = 1) -> dict:
  """{group: {"questions", "metrics", "intervals"}}, with names as in `summarise`; groups: that of each question."""
  found = {}
  for group in dict.fromkeys(groups):
    own = _of_group(completions, groups, group, samples)
    measured = {"metrics": summarise(name, own, samples), "intervals": intervals(name, own, samples)}
    found[group] = {"questions": len(own) // samples, **measured}
  return found


def macro(name: str, completions: list, groups: list, samples: int = 1) -> tuple[dict, dict]:
  """(metrics, intervals) with the mean of the groups' accuracies, each counting the same; empty where none is known."""
  own = [_of_group(completions, groups, group, samples) for group in dict.fromkeys(groups)]
  parts = [found["accuracy"] for one in own if "accuracy" in (found := quotients(one, samples))]
  if not parts:
    return {}, {}
  key, (mean, pair) = f"eval/{name}/macro_accuracy", estimates.macro(parts)
  return {key: mean}, {key: None if pair is None else list(pair)}


def _of_group(completions: list, groups: list, group, samples: int) -> list:
  return [one for i, one in enumerate(completions) if groups[i // samples] == group]


def quotients(completions: list, samples: int = 1) -> dict:
  """{metric: (numerators, denominators)}, one of each for every question that has any."""
  questions = [completions[i : i + samples] for i in range(0, len(completions), samples)]
  columns = {
    "accuracy": lambda c: c.correct,
    "marker_fraction": lambda c: c.answer is not None,
    "trace_length": lambda c: c.trace_length,
    **{key: lambda c, key=key: getattr(c, key) for key in WORLD},
  }
  found = {key: _means(questions, column) for key, column in columns.items()}
  if any(c.reference_tokens for c in completions):
    found |= _likelihoods(questions, samples)
  if samples > 1 and found["accuracy"][0]:
    found |= _repeated(questions, found["accuracy"], samples)
  return {key: pair for key, pair in found.items() if pair[0]}


def _means(questions, column):
  known = [[value for value in map(column, question) if value is not None] for question in questions]
  return [sum(values) for values in known if values], [len(values) for values in known if values]


def _likelihoods(questions, samples):
  tokens = [sum(c.reference_tokens for c in question) for question in questions]
  logp = [sum(c.reference_logp for c in question) for question in questions]
  empty = [sum(c.reference_logp_empty_trace for c in question) for question in questions]
  gain = [one - other for one, other in zip(logp, empty, strict=True)]
  found = {key: (values, tokens) for key, values in zip(LIKELIHOODS, (logp, empty, gain), strict=True)}
  if samples > 1:
    mean = [estimates.log_mean_exp([c.reference_logp for c in question]) for question in questions]
    found[f"answer_logp@{samples}"] = mean, [question[0].reference_tokens for question in questions]
  return found


def _repeated(questions, accuracy, samples):
  """pass@k, avg@n and maj@n; all samples are graded by one grader, so they all have a grade."""
  each = [1] * len(questions)
  winners = [question[estimates.majority([c.vote for c in question])] for question in questions]
  passed = {
    f"pass@{k}": ([estimates.pass_at_k(samples, right, k) for right in accuracy[0]], each)
    for k in estimates.sizes(samples)
  }
  return {f"avg@{samples}": accuracy, **passed, f"maj@{samples}": ([winner.correct for winner in winners], each)}
