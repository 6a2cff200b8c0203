"""What foreign weights lack to be trained here: a row for the mask; and the name of frozen ones."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffjax.config import AdaptationConfig, Contract, LoraConfig, ModelConfig
from diffjax.conversion.leaves import Leaf, as_leaf
from diffjax.models import lora
from diffjax.types import Params, UserError

# In a run: its checkpoints; in one of these the item that `load` takes, and what describes it.
_CHECKPOINTS, _ITEMS, _META = "checkpoints", ("ema_params", "params"), "meta"


def add_mask(
  config: ModelConfig,
  contract: Contract,
  params: Params,
  *,
  adaptation: AdaptationConfig,
  seed: int,
  tokenizer_ids: int,
  tokenizer_mask: int = -1,
) -> tuple[ModelConfig, Contract, Params]:
  """Gives a model that has no mask one: an id it has, or a row of its own (2410.17891).

  The new row is the tokenizer's own mask where it has one, else the first id that the tokenizer
  does not make; where the embedding has no row to spare, one is appended.

  Args:
    config: of a model whose contract names no mask.
    contract: of that model.
    params: nested dict of arrays or of Leafs; nothing is read yet.
    adaptation: `mask_id` and `mask_noise`.
    seed: draws the new row's noise.
    tokenizer_ids: how many ids the tokenizer makes.
    tokenizer_mask: the tokenizer's mask id, -1 where it knows none.

  Raises:
    UserError: `mask_id` is outside the vocabulary, has another role, or is not the tokenizer's.
  """
  rows, mask = config.vocab_size, adaptation.mask_id
  if mask >= 0:
    roles = {contract.bos_id: "bos_id", contract.pad_id: "pad_id", contract.eos_id: "eos_id"}
    fault = ""
    if mask >= rows:
      fault = f"the vocabulary has {rows} rows"
    elif mask in roles:
      fault = f"this is the {roles[mask]}"
    elif 0 <= tokenizer_mask != mask:
      fault = f"the tokenizer has a mask, id {tokenizer_mask}"
    if fault:
      raise UserError(
        f"config.adaptation.mask_id = {mask}: {fault}; name an id that text has no use for, or "
        f"leave it out for a row of its own"
      )
  else:
    mask = tokenizer_mask if tokenizer_mask >= 0 else tokenizer_ids
  known = dataclasses.replace(contract, mask_id=mask, known_ids=tokenizer_ids)
  grown = dataclasses.replace(config, vocab_size=max(rows, mask + 1))
  known.check(grown.vocab_size)
  params = base_params(
    params, contract, config=grown, contract=known, adaptation=adaptation, seed=seed
  )
  return grown, known, params


def base_params(
  params: Params,
  source: Contract,
  *,
  config: ModelConfig,
  contract: Contract,
  adaptation: AdaptationConfig,
  seed: int,
) -> Params:
  """A source's parameters as training begins with them: no length head, the mask's row if any.

  The row is the mean of the rows that the tokenizer makes, plus normal noise with a standard
  deviation of `mask_noise` times that of their entries; an untied head's row likewise. Where
  source and settings are the same, so is the result, bit by bit.

  Args:
    params: nested dict of arrays or of Leafs; the result is one of Leafs, read when asked for.
    source: the contract that the parameters came with.
    config, contract: those of training, the mask in them.
    adaptation, seed: as for `add_mask`.
  """
  params = {name: part for name, part in params.items() if name != "length_head"}
  params = jax.tree.map(as_leaf, params)
  if source.denoises or adaptation.mask_id >= 0 or not contract.denoises:
    return params
  row = functools.partial(
    _with_row,
    rows=config.table_rows,
    row=contract.mask_id,
    known=contract.known_ids or config.vocab_size,
    noise=adaptation.mask_noise,
  )
  tokens = row(params["embedding"]["tokens"], seed=(seed, 0))
  params["embedding"] = {**params["embedding"], "tokens": tokens}
  head = dict(params.get("head", {}))
  if "table" in head:
    head["table"] = row(head["table"], seed=(seed, 1))
  if "bias" in head:
    head["bias"] = _grown(head["bias"], config.table_rows)
  return {**params, "head": head} if head else params


def merge_adapters(base: Params, trained: Params, adapters: LoraConfig) -> Params:
  """Frozen weights with adapters in them, as Leafs: W + (alpha / rank) A B is formed when read.

  Args:
    base: nested dict of arrays or of Leafs.
    trained: the adapters, arrays.
    adapters: what they were trained with; the weights are rounded to its `frozen_dtype` first,
      beside which the adapters learned.
  """
  merged: dict[str, Any] = {}
  for name, part in base.items():
    if isinstance(part, Mapping):
      merged[name] = merge_adapters(part, trained.get(name, {}), adapters)
    else:
      sides = trained if name == "kernel" else {}
      merged[name] = _with_adapter(as_leaf(part), sides, adapters)
  return merged


def _with_adapter(leaf: Leaf, sides: Params, adapters: LoraConfig) -> Leaf:
  """The leaf rounded as in training; with `sides`, lora_a and lora_b, their product added."""

  def read(start: int, stop: int) -> np.ndarray:
    rounded = leaf.read(start, stop).astype(adapters.frozen_dtype).astype(np.float32)
    if not sides:
      return rounded
    rows = {name: side[start:stop] for name, side in sides.items()}
    return np.asarray(lora.merge({"kernel": rounded, **rows}, adapters)["kernel"])

  return dataclasses.replace(leaf, dtype=np.dtype(np.float32), read=read)


def weights_sha256(directory: Path) -> str:
  """The SHA-256 of weights: over names and bytes of the files that hold them.

  Args:
    directory: safetensors files with their index, or one checkpoint of a run.

  Raises:
    UserError: there are none, or they cannot be read.
  """
  items = [name for name in _ITEMS if (directory / name).is_dir()]
  if items:
    found = [path for name in (items[0], _META) for path in (directory / name).rglob("*")]
  else:
    found = [*directory.glob("*.safetensors"), *directory.glob("*.safetensors.index.json")]
  files = {path.relative_to(directory).as_posix(): path for path in found if path.is_file()}
  if not files:
    raise UserError(f"{directory} holds no weights; give the directory that the run started from")
  digest = hashlib.sha256()
  try:
    for name in sorted(files):
      with files[name].open("rb") as file:
        digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
  except OSError as error:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
  return digest.hexdigest()


def find_weights(places: Sequence[str | Path], sha256: str) -> Path:
  """The directory that holds the weights with this `weights_sha256`.

  Args:
    places: where to look, in this order: directories of weights, checkpoints, or runs, of which
      every checkpoint is looked at.
    sha256: what a checkpoint's meta says of its frozen weights.

  Raises:
    UserError: none does.
  """
  there = [Path(place) for place in places if Path(place).is_dir()]
  for place in there:
    steps = sorted((place / _CHECKPOINTS).glob("[0-9]*"))
    for directory in steps or [place]:
      with contextlib.suppress(UserError):  # no weights, or none that can be read
        if weights_sha256(directory) == sha256:
          return directory
  names = ", ".join(dict.fromkeys(map(str, there or places)))
  fault = "not the ones that this run was trained with" if there else "no longer there"
  raise UserError(
    f"the frozen weights {names} are {fault} (SHA-256 {sha256[:12]}...); restore them, or resume "
    f"the training with --config.init_from=WHERE they are"
  )


def _grown(leaf: Leaf, rows: int) -> Leaf:
  """The leaf with zeros below its last row, up to so many rows."""

  def read(start: int, stop: int) -> np.ndarray:
    block = np.zeros((stop - start, *leaf.shape[1:]), leaf.dtype)
    end = min(stop, leaf.shape[0])
    if start < end:
      block[: end - start] = leaf.read(start, end)
    return block

  return dataclasses.replace(leaf, shape=(rows, *leaf.shape[1:]), read=read)


def _with_row(
  leaf: Leaf, *, rows: int, row: int, known: int, noise: float, seed: tuple[int, int]
) -> Leaf:
  """The table [V, D] with `rows` rows, of which `row` is new."""
  grown = _grown(leaf, rows)

  @functools.cache  # every shard asks for it, and the whole table has to be read for it
  def drawn() -> np.ndarray:
    mean, deviation = _moments(leaf, lambda ids: (ids < known) & (ids != row))
    random = np.random.default_rng(seed)
    return mean + noise * deviation * random.standard_normal(leaf.shape[1])

  def read(start: int, stop: int) -> np.ndarray:
    block = grown.read(start, stop)
    if start <= row < stop:
      block[row - start] = drawn()
    return block

  return dataclasses.replace(grown, read=read)


def _moments(leaf: Leaf, chosen: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, float]:
  """The mean of the chosen rows float64[D], and the standard deviation of their entries."""
  count, total, squares = 0, np.zeros(leaf.shape[1]), 0.0
  for start, stop in leaf.pieces():
    part = leaf.read(start, stop)[chosen(np.arange(start, stop))].astype(np.float64)
    count, total, squares = count + len(part), total + part.sum(0), squares + np.square(part).sum()
  mean = total / count
  return mean, float(np.sqrt(max(squares / (count * leaf.shape[1]) - mean.mean() ** 2, 0.0)))
