"""One reverse step each: which canvas positions are committed, re-noised or kept."""

from diffjax.diffusion.strategies.names import parse
from diffjax.diffusion.strategies.strategy import State, Strategy

__all__ = ["State", "Strategy", "parse"]
