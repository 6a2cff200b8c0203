"""What decides an answer beside its steps: lengths, ends, blocks, guidance, candidates."""

import dataclasses
import itertools
import json
import math
import threading

import jax
import numpy as np
import pytest
from letter_models import CONFIG, LetterTokenizer, make_model, random_prompts

from diffjax.diffusion import generation
from diffjax.model import Model
from diffjax.models import transformer
from diffjax.sampling import PRESETS, Sampler, Settings, layout, programs, requests, settings_of
from diffjax.types import UserError

DRAWN = {"num_samples": 3, "temperature": 1.0, "num_steps": 3}
encode = LetterTokenizer().encode


def logits_of(model, rows, *, answer=None, **changes):
  """float32[B, L, allowed ids] of rows of one length, by the uncached network."""
  contract = dataclasses.replace(model.contract, **changes)
  tokens = np.asarray(rows)
  canvas = None
  if answer is not None:
    canvas = np.broadcast_to(np.isin(np.arange(tokens.shape[1]), answer), tokens.shape)
  denoiser = transformer.bind(
    model.params, np.ones_like(tokens), config=model.config, contract=contract,
    compute=model.compute, canvas=canvas,
  )  # fmt: skip
  return np.asarray(jax.jit(lambda rows: transformer.logits(denoiser, rows))(tokens))[..., :38]


# Lengths that are predicted.


SHARED = {"strict": True, "batch_size": 4}  # one shape, whatever the prompt and its length


@pytest.fixture(scope="module")
def with_lengths():
  return Sampler(make_model(config=dataclasses.replace(CONFIG, length_classes=7)))


@pytest.fixture(scope="module")
def likeliest(with_lengths):
  """text -> the lengths from the likeliest on, by the length head itself."""
  logits = jax.jit(with_lengths.model.length_logits)

  def lengths(text):
    tokens = np.pad([0, *encode(text)], (0, 8))[None, :8]
    found = logits(tokens, (np.arange(8) <= len(text))[None].astype(np.int32))
    return (np.argsort(-np.asarray(found)[0], kind="stable") + 1).tolist()

  return lengths


def test_a_length_head_decides_the_length(with_lengths, likeliest):
  answers = with_lengths.generate(["abc", "hello"], num_steps=3, **SHARED)
  for text, answer in zip(["abc", "hello"], answers, strict=True):
    assert len(answer.ids) == likeliest(text)[0]


def test_a_beam_of_lengths_is_decoded_and_the_best_mean_wins(with_lengths, likeliest):
  (answer,) = with_lengths.generate("abc", num_steps=3, length_beam=4, **SHARED)
  lengths = likeliest("abc")[:4]
  assert sorted(len(candidate.ids) for candidate in answer.candidates) == sorted(lengths)
  alone = [with_lengths.generate("abc", lengths=n, num_steps=3, **SHARED)[0] for n in lengths]
  best = max(alone, key=lambda candidate: candidate.score)
  assert answer.ids == best.ids
  scores = [candidate.score for candidate in answer.candidates]
  assert scores == sorted(scores, reverse=True)
  assert answer.network_calls == sum(candidate.network_calls for candidate in alone)
  (by_total,) = with_lengths.generate("abc", num_steps=3, length_beam=4, select="total", **SHARED)
  assert by_total.ids == max(alone, key=lambda candidate: candidate.total).ids


def test_no_length_is_predicted_that_does_not_fit(with_lengths):
  prompt = "a" * (CONFIG.max_positions - 2 - 3)  # room for three
  (answer,) = with_lengths.generate(prompt, num_steps=2, length_beam=4, **SHARED)
  assert sorted(len(candidate.ids) for candidate in answer.candidates) == [1, 2, 3]
  with pytest.raises(UserError, match="48 positions"):
    with_lengths.generate("a" * (CONFIG.max_positions - 2), num_steps=2)


def test_where_the_end_is_predicted_a_predicted_length_leaves_room_for_it(with_lengths, likeliest):
  contract = dataclasses.replace(with_lengths.model.contract, end="predicted", end_padding=4)
  sampler = Sampler(dataclasses.replace(with_lengths.model, contract=contract))
  (answer,) = sampler.generate("abc", num_steps=2, length_beam=5, **SHARED)
  canvases = {4 if length < 4 else 8 for length in likeliest("abc")[:5]}
  assert len(canvases) == 2
  assert sorted(len(candidate.ids) for candidate in answer.candidates) == sorted(canvases)
  assert requests.around_lengths([4, 2, 7, 3], 6, contract) == [6, 4]
  assert requests.around_lengths([4, 2], 9, with_lengths.model.contract) == [4, 2]


@pytest.mark.parametrize("given", [{}, {"preset": "paper-mt"}])
def test_a_beam_that_changes_nothing_is_refused_if_it_was_asked_for(with_lengths, given):
  for call in (with_lengths.generate, lambda *x, **y: next(with_lengths.stream(*x, **y))):
    with pytest.raises(UserError, match="length_beam = 3 tries predicted lengths, and the length"):
      call("abc", lengths=4, length_beam=3, **given)
  with pytest.raises(UserError, match=r"length_beam = 3 .* has no length head"):
    Sampler(make_model(end="predicted")).generate("abc", length_beam=3, **given)
  with pytest.raises(UserError, match="a stream shows one answer"):
    next(with_lengths.stream("abc", lengths=4, num_samples=2, temperature=1.0, **given))


def test_a_preset_with_a_beam_goes_with_given_lengths(with_lengths):
  options = {"preset": "paper-mt", "num_steps": 3}
  (answer,) = with_lengths.generate("abc", lengths=4, **options, **SHARED)
  assert not answer.candidates
  assert len(answer.ids) == 4


def test_without_a_length_there_must_be_something_that_knows_it():
  with pytest.raises(UserError, match="how long are the answers"):
    Sampler(make_model()).generate("abc")


# Candidates.


def test_samples_differ_and_the_most_alike_is_chosen(with_lengths):
  (answer,) = with_lengths.generate("abc", lengths=6, select="rouge", **DRAWN, **SHARED)
  texts = [candidate.text for candidate in answer.candidates]
  assert len(set(texts)) == 3
  assert answer.text == texts[0]
  again = with_lengths.generate(["xyz", "abc"], lengths=6, select="mean", **DRAWN, **SHARED)[1]
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
  assert [answer.ended for answer in answers] == [2 in answer.ids for answer in answers]
  ended = [answer for answer in answers if answer.ended]
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
  contract = sampler.model.contract
  assert requests.open_size(contract) == 8
  assert [requests.rounded(size, contract) for size in (1, 8, 9)] == [8, 8, 16]
  in_blocks = dataclasses.replace(contract, attention="blocks", block_size=4)
  assert requests.open_size(in_blocks) == 64
  short, long = sampler.generate(["abc", "a" * 35], lengths=9, num_steps=2)
  assert len(short.ids) == 16
  assert len(long.ids) == 12  # what fits goes before whole multiples


def test_prefix_answers_are_those_of_the_whole_row():
  # One step: the argmax of the row with its canvas masked and its </s> in place.
  model = make_model(attention="prefix")
  prompt = encode("hello")
  (answer,) = Sampler(model).generate("hello", lengths=6, num_steps=1)
  (logits,) = logits_of(model, [[0, *prompt, *[40] * 6, 2]], answer=range(6, 13))
  assert answer.ids == logits[6:12].argmax(-1).tolist()


# Causal models.


def test_a_causal_model_is_decoded_greedily_from_left_to_right():
  model = make_model(mask_id=-1, attention="causal")
  sampler = Sampler(model)
  (answer,) = sampler.generate("hello", lengths=6)
  (logits,) = logits_of(model, [[0, *encode("hello"), *answer.ids]])
  said = answer.ids.index(2) + 1 if 2 in answer.ids else 6
  assert answer.ids[:said] == logits[5 : 5 + said].argmax(-1).tolist()
  assert answer.ids[said:] == [2] * (6 - said)
  assert answer.network_calls <= 6
  with pytest.raises(UserError, match="left_to_right' alone"):
    sampler.generate("hello", lengths=6, strategy="confidence")


class Opening(Model):
  """Attention that is opened by its parameters, as between two steps of training."""

  def denoiser(self, segments, *, params, canvas):
    opened = transformer.evaluation_opening(segments.shape[1], params[1])
    return transformer.bind(
      params[0], segments, config=self.config, contract=self.contract, compute=self.compute,
      canvas=canvas, opened=opened,
    )  # fmt: skip


@pytest.mark.parametrize(
  ("attention", "more", "stored"),
  [
    ("full", {}, False),
    ("prefix", {}, True),
    ("blocks", {"block_size": 4, "end_padding": 4, "end": "predicted"}, True),
    ("causal", {}, True),
    ("causal", {"openness": 0.5}, False),
  ],
)
def test_what_can_be_stored_is_asked_of_the_network(attention, more, stored):
  model = make_model(attention=attention, **more)
  (_, canvas), words = layout.framed([5, 6], 3, model.contract), np.zeros(4, np.uint32)
  request = layout.Request([0, 5, 6, 2, 2, 2, 2], canvas, words, closed=False)
  rows = layout.lay_out([request], layout.Shape(1, 32, 8), pad_id=1)
  assert programs.can_store(model.params, rows, model=model) == stored
  fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
  opening = Opening(**fields)
  assert not programs.can_store((model.params, 0.5), rows, model=opening)
  zeroing = dataclasses.replace(model, config=dataclasses.replace(CONFIG, zero_mask_embedding=True))
  assert not programs.can_store(model.params, rows, model=zeroing)


@pytest.mark.slow
def test_half_opened_attention_is_decoded_from_left_to_right_without_a_cache():
  model = make_model(attention="causal", openness=0.5, output_shift=1)
  (answer,) = Sampler(model).generate("hello", lengths=6, strategy="left_to_right")
  assert answer.network_calls == 6
  # The row is computed in 32 positions, and what is open depends on their number: so is this one.
  shown = [0, *encode("hello"), *answer.ids[:5], 40, 2]
  tokens = np.pad(shown, (0, 32 - len(shown)), constant_values=1)[None]
  denoiser = model.denoiser((np.arange(32) < len(shown)).astype(np.int32)[None])
  logits = np.asarray(jax.jit(lambda rows: transformer.logits(denoiser, rows))(tokens))
  assert answer.ids[5] == logits[0, 11, :38].argmax()


def test_the_prompt_of_a_causal_denoiser_is_stored_under_every_strategy():
  model = make_model(attention="causal", output_shift=1)
  (answer,) = Sampler(model).generate("hello", lengths=6, num_steps=1, strategy="confidence")
  (logits,) = logits_of(model, [[0, *encode("hello"), *[40] * 6, 2]])
  assert answer.ids == logits[6:12].argmax(-1).tolist()
  assert answer.network_calls == 2  # the one that fills the cache, and one step


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
  with_prompt, without = (logits_of(model, [row])[0, -7:-1] for row in rows)
  logits = (1 + weight) * with_prompt - weight * without
  assert answer.ids == logits.argmax(-1).tolist()
  top = logits - logits.max(-1, keepdims=True)
  np.testing.assert_allclose(answer.scores, -np.log(np.exp(top).sum(-1)), atol=2e-4)
  assert answer.ids != with_prompt.argmax(-1).tolist()


# Likelihood.


def test_a_score_bounds_the_likelihood_and_is_exact_for_one_token():
  model = make_model(end="predicted")
  sampler = Sampler(model)
  score, whole = (sampler.score("hello", "ab", samples=n, batch_size=8) for n in (6, 7))
  ids = [0, *encode("hello"), *encode("ab"), 2]
  assert score.tokens == 3
  # The mean over all masks of 1, 2 and 3 of the three tokens.
  masks = [one for count in (1, 2, 3) for one in itertools.combinations(range(6, 9), count)]
  rows = [[40 if n in masked else id_ for n, id_ in enumerate(ids)] for masked in masks]
  total = 0.0
  for masked, logits in zip(masks, logits_of(model, rows), strict=True):
    own = logits - logits.max(-1, keepdims=True)
    own -= np.log(np.exp(own).sum(-1, keepdims=True))
    value = sum(own[n, ids[n]] for n in masked) * 3 / len(masked)
    total += value / 3 / math.comb(3, len(masked))
  assert score.standard_error > 0
  assert abs(score.log_likelihood - total) < 4 * score.standard_error
  assert whole.standard_error == 0  # there are no more than seven masks
  assert whole.log_likelihood == pytest.approx(total, abs=1e-3)


def test_a_causal_model_is_scored_exactly():
  model = make_model(mask_id=-1, attention="causal")
  score = Sampler(model).score("hello", "abc")
  ids = [0, *encode("hello"), *encode("abc"), 2]
  (logits,) = logits_of(model, [ids])
  own = logits - logits.max(-1, keepdims=True)
  own -= np.log(np.exp(own).sum(-1, keepdims=True))
  assert score.standard_error == 0
  expected = sum(own[n - 1, ids[n]] for n in range(6, 10))
  assert score.log_likelihood == pytest.approx(expected, abs=1e-4)


# Streams, threads, programs.


def test_a_stream_shows_the_steps_of_the_answer():
  sampler = ending("blocks", block_size=3, end_padding=3)
  options = {"lengths": 6, "num_steps": 4, "seed": 3}
  steps = list(sampler.stream("hello", **options))
  (answer,) = sampler.generate("hello", return_trace=True, **options)
  assert [step.tokens for step in steps] == [step.tokens for step in answer.trace]
  assert [step.masked for step in steps] == [step.masked for step in answer.trace]
  assert not any(steps[-1].masked)
  assert sampler.text(steps[-1]) == answer.text
  first = next(iter(sampler.stream("hello", **options)))
  assert first.tokens == steps[0].tokens
  with pytest.raises(UserError, match="is empty"):
    next(sampler.stream(" ", **options))


def test_a_stream_may_be_left_without_waiting_for_its_end(monkeypatch):
  sampler = Sampler(make_model())
  decoder, over = sampler._decoder, threading.Event()

  def long(sides, how, *, watcher):
    shape = sides[0].real.shape
    step = np.zeros(shape, int), np.ones(shape, bool), np.zeros(shape), np.ones(1, bool)
    decoder._watch(np.int32(watcher), generation.Trace(*step))
    over.wait()
    decoder._watch(np.int32(watcher), generation.Trace(*step))
    return np.zeros(1)

  monkeypatch.setattr(decoder, "_call", long)
  stream = sampler.stream("abc", lengths=4)
  assert next(stream).masked == [True] * 4
  stream.close()
  (worker,) = [thread for thread in threading.enumerate() if "work" in thread.name]
  assert worker.is_alive()  # it was not waited for
  over.set()
  worker.join(10)
  assert not decoder._watchers


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


def test_after_a_warm_up_nothing_is_compiled(with_lengths):
  sampler = Sampler(with_lengths.model)
  shapes = sampler.warm_up(prompt_tokens=(5, 30), lengths=(4,), batch_size=4, num_steps=4)
  assert shapes == [(4, 32, 8), (4, 48, 8)]
  assert sampler.programs == 2
  heads = sampler._decoder._predict_lengths._cache_size()
  assert heads == 1
  sampler.generate(["abc", "a" * 30], lengths=[4, 4], num_steps=9, **SHARED)
  sampler.generate(["abcde", "xyz"], num_steps=9, **SHARED)
  assert sampler.programs == 2
  assert sampler._decoder._predict_lengths._cache_size() == heads
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
    ("", {"lenghts": 3}, "'lenghts' is no setting; did you mean 'lengths'"),
    ("", {"num_steps": np.bool_(1)}, "num_steps = .*True.* must be a whole number"),
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


def test_numbers_of_numpy_are_numbers():
  settings = settings_of(num_steps=np.int64(4), temperature=np.float32(0.5), top_p=1)
  assert settings == settings_of(num_steps=4, temperature=0.5, top_p=1.0)
  json.dumps(dataclasses.asdict(settings))
