r"""Numbers as people and LaTeX write them, each with its exact value; and what is no number, or two."""

from fractions import Fraction

import pytest

from nrt_jax.tasks import numerals

F = Fraction
ALONE = {
  "thousands": [
    ("1,234", 1234), ("1,234,567.5", F("1234567.5")), ("9{,}500", 9500), ("9{ , }500", 9500), (r"10,\!000", 10000),
    (r"10\,000", 10000), (r"1\ 000\ 000", 10**6), ("1~000", 1000), ("1 000", 1000), ("1\u00a0000", 1000),
    ("1\u202f000", 1000), ("1'000", 1000), ("1’000", 1000), ("1_000", 1000),
  ],
  "groups that are not of three": [
    ("10 20", None), ("1,00", None), ("12,34", None), ("1,2345", None), ("1234,567", None), ("1,234 567", None),
    ("1, 234", None), ("0,500", None), ("1  000", 1000), ("10  20", None), ("1,7,103", None), ("1.000.000", None),
  ],
  "mixed numbers": [
    ("1 1/4", F(5, 4)), ("11 5/6", F(71, 6)), (r"2\frac{1}{2}", F(5, 2)), (r"2 \frac12", F(5, 2)),
    (r"-2\tfrac{1}{2}", F(-5, 2)), ("2½", F(5, 2)), ("½", F(1, 2)), ("1,000 1/2", F(2001, 2)), ("-1 1/2", F(-3, 2)),
    ("3 5/2", None), (r"3\frac{5}{2}", None), (r"3\frac{0}{2}", None), ("1 1.5/2", None),
  ],
  "fractions": [
    ("11/4", F(11, 4)), (r"\frac{1}{2}", F(1, 2)), (r"\dfrac12", F(1, 2)), (r"\tfrac1{2}", F(1, 2)),
    (r"\cfrac{1}2", F(1, 2)), (r"\frac{-1}{2}", F(-1, 2)), (r"-\frac{1}{-2}", F(1, 2)), ("-1./3", F(-1, 3)),
    (r"\frac{1,000}{3}", F(1000, 3)), (r"\frac{1.5}{.5}", 3), ("1/0", None), (r"\frac{1}{0}", None), ("1/2/3", None),
  ],
  "decimals": [
    (".5", F(1, 2)), ("5.", 5), ("-.5", F(-1, 2)), ("007.50", F(15, 2)), (r"0.\overline{3}", F(1, 3)),
    (r"0.1\bar{6}", F(1, 6)), (r"2.\overline{142857}", F(15, 7)), ("1.2.3", None), (".", None), ("..5", None),
  ],
  "powers of ten": [
    ("4.5e33", 45 * 10**32), ("1e-5", F(1, 10**5)), (r"4.5 \times 10^{33}", 45 * 10**32), ("3x10^5", 300000),
    (r"3\cdot10^5", 300000), ("10^{3}", 1000), ("10^12", 10**12), (r"2 \times 10^{-3}", F(1, 500)), ("3*10**2", 300),
    ("1e99999", None), ("10^{99999}", None), (r"-1.5\times 10^{2}", -150),
  ],
  "signs": [
    ("−5", -5), ("–5", -5), ("+5", 5), ("- 5", -5), ("-$5", -5), ("$-5$", -5), ("--5", None), ("5-", None),
  ],
  "currency and dollars of LaTeX": [
    (r"\$1,000.50", F("1000.5")), ("€5", 5), (r"\(5\)", 5), (r"\[5\]", 5), ("$5$ $6$", None), ("$10$300$", None),
    (r"\mathbf{127}", 127),
  ],
}  # fmt: skip


@pytest.mark.parametrize("text,value", [pair for pairs in ALONE.values() for pair in pairs])
def test_a_number_alone(text, value):
  assert numerals.read(numerals.plain(text).strip()) == value


@pytest.mark.parametrize("digits", range(1, 8))
@pytest.mark.parametrize("separator", [",", " ", "{,}", r"\,", "'"])
def test_separators_group_in_threes_or_not_at_all(digits, separator):
  text = str(10 ** (digits - 1) * 7)
  for width in (1, 2, 3, 4):
    head = len(text) % width or width
    groups = [text[:head], *(text[i : i + width] for i in range(head, len(text), width))]
    same = width == 3 or len(groups) == 1
    assert (numerals.read(numerals.plain(separator.join(groups))) == int(text)) is same


@pytest.mark.parametrize(
  "text,first,last",
  [
    ("10-5", 10, 5),  # no sign: an operand stands before it
    ("10 - 5", 10, 5),
    ("from -3 to -7.5", -3, F(-15, 2)),
    ("2 1/2 apples", F(5, 2), F(5, 2)),
    ("2 and 1/2 apples", F(5, 2), F(5, 2)),
    (r"a $\frac{1}{2}$ or $\frac34$.", F(1, 2), F(3, 4)),
    ("x72 and v2", None, None),
    ("12 000 people, 1,000 each", 12000, 1000),
    ("१२", None, None),
    ("", None, None),
  ],
)
def test_numbers_in_a_text(text, first, last):
  assert (numerals.first(text), numerals.last(text)) == (first, last)


@pytest.mark.parametrize(
  "text,written",
  [
    ("2 1/2x", r"(2+\frac{1}{2})x"), ("4.5e3+x", r"4.5 \cdot 10^{3}+x"), ("1,000x", "1000x"), (".5x", "0.5x"),
    (r"0.\overline{3}x", r"\frac{1}{3}x"), ("10 20", "10 20"), ("x^{2}/3", "x^{2}/3"), ("0.000001x", "0.000001x"),
    (r"\frac{1.}{3}", r"\frac{1}{3}"),
  ],
)  # fmt: skip
def test_numbers_are_spelled_for_a_computer_algebra_system(text, written):
  assert numerals.respelled(numerals.plain(text)) == written
