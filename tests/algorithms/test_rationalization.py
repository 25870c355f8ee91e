"""Rationalization: traces sampled after the hint are learned after the plain prompt, where they help."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy

from nrt_jax import startup
from nrt_jax.algorithms import rationalization
from nrt_jax.arrays import AnswerScores, Rollouts
from nrt_jax.data import batches, order, prompts, sources
from nrt_jax.errors import UserError
from nrt_jax.step import programs
from nrt_jax.step.state import States, TrainState

MODEL = dataclasses.replace(toy.MODEL, num_hidden_layers=1)
MARKER_IDS = (toy.MARKER, toy.SECOND_MARKER)
B, G, R, A = 4, 3, 4, 3
PROMPTS = toy.prompts(B, answer_width=A)
# How each trace ends: at once with the marker, later, at another stop token, at the limit. Its tokens, stop included.
ENDS = [(True, 1), (True, 3), (False, 4), (True, 2), (True, 4), (True, 1)] * 2


class Hand:
  """Traces and probabilities made by hand: as arrays for the library, as lists for the twin."""

  def __init__(self):
    rng = np.random.default_rng(0)
    token_NR = rng.integers(0, toy.MARKER, (B * G, R)).astype(np.int32)
    base_BA = rng.uniform(0.02, 0.5, (B, A))
    self.c_NA = base_BA.repeat(G, 0) ** rng.uniform(0.2, 1.2, (B * G, 1))
    self.c_NA[9:] = 0.9 * base_BA[3]  # no trace of the last prompt helps
    self.samples = []
    for n, (ended, length) in enumerate(ENDS):
      b = n // G
      answer = PROMPTS.answer_BA[b][: PROMPTS.answer_length_B[b]].tolist()
      if length - ended == 0:
        self.c_NA[n] = base_BA[b]  # an empty trace gains nothing
      self.samples.append({
        "prompt": PROMPTS.prompt_BP[b][-PROMPTS.prompt_length_B[b] :].tolist(), "ended": ended, "answer": answer,
        "trace": token_NR[n][: length - ended].tolist(),
        "c": self.c_NA[n, : len(answer)], "base": base_BA[b, : len(answer)],
      })  # fmt: skip
    ended_N, length_N = (np.array(x) for x in zip(*ENDS))
    arrays = (token_NR, length_N.astype(np.int32), np.zeros((B * G, R), np.float32), ended_N, ended_N)
    self.rollouts = Rollouts(*jax.tree.map(jnp.asarray, arrays))
    valid_BA = np.arange(A)[None] < PROMPTS.answer_length_B[:, None]
    empty_BA = jnp.asarray(np.where(valid_BA, np.log(base_BA), 0), jnp.float32)
    self.empty = AnswerScores(jnp.zeros((B, 2)), empty_BA)
    self.valid_NA = valid_BA.repeat(G, 0)
    self.asked = None

  def collect(self, config, minibatches=1):
    setup = toy.setup(
      "rationalization", prompt_format=toy.form(MARKER_IDS), samples_per_prompt=G, optimizer__minibatches=minibatches
    )

    def rollout(params, asked, key):
      self.asked = asked
      return self.rollouts, None, None

    def score(params, batch):
      logp_NA = np.where(self.valid_NA, np.log(self.c_NA), 0)
      return jnp.pad(jnp.asarray(logp_NA, jnp.float32), ((0, 0), (batch.token_NL.shape[1] - A, 0)))

    tools = programs.make_tools(setup)._replace(
      rollout=rollout, score_batch=score, score_empty_trace=lambda *_: self.empty
    )
    states = States(TrainState(jnp.int32(0), jnp.int32(0), {}, (), None))
    return rationalization.collect(tools, config, states, jax.tree.map(jnp.asarray, PROMPTS), None)


CASES = [
  ({}, 1),
  ({"keep": "helpful", "reward": "geometric_mean", "normalisation": "sequence"}, 2),
  ({"keep": "helpful", "threshold": 1.0, "keep_unended": True}, 1),
  ({"keep": "best", "keep_unended": True, "normalisation": "constant", "normalisation_constant": 3.0}, 2),
  ({"keep": "all"}, 2),
]


@pytest.mark.parametrize("over,minibatches", CASES)
def test_rows_by_hand(over, minibatches):
  """Tokens and weights of every row against lists: nothing of the hint is in them, and nothing of what is not kept."""
  hand, config = Hand(), rationalization.RationalizationConfig(**over)
  collected = hand.collect(config, minibatches)
  expected = reference.rationalized_rows(config, hand.samples, G, minibatches, MARKER_IDS)
  np.testing.assert_array_equal(hand.asked.prompt_BP, PROMPTS.hint_BQ)
  np.testing.assert_array_equal(hand.asked.prompt_length_B, PROMPTS.hint_length_B)
  kept = [k for _, _, k, _ in expected]
  assert 0 < sum(kept) < B * G
  batch = collected.batch
  for n, (tokens, weights, _, gain) in enumerate(expected):
    valid = np.asarray(batch.position_NL[n]) >= 0
    np.testing.assert_array_equal(batch.token_NL[n][valid], tokens)
    np.testing.assert_allclose(batch.answer_coef_NL[n][valid], weights, rtol=1e-5)
    np.testing.assert_allclose(collected.samples["reward"][n], gain, rtol=1e-4, atol=1e-6)
    assert not np.asarray(batch.answer_coef_NL[n])[~valid].any()
  for name in ("trace_coef_NL", "format_coef_NL", "sampled_mask_NL"):
    assert not getattr(batch, name).any()
  np.testing.assert_allclose(collected.sums["rationale/kept"], (sum(kept), B * G))
  prompts_kept = sum(any(kept[b * G : b * G + G]) for b in range(B))
  np.testing.assert_allclose(collected.sums["rationale/prompts_kept"], (prompts_kept, B))


def test_rounding_makes_no_empty_trace_helpful():
  """A whole row scores the answer after an empty trace a little differently than the empty trace's own pass."""
  hand = Hand()
  hand.c_NA = np.exp(np.asarray(hand.empty.answer_logp_NA).repeat(G, 0)) * (1 + 1e-6)
  batch = hand.collect(rationalization.RationalizationConfig(keep="helpful", keep_unended=True)).batch
  full = [len(s["trace"]) > 0 for s in hand.samples]
  np.testing.assert_array_equal(np.asarray(batch.answer_coef_NL).any(1), full)


def test_config_errors():
  with pytest.raises(UserError, match="algorithm.keep: found 'some', allowed: all, best, helpful"):
    rationalization.RationalizationConfig(keep="some")
  for wrong in ({"hint_template": "{question}"}, {"max_hint_length": -1}):
    with pytest.raises(UserError, match="prompt.hint_template, max_hint_length: found .*, allowed: a text with"):
      prompts.PromptConfig(**wrong)


# --------------------------------------------------------------------------------------------------------- the step


def trained(steps, **over):
  setup = toy.setup("rationalization", model=MODEL, algorithm__keep_unended=True, **over)
  states = programs.init_states(setup, jax.tree.map(jnp.copy, toy.params(MODEL)), jax.random.key(2))
  step, history = programs.build_train_step(setup), []
  for _ in range(steps):
    states, metrics, _ = step(states, toy.prompts(8))
    history.append({name: float(value) for name, value in metrics.items()})
  return states.policy.params, history


def test_answers_become_likelier_and_micro_batches_do_not_matter():
  whole, history = trained(6)
  assert history[0]["rationale/kept"] > 0.1
  assert history[-1]["answer/logp"] > history[0]["answer/logp"] + 0.3
  first, pieces = trained(1)[0], trained(1, parallel__micro_batches=4)[0]
  assert toy.largest_difference(first, toy.params(MODEL)) > 1e-3
  assert toy.largest_difference(first, pieces) < 1e-5


# --------------------------------------------------------------------------------------------------------- the hint


WORDS = ["what", "is", "one", "plus", "two", "three", "the", "answer", "explain", "how", "sys", "{answer}"]


def dataset(question="what is one plus two", **over):
  tokenizer = prompts.word_tokenizer(WORDS, special=("<|response_start|>",))
  template = "{question} the answer is {answer} explain"
  config = prompts.PromptConfig(**{"hint_template": template, "max_prompt_length": 8, "max_answer_length": 4, **over})
  examples = [sources.Example(question, "three", None, "here"), sources.Example("what", "two", None, "there")]
  form = prompts.make_format(tokenizer, config)
  return tokenizer, lambda hints: batches.tokenize(examples, sources.DataConfig(), config, tokenizer, form, hints)


def test_hints_show_the_answer_in_the_prompt_template():
  tokenizer, tokenize = dataset(template="how {question}", system="sys")
  made = tokenize(True)
  assert prompts.decode(tokenizer, made.hints[0]) == "sys how what is one plus two the answer is three explain"
  assert prompts.decode(tokenizer, made.prompts[0]) == "sys how what is one plus two"
  rows, _ = batches.batch(made, batches.Position(), 2, seed=0)
  assert rows.hint_BQ.shape == (2, 8 + 4 + 6)  # question and answer in full, "sys how" and "the answer is explain"
  for b, example in enumerate(rows.example_B):
    hint = made.hints[order.order(2, 0, 0)[example]]
    assert rows.hint_length_B[b] == len(hint)
    np.testing.assert_array_equal(rows.hint_BQ[b, -len(hint) :], hint)


def test_a_question_that_writes_a_placeholder_stays_text():
  tokenizer, tokenize = dataset(question="what is {answer}")
  assert prompts.decode(tokenizer, tokenize(True).hints[0]) == "what is {answer} the answer is three explain"


def test_only_the_last_turn_is_rewritten():
  turns = tuple({"role": role, "content": text} for role, text in [("user", "one"), ("user", "two")])
  tokenizer, tokenize = dataset(question=turns)
  assert prompts.decode(tokenizer, tokenize(True).hints[0]) == "one two the answer is three explain"


def test_overlong_hints_follow_the_prompts_policy():
  assert dataset(max_hint_length=6)[1](True).counts["hints_dropped"] == 1
  tokenizer, tokenize = dataset(max_hint_length=6, overlong_prompt="cut_left")
  assert prompts.decode(tokenizer, tokenize(True).hints[0]) == "two the answer is three explain"
  with pytest.raises(UserError, match="here: the hint has 10 tokens, prompt.max_hint_length allows 6"):
    dataset(max_hint_length=6, overlong_prompt="error")[1](True)


def test_nobody_else_pays_for_hints(monkeypatch):
  """Without a method that asks for them there are no hint columns, and training asks for its method's."""
  made = dataset()[1](False)
  assert made.hints is None and "hints_dropped" not in made.counts
  assert batches.batch(made, batches.Position(), 2, seed=0)[0].hint_BQ is None
  asked = []
  monkeypatch.setattr(batches, "load_dataset", lambda *args: asked.append(args[4:]))
  for name in ("sft", "rationalization"):
    startup.read_data(toy.setup(name), None)
  assert asked == [(False,), (True,)]
