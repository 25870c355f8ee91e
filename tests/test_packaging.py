"""What a wheel and a source distribution hold, by setuptools' own word."""

import pathlib
import re
import subprocess
import sys

import pytest
from paths import ROOT

from nrt_jax import __version__

FOLDERS = ("nrt_jax", "tpu_launch", "tests", "experiments", "docs")
MADE = {"__pycache__", ".pytest_cache", ".hypothesis"}


def files(folder: pathlib.Path) -> set:
  """The files below a folder by their path from its parent, but for what Python and the tests leave behind."""
  found = (path.relative_to(folder.parent) for path in folder.rglob("*") if path.is_file())
  return {path.as_posix() for path in found if not MADE & set(path.parts)}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The files of the wheel in lib/, and egg-info, made beside the repository."""
  place = tmp_path_factory.mktemp("built")
  build = ["egg_info", "--egg-base", str(place), "build_py", "--build-lib", str(place / "lib")]
  done = subprocess.run([sys.executable, "setup.py", "-q", *build], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return place


def test_the_wheel_holds_every_file_of_the_package(built):
  assert files(built / "lib" / "nrt_jax") == files(ROOT / "nrt_jax")
  assert [path.name for path in (built / "lib").iterdir()] == ["nrt_jax"]


def test_pages_and_their_styles_are_data_of_the_package(built, tmp_path):
  """In a folder of any depth, though there need not be one yet."""
  (tmp_path / "setup.py").write_text((ROOT / "setup.py").read_text())
  for name in ("README.md", "LICENSE"):
    (tmp_path / name).write_text("")
  deep = tmp_path / "nrt_jax" / "pages"
  (deep / "parts").mkdir(parents=True)
  (tmp_path / "nrt_jax" / "__init__.py").write_text('__version__ = "1"')
  (deep / "__init__.py").write_text("")
  for name in ("page.html", "page.html.jinja", "parts/page.css", "parts/page.js"):
    (deep / name).write_text("")
  command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "lib"]
  subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
  assert files(tmp_path / "lib" / "nrt_jax") == files(tmp_path / "nrt_jax")


def test_the_source_distribution_is_the_repository(built):
  listed = set((built / "nrt_jax.egg-info" / "SOURCES.txt").read_text().split("\n"))
  top = {path.name for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")}
  assert set().union(top, *(files(ROOT / folder) for folder in FOLDERS)) <= listed


def test_what_the_package_says_of_itself(built):
  said = (built / "nrt_jax.egg-info" / "PKG-INFO").read_text(encoding="utf-8")
  entries = (built / "nrt_jax.egg-info" / "entry_points.txt").read_text()
  assert f"\nVersion: {__version__}\n" in said and "nrt-jax = nrt_jax.__main__:main" in entries
  assert re.search(r"^License(-Expression)?: Apache-2.0$", said, re.MULTILINE)
  assert "Apache License\n                           Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
  cited = (ROOT / "CITATION.cff").read_text()
  assert f"\nversion: {__version__}\n" in cited and "\nlicense: Apache-2.0\n" in cited
