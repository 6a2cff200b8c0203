"""English to German on WMT14: XLM-R in four sizes, after Table 5 of 2308.12219.

  diffjax train --config=configs/wmt14.py:base --workdir=runs/wmt14_base
  diffjax train --config=configs/wmt14.py:base-length --workdir=runs/wmt14_base_length
  diffjax evaluate --model=runs/wmt14_base_length --split=test --num-steps=50 \\
    --length=predicted --length-beam=10

The argument is base, large, xl or xxl; with -length it is the second stage, a length head over the
finished run in runs/wmt14_SIZE. Wants data/wmt14 with train.en.gz, train.de.gz, valid.*.gz and
test.*.gz (4 500 000 pairs, a sentence a line), and weights/wmt14-base and so on, which have the
vocabulary of this corpus alone, as in the paper:

  diffjax convert --from=weights/xlm-roberta-base --to=weights/wmt14-base \\
    --prune-vocab data/wmt14/train.en.gz data/wmt14/train.de.gz

Hardware: base to xl: 8 GPUs of 80 GB, xxl 32, by arithmetic. Not run yet, so hours are not known.
Expected: the paper's BLEU, with the true length and with 10 predicted ones (its Table 7): base
26.65 and 26.72, large 30.22 and 29.04, xl 30.91 and 30.23, xxl 32.81 and 30.34. It lowercases both
sides before scoring; ours are cased, and not measured yet.
"""

from ml_collections import ConfigDict

SIZES = {
  "base": dict(steps=300_000, microbatches=2, remat="none"),
  "large": dict(steps=300_000, microbatches=4, remat="none"),
  "xl": dict(steps=150_000, microbatches=8, remat="full"),
  "xxl": dict(steps=100_000, microbatches=4, remat="full"),
}


def get_config(name: str = "base") -> ConfigDict:
  size, _, stage = name.partition("-")
  return {"": _adapted, "length": _length_head}[stage](size)


def _adapted(size: str) -> ConfigDict:
  chosen = SIZES[size]
  pairs = lambda split: dict(
    kind="pairs", path=f"data/wmt14/{split}.en.gz", target_path=f"data/wmt14/{split}.de.gz",
    task="translation_en_de", wording=0,
  )  # fmt: skip
  config = ConfigDict()
  config.init_from = f"weights/wmt14-{size}"
  config.data = dict(
    train=pairs("train"),
    validation=pairs("valid"),
    test=pairs("test"),
    max_length=512,
    buckets=(64, 128, 256, 512),
    batch_size=131_072,
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
  config.init_from = f"runs/wmt14_{size}"
  config.length = dict(weight=1.0, alone=True)
  config.data.update(batch_size=256, batch_unit="rows")
  config.optimizer.update(warmup_steps=300)
  config.training.update(steps=30_000, microbatches=1, eval_every=3000)
  config.evaluation = dict(metric="length_loss", examples=1000, batch_size=64)
  return config
