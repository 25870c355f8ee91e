"""E8: RL on checkpoints of pretraining: how early, and does it leave alone what it does not train?

    python experiments/get_go/e8_checkpoints.py                       # five seeds, under runs/get_go_e8; it resumes
    python experiments/get_go/e8_checkpoints.py --seeds 0 --arms 10_rl 10_sft_rl 10_average
    python experiments/get_go/e8_checkpoints.py --processes 16        # an arm of a seed in each
    python experiments/get_go/e8_checkpoints.py --report_only

After RL Excursions (arXiv 2606.04272). A random model of 2 layers of width 64 learns to predict the next token of
chains of three operations modulo 5, questions included, of which three in ten show their working. Checkpoints are taken
after 1, 2, 5, 10, 20 and 50 per cent of its 3,000 steps. From each, on questions of two operations that it has never
seen:

  P_base      nothing
  P_rl        RL with the verifier (Dr. GRPO), 100 steps of 16 questions, 8 samples each
  P_sft       supervised learning of their answers with the working, as many steps
  P_sft_rl    the one, then the other
  P_average   both at once, each with an optimizer of its own; each step goes on from the mean of the two

A checkpoint is given to its arms and counts nothing. SFT sees the working and samples nothing: at equal sampled tokens
and at equal FLOPs only arms that sample are compared, and the columns sampled and TFLOP have what each used. Measured:
greedy accuracy on 256 test questions, out of the distribution (longer, another base), and on questions of pretraining
(pretrained); pass@1 and pass@32; lm_loss, the cross-entropy per token of the working and answers of pretraining;
entropy, and KL from where the last phase began.

Predictions under test, all of that paper: RL improves pass@1 on early checkpoints, from a tenth on as much as SFT and
then RL; it improves pass@32 too, while RL behind SFT lowers it; lm_loss rises by SFT, and hardly by RL; P_average has
the best pass@32. Each is refuted where its two sides differ by less than the deviation over seeds, or the other way
round. What this cannot say: its pretraining is of one family of tasks, and a model of this size has little to forget.

Cost: about 9 minutes a seed on a busy CPU core, 30 arms. Results, of two seeds in part: docs/results/get_go.md; even at
half of the pretraining all arms are near chance. To try it: --arms 1_average --steps 0.02.
"""

import dataclasses
import functools
import sys

import common
import jax
import jax.numpy as jnp
from common import Lengths, Phase, Sets

from nrt_jax.data import batches, sources
from nrt_jax.errors import UserError
from nrt_jax.step import opening
from nrt_jax.step.tools import make_tools
from nrt_jax.tasks import table

TASK, SOURCE = "modular_chain", "task:modular_chain"
PRETRAINED, ASKED = {"n_steps": 3, "modulus": 5}, {"n_steps": 2, "modulus": 5}
SHARES, STEPS, TRACED = (1, 2, 5, 10, 20, 50), 3000, 0.3  # per cent; of pretraining; share that shows its working
EXAMPLES = {"pretraining": 50000, "asked": 2000, "test": 256}

RL = Phase("dr_grpo", 100, "asked", 16, 8, (("optimizer.learning_rate", 5e-4),))
SFT = Phase("sft", 100, "traced", 16, settings=(("optimizer.learning_rate", 5e-4),))
AVERAGE = dataclasses.replace(RL, beside=SFT)


def checkpoint(share: int) -> Phase:
  """Pretraining up to so many per cent of its steps. The rate is constant, so this is a part of the longer ones."""
  rate = (("optimizer.learning_rate", 2e-3), ("optimizer.warmup_steps", STEPS * SHARES[0] // 100))
  how = (*rate, ("algorithm.train_prompt", True))
  return Phase("sft", STEPS * share // 100, "pretraining", 64, settings=how, given=True)


ARMS = {
  f"{share}_{name}": (checkpoint(share), *phases)
  for share in SHARES
  for name, phases in {
    "base": (), "rl": (RL,), "sft": (SFT,), "sft_rl": (SFT, RL), "average": (AVERAGE,),
  }.items()
}  # fmt: skip


class Bench(common.Bench):
  """With the loss on held-out examples of pretraining."""

  def also(self, params) -> dict:
    loss, count = self._loss(params, self._known)
    return {"lm_loss": float(loss / count)}

  @functools.cached_property
  def _known(self):
    """Examples of the test split that show their working, as one batch."""
    data = {**self.sets.train["pretraining"], "split": "test", "examples": EXAMPLES["test"]}
    data["task_options"] = {**data["task_options"], "trace_share": 1.0}
    loaded = self._load(sources.DataConfig(**data, max_trace_length=self.lengths.trace))
    return jax.device_put(next(batches.eval_batches(loaded, len(loaded)))[0])

  @functools.cached_property
  def _loss(self):
    """(params, prompts) -> cross-entropy of traces, markers and answers, and how many tokens they have."""
    setup = opening.open_setup(self.config(SFT), self.model, self.tokenizer, self.form)
    tools = make_tools(setup)

    def loss(params, prompts):
      batch = setup.algorithm.collect(tools, setup.run.algorithm, None, prompts, None).batch
      learnt_NL = batch.answer_coef_NL > 0
      return -jnp.sum(tools.log_probs(params, batch)[0], where=learnt_NL), jnp.sum(learnt_NL)

    return jax.jit(loss)


def make_bench(task: str, root: str) -> Bench:
  test, known = (table.make_task(TASK, "test", options) for options in (ASKED, PRETRAINED))
  made, held_out = {"source": SOURCE}, {"source": SOURCE, "split": "test", "examples": EXAMPLES["test"]}
  options = {
    "pretraining": {**PRETRAINED, "trace_share": TRACED},
    "asked": {**ASKED, "seed": 1},
    "traced": {**ASKED, "seed": 1, "trace_share": 1.0},
  }
  sizes = {**EXAMPLES, "traced": EXAMPLES["asked"]}
  shifts = {"test": ASKED, **{name: {**ASKED, **shift} for name, shift in test.shifts().items()}}
  sets = Sets(
    train={name: {**made, "examples": sizes[name], "task_options": one} for name, one in options.items()},
    test={name: {**held_out, "task_options": one} for name, one in {**shifts, "pretrained": PRETRAINED}.items()},
    words=tuple(dict.fromkeys((*table.vocabulary(test), *table.vocabulary(known)))),
  )
  return Bench(root, sets, Lengths(prompt=17, trace=12, answer=3))


def main(argv=None) -> None:
  common.main(__doc__, {"chain": ARMS}, make_bench, "runs/get_go_e8", argv)


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"e8_checkpoints: {error}")
