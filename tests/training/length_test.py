"""The length head in training: its classes, what it reads, its gradient; and whole runs with it."""

import dataclasses
import functools
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict

from diffjax import model as models
from diffjax.config import ComputeConfig, Contract, ModelConfig, config_from_dict
from diffjax.data import features, pipeline
from diffjax.diffusion import objectives, schedules
from diffjax.models import lora, transformer
from diffjax.tokenizers import train_sentencepiece
from diffjax.training import length, metrics, state, step
from diffjax.training.loop import train
from diffjax.types import Batch, Example, Preempted, UserError

BOS, PAD, EOS, MASK = 0, 1, 2, 40
IDS = {"bos_id": BOS, "pad_id": PAD, "eos_id": EOS, "mask_id": MASK}
GIVEN = Contract(**IDS)
BLOCKS = Contract(**IDS, attention="blocks", block_size=4, end="predicted", end_padding=8)
ROW = 40
MODEL = ModelConfig(
  vocab_size=41, width=16, layers=1, heads=2, ffn_width=32, max_positions=ROW, token_types=0,
  embedding_norm=False, dropout=0.5, length_classes=6,
)  # fmt: skip
LENGTHS = (1, 2, 5, 6, 9)  # of answers; 6 classes


class Digits:
  """One id a word, the word itself."""

  def encode(self, text):
    return [int(word) for word in text.split()]


def rows(contract, answers=LENGTHS, seed=0) -> Batch:
  """Rows of random answers of these lengths, and one of padding."""
  random = np.random.default_rng(1)
  texts = [" ".join(map(str, random.integers(3, 40, n))) for n in (3, 7, 2, 5, 4)]
  random = np.random.default_rng(seed)
  examples = [
    Example(prompt, " ".join(map(str, random.integers(3, 40, n))))
    for prompt, n in zip(texts, answers, strict=True)
  ]
  encode = functools.partial(features.encode, max_length=ROW, too_long="drop")
  encoded = [encode(example, Digits(), contract) for example in examples]
  padded = features.pack([*([row] for row in encoded), []], length=ROW, pad_id=PAD)
  return Batch(*padded, np.arange(len(answers) + 1, dtype=np.int32))


@pytest.mark.parametrize("contract", [GIVEN, BLOCKS], ids=["one </s>", "filled up with </s>"])
def test_an_answer_of_n_tokens_has_class_n_minus_1_whatever_ends_it(contract):
  batch = rows(contract)
  classes = functools.partial(length.target_classes, batch, eos_id=EOS)
  assert list(classes(classes=20)[:-1]) == [n - 1 for n in LENGTHS]
  assert list(classes(classes=6)[:-1]) == [0, 1, 4, 5, 5]
  np.testing.assert_array_equal(length.answers_prompt(batch), [True] * len(LENGTHS) + [False])


def test_rows_without_a_prompt_do_not_count():
  batch = rows(GIVEN)
  start = np.arange(ROW) == 0
  dropped = batch._replace(canvas=(batch.segments > 0) & ~start)
  assert not length.answers_prompt(dropped).any()
  loss, sums = length.loss_sums(
    {}, {}, dropped, read=lambda params, segments, tokens: np.zeros((len(tokens), 6)), eos_id=EOS
  )
  assert (loss, sums.examples, sums.correct) == (0, 0, 0)


@functools.cache
def params():
  random = np.random.default_rng(0)
  draw = lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32)
  return jax.tree.map(draw, transformer.shapes(MODEL))


@functools.cache
def loss_of(contract):
  """(params, batch) -> (the summed loss, LengthSums, the logits), as in a run with this model."""
  model = models.Model(MODEL, contract, None, None)
  read = lambda params, segments, tokens: model.length_logits(tokens, segments, params=params)

  def run(params, batch):
    frozen, trained = lora.split(params, length_head=True)
    loss, sums = length.loss_sums(trained, frozen, batch, read=read, eos_id=EOS)
    return loss, sums, read(params, length.prompt_segments(batch), batch.tokens)

  return jax.jit(run)


def test_sums_equal_those_of_the_logits():
  batch = rows(GIVEN)
  loss, sums, logits = jax.device_get(loss_of(GIVEN)(params(), batch))
  log_p = jax.nn.log_softmax(np.asarray(logits, np.float64))[:-1]
  target = np.asarray([0, 1, 4, 5, 5])
  np.testing.assert_allclose(loss, -log_p[np.arange(5), target].sum(), rtol=1e-5)
  order = np.argsort(-log_p, axis=1)
  assert sums.correct == (order[:, 0] == target).sum()
  assert sums.near == (order[:, :5] == target[:, None]).any(1).sum()
  assert (sums.loss, sums.examples) == (loss, 5)
  assert sums.tokens == sum(1 + n for n in (3, 7, 2, 5, 4))


def test_the_head_reads_prompts_alone():
  loss, _, logits = loss_of(GIVEN)(params(), rows(GIVEN))
  other, _, same = loss_of(GIVEN)(params(), rows(GIVEN, seed=9))  # other answers, equally long
  np.testing.assert_allclose(same, logits, atol=1e-5)
  np.testing.assert_allclose(other, loss, rtol=1e-5)
  longer = rows(GIVEN, answers=LENGTHS[::-1])
  np.testing.assert_allclose(loss_of(GIVEN)(params(), longer)[2], logits, atol=1e-5)
  moved = longer._replace(tokens=np.where(longer.canvas | (longer.segments == 0), longer.tokens, 7))
  assert np.abs(loss_of(GIVEN)(params(), moved)[2][:-1] - logits[:-1]).max() > 1e-2


def test_a_prompt_is_read_whole_where_answers_come_in_blocks():
  """Prompts longer than a block would be cut like answers, if they were taken for answers."""
  _, _, full = loss_of(GIVEN)(params(), rows(GIVEN))
  _, _, blocks = loss_of(BLOCKS)(params(), rows(BLOCKS))
  np.testing.assert_allclose(blocks, full, atol=1e-5)


def test_a_step_follows_the_gradient_of_both_mean_losses_in_any_number_of_microbatches():
  batch, weight = rows(GIVEN), 0.7  # of 6 rows 5 are examples
  model = models.Model(MODEL, GIVEN, None, None)
  objective = objectives.Objective(
    schedule=schedules.make("linear", power=1.0), num_timesteps=0, weight="linear",
    normalizer="tokens", times="stratified", mask_ratio=0.0, coupled=False, label_smoothing=0.0,
    seed=0,
  )  # fmt: skip
  bind = functools.partial(transformer.bind, config=MODEL, contract=GIVEN, compute=ComputeConfig())
  loss = functools.partial(
    step.loss_sums, bind=bind, objective=objective, mask_id=MASK, chunk=64, shards=None, train=False
  )
  read = lambda params, segments, tokens: model.length_logits(tokens, segments, params=params)
  length_loss = functools.partial(length.loss_sums, read=read, eos_id=EOS)
  train_step = functools.partial(
    step.train_step, loss=loss, length=length_loss, length_weight=weight,
    optimizer=optax.sgd(1.0), learning_rate=lambda count: 1.0, microbatches=3, ema_decay=0.0,
  )  # fmt: skip

  @jax.jit
  @jax.value_and_grad
  def mean(params, batch):
    total, sums = loss(params, {}, batch, 0, rows=6)
    return total / sums.weight + weight * length_loss(params, {}, batch)[0] / 5

  create = functools.partial(state.create, optimizer=optax.sgd(1.0), ema=False)
  current, updates = jax.jit(train_step)(create(params()), {}, batch)
  want_loss, gradient = mean(params(), batch)
  want = jax.tree.map(jnp.subtract, params(), gradient)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, current.params, want)
  measured = metrics.values(updates.sums, updates.length, length_weight=weight)
  assert measured["loss"] == pytest.approx(float(want_loss), rel=1e-5)


def test_a_model_without_a_head_says_so():
  plain = ModelConfig(vocab_size=41, width=16, layers=1, heads=2, ffn_width=32)
  ids = jnp.ones((1, 4), jnp.int32)
  with pytest.raises(UserError, match=r"no length head; train one over it \(configs/length_head"):
    models.Model(plain, GIVEN, {}, None).length_logits(ids, ids)


@pytest.mark.parametrize(
  ("own", "asked", "classes", "goes_on"), [(6, 0, 6, True), (6, 9, 9, False), (0, 0, 20, False)]
)
def test_the_weights_own_head_goes_on_unless_another_size_is_asked_for(
  own, asked, classes, goes_on
):
  values = {
    "init_from": "w", "length": {"weight": 1.0, "classes": asked},
    "data": {"train": {"kind": "jsonl", "path": "x"}, "max_length": 20},
  }  # fmt: skip
  params = {"embedding": 1, **({"length_head": 2} if own else {})}
  source = models.Model(dataclasses.replace(MODEL, length_classes=own), GIVEN, params, None)
  begin = length.with_head(config_from_dict(values), source)
  assert begin.model.config.length_classes == classes
  assert ("length_head" in begin.model.params) == goes_on
  assert bool(begin.notes) == bool(own)
  untrained = config_from_dict(values | {"length": {}})
  assert length.with_head(untrained, source) == (source, [])
  annealed = config_from_dict(values | {"adaptation": {"anneal_steps": 5}})
  with pytest.raises(UserError, match="train the head afterwards"):
    length.with_head(annealed, source)


# ---- Whole runs. A run that trains its head too (joint) is what the others begin with.

CLASSES, OTHER_CLASSES = 8, 5
STEPS, STOP = 24, 9
WEIGHT = 0.5


@pytest.fixture(scope="module")
def room(tmp_path_factory):
  """Pairs whose first word says how long the answer is, and a tokenizer of whole words."""
  room = tmp_path_factory.mktemp("room")
  random = np.random.default_rng(0)
  words = ["one", "two", "three", "four"]
  with (room / "train.jsonl").open("w") as file:
    for _ in range(64):
      first = random.integers(4)
      prompt = " ".join([words[first], *random.choice(["red", "blue"], random.integers(1, 3))])
      file.write(json.dumps({"inputs": prompt, "targets": " ".join(["red"] * (first + 1))}) + "\n")
  text = [" ".join([*words, "red", "blue"])] * 20
  train_sentencepiece(text, vocab_size=40, path=room / "sp.model", kind="bpe")
  return room


def experiment(room, length, *, init_from="", steps=STEPS, evaluation=(), **sections):
  pairs = {"kind": "jsonl", "path": str(room / "train.jsonl")}
  source = {"init_from": str(init_from), "model": {"dropout": 0.0}}
  if not init_from:
    source["model"] |= {  # few leaves: every array is compiled for, and written
      "width": 16, "layers": 1, "heads": 2, "ffn_width": 32, "max_positions": 32, "norm": "pre",
      "norm_kind": "rms", "attention_bias": "none", "dense_bias": False, "head": "linear",
      "head_bias": False, "embedding_norm": False, "token_types": 0,
    }  # fmt: skip
  return config_from_dict({
    **source,
    "data": {
      "tokenizer": "" if init_from else str(room / "sp.model"), "train": pairs,
      "validation": {**pairs, "limit": 32}, "max_length": 32, "batch_size": 32,
    },
    "length": length,
    "optimizer": {"learning_rate": 1e-2, "ema_decay": 0.5},
    "training": {"steps": steps, "log_every": 1, "eval_every": 12, "keep_checkpoints": 9},
    "evaluation": {"batch_size": 16, "examples": 32, **dict(evaluation)},
    **sections,
  })  # fmt: skip


def lines_of(workdir, split):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [line for line in lines if line["split"] == split]


def saved_trees(workdir, step):
  items = {name: ocp.args.StandardRestore() for name in ("params", "opt_state", "ema_params")}
  with ocp.CheckpointManager(workdir.absolute() / "checkpoints") as manager:
    restored = manager.restore(step, args=ocp.args.Composite(**items))
    return jax.device_get({name: restored[name] for name in items})


def assert_same(have, want):
  assert jax.tree.structure(have) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, have, want)


@pytest.fixture(scope="module")
def joint(room, tmp_path_factory):
  """A run from scratch whose network and head learn together."""
  workdir = tmp_path_factory.mktemp("runs") / "joint"
  config = experiment(room, {"weight": WEIGHT, "classes": CLASSES}, steps=12)
  train(config, workdir)
  return workdir


def alone(room, joint, **length):
  return experiment(
    room, {"weight": 1.0, "alone": True, **length}, init_from=joint,
    evaluation={"metric": "length_loss"},
  )  # fmt: skip


@pytest.fixture(scope="module")
def whole(room, joint, tmp_path_factory):
  """A run of a new head alone over the joint run, without a stop."""
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  return workdir, train(alone(room, joint, classes=OTHER_CLASSES), workdir)


def test_a_joint_run_has_both_losses_and_loads_as_one_model(joint):
  for split in ("train", "validation"):
    last = lines_of(joint, split)[-1]
    assert {"nll", "length_loss", "length_accuracy", "length_top5"} <= set(last)
    assert last["loss"] > WEIGHT * last["length_loss"] > 0
  first, last = (lines_of(joint, "train")[n]["length_loss"] for n in (0, -1))
  assert last < 0.8 * first
  model = models.load(joint)
  assert model.config.length_classes == CLASSES
  assert_same(jax.device_get(model.params), saved_trees(joint, 12)["ema_params"])


def test_a_head_alone_learns_and_is_all_that_is_saved(whole, joint):
  workdir, measured = whole
  assert measured["length_accuracy"] > 80
  assert measured["loss"] == measured["length_loss"]
  assert "nll" not in measured
  trees = saved_trees(workdir, STEPS)
  shapes = transformer.shapes(models.load(workdir).config)["length_head"]
  for item in ("params", "ema_params"):
    assert jax.tree.map(jnp.shape, trees[item]) == {"length_head": jax.tree.map(jnp.shape, shapes)}
  numbers = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  moments = sum(leaf.size for leaf in jax.tree.leaves(trees["opt_state"]))
  assert 2 * numbers <= moments <= 2 * numbers + 4  # two moments, and counters
  meta = models.checkpoint_of(workdir).meta
  assert meta["frozen"]["resolved"] == str(joint / "checkpoints" / "12")


def test_the_loaded_model_is_the_run_under_the_head_with_the_head(whole, joint):
  loaded, under = models.load(whole[0]), models.load(joint)
  have, want = jax.device_get((loaded.params, under.params))
  head, _ = have.pop("length_head"), want.pop("length_head")
  assert_same(have, want)
  step = models.checkpoint_of(whole[0]).step
  assert_same(head, saved_trees(whole[0], step)["ema_params"]["length_head"])
  assert (loaded.contract, loaded.config.dropout) == (under.contract, under.config.dropout)
  prompts = ["one red", "three blue red"]
  ids = [[loaded.contract.bos_id, *loaded.tokenizer.encode(text)] for text in prompts]
  tokens = np.asarray([row + [loaded.contract.pad_id] * (9 - len(row)) for row in ids])
  segments = np.asarray([[int(n < len(row)) for n in range(9)] for row in ids])
  logits = loaded.length_logits(tokens, segments)
  assert logits.shape == (2, OTHER_CLASSES)
  lengths = [len(loaded.tokenizer.encode(" ".join(["red"] * n))) for n in (1, 3)]
  assert list(logits.argmax(1) + 1) == lengths


def test_a_head_follows_its_run_to_another_place_and_goes_on_as_if_never_stopped(
  whole, room, joint, tmp_path, monkeypatch
):
  run, kept, moved = tmp_path / "run", tmp_path / "joint", tmp_path / "moved"
  shutil.copytree(joint, kept)
  batches = pipeline.batches

  def interrupted(*args, **kwargs):
    for number, batch in enumerate(batches(*args, **kwargs), 1):
      if number == STOP:
        signal.raise_signal(signal.SIGINT)
      yield batch

  monkeypatch.setattr(pipeline, "batches", interrupted)
  with pytest.raises(Preempted, match=f"stopped at step {STOP} of"):
    train(alone(room, kept, classes=OTHER_CLASSES), run)
  monkeypatch.undo()
  kept.rename(moved)
  for refused in (
    lambda: models.load(run),
    lambda: train(alone(room, moved / "checkpoints", classes=OTHER_CLASSES), run),
  ):
    with pytest.raises(UserError, match="the frozen weights") as error:
      refused()
    assert "\n" not in str(error.value)
  train(alone(room, moved, classes=OTHER_CLASSES), run)
  assert_same(saved_trees(run, STEPS), saved_trees(whole[0], STEPS))
  assert_same(jax.device_get(models.load(run).params), jax.device_get(models.load(whole[0]).params))


@pytest.mark.slow
def test_adapters_and_the_weights_own_head_learn_beside_frozen_weights(
  room, joint, tmp_path, capsys
):
  config = experiment(
    room, {"weight": 1.0}, init_from=joint, steps=3,
    lora={"rank": 2, "targets": ("query",)}, evaluation={"metric": "length_accuracy"},
  )  # fmt: skip
  train(config, tmp_path / "run")
  said = capsys.readouterr().out
  assert f"the length head of the weights, {CLASSES} lengths, is trained further" in said
  assert "in the adapters and the length head" in said
  names = flatten_dict(saved_trees(tmp_path / "run", 3)["params"])
  assert {name[0] for name in names} == {"layers", "length_head"}
  assert {name[-1] for name in names if name[0] == "layers"} == {"lora_a", "lora_b"}
  first, before = lines_of(tmp_path / "run", "train")[0], lines_of(joint, "validation")[-1]
  assert first["length_loss"] == pytest.approx(before["length_loss"], rel=0.3)
  loaded, under = models.load(tmp_path / "run"), models.load(joint)
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), loaded.params, under.params)
  changed = {"/".join(name) for name, value in flatten_dict(changed).items() if value}
  assert {name for name in changed if not name.startswith("length_head/")} == {
    "layers/attention/query/kernel"
  }
  assert any(name.startswith("length_head/") for name in changed)


REFUSED = [
  ({"diffusion": {"attention": "prefix"}}, "diffusion.attention = 'prefix' would need other"),
  ({"data": {"end_padding": 4}}, "data.end_padding = 4 would need other weights"),
  ({"adaptation": {"mask_id": 3}}, "leave config.adaptation out"),
]


@pytest.mark.parametrize(("sections", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_would_change_frozen_weights_is_refused(room, joint, tmp_path, sections, message):
  pairs = {"kind": "jsonl", "path": str(room / "train.jsonl")}
  if "data" in sections:
    sections = {"data": {"train": pairs, "validation": pairs, "max_length": 32, **sections["data"]}}
  config = experiment(
    room, {"weight": 1.0, "alone": True}, init_from=joint,
    evaluation={"metric": "length_loss"}, **sections,
  )  # fmt: skip
  with pytest.raises(UserError, match=message):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
