r"""Numbers as people and LaTeX write them, read as exact rationals: 9{,}500, 10\,000, 2\frac{1}{2}, 1/3, .5, 4.5e33."""

import re
from fractions import Fraction

VULGAR = dict(zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "1/2 1/3 2/3 1/4 3/4 1/5 2/5 3/5 4/5 1/6 5/6 1/8 3/8 5/8 7/8".split()))
CHARACTERS = str.maketrans(
  {character: f" {fraction} " for character, fraction in VULGAR.items()}
  | dict.fromkeys("−–‒﹣－", "-")
  | dict.fromkeys("\u00a0\u2007\u2009\u202f\t\n", " ")
  | {"⁄": "/", "∕": "/", "’": "'", "×": "\\times ", "·": "\\cdot ", "％": "%", "π": "\\pi ", "∞": "\\infty "}
)
SPELLING = [
  (re.compile(pattern), new)
  for pattern, new in (
    (r"(?<!\\)\\!|\\displaystyle(?![A-Za-z])|\\limits(?![A-Za-z])|(?<!\\)\\[()\[\]](?!\w*pt\])", ""),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\.?", ""),
    (r"\{\s*,\s*\}", ","),
    (r"(?<!\\)\\[,;: >]|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick)?space(?![A-Za-z])|~", " "),
    (r"\\(?:[dtc]|nice|s)frac(?![A-Za-z])", r"\\frac"),
    (r"\\frac\s*([0-9])\s*([0-9])(?![0-9.])", r"\\frac{\1}{\2}"),
    (r"\\frac\s*([0-9])\s*(?=\{)", r"\\frac{\1}"),
    (r"\\frac\s*(\{[^{}]*\})\s*([0-9])", r"\\frac\1{\2}"),
    (r"(?<=[0-9])(?:\s*\\?[$€£¥])+\s*(?=[0-9])", "; "),  # two amounts, not one number
    (r"\\?[$€£¥]", ""),
    (r"\\%", "%"),
    (r"\\(?:mathbf|textbf|mathrm|text|mathit|boldsymbol|bm|mathsf)\s*\{\s*([-+0-9.,]+)\s*\}", r"\1"),
    (r" +", " "),
  )
]
LATEX = re.compile(r"[\\${~£€¥]|  ")

# Digits are grouped in threes, by one kind of separator. A comma behind a list's comma separates, too: 1,7,103.
GROUPED = r"(?<![0-9],)[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+(?!,?[0-9])|(?:(?: [0-9]{3})+|(?:['_][0-9]{3})+)(?![0-9]))"
WHOLE = rf"(?:{GROUPED}|[0-9]+)"
PLAIN = rf"(?>(?:{WHOLE}(?:\.[0-9]*)?|\.[0-9]+)(?!\.?[0-9]))"  # as long as it gets: 1.2.3 has no number in it
POWER = r"10\s*(?:\^|\*\*)\s*(?:\{{\s*(?P<{0}_braced>[+-]?[0-9]{{1,4}})\s*\}}|(?P<{0}>[+-]?[0-9]{{1,4}}))(?![0-9.])"
SIGNED = rf"\s*[+-]?\s*{PLAIN}\s*"
NUMBER = re.compile(
  r"(?P<sign>^[+-] |(?<![\w)}])[+-])?(?<![\w.])(?:"
  rf"{POWER.format('ten')}"
  r"|(?P<repeating>[0-9]*\.[0-9]*)\\(?:overline|bar|dot)\s*\{?(?P<period>[0-9]+)\}?"
  rf"|(?:(?<![\^_])(?P<whole>{WHOLE})(?:\s*(?=\\)|\s+(?P<word>and\s+)?))?"
  rf"(?:\\frac\s*\{{(?P<above>{SIGNED})\}}\s*\{{(?P<below>{SIGNED})\}}"
  rf"|(?P<left>{PLAIN})\s?/\s?(?P<right>{PLAIN}))"
  rf"|(?P<plain>{PLAIN})(?:[eE](?P<exponent>[+-]?[0-9]{{1,4}})(?![\w.])"
  rf"|\s*(?:\\times|\\cdot|\*|x)\s*{POWER.format('times')}|(?![eE][+-]?[0-9])))"
)


POWERS = ("ten_braced", "ten", "exponent", "times_braced", "times")  # groups of NUMBER


def plain(text: str) -> str:
  """The text with one spelling for signs, spaces, fractions and groups of digits, and without marks of currency."""
  text = text.translate(CHARACTERS)
  if LATEX.search(text):
    for pattern, new in SPELLING:
      text = pattern.sub(new, text)
  return text


def decimal(text: str) -> Fraction:
  """The value of what PLAIN or SIGNED matched."""
  return Fraction(int(text)) if text.isdecimal() else Fraction(re.sub(r"[,' _]", "", text).rstrip("."))


def value(match) -> Fraction | None:
  """The value of a match of NUMBER; None for a division by zero. Of 5 3/2, which is no mixed number, the fraction's."""
  if (match["plain"] or "").isdecimal() and match.lastgroup in ("plain", "sign"):  # most are
    size = Fraction(int(match["plain"]))
  else:
    found = match.groupdict()
    size = _fraction(found) if found["above"] or found["left"] else _decimal(found)
  return -size if size is not None and (match["sign"] or "").startswith("-") else size


def _fraction(found):
  above, below = decimal(found["above"] or found["left"]), decimal(found["below"] or found["right"])
  if not below:
    return None
  return above / below + (decimal(found["whole"]) if found["whole"] and mixed(above, below) else 0)


def mixed(above: Fraction, below: Fraction) -> bool:
  """Whether a whole number before this fraction is added to it."""
  return 0 < above < below and above.denominator == below.denominator == 1


def _decimal(found):
  if found["repeating"]:
    shown, period = found["repeating"], found["period"]
    digits = len(shown.partition(".")[2])
    return decimal(f"0{shown}") + Fraction(int(period), (10 ** len(period) - 1) * 10**digits)
  power = next((found[name] for name in POWERS if found[name]), "0")
  return decimal(found["plain"] or "1") * Fraction(10) ** int(power)


def read(text: str) -> Fraction | None:
  """The value of a text that `plain` spelled, if it is one number and nothing else; a mixed number is a sum."""
  match = NUMBER.fullmatch(text)
  if not match or match["word"]:
    return None
  if match["whole"] and not mixed(decimal(match["above"] or match["left"]), decimal(match["below"] or match["right"])):
    return None
  return value(match)


def spelled(size: Fraction) -> str:
  """An exact text, "4" or "-1/3"; in hexadecimal where Python writes no decimals, for it would take too long."""
  short = max(size.numerator.bit_length(), size.denominator.bit_length()) < 4096
  return str(size) if short else f"{size.numerator:#x}/{size.denominator:#x}"


def first(text: str) -> Fraction | None:
  """The first number of a text."""
  match = NUMBER.search(plain(text))
  return match and value(match)


def last(text: str) -> Fraction | None:
  """The last number of a text."""
  match = None
  for match in NUMBER.finditer(plain(text)):
    pass
  return match and value(match)


def respelled(text: str) -> str:
  """The text with its numbers as a computer algebra system reads them; what NUMBER finds in `plain` text."""
  return NUMBER.sub(_respelled, text)


def _respelled(match):
  found, sign = match.groupdict(), match["sign"] or ""
  if found["above"] or found["left"]:
    above, below = (decimal(found[a] or found[b]) for a, b in (("above", "left"), ("below", "right")))
    fraction = f"\\frac{{{_written(above)}}}{{{_written(below)}}}"
    if not found["whole"]:
      return sign + fraction
    return f"{sign}({_written(decimal(found['whole']))}+{fraction})" if mixed(above, below) else match[0]
  if found["repeating"]:
    size = _decimal(found)
    return f"{sign}\\frac{{{size.numerator}}}{{{size.denominator}}}"
  power = next((found[name] for name in POWERS if found[name]), None)
  before = [_written(decimal(found["plain"]))] if found["plain"] else []
  return sign + " \\cdot ".join([*before, *([] if power is None else [f"10^{{{int(power)}}}"])])


def _written(size):
  """A decimal without exponent."""
  if size.denominator == 1:
    return str(size.numerator)
  digits = max(size.denominator.bit_length(), 1)  # 10^digits is a multiple of 2^a 5^b with a, b below it
  scaled = str(abs(size) * 10**digits).rjust(digits + 1, "0")
  return ("-" if size < 0 else "") + f"{scaled[:-digits]}.{scaled[-digits:]}".rstrip("0")
