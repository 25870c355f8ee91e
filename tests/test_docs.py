"""The docs match the code: links resolve, every folder is listed, and the examples run and print what is shown.

The ```python blocks of a page run in order, in one module. A ```text block directly after one is its output, with
numbers up to rounding.
"""

import contextlib
import importlib.util
import io
import json
import re
import sys
import types

import pytest
from order import ORDER
from pages import PAGES
from paths import DOCS, ROOT

from nrt_jax import config
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.environments.table import ENVIRONMENTS
from nrt_jax.model import architecture
from nrt_jax.model.hf_families import FAMILIES
from nrt_jax.objectives import rewards
from nrt_jax.tasks import table as tasks

TABLES = (ALGORITHMS, ENVIRONMENTS, rewards.AGGREGATIONS, tasks.TASKS, tasks.GRADERS, tasks.NORMAL_FORMS, FAMILIES)
NUMBER = re.compile(r"-?\d+\.\d*(?:e-?\d+)?")


def run_blocks(text: str, name: str) -> types.ModuleType:
  """Runs the python blocks of a page in one module and compares what each prints with the text block behind it."""
  module = types.ModuleType(name)
  sys.modules[name] = module  # where dataclasses look up their annotations
  try:
    for code, shown in re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", text, re.DOTALL):
      printed = io.StringIO()
      with contextlib.redirect_stdout(printed):
        exec(compile(code, name, "exec"), module.__dict__)
      require_alike(printed.getvalue(), shown)
  finally:
    del sys.modules[name]
  return module


def require_alike(printed: str, shown: str) -> None:
  """Equal but for white space and the last of four decimals, which differs between CPUs."""
  assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", shown).split(), f"printed:\n{printed}"
  found, expected = ([float(n) for n in NUMBER.findall(text)] for text in (printed, shown))
  assert found == pytest.approx(expected, abs=1.5e-4, rel=0), f"printed:\n{printed}"


@pytest.fixture
def tables():
  """The tables that pages add rows to, as they were afterwards."""
  saved = [(table, dict(table)) for table in TABLES]
  yield
  for table, rows in saved:
    table.clear()
    table.update(rows)


@pytest.fixture(scope="module")
def one_step():
  return run_blocks((DOCS / "one_step.md").read_text(), "docs_one_step")


def anchor(heading: str) -> str:
  """As GitHub makes it."""
  return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(page):
  text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
  for target in re.findall(r"\]\(([^)\s]+)\)", text):
    if re.match(r"[a-z]+:", target):
      continue  # the network is not asked
    path, _, fragment = target.partition("#")
    linked = (page.parent / path).resolve() if path else page
    assert linked.exists(), f"{page.name}: {target}"
    assert linked.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
    if fragment:
      headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
      assert fragment in map(anchor, headings), f"{page.name}: {target}"


def test_pages_exist():
  names = {page.name for page in PAGES}
  assert {"index.md", "one_step.md", "add_a_method.md", "equations.md", "decisions.md", "configuration.md"} <= names


def test_pages_name_no_machine():
  for page in PAGES:
    for place in (f"/{top}/" for top in ("work", "home", "root", "tmp", "opt")):
      assert place not in page.read_text(), f"{page}: {place}"


def test_folders_are_those_of_the_tree():
  """In the order of tests/test_imports.py, which is from the ground up."""
  tree = re.search(r"```text\nnrt_jax/\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
  drawn = re.findall(r"^  (\w+)/ +\w", tree, re.MULTILINE)
  files = re.findall(r"\w+\.py", " ".join(re.findall(r"^  (\w+\.py.*)$", tree, re.MULTILINE)))
  package = ROOT / "nrt_jax"
  assert set(drawn) == {path.parent.name for path in package.glob("*/__init__.py")}
  assert {*files, "__init__.py"} == {path.name for path in package.glob("*.py")}
  place = {name: i for i, line in enumerate(ORDER) for name in line}
  assert [place[name] for name in drawn] == sorted(place[name] for name in drawn)


def test_configuration_is_up_to_date():
  spec = importlib.util.spec_from_file_location("make_configuration", DOCS / "make_configuration.py")
  maker = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(maker)
  again = "run: python docs/make_configuration.py"
  assert maker.page() == (DOCS / "configuration.md").read_text(encoding="utf-8"), again


def test_configuration_points_at_nothing_that_is_not_here():
  """Files that keys' comments name exist, and no default ends a cell of its table."""
  page = (DOCS / "configuration.md").read_text(encoding="utf-8")
  for name in re.findall(r"[\w./]+\.(?:md|py|json)\b", page):
    assert any(path.name == name.split("/")[-1] for path in ROOT.rglob(f"*{name.split('/')[-1]}")), name
  rows = [line for line in page.splitlines() if line.startswith("| `")]
  assert len(rows) > 200 and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}


def test_one_step_prints_what_it_shows(one_step):
  assert one_step.policy.step == 1


def test_every_metric_of_a_step_is_explained(one_step):
  named = (DOCS / "index.md").read_text()
  for name in [*one_step.sums, *one_step.collected.sums]:
    assert f"`{name}`" in named or name.startswith("tokens/"), f"docs/index.md says nothing of {name}"


def test_interpreters_print_what_is_shown():
  assert run_blocks((DOCS / "interpreters.md").read_text(), "docs_interpreters").limits.steps == 100


def test_add_a_method_runs(tables):
  run_blocks((DOCS / "add_a_method.md").read_text(), "docs_add_a_method")
  assert "best_trace" in ALGORITHMS


def test_add_a_task_prints_what_it_shows(tables):
  run_blocks((DOCS / "add_a_task.md").read_text(), "docs_add_a_task")
  assert "clock" in tasks.TASKS


def test_add_a_model_prints_what_it_shows(tables, monkeypatch):
  monkeypatch.setattr(architecture, "FAMILIES", architecture.FAMILIES)  # put back afterwards
  run_blocks((DOCS / "add_a_model.md").read_text(), "docs_add_a_model")
  assert "toy" in architecture.FAMILIES


def test_environments_run(tables):
  run_blocks((DOCS / "environments.md").read_text(), "docs_environments")
  assert "adder" in ENVIRONMENTS


def test_families_print_what_they_show():
  assert run_blocks((DOCS / "families.md").read_text(), "docs_families").task.n_steps == 2


def test_stages_print_what_they_show():
  assert run_blocks((DOCS / "stages.md").read_text(), "docs_stages").run.optimizer.carry_moments


def test_what_shows_reproducibility_is_a_test():
  """Every command of the page names a test, or a file of them, that is there."""
  named = re.findall(r"python -m pytest (tests/[\w/]+\.py)(?:::(\w+))?", (DOCS / "reproducibility.md").read_text())
  assert len(named) > 10
  for path, name in named:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert f"\ndef {name or 'test_'}" in text and (not name or f"\ndef {name}(" in text), f"{path}::{name}"


def test_config_listings_of_the_equations_are_valid():
  """Each listing is laid over the defaults; a misspelt key or choice raises UserError."""
  listings = re.findall(r"```json\n(.*?)```", (DOCS / "equations.md").read_text(), re.DOTALL)
  assert len(listings) >= 5
  for listing in listings:
    config.stages_of(json.loads(listing))


def test_checks_can_fail():
  with pytest.raises(AssertionError):
    require_alike("a 0.5001", "a 0.5004")
  with pytest.raises(AssertionError):
    require_alike("a 0.5", "b 0.5")
  with pytest.raises(AssertionError):
    run_blocks("```python\nprint(1)\n```\n\n```text\n2\n```\n", "docs_bad")
