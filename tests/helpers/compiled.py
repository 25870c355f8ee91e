"""Reads properties of a compiled program from its text."""

import re

import numpy as np


def while_body_copies(text, elements):
  """Shapes of `copy` instructions of at least so many elements in the bodies of an optimised program's loops."""
  found, computation, bodies = {}, None, set(re.findall(r"body=%?([\w.\-]+)", text))
  for line in text.splitlines():
    start = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line.strip())
    if start:
      computation = start[1]
    copied = re.search(r"= \w+\[([\d,]+)\][^ ]* (?:copy\(|fusion\(.*calls=%?wrapped_copy)", line)
    if copied and np.prod([int(d) for d in copied[1].split(",")]) >= elements:
      found.setdefault(computation, []).append(copied[1])
  return [shape for name, shapes in found.items() if name in bodies for shape in shapes]
