"""The docs as a site: every page is in the navigation once, links lead to pages of the site, and it builds.

Only the last needs mkdocs. The others name the page that is at fault.
"""

import importlib.util
import posixpath
import re
import subprocess
import sys

import pytest
import yaml
from pages import PAGES, name_of
from paths import DOCS, ROOT

SPEC = importlib.util.spec_from_file_location("site_hook", DOCS / "site_hook.py")
hook = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hook)


class Loader(yaml.SafeLoader):
  """Reads tags of Python objects as what they are made of."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: loader.construct_mapping(node))
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


def leaves(nav) -> list:
  """The paths of a navigation, from top to bottom."""
  if isinstance(nav, str):
    return [nav]
  return [path for part in (nav.values() if isinstance(nav, dict) else nav) for path in leaves(part)]


def place_of(name: str) -> str:
  """The path in the site's sources of a page of the repository."""
  return name.removeprefix("docs/") if name.startswith("docs/") else f"{hook.PLACE}/{name}"


def test_every_page_is_in_the_navigation_once():
  assert sorted(leaves(SITE["nav"])) == sorted(place_of(name_of(page)) for page in PAGES)
  assert sorted(hook.OUTSIDE) == sorted(name_of(page) for page in PAGES if not page.is_relative_to(DOCS))


def test_nothing_is_loaded_from_elsewhere():
  """No fonts, scripts, styles or pictures of other hosts; and no diagram, for which the theme would load its drawer."""
  assert SITE["theme"]["font"] is False and "extra_javascript" not in SITE and "repo_url" not in SITE
  assert all("://" not in style for style in SITE["extra_css"])
  for page in PAGES:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"!\[[^\]]*\]\(https?:|<(?:script|img|link|iframe)\b|```mermaid", text), page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_the_site_resolve(page):
  places = {place_of(name_of(other)): other for other in PAGES}
  pages = {*places, *(f"results/{path.name}" for path in (DOCS / "results").glob("*.svg"))}
  place = place_of(name_of(page))
  text = hook.relink(page.read_text(encoding="utf-8"), name_of(page), place, pages)
  for _, target in hook.LINK.findall(hook.FENCED.sub("", text)):
    if not re.match(r"[a-z]+:|#", target):
      path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target.partition("#")[0]))
      assert path in pages, f"{place}: {target}"


def test_links_that_leave_docs():
  """To a page they lead to its place in the site; to another file they become text; code stays."""
  pages = {"index.md", "methods/nrt.md", "repository/README.md", "repository/experiments/README.md"}
  text = "[all](../../README.md#where) [`a.py`](../../experiments/a.py) [m](../index.md) [out](https://x.org) [h](#h)"
  shown = "[all](../repository/README.md#where) `a.py` [m](../index.md) [out](https://x.org) [h](#h)"
  code = "\n```text\n[x](../../README.md)\n```\n"
  assert hook.relink(text + code, "docs/methods/nrt.md", "methods/nrt.md", pages) == shown + code
  assert hook.relink("[d](docs/index.md)", "README.md", "repository/README.md", pages) == "[d](../index.md)"
  up = hook.relink("[d](../docs/methods/nrt.md)", "experiments/README.md", "repository/experiments/README.md", pages)
  assert up == "[d](../../methods/nrt.md)"


def test_the_api_pages_name_modules():
  named = re.findall(r"^::: (\S+)$", "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md")), re.MULTILINE)
  assert len(named) > 20 and len(set(named)) == len(named)
  for name in named:
    assert (ROOT / name.replace(".", "/")).with_suffix(".py").is_file(), name


def test_the_site_builds_without_a_warning(tmp_path):
  """As `mkdocs build --strict` does, with the API reference from the docstrings."""
  for package in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(package, reason="the packages of the extra docs are not installed")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert len(list((tmp_path / "site").rglob("*.html"))) >= len(leaves(SITE["nav"]))
  reference = [path.read_text(encoding="utf-8") for path in (tmp_path / "site" / "api").rglob("*.html")]
  assert sum('id="nrt_jax.' in page for page in reference) >= 5
