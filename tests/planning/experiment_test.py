"""What a config asks of the network, without its files."""

from pathlib import Path

import numpy as np
import pytest
from toy_experiment import config, subject

from diffjax import sharding
from diffjax.config import load_config
from diffjax.diffusion import objectives, schedules
from diffjax.models import attention
from diffjax.planning import experiment, topologies
from diffjax.types import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_step_reads_every_row_twice_where_it_is_coupled():
  alone, coupled = subject(diffusion=dict(coupled=False)), subject()
  assert alone.tokens == 32 * 16
  assert coupled.tokens == 2 * alone.tokens
  assert coupled.pairs == coupled.tokens * 16


@pytest.mark.parametrize("section", [{}, dict(num_timesteps=0), dict(schedule="cosine")])
def test_the_scored_share_is_that_of_drawn_times(section):
  config_ = config(diffusion=section)
  planned = experiment.subject(config_)
  objective = objectives.Objective(
    schedule=schedules.make(config_.diffusion.schedule), seed=0, label_smoothing=0.0,
    num_timesteps=config_.diffusion.num_timesteps, weight="linear", normalizer="canvas",
    times="independent", mask_ratio=0.0, coupled=False,
  )  # fmt: skip
  segments = np.ones((1024, 2), np.int32)
  t = objectives.sample_times(
    objectives.purpose_key(0, objectives.TIMES, 0), np.arange(1024, dtype=np.int32), segments,
    rows=1024, kind="independent", schedule=objective.schedule, mask_ratio=0.0,
    num_timesteps=objective.num_timesteps, coupled=False,
  )  # fmt: skip
  drawn = float(np.mean(1 - objective.schedule.alpha(np.asarray(t)[:, 0])))
  assert planned.scored_share == pytest.approx(drawn, abs=0.05)
  assert planned.answers == experiment.USUAL_ANSWERS


def test_plain_text_is_all_answer_and_a_fixed_share_is_itself():
  planned = subject(
    data=dict(tokenizer="none", train=dict(kind="generator_text", limit=8)),
    diffusion=dict(times="fixed", mask_ratio=0.15, coupled=False),
  )
  assert planned.scored == pytest.approx(0.15 * planned.tokens)
  assert experiment.subject(config(), answers=0.5).scored == 2 * subject().scored
  with pytest.raises(UserError, match=r"--answers=1\.5"):
    experiment.subject(config(), answers=1.5)


def test_weights_that_are_not_there_ask_for_a_preset():
  flan = load_config(f"{CONFIGS}/instruct_flan2022.py:xxl")
  with pytest.raises(UserError, match=r"weights/xlm-roberta-xxl does not exist.*--model=xlmr-xxl"):
    experiment.subject(flan)
  planned = experiment.subject(flan, preset="xlmr-xxl")
  assert planned.model.config.layers == 48
  assert planned.model.contract.mask_id < planned.model.config.vocab_size


def test_causal_weights_are_planned_as_they_are_adapted():
  adapted = experiment.subject(load_config(f"{CONFIGS}/adapt_gpt2.py:small"), preset="gpt2")
  assert adapted.annealing.steps > 0
  assert adapted.model.contract.output_shift == 1
  assert adapted.model.config.vocab_size == 50258  # a row for the mask


@pytest.mark.parametrize(
  ("topology", "kernel"), [("v5e:1x1", "splash"), ("v5e:2x2", "splash"), ("h100:1", "cudnn")]
)
def test_the_kernel_is_that_of_the_topology(topology, kernel):
  planned = config(mesh=dict(data=-1, fsdp=1), model=dict(
    vocab_size=512, width=32, layers=3, heads=4, ffn_width=64, max_positions=512, dropout=0.0
  ))  # fmt: skip
  mesh = experiment.absent_mesh(planned, topologies.parse(topology))
  shards = sharding.shards(mesh)
  found = attention.chosen(planned.model, planned.compute, length=512, shards=shards, training=True)
  assert found == kernel


def test_a_mesh_that_does_not_multiply_is_refused():
  with pytest.raises(UserError, match=r"config\.mesh: .* needs 3 devices, there are 8"):
    experiment.absent_mesh(config(mesh=dict(fsdp=3)), topologies.parse("v5e-8"))


def test_other_rows_in_as_many_microbatches():
  assert experiment.with_rows(subject(), 64).rows == 64
  by_tokens = subject(
    data=dict(
      tokenizer="none", train=dict(kind="generator", limit=8), max_length=16, batch_size=64,
      batch_unit="tokens",
    )
  )  # fmt: skip
  assert by_tokens.rows == 4
  assert experiment.with_rows(by_tokens, 8).rows == 8
