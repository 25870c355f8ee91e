"""The program itself: how it is started, its help, and what it does with what interrupts it."""

import subprocess
import sys

import pytest
from paths import ROOT

from nrt_jax import __main__
from nrt_jax.commands import flags


def test_module_as_a_program():
  done = subprocess.run([sys.executable, "-m", "nrt_jax", "trian"], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and done.stdout == ""
  allowed = ", ".join(sorted(flags.COMMANDS))
  assert done.stderr == f"nrt-jax: command: found 'trian', allowed: {allowed} (did you mean 'train'?)\n"


def test_help_is_there_at_once():
  """No help waits for jax or transformers, and each shows every flag and an example."""
  code = """
import sys
from nrt_jax.__main__ import main
from nrt_jax.commands.flags import COMMANDS
for argv in (["--help"], *([name, "--help"] for name in COMMANDS)):
  try:
    main(argv)
  except SystemExit as end:
    assert end.code == 0, end.code
heavy = {"jax", "numpy", "transformers", "ml_collections"} & set(sys.modules)
assert not heavy, heavy
"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  for name, command in flags.COMMANDS.items():
    assert f"usage: nrt-jax {name}" in done.stdout
    assert f"example:\n{command.example}" in done.stdout
  for flag in ("--config.KEY=VALUE", "--workdir", "--distributed", "--max_trace_length", "--step", "--dtype"):
    assert flag in done.stdout


def test_setup_installs_the_same_program():
  assert '"nrt-jax = nrt_jax.__main__:main"' in (ROOT / "setup.py").read_text()


def test_interrupt(monkeypatch, capsys):
  from nrt_jax.commands import sample as command

  def interrupted(args):
    raise KeyboardInterrupt

  monkeypatch.setattr(command, "run", interrupted)
  assert __main__.main(["sample", "--model", "x"]) == 130
  assert capsys.readouterr().err == "nrt-jax: interrupted\n"


def test_our_own_bugs_are_not_hidden(monkeypatch):
  from nrt_jax.commands import sample as command

  monkeypatch.setattr(command, "run", lambda args: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    __main__.main(["sample", "--model", "x"])
