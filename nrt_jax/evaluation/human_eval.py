"""HumanEval: from an answer to the program that tells whether the function in it is right (arXiv 2107.03374).

Nothing is run here; sandbox.py does that.
"""

import re
import textwrap

BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
FENCE = re.compile(r"```([^\n`]*)")
DEFINES = re.compile(r"^def\s", re.MULTILINE)
TRIAL = re.compile(r"\n(?=(?:if|print|assert)\b)")  # a line at the margin that uses what was defined before it


def code_of(answer: str) -> str:
  """The last block of code that defines a function, or the last block; the whole answer without one.

  What comes behind a function to try it out is left out, as by the paper's stop sequences: it may be wrong by itself.
  """
  blocks = BLOCK.findall(f"```\n{answer}" if _begins_inside(answer) else answer)
  code = next((one for one in reversed(blocks) if DEFINES.search(one)), blocks[-1] if blocks else answer).strip("\n")
  first = DEFINES.search(code)
  return code if first is None else code[: first.end()] + TRIAL.split(code[first.end() :], maxsplit=1)[0]


def _begins_inside(answer: str) -> bool:
  """Whether the first fence closes a block that the answer begins with: it names no language, and has no partner."""
  fences = list(FENCE.finditer(answer))
  return len(fences) % 2 == 1 and not fences[0][1].strip() and bool(answer[: fences[0].start()].strip())


def program(row: dict, answer: str) -> str:
  """The question's own text, the answer, and the tests. row: `prompt`, `test` and `entry_point`, as published.

  An answer that does not define the function is its body, whose first line may have lost its indentation.
  """
  code, name = code_of(answer), row["entry_point"]
  if not re.search(rf"^def\s+{re.escape(name)}\b", code, re.MULTILINE):
    code = _indented(code)
  return f"{row['prompt'].rstrip()}\n{code}\n\n{row['test']}\n\ncheck({name})\n"


def _indented(code: str) -> str:
  first, *others = code.split("\n")
  if all(line.startswith((" ", "\t")) for line in others if line.strip()):
    return "\n".join([f"    {first.lstrip()}", *others])
  return textwrap.indent(code, "    ")


def normal_form(answer: str) -> str | None:
  """What a majority vote counts an answer as: its code, without blanks at the ends of lines. None without any."""
  return "\n".join(line.rstrip() for line in code_of(answer).split("\n")).strip() or None
