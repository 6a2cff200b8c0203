"""The absorbing forward process: x_t ~ q(. | x_0), and the uniform draws that decide it.

Which positions are noised is said by an explicit mask and never by `xt == mask_id`: a prompt may
contain the mask id. Every draw is keyed by the row's number in the global batch, so a row's noise
does not depend on its batch mates, on the mesh or on the number of microbatches.
"""

import jax
import jax.numpy as jnp

from diffjax.types import Array, Batch


def corrupt(
  uniform: Array, x0: Array, canvas: Array, alpha_t: Array, *, mask_id: int
) -> tuple[Array, Array, Array]:
  """Noises each canvas position with probability 1 - alpha_t: it becomes the mask id.

  One `uniform` used at two noise levels gives nested corruptions: for t_a > t_b, what is noised in
  b is noised in a, and P(noised in b | noised in a) = (1 - alpha_b) / (1 - alpha_a), which is the
  coupling of RDM (2302.05737).

  Args:
    uniform: float32[B, L], independent draws from [0, 1).
    x0: int32[B, L], clean ids.
    canvas: bool[B, L], the positions that may be noised.
    alpha_t: float32[B, L], the chance of each position to stay clean.
    mask_id: the id that noised positions take.

  Returns:
    xt int32[B, L]; corrupted bool[B, L], the noised positions; scored bool[B, L], the positions
    whose prediction enters the loss, which for this process are the noised ones.
  """
  corrupted = canvas & (uniform < 1 - alpha_t)
  return jnp.where(corrupted, mask_id, x0), corrupted, corrupted


def row_uniform(key: Array, index: Array, length: int) -> Array:
  """Uniform draws float32[B, length] from [0, 1), row b a function of (key, index[b]) alone."""
  return jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), (length,)))(index)


def twins(batch: Batch) -> Batch:
  """Repeats every row as neighbours, for coupled pairs: [B, ...] becomes [2 B, ...].

  Row i becomes rows 2i and 2i + 1, numbered 2 index and 2 index + 1. Each shard of axis 0 doubles
  what it holds, so no data moves between devices.
  """

  def double(rows: Array) -> Array:
    pairs = jnp.broadcast_to(rows[:, None], (rows.shape[0], 2, *rows.shape[1:]))
    return pairs.reshape(-1, *rows.shape[1:])

  index = (2 * batch.index[:, None] + jnp.arange(2, dtype=batch.index.dtype)).reshape(-1)
  return Batch(double(batch.tokens), double(batch.segments), double(batch.canvas), index)
