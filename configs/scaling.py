"""A scaling study on the built-in tasks: four sizes, two starts, two processes, all else equal.

The argument is SIZE-START-PROCESS: tiny, small, medium or base; scratch, adapted, or pretraining
(on plain text, what adapted starts from); diffusion or autoregressive. tiny-adapted-diffusion
starts from the shipped tiny masked LM, any other adapted run from runs/scaling/SIZE-pretraining-
PROCESS, which must be trained first.

  diffjax train --config=configs/scaling.py:tiny-scratch-diffusion \\
    --workdir=runs/scaling/tiny-scratch-diffusion
  diffjax train --config=configs/scaling.py:tiny-adapted-diffusion \\
    --workdir=runs/scaling/tiny-adapted-diffusion
  diffjax train --config=configs/scaling.py:small-pretraining-diffusion \\
    --workdir=runs/scaling/small-pretraining-diffusion
  diffjax evaluate --model=runs/scaling/tiny-scratch-diffusion
  diffjax report runs/scaling/tiny-scratch-diffusion runs/scaling/tiny-adapted-diffusion

Only the learning rate follows the size (1.5e-3 at width 128, falling with its square root).
Files of your own in place of the built-in data: --config.data.train.kind=jsonl and so on.

Hardware: tiny: 2 CPU cores, about 12 minutes a run by the quickstart's speed; larger ones want an
accelerator. Not run as a whole. Expected: not measured; in the paper (2308.12219) adapted beats
scratch, and larger beats smaller.
"""

from ml_collections import ConfigDict

SIZES = {
  "tiny": dict(width=128, layers=5, heads=4, ffn_width=512),
  "small": dict(width=256, layers=6, heads=4, ffn_width=1024),
  "medium": dict(width=512, layers=8, heads=8, ffn_width=2048),
  "base": dict(width=768, layers=12, heads=12, ffn_width=3072),
}
PROCESSES = {
  "diffusion": dict(coupled=False),
  "autoregressive": dict(
    process="next_token", attention="causal", coupled=False, weight="constant"
  ),
}
STARTS = ("scratch", "adapted", "pretraining")


def get_config(argument: str = "tiny-scratch-diffusion") -> ConfigDict:
  size, _, rest = argument.partition("-")
  start, _, process = rest.partition("-")
  if start not in STARTS:
    raise KeyError(start)
  config = ConfigDict()
  config.model = dict(SIZES[size], dropout=0.0)
  config.diffusion = dict(PROCESSES[process])
  config.data = dict(tokenizer="tiny_mlm", batch_size=64)
  if process == "autoregressive":
    config.data.end_padding = 1  # it writes its own end
  rate = 1.5e-3 * (128 / SIZES[size]["width"]) ** 0.5
  config.optimizer = dict(learning_rate=rate, warmup_steps=100, decay="cosine")
  if start == "pretraining":
    return _on_text(config, process)
  if start == "adapted":
    shipped = argument == "tiny-adapted-diffusion"
    config.init_from = "tiny_mlm" if shipped else f"runs/scaling/{size}-pretraining-{process}"
  part = lambda name, limit: dict(kind="generator", split=name, limit=limit)
  config.data.update(
    train=part("train", 120_000),
    validation=part("validation", 400),
    test=part("test", 400),
    max_length=64,
    buckets=(32, 48, 64),
  )
  config.training = dict(steps=2000, log_every=50, eval_every=500, checkpoint_every=250)
  config.evaluation = dict(examples=400, num_steps=10)
  return config


def _on_text(config: ConfigDict, process: str) -> ConfigDict:
  """Masked LM at 15 %, as the shipped model was trained, or next-token prediction."""
  part = lambda name, limit: dict(kind="generator_text", split=name, limit=limit)
  config.data.update(
    train=part("train", 400_000), validation=part("validation", 512), max_length=64
  )
  if process == "diffusion":
    config.diffusion = dict(
      num_timesteps=0, times="fixed", mask_ratio=0.15, weight="constant", normalizer="corrupted",
      coupled=False,
    )  # fmt: skip
  config.training = dict(steps=3000, log_every=50, eval_every=1000, checkpoint_every=500)
  config.evaluation = dict(examples=512, batch_size=64)
  return config
