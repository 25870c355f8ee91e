"""Graded scores: by hand, from the Python runs, and inside a program."""

import random

import jax
import numpy as np
import programs
import pytest
import reference

from nrt_jax import errors
from nrt_jax.interpreters import batching, befunge, befunge_jax, brainfuck, brainfuck_jax, outcome, scoring

PLAIN = scoring.Scoring(base=10, exact=2.0, short=1.0, failure=-2.0, max_length=20)
PAIRS = [((3, 4), (3, 4)), ((1,), (1,)), ((), ())]
LIMITS = brainfuck.Limits(steps=100, outputs=4, tape=8, cells=10)


def by_python(language, program, pairs, limits, weights):
  """The library's score, after it has been found to be the reference's."""
  runs = [language.run(program, given, limits) for given, _ in pairs]
  found, ended = scoring.score(runs, pairs, len(program), weights), [run.status == outcome.FINISHED for run in runs]
  outputs, wanted = [run.output for run in runs], [expected for _, expected in pairs]
  assert found == pytest.approx(reference.program_score(outputs, wanted, ended, len(program), weights), abs=1e-12)
  return found


@pytest.mark.parametrize(
  "text,expected",
  [
    (",[.,]", 1 - 0.25 / 4),  # exact three times; of each case's bonus for a short program 5 of 20 are missing
    # 3 of (3, 4), one value missing: 1 - 10/20. (1,) is exact: 1 + 2 + 0.9. A value too many for (): 1 - 10/10.
    (",.", (0.5 + 3.9 + 0) / 12),
    (",+.,+.", (1 - 2 / 20 + 1 - (1 + 10) / 10 + 1 - 20 / 10) / 12),  # one off twice; 2 1 for 1; 1 1 for nothing
    ("", (0 + 0 + 1 + 3) / 12),
    ("+[]", -2 / 12),
    (",[.,]]", -2 / 12),
    (",[.,]" + "><" * 10, 3 * 3 / 12),  # too long for a bonus
  ],
)
def test_scores_by_hand(text, expected):
  assert by_python(brainfuck, brainfuck.encode(text), PAIRS, LIMITS, PLAIN) == pytest.approx(expected)


@pytest.mark.parametrize("language,module", [(brainfuck, brainfuck_jax), (befunge, befunge_jax)])
def test_scores_inside_a_program(language, module):
  draw = random.Random(1)
  if language is brainfuck:
    known, limits = [",[.,]", ",.", ",+.,+.", "", "+[]", "]"], LIMITS
    drawn = [programs.brainfuck_program(draw, draw.randrange(10)) for _ in range(300)]
  else:
    known, limits = ["&:1+!#@_.", "&.@", "@", "&.&.@", "01-:*9*:*:*:*:*.@"], befunge.Limits(50, 4, 8, 20, 2)
    drawn = [
      [*befunge.encode("&.&."), *befunge.encode(f"{draw.randrange(10)}.@"[draw.randrange(3) :])] for _ in range(50)
    ]
  ids = [language.encode(text) for text in known] + drawn
  cases = batching.cases_of(PAIRS, limits.outputs)
  scored = jax.jit(
    jax.vmap(lambda ids, n: scoring.score_cases(module.run_cases(ids, n, cases, limits), cases, n, PLAIN))
  )
  found = np.asarray(scored(*batching.padded(ids, max(map(len, ids)))))
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [by_python(language, one, PAIRS, limits, PLAIN) for one in ids], atol=1e-6)
  assert len(set(found.round(4).tolist())) > 5


@pytest.mark.parametrize(
  "key,value,allowed",
  [
    ("base", 1, "2 or more"), ("max_length", 0, "1 or more"), ("exact", -1.0, "0 or more"),
    ("short", float("nan"), "0 or more"), ("failure", 1.0, "0 or less"), ("failure", float("nan"), "0 or less"),
  ],
)  # fmt: skip
def test_bad_weights(key, value, allowed):
  with pytest.raises(errors.UserError, match=f"^scoring: {key}: found {value}, allowed: {allowed}"):
    scoring.Scoring(**{key: value})
