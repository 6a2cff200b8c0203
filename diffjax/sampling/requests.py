"""Prompts and templates as rows around canvases of the sizes that training had."""

from collections.abc import Sequence

import numpy as np

from diffjax.config import Contract
from diffjax.sampling import layout
from diffjax.sampling.layout import Request
from diffjax.sampling.settings import Settings

_OPEN_CANVAS = 64  # tokens of a canvas that a predicted end cuts short, where nothing says more


def frame(contract: Contract) -> int:
  """Tokens of a row beside prompt and canvas: <s>, and </s> where it is given."""
  return 2 if contract.end == "given" else 1


def rounded(size: int, contract: Contract) -> int:
  """A canvas as training had them: filled up with </s> to a multiple, in whole blocks."""
  multiple = max(contract.end_padding, contract.block_size, 1)
  return -(-size // multiple) * multiple


def open_size(contract: Contract) -> int:
  """A canvas whose end the model predicts, where nobody says how far it may be."""
  padding = contract.end_padding if contract.attention in ("full", "prefix") else 0
  return rounded(padding or _OPEN_CANVAS, contract)


def around_lengths(lengths: Sequence[int], room: int, contract: Contract) -> list[int]:
  """The canvases for predicted answer lengths, which count no </s>; each of them once.

  Args:
    lengths: the likeliest first.
    room: the largest canvas that fits.
    contract: where it predicts the end, a canvas has room for that too, as training had it.
  """
  if contract.end == "given":
    return list(lengths)
  return list(dict.fromkeys(min(room, rounded(length + 1, contract)) for length in lengths))


def sides(
  prompt: Sequence[int], size: int, words: np.ndarray, settings: Settings, contract: Contract
) -> tuple[Request, ...]:
  """The request of a prompt; under guidance also as the network sees it without that."""
  shown = [prompt]
  if settings.guidance:
    masked = settings.unconditional == "masked"
    shown.append([contract.mask_id] * len(prompt) if masked else [])
  closed = contract.end == "given"
  return tuple(Request(*layout.framed(ids, size, contract), words, closed) for ids in shown)


def gapped(
  pieces: Sequence[Sequence[int]], sizes: Sequence[int], words: np.ndarray, contract: Contract
) -> Request:
  """`<s> text gap text ... </s>`."""
  ids, canvas = [contract.bos_id, *pieces[0]], []
  for size, piece in zip(sizes, pieces[1:], strict=True):
    canvas += range(len(ids), len(ids) + size)
    ids += [contract.eos_id] * size + list(piece)
  if contract.end == "given":
    ids.append(contract.eos_id)
  return Request(ids, np.asarray(canvas), words, closed=False)
