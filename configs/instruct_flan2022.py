"""Instruction tuning on Flan 2022, the generalist of 2308.12219: the shares of its files, Table 6.

  diffjax data --config=configs/instruct_flan2022.py:base
  diffjax plan --config=configs/instruct_flan2022.py:base --topology=v5e-8 --model=xlmr-base
  diffjax train --config=configs/instruct_flan2022.py:base --workdir=runs/flan2022_base
  diffjax train --config=configs/instruct_flan2022.py:base-length \\
    --workdir=runs/flan2022_base_length
  diffjax evaluate --model=runs/flan2022_base_length --tasks=mmlu,bbh,tydiqa,mgsm,iwslt14 --shots=0

The argument is base, large, xl or xxl; with -length it is the second stage, a length head over the
finished run in runs/flan2022_SIZE. Wants weights/xlm-roberta-base and so on, and the files of
SirNeural/flan_v2 (Hugging Face) in data/flan2022, unpacked, so that they need not fit into memory:
flan_fs_opt_train.jsonl and so on, or in parts (flan_fs_opt_train-00.jsonl, ...), {"inputs",
"targets"} a line; and some hundred of their lines, taken out of these files beforehand, in
validation.jsonl.

Hardware: base and large: 8 GPUs of 80 GB, xl 32, xxl 64, by arithmetic; TPUs: docs/planning.md. Not
run yet, so hours are not known.
Expected: the paper's zero-shot figures of base, large, xl and xxl with the true length (its Table
8): IWSLT14 BLEU 21.26, 25.24, 28.13, 29.59; MMLU 31.28, 32.79, 40.17, 42.13; TyDiQA "Rouge" 23.42,
62.28, 83.39, 84.76; GSM8K 3.6, 3.2, 5.2, 4.4. Ours are not measured yet.
"""

from ml_collections import ConfigDict

SIZES = {
  "base": dict(steps=70_000, batch_size=512, microbatches=4, mesh=dict(data=-1), chunk=1024),
  "large": dict(steps=30_000, batch_size=512, microbatches=8, mesh=dict(data=1, fsdp=-1)),
  "xl": dict(steps=17_000, batch_size=1024, microbatches=8, mesh=dict(data=1, fsdp=-1)),
  "xxl": dict(steps=4000, batch_size=2048, microbatches=4, mesh=dict(data=-1, fsdp=16)),
}
# File -> share. fs, zs: few-shot and zero-shot; opt, noopt: with and without the answer options.
SHARES = {
  "flan_fs_opt": 0.1, "flan_fs_noopt": 0.1, "flan_zs_opt": 0.1, "flan_zs_noopt": 0.1,
  "t0_fs_noopt": 0.106, "t0_zs_noopt": 0.107, "t0_zs_opt": 0.107,
  "niv2_fs_opt": 0.1, "niv2_zs_opt": 0.1,
  "cot_fs_opt": 0.025, "cot_zs_opt": 0.025,
  "dialog_fs_opt": 0.015, "dialog_zs_opt": 0.015,
}  # fmt: skip


def get_config(name: str = "base") -> ConfigDict:
  size, _, stage = name.partition("-")
  return {"": _tuned, "length": _length_head}[stage](size)


def _tuned(size: str) -> ConfigDict:
  chosen = SIZES[size]
  parts = tuple(
    dict(kind="jsonl", name=file, path=f"data/flan2022/{file}_train*.jsonl", weight=share)
    for file, share in SHARES.items()
  )
  config = ConfigDict()
  config.init_from = f"weights/xlm-roberta-{size}"
  config.data = dict(
    train=dict(kind="mixture", parts=parts),
    validation=dict(kind="jsonl", path="data/flan2022/validation.jsonl"),
    max_length=512,
    too_long="keep_ends",
    buckets=(128, 256, 512),
    batch_size=chosen["batch_size"],
    on_bad_record="skip",
  )
  config.mesh = dict(chosen["mesh"])
  config.compute = dict(
    dtype="bfloat16", remat="save_matmuls", vocabulary_chunk=chosen.get("chunk", 256)
  )
  config.optimizer = dict(
    learning_rate=1e-5, warmup="logarithmic", warmup_steps=chosen["steps"] // 100
  )
  config.training = dict(
    steps=chosen["steps"],
    microbatches=chosen["microbatches"],
    eval_every=chosen["steps"] // 20,
    checkpoint_every=500,
  )
  config.evaluation = dict(metric="rouge_l", examples=400, batch_size=64, num_steps=10)
  return config


def _length_head(size: str) -> ConfigDict:
  config = _tuned(size)
  config.init_from = f"runs/flan2022_{size}"
  config.length = dict(weight=1.0, alone=True)
  config.data.update(batch_size=256)
  config.optimizer.update(warmup_steps=160)
  config.training.update(steps=16_000, microbatches=1, eval_every=2000, checkpoint_every=1000)
  config.evaluation.update(metric="length_loss")
  return config
