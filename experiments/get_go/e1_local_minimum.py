"""E1: does imitating a flawed expert hold RL back? Nim in place of Go.

    python experiments/get_go/e1_local_minimum.py                       # five seeds, under runs/get_go_e1; it resumes
    python experiments/get_go/e1_local_minimum.py --seeds 0 --arms scratch imitate_rl_0.1
    python experiments/get_go/e1_local_minimum.py --processes 16        # an arm of a seed in each
    python experiments/get_go/e1_local_minimum.py --report_only

arXiv 2502.19402 lets a policy for Go on a 9 x 9 board imitate professionals and then play for reward, with a penalty on
its KL from the imitator, and compares it with one that plays for reward from the start: the latter ends stronger. Its
penalties are not known to us. Here a game is Nim with three heaps of up to eight objects; the policy, a model of 2
layers of width 64, begins and can win. The expert plays perfectly but for one habit: it never touches the first heap
while there is another. The opponents are a perfect player, one that sees a win in one move, and a random one. All arms
are given the rules, as a program for Go has them: 300 steps of prediction on games of a random player, which count
nothing. (From random weights one game in a thousand is won by chance, too few for groups of 16.)

  imitate       next-token prediction on 20,000 games of the expert
  imitate_rl_B  the same, then RL for winning (Dr. GRPO) with B times the KL from the imitator; B = 0, 0.01, 0.1, 1
  scratch       RL alone, as many steps

RL has 300 steps of 32 games, 16 samples each. Measured, by greedy play from positions that were never trained on: the
share of games won against all opponents (test) and against each; first_heap, the same from positions in which only the
first heap has a winning move, and blind, the share of these in which the first move is in another heap; pass@1 and
pass@32; entropy; KL from where the last phase began; test at equal sampled tokens and at equal FLOPs.

Prediction under test: `scratch` ends above every imitate_rl_B with B > 0, and blind falls the less the larger B, though
they start higher. Refuted where one with B > 0 ends as high as `scratch`, within the deviation over seeds. If B = 0
ends as high as `scratch`, the penalty and not the imitation makes the local minimum; if it ends lower, imitation itself
does. What this cannot say: there is no text here, and a policy of this size could learn all positions by heart.

Cost: not run to an end; sized for one GPU. Three tenths of the steps of `scratch`, one seed, took two CPU minutes: the
share of won games rose from 0.09 to 0.18 in training. To try it: --arms scratch --steps 0.01.
"""

import sys

import common
import jax
import numpy as np
from common import Lengths, Phase, Sets

from nrt_jax.data import batches
from nrt_jax.errors import UserError
from nrt_jax.tasks import nim, table

SOURCE, GAME = "task:nim", {"heaps": 3, "most": 8}
EXAMPLES = {"games": 20000, "test": 256, "first_heap": 128}
PENALTIES = (0, 0.01, 0.1, 1)
GAME_TOKENS = 4 * 12  # a move and three heaps, twelve times: longer games are lost
RATE = (("optimizer.learning_rate", 2e-3), ("optimizer.warmup_steps", 50))
RULES = Phase("sft", 300, "random_games", 64, given=True, settings=RATE)
IMITATE = Phase("sft", 1000, "games", 64, settings=RATE)


def rl(penalty: float) -> Phase:
  settings = [("optimizer.learning_rate", 5e-4), ("algorithm.verifier", "environment")]
  if penalty:
    settings += [("algorithm.reference", "frozen"), ("algorithm.kl_coef", float(penalty))]
  return Phase("dr_grpo", 300, "play", 32, 16, tuple(settings))


ARMS = {
  "imitate": (RULES, IMITATE),
  **{f"imitate_rl_{penalty:g}": (RULES, IMITATE, rl(penalty)) for penalty in PENALTIES},
  "scratch": (RULES, rl(0)),
}


class Bench(common.Bench):
  """Games are judged by the environment."""

  measure = "verdict"

  def also(self, params) -> dict:
    """The share of first moves that are in another heap, where only one in the first heap wins."""
    moves = [f"{name}{n}" for name in nim.NAMES[1 : GAME["heaps"]] for n in range(1, GAME["most"] + 1)]
    others, found = self.tokenizer.convert_tokens_to_ids(moves), []
    size = self._evaluation["first_heap"].batch_prompts
    for batch, valid_B in batches.eval_batches(self._held_out["first_heap"], size):
      first_B = np.asarray(self._greedy(params, batch, jax.random.key(0)).token_NR)[:, 0]
      found.append(np.isin(first_B, others)[valid_B])
    return {"blind": float(np.concatenate(found).mean())}


def make_bench(task: str, root: str) -> Bench:
  games = {"source": SOURCE, "examples": EXAMPLES["games"]}
  held_out = {"source": SOURCE, "split": "test", "examples": EXAMPLES["test"]}
  tests = {"test": {}, **{opponent: {"opponent": opponent} for opponent in nim.OPPONENTS}}
  first = {**held_out, "examples": EXAMPLES["first_heap"], "task_options": {**GAME, "positions": "first_heap"}}
  sets = Sets(
    train={
      "play": {**games, "task_options": GAME},
      "games": {**games, "task_options": {**GAME, "expert": "blind", "trace_share": 1.0}},
      "random_games": {**games, "task_options": {**GAME, "expert": "random", "trace_share": 1.0, "seed": 1}},
    },
    test={**{name: {**held_out, "task_options": {**GAME, **one}} for name, one in tests.items()}, "first_heap": first},
    words=table.make_task("nim", "train", GAME).words,
  )
  world = {"name": "nim", **GAME, "max_world_length": GAME["heaps"] + 1}
  return Bench(root, sets, Lengths(prompt=4, trace=GAME_TOKENS, answer=2), world)


def main(argv=None) -> None:
  common.main(__doc__, {"nim": ARMS}, make_bench, "runs/get_go_e1", argv)


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"e1_local_minimum: {error}")
