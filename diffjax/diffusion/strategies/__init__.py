"""One reverse step each: which canvas positions are committed, re-noised or kept."""

from diffjax.diffusion.strategies.names import NAMES, parse
from diffjax.diffusion.strategies.routing import masked_counts
from diffjax.diffusion.strategies.strategy import MAX_STEPS, State, Strategy

__all__ = ["MAX_STEPS", "NAMES", "State", "Strategy", "masked_counts", "parse"]
