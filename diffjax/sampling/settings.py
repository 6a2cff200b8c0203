"""How to decode, whatever the prompt: one dataclass, and presets named after their source."""

import dataclasses
import difflib
import numbers
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from diffjax.diffusion import strategies, vocabulary
from diffjax.types import UserError

# What calls take beside the settings.
_OF_CALLS = ("lengths", "seed", "batch_size", "strict", "return_trace", "preset", "progress")
_RANDOM = ("stochastic", "ancestral", "remask", "dndm")  # in names of strategies that draw


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The decoder's settings; every one of them may be given to Sampler.generate by name."""

  strategy: str = "reparam-uncond-deterministic-cosine"  # see diffusion/strategies/names.py
  num_steps: int = 10  # S
  temperature: float = 0.0  # 0 takes the argmax
  top_p: float = 1.0  # of what is sampled; 1 leaves nothing out
  top_k: int = 0  # 0 leaves nothing out
  guidance: float = 0.0  # w of classifier-free guidance; 0: none
  # What the network sees in place of the prompt under guidance: masks (unsupervised, 2410.18514),
  # or no prompt (of a model that was trained with config.data.prompt_dropout).
  unconditional: Literal["masked", "absent"] = "masked"
  length_beam: int = 1  # likeliest lengths that are tried, where a length head predicts them
  num_samples: int = 1  # of each length; the best of all candidates is the answer
  # By which the best is chosen: mean or total log-probability of its tokens at the steps that
  # revealed them; or the mean likeness to the other candidates (minimum Bayes risk).
  select: Literal["mean", "total", "bleu", "rouge"] = "mean"

  def __post_init__(self):
    hints = get_type_hints(type(self))
    for field in dataclasses.fields(self):
      _check_type(field.name, getattr(self, field.name), hints[field.name])
      if isinstance(value := getattr(self, field.name), np.generic):  # as JSON can say it
        object.__setattr__(self, field.name, value.item())
    strategies.parse(self.strategy, num_steps=self.num_steps, canvas_size=1)
    vocabulary.draw(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)
    if not 0 <= self.guidance < float("inf"):
      raise UserError(f"guidance = {self.guidance} must be a number >= 0 (0: none)")
    for name in ("length_beam", "num_samples"):
      if getattr(self, name) < 1:
        raise UserError(f"{name} = {getattr(self, name)} must be >= 1")
    draws = self.temperature > 0 or any(word in self.strategy for word in _RANDOM)
    if self.num_samples > 1 and not draws:
      raise UserError(
        f"num_samples = {self.num_samples} would all be equal: strategy {self.strategy!r} draws "
        f"nothing at temperature 0; set a temperature such as 0.7"
      )


def _check_type(name: str, value: Any, hint: Any) -> None:
  if legal := get_args(hint):
    if value not in legal:
      near = difflib.get_close_matches(str(value), legal, n=1, cutoff=0.0)[0]
      raise UserError(
        f"{name} = {value!r} is none of {', '.join(map(repr, legal))}; did you mean {near!r}?"
      )
    return
  kind = {float: numbers.Real, int: numbers.Integral, str: str}[hint]
  if isinstance(value, bool | np.bool_) or not isinstance(value, kind):
    word = {float: "a number", int: "a whole number", str: "text"}[hint]
    raise UserError(f"{name} = {value!r} must be {word}")


# The settings that a preset changes.
PRESETS: dict[str, dict[str, Any]] = {
  # Ye et al., 2308.12219, section 4 and the scripts released with it: machine translation.
  "paper-mt": dict(num_steps=50, length_beam=10),
  # The same, multiple choice: the letter in one step.
  "paper-mmlu": dict(num_steps=1),
  # Nie et al., 2502.09992: low-confidence re-masking, block by block.
  "llada": dict(strategy="confidence-block32", num_steps=128),
  # Ye et al., 2508.15487: least entropy first, as its model card samples.
  "dream": dict(strategy="entropy", num_steps=512, temperature=0.2, top_p=0.95),
  # Wu et al., 2505.22618: all that is sure, at least one a step; its approximate caches left out.
  "fast-dllm": dict(strategy="threshold0.9-block32"),
}


def settings_of(preset: str = "", **changes: Any) -> Settings:
  """The settings of a preset, or the defaults, with some of them changed. Raises UserError."""
  if preset and preset not in PRESETS:
    near = difflib.get_close_matches(preset, PRESETS, n=1, cutoff=0.0)[0]
    raise UserError(f"preset {preset!r} is none of {', '.join(PRESETS)}; did you mean {near!r}?")
  known = [field.name for field in dataclasses.fields(Settings)]
  for name in changes:
    if name not in known:
      near = difflib.get_close_matches(name, [*known, *_OF_CALLS], n=1, cutoff=0.0)[0]
      raise UserError(
        f"{name!r} is no setting; did you mean {near!r}? settings: {', '.join(known)}"
      )
  return Settings(**(PRESETS.get(preset, {}) | changes))
