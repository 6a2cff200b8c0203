"""What a Sampler returns."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

MASK_MARK = "░"  # a masked position in a step's text


class Step(NamedTuple):
  """The canvas after one step."""

  tokens: list[str]  # as they are spelt; special tokens and what is masked as ""
  masked: list[bool]
  scores: list[float]  # log-probability when revealed; -inf where masked
  ids: Sequence[int] = ()  # of the tokens; meaningless where masked

  @property
  def text(self) -> str:
    """The canvas as one line, MASK_MARK for what is masked."""
    pieces = (f" {MASK_MARK}" if m else t for t, m in zip(self.tokens, self.masked, strict=True))
    return "".join(pieces).removeprefix(" ")


@dataclasses.dataclass(frozen=True)
class Generation:
  """One answer. `ids` and `scores` cover the whole canvas, special tokens included."""

  text: str  # without special tokens; empty from a model without a tokenizer
  ids: list[int]
  scores: list[float]  # log-probability of each token at the step that revealed it
  score: float  # mean of them over the tokens that are text; -inf where there is none
  total: float  # their sum; -inf where there is none
  network_calls: int  # that this row needed; of all candidates, where there are several
  trace: list[Step] | None = None  # every step that could change the row
  candidates: list["Generation"] = dataclasses.field(default_factory=list)  # best first, if several
  ended: bool = True  # whether the text is whole: a </s> ended it, or its end was given


class Score(NamedTuple):
  """How likely a target is."""

  log_likelihood: float  # nats; a lower bound; exact of one token, and of a causal model
  standard_error: float  # of the bound's estimate; 0 where nothing was drawn
  tokens: int  # of the target, with its </s>
