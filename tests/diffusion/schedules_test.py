import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.diffusion import schedules
from diffjax.types import UserError

SCHEDULES = [
  schedules.make("linear"),
  schedules.make("cosine"),
  schedules.make("polynomial", power=0.5),
  schedules.make("polynomial", power=1.0),
  schedules.make("polynomial", power=3.0),
]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@each_schedule
def test_ends_are_exact_and_alpha_falls_between(schedule):
  t = jnp.linspace(0, 1, 1001, dtype=jnp.float32)
  alpha = np.asarray(schedule.alpha(t))
  assert alpha.dtype == np.float32
  assert alpha[0] == 1
  assert alpha[-1] == 0
  assert (np.diff(alpha) <= 0).all()


def test_alpha_is_the_stated_formula():
  t = np.linspace(0, 1, 101)
  np.testing.assert_allclose(schedules.make("linear").alpha(t), 1 - t, atol=1e-15)
  cosine = schedules.make("cosine").alpha(t)
  np.testing.assert_allclose(cosine, 1 - np.cos(np.pi / 2 * (1 - t)), atol=1e-15)
  cubic = schedules.make("polynomial", power=3.0).alpha(t)
  np.testing.assert_allclose(cubic, 1 - t * t * t, atol=1e-15)


@each_schedule
def test_derivative_equals_automatic_differentiation(schedule):
  t = jnp.linspace(0.01, 1, 100)
  expected = jax.vmap(jax.grad(schedule.alpha))(t)
  np.testing.assert_allclose(schedule.derivative(t), expected, rtol=1e-5, atol=1e-6)


@each_schedule
def test_time_of_inverts_the_masking_rate(schedule):
  rate = np.linspace(0, 1, 101)
  np.testing.assert_allclose(1 - schedule.alpha(schedule.time_of(rate)), rate, atol=1e-12)


@each_schedule
def test_numpy_and_jax_agree(schedule):
  t = np.linspace(0.1, 1, 19)
  on_device = jnp.asarray(t, jnp.float32)
  for name in ("alpha", "derivative", "time_of"):
    method = getattr(schedule, name)
    assert method(t).dtype == np.float64
    assert isinstance(method(on_device), jax.Array)
    # time_of has an infinite slope at rate 1 under the cosine schedule
    np.testing.assert_allclose(
      method(t), method(on_device), atol=5e-4 if name == "time_of" else 1e-6
    )
  reveal = schedules.reveal_prob(schedule, t / 2, t)
  assert reveal.dtype == np.float64
  on_jax = jax.jit(schedules.reveal_prob, static_argnums=0)(schedule, on_device / 2, on_device)
  np.testing.assert_allclose(reveal, on_jax, atol=1e-4)


@each_schedule
def test_reveal_prob_composes_and_ends(schedule):
  """Staying masked from t to s and from s to r is staying masked from t to r."""
  r, s, t = np.sort(np.random.default_rng(0).uniform(0.01, 1, (3, 100)), axis=0)
  stay = lambda early, late: 1 - schedules.reveal_prob(schedule, early, late)
  np.testing.assert_allclose(stay(r, s) * stay(s, t), stay(r, t), atol=1e-12)
  assert (schedules.reveal_prob(schedule, 0.0, t) == 1).all()  # all is clean at time 0
  assert (schedules.reveal_prob(schedule, t, t) == 0).all()
  assert schedules.reveal_prob(schedule, 0.0, 0.0) == 0  # nothing is masked, nothing to reveal


def test_equal_schedules_are_one_static_argument():
  assert schedules.make("polynomial", power=2) == schedules.make("polynomial", power=2.0)
  assert len({*SCHEDULES, *SCHEDULES}) == len(SCHEDULES)


@pytest.mark.parametrize(
  ("name", "power", "message"),
  [("cosin", 1.0, "'cosine'"), ("linear", 2.0, "2.0"), ("polynomial", 0.0, "above 0")],
)
def test_wrong_settings_are_named(name, power, message):
  with pytest.raises(UserError, match=message):
    schedules.make(name, power=power)
