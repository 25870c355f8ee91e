"""The layers of the house: which module may import which, and where each third party may be imported."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nrt_jax"

# From the ground up. A module imports only from layers before its own; a new module needs a place here. "x.*" is the
# place of the modules in x that have none of their own.
LAYERS = [
  ["arrays", "errors", "masked", "files", "chat_templates", "hardware", "order", "stopping", "compilations", "nrt_jax"],
  ["sharding", "attention", "ceilings", "quantized_moments"],
  ["kernels", "offload"],
  ["architecture"],
  ["model", "rewards", "advantages", "losses", "rows", "prompts", "readers", "optimizer", "state", "metrics"],
  ["columns", "tasks.grading", "tasks.splits", "tasks.expressions", "tasks.symbolic"],
  ["tasks.*"],
  ["tasks"],
  ["hf_config", "sampler", "scoring", "data", "checkpoint", "lora", "costs"],
  ["hf", "packing", "draws", "continuous"],
  ["algorithms.interface"],
  ["algorithms.policy_gradient"],
  ["algorithms.rlvr", "algorithms.sft", "algorithms.verifier_free"],
  ["algorithms.*"],
  ["algorithms"],
  ["evaluation"],
  ["config"],
  ["policy", "tools"],
  ["throughput", "update"],
  ["programs"],
  ["host_grading"],
  ["workdir"],
  ["training"],
  ["planning", "planning.hlo", "planning.topology", "planning.program"],
  ["planning.collectives", "planning.roofline"],
  ["planning.guess"],
  ["planning.report"],
  ["planning.*"],
  ["benchmark_phases", "benchmark_report"],
  ["benchmark"],
  ["commands.flags", "commands.output"],
  ["commands.configs"],
  ["commands.train", "commands.export"],
  ["commands.*"],
  ["commands"],
  ["__main__"],
]

# Third party -> the only modules that may import it. Those not named here may be imported anywhere.
CONFINED = {
  "orbax": ("checkpoint",),
  "safetensors": ("hf",),
  "transformers": ("hf", "prompts"),
  "tokenizers": ("prompts",),
  "datasets": ("data", "tasks.*"),
  "pyarrow": ("readers",),
  "math_verify": ("tasks.symbolic",),
  "ml_collections": ("commands", "commands.*"),
  "absl": ("commands", "commands.*"),
  "tensorboardX": ("metrics",),
  "flax.linen": ("model",),
  "optax": ("optimizer", "programs", "update"),
  "torch": (),
  "chex": (),
}
OURS_BUT_ABOVE = ("experiments", "tests", "tpu_launch")


def modules():
  """Name below nrt_jax -> file; a package has the name of its folder, the root is "nrt_jax"."""
  found = {}
  for path in sorted(PACKAGE.rglob("*.py")):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    found[".".join(parts) or "nrt_jax"] = path
  return found


def matches(name, pattern):
  return name == pattern or (pattern.endswith(".*") and name.startswith(pattern[:-1]))


def layer_of(name):
  """The number of its layer, or None."""
  for pattern in (name, name.rpartition(".")[0] + ".*"):
    for i, layer in enumerate(LAYERS):
      if pattern in layer:
        return i


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
  wrong = []
  for name, path in files.items():
    if layer_of(name) is None:
      wrong.append(f"{name} has no place of its own in LAYERS of {pathlib.Path(__file__).name}")
      continue
    for imported in imports(path):
      target = own(imported, files)
      if target is not None and (layer_of(target) is None or layer_of(target) >= layer_of(name)):
        wrong.append(f"{name} imports {target}, which is not in a lower layer")
      if imported.split(".")[0] in OURS_BUT_ABOVE:
        wrong.append(f"{name} imports {imported}")
      for party, allowed in CONFINED.items():
        inside = imported == party or imported.startswith(party + ".")
        if inside and not any(matches(name, pattern) for pattern in allowed):
          wrong.append(f"{name} imports {imported}, allowed in: {', '.join(allowed) or 'nothing'}")
  return wrong


def test_layers_and_third_parties():
  files = modules()
  assert len(files) > 20
  assert not offences(files)


@pytest.mark.parametrize(
  "module,line",
  [
    ("masked", "from nrt_jax.model import forward"),
    ("rewards", "from nrt_jax import losses"),  # the same layer
    ("programs", "def late():\n  import nrt_jax.training"),
    ("sampler", "import flax.linen as nn"),
    ("sampler", "from flax import linen"),
    ("metrics", "import orbax.checkpoint"),
    ("training", "from transformers import AutoTokenizer"),
    ("training", "import experiments.quickstart"),
    ("hf", "import torch"),
  ],
)
def test_each_rule_can_fail(tmp_path, module, line):
  bad = tmp_path / "bad.py"
  bad.write_text(line)
  files = {name: path for name, path in modules().items() if layer_of(name) is not None}
  others = {name: path for name, path in files.items() if name != module}
  assert len(offences({**files, module: bad})) == len(offences(others)) + 1


def test_new_module_needs_a_layer(tmp_path):
  (tmp_path / "new.py").write_text("import nrt_jax.model")
  assert "LAYERS" in offences({"new": tmp_path / "new.py"})[0]


def test_no_machine_paths():
  for path in PACKAGE.rglob("*.py"):
    for place in (f"/{top}/" for top in ("work", "home", "root", "tmp", "opt")):
      assert place not in path.read_text(), f"{path}: {place}"
