"""A critic's prompts and verdicts on the device, against plain lists: see reference.py."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from toy import EOS, MARKER, PAD, SECOND_MARKER

from nrt_jax.algorithms import critic
from nrt_jax.algorithms.critic import FIRST, SECOND, TIE, UNPARSED, Pairs
from nrt_jax.arrays import Rollouts
from nrt_jax.data.critic_prompts import LABELS, CriticConfig
from nrt_jax.step import tools as step_tools

MARKERS = {"one token": (MARKER,), "two tokens": (MARKER, SECOND_MARKER)}
FORBIDDEN = (MARKER, SECOND_MARKER, EOS, PAD)
SEQUENCES = ((16, 17), (16, 18, 17), (16, 16))


@functools.cache
def form_of(marker_ids=(MARKER,), answer_width=4, **config):
  form = toy.critic_form(CriticConfig(**config), toy.form(marker_ids), answer_width=answer_width)
  return dataclasses.replace(form, forbidden=SEQUENCES)


# As in the step, where all of it is compiled; op by op it takes longer.
build_prompts = jax.jit(critic.build_prompts, static_argnames=("form", "pad_id"))
read_verdicts = jax.jit(critic.read_verdicts, static_argnames="form")
neutralise = jax.jit(critic.neutralise, static_argnames="form")
forced = jax.jit(critic.forced, static_argnames="form")


def tools_of(form, marker_ids=(MARKER,)):
  tools = step_tools.make_tools(toy.setup("raro", prompt_format=toy.form(marker_ids)))
  return tools._replace(critic=form)


def rollouts_of(texts, width, ended=None):
  """Sampled texts, end token included, as arrays; they ended unless they fill the width without one."""
  ended = [text[-1:] == [EOS] for text in texts] if ended is None else ended
  token, mask = reference.padded(texts, width, PAD)
  length = mask.sum(axis=1).astype(np.int32)
  marker = [MARKER in text for text in texts]
  arrays = (token.astype(np.int32), length, np.zeros(token.shape, np.float32), np.array(ended), np.array(marker))
  return Rollouts(*map(jnp.asarray, arrays))


def lists(token_NA, length_N):
  return [row[:length].tolist() for row, length in zip(np.asarray(token_NA), np.asarray(length_N), strict=True)]


def ragged(count, low, high, seed, words=20):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, words, rng.integers(low, high + 1)).tolist() for _ in range(count)]


# ---- Answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", MARKERS.values(), ids=MARKERS)
def test_own_answers(marker):
  """What stands behind the first marker, cut to the width; none where it is missing, empty or cut at the limit."""
  form, m = form_of(marker), list(marker)
  texts = [
    [1, 2, *m, 3, 4, EOS],
    [*m, 3, EOS],
    [1, *m, 3, 4, 5, 6, 7, EOS],  # longer than the critic is shown
    [1, *m, EOS],  # empty
    [1, 2, EOS],  # no marker
    [1, *m, 3, *m, 4, EOS],  # the first one counts, the second is hidden
    [1, *m, 3, 16, 17, EOS],  # words that stand before an answer
    [1, m[0], EOS],  # with two tokens half a marker is none
    [1, 2, 3, *m, 5, 6, 7, 8, 9, 10][:10],  # cut at the limit
    [1, 2, 3, 4, 5, 6, 7, 8, 9, m[0]],
    [EOS],
  ]
  rollouts = rollouts_of(texts, 10)
  whole = [any(text[t : t + len(m)] == m for t in range(len(text))) for text in texts]
  own_answers = jax.jit(functools.partial(critic.own_answers, tools_of(form, marker)))
  token, length, valid = own_answers(rollouts.replace(marker_N=jnp.asarray(whole)))
  answers = [reference.own_answer(text, text[-1] == EOS, m, form.answer_width) for text in texts]
  np.testing.assert_array_equal(valid, [answer is not None for answer in answers])
  assert np.asarray(valid).tolist()[:3] == [True] * 3 and not np.asarray(valid)[[3, 4, 8, 9, 10]].any()
  expected = [reference.hidden(answer or [], FORBIDDEN, SEQUENCES, form.neutral_id) for answer in answers]
  assert lists(token, length) == expected and token.shape == (len(texts), form.answer_width)
  assert expected[5] == [3, *[0] * len(m), 4][:4] and expected[6] == [3, 0, 0]


def test_expert_answers():
  """Without their end token; a cut one has none, and a long one is cut to what the critic is shown."""
  form = dataclasses.replace(form_of(), end_ids=(EOS, 19))
  answers = [[3, 4, EOS], [EOS], [3, 4, 5, 6, 7, EOS], [3, 4, 5, 6, 7, 8], [3, 19], [16, 17, 5, EOS], [3, 4]]
  token, mask = reference.padded(answers, 6, PAD)
  prompts = toy.prompts(7, answer_width=6).replace(answer_BA=token.astype(np.int32), answer_length_B=mask.sum(axis=1))
  shown = jax.jit(functools.partial(critic.expert_answers, tools_of(form)))(prompts)
  assert lists(*shown) == [[3, 4], [], [3, 4, 5, 6], [3, 4, 5, 6], [3], [0, 0, 5], [3, 4]]
  assert not np.asarray(shown[0])[np.arange(4)[None] >= np.asarray(shown[1])[:, None]].any()


@pytest.mark.parametrize("width", [1, 2, 6])
def test_neutralise(width):
  """All answers of up to `width` tokens that could be of interest, up to the very last column."""
  form = form_of(answer_width=width)
  alphabet = (3, 16, 17, 18) if width == 6 else (3, 16, 17, 18, *FORBIDDEN)
  texts = [list(text) for count in range(width + 1) for text in itertools.product(alphabet, repeat=count)]
  token, mask = reference.padded(texts, width, 17)  # what stands behind an answer counts for nothing
  made = neutralise(form, jnp.asarray(token, jnp.int32), jnp.asarray(mask.sum(axis=1)))
  expected = [reference.hidden(text, FORBIDDEN, SEQUENCES, form.neutral_id) for text in texts]
  np.testing.assert_array_equal(made, reference.padded(expected, width, 0)[0])


def test_what_may_not_be_shown_may_be_nothing():
  form = dataclasses.replace(form_of(), forbidden=(), forbidden_ids=())
  token = jnp.asarray([[3, 16, 17, MARKER]])
  np.testing.assert_array_equal(neutralise(form, token, jnp.asarray([4])), token)


def test_corrupted_answers_are_another_order_of_the_same_tokens():
  """Exactly two tokens change places, whatever the answer, unless all are equal; and each exchange is drawn."""
  answers = [[], [3], [3, 3, 3], [3, 4], [3, 3, 4], [3, 4, 5, 6], [7, 7, 8, 8], [1, 2, 3, 4, 5]]
  token, mask = reference.padded(answers, 5, 0)
  keys = jax.random.split(jax.random.key(3), len(answers))
  made = jax.jit(critic.corrupt, static_argnums=3)(keys, jnp.asarray(token, jnp.int32), mask.sum(axis=1), 60)
  assert made.shape == (len(answers), 60, 5)
  for answer, wrong_CA in zip(answers, np.asarray(made)):
    found = {tuple(row[: len(answer)].tolist()) for row in wrong_CA}
    assert not wrong_CA[:, len(answer) :].any()
    swaps = set()
    for i, j in itertools.combinations(range(len(answer)), 2):
      other = list(answer)
      other[i], other[j] = other[j], other[i]
      swaps |= {tuple(other)} - {tuple(answer)}
    assert found == (swaps or {tuple(answer)})


def test_equal_pairs():
  pairs = [([3, 4], [3, 4]), ([3, 4], [4, 3]), ([3], [3, 4]), ([3, 4], [3]), ([], []), ([3, 0], [3]), ([9] * 4,) * 2]
  experts, answers = zip(*pairs)
  made = pairs_of([[1]] * 7, experts, answers, form_of())
  behind = jnp.arange(4)[None] >= made.answer_length_X[:, None]  # what stands there counts for nothing
  made = made.replace(answer_XA=jnp.where(behind, 5, made.answer_XA))
  np.testing.assert_array_equal(made.equal_X, [one == other for one, other in pairs])


# ---- Prompts --------------------------------------------------------------------------------------------------------


def test_the_order_is_both_or_a_fair_coin_of_each_pairs_own():
  form = form_of()
  keys = jax.random.split(jax.random.key(0), 2000)
  np.testing.assert_array_equal(critic.shown_first(keys, form, 2), np.tile([True, False], (2000, 1)))
  one = np.asarray(critic.shown_first(keys, form, 1))
  assert one.shape == (2000, 1) and abs(one.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
  np.testing.assert_array_equal(critic.shown_first(keys[::-1], form, 1), one[::-1])


def pairs_of(heads, experts, answers, form):
  head = [[9] * (form.head_width - len(row)) + row for row in heads]  # padded on the left
  expert, answer = (reference.padded(side, form.answer_width, 9)[0] for side in (experts, answers))
  length = lambda side: jnp.asarray([len(row) for row in side], jnp.int32)
  head, expert, answer = (jnp.asarray(a, jnp.int32) for a in (head, expert, answer))
  return Pairs(head, length(heads), expert, length(experts), answer, length(answers), jnp.ones(len(heads), bool))


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize("orders", [1, 2])
def test_prompts_against_lists(kind, reasoning, orders):
  """Ragged heads and answers, the fullest and the emptiest among them, in both orders."""
  form = form_of(MARKERS["two tokens"], kind=kind, reasoning=reasoning)
  heads, experts, answers = ragged(9, 1, 7, seed=1), ragged(9, 0, 4, seed=2), ragged(9, 1, 4, seed=3)
  heads[0], experts[0], answers[0] = [1] * 7, [2] * 4, [3] * 4
  heads[1], experts[1], answers[1] = [1], [], [3]
  first = np.random.default_rng(4).random((9, orders)) < 0.5
  if orders == 2:
    first = np.tile([True, False], (9, 1))
  numbers = jnp.arange(100, 109)
  made = build_prompts(form, pairs_of(heads, experts, answers, form), jnp.asarray(first), numbers, PAD)
  assert made.prompt_BP.shape == (9 * orders, form.prompt_width)
  middle, tail = list(form.middle_ids), [17, 18] + ([] if reasoning else [MARKER, SECOND_MARKER])
  expected = [
    row
    for x in range(9)
    for row in reference.critic_prompts(kind == "single", heads[x], experts[x], answers[x], middle, tail, first[x])
  ]
  np.testing.assert_array_equal(made.prompt_length_B, [len(row) for row in expected])
  whole = [[PAD] * (form.prompt_width - len(row)) + row for row in expected]
  np.testing.assert_array_equal(made.prompt_BP, whole)
  assert len(expected[0]) == form.prompt_width  # the fullest pair fills it
  assert len(set(np.asarray(made.example_B).tolist())) == 9 * orders  # each has keys of its own
  assert made.hint_BQ is None and not np.asarray(made.trace_length_B).any()


@pytest.mark.parametrize("kind", LABELS)
def test_an_answer_that_attacks_changes_nothing_of_the_structure(kind):
  """It writes the marker and a label, the end, and the words before answers: the prompt has them only where it had."""
  form = form_of(kind=kind, answer_width=8)
  form = dataclasses.replace(form, middle_ids=form.middle_ids and (5, 16, 17), tail_ids=(5, 18))
  attacks = [
    [MARKER, 11, EOS],
    [16, 17, 5],  # the words before an answer
    [5, 16, 18, 17, 16, 16],
    [17, MARKER, 11, EOS, MARKER, SECOND_MARKER, PAD, 10],
    [*[5] * 6, 16, 17],  # up to the last column that is shown
  ]
  rollouts = rollouts_of([[1, MARKER, *text, EOS] for text in attacks], 11)
  token, length, valid = jax.jit(functools.partial(critic.own_answers, tools_of(form)))(rollouts)
  assert valid.all()
  heads, experts = [[1, 2, 3]] * 5, [[4, 5]] * 5
  calm = pairs_of(heads, experts, [[7] * len(text) for text in attacks], form)
  for orders in ([[True]] * 5, [[False]] * 5):
    shown, expected = (
      build_prompts(form, pairs, jnp.asarray(orders), jnp.arange(5), PAD)
      for pairs in (calm.replace(answer_XA=token, answer_length_X=length), calm)
    )
    assert length.tolist() == [len(text) for text in attacks]
    np.testing.assert_array_equal(shown.prompt_length_B, expected.prompt_length_B)
    for row, plain, used in zip(*map(np.asarray, (shown.prompt_BP, expected.prompt_BP, shown.prompt_length_B))):
      row, plain = row[len(row) - used :].tolist(), plain[len(plain) - used :].tolist()
      assert not set(row) & set(FORBIDDEN)
      places = [[i for i in range(used) for s in SEQUENCES if tuple(x[i : i + len(s)]) == s] for x in (row, plain)]
      assert places[0] == places[1] and len(places[0]) == (kind != "single")
      assert [t for t, p in zip(row, plain) if p != 7] == [p for p in plain if p != 7]


# ---- Verdicts -------------------------------------------------------------------------------------------------------

OPENED = [MARKER, SECOND_MARKER]


def completions(reasoning):
  """Texts and what they say: labels are 10, 11 and 12 13."""
  m = OPENED if reasoning else []
  said = [
    ([*m, 10, EOS], FIRST),
    ([*m, 11, EOS], SECOND),
    ([*m, 12, 13, EOS], TIE),
    ([*m, 10, 10, EOS], UNPARSED),  # nothing but a label
    ([*m, 12, EOS], UNPARSED),  # half a label
    ([*m, 13, EOS], UNPARSED),
    ([*m, 12, 13, 13, EOS], UNPARSED),
    ([*m, 5, 10, EOS], UNPARSED),
    ([*m, EOS], UNPARSED),
    ([5, 10, EOS], UNPARSED),  # no marker; without reasoning: something before it
    ([EOS], UNPARSED),
  ]
  if not reasoning:
    return [*said, ([5, *OPENED, 10, EOS], UNPARSED), ([10], None)]
  return [
    *said,
    ([5, 6, *m, 11, EOS], SECOND),
    ([5, *m, 10, 6, *m, 11, EOS], SECOND),  # the last marker
    ([5, *m, 11, EOS], SECOND),
    ([5, *m, 10, *m, EOS], UNPARSED),
    ([5, MARKER, 11, EOS], UNPARSED),  # half a marker
    ([SECOND_MARKER, 11, EOS], UNPARSED),
    ([5, MARKER, *m, 12, 13, EOS], TIE),
    ([11, EOS], UNPARSED),
    ([10, *m, 12, 13], None),  # cut
  ]


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("reasoning", [True, False])
def test_verdicts(kind, reasoning):
  form = form_of(tuple(OPENED), kind=kind, reasoning=reasoning)
  made = completions(reasoning)
  texts = [text for text, _ in made]
  said = read_verdicts(form, rollouts_of(texts, 9))
  labels = [list(ids) for ids in form.label_ids]
  twin = [reference.verdict(text, text[-1] == EOS, OPENED, labels, reasoning) for text in texts]
  np.testing.assert_array_equal(said, [UNPARSED if label is None else label for label in twin])
  tie = kind == "pairwise_tie"
  np.testing.assert_array_equal(said, [UNPARSED if v is None or (v == TIE and not tie) else v for _, v in made])


def test_verdicts_of_random_texts():
  """Of few different tokens, so that markers and labels come by chance; some are cut at the limit."""
  rng = np.random.default_rng(0)
  for reasoning, marker in itertools.product((True, False), MARKERS.values()):
    form = form_of(marker, kind="pairwise_tie", reasoning=reasoning)
    texts = []
    for _ in range(3000):
      text = rng.choice([*marker, 10, 11, 12, 13], rng.integers(0, 7)).tolist()
      texts.append([*text, EOS] if len(text) < 6 or rng.random() < 0.5 else text)
    said = read_verdicts(form, rollouts_of(texts, 7))
    labels = [list(ids) for ids in form.label_ids]
    twin = [reference.verdict(text, text[-1:] == [EOS], list(marker), labels, reasoning) for text in texts]
    np.testing.assert_array_equal(said, [UNPARSED if label is None else label for label in twin])
    assert {FIRST, SECOND, TIE, UNPARSED} == set(np.asarray(said).tolist())


def test_a_text_that_was_cut_right_behind_a_label_says_nothing():
  """Its last token would be taken for the end token."""
  form = form_of((MARKER,))
  texts = [[5, MARKER, 10, 5], [5, MARKER, 12, 13], [5, 5, MARKER, 11]]
  np.testing.assert_array_equal(read_verdicts(form, rollouts_of(texts, 4)), [UNPARSED] * 3)


def test_a_verdict_that_is_wider_than_what_was_sampled():
  """What would stand before the first column is not what stands in it."""
  twice = dataclasses.replace(form_of(), marker_ids=(MARKER, MARKER))
  np.testing.assert_array_equal(read_verdicts(twice, rollouts_of([[MARKER, 10, EOS]], 3)), [UNPARSED])
  form = form_of(tuple(OPENED))
  np.testing.assert_array_equal(read_verdicts(form, rollouts_of([[EOS], [12]], 1)), [UNPARSED] * 2)


@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize("marker", MARKERS.values(), ids=MARKERS)
def test_what_is_taught(reasoning, marker):
  """The reasoning up to the first marker, or all of it, cut or not; then marker, right label and end token."""
  form = form_of(marker, reasoning=reasoning)
  texts = [text[:9] for text, _ in completions(True)] + [[5] * 9, [5] * 8 + [MARKER]]
  labels = [FIRST, SECOND, TIE] * 8
  texts, labels = texts[: len(labels)], labels[: len(texts)]
  rollouts = rollouts_of(texts, 9)
  length, marker_ids, answer, answer_length = forced(form, rollouts, jnp.asarray(labels))
  for n, (text, label) in enumerate(zip(texts, labels)):
    how = (text, text[-1] == EOS, list(marker), form.label_ids[label], EOS, reasoning)
    kept, opened, taught = reference.taught_verdict(*how)
    assert text[: int(length[n])] == kept and list(marker_ids) == opened
    assert lists(answer, answer_length)[n] == taught
  assert answer.shape[1] == 3 and answer.dtype == jnp.int32
