"""The Sampler: layout, order, invariance to batch mates, shapes, traces, mistakes."""

import jax
import numpy as np
import pytest
from letter_models import CONFIG, LetterTokenizer, make_model, random_prompts

from diffjax.models import transformer
from diffjax.sampling import MASK_MARK, Sampler
from diffjax.types import UserError

STRICT = {"strict": True, "batch_size": 8}  # 8 rows: most tests share few programs
STOCHASTIC = "reparam-uncond-stochastic2.0-cosine"


@pytest.fixture(scope="module")
def sampler():
  return Sampler(make_model())


def values(generation):
  return generation.ids, generation.scores, generation.network_calls


def test_answers_have_the_lengths_asked_for_and_no_illegal_id(sampler):
  prompts, lengths = random_prompts(8), [1, 2, 3, 4, 5, 6, 7, 8]
  answers = sampler.generate(prompts, lengths=lengths, num_steps=4)
  for answer, length in zip(answers, lengths, strict=True):
    assert len(answer.ids) == len(answer.scores) == length
    assert all(0 <= id_ < 38 for id_ in answer.ids)
    assert max(answer.scores) <= 0
    kept = [id_ for id_ in answer.ids if id_ not in (0, 1, 2)]
    assert answer.text == LetterTokenizer().decode(kept)
    scores = [s for id_, s in zip(answer.ids, answer.scores, strict=True) if id_ in kept]
    assert answer.total == (pytest.approx(np.sum(scores)) if kept else -np.inf)
    assert answer.score == (pytest.approx(np.mean(scores)) if kept else -np.inf)
    assert answer.trace is None
  assert answers[0].network_calls == 1
  assert answers[-1].network_calls == 4


def test_decoding_agrees_with_the_model_itself(sampler):
  # One step: every canvas token is the argmax of the fully masked row.
  prompt = LetterTokenizer().encode("hello")
  answer = sampler.generate("hello", lengths=6, num_steps=1, **STRICT)[0]
  tokens = np.asarray([[0, *prompt, *[40] * 6, 2]])
  model, segments = sampler.model, np.ones_like(tokens)
  run = jax.jit(lambda params: transformer.logits(model.denoiser(segments, params=params), tokens))
  logits = np.array(run(model.params))[0, 6:12, : CONFIG.vocab_size]
  logits[:, 38:] = -np.inf
  assert answer.ids == logits.argmax(-1).tolist()
  scores = -np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
  np.testing.assert_allclose(answer.scores, scores, atol=1e-4)


@pytest.mark.parametrize(
  "kind", [{}, {"strategy": STOCHASTIC, "temperature": 1.0}], ids=["argmax", "sampled"]
)
def test_batch_mates_their_number_and_order_change_no_bit(sampler, kind):
  options = {"num_steps": 5} | kind | STRICT
  prompts = random_prompts(13)
  lengths = [1 + n % 8 for n in range(13)]
  together = sampler.generate(prompts, lengths=lengths, **options)
  order = np.random.default_rng(1).permutation(13)
  moved = sampler.generate(
    [prompts[i] for i in order], lengths=[lengths[i] for i in order], **options
  )
  for place, i in enumerate(order):
    assert values(moved[place]) == values(together[i])
  for i in (0, 5, 12):
    alone = sampler.generate(prompts[i], lengths=lengths[i], **options)
    assert values(alone[0]) == values(together[i])
  others = sampler.generate(
    [*random_prompts(6, seed=5), prompts[4]], lengths=[8] * 6 + [lengths[4]], **options
  )
  assert values(others[-1]) == values(together[4])
  assert len({answer.text for answer in together}) > 6


@pytest.mark.slow
def test_texts_are_equal_across_shapes(sampler):
  prompts = random_prompts(8, seed=2)
  lengths = [1 + n % 8 for n in range(8)]
  options = {"num_steps": 4, "strategy": STOCHASTIC, "temperature": 0.7}
  wide = sampler.generate(prompts, lengths=lengths, **options)  # 8 rows
  narrow = sampler.generate(prompts, lengths=lengths, batch_size=4, **options)
  # The longest row that the model takes brings 48 positions and a canvas of 32 for everybody.
  long = sampler.generate([*prompts, "a" * 26], lengths=[*lengths, 20], **options)
  assert len(long[-1].ids) == 20
  for a, b, c in zip(wide, narrow, long[:8], strict=True):
    assert a.ids == b.ids == c.ids
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
    np.testing.assert_allclose(a.scores, c.scores, atol=1e-4)


def test_equal_prompts_differ_and_seeds_differ_and_repeat(sampler):
  options = {"lengths": 8, "num_steps": 4, "strategy": STOCHASTIC, "temperature": 1.0}
  run = lambda prompts, seed: sampler.generate(prompts, seed=seed, batch_size=4, **options)
  first = run(["abc", "abc", "xyz", "abc"], 0)
  again = run(["xyz", "abc", "abc", "abc"], 0)
  assert len({tuple(first[i].ids) for i in (0, 1, 3)}) == 3
  assert [first[i].ids for i in (2, 0, 1, 3)] == [answer.ids for answer in again]
  assert run(["abc", "abc", "xyz", "abc"], 2**32 - 1)[0].ids != first[0].ids
  later = sampler.generate(
    ["xyz", "abc", "abc", "x"], repeats=[0, 1, 1, 0], batch_size=4, **options
  )
  assert [answer.ids for answer in later[:3]] == [first[i].ids for i in (2, 1, 3)]


def test_one_program_serves_step_counts_seeds_and_other_parameters():
  sampler = Sampler(make_model(tokenizer=None))
  run = lambda **options: sampler.generate_ids([[5, 6], [7]], lengths=3, **options)
  first = run(num_steps=10)
  run(num_steps=3), run(num_steps=16), run(seed=5)
  run(strategy="reparam-uncond-deterministic-linear")
  other = run(params=make_model(seed=1).params)
  assert sampler.programs == 1
  run(num_steps=17)  # the next bucket of steps
  assert sampler.programs == 2
  assert other[0].ids != first[0].ids
  assert run(num_steps=10) == first
  assert first[0].text == ""  # without a tokenizer there are ids alone


def test_trace_shows_every_call_of_the_row(sampler):
  prompts = ["abc", "hello"]
  short, long = sampler.generate(prompts, lengths=[1, 8], num_steps=6, return_trace=True)
  assert len(short.trace) == short.network_calls == 1
  assert len(long.trace) == long.network_calls == 6
  marks = [step.text.count(MASK_MARK) for step in long.trace]
  assert marks == [sum(step.masked) for step in long.trace]
  assert marks == [7, 6, 5, 4, 2, 0]
  # Space comes from the tokens alone once nothing is masked, but for one before the first word.
  assert long.trace[-1].text == long.text.removeprefix(" ")
  assert long.trace[-1].scores == long.scores


def test_prompts_that_hold_the_mask_id_are_read_and_not_written(sampler):
  plain = sampler.generate_ids([[5, 6, 7]], lengths=4, num_steps=2, **STRICT)[0]
  masked = sampler.generate_ids([[5, 40, 7]], lengths=4, num_steps=2, **STRICT)[0]
  assert plain.ids != masked.ids
  assert len(masked.ids) == 4
  assert 40 not in masked.ids


def test_without_a_tokenizer_text_is_refused():
  model = make_model(tokenizer=None)
  with pytest.raises(UserError, match="no tokenizer"):
    Sampler(model).generate("abc", lengths=2)
  with pytest.raises(UserError, match="no tokenizer"):
    Sampler(model).generate_ids([[5]], lengths=2, return_trace=True)


@pytest.mark.parametrize(
  ("prompts", "options", "message"),
  [
    (["abc", ""], {}, "prompt 2 is empty"),
    (" \n", {}, "prompt 1 is empty"),
    ("a\udcffb", {}, r"prompt 1 is not valid UTF-8: '\\udcff' at character 2"),
    ("abc", {"lengths": 0}, "length 0 of prompt 1 must be a whole number >= 1"),
    ("abc", {"lengths": -3}, "length -3 of prompt 1"),
    ("abc", {"lengths": 2.5}, "length 2.5 of prompt 1"),
    ("abc", {"lengths": True}, "length True of prompt 1"),
    (["abc", "de"], {"lengths": [3]}, "1 lengths for 2 prompts"),
    ("a" * 44, {"lengths": 3}, "44 tokens; with 3 .* is 49, and the model has 48 positions"),
    ("abc", {"num_steps": 0}, "num_steps = 0 must be"),
    ("abc", {"temperature": -1.0}, r"temperature = -1.0 must be"),
    ("abc", {"strategy": "greedy"}, "strategy = 'greedy' is no strategy"),
    ("abc", {"seed": -1}, "seed = -1 must be"),
    ("abc", {"seed": 1.5}, "seed = 1.5 must be a whole number"),
    ("abc", {"repeats": [1, 2]}, "2 repeats for 1 prompts"),
    ("abc", {"batch_size": 0}, "batch_size = 0 must be"),
  ],
)
def test_mistakes_are_one_line(sampler, prompts, options, message):
  with pytest.raises(UserError, match=message) as error:
    sampler.generate(prompts, **({"lengths": 3} | options))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("id_", [-1, 41, 2.0, True])
def test_ids_are_of_the_vocabulary(sampler, id_):
  with pytest.raises(UserError, match=f"id {id_} of prompt 2 must be in 0 .. 40"):
    sampler.generate_ids([[5], [6, id_]], lengths=3)


def test_samples_of_a_score_are_whole(sampler):
  for samples in (0, 1.5):
    with pytest.raises(UserError, match=f"samples = {samples} must be"):
      sampler.score("abc", "de", samples=samples)


def test_an_empty_list_is_no_mistake(sampler):
  assert sampler.generate([], lengths=3) == []
