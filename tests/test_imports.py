"""Import rules: which folder may import which, and where third-party packages may be imported."""

import ast

import pytest
from order import ORDER
from paths import ROOT

PACKAGE = ROOT / "nrt_jax"

# Third party -> the only modules or folders that may import it. Those not named here may be imported anywhere.
CONFINED = {
  "orbax": ("records.checkpoint",),
  "fsspec": ("buckets",),
  "gcsfs": ("buckets",),
  "safetensors": ("model.hf_weights",),
  "transformers": ("model.hf_weights", "data.prompts", "data.endings"),
  "tokenizers": ("data.prompts", "data.control_tokens"),
  "datasets": ("data.sources", "tasks"),
  "pyarrow": ("data.readers",),
  "httpx2": ("evaluation.judging.endpoint",),
  "math_verify": ("tasks.symbolic",),
  "lm_eval": ("harness", "commands.harness"),
  "ml_collections": ("commands",),
  "absl": ("commands",),
  "tensorboardX": ("records.trackers",),
  "wandb": ("records.trackers",),
  "mlflow": ("records.trackers",),
  "flax.linen": ("model.decoder",),
  "optax": ("optimizers", "step.programs", "step.update"),
  "vl_convert": ("reporting.charts",),
  "jinja2": ("reporting.page",),
  "torch": (),
  "chex": (),
}
OURS_BUT_ABOVE = ("experiments", "tests", "tpu_launch")


def modules():
  """Name below nrt_jax -> file; a folder's __init__ has the folder's name, the root is "nrt_jax"."""
  found = {}
  for path in sorted(PACKAGE.rglob("*.py")):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    found[".".join(parts) or "nrt_jax"] = path
  return found


def place_of(name):
  """The line of ORDER that a module's folder stands on, or None."""
  return next((i for i, line in enumerate(ORDER) if name.split(".")[0] in line), None)


def imports(path):
  """Full dotted names of everything that a file imports, wherever in the file it does."""
  names = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names += [f"{node.module}.{alias.name}" for alias in node.names]
  return names


def own(name, known):
  """The module of ours that an imported name stands for, or None."""
  if name.split(".")[0] != "nrt_jax":
    return None
  parts = name.split(".")[1:]
  while parts and ".".join(parts) not in known:
    parts = parts[:-1]  # the tail is a name inside the module
  return ".".join(parts) or "nrt_jax"


def offences(files):
  """Every import that breaks a rule, as text."""
  wrong, inside = [], {}
  for name, path in files.items():
    if place_of(name) is None:
      wrong.append(f"{name} has no place in ORDER of tests/helpers/order.py")
      continue
    for imported in imports(path):
      target = own(imported, files)
      if target is not None and target.split(".")[0] == name.split(".")[0]:
        inside.setdefault(name, set()).add(target)
      elif target is not None and (place_of(target) is None or place_of(target) >= place_of(name)):
        wrong.append(f"{name} imports {target}, which is not below it")
      if imported.split(".")[0] in OURS_BUT_ABOVE:
        wrong.append(f"{name} imports {imported}")
      for party, allowed in CONFINED.items():
        if f"{imported}.".startswith(f"{party}.") and not any(f"{name}.".startswith(f"{place}.") for place in allowed):
          wrong.append(f"{name} imports {imported}, allowed in: {', '.join(allowed) or 'nothing'}")
  return wrong + circles(inside)


def circles(inside):
  """The modules of which one arrives at themselves by following imports inside their folder."""
  wrong = []
  for name in inside:
    seen, ahead = set(), set(inside[name])
    while ahead:
      at = ahead.pop()
      seen.add(at)
      ahead |= inside.get(at, set()) - seen
    if name in seen:
      wrong.append(f"{name} imports itself, in a circle inside its folder")
  return wrong


def test_folders_and_third_parties():
  files = modules()
  assert len(files) > 60
  assert not offences(files)


@pytest.mark.parametrize(
  "module,line",
  [
    ("objectives.masked", "from nrt_jax.model.decoder import forward"),
    ("objectives.masked", "from nrt_jax.optimizers import update_rule"),  # the same line of ORDER
    ("objectives.masked", "import nrt_jax.objectives.masked"),  # itself: the smallest circle
    ("step.programs", "def late():\n  import nrt_jax.training"),
    ("rollout.sampler", "import flax.linen as nn"),
    ("rollout.sampler", "from flax import linen"),
    ("records.metrics", "import orbax.checkpoint"),
    ("training", "from transformers import AutoTokenizer"),
    ("training", "import experiments.quickstart"),
    ("model.hf_weights", "import torch"),
  ],
)
def test_each_rule_can_fail(tmp_path, module, line):
  bad = tmp_path / "bad.py"
  bad.write_text(line)
  found = offences({**modules(), module: bad})
  assert found and all(fault.startswith(f"{module} ") for fault in found)


def test_a_circle_inside_a_folder_is_found(tmp_path):
  first, second = tmp_path / "first.py", tmp_path / "second.py"
  first.write_text("from nrt_jax.model import second")
  second.write_text("from nrt_jax.model import first")
  found = offences({"model.first": first, "model.second": second})
  assert len(found) == 2 and all("circle" in fault for fault in found)


def test_a_new_folder_needs_a_place(tmp_path):
  (tmp_path / "new.py").write_text("import nrt_jax.training")
  assert "ORDER" in offences({"new.thing": tmp_path / "new.py"})[0]


def test_a_folder_is_introduced_by_one_docstring():
  for folder in {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}:
    (only,) = ast.parse((folder / "__init__.py").read_text()).body
    assert isinstance(only.value.value, str), folder


def test_no_machine_paths():
  for path in PACKAGE.rglob("*.py"):
    for place in (f"/{top}/" for top in ("work", "home", "root", "tmp", "opt")):
      assert place not in path.read_text(), f"{path}: {place}"
