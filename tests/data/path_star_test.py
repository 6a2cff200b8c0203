"""Path-star graphs, judged from their text alone."""

import collections
import itertools

import pytest

from diffjax.data import path_star
from diffjax.tokenizers import loading
from diffjax.types import UserError

COUNT = 400
SPLITS = ("train", "validation", "test")
SIZES = [(2, 2), (2, 5), (3, 4), (5, 4), (7, 6)]


def parse(example):
  """Edges in the order they are told, the centre, the goal and the path."""
  told, query = example.inputs.split(" ; ")
  edges = [tuple(map(int, edge.split())) for edge in told.split(" , ")]
  centre, comma, goal, colon = query.split()
  assert (comma, colon) == (",", ":")
  return edges, int(centre), int(goal), list(map(int, example.targets.split()))


def draw(split, *, arms=2, arm_length=5, count=COUNT):
  return [
    path_star.example(index, split=split, arms=arms, arm_length=arm_length)
    for index in range(count)
  ]


@pytest.mark.parametrize(("arms", "arm_length"), SIZES)
def test_the_target_is_the_only_path_of_a_star(arms, arm_length):
  for example in draw("train", arms=arms, arm_length=arm_length, count=60):
    edges, centre, goal, path = parse(example)
    heads = [head for _, head in edges]
    assert len(edges) == len(set(heads)) == arms * (arm_length - 1)  # a tree: one way to each node
    assert centre not in heads
    degrees = collections.Counter(tail for tail, _ in edges)
    assert degrees.pop(centre) == arms
    assert set(degrees.values()) <= {1}
    assert (path[0], path[-1], len(path)) == (centre, goal, arm_length)
    assert set(itertools.pairwise(path)) <= set(edges)
    ends = set(heads) - {tail for tail, _ in edges}
    assert goal in ends
    assert len(ends) == arms
    assert example.task == "path_star"


def test_nothing_but_the_arm_tells_which_way_to_go():
  """Neither the order of the edges nor the names favour the neighbour that is on the path."""
  first, smallest, goal_last = 0, 0, 0
  for example in draw("train", count=2000):
    edges, centre, goal, path = parse(example)
    neighbours = [head for tail, head in edges if tail == centre]
    first += neighbours[0] == path[1]
    smallest += min(neighbours) == path[1]
    goal_last += edges[-1][1] == goal
  assert first / 2000 == pytest.approx(1 / 2, abs=0.06)  # 5 standard errors
  assert smallest / 2000 == pytest.approx(1 / 2, abs=0.06)
  assert goal_last / 2000 == pytest.approx(1 / 8, abs=0.04)


def test_splits_share_no_graph_with_its_goal():
  contents = {
    split: {
      (frozenset(edges), goal)
      for edges, _, goal, _ in map(parse, draw(split, arms=2, arm_length=2, count=1000))
    }
    for split in SPLITS
  }
  for one, other in (SPLITS[:2], SPLITS[1:], SPLITS[::2]):
    assert not contents[one] & contents[other]
  assert all(len(content) > 100 for content in contents.values())


def test_an_example_depends_on_its_number_and_little_repeats():
  examples = draw("test")
  again = path_star.example(7, split="test", arms=2, arm_length=5)
  assert again == examples[7]
  assert len(set(examples)) == COUNT


def test_the_shipped_tokenizer_has_one_token_a_node_of_small_stars():
  from diffjax import model

  tokenizer = loading.load(model.resolve("tiny_mlm"))
  for arms, arm_length in SIZES[:-1]:
    for example in draw("train", arms=arms, arm_length=arm_length, count=60):
      assert len(tokenizer.encode(example.inputs)) == len(example.inputs.split())
      assert len(tokenizer.encode(example.targets)) == arm_length


@pytest.mark.parametrize(
  ("index", "changes", "named"),
  [
    (-1, {}, "-1"),
    (0, {"split": "dev"}, "dev"),
    (0, {"arms": 1}, "arms = 1"),
    (0, {"arm_length": 1}, "arm_length = 1"),
  ],
)
def test_mistakes_are_named(index, changes, named):
  given = {"split": "train", "arms": 2, "arm_length": 5} | changes
  with pytest.raises(UserError, match=named) as error:
    path_star.example(index, **given)
  assert "\n" not in str(error.value)
