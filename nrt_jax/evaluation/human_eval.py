"""HumanEval: from an answer to the program that tells whether the function in it is right (arXiv 2107.03374).

Nothing is run here; sandbox.py does that.
"""

import re
import textwrap

FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def code_of(answer: str) -> str:
  """What stands in the last block of code; the whole answer without one."""
  blocks = FENCE.findall(answer)
  return blocks[-1].strip("\n") if blocks else answer.strip("\n")


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
