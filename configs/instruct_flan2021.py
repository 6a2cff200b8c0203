"""Instruction tuning on Flan 2021 without any German: strictly zero-shot translation from it.

  diffjax train --config=configs/instruct_flan2021.py:base --workdir=runs/flan2021_base
  diffjax train --config=configs/instruct_flan2021.py:base-length \\
    --workdir=runs/flan2021_base_length
  diffjax evaluate --model=runs/flan2021_base --tasks=iwslt14 --num-steps=50

After Table 6 of 2308.12219. The argument is base, large, xl or xxl; with -length it is the second
stage, a length head over the finished run in runs/flan2021_SIZE. Wants weights/xlm-roberta-base and
so on, and the files of Muennighoff/flan (Hugging Face) in data/flan2021/train and
data/flan2021/validation: one a task, {"inputs", "targets"} a line.

Of every task the first 30 000 examples, shared out by their number, which counts up to 3000
(2109.01652). The translation task from German is left out, and every example in which German is
recognised (diffjax/data/languages.py): one to two in a hundred German sentences are not, mostly
those of a few words.

Hardware: base and large: 8 GPUs of 80 GB, xl 32, xxl 64, by arithmetic. Not run yet, so hours are
not known.
Expected: the paper's zero-shot BLEU on IWSLT14, with the true length (its Table 2): base 7.15,
large 22.52, xl 27.27, xxl 28.74. Ours are not measured yet.
"""

from ml_collections import ConfigDict

SIZES = {
  "base": dict(steps=5000, batch_size=512, microbatches=4, remat="save_matmuls"),
  "large": dict(steps=5000, batch_size=512, microbatches=8, remat="save_matmuls"),
  "xl": dict(steps=3000, batch_size=512, microbatches=4, remat="full"),
  "xxl": dict(steps=1000, batch_size=256, microbatches=2, remat="full"),
}
TASKS = (
  "aeslc", "ag_news_subset", "anli_r1", "anli_r2", "anli_r3", "arc_challenge", "arc_easy", "bool_q",
  "cb", "cnn_dailymail", "cola", "common_gen", "copa", "coqa", "cosmos_qa", "dart",
  "definite_pronoun_resolution", "drop", "e2e_nlg", "fix_punct", "gigaword", "glue_mrpc",
  "glue_qqp", "hellaswag", "imdb_reviews", "math_dataset", "mnli_matched", "mnli_mismatched",
  "multi_news", "multirc", "natural_questions", "openbookqa", "opinion_abstracts_idebate",
  "opinion_abstracts_rotten_tomatoes", "para_crawl_enes", "paws_wiki", "piqa", "qnli", "quac",
  "record", "rte", "samsum", "sentiment140", "snli", "squad_v1", "squad_v2", "sst2", "story_cloze",
  "stsb", "trec", "trivia_qa", "true_case", "web_nlg_en", "wic", "wiki_lingua_english_en",
  "wmt14_enfr", "wmt16_translate_csen", "wmt16_translate_fien", "wmt16_translate_roen",
  "wmt16_translate_ruen", "wmt16_translate_tren", "wnli", "word_segment", "wsc",
  "yelp_polarity_reviews",
)  # fmt: skip


def get_config(name: str = "base") -> ConfigDict:
  size, _, stage = name.partition("-")
  return {"": _tuned, "length": _length_head}[stage](size)


def _mixture(split: str, *, limit: int, cap: int = 0) -> dict:
  """Every task of a split; of the shares, see the head of the file."""
  parts = tuple(
    dict(
      kind="jsonl", name=task, path=f"data/flan2021/{split}/{task}_10templates*.jsonl*",
      exclude_language="german", limit=limit, cap=cap,
    )
    for task in TASKS
  )  # fmt: skip
  return dict(kind="mixture", parts=parts)


def _tuned(size: str) -> ConfigDict:
  chosen = SIZES[size]
  config = ConfigDict()
  config.init_from = f"weights/xlm-roberta-{size}"
  config.data = dict(
    train=_mixture("train", limit=30_000, cap=3000),
    validation=_mixture("validation", limit=6),
    max_length=512,
    too_long="keep_ends",
    buckets=(128, 256, 512),
    batch_size=chosen["batch_size"],
    on_bad_record="skip",
  )
  config.mesh = dict(data=1, fsdp=-1)
  config.compute = dict(dtype="bfloat16", remat=chosen["remat"])
  config.optimizer = dict(
    learning_rate=5e-5, warmup="logarithmic", warmup_steps=chosen["steps"] // 100
  )
  config.training = dict(
    steps=chosen["steps"],
    microbatches=chosen["microbatches"],
    eval_every=chosen["steps"] // 10,
    checkpoint_every=250,
  )
  config.evaluation = dict(metric="rouge_l", examples=6 * len(TASKS), batch_size=64, num_steps=10)
  return config


def _length_head(size: str) -> ConfigDict:
  config = _tuned(size)
  config.init_from = f"runs/flan2021_{size}"
  config.length = dict(weight=1.0, alone=True)
  config.data.update(batch_size=256)
  config.optimizer.update(learning_rate=1e-5, warmup_steps=160)
  config.training.update(steps=16_000, microbatches=1, eval_every=2000, checkpoint_every=1000)
  config.evaluation.update(metric="length_loss")
  return config
