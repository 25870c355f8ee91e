"""RARO: one step against plain lists, the game's dynamics with scripted critics, and its settings."""

import critics
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy

from nrt_jax.algorithms import raro
from nrt_jax.algorithms.critic import FIRST, SECOND, TIE, UNPARSED
from nrt_jax.algorithms.interface import Collected
from nrt_jax.arrays import Rollouts
from nrt_jax.errors import UserError
from nrt_jax.step import programs
from nrt_jax.step.state import States, TrainState

B, G, V, R = 4, 4, 4, 9
KEY = jax.random.key(0)


def questions():
  """Prompts whose text is 0 to 8, so that 10 to 18 are the critic's words alone, and 14 15 is the wrong answer's."""
  prompts = toy.prompts(B)
  text = lambda token: np.where(token < toy.MARKER, token % 9, token)
  return prompts.replace(**{name: text(getattr(prompts, name)) for name in ("prompt_BP", "answer_BA", "hint_BQ")})


def completions(prompts, kinds):
  """Rollouts of which row n is of kinds[n]: right, wrong, silent (no marker) or cut (at the limit)."""
  token, length, ended, marker = np.full((B * G, R), toy.PAD), np.zeros(B * G, int), [], []
  for n, kind in enumerate(kinds):
    answer = prompts.answer_BA[n // G, : prompts.answer_length_B[n // G]].tolist()
    trace = [1 + n % 5] * (n % 3)
    text = {
      "right": [*trace, toy.MARKER, *answer],
      "wrong": [*trace, toy.MARKER, 14, 15, toy.EOS],
      "silent": [*trace, 3, toy.EOS],
      "cut": [2, toy.MARKER, *[4] * (R - 2)],
    }[kind]
    token[n, : len(text)], length[n] = text, len(text)
    ended.append(kind != "cut")
    marker.append(kind != "silent")
  logp = np.where(np.arange(R)[None] < length[:, None], -0.25, 0).astype(np.float32)
  arrays = (token.astype(np.int32), length.astype(np.int32), logp, np.array(ended), np.array(marker))
  return Rollouts(*map(jnp.asarray, arrays))


KINDS = ("right", "wrong", "wrong", "silent", "wrong", "cut", "right", "wrong") + ("wrong",) * 4 + ("right",) * 4


class Game:
  """`collect` with given completions and a scripted critic, whose prompts are kept."""

  def __init__(self, say, kinds=KINDS, memory=None, **settings):
    critic = {"samples": V, "max_length": 8, **settings.pop("critic", {})}
    over = {f"algorithm__{key}": value for key, value in settings.items()}
    over = {"algorithm__replay_size": 32, "samples_per_prompt": G, "sampling__max_trace_length": R, **over}
    setup = toy.setup("raro", algorithm__critic=critic, parallel__share_prompts="off", **over)
    self.config, self.form = setup.run.algorithm, setup.critic
    self.prompts, self.asked = jax.tree.map(jnp.asarray, questions()), []
    self.rollouts = completions(questions(), kinds)
    scripted = critics.scripted(self.form, say)

    def sample(params, prompts, key, role):
      made = scripted(params, prompts, key, role)
      self.asked.append((prompts, made))
      return made

    self.tools = programs.make_tools(setup)._replace(
      complete=lambda *_: (self.rollouts, None, None),
      sample=sample,
      score_batch=lambda _, batch: batch.behaviour_logp_NL,
    )
    self.memory = setup.algorithm.memory(self.config, self.form) if memory is None else memory
    self.made: Collected = self.play()

  def play(self, key=KEY):
    policy = TrainState(jnp.int32(0), jnp.int32(0), {}, (), KEY)
    return raro.collect(self.tools, self.config, States(policy, {}, self.memory), self.prompts, key)

  def metric(self, name):
    numerator, denominator = self.made.sums[name]
    return float(numerator) / max(float(denominator), 1e-9)


def lists(token, length, left=False):
  rows = zip(np.array(token), np.array(length), strict=True)
  return [row[len(row) - n :].tolist() if left else row[:n].tolist() for row, n in rows]


def known_memory(form, held=5):
  """A buffer with `held` pairs in its 32 places, made by hand."""
  memory = raro.first_memory(raro.RaroConfig(replay_size=32), form)
  buffer = dict(memory["replay"])
  for i in range(held):
    buffer["head_XQ"] = buffer["head_XQ"].at[i].set(jnp.array([0, 0, 0, 0, 0, 6, i]))
    buffer["expert_XA"] = buffer["expert_XA"].at[i].set(jnp.array([i, 8, 0, 0]))
    buffer["answer_XA"] = buffer["answer_XA"].at[i].set(jnp.array([9, i, i, 0]))
  lengths = {"head_length_X": 2, "expert_length_X": 2, "answer_length_X": 3}
  held_S = jnp.arange(32) < held
  buffer |= {name: jnp.where(held_S, value, 0).astype(jnp.int32) for name, value in lengths.items()}
  return {**memory, "replay": {**buffer, "seen": jnp.int32(held)}}


LABELS = [[10], [11], [12, 13]]


def prompts_of(head, expert, answer):
  """The critic's prompts on a pair, the expert's answer first, then second."""
  return reference.critic_prompts(False, head, expert, answer, [16], [17, 18], (True, False))


@pytest.mark.parametrize("held", [0, 5])
def test_one_step_against_plain_lists(held):
  """Prompts, verdicts, rewards, advantages and every token's coefficient, from token lists alone."""
  say = critics.by_content()
  form = toy.critic_form(raro.RaroConfig().critic)
  game = Game(say, memory=known_memory(form, held), lambda_policy=0.25, lambda_critic=0.75, critic={"order": "both"})
  (asked, verdicts), made, prompts = game.asked[0], game.made, game.prompts
  heads = lists(prompts.hint_BQ, prompts.hint_length_B, left=True)
  experts = [ids[:-1] for ids in lists(prompts.answer_BA, prompts.answer_length_B)]
  texts = lists(game.rollouts.token_NR, game.rollouts.length_N)
  old_pairs = [([6, i], [i, 8], [9, i, i]) for i in range(held)]

  # ---- The pairs: G fresh ones, then two of the buffer, or the two fresh ones that are not learnt from.
  shown = lists(asked.prompt_BP, asked.prompt_length_B, left=True)
  said = lists(verdicts.token_NR, verdicts.length_N)
  K, orders, per = G + 2, 2, V // 2
  assert len(shown) == B * K * orders and len(said) == B * K * V
  rows, row = [], 0
  for b in range(B):
    own = []
    for text in texts[b * G : (b + 1) * G]:
      own.append(reference.own_answer(text, text[-1] == toy.EOS, [toy.MARKER], 4))
    pairs = [(heads[b], experts[b], answer) for answer in own]
    for j in range(2):
      at = (b * K + G + j) * orders
      drawn = [pair for pair in old_pairs if shown[at] == prompts_of(*pair)[0]]
      assert bool(drawn) == bool(held)
      pairs.append(drawn[0] if held else pairs[2 + j])
    verdicts_of, policy_rewards = [], []
    for k, (head, expert, answer) in enumerate(pairs):
      valid, each = bool(answer), []
      for order in range(orders):
        at = (b * K + k) * orders + order
        assert shown[at] == prompts_of(head, expert, answer or [])[order]
        for sample in range(per):
          n = at * per + sample
          verdict = reference.verdict(said[n], bool(verdicts.ended_N[n]), [toy.MARKER], LABELS, reasoning=True)
          each.append((n, verdict, order == 0, valid))
      verdicts_of.append(each)
      earned = [reference.raro_rewards(v, first, 0.6, 0.55)[1] for _, v, first, _ in each if valid]
      earned = [reward for reward in earned if reward is not None]
      policy_rewards.append(sum(earned) / len(earned) if earned else None)

    # ---- The policy's rows: no answer earns 0; a row that was cut, or of which no verdict speaks, is left out.
    rewards = [reward if answer else 0.0 for answer, reward in zip(own, policy_rewards)]
    counts = [bool(game.rollouts.ended_N[b * G + k]) and rewards[k] is not None for k in range(G)]
    advantages = reference.raro_advantages([reward or 0.0 for reward in rewards], counts)
    for k in range(G):
      coef = 0.25 * advantages[k] / (B * G * R) if counts[k] else 0.0
      rows.append((lists(prompts.prompt_BP, prompts.prompt_length_B, left=True)[b], texts[b * G + k], coef))

    # ---- The critic's: verdicts on two fresh pairs and the two others.
    for k in (0, 1, 4, 5):
      earned = [reference.raro_rewards(v, first, 0.6, 0.55)[0] for _, v, first, _ in verdicts_of[k]]
      counts = [valid and bool(verdicts.ended_N[n]) for n, _, _, valid in verdicts_of[k]]
      advantages = reference.raro_advantages(earned, counts)
      for (n, *_), advantage, count in zip(verdicts_of[k], advantages, counts, strict=True):
        coef = 0.75 * advantage / (B * 4 * V * 8) if count else 0.0
        rows.append((shown[n // per], said[n], coef))

  # ---- The batch: these rows in this order, whose own tokens alone have a coefficient.
  batch = made.batch
  assert len(rows) == len(batch.token_NL)
  assert sum(coef != 0 for *_, coef in rows) > 20
  for row, (prompt, text, coef) in enumerate(rows):
    valid = np.array(batch.position_NL[row]) >= 0
    assert np.array(batch.token_NL[row])[valid].tolist() == prompt + text
    expected = np.zeros(len(valid))
    expected[-len(text) :] = coef
    np.testing.assert_allclose(batch.trace_coef_NL[row], expected, rtol=1e-5, atol=1e-9)
  assert batch.extra["critic_N"].reshape(B, -1).sum(axis=1).tolist() == [4 * V] * B
  stored = made.memory["replay"]
  valid_rows = [n for n, text in enumerate(texts) if toy.MARKER in text and text[-1] == toy.EOS and len(text) > 0]
  answered = [n for n in valid_rows if texts[n][texts[n].index(toy.MARKER) + 1 : -1]]
  assert int(stored["seen"]) == held + len(answered)
  assert lists(stored["answer_XA"], stored["answer_length_X"])[held] == (experts[0] or [14, 15])[:4]


def always(label):
  return lambda prompts, sample: label


def test_a_perfect_critic_rewards_equal_answers_alone():
  """It names the expert's wherever answers differ, and ties where they are equal: mean reward = τ times accuracy."""
  game = Game(perfect(SECOND), replay_share=0.0, critic={"pairs": 4})
  answered = [kind for kind in KINDS if kind in ("right", "wrong")]
  empty = [n for n, kind in enumerate(KINDS) if kind == "right" and int(game.prompts.answer_length_B[n // G]) == 1]
  right = KINDS.count("right") - len(empty)
  assert float(game.made.sums["reward/mean"][0]) == pytest.approx(0.6 * right, rel=1e-5)
  assert game.metric("critic/accuracy") == 1 and game.metric("critic/win_rate") == 0
  assert game.metric("pairs/equal") == pytest.approx(right / (len(answered) - len(empty)))
  assert game.metric("critic/tie_rate") == pytest.approx(game.metric("pairs/equal"))


def perfect(otherwise):
  """Knows the wrong answer 14 15: names the other one; ties where it is not there."""

  def say(prompts, sample):
    token, width = prompts.prompt_BP, prompts.prompt_BP.shape[1]
    middle = jnp.argmax(token == 16, axis=1)
    wrong = (token == 14) & (jnp.roll(token, -1, axis=1) == 15)
    where = jnp.argmax(wrong, axis=1)
    names = jnp.where(where < middle, SECOND, FIRST)
    assert width > 2 and otherwise == SECOND
    return jnp.where(wrong.any(axis=1), names, TIE)

  return say


def test_always_tie_is_a_fixed_point():
  """All verdicts ties: both roles' rewards are flat, no coefficient is left, and the monitors say so."""
  game = Game(always(TIE), kinds=("right", "wrong") * 8)
  assert game.metric("critic/tie_rate") == 1
  earned = np.asarray(game.made.samples["reward"])
  assert (np.isclose(earned, 0.6) | np.isclose(earned, 0)).all() and np.isclose(earned, 0.6).sum() >= 8
  critic_rows = np.asarray(game.made.batch.extra["critic_N"])
  assert not np.asarray(game.made.batch.trace_coef_NL)[critic_rows].any()
  assert int(game.made.memory["tied_steps"]) == 1 and int(game.made.memory["saturated_steps"]) == 0


def test_a_position_biased_critic_is_seen_and_both_orders_cancel_it():
  """One that always says 1: with both orders every answer earns 1/2; with a random order, luck decides."""
  both = Game(always(FIRST), kinds=("wrong",) * 16, critic={"order": "both"})
  np.testing.assert_allclose(both.made.samples["reward"], 0.5)
  assert both.metric("advantage/abs_mean") == 0
  assert both.metric("critic/first_when_expert_first") == both.metric("critic/first_when_policy_first") == 1
  random = Game(always(FIRST), kinds=("wrong",) * 16, critic={"order": "random"})
  rewards = set(np.asarray(random.made.samples["reward"]).tolist())
  assert rewards == {0.0, 1.0} and random.metric("advantage/abs_mean") > 0
  assert random.metric("critic/accuracy") not in (0, 1)


@pytest.mark.parametrize("unparsed,kept", [("zero", 1.0), ("masked", 0.0)])
def test_unparsable_verdicts(unparsed, kept):
  """They say nothing of the policy's answer; the critic earns 0 for them, or nothing at all."""

  def half(prompts, sample):
    return jnp.where(sample == 0, UNPARSED, FIRST)

  game = Game(half, kinds=("wrong",) * 16, unparsed=unparsed, replay_share=0.0)
  np.testing.assert_allclose(game.made.samples["reward"], 0.5)  # of the parsed ones: one order each
  mask = np.asarray(game.made.batch.trace_mask_NL).any(axis=1)[np.asarray(game.made.batch.extra["critic_N"])]
  silent = np.asarray(game.asked[0][1].marker_N) == 0
  ended = np.asarray(game.asked[0][1].ended_N)
  assert mask[silent & ended].all() == bool(kept) and mask[~silent].all() and not mask[~ended].any()


def test_single_answers_are_judged_one_by_one():
  """The policy's reward comes from what is said of its own answer; a tie does not exist."""

  def says_expert(prompts, sample):
    wrong = (prompts.prompt_BP == 14).any(axis=1)
    return jnp.where(wrong, SECOND, FIRST)

  game = Game(says_expert, kinds=("right", "wrong") * 8, replay_share=0.0, critic={"kind": "single", "pairs": 4})
  reward = np.asarray(game.made.samples["reward"]).reshape(-1, 2)
  lengths = np.asarray(game.prompts.answer_length_B).repeat(2) > 1
  np.testing.assert_allclose(reward[lengths, 0], 1)
  np.testing.assert_allclose(reward[:, 1], 0)
  assert game.metric("critic/tie_rate") == 0


def test_the_right_label_is_taught_behind_the_reasoning():
  """With label_coef, a row is reasoning, marker, the right label, and the end, which alone is learnt."""
  game = Game(always(FIRST), kinds=("wrong",) * 16, label_coef=2.0, lambda_critic=0.5, replay_share=0.0)
  batch = game.made.batch
  rows = np.flatnonzero(np.asarray(batch.extra["critic_N"]))
  assert len(rows) == B * G * V
  for place, row in enumerate(rows):
    valid = np.asarray(batch.position_NL[row]) >= 0
    text = np.asarray(batch.token_NL[row])[valid].tolist()
    right = [10] if place % V < V // 2 else [11]  # both orders: the expert's first, then second
    tail = [5, 5, 5, toy.MARKER, *right, toy.EOS]
    assert text[-len(tail) :] == tail
    coef = np.asarray(batch.answer_coef_NL[row])[valid]
    np.testing.assert_allclose(coef[-3:], 2.0 * 0.5 / 3 / len(rows), rtol=1e-5)
    assert not coef[:-3].any()


def test_equal_answers_teach_a_tie_or_nothing():
  tie = Game(always(TIE), kinds=("right",) * 16, label_coef=1.0, replay_share=0.0)
  rows = np.asarray(tie.made.batch.extra["critic_N"])
  answered = np.asarray(tie.prompts.answer_length_B).repeat(G * V) > 1
  taught = np.asarray(tie.made.batch.answer_coef_NL)[rows].any(axis=1)
  np.testing.assert_array_equal(taught, answered)
  text = np.asarray(tie.made.batch.token_NL)[rows][answered]
  assert (text[:, -3:] == [12, 13, toy.EOS]).all()
  pairwise = Game(
    always(FIRST), kinds=("right",) * 16, label_coef=1.0, replay_share=0.0, critic={"kind": "pairwise"}
  )
  assert not np.asarray(pairwise.made.batch.answer_coef_NL).any()


def test_a_verifier_measures_and_may_add():
  """With weight 0 it splits the monitors; with more it adds to the reward."""
  kinds = ("right", "wrong") * 8
  none, measured, added = (
    Game(perfect(SECOND), kinds=kinds, verifier=verifier, verifier_weight=weight)
    for verifier, weight in (("none", 0.0), ("token_match", 0.0), ("token_match", 0.5))
  )
  np.testing.assert_array_equal(none.made.samples["reward"], measured.made.samples["reward"])
  right = np.arange(B * G) % 2 == 0
  np.testing.assert_allclose(added.made.samples["reward"] - measured.made.samples["reward"], 0.5 * right, atol=1e-6)
  assert measured.metric("critic/tie_rate_policy_right") == 1 and measured.metric("critic/tie_rate_policy_wrong") == 0
  assert "critic/accuracy_policy_wrong" not in none.made.sums and "completion/accuracy" not in none.made.sums


@pytest.mark.parametrize(
  "settings,message",
  [
    ({"tau_critic": 1.5}, "algorithm.tau_critic: found 1.5, allowed: 0 to 1"),
    ({"lambda_policy": -1.0}, "algorithm.lambda_policy: found -1.0, allowed: 0 or more"),
    ({"replay_share": 0.7, "corrupt_share": 0.5}, "found 0.7, 0.5, allowed: together at most 1"),
    ({"replay": "lifo"}, "algorithm.replay: found 'lifo', allowed: fifo, reservoir"),
    ({"max_draws": 2}, "allowed with a critic: 1, False, 'loss'"),
    ({"verifier_weight": 1.0}, "algorithm.verifier_weight: above 0 with verifier 'none'"),
    ({"kl_coef": 0.0, "critic": {"kl_coef": 0.1}}, "algorithm.critic.kl_coef: above 0 with algorithm.kl_coef 0"),
    ({"critic": {"kind": "triple"}}, "algorithm.critic.kind: found 'triple', allowed: pairwise, pairwise_tie, single"),
    ({"critic": {"samples": 3}}, "algorithm.critic.samples: found 3, allowed: 2 or more, a multiple of 2"),
    ({"critic": {"labels": ["a", "a", "b"]}}, "allowed: 3 different words"),
    ({"critic": {"template": "{answer_1} {question}"}}, "in this order"),
    ({"critic": {"temperature": 0.0}}, "algorithm.critic.temperature: found 0.0, allowed: above 0"),
  ],
)
def test_settings(settings, message):
  with pytest.raises(UserError) as error:
    toy.run_config("raro", **{f"algorithm__{key}": value for key, value in settings.items()})
  assert message in str(error.value)
