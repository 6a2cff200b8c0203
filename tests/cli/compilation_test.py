"""The compile cache is where it pays, and nowhere else."""

import jax
import pytest

from diffjax.cli import compilation


@pytest.fixture
def settings(monkeypatch):
  """What is set in jax.config; the real one stays as it is."""
  values = {}
  monkeypatch.setattr(jax.config, "update", values.__setitem__)
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  return values


def test_off_on_a_cpu(tmp_path, settings):
  assert compilation.keep_programs(tmp_path) is None
  assert settings == {}


def test_in_the_workdir_on_an_accelerator(tmp_path, settings, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  folder = compilation.keep_programs(tmp_path)
  assert folder == tmp_path / "cache" / "compiled"
  assert settings["jax_compilation_cache_dir"] == str(folder)
  assert not folder.exists()  # a mistake in the config leaves no run behind


def test_where_the_environment_says(tmp_path, settings, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "elsewhere"))
  assert compilation.keep_programs(tmp_path) is None
  assert settings == {}
