"""Installs nrt_jax, its dependencies and the command `nrt-jax`."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent

setup(
  name="nrt_jax",
  version=re.search(r'__version__ = "(.+)"', (ROOT / "nrt_jax" / "__init__.py").read_text()).group(1),
  description="Teaches language models to reason without a verifier, as one sharded XLA program",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  classifiers=[
    "Development Status :: 3 - Alpha",
    "Environment :: Console",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3 :: Only",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
  packages=find_packages(include=["nrt_jax", "nrt_jax.*"]),
  # Whatever pages are made of; tests/test_packaging.py fails where a file of nrt_jax/ is left out.
  package_data={"nrt_jax": ["**/*.html", "**/*.jinja", "**/*.css", "**/*.js"]},
  python_requires=">=3.11",
  install_requires=[
    "jax>=0.10.1",
    "flax>=0.12",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12",
    "transformers>=5",
    "jinja2>=3.1.6",  # chat templates; transformers asks for it only when one is used
    "tokenizers",
    "datasets>=4",
    "safetensors",
    "ml_collections>=1.0",
    "absl-py",
    "numpy>=2",
    "httpx2>=2.12",  # judges behind an endpoint; small, and a dependency of the newest huggingface_hub anyway
    "tensorboardX",
  ],
  extras_require={
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    "sentencepiece": ["sentencepiece"],  # for model directories with tokenizer.model alone, without tokenizer.json
    "eval": ["math-verify", "lm-eval>=0.4.13"],  # equivalence of mathematical answers; lm-evaluation-harness
    "report": ["vl-convert-python>=1.9"],  # Vega-Lite and its JavaScript, for plots in the pages of `report --html`
    "wandb": ["wandb>=0.31"],
    # MLflow's client and, for a local file as its store, what its skinny package leaves out.
    "mlflow": ["mlflow-skinny>=3", "sqlalchemy", "alembic", "sqlparse"],
    "gcs": ["gcsfs>=2026.7"],  # workdirs in a bucket of Cloud Storage, by their URLs
    "launch": ["pyyaml"],  # tpu_launch reads descriptions in YAML
    "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"],  # the pages of docs/ as a site: mkdocs.yml
    # torch is what the model's parity tests compare with. A fixed version, so that a CPU build of it, installed
    # beforehand, is kept instead of replaced by the newest build and its gigabytes of CUDA libraries.
    # The harness is compared with its Hugging Face backend, which needs accelerate and peft. Trackers are tried offline,
    # gcsfs against a server on this machine.
    "test": [
      "pytest>=8",
      "pytest-xdist>=3.5",
      "hypothesis>=6.100",
      "torch==2.13.0",
      "lm-eval>=0.4.13",
      "accelerate",
      "peft",
      "gcsfs>=2026.7",
      "vl-convert-python>=1.9",
      "wandb>=0.31",
      "mlflow-skinny>=3",
      "sqlalchemy",
      "alembic",
      "sqlparse",
      "mkdocs-material>=9.6",  # the site is built, too
      "mkdocstrings[python]>=0.29",
    ],
  },
  entry_points={"console_scripts": ["nrt-jax = nrt_jax.__main__:main"]},
)
