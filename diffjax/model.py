"""A model as people hold it: architecture, contract, parameters, tokenizer; and `load`."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffjax import checkpoints, sharding, tokenizers
from diffjax.config import (
  ComputeConfig,
  Contract,
  ExperimentConfig,
  LoraConfig,
  MeshConfig,
  ModelConfig,
  contract_from_dict,
  load_config,
  lora_config_from_dict,
  model_config_from_dict,
)
from diffjax.conversion import adapting, exporting, importing, leaves, native, pruning
from diffjax.models import lora, transformer
from diffjax.types import Array, Denoiser, MissingInput, Params, Shards, UserError

ParameterDtype = Literal["float32", "bfloat16"]

_SHIPPED = Path(__file__).parent / "assets"  # models that come with the package, by name

# The parts of a run's directory.
CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"


@dataclasses.dataclass(frozen=True)
class Model:
  """Everything needed to score or sample; the tokenizer may be None."""

  config: ModelConfig
  contract: Contract
  params: Params
  tokenizer: tokenizers.Tokenizer | None
  compute: ComputeConfig = ComputeConfig()
  family: str = ""  # the foreign model_type that the weights came with

  def denoiser(
    self,
    segments: Array,
    *,
    params: Params | None = None,
    canvas: Array | None = None,
    positions: Array | None = None,
    order: Array | None = None,
    dropout: Array | None = None,
    shards: Shards | None = None,
  ) -> Denoiser:
    """The network on rows with these segments int32[B, L]; see models/transformer.py:bind.

    Under `jax.jit`, pass `params` as a traced argument, or they become constants of the program.
    """
    return transformer.bind(
      self.params if params is None else params,
      segments,
      config=self.config,
      contract=self.contract,
      compute=self.compute,
      canvas=canvas,
      positions=positions,
      order=order,
      dropout=dropout,
      shards=shards,
    )

  def logits(self, tokens: Array, segments: Array | None = None) -> Array:
    """float32[B, L, vocab_size] for int32[B, L] tokens, nothing suppressed. For small checks.

    Raises:
      UserError: the tokens are no rows, are too many for the positions, or outside the vocabulary.
    """
    tokens, config = jnp.asarray(tokens), self.config
    if tokens.ndim != 2 or not tokens.size or tokens.shape[1] > config.max_positions:
      raise UserError(
        f"tokens of shape {tokens.shape} must be [rows, length] with up to {config.max_positions} "
        f"positions"
      )
    if not 0 <= tokens.min() <= tokens.max() < config.vocab_size:
      raise UserError(
        f"tokens from {tokens.min()} to {tokens.max()} must be in 0 .. {config.vocab_size - 1}"
      )
    segments = jnp.ones_like(tokens) if segments is None else jnp.asarray(segments)
    return transformer.logits(self.denoiser(segments), tokens)[..., : config.vocab_size]

  def length_logits(
    self,
    tokens: Array,
    segments: Array,
    *,
    params: Params | None = None,
    shards: Shards | None = None,
  ) -> Array:
    """float32[B, classes]: class c says that c + 1 tokens answer, their </s> not counted.

    Args:
      tokens: int32[B, L], `<s> prompt` of one example a row, without answer and </s>.
      segments: int32[B, L]; 0 is padding.
      params: others for the same network; as for `denoiser`.
      shards: how hidden states lie on a mesh; None: on one device.

    Raises:
      UserError: the model has no length head.
    """
    if not self.config.length_classes:
      raise UserError(
        "this model has no length head; train one over it (configs/length_head.py), or give lengths"
      )
    return transformer.length_logits(
      self.params if params is None else params,
      segments,
      tokens,
      config=self.config,
      contract=self.contract,
      compute=self.compute,
      shards=shards,
    )

  def meta(self) -> dict[str, Any]:
    """The plain values that a checkpoint keeps beside the parameters."""
    return {
      "model": dataclasses.asdict(self.config),
      "contract": dataclasses.asdict(self.contract),
      "family": self.family,
      "tokenizer_sha256": self.tokenizer.sha256 if self.tokenizer else None,
    }


def resolve(name: str | Path) -> Path:
  """A path as given, or the directory of a shipped model of that name. Raises UserError."""
  path = Path(name)
  if path.exists():
    return path
  if (_SHIPPED / path).exists() and not path.is_absolute():
    return _SHIPPED / path
  shipped = sorted(entry.name for entry in _SHIPPED.iterdir() if entry.is_dir())
  names = ", ".join(shipped)
  raise MissingInput(f"{path} does not exist; give a path, or a shipped model: {names}")


def kind_of(directory: Path) -> Literal["run", "checkpoint", "model", "weights"]:
  """What a directory is: a run, one checkpoint of it, a model of ours, or foreign weights.

  Raises:
    UserError: it is none of them.
  """
  if (directory / CHECKPOINTS).is_dir():
    return "run"
  if directory.parent.name == CHECKPOINTS and directory.name.isdigit():
    return "checkpoint"
  if not (directory / CONFIG_FILE).is_file():
    raise MissingInput(
      f"{directory} is no model: it has neither {CHECKPOINTS}/ (a run) nor {CONFIG_FILE}"
    )
  return "model" if native.is_native(directory) else "weights"


def load(
  path: str | Path,
  *,
  compute: ComputeConfig | None = None,
  on_host: bool = False,
  mesh: MeshConfig | Mesh | None = None,
  dtype: ParameterDtype = "float32",
) -> Model:
  """Loads a model from any directory we understand.

  A causal source (GPT-2, Llama, Qwen) is the causal model itself: attention causal, no shift, no
  mask. Training turns it into a diffusion model (config section `adaptation`).

  Args:
    path: a run's workdir (its best checkpoint by the validation metric, else the newest), one
      checkpoint `RUN/checkpoints/STEP`, a converted model, a Hugging Face directory, or the name
      of a shipped model.
    compute: precision of the activations; default: `dtype`.
    on_host: leave the parameters of a directory of weights in their files, as
      conversion/leaves.py:Leaf, to be written elsewhere or placed in a sharding of the caller's;
      what a run itself has trained is put on the first device all the same.
    mesh: over all devices, of all processes, or one that sharding.make_mesh made of some; every
      parameter lands there in its shards, and no device, nor any host, holds a whole model.
      Default: the first device.
    dtype: that the parameters are held in; bfloat16 halves what they take.

  Raises:
    UserError: nothing there, or not readable; or a parameter does not divide over the mesh.
  """
  directory = resolve(path)
  compute = compute or ComputeConfig(dtype=dtype)
  made = sharding.make_mesh(mesh) if isinstance(mesh, MeshConfig) else mesh
  kind = kind_of(directory)
  if kind in ("run", "checkpoint"):
    return _load_run(checkpoint_of(directory), compute, on_host=on_host, mesh=made, dtype=dtype)
  tokenizer = tokenizers.find(directory)
  if kind == "model":
    imported = native.read_native(directory, tokenizer=tokenizer)
  else:
    known = tokenizer.special_ids if tokenizer else {}
    imported = importing.read_huggingface(directory, special_ids=known)
  contract = imported.contract
  if tokenizer is not None:
    contract = dataclasses.replace(contract, known_ids=tokenizer.vocab_size)
    try:
      contract.check(imported.config.vocab_size)
    except UserError as error:
      raise UserError(f"{directory}: {error}") from error
  params = imported.params if on_host else _placed(imported.params, made, dtype)
  return Model(imported.config, contract, params, tokenizer, compute, imported.family)


def convert(
  source: str | Path,
  target: str | Path,
  *,
  export: Literal["diffjax", "huggingface"] = "diffjax",
  dtype: Literal["float32", "bfloat16"] = "float32",
  prune_vocab: Iterable[str] | None = None,
  progress: str = "",
) -> pruning.Saving | None:
  """Writes a model from any directory `load` understands into a new directory.

  Weights are read and written piece by piece; only what a run itself has trained is in memory as a
  whole.

  Args:
    source: what to read.
    target: new or empty.
    export: our own format, or one that transformers loads, in the family the weights came with.
    dtype: of the stored tensors.
    prune_vocab: a corpus; rows of the vocabulary that none of its texts uses are left out.
    progress: what a progress bar with bytes is labelled; empty shows none.

  Returns:
    What pruning saved; None without it.

  Raises:
    UserError: as `load`; or the target exists and is not empty, or the model has no tokenizer to
      prune.
  """
  model = load(source, on_host=True)
  saving = None
  if prune_vocab is not None:
    if model.tokenizer is None:
      raise UserError(f"{tokenizers.missing(resolve(source))}; no corpus says which rows it uses")
    config, contract, params, tokenizer, saving = pruning.prune(
      model.config, model.contract, model.params, model.tokenizer, prune_vocab
    )
    model = Model(config, contract, params, tokenizer, model.compute, model.family)
  if export == "huggingface" and isinstance(model.tokenizer, tokenizers.PrunedTokenizer):
    raise UserError(
      "a pruned vocabulary has no tokenizer that transformers reads, so its ids would mean other "
      "words there; convert without an export"
    )
  write = {"diffjax": native.write_native, "huggingface": exporting.write_huggingface}[export]
  write(
    Path(target),
    model.config,
    model.contract,
    model.params,
    family=model.family,
    tokenizer=model.tokenizer,
    dtype=dtype,
    progress=progress,
  )
  return saving


class Checkpoint(NamedTuple):
  """One checkpoint of a run, and the plain values kept with it."""

  workdir: Path
  step: int
  meta: dict[str, Any]

  @property
  def directory(self) -> Path:
    """Where it lies; `load` takes it too."""
    return self.workdir / CHECKPOINTS / str(self.step)


def checkpoint_of(directory: Path) -> Checkpoint:
  """The checkpoint that `load` takes of a run (the best, else the newest), or that it is.

  Raises:
    UserError: there is no finished one.
  """
  is_run = (directory / CHECKPOINTS).is_dir()
  workdir = directory if is_run else directory.parent.parent
  metric = load_config(workdir / CONFIG_FILE).evaluation.metric
  with checkpoints.Checkpoints(workdir / CHECKPOINTS, metric=metric, read_only=True) as saved:
    step = saved.best() or saved.latest() if is_run else int(directory.name)
    if step is None:
      raise MissingInput(f"{workdir} has no finished checkpoint yet; train it first")
    return Checkpoint(workdir, step, saved.meta(step))


def _load_run(
  found: Checkpoint, compute: ComputeConfig, *, on_host: bool, mesh: Mesh | None, dtype: str
) -> Model:
  meta = found.meta
  config = model_config_from_dict(meta["model"])
  contract = contract_from_dict(meta["contract"])
  adapters = lora_config_from_dict(meta["lora"])
  trained = transformer.shapes(config, adapters)
  targets = _layout(trained, mesh)
  kept_as = jnp.dtype(dtype)
  if meta["frozen"]:  # little is restored then; what it belongs to is merged on the host
    trained = lora.split(trained, length_head=True)[1]
    targets = jax.tree.map(lambda _: _one_device(), trained)
    kept_as = jnp.dtype("float32")
  target = jax.tree.map(
    lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, kept_as, sharding=layout),
    trained,
    targets,
  )
  item = "ema_params" if "ema_params" in meta["items"] else "params"
  with checkpoints.Checkpoints(found.workdir / CHECKPOINTS, read_only=True) as saved:
    params = saved.restore(found.step, {item: target})[item]
  if meta["frozen"]:
    params = _completed(found, params, adapters)
    if not on_host:
      params = _placed(params, mesh, dtype)
  tokenizer = tokenizer_of_run(found.workdir, meta)
  return Model(config, contract, params, tokenizer, compute, meta["family"])


def _completed(found: Checkpoint, trained: Params, adapters: LoraConfig) -> Params:
  """The frozen weights that a run trained beside, its adapters merged in, with its length head."""
  _, base = frozen_weights(found.meta, load_config(found.workdir / CONFIG_FILE))
  params = adapting.merge_adapters(base, trained, adapters) if adapters.rank else base
  head = trained.get("length_head")
  return {**params, "length_head": jax.tree.map(leaves.as_leaf, head)} if head else params


def frozen_weights(meta: Mapping[str, Any], experiment: ExperimentConfig) -> tuple[Path, Params]:
  """Where the frozen weights of a run lie, and what it has of them, as Leafs.

  Args:
    meta: of one of its checkpoints.
    experiment: its config, whose `init_from` may say where they lie by now.

  Raises:
    UserError: they are gone, or no longer the same.
  """
  frozen = meta["frozen"]
  directory = adapting.find_weights([frozen["resolved"], experiment.init_from], frozen["sha256"])
  source = load(directory, on_host=True)
  return directory, adapting.base_params(
    source.params,
    source.contract,
    config=model_config_from_dict(meta["model"]),
    contract=contract_from_dict(meta["contract"]),
    adaptation=experiment.adaptation,
    seed=experiment.seed,
  )


def _placed(params: Params, mesh: Mesh | None, dtype: str) -> Params:
  """Leafs on the first device or on the mesh, one after the other."""
  place = functools.partial(leaves.place, dtype=jnp.dtype(dtype))
  return jax.tree.map(place, params, _layout(params, mesh))


def _layout(params: Params, mesh: Mesh | None) -> Params:
  """A sharding for every parameter: on the mesh, or the first device."""
  if mesh is None:
    return jax.tree.map(lambda _: _one_device(), params)
  return sharding.shardings(params, mesh)


def _one_device() -> jax.sharding.Sharding:
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def tokenizer_of_run(workdir: Path, meta: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """The run's tokenizer, checked against a checkpoint's meta. Raises UserError."""
  tokenizer = tokenizers.load(workdir / TOKENIZER)
  if tokenizer.sha256 != meta["tokenizer_sha256"]:
    raise UserError(f"{workdir / TOKENIZER} is not the tokenizer that this run was trained with")
  return tokenizer
