"""German to English on Multi30k (29 000 pairs), from scratch: diffusion, or autoregressive control.

  diffjax tokenizer --input data/multi30k/train.de.gz data/multi30k/train.en.gz \\
    --vocab-size 4000 --output runs/multi30k.model
  diffjax train --config=configs/multi30k_de_en.py:small --workdir=runs/multi30k_small
  diffjax evaluate --model=runs/multi30k_small --split=test --num-steps=10,50

small-autoregressive and base-autoregressive are the controls: equal size, data, batches and steps,
but every token is predicted from those before it, and written one after the other.

Multi30k (task 1) is a public data set: put or link its files into data/multi30k.

Hardware: small: 4 x 192, 2 CPU cores, about 35 minutes. base: 12 x 512, one GPU (not run yet).
Ctrl-C at any time saves; the same command resumes. Where the files lie elsewhere:
--config.data.train.path=... and so on.
Expected: see the README's results table.
"""

from ml_collections import ConfigDict

SIZES = {
  "small": dict(
    model=dict(width=192, layers=4, heads=4, ffn_width=768, dropout=0.1),
    diffusion=dict(coupled=False, label_smoothing=0.1),
    optimizer=dict(learning_rate=1.5e-3, warmup_steps=400, decay="cosine", ema_decay=0.99),
    training=dict(steps=4400, log_every=50, eval_every=1100, checkpoint_every=200),
    compute=dict(dtype="float32"),
    buckets=(32, 48, 64, 128),
    batch_size=2048,
  ),
  "base": dict(
    model=dict(width=512, layers=12, heads=8, ffn_width=2048, dropout=0.3),
    diffusion=dict(coupled=True, label_smoothing=0.1),
    optimizer=dict(learning_rate=5e-4, warmup_steps=2000, decay="inverse_sqrt", ema_decay=0.999),
    training=dict(steps=30_000, log_every=100, eval_every=2000, checkpoint_every=1000),
    compute=dict(dtype="bfloat16"),
    buckets=(32, 64, 128),
    batch_size=16_384,
  ),
}


CONTROL = dict(
  process="next_token", attention="causal", coupled=False, weight="constant", label_smoothing=0.1
)


def get_config(name: str = "small") -> ConfigDict:
  size, _, variant = name.partition("-")
  chosen = dict(SIZES[size])
  pairs = lambda name: dict(
    kind="pairs", path=f"data/multi30k/{name}.de.gz", target_path=f"data/multi30k/{name}.en.gz"
  )
  config = ConfigDict()
  config.data = dict(
    tokenizer="runs/multi30k.model",
    train=pairs("train"),
    validation=pairs("val"),
    test=pairs("test_2016_flickr"),
    max_length=128,
    buckets=chosen.pop("buckets"),
    batch_size=chosen.pop("batch_size"),
    batch_unit="tokens",
  )
  for section, values in chosen.items():
    config[section] = values
  if variant:
    config.diffusion = {"autoregressive": CONTROL}[variant]
    config.data.end_padding = 1  # it writes its own </s>
  config.evaluation = dict(metric="bleu", examples=200, batch_size=40, num_steps=10)
  return config
