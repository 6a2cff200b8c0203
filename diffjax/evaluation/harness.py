"""lm-evaluation-harness's view of a model: `diffjax`, of the extra [eval].

  python -m diffjax.evaluation.harness run --model diffjax --model_args path=RUN --tasks TASK

is its own command with this model known to it; from Python, importing this module is enough for
`lm_eval.simple_evaluate(model="diffjax", model_args="path=RUN")`.
"""

import dataclasses
import itertools
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffjax.data import features
from diffjax.evaluation import likelihood
from diffjax.sampling import Generation, Sampler, Settings
from diffjax.types import Example, UserError

try:
  from lm_eval.api.instance import Instance
  from lm_eval.api.model import LM
  from lm_eval.api.registry import register_model
except ImportError as error:
  raise UserError(
    "lm-evaluation-harness is not installed; run pip install 'diffjax[eval]'"
  ) from error

_SETTINGS = frozenset(field.name for field in dataclasses.fields(Settings))
_OF_TASKS = ("until", "max_gen_toks", "do_sample")  # what tasks ask for beside settings


@register_model("diffjax")
class HarnessModel(LM):
  """A model of ours as lm-evaluation-harness asks it.

  Its log-likelihoods are lower bounds, exact of one token and of a causal model without a mask; the
  perplexities that tasks compute of them are upper bounds. `max_standard_error` is the largest of
  all the scores given so far.
  """

  def __init__(
    self,
    path: str,
    *,
    samples: int = 128,
    seed: int = 0,
    batch_size: int | str | None = None,
    as_trained: bool = True,
    check_greedy: bool = True,
    max_gen_toks: int = 256,
    device: str | None = None,
    max_batch_size: int | None = None,
    **settings: Any,
  ):
    """Loads the model.

    Args:
      path: any directory that `diffjax.load` understands.
      samples: network passes for each score; see Sampler.score.
      seed: of the masks, and of what is sampled.
      batch_size: rows computed at a time; None or "auto": 32.
      as_trained: continuations are targets: without the space before them, and with their </s>.
        False: of a causal model that was never tuned on pairs, as language models are scored:
        with that space, and without </s>.
      check_greedy: whether `is_greedy` of a continuation is found out, by decoding a canvas of its
        length; False leaves it False, and saves that where a task compares likelihoods alone.
      max_gen_toks: tokens of a generation, where a task does not say; a model that says itself how
        long its answer is takes fewer.
      device, max_batch_size: what the harness hands to every model; JAX chooses the devices, and
        shapes are not searched for.
      **settings: of the sampler, such as num_steps=20; a task's own go before them.

    Raises:
      UserError: nothing to load there, or an illegal setting.
    """
    super().__init__()
    self.sampler = Sampler.load(path)
    self.sampler.settings(**settings)
    self._settings = settings
    self._as_trained, self._check_greedy = as_trained, check_greedy
    self._max_gen_toks = max_gen_toks
    rows = 32 if batch_size in (None, "auto") else int(batch_size)
    self._scoring = {"samples": samples, "seed": seed, "batch_size": rows}
    self._decoding = {"seed": seed, "batch_size": rows}
    self.max_standard_error = 0.0

  def get_model_info(self) -> dict[str, Any]:
    """What the harness writes beside its results."""
    config = self.sampler.model.config
    return {
      **self._scoring, **self._settings, "as_trained": self._as_trained,
      "layers": config.layers, "width": config.width,
    }  # fmt: skip

  def loglikelihood(
    self, requests: Sequence[Instance], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """(bound on log p(continuation | context) in nats, is_greedy) of each (context, continuation).

    Contexts that are too long lose their start. Equal rows are computed once.

    Raises:
      UserError: a continuation has no tokens or does not fit, or two of one context are the same to
        the tokenizer, which would tie.
    """
    pairs = [request.args for request in requests]
    rows = {pair: self._row(*pair) for pair in dict.fromkeys(pairs)}
    key_of = {pair: (row.canvas_start, *row.tokens.tolist()) for pair, row in rows.items()}
    meant: dict[tuple[str, tuple[int, ...]], str] = {}
    for (context, continuation), key in key_of.items():
      other = meant.setdefault((context, key), continuation.strip())
      if other != continuation.strip():
        raise UserError(
          f"the continuations {other!r} and {continuation.strip()!r} are the same to this model's "
          f"tokenizer, so likelihoods cannot choose; take a task that generates its answers"
        )
    distinct = {key: rows[pair] for pair, key in key_of.items()}
    scores = self.sampler.score_rows(
      list(distinct.values()), progress="" if disable_tqdm else "likelihood", **self._scoring
    )
    self._note_errors(score.standard_error for score in scores)
    greedy = self._are_greedy(list(distinct.values()))
    found = zip((score.log_likelihood for score in scores), greedy, strict=True)
    answers = dict(zip(distinct, found, strict=True))
    return self._cached("loglikelihood", pairs, [answers[key_of[pair]] for pair in pairs])

  def loglikelihood_rolling(
    self, requests: Sequence[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """The bound on log p(text </s>) of each (text,), in windows; see likelihood.text_bounds.

    Warns where tokens are unknown: what they stand for costs nothing, so that the bits per byte
    that a task makes of these are too few.
    """
    texts = [request.args[0] for request in requests]
    encode = self.sampler.model.tokenizer.encode
    distinct = [text for text in dict.fromkeys(texts) if encode(text)]
    bounds = likelihood.text_bounds(
      self.sampler, distinct, progress="" if disable_tqdm else "likelihood", **self._scoring
    )
    self._note_errors(bound.error for bound in bounds)
    if unknown := sum(bound.unknown for bound in bounds):
      warnings.warn(
        f"{unknown} of {sum(bound.tokens for bound in bounds)} tokens are unknown to this model's "
        f"tokenizer: bits per byte, and perplexities per byte and per word, are too low",
        stacklevel=2,
      )
    nats = {text: -bound.nats for text, bound in zip(distinct, bounds, strict=True)}
    found = [nats.get(text, 0.0) for text in texts]  # of no tokens: certain
    return self._cached("loglikelihood_rolling", [(text,) for text in texts], found)

  def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
    """What the sampler says to each (context, settings), up to the first of the texts `until`.

    A task's settings are those of the sampler by name; temperature counts with `do_sample` alone.
    Contexts that are too long lose their start.

    Raises:
      UserError: a task asks for a setting that the sampler does not have.
    """
    texts: list[str] = [""] * len(requests)
    asked = [_canonical(request.args[1]) for request in requests]
    for wanted in dict.fromkeys(asked):
      members = [n for n, other in enumerate(asked) if other == wanted]
      options = json.loads(wanted)
      until = options.get("until") or []
      answers = self._generate(
        [requests[n].args[0] for n in members],
        options,
        progress="" if disable_tqdm else "generation",
      )
      for n, answer in zip(members, answers, strict=True):
        texts[n] = _cut(answer.text, [until] if isinstance(until, str) else until)
    return self._cached("generate_until", [request.args for request in requests], texts)

  def _generate(
    self, contexts: Sequence[str], options: Mapping[str, Any], *, progress: str
  ) -> list[Generation]:
    model, longest = self.sampler.model, self.sampler.model.config.max_positions
    settings = self._settings | {k: v for k, v in options.items() if k not in _OF_TASKS}
    if unknown := sorted(settings.keys() - _SETTINGS):
      raise UserError(
        f"generation_kwargs.{unknown[0]} is no setting of the sampler; leave it out, or choose "
        f"{', '.join([*_OF_TASKS, *sorted(_SETTINGS)])}"
      )
    if not options.get("do_sample", True):
      settings["temperature"] = 0.0
    # Half of the model's positions are left to the context at least.
    size = min(int(options.get("max_gen_toks", self._max_gen_toks)), longest // 2)
    room = longest - size - 2  # <s> and </s>
    prompts = [
      features.prompt_end(text, model.tokenizer, model.contract, room=room) for text in contexts
    ]
    knows = model.config.length_classes > 0
    return self.sampler.generate_ids(
      prompts, lengths=None if knows else size, progress=progress, **self._decoding, **settings
    )

  def _row(self, context: str, continuation: str) -> features.Row:
    model = self.sampler.model
    target = continuation.lstrip() if self._as_trained else continuation
    row = features.encode(
      Example(context, target), model.tokenizer, model.contract,
      max_length=model.config.max_positions, too_long="keep_end",
    )  # fmt: skip
    if row is None:
      raise UserError(
        f"the continuation {continuation[:40]!r} has no tokens, or more than the model's "
        f"{model.config.max_positions} positions; leave it out"
      )
    if self._as_trained:
      return row
    said = len(row.tokens)
    while row.tokens[said - 1] == model.contract.eos_id:
      said -= 1
    return features.Row(row.tokens[:said], row.canvas_start)

  def _are_greedy(self, rows: Sequence[features.Row]) -> list[bool]:
    """Whether each target is what the sampler itself says on a canvas of its size."""
    if not self._check_greedy:
      return [False] * len(rows)
    contract = self.sampler.model.contract
    given = self._as_trained and contract.end == "given"  # </s> stands behind the canvas then
    targets = [row.tokens[row.canvas_start :].tolist()[: -1 if given else None] for row in rows]
    settings = self._settings | {"temperature": 0.0, "num_samples": 1, "length_beam": 1}
    answers = self.sampler.generate_ids(
      [row.tokens[1 : row.canvas_start].tolist() for row in rows],
      lengths=[len(target) for target in targets],
      **self._decoding,
      **settings,
    )
    return [
      answer.ids[: len(target)] == target for answer, target in zip(answers, targets, strict=True)
    ]

  def _note_errors(self, errors: Iterator[float]) -> None:
    self.max_standard_error = max(itertools.chain([self.max_standard_error], errors))

  def _cached(self, kind: str, arguments: Sequence[Any], answers: list[Any]) -> list[Any]:
    """Tells the harness's cache, where there is one."""
    for argument, answer in zip(arguments, answers, strict=True):
      self.cache_hook.add_partial(kind, argument, answer)
    return answers


def _canonical(options: Mapping[str, Any]) -> str:
  return json.dumps(options, sort_keys=True)


def _cut(text: str, until: Sequence[str]) -> str:
  """The text before the first of any stop."""
  for stop in filter(None, until):
    text = text.partition(stop)[0]
  return text


if __name__ == "__main__":
  from lm_eval.__main__ import cli_evaluate

  cli_evaluate()
