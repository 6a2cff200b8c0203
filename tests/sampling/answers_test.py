"""What decides an answer beside its steps: lengths, ends, blocks, guidance, candidates."""

import dataclasses
import itertools
import math
import threading

import jax
import numpy as np
import pytest
from letter_models import CONFIG, LetterTokenizer, make_model, random_prompts

from diffjax.models import transformer
from diffjax.sampling import PRESETS, Sampler, Settings, settings_of
from diffjax.types import UserError

DRAWN = {"num_samples": 3, "temperature": 1.0, "num_steps": 3}
encode = LetterTokenizer().encode


def logits_of(model, tokens, *, answer=None, **changes):
  """float32[L, allowed ids] of one row, by the uncached network."""
  contract = dataclasses.replace(model.contract, **changes)
  tokens = np.asarray([tokens])
  canvas = None if answer is None else np.isin(np.arange(tokens.shape[1]), answer)[None]
  denoiser = transformer.bind(
    model.params, np.ones_like(tokens), config=model.config, contract=contract,
    compute=model.compute, canvas=canvas,
  )  # fmt: skip
  logits = jax.jit(lambda row: transformer.logits(denoiser, row))(tokens)
  return np.asarray(logits)[0, :, :38]


# Lengths that are predicted.


@pytest.fixture(scope="module")
def with_lengths():
  return Sampler(make_model(config=dataclasses.replace(CONFIG, length_classes=12)))


def likeliest(sampler, text):
  """The lengths from the likeliest on, by the length head itself."""
  tokens = np.asarray([[0, *encode(text)]])
  logits = sampler.model.length_logits(tokens, np.ones_like(tokens))
  return (np.argsort(-np.asarray(logits)[0], kind="stable") + 1).tolist()


def test_a_length_head_decides_the_length(with_lengths):
  for text in ("abc", "hello"):
    (answer,) = with_lengths.generate(text, num_steps=3)
    assert len(answer.ids) == likeliest(with_lengths, text)[0]


def test_a_beam_of_lengths_is_decoded_and_the_best_mean_wins(with_lengths):
  (answer,) = with_lengths.generate("abc", num_steps=3, length_beam=4)
  lengths = likeliest(with_lengths, "abc")[:4]
  assert sorted(len(candidate.ids) for candidate in answer.candidates) == sorted(lengths)
  alone = [with_lengths.generate("abc", lengths=n, num_steps=3)[0] for n in lengths]
  best = max(alone, key=lambda candidate: candidate.score)
  assert answer.ids == best.ids
  scores = [candidate.score for candidate in answer.candidates]
  assert scores == sorted(scores, reverse=True)
  assert answer.network_calls == sum(candidate.network_calls for candidate in alone)
  (by_total,) = with_lengths.generate("abc", num_steps=3, length_beam=4, select="total")
  assert by_total.ids == max(alone, key=lambda candidate: candidate.total).ids


def test_no_length_is_predicted_that_does_not_fit(with_lengths):
  prompt = "a" * (CONFIG.max_positions - 2 - 3)  # room for three
  (answer,) = with_lengths.generate(prompt, num_steps=2, length_beam=8)
  assert sorted(len(candidate.ids) for candidate in answer.candidates) == [1, 2, 3]
  with pytest.raises(UserError, match="48 positions"):
    with_lengths.generate("a" * (CONFIG.max_positions - 2), num_steps=2)


def test_without_a_length_there_must_be_something_that_knows_it():
  with pytest.raises(UserError, match="how long are the answers"):
    Sampler(make_model()).generate("abc")


# Candidates.


def test_samples_differ_and_the_most_alike_is_chosen(with_lengths):
  (answer,) = with_lengths.generate("abc", lengths=6, select="rouge", **DRAWN)
  texts = [candidate.text for candidate in answer.candidates]
  assert len(set(texts)) == 3
  assert answer.text == texts[0]
  again = with_lengths.generate(["xyz", "abc"], lengths=6, select="mean", **DRAWN)[1]
  assert {candidate.text for candidate in again.candidates} == set(texts)
  assert again.score == max(candidate.score for candidate in again.candidates)


def test_equal_samples_are_refused(with_lengths):
  with pytest.raises(UserError, match="num_samples = 3 would all be equal"):
    with_lengths.generate("abc", lengths=6, num_samples=3)


# Ends that are predicted.


def ending(attention="full", **contract):
  """A model that is fond of </s>."""
  model = make_model(attention=attention, end="predicted", **contract)
  model.params["head"]["bias"] = model.params["head"]["bias"].at[2].add(4)
  return Sampler(model)


@pytest.mark.parametrize(
  ("attention", "contract"),
  [("full", {}), ("prefix", {}), ("blocks", {"block_size": 3, "end_padding": 3})],
)
def test_an_end_ends_its_row_and_its_tail_is_not_paid_for(attention, contract):
  sampler = ending(attention, **contract)
  prompts = random_prompts(8)
  answers = sampler.generate(prompts, lengths=12, strategy="confidence", num_steps=12)
  ended = [answer for answer in answers if 2 in answer.ids]
  assert len(ended) > 2
  for answer in ended:
    first = answer.ids.index(2)
    assert answer.ids[first:] == [2] * (12 - first)
    assert answer.text == LetterTokenizer().decode(answer.ids[:first])
    assert answer.scores[first + 1 :] == [0] * (11 - first)
  assert min(answer.network_calls for answer in answers) < 12
  mates = sampler.generate(list(reversed(prompts)), lengths=12, strategy="confidence", num_steps=12)
  assert [answer.ids for answer in reversed(mates)] == [answer.ids for answer in answers]


def test_a_canvas_is_as_large_as_training_filled_it_up():
  sampler = ending(end_padding=8)
  assert len(sampler.generate("abc", num_steps=2)[0].ids) == 8
  assert len(sampler.generate("abc", lengths=9, num_steps=2)[0].ids) == 16
  # What fits goes before whole multiples.
  assert len(sampler.generate("a" * 35, lengths=9, num_steps=2)[0].ids) == 12


def test_prefix_answers_are_those_of_the_whole_row():
  # One step: the argmax of the row with its canvas masked and its </s> in place.
  model = make_model(attention="prefix")
  prompt = encode("hello")
  (answer,) = Sampler(model).generate("hello", lengths=6, num_steps=1)
  logits = logits_of(model, [0, *prompt, *[40] * 6, 2], answer=range(6, 13))
  assert answer.ids == logits[6:12].argmax(-1).tolist()


# Causal models.


def test_a_causal_model_is_decoded_greedily_from_left_to_right():
  model = make_model(mask_id=-1, attention="causal")
  sampler = Sampler(model)
  (answer,) = sampler.generate("hello", lengths=6)
  ids = [0, *encode("hello")]
  for _ in range(6):
    ids.append(int(logits_of(model, ids)[-1].argmax()))
    if ids[-1] == 2:
      break
  said = ids[6:]
  assert answer.ids == said + [2] * (6 - len(said))
  assert answer.network_calls <= 6
  with pytest.raises(UserError, match="left_to_right' alone"):
    sampler.generate("hello", lengths=6, strategy="confidence")


def test_a_model_without_mask_and_order_is_refused():
  with pytest.raises(UserError, match="no mask and is not causal"):
    Sampler(make_model(mask_id=-1))


# Guidance.


@pytest.mark.parametrize("unconditional", ["masked", "absent"])
def test_guidance_combines_logits_with_and_without_the_prompt(unconditional):
  model = make_model()
  prompt, weight = encode("hello"), 1.5
  (answer,) = Sampler(model).generate(
    "hello", lengths=6, num_steps=1, guidance=weight, unconditional=unconditional
  )
  other = [40] * len(prompt) if unconditional == "masked" else []
  rows = [[0, *ids, *[40] * 6, 2] for ids in (prompt, other)]
  with_prompt, without = (logits_of(model, row)[-7:-1] for row in rows)
  logits = (1 + weight) * with_prompt - weight * without
  assert answer.ids == logits.argmax(-1).tolist()
  top = logits - logits.max(-1, keepdims=True)
  np.testing.assert_allclose(answer.scores, -np.log(np.exp(top).sum(-1)), atol=2e-4)
  (plain,) = Sampler(model).generate("hello", lengths=6, num_steps=1)
  assert plain.ids != answer.ids


# Likelihood.


def test_a_score_bounds_the_likelihood_and_is_exact_for_one_token():
  model = make_model(end="predicted")
  score = Sampler(model).score("hello", "ab", samples=64)
  ids = [0, *encode("hello"), *encode("ab"), 2]
  assert score.tokens == 3
  # The mean over all masks of 1, 2 and 3 of the three tokens.
  total = 0.0
  for count in (1, 2, 3):
    for masked in itertools.combinations(range(6, 9), count):
      shown = [40 if n in masked else id_ for n, id_ in enumerate(ids)]
      logits = logits_of(model, shown)
      own = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
      own -= logits.max(-1, keepdims=True)
      value = sum(own[n, ids[n]] for n in masked) * 3 / count
      total += value / 3 / math.comb(3, count)
  assert score.standard_error > 0
  assert abs(score.log_likelihood - total) < 4 * score.standard_error


def test_a_causal_model_is_scored_exactly():
  model = make_model(mask_id=-1, attention="causal")
  score = Sampler(model).score("hello", "abc")
  ids = [0, *encode("hello"), *encode("abc"), 2]
  logits = logits_of(model, ids)
  own = logits - logits.max(-1, keepdims=True)
  own -= np.log(np.exp(own).sum(-1, keepdims=True))
  assert score.standard_error == 0
  expected = sum(own[n - 1, ids[n]] for n in range(6, 10))
  assert score.log_likelihood == pytest.approx(expected, abs=1e-4)


# Streams, threads, programs.


@pytest.mark.parametrize(
  "sampler", [Sampler(make_model()), ending("blocks", block_size=3, end_padding=3)], ids=str
)
def test_a_stream_shows_the_steps_of_the_answer(sampler):
  options = {"lengths": 6, "num_steps": 4, "seed": 3}
  steps = list(sampler.stream("hello", **options))
  (answer,) = sampler.generate("hello", return_trace=True, **options)
  assert [step.tokens for step in steps] == [step.tokens for step in answer.trace]
  assert [step.masked for step in steps] == [step.masked for step in answer.trace]
  assert not any(steps[-1].masked)
  first = next(iter(sampler.stream("hello", **options)))  # a stream may be left
  assert first.tokens == steps[0].tokens
  with pytest.raises(UserError, match="is empty"):
    next(sampler.stream(" ", **options))


def test_threads_get_what_they_would_alone():
  sampler = Sampler(make_model())
  prompts = random_prompts(4)
  alone = [sampler.generate(prompt, lengths=6, num_steps=3)[0] for prompt in prompts]
  found = {}

  def work(number):
    streamed = list(sampler.stream(prompts[number], lengths=6, num_steps=3))
    found[number] = sampler.generate(prompts[number], lengths=6, num_steps=3)[0], streamed[-1]

  threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for number, answer in enumerate(alone):
    assert found[number][0] == answer
    assert found[number][1].text == "".join(
      LetterTokenizer().piece(id_) for id_ in answer.ids if id_ > 2
    ).removeprefix(" ")


def test_after_a_warm_up_nothing_is_compiled():
  sampler = Sampler(make_model())
  shapes = sampler.warm_up(prompt_tokens=(5, 30), lengths=(4, 12), batch_size=2, num_steps=4)
  assert shapes == [(2, 32, 8), (2, 32, 16), (2, 48, 8), (2, 48, 16)]
  assert sampler.programs == 4
  sampler.generate(["abc", "a" * 30], lengths=[4, 12], strict=True, batch_size=2, num_steps=9)
  assert sampler.programs == 4
  assert sampler.warm_up(prompt_tokens=(400,), lengths=(4,)) == []


# Settings.


def test_presets_are_settings_and_may_be_changed():
  for name in PRESETS:
    assert isinstance(settings_of(name), Settings)
  changed = settings_of("llada", num_steps=64)
  assert (changed.strategy, changed.num_steps) == ("confidence-block32", 64)


@pytest.mark.parametrize(
  ("preset", "changes", "message"),
  [
    ("lada", {}, "preset 'lada' is none of .* did you mean 'llada'"),
    ("", {"num_step": 3}, "'num_step' is no setting; did you mean 'num_steps'"),
    ("", {"num_steps": 2.5}, "num_steps = 2.5 must be a whole number"),
    ("", {"temperature": "hot"}, "temperature = 'hot' must be a number"),
    ("", {"select": "blue"}, "select = 'blue' is none of .* did you mean 'bleu'"),
    ("", {"guidance": -1.0}, "guidance = -1.0 must be"),
    ("", {"length_beam": 0}, "length_beam = 0 must be >= 1"),
    ("", {"top_p": 0.0}, "top_p = 0.0 must be in"),
  ],
)
def test_illegal_settings_are_one_line(preset, changes, message):
  with pytest.raises(UserError, match=message) as error:
    settings_of(preset, **changes)
  assert "\n" not in str(error.value)
