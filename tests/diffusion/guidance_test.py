"""Guidance against the naive arithmetic on whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.diffusion import guidance, vocabulary
from diffjax.types import Head

ROWS, WIDTH, VOCABULARY = 12, 8, 32


def make_views(dtype=np.float32):
  """What the network says with a prompt and without one, [ROWS, WIDTH]; and a head that bends."""
  random = np.random.default_rng(0)
  draw = lambda *shape: random.normal(size=shape).astype(np.float32)
  head = Head(
    transform=lambda params, hidden: jnp.tanh(hidden @ params.astype(hidden.dtype)),
    params=draw(WIDTH, WIDTH),
    table=draw(VOCABULARY, WIDTH),
    bias=draw(VOCABULARY),
    allowed=np.arange(VOCABULARY) < VOCABULARY - 5,
  )
  hidden = [draw(ROWS, WIDTH).astype(dtype) for _ in range(2)]
  return hidden, head, [(lambda said, h=h: h + 0 * said[:, None], head) for h in hidden]


SAID = np.zeros(ROWS, np.float32)


@jax.jit
def guided(weight):
  _, _, views = make_views()
  see, head = guidance.guide(*views, weight)
  needs = frozenset({"entropy"})
  return vocabulary.predict(head, see(SAID), chunk=5, draw=vocabulary.draw(), needs=needs)


def naive_log_law(weight):
  hidden, head, _ = make_views()
  logits = [np.tanh(h @ head.params) @ head.table.T + head.bias for h in hidden]
  both = (1 + weight) * logits[0] - weight * logits[1]
  both = np.where(head.allowed, both, -np.inf)
  return both - np.log(np.exp(both).sum(-1, keepdims=True))


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0, -1.0])
def test_equals_the_naive_combination_of_logits(weight):
  log_law = naive_log_law(weight)
  have = guided(np.float32(weight))
  np.testing.assert_array_equal(have.tokens, log_law.argmax(-1))
  np.testing.assert_allclose(have.scores, log_law.max(-1), rtol=1e-4, atol=1e-5)
  entropy = -(np.exp(log_law) * np.where(log_law > -np.inf, log_law, 0)).sum(-1)
  np.testing.assert_allclose(have.entropy, entropy, rtol=1e-4, atol=1e-4)


def test_logits_and_log_softmaxes_give_the_same_guided_law():
  """(1 + w) log p - w log q, normalised: the constants of the two softmaxes cancel."""
  weight = 2.0
  hidden, head, _ = make_views()
  logs = []
  for h in hidden:
    logits = np.tanh(h @ head.params) @ head.table.T + head.bias
    logits = np.where(head.allowed, logits, -1e30)
    logs.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
  both = np.where(head.allowed, (1 + weight) * logs[0] - weight * logs[1], -np.inf)
  both -= np.log(np.exp(both).sum(-1, keepdims=True))
  have = guided(np.float32(weight))
  np.testing.assert_array_equal(have.tokens, both.argmax(-1))
  np.testing.assert_allclose(have.scores, both.max(-1), rtol=1e-4, atol=1e-5)


def test_weight_0_is_the_conditional_view_alone():
  _, _, views = make_views()
  see, head = views[0]
  want = vocabulary.predict(head, see(SAID), chunk=5, draw=vocabulary.draw())
  have = guided(np.float32(0))
  np.testing.assert_array_equal(have.tokens, want.tokens)
  np.testing.assert_allclose(have.scores, want.scores, rtol=1e-5, atol=1e-6)


def test_the_features_keep_their_dtype():
  _, _, views = make_views(jnp.bfloat16)
  see, head = guidance.guide(*views, np.float32(1.5))
  features = jax.eval_shape(
    lambda said: head.transform(head.params, see(said)), SAID.astype(jnp.bfloat16)
  )
  assert features.dtype == jnp.bfloat16
  assert features.shape == (ROWS, WIDTH)
