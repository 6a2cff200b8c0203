"""Strategies by name, as configs, commands and Python callers write them."""

import difflib
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

from diffjax.diffusion.strategies.ancestral import ancestral
from diffjax.diffusion.strategies.dndm import dndm
from diffjax.diffusion.strategies.mask_predict import mask_predict
from diffjax.diffusion.strategies.ordered import ordered
from diffjax.diffusion.strategies.parallel import parallel
from diffjax.diffusion.strategies.remask import remask
from diffjax.diffusion.strategies.reparam import reparam
from diffjax.diffusion.strategies.strategy import MAX_STEPS, Strategy
from diffjax.types import UserError

# One legal name of every form.
NAMES = (
  "reparam-uncond-deterministic-cosine",
  "reparam-uncond-stochastic1.0-cosine",
  "reparam-cond-deterministic-linear",
  "ancestral-linear",
  "ancestral-cosine",
  "mask_predict",
  "left_to_right",
  "confidence",
  "confidence-block8",
  "confidence-stochastic0.5",
  "entropy",
  "entropy-block8",
  "margin",
  "margin-stochastic0.5-block8",
  "threshold0.9",
  "threshold0.9-block8",
  "factor1.0",
  "factor1.0-block8",
  "remask-cap0.02-cosine",
  "remask-rescale0.05-linear",
  "remask-confidence-cosine",
  "remask-loop0.02-linear",
  "dndm-linear",
  "dndm-cosine",
  "dndm_topk-cosine",
)


class _Form(NamedTuple):
  shown: str
  pattern: str
  build: Callable[..., Strategy]  # the pattern's groups, then num_steps and canvas_size by name


_NUMBER = r"(\d+(?:\.\d+)?)"
_GRID = "-(linear|cosine)"
_BLOCK = r"(?:-block(\d+))?"


def _reparam(condition: str, noise: str | None, schedule: str, **sizes: int) -> Strategy:
  conditional = condition == "cond"
  return reparam(conditional=conditional, noise_scale=_scale(noise), schedule=schedule, **sizes)


def _ancestral(grid: str, *, num_steps: int, canvas_size: int) -> Strategy:
  del canvas_size
  return ancestral(grid=grid, num_steps=num_steps)


def _left_to_right(*, num_steps: int, canvas_size: int) -> Strategy:
  del num_steps
  return ordered(
    measure="position", noise_scale=None, block_size=None,
    num_steps=canvas_size, canvas_size=canvas_size,
  )  # fmt: skip


def _ordered(measure: str, noise: str | None, block: str | None, **sizes: int) -> Strategy:
  return ordered(measure=measure, noise_scale=_scale(noise), block_size=_block(block), **sizes)


def _threshold(tau: str, block: str | None, *, num_steps: int, canvas_size: int) -> Strategy:
  del num_steps
  bound = _checked("threshold", tau, most=1, zero=False)
  return parallel(rule="threshold", bound=bound, block_size=_block(block), canvas_size=canvas_size)


def _factor(factor: str, block: str | None, *, num_steps: int, canvas_size: int) -> Strategy:
  del num_steps
  bound = _checked("factor", factor, most=1000, zero=False)
  return parallel(rule="factor", bound=bound, block_size=_block(block), canvas_size=canvas_size)


def _remask(
  rule: str | None, eta: str | None, grid: str, *, num_steps: int, canvas_size: int
) -> Strategy:
  del canvas_size
  share = _checked(f"remask-{rule}", eta, most=1) if rule else 1.0
  return remask(rule=rule or "confidence", eta=share, grid=grid, num_steps=num_steps)


def _dndm(by_rank: str, grid: str, *, num_steps: int, canvas_size: int) -> Strategy:
  del canvas_size
  return dndm(by_rank=bool(by_rank), grid=grid, num_steps=num_steps)


def _mask_predict(**sizes: int) -> Strategy:
  return mask_predict(**sizes)


_FORMS = (
  _Form(
    "reparam-<cond|uncond>-<deterministic|stochastic<z>>-<linear|cosine>",
    rf"reparam-(cond|uncond)-(?:deterministic|stochastic{_NUMBER}){_GRID}",
    _reparam,
  ),
  _Form("ancestral-<linear|cosine>", rf"ancestral{_GRID}", _ancestral),
  _Form("mask_predict", "mask_predict", _mask_predict),
  _Form("left_to_right", "left_to_right", _left_to_right),
  _Form(
    "<confidence|entropy|margin>[-stochastic<z>][-block<K>]",
    rf"(confidence|entropy|margin)(?:-stochastic{_NUMBER})?{_BLOCK}",
    _ordered,
  ),
  _Form("threshold<tau>[-block<K>]", rf"threshold{_NUMBER}{_BLOCK}", _threshold),
  _Form("factor<f>[-block<K>]", rf"factor{_NUMBER}{_BLOCK}", _factor),
  _Form(
    "remask-<cap<eta>|rescale<eta>|confidence|loop<eta>>-<linear|cosine>",
    rf"remask-(?:(cap|rescale|loop){_NUMBER}|confidence){_GRID}",
    _remask,
  ),
  _Form("<dndm|dndm_topk>-<linear|cosine>", rf"dndm(_topk)?{_GRID}", _dndm),
)


def parse(name: str, *, num_steps: int, canvas_size: int) -> Strategy:
  """Builds the strategy that a name such as `reparam-uncond-deterministic-cosine` stands for.

  Args:
    name: one of these forms; z scales Gumbel noise on the ranks, K is a number of positions, tau a
      probability, eta a chance of masking again, and 'linear' or 'cosine' the course of the share
      of masked positions.

      - reparam-<cond|uncond>-<deterministic|stochastic<z>>-<linear|cosine>: see `Reparam`
      - ancestral-<linear|cosine>: see `Ancestral`
      - mask_predict: see `MaskPredict`
      - left_to_right: one position a step
      - <confidence|entropy|margin>[-stochastic<z>][-block<K>]: see `Ordered`
      - threshold<tau>[-block<K>], factor<f>[-block<K>]: see `Parallel`
      - remask-<cap<eta>|rescale<eta>|confidence|loop<eta>>-<linear|cosine>: see `Remask`
      - <dndm|dndm_topk>-<linear|cosine>: see `Dndm`
    num_steps: S; its tables are padded to a power of two, so that S does not recompile.
      left_to_right, threshold and factor do not read it: they take as many steps as they need, at
      most canvas_size. With blocks there is at least one step for each block.
    canvas_size: C, the largest canvas.

  Raises:
    UserError: for an illegal name, a number in it that is out of range, or a number of steps that
      is.
  """
  if not 1 <= num_steps <= MAX_STEPS:
    raise UserError(f"num_steps = {num_steps} must be between 1 and {MAX_STEPS}")
  for form in _FORMS:
    match = re.fullmatch(form.pattern, name, re.ASCII)
    if match:
      return form.build(*match.groups(), num_steps=num_steps, canvas_size=canvas_size)
  near = difflib.get_close_matches(name, _legal(), n=1, cutoff=0.0)[0]
  raise UserError(
    f"strategy = {name!r} is no strategy; did you mean {near!r}? The forms: "
    f"{', '.join(form.shown for form in _FORMS)} (z, tau, f, eta numbers, K a whole number)"
  )


def _legal() -> list[str]:
  """Every form with each of its words, and with some numbers."""
  grids, blocks = ("cosine", "linear"), ("", "-block8")
  forms = [
    (("reparam",), ("-uncond", "-cond"), ("-deterministic", "-stochastic1.0"), "-", grids),
    (("ancestral", "dndm", "dndm_topk"), "-", grids),
    (("confidence", "entropy", "margin"), ("", "-stochastic0.5"), blocks),
    (("threshold0.9", "factor1.0"), blocks),
    (("remask-",), ("cap0.02", "rescale0.05", "confidence", "loop0.02"), "-", grids),
  ]
  names = ["".join(words) for form in forms for words in itertools.product(*form)]
  return ["mask_predict", "left_to_right", *names]


def _scale(noise: str | None) -> float | None:
  return None if noise is None else _checked("stochastic", noise, most=1000)


def _block(text: str | None) -> int | None:
  """A block's size; a larger one than any canvas is one block."""
  if text is None:
    return None
  if int(text) < 1:
    raise UserError(f"strategy: block has {text}; it must be at least 1 position")
  return min(int(text), 2**30)


def _checked(what: str, text: str, *, most: float, zero: bool = True) -> float:
  """The number of a name, in [0, most], or in (0, most] without `zero`."""
  value = float(text)
  if value > most or (value == 0 and not zero):
    low = "at least" if zero else "above"
    raise UserError(f"strategy: {what} has {text}; it must be {low} 0 and at most {most}")
  return value
