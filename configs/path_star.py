"""Path-star graphs: diffusion finds the path, the autoregressive control guesses the arm.

  diffjax train --config=configs/path_star.py:diffusion --workdir=runs/path_star
  diffjax train --config=configs/path_star.py:autoregressive --workdir=runs/path_star_autoregressive
  diffjax evaluate --model=runs/path_star --split=test --num-steps=4
  diffjax evaluate --model=runs/path_star_autoregressive --split=test

Three arms of four nodes, from scratch; both have the same size, data, batches and steps. Every
other layer sees one position to either side, which brings the two nodes of an edge together: three
layers of the same width without that had not learnt to look an edge up after 3000 steps.

Hardware: 2 CPU cores; 7 to 8 minutes each on cores shared with other work.
Expected: exact match 99.9 and 31.6 on 1000 test stars (a guess: 33.3); docs/generation_order.md.
"""

from ml_collections import ConfigDict

PROCESSES = {
  "diffusion": dict(coupled=False),
  "autoregressive": dict(
    process="next_token", attention="causal", coupled=False, weight="constant"
  ),
}


def get_config(process: str) -> ConfigDict:
  source = lambda split, limit: dict(
    kind="path_star", arms=3, arm_length=4, split=split, limit=limit
  )
  config = ConfigDict()
  config.model = dict(
    width=64, layers=4, heads=4, ffn_width=128, dropout=0.0, window=1, global_every=2
  )
  config.data = dict(
    tokenizer="tiny_mlm",
    train=source("train", 100_000),
    validation=source("validation", 200),
    test=source("test", 1000),
    max_length=37,  # of every row, by construction
    batch_size=64,
  )
  if process == "autoregressive":
    config.data.end_padding = 1  # it writes its own </s>
  config.diffusion = PROCESSES[process]
  config.optimizer = dict(learning_rate=2e-3, warmup_steps=100, decay="cosine")
  config.training = dict(steps=1500, log_every=100, eval_every=500, checkpoint_every=500)
  config.evaluation = dict(metric="exact_match", examples=100, num_steps=4, batch_size=50)
  return config
