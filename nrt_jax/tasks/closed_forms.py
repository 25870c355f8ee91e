"""Values of expressions of sympy: how large they get, exact rationals, and comparison where each is one number.

math-verify takes numbers for equal that differ by less than 1e-15, whatever their size, and evaluates what it is given,
however large that is. Here sizes are bounded before anything is evaluated, from the expression's form alone, so that
what is refused doesn't depend on the machine; and differences are relative. Imported in symbolic.py's process only.
"""

import math
from fractions import Fraction

import sympy

MAX_BITS = 2**19  # of a number, numerator and denominator together, that is computed exactly: 2004! has 19,000
MAX_CALLED = 2**12  # bits of what a function such as sin is asked about
MAX_TERMS = 10**4  # of a sum or a product with known limits
DIGITS = 40  # that irrational numbers are computed to
CLOSE = 1e-25  # relative difference of equal numbers
ROUNDED, LAST_DECIMAL = 1e-6, 5e-7  # relative and absolute, where one of both is a decimal: 1.414214 and the root of 2
POINTS = ("7/11", "-13/29", "31/17", "-23/19", "5/3")  # where expressions with variables are compared


class Refused(Exception):
  """The expression may be larger than MAX_BITS."""


def bits(expression) -> int:
  """A bound for the bits of every number that evaluating `expression` meets. Raises Refused above MAX_BITS."""
  size = _bits(expression)
  if size > MAX_BITS:
    raise Refused
  return size


def _bits(e):
  if isinstance(e, sympy.Rational):
    return abs(e.p).bit_length() + e.q.bit_length()
  if isinstance(e, sympy.Float):
    return 64 + abs(int(e._mpf_[2]))
  if isinstance(e, sympy.MatrixBase):
    return sum(map(bits, e.flat()))
  if not isinstance(e, sympy.Basic) or not e.args:
    return 2
  parts = [bits(argument) for argument in e.args if isinstance(argument, (sympy.Basic, sympy.MatrixBase))]
  if isinstance(e, (sympy.Pow, sympy.exp)):
    base, exponent = (parts[0], e.args[1]) if isinstance(e, sympy.Pow) else (2, e.args[0])
    return base * _at_most(exponent, parts[-1]) + parts[-1]
  if isinstance(e, (sympy.factorial, sympy.factorial2, sympy.gamma, sympy.subfactorial)):
    return parts[0] * _at_most(e.args[0], parts[0])
  if isinstance(e, (sympy.binomial, sympy.ff, sympy.rf)):
    return _at_most(e.args[1], parts[1]) * (parts[0] + 1)
  if isinstance(e, (sympy.Sum, sympy.Product)) and any(_terms(*limits) > MAX_TERMS for limits in e.limits):
    raise Refused
  if isinstance(e, (sympy.Function, sympy.Sum, sympy.Product)) and max(parts) > MAX_CALLED:
    raise Refused
  return sum(parts) + len(parts)


def _terms(_, start=sympy.S.Zero, end=sympy.S.Zero):
  first, last = exact(start), exact(end)
  return 0 if first is None or last is None else last - first


def _at_most(e, size):
  """An integer that |e| does not exceed; 1 where it has variables, for then nothing is multiplied out."""
  if e.free_symbols and not isinstance(e, sympy.Integer):
    return 1
  if size > 64:
    raise Refused
  known = exact(e)
  return math.ceil(abs(known)) if known is not None else 2**size


def exact(e) -> Fraction | None:
  """The value of a rational expression; None for others. Only for what `bits` let pass."""
  if isinstance(e, sympy.Rational):
    return Fraction(int(e.p), int(e.q)) if e.q else None
  if isinstance(e, sympy.Float):
    return Fraction(str(e)) if e.is_finite else None  # as it was written: 0.1 is a tenth
  if not isinstance(e, sympy.Expr) or not isinstance(e, RATIONAL):
    return None
  parts = [exact(argument) for argument in e.args]
  return None if None in parts else _computed(e, parts)


RATIONAL = (
  sympy.Add, sympy.Mul, sympy.Pow, sympy.factorial, sympy.binomial, sympy.Abs, sympy.floor, sympy.ceiling,
  sympy.UnevaluatedExpr,
)  # fmt: skip


def _computed(e, parts):
  if isinstance(e, sympy.Add):
    return sum(parts, Fraction(0))
  if isinstance(e, sympy.Mul):
    return math.prod(parts, start=Fraction(1))
  if isinstance(e, sympy.Pow):
    base, exponent = parts
    return base ** int(exponent) if exponent.denominator == 1 and (base or exponent > 0) else None
  if isinstance(e, (sympy.factorial, sympy.binomial)):
    whole = all(part.denominator == 1 and part >= 0 for part in parts)
    of = math.factorial if isinstance(e, sympy.factorial) else math.comb
    return Fraction(of(*map(int, parts))) if whole else None
  if isinstance(e, (sympy.floor, sympy.ceiling)):
    return Fraction(math.floor(parts[0]) if isinstance(e, sympy.floor) else math.ceil(parts[0]))
  return abs(parts[0]) if isinstance(e, sympy.Abs) else parts[0]


def same(reference, found) -> bool | None:
  """Whether two expressions are the same number, or the same at a few points; None where that can't be told so.

  Raises Refused where one of them may be too large to evaluate.
  """
  bits(reference), bits(found)  # before anything is evaluated
  values = exact(reference), exact(found)
  if None not in values:
    return values[0] == values[1]
  if not all(isinstance(e, sympy.Expr) and not e.atoms(sympy.core.function.AppliedUndef) for e in (reference, found)):
    return None
  names = {symbol.name for symbol in reference.free_symbols | found.free_symbols}
  if _is_word(reference) or _is_word(found):
    return None
  rounded = any(e.has(sympy.Float) for e in (reference, found))
  told = [_same_at(reference, found, names, shift, rounded) for shift in range(3 if names else 1)]
  told = [answer for answer in told if answer is not None]
  return all(told) if told else None


def _is_word(e):
  """A text that was read as a name."""
  return isinstance(e, sympy.Symbol) and len(e.name) > 1


def _same_at(reference, found, names, shift, rounded):
  """Whether two expressions have the same value at one point; None where one of them has none there."""
  values = [sympy.Rational(POINTS[(i + shift) % len(POINTS)]) + i // len(POINTS) for i in range(len(names))]
  point = dict(zip(sorted(names), values))
  left, right = (_at(e, point) for e in (reference, found))
  if left is None or right is None:
    return None
  largest, difference = max(abs(left), abs(right)), abs(left - right)
  if rounded:
    return bool(difference <= ROUNDED * largest and difference <= LAST_DECIMAL)
  return bool(difference <= CLOSE * largest)


def _at(e, point):
  """The value of an expression as a number of sympy; None where it is no finite number, or 0 but for rounding."""
  value = e.xreplace({symbol: point[symbol.name] for symbol in e.free_symbols}).evalf(DIGITS)
  return value if value.is_number and value.is_finite and not value.free_symbols and _is_plain(value) else None


def _is_plain(value):
  parts = value.as_real_imag()
  return all(part.is_Number for part in parts) and all(part._prec > 1 for part in parts if part.is_Float)
