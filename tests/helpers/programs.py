"""Random programs of both languages, of which many loop, and many end."""

import numpy as np

from nrt_jax.interpreters import batching, befunge, brainfuck

STRAIGHT = brainfuck.encode("><+++--..,,")
BEFUNGE = '0123456789`><v^?_|":$,#gp&~@ ' + 3 * "+-*/%!:\\" + 8 * "."  # with weights


def brainfuck_program(draw, size: int, depth: int = 4) -> list[int]:
  """About `size` instructions with brackets that match, nested up to `depth`; in one case of 20 any ids at all."""
  if draw.random() < 0.05:
    return [draw.randrange(-1, 9) for _ in range(size)]
  return _block(draw, size, depth)


def _block(draw, size, depth):
  found = []
  while len(found) < size:
    room = size - len(found) - 2
    if depth and room > 0 and draw.random() < 0.25:
      found += [brainfuck.OPEN, *_block(draw, draw.randrange(room), depth - 1), brainfuck.CLOSE]
    else:
      found.append(draw.choice(STRAIGHT))
  return found


def befunge_program(draw, width: int, height: int) -> list[int]:
  """Lines of random instructions; in one case of 20 any ids at all, in another lines that may be too wide or many."""
  kind = draw.random()
  if kind < 0.05:
    return [draw.randrange(-1, befunge.NEWLINE + 3) for _ in range(draw.randrange(20))]
  more = 1 if kind < 0.1 else 0
  lines = [draw.choices(BEFUNGE, k=draw.randrange(width + 1 + more)) for _ in range(draw.randrange(height + more) + 1)]
  return befunge.encode("\n".join(map("".join, lines)))


def rows(programs, inputs) -> tuple:
  """Programs and inputs as the arguments of the JAX interpreters: ids, lengths, inputs, lengths."""
  sizes = [max(map(len, some), default=0) for some in (programs, inputs)]
  return (*batching.padded(programs, sizes[0]), *batching.padded(inputs, sizes[1]))


def outcomes(found) -> list[tuple]:
  """The runs of a batch as the Python interpreters return them. What lies behind an output must be 0."""
  output_NO, *rest = map(np.asarray, found)
  columns = [a.tolist() for a in rest]
  outputs = [tuple(row[:n].tolist()) for row, n in zip(output_NO, columns[0])]
  assert all(not row[n:].any() for row, n in zip(output_NO, columns[0]))
  return list(zip(outputs, *columns))


def makers_in_loops(jaxpr, shape: tuple) -> list[str]:
  """The names of the primitives in the bodies of while loops that make an array of this shape."""
  found = []
  for equation in jaxpr.eqns:
    inner = [p for p in map(_jaxpr_of, equation.params.values()) if p is not None]
    if equation.primitive.name == "while":
      body = _jaxpr_of(equation.params["body_jaxpr"])
      found += [e.primitive.name for e in body.eqns if any(v.aval.shape == shape for v in e.outvars)]
    found += [name for one in inner for name in makers_in_loops(one, shape)]
  return found


def _jaxpr_of(param):
  """The jaxpr in a parameter of an equation, if it is one."""
  param = getattr(param, "jaxpr", param)
  return param if hasattr(param, "eqns") else None
