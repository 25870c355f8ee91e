"""JSON as it is written: whole files, lines that an interrupted writer may have cut off, what processes write at once.

Other files that are written as a whole are tested where they are used.
"""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT
from strict_json import strict

from nrt_jax.files import (
  append_json_line,
  fill_directory,
  json_safe,
  os_error,
  read_json_lines,
  write_json,
  write_text,
  writing,
)


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path):
  path = tmp_path / "lines.jsonl"
  assert read_json_lines(path) == []
  append_json_line(path, {"a": 1})
  with open(path, "a") as file:
    file.write('{"a": ')
  with open(path, "ab") as file:
    file.write('"\u00e9'.encode()[:-1])  # cut off within a character
  assert read_json_lines(path) == [{"a": 1}]
  append_json_line(path, {"a": float("nan"), "b": (1, 2)})
  append_json_line(path, {"a": 3})
  assert read_json_lines(path) == [{"a": 1}, {"a": None, "b": [1, 2]}, {"a": 3}]


@pytest.mark.parametrize(
  "error, number, name",
  [
    (ValueError("Failed writing: /d/0d57: No space left on device [os_error_code='28']"), errno.ENOSPC, "p"),
    (Exception("I/O error: No space left on device (os error 28)"), errno.ENOSPC, "p"),
    (OSError(errno.EDQUOT, "quota"), errno.EDQUOT, "p"),
    (OSError(errno.ENOSPC, "full", "from", None, "to"), errno.ENOSPC, "to"),  # as shutil.copyfile reports it
    (OSError("no number"), None, None),
    (ValueError("no error of the system at all: 28"), None, None),
  ],
)
def test_errors_of_the_system_are_found_in_those_of_libraries(error, number, name):
  found = os_error(error, "p")
  assert (found and (found.errno, found.filename)) == (number and (number, name))
  with pytest.raises(type(error) if number is None else OSError), writing("p"):
    raise error


def test_what_cannot_be_written_leaves_no_half_of_it(tmp_path):
  path = tmp_path / "x.json"
  write_json(path, 1)
  with pytest.raises(ValueError), writing(path):
    write_text(path, "\ud800")  # half a character
  assert path.read_text() == "1\n" and os.listdir(tmp_path) == ["x.json"]


APPEND = """
import sys
from nrt_jax.files import append_json_line
for number in range(20):  # each longer than a buffer
  append_json_line(sys.argv[1], {"process": int(sys.argv[2]), "number": number, "text": "\u00e9" * 20000})
"""


def test_processes_append_to_one_file(tmp_path):
  path = str(tmp_path / "lines.jsonl")
  programs = [subprocess.Popen([sys.executable, "-c", APPEND, path, str(number)], cwd=ROOT) for number in range(3)]
  assert [program.wait() for program in programs] == [0, 0, 0]
  found = sorted((line["process"], line["number"]) for line in read_json_lines(path))
  assert found == [(process, number) for process in range(3) for number in range(20)]


def write_two(directory: str, text: str = "one") -> None:
  for name in ("a", "b"):
    with open(os.path.join(directory, name), "w") as file:
      file.write(text)


def test_a_directory_is_filled_once_and_anew_if_it_differs(tmp_path):
  path = str(tmp_path / "model")
  fill_directory(path, write_two)
  before = os.stat(os.path.join(path, "a")).st_ino
  fill_directory(path, write_two)
  assert os.stat(os.path.join(path, "a")).st_ino == before and sorted(os.listdir(path)) == ["a", "b"]
  fill_directory(path, lambda directory: write_two(directory, "two"))
  with open(os.path.join(path, "b")) as file:
    assert file.read() == "two"
  assert sorted(os.listdir(tmp_path)) == ["model", "model.lock"]


def test_json_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / "config.json"
  write_json(path, {"a": (1, 2), "b": float("nan"), "c": np.float32(0.5), "text": "é"})
  assert strict(path.read_text(encoding="utf-8")) == {"a": [1, 2], "b": None, "c": 0.5, "text": "é"}
  before = path.read_bytes()
  with pytest.raises(TypeError):
    write_json(path, {"a": object()})
  assert path.read_bytes() == before and os.listdir(tmp_path) == ["config.json"]


def test_json_safe_leaves_plain_values_alone():
  value = {"a": [1, 2.5, "x", None, True], "b": {"c": []}}
  assert json_safe(value) == value
  assert json_safe({1: np.arange(3), "d": np.bool_(True)}) == {"1": [0, 1, 2], "d": True}
