"""Both ways against the installed transformers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from make_reference import MODELS, PAD, VOCAB, make_model, make_tokens  # noqa: E402
from make_reference import compute_logits as compute_theirs  # noqa: E402

from diffjax.conversion.exporting import write_huggingface  # noqa: E402
from diffjax.conversion.importing import read_huggingface  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("model_type", MODELS)
def test_saved_shards_give_equal_logits_and_the_export_loads(model_type, tmp_path, compute_logits):
  model, tokens = make_model(model_type), make_tokens()
  theirs = compute_theirs(model, tokens)
  model.save_pretrained(tmp_path / "source", max_shard_size="40KB")
  assert (tmp_path / "source" / "model.safetensors.index.json").is_file()
  real = tokens != PAD
  ours = compute_logits(tmp_path / "source", tokens)[..., :VOCAB]
  np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4, rtol=0)

  config, contract, params = read_huggingface(tmp_path / "source")
  write_huggingface(tmp_path / "export", config, contract, params)
  loaded, report = transformers.AutoModelForMaskedLM.from_pretrained(
    tmp_path / "export", output_loading_info=True
  )
  assert type(loaded) is type(model)
  assert not any(report.values()), report
  np.testing.assert_array_equal(compute_theirs(loaded.eval(), tokens), theirs)


@pytest.mark.parametrize("model_type", MODELS)
def test_a_bfloat16_export_loads_as_bfloat16(model_type, tmp_path):
  make_model(model_type).save_pretrained(tmp_path / "source")
  write_huggingface(tmp_path / "export", *read_huggingface(tmp_path / "source"), dtype="bfloat16")
  loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "export", dtype="auto")
  assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_stored_reference_is_what_transformers_computes(source):
  model = MODELS[source.config["model_type"]][1].from_pretrained(source.write()).eval()
  np.testing.assert_allclose(compute_theirs(model, source.tokens), source.logits, atol=1e-5)
