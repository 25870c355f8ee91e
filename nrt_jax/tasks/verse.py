"""Verse continuation: lines of a poem, and the lines that follow. There is no right answer, so nothing is graded."""

import dataclasses
import functools
import pathlib

from nrt_jax import errors
from nrt_jax.tasks import splits


@dataclasses.dataclass(frozen=True)
class Verse:
  """Pairs of consecutive blocks of lines within a stanza of a UTF-8 text file. Blank lines separate stanzas.

  The pairs don't overlap. The last tenth of the stanzas is the test split, without pairs that share a half with a pair
  of the training split (a refrain).
  """

  split: str = "train"  # "train" or "test", by position in the file
  path: str = ""  # the text file
  question_lines: int = 4  # lines shown
  answer_lines: int = 4  # lines of the answer

  grade = None  # unverifiable

  def __post_init__(self):
    errors.require_choice("data.split", self.split, splits.SPLITS)
    splits.require(self, "path", bool(self.path), "a text file")
    splits.require(self, "question_lines", self.question_lines >= 1, "1 or more")
    splits.require(self, "answer_lines", self.answer_lines >= 1, "1 or more")

  @functools.cached_property
  def _pairs(self) -> tuple:
    stanzas = _read_stanzas(self.path)
    boundary = len(stanzas) - max(1, len(stanzas) // splits.TEST_SHARE)
    pairs = self._cut(stanzas[:boundary])
    if self.split == "test":
      seen = {half for pair in pairs for half in pair}
      pairs = [pair for pair in self._cut(stanzas[boundary:]) if not seen.intersection(pair)]
    if not pairs:
      size = self.question_lines + self.answer_lines
      raise errors.UserError(f"data.task_options.path: {self.path}: no {self.split} stanza has {size} lines")
    return tuple(pairs)

  def _cut(self, stanzas):
    size, pairs = self.question_lines + self.answer_lines, []
    for lines in stanzas:
      for start in range(0, len(lines) - size + 1, size):
        middle = start + self.question_lines
        pairs.append(("\n".join(lines[start:middle]), "\n".join(lines[middle : start + size])))
    return pairs

  @property
  def length(self) -> int:
    """The number of pairs in the split."""
    return len(self._pairs)

  @property
  def words(self) -> tuple[str, ...]:
    """All words of the split's pairs, sorted."""
    return tuple(sorted({word for pair in self._pairs for half in pair for word in half.split()}))

  def example(self, index: int) -> tuple[str, str, None]:
    """Pair `index` in the order of the file. Raises IndexError from `length` on."""
    return *self._pairs[index], None

  def chance(self) -> None:
    """No answer is right or wrong."""


def _read_stanzas(path):
  """Reads the file as stanzas, lists of lines without trailing whitespace."""
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8-sig")
  except OSError as error:
    raise errors.UserError(f"data.task_options.path: {path}: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise errors.UserError(f"data.task_options.path: {path}: not UTF-8 text") from error
  stanzas, lines = [], []
  for line in [*text.splitlines(), ""]:
    if line.strip():
      lines.append(line.rstrip())
    elif lines:
      stanzas.append(lines)
      lines = []
  return stanzas
