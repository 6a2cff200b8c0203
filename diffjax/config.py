"""An experiment as data: frozen dataclasses, and every check of a value, before JAX starts.

A config file is a Python file with `get_config()` (or `get_config(argument)`, chosen by
`file.py:argument`) that returns an `ml_collections.ConfigDict`. It names only what differs from
the defaults here. `load_config` turns it, with overrides, into an `ExperimentConfig`. The file is
long because the whole schema stands in one place, and every check of a value beside its field.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from diffjax.types import UserError

Section = TypeVar("Section")


def _require(condition: bool, field: str, value: object, remedy: str) -> None:
  if not condition:
    raise UserError(f"config.{field} = {value!r}: {remedy}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryConfig:
  """Rotary positions (2104.09864), stretched as Llama 3.1 stretches them where factor > 1."""

  theta: float = 10000.0
  local_theta: float = 0.0  # of local layers (ModernBERT); 0: theta
  factor: float = 1.0  # slow frequencies are divided by it
  low_frequency: float = 1.0  # turns over original_positions below which all of factor applies
  high_frequency: float = 4.0  # and above which none of it does
  original_positions: int = 8192  # what the factor stretches from

  def check(self) -> None:
    """Raises UserError for values that no model can have."""
    for name in ("theta", "factor", "low_frequency", "original_positions"):
      value = getattr(self, name)
      _require(value > 0, f"model.rotary.{name}", value, "must be > 0")
    local, high = self.local_theta, self.high_frequency
    _require(local >= 0, "model.rotary.local_theta", local, "must be >= 0 (0: theta)")
    _require(
      high > self.low_frequency, "model.rotary.high_frequency", high,
      f"must exceed low_frequency {self.low_frequency}",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """One Transformer: every architecture of every family is a choice of these fields.

  The defaults are XLM-R base's form. In an experiment, sizes left at 0 are read from `init_from`;
  `vocab_size` 0 is the tokenizer's.
  """

  vocab_size: int = 0  # real rows; the stored table is padded to a multiple of 256
  width: int = 0
  layers: int = 0
  heads: int = 0
  kv_heads: int = 0  # heads of keys and values, each shared by heads / kv_heads queries; 0: heads
  head_size: int = 0  # K; 0: width / heads
  ffn_width: int = 0
  # Embeddings.
  positions: Literal["learned", "rotary"] = "learned"
  max_positions: int = 512  # longest row
  position_offset: int = 2  # rows of a learned position table before the first used one
  rotary: RotaryConfig = RotaryConfig()
  token_types: int = 1  # rows of the type table, of which the first is added everywhere; 0: none
  embedding_norm: bool = True
  zero_mask_embedding: bool = False  # ESM-2: masks embed as 0, the rest is rescaled by their share
  # Blocks.
  norm: Literal["post", "pre"] = "post"  # pre: before each half of a block, and after the last
  norm_kind: Literal["layer", "layer_without_bias", "rms"] = "layer"
  norm_epsilon: float = 1e-5
  first_attention_norm: bool = True  # False: the first block attends to what is not normed
  attention_bias: Literal["all", "qkv", "none"] = "all"  # qkv: not on the output projection
  query_key_norm: bool = False  # RMS norm of each head's queries and keys (Qwen 3)
  window: int = 0  # positions that a local layer sees to either side; 0: no layer is local
  global_every: int = 1  # of the layers 0, 1, ... every so many-th, from the first, is not local
  activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu"  # gelu: exact (erf)
  gated: bool = False  # activation(gate x) * up x, as in GeGLU and SwiGLU
  dense_bias: bool = True  # in the feed-forward part and in the masked head's dense
  dropout: float = 0.1  # hidden states
  attention_dropout: float = 0.0  # attention probabilities; above 0 no fused kernel is used
  # Head.
  head: Literal["masked", "linear"] = "masked"  # masked: dense, activation, norm before projecting
  head_bias: bool = True  # on the vocabulary
  tied: bool = True  # the projection is the embedding table
  length_classes: int = 0  # of a length head over the trunk (2308.12219, section 3); 0: none

  def __post_init__(self):
    sizes = ("width", "layers", "heads", "ffn_width")
    given = [name for name in sizes if getattr(self, name)]
    counts = ("vocab_size", "position_offset", "kv_heads", "head_size", "token_types", "window")
    for name in (*sizes, *counts, "length_classes"):
      _require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "must be >= 0")
    for name in sizes:
      _require(
        not given or name in given, f"model.{name}", 0,
        f"set it too (width, layers, heads and ffn_width go together; {given[:1]} is set)",
      )  # fmt: skip
    if given:
      if not self.head_size:
        _require_divisor("model.heads", self.heads, "width", self.width)
      _require_divisor("model.kv_heads", self.key_heads, "heads", self.heads)
      _require(
        self.positions == "learned" or self.head_width % 2 == 0, "model.head_size",
        self.head_width, "rotary positions turn pairs of a head; make it even",
      )  # fmt: skip
    self.rotary.check()
    _require(self.max_positions >= 2, "model.max_positions", self.max_positions, "must be >= 2")
    _require(self.norm_epsilon > 0, "model.norm_epsilon", self.norm_epsilon, "must be > 0")
    every = self.global_every
    _require(
      every >= 2 if self.window else every == 1, "model.global_every", every,
      f"must be >= 2 where layers are local (window = {self.window}), else 1",
    )  # fmt: skip
    _require(
      self.norm == "pre" or self.first_attention_norm, "model.first_attention_norm", False,
      "only norm 'pre' can leave it out",
    )  # fmt: skip
    for name in ("dropout", "attention_dropout"):
      rate = getattr(self, name)
      _require(0 <= rate < 1, f"model.{name}", rate, "must be in [0, 1)")

  @property
  def is_complete(self) -> bool:
    """Whether the sizes are given here, and not left to `init_from`."""
    return self.width > 0

  @property
  def head_width(self) -> int:
    """K, the width of one attention head."""
    return self.head_size or self.width // self.heads

  @property
  def key_heads(self) -> int:
    """Heads of keys and values."""
    return self.kv_heads or self.heads

  @property
  def table_rows(self) -> int:
    """V as stored: vocab_size rounded up to a multiple of 256, whatever the mesh."""
    return -(-self.vocab_size // 256) * 256


def _require_divisor(field: str, value: int, of: str, number: int) -> None:
  if number % value:
    legal = [n for n in range(1, min(number, 2**16) + 1) if number % n == 0]
    nearest = sorted(legal, key=lambda n: abs(n - value))[:2]
    _require(False, field, value, f"must divide {of} {number}; nearest are {nearest}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contract:
  """What training and sampling must agree on; part of every saved model."""

  bos_id: int
  pad_id: int
  eos_id: int
  mask_id: int  # -1: none, as in a causal model as it was published
  known_ids: int = 0  # ids that the tokenizer makes; later rows are padding. 0: all of them
  # Who sees whom: everything; or a prompt itself, and the answer the prompt and itself, as a whole
  # (prefix) or its own and earlier blocks of block_size positions; or what is earlier.
  attention: Literal["full", "prefix", "blocks", "causal"] = "full"
  block_size: int = 0  # of attention 'blocks'; else 0
  openness: float = 0.0  # share of the later positions that causal attention sees, while annealed
  output_shift: int = 0  # 1: output n - 1 predicts token n, as in what was a causal model
  end: Literal["given", "predicted"] = (
    "given"  # whether </s> stands after a sampled canvas, or in it
  )
  end_padding: int = 0  # answers were filled up with </s> to a multiple of it; 0: had one </s>
  chat: bool = False  # prompts are turns of the tokenizer's chat template

  def check(self, vocab_size: int) -> None:
    """Raises UserError when an id lies outside the vocabulary or two roles share one."""
    if self.known_ids > vocab_size:
      raise UserError(
        f"the tokenizer has {self.known_ids} ids, the embedding {vocab_size} rows; use the "
        f"tokenizer that belongs to these weights"
      )
    for name in ("bos_id", "pad_id", "eos_id", "mask_id"):
      value = getattr(self, name)
      if not 0 <= value < vocab_size and not (name == "mask_id" and not self.denoises):
        raise UserError(f"{name} = {value} is outside the vocabulary of {vocab_size} rows")
    for name in ("bos_id", "pad_id", "eos_id"):
      if getattr(self, name) == self.mask_id:
        raise UserError(f"{name} and mask_id are both {self.mask_id}; the mask needs its own id")
    if self.output_shift not in (0, 1):
      raise UserError(f"output_shift = {self.output_shift} must be 0 or 1")
    if not 0 <= self.openness < 1 or (self.openness and self.attention != "causal"):
      raise UserError(
        f"openness = {self.openness} with attention {self.attention!r}: causal attention has one "
        f"in [0, 1), other attention 0"
      )
    if (self.block_size > 0) != (self.attention == "blocks") or self.block_size < 0:
      raise UserError(
        f"block_size = {self.block_size} with attention {self.attention!r}: attention 'blocks' has "
        f"one >= 1, other attention 0"
      )
    if self.end_padding < 0 or (self.end_padding and self.end == "given"):
      raise UserError(
        f"end_padding = {self.end_padding} with end {self.end!r}: it is >= 0, and 0 where the end "
        f"is given"
      )
    if self.attention == "blocks" and (self.end == "given" or self.end_padding % self.block_size):
      raise UserError(
        f"end_padding = {self.end_padding} with blocks of {self.block_size}: blocks follow each "
        f"other until a predicted end, so answers are filled up to whole blocks of </s>"
      )

  @property
  def denoises(self) -> bool:
    """Whether the model has a mask, and so is one of diffusion; False of a causal source."""
    return self.mask_id >= 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
  """How the same numbers are computed: precision and memory."""

  dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters are float32
  # What the backward pass computes again: nothing, every layer, or what is no matrix product;
  # offload: every layer, from inputs that wait in the host's memory.
  remat: Literal["none", "full", "save_matmuls", "offload"] = "none"
  # The kernel: XLA's own, cuDNN's (GPU), splash (TPU), or what suits the device and the length.
  attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
  vocabulary_chunk: int = 256  # scored positions whose logits exist at one time

  def __post_init__(self):
    chunk = self.vocabulary_chunk
    _require(chunk >= 1, "compute.vocabulary_chunk", chunk, "must be >= 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Devices along each axis; one may be -1 (the rest).

  data and fsdp split the rows of a batch; fsdp splits the weights as well, by their width, and the
  vocabulary by its rows; tensor splits heads, inner widths and the vocabulary; sequence splits the
  positions of a row.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  sequence: int = 1

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    for name, size in sizes.items():
      _require(size == -1 or size >= 1, f"mesh.{name}", size, "must be >= 1, or -1 for the rest")
    _require(
      list(sizes.values()).count(-1) <= 1, "mesh", sizes, "only one axis may be -1 (the rest)"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
  """Where examples come from, and how a record of theirs becomes a prompt and its target.

  jsonl: `path`, one object a line. parquet: `path`, one row a record. pairs: `path` and
  `target_path`, line by line, as fields inputs and targets. text: `path`, one text a line, nothing
  but target. A path may be a pattern (`part-*.jsonl.gz`), whose files follow one another by name;
  text files may be .gz. tfds: `path` is a builder, such as wmt14_translate/de-en, prepared in
  `data_dir` as array_record. generator: the built-in instruction tasks; generator_text: the plain
  text of the same world; path_star: path-star graphs. mixture: `parts`, in shares.
  """

  kind: Literal[
    "none", "jsonl", "parquet", "pairs", "text", "tfds",
    "generator", "generator_text", "path_star", "mixture",
  ] = "none"  # fmt: skip
  name: str = ""  # of a part, in reports; empty: the file's or the kind's
  path: str = ""
  target_path: str = ""
  data_dir: str = ""  # of tfds
  split: str = "train"  # of a generator: train, validation, test; of tfds also train[:10%]
  limit: int = 0  # the first so many examples; for a generator, how many there are
  # From a record to an example.
  task: str = ""  # renders records, see data/tasks.py; empty: their fields inputs and targets
  wording: int = -1  # of the task's instructions; -1: every example draws one
  shots: int = 0  # demonstrations before every example
  demonstrations: str = ""  # files they are drawn from; empty: these, the example itself left out
  shuffle_options: bool = False  # the answer options of every example, by draw
  template: str = "{inputs}"  # how inputs become the prompt
  exclude_language: Literal["", "german"] = ""  # examples with text in it are left out
  # Of a generator and of path_star.
  families: tuple[str, ...] = ()  # of the generator's tasks; empty: see data/generator.py
  arms: int = 2  # of a path-star graph, from its centre
  arm_length: int = 5  # nodes of an arm, the centre counted
  # Of a mixture and its parts.
  parts: tuple["SourceConfig", ...] = ()
  weight: float = 0.0  # of a part: its share, relative to the others'; of all parts or of none
  epochs: float = 1.0  # of a part: without weights its share is (epochs x examples)^(1/temperature)
  cap: int = 0  # of a part: no more examples than so many count for that share; 0: all
  temperature: float = 1.0  # of a mixture

  def check(self, where: str, *, is_part: bool = False) -> None:
    """Raises UserError when the fields contradict the kind, or being part of a mixture or not."""
    for name in ("weight", "epochs", "cap"):
      self._check_belonging(where, name, is_part, "only a part of a mixture has one")
    generated = self.kind in ("generator", "generator_text", "path_star")
    records = self.kind in ("jsonl", "parquet", "pairs", "tfds")
    files = {"jsonl": 1, "parquet": 1, "text": 1, "tfds": 1, "pairs": 2}.get(self.kind, 0)
    for name, number in (("path", 1), ("target_path", 2)):
      value = getattr(self, name)
      need = files >= number
      remedy = "give the file" if need else f"kind {self.kind!r} reads no {name}; leave it empty"
      _require(bool(value) == need, f"{where}.{name}", value, remedy)
    _require(
      self.template.count("{inputs}") == 1, f"{where}.template", self.template,
      "must contain {inputs} exactly once",
    )  # fmt: skip
    for name in ("limit", "shots", "cap"):
      _require(getattr(self, name) >= 0, f"{where}.{name}", getattr(self, name), "must be >= 0")
    _require(
      not generated or self.limit > 0, f"{where}.limit", self.limit,
      "a generator needs the number of examples",
    )  # fmt: skip
    splits = ("train", "validation", "test")
    _require(
      not generated or self.split in splits, f"{where}.split", self.split,
      f"a generator has the splits {', '.join(splits)}",
    )  # fmt: skip
    self._check_belonging(where, "split", generated or self.kind == "tfds", "name another file")
    self._check_belonging(where, "data_dir", self.kind == "tfds", "only tfds has one")
    self._check_belonging(where, "families", self.kind == "generator", "only a generator has them")
    for name in ("arms", "arm_length"):
      self._check_belonging(where, name, self.kind == "path_star", "only path_star has it")
      _require(getattr(self, name) >= 2, f"{where}.{name}", getattr(self, name), "must be >= 2")
    self._check_belonging(where, "task", records, f"kind {self.kind!r} has no records to render")
    for name in ("wording", "shots", "shuffle_options"):
      self._check_belonging(where, name, bool(self.task), "a task renders them: name it in task")
    self._check_belonging(where, "demonstrations", self.shots > 0, "give shots too")
    _require(self.wording >= -1, f"{where}.wording", self.wording, "must be >= -1 (-1: drawn)")
    mixed = self.kind == "mixture"
    self._check_belonging(where, "parts", mixed, "only a mixture has them")
    self._check_belonging(where, "temperature", mixed, "only a mixture has it")
    _require(self.temperature > 0, f"{where}.temperature", self.temperature, "must be > 0")
    if mixed:
      self._check_parts(where)

  @property
  def is_plain_text(self) -> bool:
    """Whether its examples have no prompts."""
    return self.kind in ("text", "generator_text") or self.task in ("text", "wiki40b")

  def _check_belonging(self, where: str, name: str, belongs: bool, remedy: str) -> None:
    value = getattr(self, name)
    default = next(f.default for f in dataclasses.fields(self) if f.name == name)
    _require(belongs or value == default, f"{where}.{name}", value, f"{remedy}; leave it out")

  def _check_parts(self, where: str) -> None:
    _require(len(self.parts) > 0, f"{where}.parts", self.parts, "name the sources that are mixed")
    for name in ("template", "exclude_language", "limit"):
      self._check_belonging(where, name, False, "say it of the parts")
    for number, part in enumerate(self.parts):
      here = f"{where}.parts[{number}]"
      _require(
        part.kind not in ("none", "mixture"), f"{here}.kind", part.kind, "name a plain source"
      )
      part.check(here, is_part=True)
      _require(part.weight >= 0, f"{here}.weight", part.weight, "must be >= 0")
      _require(part.epochs > 0, f"{here}.epochs", part.epochs, "must be > 0")
      _require(
        bool(part.weight) == bool(self.parts[0].weight), f"{here}.weight", part.weight,
        "give every part a weight > 0, or none of them",
      )  # fmt: skip
      plain = part.epochs == 1 and not part.cap
      _require(
        plain or not part.weight, f"{here}.weight", part.weight,
        "shares come from the weights or from epochs and cap; leave one out",
      )  # fmt: skip
    _require(
      self.temperature == 1 or not self.parts[0].weight, f"{where}.temperature", self.temperature,
      "weights are shares as they stand; leave one out",
    )  # fmt: skip
    names = [part.name for part in self.parts if part.name]
    _require(len(names) == len(set(names)), f"{where}.parts", names, "give each its own name")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Sources, and how their examples become rows."""

  tokenizer: str = (
    ""  # a SentencePiece .model, or a folder with one or tokenizer.json; empty: init_from's
  )
  train: SourceConfig = SourceConfig()
  validation: SourceConfig = SourceConfig()
  test: SourceConfig = SourceConfig()
  max_length: int = 512  # tokens of a row with its <s> and </s>
  # Which part of a prompt survives; keep_ends: the instruction and the end of its context.
  too_long: Literal["drop", "keep_start", "keep_end", "keep_ends"] = "drop"
  buckets: tuple[int, ...] = ()  # row lengths to pad to; empty: max_length alone
  batch_size: int = 32
  batch_unit: Literal["rows", "tokens"] = (
    "rows"  # tokens: each bucket has batch_size // length rows
  )
  end_padding: int = 0  # answers are filled up with </s> to a multiple of it; 0: one </s>
  prompt_dropout: float = 0.0  # share of the training rows without their prompt, for guidance
  packing: bool = False  # several examples a row, none of which sees another
  chat: bool = False  # prompts are turns of the tokenizer's chat template
  on_bad_record: Literal["stop", "skip"] = "stop"  # skip: up to 0.1 % are left out, and counted
  workers: int = 0  # reader processes; 0 reads in threads

  def __post_init__(self):
    for name in ("train", "validation", "test"):
      getattr(self, name).check(f"data.{name}")
    for name in ("validation", "test"):
      section = getattr(self, name)
      for held_out in (section, *section.parts):
        own = held_out.split if held_out.kind == "tfds" else held_out.path
        _require(
          not held_out.shots or held_out.demonstrations not in ("", own),
          f"data.{name}.demonstrations", held_out.demonstrations,
          "held-out examples are never shown with their answers; name the training split's",
        )  # fmt: skip
    lengths = self.lengths
    _require(self.max_length >= 3, "data.max_length", self.max_length, "must be >= 3")
    _require(
      list(lengths) == sorted(set(lengths)) and lengths[0] >= 3 and lengths[-1] == self.max_length,
      "data.buckets", self.buckets, f"must ascend from >= 3 to max_length {self.max_length}",
    )  # fmt: skip
    _require(self.batch_size >= 1, "data.batch_size", self.batch_size, "must be >= 1")
    _require(
      self.batch_unit == "rows" or self.batch_size >= self.max_length,
      "data.batch_size", self.batch_size, f"tokens must hold one row of {self.max_length}",
    )  # fmt: skip
    _require(self.workers >= 0, "data.workers", self.workers, "must be >= 0")
    _require(self.end_padding >= 0, "data.end_padding", self.end_padding, "must be >= 0")
    rate = self.prompt_dropout
    _require(0 <= rate < 1, "data.prompt_dropout", rate, "must be in [0, 1)")
    _require(
      not self.packing or not self.buckets, "data.buckets", self.buckets,
      "packed rows are all of max_length; leave them out",
    )  # fmt: skip

  @property
  def lengths(self) -> tuple[int, ...]:
    """The row lengths that batches come in, ascending."""
    return self.buckets or (self.max_length,)

  def rows(self, length: int) -> int:
    """Rows in a batch of the given length bucket."""
    return self.batch_size if self.batch_unit == "rows" else self.batch_size // length


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
  """The forward process and the objective; defaults are the paper's (2308.12219, section 3).

  next_token is the autoregressive control: nothing is noised, attention is causal, and every
  answer position is predicted from the positions before it.
  """

  process: Literal["absorbing", "next_token"] = "absorbing"
  num_timesteps: int = 50  # T; 0 is continuous time
  schedule: Literal["linear", "cosine", "polynomial"] = "linear"
  power: float = 1.0  # of the polynomial schedule, alpha = 1 - t^power
  weight: Literal["linear", "elbo", "constant"] = "linear"
  normalizer: Literal["canvas", "tokens", "corrupted"] = "canvas"
  times: Literal["stratified", "independent", "fixed"] = "stratified"
  mask_ratio: float = 0.0  # of times = 'fixed': 0.15 is ordinary masked-LM training
  coupled: bool = True  # two nested corruptions of every row (RDM)
  label_smoothing: float = 0.0
  # Who sees whom from now on (see Contract.attention); own: as in the weights, full from scratch.
  attention: Literal["own", "full", "prefix", "blocks", "causal"] = "own"
  block_size: int = 0  # of attention 'blocks': of an example one block is noised at a time

  def __post_init__(self):
    steps, power, ratio = self.num_timesteps, self.power, self.mask_ratio
    _require(steps >= 0, "diffusion.num_timesteps", steps, "must be >= 0 (0: continuous time)")
    if self.schedule == "polynomial":
      _require(power > 0, "diffusion.power", power, "must be > 0")
    else:
      _require(power == 1, "diffusion.power", power, "only schedule 'polynomial' takes a power")
    if self.times == "fixed":
      _require(
        0 < ratio <= 1, "diffusion.mask_ratio", ratio, "times 'fixed' needs a ratio in (0, 1]"
      )
      _require(
        not self.coupled, "diffusion.coupled", True, "times 'fixed' has one noise level: set False"
      )
    else:
      _require(ratio == 0, "diffusion.mask_ratio", ratio, "only times 'fixed' takes a ratio")
    if self.process == "next_token":
      legal = {"attention": "causal", "coupled": False, "weight": "constant"}
      unused = ("num_timesteps", "schedule", "power", "times", "mask_ratio", "block_size")
      legal |= {f.name: f.default for f in dataclasses.fields(self) if f.name in unused}
      for name, value in legal.items():
        _require(
          getattr(self, name) == value, f"diffusion.{name}", getattr(self, name),
          f"process 'next_token' has no noise and looks back alone: set {value!r}",
        )  # fmt: skip
    smoothing = self.label_smoothing
    _require(0 <= smoothing < 1, "diffusion.label_smoothing", smoothing, "must be in [0, 1)")
    size, blocks = self.block_size, self.attention == "blocks"
    _require(
      size >= 1 if blocks else size == 0, "diffusion.block_size", size,
      f"attention {self.attention!r} {'needs one >= 1' if blocks else 'has none: set 0'}",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptationConfig:
  """How causal weights become a diffusion model (DiffuGPT and DiffuLLaMA, 2410.17891).

  Weights that are no causal model refuse every field but its default.
  """

  anneal_steps: int = 0  # over which attention opens from causal to full; 0: full from the start
  mask_id: int = -1  # an id to use as mask; -1: a row of its own, the mean embedding plus noise
  mask_noise: float = 0.02  # standard deviation of that noise, in those of the embedding's entries

  def __post_init__(self):
    steps, token, noise = self.anneal_steps, self.mask_id, self.mask_noise
    _require(steps >= 0, "adaptation.anneal_steps", steps, "must be >= 0")
    _require(token >= -1, "adaptation.mask_id", token, "must be an id, or -1 for a new row")
    _require(noise >= 0, "adaptation.mask_noise", noise, "must be >= 0")


LoraTarget = Literal["query", "key", "value", "output", "up", "gate", "down"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
  """Low-rank adapters beside frozen weights: x W + (alpha / rank) drop(x) A B (2106.09685)."""

  rank: int = 0  # 0: no adapters, all weights are trained
  alpha: float = 16.0
  targets: tuple[LoraTarget, ...] = ("query", "value")  # projections of every block
  dropout: float = 0.0  # of the adapters' input
  frozen_dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights that are not trained

  def __post_init__(self):
    _require(self.rank >= 0, "lora.rank", self.rank, "must be >= 0 (0: none)")
    _require(self.alpha > 0, "lora.alpha", self.alpha, "must be > 0")
    _require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "must be in [0, 1)")
    _require(
      len(self.targets) == len(set(self.targets)) > 0, "lora.targets", self.targets,
      f"name each once, of {', '.join(get_args(LoraTarget))}",
    )  # fmt: skip
    if not self.rank:
      given = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
      _require(not given, "lora.rank", 0, f"give the rank too; lora.{', lora.'.join(given)} is set")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthConfig:
  """A head that predicts how long the answer is (2308.12219, section 3)."""

  weight: float = 0.0  # of its loss beside the diffusion loss; 0: no such head is trained
  classes: int = 0  # lengths 1 .. classes; 0: those of the weights' own head, else data.max_length
  alone: bool = False  # the network under it stays as it is, and only the head is trained

  def __post_init__(self):
    _require(self.weight >= 0, "length.weight", self.weight, "must be >= 0 (0: no length head)")
    _require(self.classes >= 0, "length.classes", self.classes, "must be >= 0")
    for name in ("classes", "alone"):
      value = getattr(self, name)
      _require(
        self.weight > 0 or not value, f"length.{name}", value, "give length.weight too, such as 1"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """The optimizer, clipping, the learning-rate curve and the moving average of the weights."""

  # Adafactor (1804.04235) keeps sums over rows and columns in place of the second moments.
  name: Literal["adamw", "adafactor"] = "adamw"
  first_moment_dtype: Literal["float32", "bfloat16"] = "float32"  # of adamw
  learning_rate: float = 5e-5
  beta1: float = 0.9
  beta2: float = 0.98
  epsilon: float = 1e-8
  weight_decay: float = 0.01  # on matrices and tables, not on biases and norms
  clip_norm: float = 1.0
  warmup: Literal["linear", "logarithmic"] = "linear"
  warmup_steps: int = 0
  decay: Literal["constant", "inverse_sqrt", "cosine", "linear"] = "constant"
  ema_decay: float = 0.0  # 0 keeps no average

  def __post_init__(self):
    for name in ("learning_rate", "epsilon", "clip_norm"):
      value = getattr(self, name)
      _require(value > 0, f"optimizer.{name}", value, "must be > 0")
    for name in ("beta1", "beta2", "ema_decay"):
      value = getattr(self, name)
      _require(0 <= value < 1, f"optimizer.{name}", value, "must be in [0, 1)")
    for name in ("weight_decay", "warmup_steps"):
      value = getattr(self, name)
      _require(value >= 0, f"optimizer.{name}", value, "must be >= 0")
    _require(
      self.warmup == "linear" or self.warmup_steps >= 2, "optimizer.warmup_steps",
      self.warmup_steps, "a logarithmic warmup needs at least 2 steps",
    )  # fmt: skip
    for name in ("first_moment_dtype", "beta1", "beta2", "epsilon"):
      value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
      _require(
        self.name == "adamw" or value == default, f"optimizer.{name}", value,
        "only adamw has it; leave it out",
      )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
  """How long, how it is split, what is written when."""

  steps: int = 1000
  microbatches: int = 1  # gradient accumulation
  log_every: int = 10
  eval_every: int = 0  # 0: only at the end
  checkpoint_every: int = 500
  keep_checkpoints: int = 2
  profile_start: int = 0  # the first profiled step; 0: none (touching WORKDIR/profile asks for it)
  profile_steps: int = 3
  stall_seconds: float = 0.0  # a step that takes longer ends the run; 0: as usual steps say

  def __post_init__(self):
    for name in ("steps", "microbatches", "log_every", "checkpoint_every", "keep_checkpoints"):
      value = getattr(self, name)
      _require(value >= 1, f"training.{name}", value, "must be >= 1")
    for name in ("eval_every", "profile_start", "stall_seconds"):
      value = getattr(self, name)
      _require(value >= 0, f"training.{name}", value, "must be >= 0")
    count = self.profile_steps
    _require(1 <= count <= 10, "training.profile_steps", count, "must be in 1 .. 10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
  """How validation examples are decoded and which checkpoint is the best."""

  # Selects the best checkpoint; the last two are of the length head.
  metric: Literal[
    "loss", "bleu", "chrf", "exact_match", "rouge_1", "rouge_2", "rouge_l", "f1", "number",
    "length_accuracy", "length_loss",
  ] = "loss"  # fmt: skip
  examples: int = 200  # of the validation source that are decoded; the loss uses as many
  batch_size: int = 32
  num_steps: int = 10  # S
  strategy: str = "reparam-uncond-deterministic-cosine"
  temperature: float = 0.0  # 0 is argmax

  @property
  def decodes(self) -> bool:
    """Whether the metric is one of decoded text."""
    return self.metric not in ("loss", "length_accuracy", "length_loss")

  def __post_init__(self):
    for name in ("examples", "batch_size", "num_steps"):
      value = getattr(self, name)
      _require(value >= 1, f"evaluation.{name}", value, "must be >= 1")
    _require(self.temperature >= 0, "evaluation.temperature", self.temperature, "must be >= 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
  """Everything that a run depends on."""

  seed: int = 0
  init_from: str = (
    ""  # weights to start from: a Hugging Face directory, a model, a run; empty: none
  )
  model: ModelConfig = ModelConfig()
  compute: ComputeConfig = ComputeConfig()
  mesh: MeshConfig = MeshConfig()
  data: DataConfig = DataConfig()
  diffusion: DiffusionConfig = DiffusionConfig()
  adaptation: AdaptationConfig = AdaptationConfig()
  lora: LoraConfig = LoraConfig()
  length: LengthConfig = LengthConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  training: TrainingConfig = TrainingConfig()
  evaluation: EvaluationConfig = EvaluationConfig()

  def __post_init__(self):
    _require(0 <= self.seed < 2**32 - 1, "seed", self.seed, "must be in 0 .. 2^32 - 2")
    if not self.init_from:
      _require(
        self.model.is_complete, "model.width", 0, "training from scratch needs the model's sizes"
      )
      _require(bool(self.data.tokenizer), "data.tokenizer", "", "training from scratch needs one")
    _require(
      not self.model.is_complete or self.data.max_length <= self.model.max_positions,
      "data.max_length", self.data.max_length,
      f"the model has {self.model.max_positions} positions",
    )  # fmt: skip
    _require(self.data.train.kind != "none", "data.train.kind", "none", "name a training source")
    _require(
      not self.model.length_classes, "model.length_classes", self.model.length_classes,
      "the head is a section of its own: set length.classes",
    )  # fmt: skip
    _require(
      self.adaptation.anneal_steps <= self.training.steps, "adaptation.anneal_steps",
      self.adaptation.anneal_steps, f"must be over by training.steps {self.training.steps}",
    )  # fmt: skip
    _require(
      bool(self.init_from) or not self.lora.rank, "lora.rank", self.lora.rank,
      "adapters need weights to stand beside: set init_from",
    )  # fmt: skip
    for length in self.data.lengths:
      rows, parts = self.data.rows(length), self.training.microbatches
      _require(
        rows % parts == 0, "training.microbatches", parts,
        f"must divide the {rows} rows of a batch of length {length}",
      )  # fmt: skip
    _require(
      self.evaluation.metric == "loss" or self.data.validation.kind != "none", "evaluation.metric",
      self.evaluation.metric, "needs data.validation",
    )  # fmt: skip
    of_length = self.evaluation.metric.startswith("length_")
    _require(
      bool(self.length.weight) or not of_length, "evaluation.metric", self.evaluation.metric,
      "needs a length head: set length.weight",
    )  # fmt: skip
    _require(
      not self.length.alone or of_length, "evaluation.metric", self.evaluation.metric,
      "only the length head is trained: choose 'length_accuracy' or 'length_loss'",
    )  # fmt: skip
    _require(
      not self.length.alone or bool(self.init_from), "length.alone", True,
      "the head needs a network under it: set init_from",
    )  # fmt: skip
    _require(
      not self.length.alone or not self.lora.rank, "length.alone", True,
      "adapters are not trained then; leave config.lora out",
    )  # fmt: skip
    _require(
      not self.length.weight
      or not any(s.is_plain_text for s in (self.data.train, *self.data.train.parts)),
      "length.weight",
      self.length.weight,
      "plain text has no prompts that the head could read; leave config.length out",
    )  # fmt: skip
    _require(
      not self.length.weight or not self.data.packing, "data.packing", True,
      "a length head reads one prompt a row; leave packing or config.length out",
    )  # fmt: skip
    _require(
      self.diffusion.process == "absorbing" or self.adaptation == AdaptationConfig(),
      "diffusion.process", self.diffusion.process,
      "causal weights stay causal; leave config.adaptation out",
    )  # fmt: skip
    _require(
      self.diffusion.process == "absorbing" or not self.length.weight, "length.weight",
      self.length.weight, "process 'next_token' writes its own end; leave config.length out",
    )  # fmt: skip
    strategy = self.evaluation.strategy
    _require(
      self.diffusion.process == "absorbing"
      or strategy in (EvaluationConfig.strategy, "left_to_right"),
      "evaluation.strategy", strategy,
      "process 'next_token' is decoded from left to right; leave it out",
    )  # fmt: skip
    attention, padding = self.diffusion.attention, self.data.end_padding
    _require(
      not self.adaptation.anneal_steps or attention in ("own", "full"), "diffusion.attention",
      attention, "attention anneals from causal to full; tune the finished run with it instead",
    )  # fmt: skip
    _require(
      attention != "blocks" or (padding > 0 and padding % self.diffusion.block_size == 0),
      "data.end_padding", padding,
      f"blocks of {self.diffusion.block_size} need a multiple of it, the block size itself for one",
    )  # fmt: skip
    _require(
      self.optimizer.warmup_steps < self.training.steps, "optimizer.warmup_steps",
      self.optimizer.warmup_steps, f"must be below the {self.training.steps} training steps",
    )  # fmt: skip


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
  """Reads a config file and applies overrides.

  Args:
    path: `file.py` or `file.py:argument`, the argument being handed to `get_config`; or the
      `config.json` of a run.
    overrides: strings such as `optimizer.learning_rate=1e-4`, applied in order.

  Raises:
    UserError: for a missing file, an unknown field, a wrong type or an illegal value.
  """
  text, _, argument = str(path).partition(".py:")
  file = Path(text + ".py" if argument else text)
  if not file.is_file():
    raise UserError(f"config file {file} does not exist; give a .py file or a run's config.json")
  if file.suffix == ".json":
    try:
      values = json.loads(file.read_text())
    except ValueError as error:
      raise UserError(f"config file {file} is no JSON ({error}); restore or remove it") from error
  else:
    values = _run_config_file(file, argument)
  for override in overrides:
    _apply_override(values, override)
  return config_from_dict(values)


def config_from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
  """Builds and checks an experiment from nested plain values. Raises UserError."""
  return _build(ExperimentConfig, values, "config")


def model_config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
  """A saved model's architecture. Raises UserError."""
  return _build(ModelConfig, values, "model")


def contract_from_dict(values: Mapping[str, Any]) -> Contract:
  """A saved model's contract. Raises UserError."""
  return _build(Contract, values, "contract")


def lora_config_from_dict(values: Mapping[str, Any]) -> LoraConfig:
  """A saved run's adapters. Raises UserError."""
  return _build(LoraConfig, values, "lora")


def _run_config_file(file: Path, argument: str) -> dict[str, Any]:
  spec = importlib.util.spec_from_file_location(f"diffjax_config_{file.stem}", file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except SyntaxError as error:
    raise UserError(f"config file {file}:{error.lineno}: {error.msg}") from error
  if not hasattr(module, "get_config"):
    raise UserError(f"config file {file} has no get_config()")
  try:
    values = module.get_config(*filter(None, [argument]))
    return values.to_dict() if hasattr(values, "to_dict") else dict(values)
  except (
    KeyError,
    TypeError,
    ValueError,
  ) as error:  # an argument it does not know, or none where it needs one
    raise UserError(
      f"config file {file}: get_config({argument}) failed with {type(error).__name__}: {error}; "
      f"see the head of the file for its arguments"
    ) from error


def _apply_override(values: dict[str, Any], override: str) -> None:
  name, equals, text = override.partition("=")
  name = name.removeprefix("config.")
  if not equals:
    raise UserError(f"override {override!r} has no '='; write it as section.field=value")
  *sections, field = name.split(".")
  owner: Any = ExperimentConfig
  for depth, section in enumerate(sections):
    hints = get_type_hints(owner)
    if section not in hints or not dataclasses.is_dataclass(hints[section]):
      raise _unknown(".".join(["config", *sections[:depth]]), section, hints)
    owner = hints[section]
    values = values.setdefault(section, {})
  if get_type_hints(owner).get(field) is not str:
    with contextlib.suppress(ValueError, SyntaxError):  # then it is a word; its type is checked
      text = ast.literal_eval(text)
  values[field] = text


def _unknown(where: str, name: str, known: Mapping[str, Any]) -> UserError:
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
  return UserError(
    f"{where}.{name} is no field; did you mean {where}.{near[0]}? fields: {', '.join(known)}"
  )


def _build(kind: type[Section], values: Mapping[str, Any], where: str) -> Section:
  """A dataclass from nested plain values, each checked against its annotation."""
  hints = get_type_hints(kind)
  if not isinstance(values, Mapping):
    raise UserError(f"{where} = {values!r} is a section with fields {', '.join(hints)}")
  for name in values:
    if name not in hints:
      raise _unknown(where, name, hints)
  for field in dataclasses.fields(kind):
    if field.default is dataclasses.MISSING and field.name not in values:
      raise UserError(f"{where}.{field.name} is missing")
  return kind(**{name: _typed(hints[name], v, f"{where}.{name}") for name, v in values.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
  """The value as its annotation wants it: an int may stand for a float, a list for a tuple."""
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, where)
  if get_origin(hint) is Literal:
    legal = get_args(hint)
    if value not in legal:
      near = difflib.get_close_matches(str(value), legal, n=1)
      guess = f"; did you mean {near[0]!r}?" if near else ""
      raise UserError(f"{where} = {value!r} is none of {', '.join(map(repr, legal))}{guess}")
    return value
  if get_origin(hint) is tuple:
    if not isinstance(value, tuple | list):
      raise UserError(f"{where} = {value!r} must be a tuple")
    return tuple(_typed(get_args(hint)[0], item, f"{where}[{n}]") for n, item in enumerate(value))
  if hint is float and type(value) is int and abs(value) < 2**53:
    return float(value)
  if type(value) is not hint:
    name = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}[hint]
    raise UserError(f"{where} = {value!r} must be {name}")
  return value


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
  """Dotted field name -> value, for all fields of a section and of the sections in it.

  Those of a tuple of sections are `parts[0].path` and so on, where it has any.
  """
  flat: dict[str, Any] = {}
  for field in dataclasses.fields(config):
    name, value = prefix + field.name, getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      flat |= flatten(value, f"{name}.")
    elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
      for number, section in enumerate(value):
        flat |= flatten(section, f"{name}[{number}].")
    else:
      flat[name] = value
  return flat
