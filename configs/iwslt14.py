"""German to English on IWSLT14: XLM-R in four sizes, after Table 5 of 2308.12219, and small runs.

  diffjax train --config=configs/iwslt14.py:base --workdir=runs/iwslt14_base
  diffjax train --config=configs/iwslt14.py:base-length --workdir=runs/iwslt14_base_length
  diffjax evaluate --model=runs/iwslt14_base_length --split=test --num-steps=50 \\
    --length=predicted --length-beam=10

The argument is base, large, xl or xxl; with -length it is the second stage, a length head over the
finished run in runs/iwslt14_SIZE. Wants data/iwslt14 with train.de, train.en, valid.* and test.*
(160 000 pairs, lowercased and detokenised, a sentence a line), and weights/iwslt14-base and so on,
which have the vocabulary of this corpus alone, as in the paper:

  diffjax convert --from=weights/xlm-roberta-base --to=weights/iwslt14-base \\
    --prune-vocab data/iwslt14/train.de data/iwslt14/train.en data/iwslt14/valid.deen.jsonl.gz

tiny and tiny-autoregressive (equal size, data, batches and steps; scratch and
scratch-autoregressive likewise, 12 x 512) start from nothing and learn from valid.deen.jsonl.gz
alone, 7 283 pairs with their prompts, of which the last 600 are held out:

  mkdir -p runs/iwslt14
  gzip -dc data/iwslt14/valid.deen.jsonl.gz | head -n 6683 > runs/iwslt14/train.jsonl
  gzip -dc data/iwslt14/valid.deen.jsonl.gz | tail -n 600 | head -n 200 > runs/iwslt14/valid.jsonl
  gzip -dc data/iwslt14/valid.deen.jsonl.gz | tail -n 400 > runs/iwslt14/test.jsonl
  diffjax tokenizer --input runs/iwslt14/train.jsonl --vocab-size 4000 --output runs/iwslt14.model
  diffjax train --config=configs/iwslt14.py:tiny --workdir=runs/iwslt14_tiny
  diffjax train --config=configs/iwslt14.py:tiny-autoregressive --workdir=runs/iwslt14_control
  diffjax evaluate --model=runs/iwslt14_tiny --split=test --num-steps=10,50

Not --tasks=iwslt14_validation, which would ask them what they have learnt.

Hardware: tiny: 4 x 192, 2 CPU cores, about 12 minutes. scratch: one GPU. base to xl: 8 GPUs of 80
GB, xxl 16, by arithmetic. All but tiny are not run yet.
Expected: tiny: see the README's results table. The paper's BLEU on its test set, with the true
length and with 10 predicted ones (its Table 7): base 35.78 and 34.10, large 38.84 and 37.33, xl
40.11 and 38.54, xxl 40.65 and 38.57. Ours are not measured yet.
"""

from ml_collections import ConfigDict

SIZES = {
  "base": dict(steps=150_000, microbatches=1, remat="none"),
  "large": dict(steps=150_000, microbatches=2, remat="none"),
  "xl": dict(steps=100_000, microbatches=2, remat="full"),
  "xxl": dict(steps=30_000, microbatches=4, remat="full"),
}
SMALL = {
  "tiny": dict(
    model=dict(width=192, layers=4, heads=4, ffn_width=768, dropout=0.1),
    optimizer=dict(learning_rate=1.5e-3, warmup_steps=200, decay="cosine", ema_decay=0.99),
    training=dict(steps=2000, log_every=50, eval_every=500, checkpoint_every=200),
    compute=dict(dtype="float32"),
    batch_size=1536,
  ),
  "scratch": dict(
    model=dict(width=512, layers=12, heads=8, ffn_width=2048, dropout=0.3),
    optimizer=dict(learning_rate=5e-4, warmup_steps=500, decay="cosine", ema_decay=0.999),
    training=dict(steps=10_000, log_every=100, eval_every=1000, checkpoint_every=1000),
    compute=dict(dtype="bfloat16"),
    batch_size=12_288,
  ),
}
PROCESSES = {
  "diffusion": dict(coupled=False),
  "autoregressive": dict(
    process="next_token", attention="causal", coupled=False, weight="constant"
  ),
}


def get_config(name: str = "base") -> ConfigDict:
  size, _, variant = name.partition("-")
  if size in SMALL:
    return _from_scratch(size, variant or "diffusion")
  return {"": _adapted, "length": _length_head}[variant](size)


def _adapted(size: str) -> ConfigDict:
  chosen = SIZES[size]
  pairs = lambda split: dict(
    kind="pairs", path=f"data/iwslt14/{split}.de", target_path=f"data/iwslt14/{split}.en",
    task="iwslt14", wording=0,
  )  # fmt: skip
  config = ConfigDict()
  config.init_from = f"weights/iwslt14-{size}"
  config.data = dict(
    train=pairs("train"),
    validation=pairs("valid"),
    test=pairs("test"),
    max_length=512,
    buckets=(64, 128, 256, 512),
    batch_size=32_768,
    batch_unit="tokens",
  )
  config.mesh = dict(data=1, fsdp=-1)
  config.compute = dict(dtype="bfloat16", remat=chosen["remat"])
  config.optimizer = dict(
    learning_rate=5e-5, warmup="logarithmic", warmup_steps=chosen["steps"] // 100
  )
  config.training = dict(
    steps=chosen["steps"],
    microbatches=chosen["microbatches"],
    log_every=100,
    eval_every=chosen["steps"] // 30,
    checkpoint_every=1000,
  )
  config.evaluation = dict(metric="bleu", examples=1000, batch_size=64, num_steps=10)
  return config


def _length_head(size: str) -> ConfigDict:
  config = _adapted(size)
  config.init_from = f"runs/iwslt14_{size}"
  config.length = dict(weight=1.0, alone=True)
  config.data.update(batch_size=256, batch_unit="rows")
  config.optimizer.update(warmup_steps=300)
  config.training.update(steps=30_000, microbatches=1, eval_every=3000)
  config.evaluation = dict(metric="length_loss", examples=1000, batch_size=64)
  return config


def _from_scratch(size: str, process: str) -> ConfigDict:
  chosen = dict(SMALL[size])
  lines = lambda split: dict(kind="jsonl", path=f"runs/iwslt14/{split}.jsonl")
  config = ConfigDict()
  config.data = dict(
    tokenizer="runs/iwslt14.model",
    train=lines("train"),
    validation=lines("valid"),
    test=lines("test"),
    max_length=192,
    buckets=(64, 96, 128, 192),
    batch_size=chosen.pop("batch_size"),
    batch_unit="tokens",
  )
  if process == "autoregressive":
    config.data.end_padding = 1  # it writes its own </s>
  config.diffusion = dict(PROCESSES[process], label_smoothing=0.1)
  for section, values in chosen.items():
    config[section] = values
  config.evaluation = dict(metric="bleu", examples=100, batch_size=50, num_steps=10)
  return config
