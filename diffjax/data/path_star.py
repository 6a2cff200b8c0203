"""Path-star graphs: planning that looks easy from its end and is a guess from its start. No files.

A star has some arms of equal length, all leaving one centre; the prompt lists its edges in random
order and names the centre and the end of one arm, and the target is the path between them
(2403.06963, section 4; 2308.12219, section 4.5.3). Written from left to right, the node after the
centre is one of as many as there are arms, and nothing but the whole arm behind it tells which;
teacher forcing hides that, since every later node then follows from the one before it. Written
from the goal backwards, every node follows from the one after it.

Example `index` of a split is a function of (split, index) and the size alone.
"""

import itertools
import random
from typing import NamedTuple, get_args

from diffjax.data import world
from diffjax.types import Example, UserError

TASK = "path_star"
# Nodes of small stars are named by these numbers; the shipped tokenizer has one token for each.
MIN_NAMES = 16


class Star(NamedTuple):
  """What an example is about, whatever the order in which its edges are told."""

  arms: tuple[tuple[int, ...], ...]  # ascending; each from the centre to its end
  goal: int  # the end of one of them


def example(index: int, *, split: world.Split, arms: int, arm_length: int) -> Example:
  """Example `index`: "3 7 , 7 2 , 3 5 , 5 9 ; 3 , 9 :" is answered by "3 5 9".

  Node names are drawn from 0 ... max(16, nodes) - 1. A star and its goal belong to one split,
  by their hash, in whatever order the edges are told.

  Args:
    index: >= 0.
    split: train, validation or test.
    arms: >= 2. Whoever guesses an arm is right once in so many times.
    arm_length: >= 2, nodes of an arm and so of the answer, the centre counted.

  Raises:
    UserError: an unknown split, a negative index, or a star without choice or without arms.
  """
  if split not in get_args(world.Split):
    raise UserError(f"split {split!r} of path_star: use one of {', '.join(get_args(world.Split))}")
  if index < 0:
    raise UserError(f"example {index} of path_star: the index must be >= 0")
  for name, value in (("arms", arms), ("arm_length", arm_length)):
    if value < 2:
      raise UserError(f"{name} = {value} of path_star must be >= 2")
  rng = random.Random(world.digest(f"{TASK}/{arms}x{arm_length}/{split}/{index}"))
  star = world.draw(lambda rng: _draw_star(rng, arms, arm_length), rng, split)
  edges = [pair for arm in star.arms for pair in itertools.pairwise(arm)]
  rng.shuffle(edges)
  told = " , ".join(f"{tail} {head}" for tail, head in edges)
  path = next(arm for arm in star.arms if arm[-1] == star.goal)
  return Example(f"{told} ; {path[0]} , {star.goal} :", " ".join(map(str, path)), TASK)


def _draw_star(rng: random.Random, arms: int, arm_length: int) -> Star:
  steps = arm_length - 1
  nodes = arms * steps + 1
  centre, *others = rng.sample(range(max(MIN_NAMES, nodes)), nodes)
  drawn = [(centre, *others[n * steps : (n + 1) * steps]) for n in range(arms)]
  return Star(tuple(sorted(drawn)), rng.choice(drawn)[-1])
