"""The forward processes: x_t ~ q(. | x_0), and the uniform draws that decide it.

Absorbing noise is the diffusion model's; `next_token` is the autoregressive control, which has
none.

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


def next_token(x0: Array, canvas: Array) -> tuple[Array, Array, Array]:
  """The autoregressive control: nothing is noised, and every canvas position is scored.

  With causal attention and an output shift of 1 a position is predicted from those before it
  alone, so the loss is the cross entropy of next tokens.

  Args:
    x0: int32[B, L], clean ids.
    canvas: bool[B, L], the positions that are scored.

  Returns:
    xt, corrupted, scored, as `corrupt`.
  """
  return x0, jnp.zeros_like(canvas), canvas


def row_uniform(key: Array, index: Array, length: int) -> Array:
  """Uniform draws float32[B, length] from [0, 1), row b a function of (key, index[b]) alone."""
  return jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), (length,)))(index)


def one_block(uniform: Array, canvas: Array, segments: Array, *, block_size: int) -> Array:
  """Narrows each example's canvas to one of its blocks of `block_size`: block floor(u n) of n.

  Under attention 'blocks' a block is noised while the earlier ones are clean and the later ones
  unseen, so that one forward pass is exact for one block (BD3-LM's objective, 2503.09573, with a
  draw in the place of its second stream).

  Args:
    uniform: float32[B, L], draws u from [0, 1), equal within an example.
    canvas: bool[B, L], the whole answers, each contiguous; the last block may be shorter.
    segments: int32[B, L], ascending numbers of the examples in a row, up to L; 0 is padding.
    block_size: canvas positions of a block.

  Returns:
    bool[B, L], positions of the canvas.
  """
  counts = jax.vmap(example_counts)(canvas, segments)  # [B, L + 1]
  of_example = lambda values: jnp.take_along_axis(values, segments, axis=1)
  before = of_example(jnp.cumsum(counts, axis=1) - counts)
  rank = jnp.cumsum(canvas, axis=1) - 1 - before  # of a canvas position among its example's
  blocks = -(-of_example(counts) // block_size)
  drawn = jnp.floor(uniform * blocks).astype(jnp.int32)
  return canvas & (rank // block_size == drawn)


def example_counts(canvas: Array, segments: Array) -> Array:
  """Canvas positions of each segment number of one row: bool[L], int32[L] to int32[L + 1]."""
  return jax.ops.segment_sum(canvas.astype(jnp.int32), segments, canvas.shape[0] + 1)


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
