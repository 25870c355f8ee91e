"""Critics, and prompts of theirs, that are refused: each in one line that names the key."""

import dataclasses

import chats
import pytest
from critic_pieces import PLAIN, SHORT, Critic, words

from nrt_jax import errors
from nrt_jax.data.critic_prompts import CriticConfig


@pytest.mark.parametrize(
  "kind,template",
  [
    ("pairwise", "{question} {answer_1}"),
    ("pairwise", "{answer_1} {answer_2}"),
    ("pairwise", "{question} {answer_2} {answer_1}"),
    ("pairwise", "{answer_1} {question} {answer_2}"),
    ("pairwise", "{question} {answer_1} {answer_2} {answer_1}"),
    ("pairwise_tie", "{question} {answer_1} {answer_2} {question}"),
    ("single", "{question}"),
    ("single", "{question} {answer_1} {answer_2}"),
  ],
)
def test_a_template_has_each_place_once_and_in_order(kind, template):
  names = "{question}, {answer_1}" + (" and {answer_2}" if kind != "single" else "")
  with pytest.raises(errors.UserError) as caught:
    CriticConfig(kind=kind, template=template)
  allowed = f"allowed: a text with {names}, each once, in this order"
  assert str(caught.value) == f"algorithm.critic.template: found {template!r}, {allowed}"


@pytest.mark.parametrize(
  "values,message",
  [
    ({"kind": "pair"}, "kind: found 'pair', allowed: pairwise, pairwise_tie, single"),
    ({"order": "first"}, "order: found 'first', allowed: both, random"),
    ({"labels": ("1", "2")}, r"labels: found \('1', '2'\), allowed: 3 different words, as in \('1', '2', 'tie'\)"),
    ({"labels": ("1", "2", "1")}, "labels: found"),
    ({"labels": ("1", "2", "")}, "labels: found"),
    ({"kind": "single", "labels": ("a", "b", "c")}, "labels: .* allowed: 2 different words, as in"),
    ({"samples": 3}, "samples: found 3, allowed: 2 or more, a multiple of 2"),
    ({"samples": 1, "order": "random"}, "samples: found 1, allowed: 2 or more, a multiple of 1"),
    ({"samples": 2, "kind": "single"}, "samples: found 2, allowed: an even number, 4 or more"),
    ({"samples": 5, "kind": "single", "order": "random"}, "samples: found 5, allowed: an even number, 4 or more"),
    ({"pairs": -1}, "pairs: found -1, allowed: 0 or more"),
    ({"max_length": 0}, "max_length: found 0, allowed: 1 or more"),
    ({"max_answer_length": -1}, "max_answer_length: found -1"),
    ({"max_head_length": -1}, "max_head_length: found -1"),
    ({"top_k": -1}, "top_k: found -1"),
    ({"temperature": 0.0}, "temperature: found 0.0, allowed: above 0"),
    ({"temperature": float("nan")}, "temperature: found nan, allowed: above 0"),
    ({"top_p": 0.0}, "top_p: found 0.0, allowed: above 0, up to 1"),
    ({"top_p": 1.5}, "top_p: found 1.5, allowed: above 0, up to 1"),
    ({"kl_coef": -0.1}, "kl_coef: found -0.1, allowed: null, or 0"),
  ],
)
def test_values_that_are_refused(values, message):
  with pytest.raises(errors.UserError, match=f"^algorithm.critic.{message}"):
    CriticConfig(**values)


@pytest.mark.parametrize(
  "values,message",
  [
    ({"labels": ("1", "2", "neither")}, "labels: found 'neither', allowed: words that the tokenizer knows"),
    ({"labels": ("1", "2", " ")}, "labels: found ' ', allowed: words that the tokenizer knows"),
    ({"labels": ("1", "2", "so")}, "labels: found 'so', allowed: words that the tokenizer knows"),  # the marker
    ({"labels": ("1", "2", " 1")}, "labels: found '1' and '2' and ' 1', allowed: words that differ in their tokens"),
    ({"neutral": "0 1"}, "neutral: found '0 1', tokens .'0', '1'.*, allowed: a text of one plain token"),
    ({"neutral": ""}, "neutral: found '', tokens .*, allowed: a text of one plain token"),
    ({"neutral": "!"}, "neutral: found '!', tokens .'<unk>'., allowed: a text of one plain token"),
    ({"neutral": "so"}, "neutral: found 'so'"),
    ({"neutral": "other"}, "neutral: found 'other', .* that does not stand before an answer"),
    (
      {"neutral": "sum", "template": "{question} sum one {answer_1} sum other {answer_2} which"},
      "neutral: found 'sum', .* that does not stand before an answer",
    ),
    ({"max_length": 2}, r"max_length: found 2, allowed: 3 \(the marker, a label and the end token\) or more"),
  ],
)
def test_what_the_tokenizer_cannot_tell_apart_is_refused(values, message):
  config = CriticConfig(**{"template": SHORT, **values})
  with pytest.raises(errors.UserError, match=f"^algorithm.critic.{message}"):
    Critic(words(), dataclasses.replace(PLAIN, marker="so"), config)


def test_a_verdict_without_reasoning_needs_less_room():
  config = CriticConfig(template=SHORT, reasoning=False, max_length=2)
  assert Critic(words(), dataclasses.replace(PLAIN, marker="so"), config).made.label_ids == ((1,), (2,), (14,))


@pytest.mark.parametrize(
  "template,message",
  [
    ("{question} again: {question}", "it shows what is asked 2 times"),
    ("chat", "it does not show all that is asked"),
  ],
)
def test_a_prompt_template_that_shows_the_answers_twice_or_never_is_refused(template, message):
  tokenizer = chats.tokenizer("chatml")
  tokenizer.chat_template = "{{ messages[-1].content[:9] }}<|im_end|>"
  with pytest.raises(errors.UserError, match=f"^prompt.template: {message}, allowed with a critic: one that shows it"):
    Critic(tokenizer, dataclasses.replace(PLAIN, template=template))


def test_answers_that_stand_behind_no_marker_are_refused():
  with pytest.raises(errors.UserError, match="^prompt.answer_in: found 'completion', allowed with a critic: behind"):
    Critic(chats.tokenizer("chatml"), dataclasses.replace(PLAIN, answer_in="completion"))
