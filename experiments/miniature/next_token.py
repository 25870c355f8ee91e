"""The next token of a text as a task to reason about, in miniature: RPT, RLP and Quiet-STaR's filtered gain.

    python experiments/miniature/next_token.py                       # five seeds, under runs/next_token; it resumes
    python experiments/miniature/next_token.py --seeds 0 --arms ntp rlp
    python experiments/miniature/next_token.py --processes 4         # an arm of a seed in each, start included
    python experiments/miniature/next_token.py --report_only

After arXiv 2506.08007 (RPT), 2510.01265 (RLP) and 2403.09629 (Quiet-STaR). The text is made up, next_token_text.py has
it: in each document a sum of eight digits modulo 5 and another sentence. Of the sixteen words behind its first, six are
easy, nine are drawn at random, and one, the sum, is hard: a model of 2 layers of width 64 does not predict it in one
pass, but behind a thought of eight running sums. The start has learnt by next-token prediction both the text and, at
some places, what a thought looks like: two in five hold the running sums at a hard place, random digits at others; the
rest are empty. So thoughts help now and then, by chance. It is given to all arms. From there, 60 steps of 64 documents:

  ntp            continued next-token prediction of their words up to a random place
  ntp_flops      the same for 600 steps, which cost about the FLOPs of the arms below
  rpt            8 completions, a thought and the next words; GRPO, 1 if they are right so far (token_prefix). At places
                 that a filter by entropy keeps, in RPT's way: all but the easy ones
  rpt_anywhere   the same at random places
  rlp            8 thoughts at a random place, rewarded by log p of the next word less that of a moving average that
                 does not think; thoughts alone are trained
  rlp_uncertain  the same at the filtered places
  quiet_star     8 thoughts of at most eight tokens at a random place, those above their mean reinforced, the text's
                 next two words trained too. Without the mixing head it is not Quiet-STaR
  nrt, verifree  this framework's own methods, at random places
  ARM_rlvr       behind the arm 20 steps of RL with a verifier (Dr. GRPO) on 16 sums that stand alone, 8 samples each

Methods have the settings of their files in experiments/full_size, but for sizes and rates: RL's rate is 5e-4 for all.

Measured at 150 held-out places of each kind, whose digits are in no text of training: log p of the word and whether the
likeliest one is right, without a thought ("bare", over the text's words); the same behind thoughts: log p behind
sampled ones, right behind a greedy one; tokens of a thought. Sampled and trained tokens and model FLOPs are counted.

Predictions under test. RPT: more hard places are right, and more than by continued next-token prediction; a filter
for hard places helps. RLP: a dense reward without a verifier does better than continued pretraining at equal FLOPs, and
is the better start for RL with a verifier. Quiet-STaR: thoughts help hard words more than others. Each is refuted
where the arms differ by less than the deviation over seeds, or the other way round.

What it cannot say: its places are hard by design, the useful thought is one, and the start knows it; whether text has
such places, and whether a model finds thoughts nobody showed, are the papers' claims at their size. Their benchmarks,
their scaling with compute, and RPT's proxy model are not here.

Cost and results: docs/results/papers.md.
"""

import dataclasses
import os
import sys

import jax
import jax.numpy as jnp
import next_token_report as report
import next_token_text as text
import numpy as np

from nrt_jax.algorithms import rlvr
from nrt_jax.errors import UserError
from nrt_jax.files import fill_directory
from nrt_jax.model.decoder import logits
from nrt_jax.rollout import sampler
from nrt_jax.step import opening, programs, tools

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "get_go"))
import common
from common import Lengths, Phase, Sets

STEPS, PROMPTS, GROUP = 60, 64, 8
RATE = 5e-4
FORM = (("prompt.trace_open", text.THINK), ("prompt.template", "plain"))
SAMPLES = 4  # thoughts for each test place


def predict(steps: int, data: str, rate: float, text_too: bool = True, **more) -> Phase:
  """Next-token prediction. text_too: of the prompts, not of thoughts and the word behind them alone."""
  how = (("algorithm.train_prompt", text_too), ("algorithm.train_marker", "given" in more))
  warm_up = (("optimizer.warmup_steps", 50),) if "given" in more else ()
  return Phase("sft", steps, data, PROMPTS, settings=(("optimizer.learning_rate", rate), *warm_up, *how), **more)


# Thoughts first, for sums are hardly learnt from the few words in a text that need them
START = (
  predict(2500, "pretraining", 2e-3, text_too=False, given=True),
  predict(300, "pretraining", 1e-3, given=True),
)


def learn(algorithm: str, data: str, others=(), **settings) -> Phase:
  """Sampling thoughts at places, by a method with these settings of `algorithm`, and others by their dotted keys."""
  named = ((f"algorithm.{key}", value) for key, value in settings.items())
  return Phase(algorithm, STEPS, data, PROMPTS, GROUP, (("optimizer.learning_rate", RATE), *named, *others))


def rpt(data: str) -> Phase:
  """As experiments/full_size/rpt_r1_distill_qwen_14b.py."""
  return learn(
    "grpo", data, (("sampling.temperature", 0.8),),
    verifier="token_prefix", reference="none", kl_coef=0.0, normalisation="token",
  )  # fmt: skip


def rlp(data: str) -> Phase:
  """As experiments/full_size/rlp_qwen3_17b.py."""
  return learn(
    "nrt", data, (("sampling.temperature", 0.7),),
    reward="log_prob", baseline="subtract", base_policy="reference", base_place="prompt", reference="moving_average",
    center="leave_one_out", scale="none", answer_weight="none", format_coef=0.0, trace_loss="ppo_clip",
    normalisation="sequence",
  )  # fmt: skip


# As experiments/full_size/quiet_star_filter_mistral_7b.py, but two words ahead, not twelve
QUIET_STAR = learn(
  "nrt", "ahead", (("environment", f'{{"name": "fixed_length", "tokens": {text.DIGITS}}}'),),
  reward="log_prob", baseline="none", center="mean", scale="none", positive_only=True, trace_loss="reinforce",
  answer_weight="one", format_coef=0.0,
)  # fmt: skip
RLVR = Phase("dr_grpo", 20, "problems", 16, GROUP, (("optimizer.learning_rate", RATE),))
NTP_FLOPS = predict(600, "continued", RATE)

FIRST = {
  "start": (),
  "ntp": (predict(STEPS, "continued", RATE),),
  "ntp_flops": (NTP_FLOPS,),
  "rpt": (rpt("uncertain"),),
  "rpt_anywhere": (rpt("anywhere"),),
  "rlp": (rlp("documents"),),
  "rlp_uncertain": (rlp("uncertain"),),
  "quiet_star": (QUIET_STAR,),
  "nrt": (learn("nrt", "documents"),),
  "verifree": (learn("verifree", "documents"),),
}
AGAIN, LATER = ("start", "ntp_flops", "rpt", "rlp", "rlp_uncertain"), "_rlvr"
ARMS = {name: (*START, *phases) for name, phases in FIRST.items()}
ARMS |= {f"{name}{LATER}": (*START, *FIRST[name], RLVR) for name in AGAIN}


class Bench(common.Bench):
  """With measures at the three kinds of places."""

  def __init__(self, root: str, sets: Sets, lengths: Lengths):
    super().__init__(root, sets, lengths)
    run = self.config(dataclasses.replace(learn("nrt", "documents"), samples=SAMPLES))  # temperature 1
    words = self.tokenizer.convert_tokens_to_ids([word for word in text.words() if word != text.THINK])
    setup = opening.open_setup(run, self.model, self.tokenizer, self.form)
    self._measure = jax.jit(build_measure(setup, self._greedy, jnp.asarray(words)))

  def config(self, phase: Phase):
    return super().config(dataclasses.replace(phase, settings=(*FORM, *phase.settings)))

  def accuracy(self, params, name: str) -> dict:
    """Every measure at the test places, `<kind>_<measure>`, and the names by which a study shows three of them."""
    everything = np.arange(len(self._held_out[name]))
    prompts = jax.device_put(self._held_out[name].gather(everything, everything))
    found = jax.device_get(self._measure(params, prompts, jax.random.key(0)))  # the same random numbers for all arms
    means = {key: value.reshape(len(text.KINDS), -1).mean(axis=1) for key, value in found.items()}
    named = {f"{kind}_{key}": float(mean[i]) for key, mean in means.items() for i, kind in enumerate(text.KINDS)}
    return {"test": named["hard_right"], "test_trace": named["hard_length"], "pass_1": named["hard_prob"], **named}

  def probe(self, params, start) -> dict:
    return {}  # all of it is measured by `accuracy`


def build_measure(setup: programs.Setup, greedy, word_W):
  """(params, prompts, key) -> {measure: `[B]`} of the word behind each prompt, without a thought ("bare") and with."""

  def measure(params, prompts, key):
    answer_B = prompts.answer_BA[:, 0]
    bare_BW = without_thought(setup, params, prompts, word_W)
    bare_logp_B = jnp.sum(bare_BW, axis=1, where=word_W[None] == answer_B[:, None])
    rollouts, scores, _ = tools.rollout(setup, params, prompts, key)
    logp_BK = scores.answer_logp_NA[:, 0].reshape(-1, SAMPLES)
    completions = greedy(params, prompts, key)
    own_N1, place_N = rlvr.behind_marker(setup.form.marker_ids, completions, 1)
    return {
      "bare_logp": bare_logp_B,
      "bare_entropy": -jnp.sum(jnp.exp(bare_BW) * bare_BW, axis=1),
      "bare_right": jnp.float32(word_W[jnp.argmax(bare_BW, axis=1)] == answer_B),
      "logp": logp_BK.mean(axis=1),  # behind thoughts sampled at temperature 1
      "prob": jnp.exp(logp_BK).mean(axis=1),
      "sampled_length": (rollouts.length_N - rollouts.ended_N).reshape(-1, SAMPLES).mean(axis=1),
      "right": jnp.float32((own_N1[:, 0] == answer_B) & (place_N < completions.length_N)),  # greedy, thought and word
      "length": jnp.minimum(place_N - 1, completions.length_N),
    }

  return measure


def without_thought(setup: programs.Setup, params, prompts, word_W):
  """Log-probabilities of the text's words where it has no THINK: `[B, W]`. That a thought could begin is left out."""
  weights, count = tools.rollout_weights(setup, params), len(setup.form.open_ids)
  shorter_BP = jnp.roll(prompts.prompt_BP, count, axis=1).at[:, :count].set(setup.form.pad_id)
  bare = prompts.replace(prompt_BP=shorter_BP, prompt_length_B=prompts.prompt_length_B - count)
  hidden_BD, _ = sampler.prefill(weights, setup.decoder, bare)
  return jax.nn.log_softmax(logits(weights, setup.decoder, hidden_BD)[:, word_W])


def make_bench(task: str, root: str) -> Bench:
  texts = os.path.join(root, "texts")
  os.makedirs(root, exist_ok=True)
  fill_directory(texts, text.write)
  source = {name: {"source": os.path.join(texts, f"{name}.jsonl")} for name in (*text.FILES, "test")}
  documents = {**source["documents"], "document_column": "text"}
  train = {
    "pretraining": {**source["pretraining"], "trace_column": "trace"},
    "continued": source["continued"],
    "documents": documents,
    "ahead": {**documents, "horizon": 2},
    "uncertain": source["uncertain"],
    "anywhere": documents,
    "problems": source["problems"],
  }
  sets = Sets(train=train, test={"test": source["test"]}, words=text.words())
  return Bench(root, sets, Lengths(prompt=text.PROMPT, trace=text.TRACE, answer=2))


def main(argv=None) -> None:
  args = common.read_flags(__doc__, {"text": ARMS}, "runs/next_token", argv)
  if not args.report_only:
    common.study(args, {"text": ARMS}, make_bench)
  done = common.finished(os.path.join(args.workdir, "results.jsonl"), args.steps)
  lines = [done["text", arm, seed] for arm in ARMS for seed in args.seeds if ("text", arm, seed) in done]
  later = [line for line in lines if line["arm"].endswith(LATER)]
  for part, table in ((lines, report.ends), (later, report.curves)):
    if part:
      print(f"\n{table(part)}")
  if args.plot:
    title = "hard places that are right behind a greedy thought: mean and deviation over seeds"
    common.report.draw(args.plot, title, [("text", report.by_arm(lines))])


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"next_token: {error}")
