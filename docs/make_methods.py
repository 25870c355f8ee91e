"""Writes docs/methods.md: what each row of ALGORITHMS does with its defaults, read off its config.

    python docs/make_methods.py

tests/algorithms/test_table.py fails if the page is out of date, or if a row claims what its batch does not do.
"""

import pathlib
import re
import sys

PAGE = pathlib.Path(__file__).resolve().parent / "methods.md"
if __name__ == "__main__":
  sys.path.insert(0, str(PAGE.parent.parent))

from nrt_jax.algorithms import completions, dpo, nft, rationalization, rlvr, sft  # noqa: E402
from nrt_jax.algorithms import verifier_free  # noqa: E402
from nrt_jax.algorithms.table import ALGORITHMS  # noqa: E402

HEAD = """\
# Methods

<!-- Written by docs/make_methods.py from the configs' defaults. Change those, then run it again. -->

One line of config picks a row: `algorithm.name`. Every cell is a default that a key of its own changes; the keys, and
where each value is from, are in [configuration.md](configuration.md), the equations in [equations.md](equations.md).

c are the probabilities of the reference answer's tokens after the sampled trace, R∅ is the reward of an empty trace,
"others" are the other samples of the prompt. A *forced* marker is one that the model did not write.
"""
CELLS = ("reward", "baseline", "advantage", "answer weight", "trust region", "tokens with gradient")
COLUMNS = ("method", "paper", *CELLS)

AGGREGATIONS = {
  "log_prob": "Σ log c",
  "mean_log_prob": "mean log c",
  "prob": "Π c",
  "geometric_mean": "(Π c)^(1/T)",
  "arithmetic_mean": "mean c",
  "weighted_sum_inverse_prob": "mean c / c∅",
  "weighted_sum_log_prob": "mean -log(c∅) c",
}
UNMARKED = {
  "zero": "0 without marker",
  "mask": "left out without marker",
  "penalty": "twice the step's mean without marker",
}
CENTERS = {
  "mean": "mean of the group",
  "leave_one_out": "mean of the others",
  "multi_sample": "log-mean-exp of the others, of the group's",
  "none": "none",
}
SCALES = {"std": "by the group's std", "advantage_std": "by its own std", "none": "as it is"}
DERIVED = {
  "log_prob": "1",
  "mean_log_prob": "1/T",
  "prob": "R",
  "geometric_mean": "R/T",
  "arithmetic_mean": "c/T",
}
TRACE_LOSSES = {
  "reinforce": "none",
  "truncated_importance": "ratio capped at {high}",
  "ppo_clip": "PPO clip {low}, {high}",
  "cispo": "CISPO {low}, {high}",
  "sequence_clip": "PPO clip of the row's ratio {low}, {high}",
}


def paper(row) -> str:
  """The first arXiv number of the config's docstring, else of its module's."""
  found = re.findall(r"arXiv (\d{4}\.\d{5})", f"{row.config.__doc__} {sys.modules[row.config.__module__].__doc__}")
  return f"[{found[0]}](https://arxiv.org/abs/{found[0]})" if found else ""


def likelihood_reward(config) -> str:
  """f(c), whose c it is, and what is added to it."""
  text = AGGREGATIONS[config.reward]
  if config.token_weight == "spread":
    text = text.replace("log c", "w(σ) log c")
  if config.score_policy == "reference":
    text += " under the reference"
  return text + after(config)


def after(config) -> str:
  """The parts of a reward that follow its main one."""
  parts = []
  if config.kl_coef and config.kl_place == "reward":
    parts.append(f"- {config.kl_coef:g} Σ log(π/π_ref) of the trace")
  if config.long_penalty and config.long_buffer:
    parts.append(f"- {config.long_penalty:g} for overlong ones")
  text = "".join(f" {part}" for part in parts)
  if getattr(config, "unmarked", "keep") != "keep":
    text += f"; {UNMARKED[config.unmarked]}"
  if getattr(config, "format_penalty", 0):
    text += f"; -{config.format_penalty:g} without marker, with an advantage of its own"
  return text


def completion_reward(config) -> str:
  if isinstance(config, completions.NoverConfig):
    whose = " under the reference" if config.score_policy == "reference" else ""
    parts = (config.format_weight, config.rank_weight, config.efficiency_weight)
    return "{:g} format + {:g} rank + {:g} efficiency of the perplexity".format(*parts) + whose + "; 0 without format"
  share = config.format_share
  text = f"{1 - share:g} of {likelihood_reward(config)}, {share:g} for format; 0 without format"
  return text + (f"; -{config.repetition_penalty:g} where it repeats itself" if config.repetition_penalty else "")


def verified(config) -> str:
  """What the verifier's label becomes."""
  text = f"1 right, {config.wrong_reward:g} wrong, by `{config.verifier}`"
  return text + (f", {config.format_reward:g} for format" if config.format_reward else "") + after(config)


def baseline(config) -> str:
  """The empty trace's, and the group's."""
  how = getattr(config, "baseline", "none")
  if how == "none":
    return CENTERS[config.center]
  whose = " of the reference" if config.base_policy == "reference" else ""
  return f"R∅{whose}{', clipped at 0' if how == 'subtract_and_clip' else ''}; {CENTERS[config.center]}"


def advantage(config) -> str:
  parts = [SCALES[config.scale]]
  if config.advantage_clip:
    parts.append(f"clipped to ±{config.advantage_clip:g}")
  if config.filter_flat_groups:
    parts.append("flat groups don't count")
  if getattr(config, "std_filter", 0):
    parts.append(f"groups below {config.std_filter:g} of the average std don't count")
  return ", ".join(parts)


def answer_weight(config) -> str:
  """s of the reference answer's tokens."""
  weight = {
    "derived": DERIVED.get(config.reward, "∂R/∂log c"),
    "one": "1",
    "scaled": "∂R/∂log c, standardised",
    "group_softmax": "G softmax(log p) over the group",
    "none": "none",
  }[config.answer_weight]
  coef = config.answer_coef
  return weight if coef == 1 or weight == "none" else f"{coef:g} · {weight}" if coef else "none"


def trust_region(config) -> str:
  text = TRACE_LOSSES[config.trace_loss].format(low=f"{config.clip_low:g}", high=f"{config.clip_high:g}")
  if text != "none" and getattr(config, "clip_answer", False):
    text += ", the answer's tokens too"
  return text + kl(config)


def kl(config) -> str:
  if not config.kl_coef or getattr(config, "kl_place", "loss") == "reward":
    return ""
  return f"; {config.kl_estimator} {config.kl_coef:g} to the {config.reference.replace('_', ' ')} reference"


def trace_tokens(config) -> str:
  """Trace, marker and reference answer, as far as they are trained."""
  parts = ["trace", "marker"]
  if config.format_coef:
    parts.append(f"forced marker ({config.format_coef:g} cross-entropy)")
  return ", ".join(parts + ["reference answer"] * (answer_weight(config) != "none"))


def nft_cells(config) -> tuple:
  weight = {"one": "1", "negative_rate": "1 - r̂", "negative_odds_root": "√((1 - r̂)/r̂)"}[config.prompt_weight]
  negative = f", negatives by V floored at {config.floor:g}" if config.negative_weight else ""
  flat = ", groups of one label don't count" if config.filter_flat_groups else ""
  region = f"{config.ratio} ratio in the likelihood{negative}" + kl(config)
  return f"label 1 right, 0 wrong, by `{config.verifier}`", "rate r̂", f"times {weight}{flat}", "none", region, WHOLE


WHOLE = "whole completion"


def cells(config) -> tuple:
  """Reward to tokens, for one config. A method that nothing here knows is an error: describe it."""
  if isinstance(config, verifier_free.VerifierFreeConfig):
    reward, weight, tokens = likelihood_reward(config), answer_weight(config), trace_tokens(config)
  elif isinstance(config, (completions.RlprConfig, completions.NoverConfig)):
    reward, weight, tokens = completion_reward(config), "none", WHOLE
  elif isinstance(config, rlvr.GrpoConfig):
    reward, weight, tokens = verified(config), "none", WHOLE
  elif isinstance(config, nft.NftConfig):
    return nft_cells(config)
  elif isinstance(config, dpo.DpoConfig):
    reward = AGGREGATIONS[config.reward] + " ranks traces"
    return reward, "none", f"{config.chosen} against worst, β {config.beta:g}", "none", "DPO", "trace, marker of a pair"
  elif isinstance(config, rationalization.RationalizationConfig):
    reward = AGGREGATIONS[config.reward] + " selects traces that were sampled with the answer in sight"
    return reward, "R∅", f"keeps {config.keep}", "1", "none", "trace, marker, reference answer, by cross-entropy"
  elif isinstance(config, sft.SftConfig):
    tokens = ["given trace"] + ["marker"] * config.train_marker + ["reference answer"]
    return "", "", "", "1", "none", ", ".join(tokens) + ", by cross-entropy"
  else:
    raise TypeError(f"docs/make_methods.py: describe {type(config).__name__}")
  return reward, baseline(config), advantage(config), weight, trust_region(config), tokens


def page() -> str:
  """The whole text of docs/methods.md."""
  lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
  for name, row in ALGORITHMS.items():
    lines.append("| " + " | ".join((f"`{name}`", paper(row), *cells(row.config()))) + " |")
  return HEAD + "\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
  PAGE.write_text(page(), encoding="utf-8")
