"""Fixing orders of made-up traces, and graphs of made-up texts."""

import itertools
import json

import numpy as np
import pytest

from diffjax.evaluation import order as orders
from diffjax.evaluation import order_pictures
from diffjax.sampling import Generation
from diffjax.sampling.results import Step
from diffjax.types import UserError

HIDDEN = -1
TOKENS = " 3 + 4 = 7 . 7 - 2 = 5 . answer : 5".replace(" ", "| ").split("|")[1:]
TEXT = "".join(TOKENS)


def generation(rows, spelling=str):
  """From the ids of each step, HIDDEN where masked."""
  trace = [
    Step(
      ["" if id_ == HIDDEN else spelling(id_) for id_ in row],
      [id_ == HIDDEN for id_ in row],
      [0.0] * len(row),
      row,
    )
    for row in rows
  ]
  return Generation("", list(rows[-1]), [], 0.0, 0.0, len(rows), trace)


def order_with(steps, tokens=TOKENS):
  return orders.Order(list(tokens), np.array(steps), max(steps), 0)


def fixed_in(sequence):
  """An order of TOKENS in which one token after the other is fixed."""
  steps = np.zeros(len(TOKENS), int)
  steps[list(sequence)] = np.arange(1, len(TOKENS) + 1)
  return orders.Order(list(TOKENS), steps, len(TOKENS), 0)


def words_of(text):
  """Edges of a text's graph as pairs of (text, number among the graph's spans of that text)."""
  graph = orders.dependencies(text)
  said = [text[span.start : span.stop] for span in graph.spans]
  named = [(word, said[:n].count(word)) for n, word in enumerate(said)]
  return {(named[before], named[after]) for before, after in graph.edges}


def test_a_token_is_fixed_in_the_step_after_which_it_never_changes():
  answer = generation([
    [HIDDEN, 5, 6, HIDDEN, 9, HIDDEN],
    [4, 5, HIDDEN, HIDDEN, 8, HIDDEN],  # the third is masked again, the fifth replaced
    [4, 5, 6, HIDDEN, 8, HIDDEN],
    [4, 5, 6, 7, 8, HIDDEN],  # the last one is never written
  ])  # fmt: skip
  order = orders.order_of(answer)
  assert order.steps.tolist() == [2, 1, 3, 4, 2, 0]
  assert order.revised == 2
  assert order.num_steps == 4
  assert order.text == "45678"


def test_steps_and_revisions_agree_with_a_slow_reading():
  rng = np.random.default_rng(0)
  for _ in range(200):
    rows = rng.integers(HIDDEN, 2, (rng.integers(1, 6), 4))
    order = orders.order_of(generation(rows.tolist()))
    revised = 0
    for place, column in enumerate(rows.T.tolist()):
      step = 0
      if column[-1] != HIDDEN:
        step = next(s for s in range(1, len(rows) + 1) if set(column[s - 1 :]) == {column[-1]})
        revised += any(value != HIDDEN for value in column[: step - 1])
      assert order.steps[place] == step
    assert order.revised == revised


def test_an_answer_without_a_trace_has_no_order():
  with pytest.raises(UserError, match="return_trace"):
    orders.order_of(Generation("a", [1], [0.0], 0.0, 0.0, 1))


@pytest.mark.parametrize(
  ("steps", "tau"),
  [([1, 2, 3], 1), ([3, 2, 1], -1), ([1, 1, 1], 0), ([1, 3, 2], 1 / 3), ([5], 1), ([1, 0, 2], 1)],
)
def test_left_to_right_is_kendalls_tau(steps, tau):
  tokens = [" a"] * len(steps)
  assert order_with(steps, tokens).left_to_right == pytest.approx(tau)


def test_the_graph_of_a_chain_of_equations():
  assert words_of(TEXT) == {
    (("3", 0), ("7", 0)),
    (("4", 0), ("7", 0)),
    (("7", 0), ("7", 1)),
    (("7", 1), ("5", 0)),
    (("2", 0), ("5", 0)),
    (("5", 0), ("5", 1)),
  }


@pytest.mark.parametrize(
  ("text", "edges"),
  [
    ("no sum here , 4 apples and 5 pears .", set()),
    ("x = 7 .", set()),
    ("The answer is 18.", set()),  # nothing that it could depend on
    ("2 = 2 , then 3", set()),
    ("1 . + 2 = 3", set()),  # a full stop ends an equation
    # Words, money, thousands, decimals, a negative result.
    (
      "He pays $1,200.50 * 2 hats = $2,401 in all.",
      {(("1,200.50", 0), ("2,401", 0)), (("2", 0), ("2,401", 0))},
    ),
    ("3 - 5 = -2", {(("3", 0), ("-2", 0)), (("5", 0), ("-2", 0))}),
    ("(1 + 2) * 4 = 12", {((n, 0), ("12", 0)) for n in "124"}),
    # One equation goes on where another ended.
    (
      "3 + 4 = 7 - 2 = 5",
      {
        (("3", 0), ("7", 0)),
        (("4", 0), ("7", 0)),
        (("7", 0), ("5", 0)),
        (("2", 0), ("5", 0)),
      },
    ),
    # Equal in value, whatever the spelling; the answer depends on the last result.
    (
      "2 x 500 = 1000 . 1,000 + 1 = 1001 #### 7",
      {
        (("2", 0), ("1000", 0)),
        (("500", 0), ("1000", 0)),
        (("1000", 0), ("1,000", 0)),
        (("1,000", 0), ("1001", 0)),
        (("1", 0), ("1001", 0)),
        (("1001", 0), ("7", 0)),
      },
    ),
    ("2 + 3 = 5. Die Antwort ist 5.", {((n, 0), ("5", 0)) for n in "23"} | {(("5", 0), ("5", 1))}),
    ("2 + 3 = 5。答案是 5", {((n, 0), ("5", 0)) for n in "23"} | {(("5", 0), ("5", 1))}),
  ],
)
def test_graphs_of_other_texts(text, edges):
  assert words_of(text) == edges


def test_an_operand_repeats_the_nearest_earlier_result():
  edges = words_of("1 + 4 = 5 . 2 + 3 = 5 . 5 + 1 = 6 .")
  assert (("5", 1), ("5", 2)) in edges
  assert (("5", 0), ("5", 2)) not in edges


def test_verdicts_agree_with_the_definition():
  """All orders of two results and the answer, after everything else: one of six follows."""
  chain = [4, 10, 14]
  assert [TOKENS[place] for place in chain] == [" 7", " 5", " 5"]
  others = [place for place in range(len(TOKENS)) if place not in [*chain, 6]]
  graph = orders.dependencies(TEXT)
  for order in itertools.permutations(chain):
    sequence = [*others, *order]
    sequence.insert(sequence.index(4) + 1, 6)  # the operand that repeats the first result
    assert orders.judge(fixed_in(sequence), graph).follows == (list(order) == chain)


def test_reading_order_follows_and_its_reverse_breaks_every_dependency():
  graph = orders.dependencies(TEXT)
  forwards = orders.judge(fixed_in(range(len(TOKENS))), graph)
  backwards = orders.judge(fixed_in(range(len(TOKENS))[::-1]), graph)
  assert forwards == orders.Verdict(len(graph.edges), 0, 0)
  assert backwards == orders.Verdict(len(graph.edges), len(graph.edges), 0)
  at_once = orders.judge(order_with([1] * len(TOKENS)), graph)
  assert at_once.follows
  assert not at_once.follows_strictly


def test_a_span_of_several_tokens_is_fixed_with_the_last_of_them():
  graph = orders.Graph((orders.Span(0, 2), orders.Span(3, 4)), ((0, 1),))
  for steps, violated in (([1, 3, 4], 0), ([1, 4, 3], 1), ([4, 1, 3], 1)):
    assert orders.judge(order_with(steps, ["1", "2", " 7"]), graph).violated == violated


def test_what_is_never_written_comes_last():
  graph = orders.Graph((orders.Span(0, 1), orders.Span(1, 2)), ((0, 1),))
  assert orders.judge(order_with([0, 1], ["a", "b"]), graph).violated
  assert not orders.judge(order_with([1, 0], ["a", "b"]), graph).violated


def test_a_summary_counts_answers_and_dependencies():
  count = len(orders.dependencies(TEXT).edges)
  forwards, backwards = fixed_in(range(15)), fixed_in(range(15)[::-1])
  plain = order_with([1, 2], [" no", " sum"])
  summary = orders.summarise([forwards, forwards, forwards, backwards, plain])
  assert (summary.outputs, summary.judged) == (5, 4)
  assert summary.follows == summary.follows_strictly == 75
  assert summary.edges == pytest.approx(100 * (3 * count) / (4 * count))
  assert summary.left_to_right == pytest.approx((3 - 1 + 1) / 5)
  assert summary.by_chance < 5
  with pytest.raises(UserError, match="no answers"):
    orders.summarise([])


def test_chance_is_the_share_of_random_orders_that_follow():
  """Two of six orders of three spans respect a -> c and b -> c; in one step all do."""
  graph = orders.Graph(tuple(orders.Span(n, n + 1) for n in range(3)), ((0, 2), (1, 2)))
  drawn = orders.summarise([order_with([1, 2, 3], "abc")] * 40, lambda text: graph)
  # 40 answers of 200 draws each: a standard error of 0.5.
  assert drawn.by_chance == pytest.approx(100 / 3, abs=2.5)
  silent = order_with(
    [1, 2, 3, 4, 5], ["a", "b", "c", "", ""]
  )  # nothing is dealt to what is not said
  assert orders.summarise([silent] * 40, lambda text: graph).by_chance == pytest.approx(
    100 / 3, abs=2.5
  )
  at_once = orders.summarise([order_with([1, 1, 1], "abc")], lambda text: graph)
  assert at_once.by_chance == 100


def test_a_graph_from_a_file(tmp_path):
  file = tmp_path / "graph.json"
  spans = {"first": r"^(\w+)", "second": [4, 7], "none": "zzz"}
  file.write_text(
    json.dumps({"spans": spans, "edges": [["second", "first"], ["first", "none"]]})
  )  # fmt: skip
  graph = orders.read_graph(file)("one two")
  assert graph == orders.Graph(((0, 3), (4, 7)), ((1, 0),))
  assert orders.read_graph(file)("one").edges == ()


@pytest.mark.parametrize(
  ("content", "named"),
  [
    ("{", "JSON"),
    ("{}", "spans"),
    ("[]", "regular"),
    ('{"spans": {"a": "("}, "edges": []}', "regular"),
    ('{"spans": {"a": [2, 1]}, "edges": []}', "no .start, stop"),
    ('{"spans": {"a": "a"}, "edges": [["a", "b"]]}', "'b'"),
    ('{"spans": {"a": "a", "b": "b"}, "edges": [["a", "b"], ["b", "a"]]}', "itself"),
  ],
)
def test_mistakes_in_a_graph_are_named(tmp_path, content, named):
  file = tmp_path / "graph.json"
  file.write_text(content)
  with pytest.raises(UserError, match=named) as error:
    orders.read_graph(file)
  assert str(file) in str(error.value)
  assert "\n" not in str(error.value)


def test_a_missing_graph_is_named(tmp_path):
  with pytest.raises(UserError, match=r"none\.json"):
    orders.read_graph(tmp_path / "none.json")


def test_a_table_shows_each_token_over_its_step():
  order = order_with([12, 1, 3, 0], [" seven", "", " b", " c"])
  tokens, steps = order_pictures.as_table(order).splitlines()
  assert tokens.split() == ["seven", "b"]
  assert steps.split() == ["12", "3"]
  assert tokens.index("seven") + len("seven") == steps.index("12") + len("12")


def test_a_picture_is_drawn_over_several_lines(tmp_path):
  tokens = TOKENS * 6
  order = order_with(range(1, len(tokens) + 1), tokens)
  small, large = tmp_path / "small.png", tmp_path / "large.png"
  order_pictures.picture(small, [fixed_in(range(15))], titles=["one"])
  order_pictures.picture(large, [fixed_in(range(15)), order], titles=["one", "two"])
  heights = [int.from_bytes(file.read_bytes()[20:24], "big") for file in (small, large)]
  assert small.read_bytes().startswith(b"\x89PNG")
  assert heights[1] > 2 * heights[0]
