"""Grade-school maths with its steps (GSM8K) from scratch: diffusion, or autoregressive control.

  mkdir -p runs
  gzip -dc data/gsm8k/train.jsonl.gz | tail -n 473 > runs/gsm8k_validation.jsonl
  diffjax tokenizer --input data/gsm8k/train.jsonl.gz --vocab-size 4000 --output runs/gsm8k.model
  diffjax train --config=configs/gsm8k.py:diffusion --workdir=runs/gsm8k
  diffjax train --config=configs/gsm8k.py:autoregressive --workdir=runs/gsm8k_autoregressive
  diffjax evaluate --model=runs/gsm8k --tasks gsm8k --num-steps=50

Both have the same size, data, batches and steps; so have base-diffusion and base-autoregressive.
GSM8K is public: put or link its files into data/gsm8k. It has no validation split, so that the last
473 training questions serve as one. An answer ends with "The answer is 18."

Hardware: diffusion and autoregressive: 4 x 192, 2 CPU cores, about 12 minutes each. base-...: 12 x
512, one GPU, not run yet.
Expected: see the README's results table. 7 000 questions teach the form of an answer, not
arithmetic. The paper's figures (section 4.5) are of adapted weights: 26.73 % by Flan-XLM-R-XXL.
"""

from ml_collections import ConfigDict

SIZES = {
  "": dict(
    model=dict(width=192, layers=4, heads=4, ffn_width=768, dropout=0.1),
    optimizer=dict(learning_rate=1.5e-3, warmup_steps=200, decay="cosine", ema_decay=0.99),
    training=dict(steps=2000, log_every=50, eval_every=500, checkpoint_every=200),
    compute=dict(dtype="float32"),
    batch_size=1536,
  ),
  "base": dict(
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


def get_config(name: str = "diffusion") -> ConfigDict:
  size, _, process = name.rpartition("-")
  chosen = dict(SIZES[size])
  source = lambda path, **more: dict(kind="jsonl", path=path, task="maths", wording=0, **more)
  config = ConfigDict()
  config.data = dict(
    tokenizer="runs/gsm8k.model",
    train=source("data/gsm8k/train.jsonl.gz", limit=7000),
    validation=source("runs/gsm8k_validation.jsonl"),
    test=source("data/gsm8k/test.jsonl.gz"),
    max_length=256,
    buckets=(128, 192, 256),
    batch_size=chosen.pop("batch_size"),
    batch_unit="tokens",
  )
  if process == "autoregressive":
    config.data.end_padding = 1  # it writes its own </s>
  config.diffusion = dict(PROCESSES[process], label_smoothing=0.1)
  for section, values in chosen.items():
    config[section] = values
  config.evaluation = dict(metric="loss", examples=400, batch_size=40, num_steps=50)
  return config
