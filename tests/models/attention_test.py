"""Every kernel against softmax written out in float64, on one device and on meshes of eight."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import sharding
from diffjax.config import ComputeConfig, Contract, MeshConfig, ModelConfig
from diffjax.models import attention, splash, transformer
from diffjax.types import Layout, UserError

ROWS, HEADS, KEY_HEADS, SIZE, WINDOW = 8, 4, 2, 8, 20


def patterns(length: int) -> tuple[Layout, Layout]:
  """A row for every pattern, of NumPy arrays: the layouts of queries and of keys.

  Full and causal over one segment; then two segments and padding: full, causal, prefix, blocks,
  a canvas in the middle of its prompt, and one where half of the queries see nobody.
  """
  whole = np.ones(length, np.int32)
  first, second = 2 * length // 5, 9 * length // 10
  place = np.arange(length)
  packed = np.where(place < first, 1, np.where(place < second, 2, 0)).astype(np.int32)
  position = np.where(packed == 2, place - first, np.where(packed == 0, place - second, place))
  prompt = np.where(packed == 2, 30, 13)
  answer = np.maximum(position - prompt, -1)
  middle = (position > 9) & (position < 40)
  rows = [
    (whole, place, 0 * place),
    (whole, place, place),
    (packed, position, 0 * place),
    (packed, position, position),
    (packed, position, answer >= 0),
    (packed, position, 1 + answer // 8),
    (packed, position, middle),
    (packed, position, 0 * place),
  ]
  layout = Layout(*(np.stack(x).astype(np.int32) for x in zip(*rows, strict=True)))
  away = np.where(place % 2, packed, -1)
  keys = layout._replace(segments=np.stack([*layout.segments[:-1], away]))
  absent = np.where(place % 2, packed, -2)  # sees no key, and the keys beside it are seen by none
  return layout._replace(segments=np.stack([*layout.segments[:-1], absent])), keys


def draw(rows: int, length: int, dtype=jnp.float32, *, heads=HEADS, key_heads=KEY_HEADS):
  """Queries, keys, values and what flows back into the output."""
  rng = np.random.default_rng(0)
  shape = lambda heads: (rows, length, heads, SIZE)
  return [
    jnp.asarray(rng.normal(size=shape(h)), dtype) for h in (heads, key_heads, key_heads, heads)
  ]


def visible(queries: Layout, keys: Layout, local: bool) -> np.ndarray:
  """bool[B, Q, L], straight from the definition."""
  queries, keys = jax.tree.map(np.asarray, (queries, keys))
  seen = queries.segments[:, :, None] == keys.segments[:, None]
  in_order = keys.order[:, None] <= queries.order[:, :, None]
  seen &= in_order if queries.opened is None else in_order | queries.opened
  near = abs(queries.positions[:, :, None] - keys.positions[:, None]) <= WINDOW
  return seen & near if local else seen


def twin(query, key, value, upstream, seen):
  """Float64 outputs and the three gradients, head by head."""
  query, key, value, upstream = (np.asarray(x, np.float64) for x in (query, key, value, upstream))
  out = np.zeros_like(query)
  slopes = [np.zeros_like(x) for x in (query, key, value)]
  shared = query.shape[2] // key.shape[2]
  for head in range(query.shape[2]):
    q, k, v, u = query[:, :, head], key[:, :, head // shared], value[:, :, head // shared], upstream
    u = u[:, :, head]
    scores = np.where(seen, q @ k.swapaxes(1, 2) / np.sqrt(SIZE), -1e300)
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * seen
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    out[:, :, head] = weights @ v
    back = u @ v.swapaxes(1, 2)
    back = weights * (back - (weights * back).sum(-1, keepdims=True)) / np.sqrt(SIZE)
    slopes[0][:, :, head] = back @ k
    slopes[1][:, :, head // shared] += back.swapaxes(1, 2) @ q
    slopes[2][:, :, head // shared] += weights.swapaxes(1, 2) @ u
  return [out, *slopes]


def outputs(mix, query, key, value, upstream):
  """[values, gradients of queries, keys and values]."""
  out, back = jax.vjp(mix, query, key, value)
  return [out, *back(upstream.astype(out.dtype))]


@functools.cache
def runner(kernel: str, window: int, shards=None):
  """One compiled program per kernel, window and mesh: values and gradients."""

  def run(arrays, layouts, local):
    mix = lambda query, key, value: attention.attend(
      query, key, value, queries=layouts[0], keys=layouts[1], kernel=kernel, window=window,
      local=local, shards=shards,
    )  # fmt: skip
    return outputs(mix, *arrays)

  return jax.jit(run)


def assert_equal_to_the_twin(run, arrays, layouts, *, local: bool, kernel: str, tolerance: float):
  """Values and gradients; of who sees nobody only that they are finite, but for splash: 0."""
  *inputs, upstream = arrays
  seen = visible(*layouts, local)
  counts = (seen.any(-1) | (kernel == "splash"))[..., None, None]
  upstream = jnp.where(counts, upstream, 0)
  got = run((*inputs, upstream), layouts, local)
  assert np.isfinite(np.asarray(got[0], np.float32)).all()
  got[0] = np.where(counts, np.asarray(got[0], np.float64), 0)
  for g, w in zip(got, twin(*inputs, upstream, seen), strict=True):
    np.testing.assert_allclose(np.asarray(g, np.float64), w, rtol=0, atol=tolerance * abs(w).max())


@pytest.mark.parametrize(
  ("kernel", "window", "dtype", "tolerance"),
  [
    ("xla", WINDOW, "float32", 3e-6),
    ("chunked xla", WINDOW, "float32", 3e-6),
    ("splash", WINDOW, "float32", 3e-6),
    ("splash", 0, "bfloat16", 2e-2),
  ],
)
def test_every_kernel_equals_softmax_over_the_visible_keys(
  kernel, window, dtype, tolerance, monkeypatch
):
  length = 300  # three blocks of the kernel, the last of them not full; chunks neither
  if kernel == "chunked xla":
    monkeypatch.setattr(attention, "CHUNKED_PAIRS", 70 * length)
  layouts = patterns(length)
  arrays = draw(ROWS, length, dtype)
  run = jax.jit(runner(kernel.removeprefix("chunked "), window).__wrapped__)
  for local in (False, True) if window else (False,):
    assert_equal_to_the_twin(run, arrays, layouts, local=local, kernel=kernel, tolerance=tolerance)


def test_blocks_are_passed_over_or_unmasked_only_where_that_is_exact():
  length, block = 256, 32
  queries, keys = patterns(length)
  for local in (False, True):
    form = splash._Form(ROWS, 1, 1, length // block, length // block, block, block, 8, True, True)
    ids = [jnp.stack([x.segments, x.order, x.positions], axis=-1) for x in (queries, keys)]
    reach = jnp.int32(WINDOW if local else 2**30)
    kinds = np.asarray(splash._kinds(*ids, reach, form))
    seen = visible(queries, keys, local)
    seen = seen.reshape(len(seen), length // block, block, length // block, block)
    assert not seen.any((2, 4))[kinds == 0].any()
    assert seen.all((2, 4))[kinds == 2].all()
    assert (kinds == 0).sum() > 50
    assert local or (kinds[0] == 2).all()  # one full segment
    causal = kinds[1] if not local else np.tril(kinds[1])
    assert (causal == 0).sum() >= 28  # above the diagonal


def test_opened_attention_is_seen_in_chunks_too(monkeypatch):
  queries, keys = patterns(40)
  queries = queries._replace(opened=np.random.default_rng(3).random((40, 40)) < 0.3)
  monkeypatch.setattr(attention, "CHUNKED_PAIRS", 7 * 40)
  run = jax.jit(runner("auto", 0).__wrapped__)
  assert_equal_to_the_twin(
    run, draw(ROWS, 40), (queries, keys), local=False, kernel="chunked xla", tolerance=3e-6
  )


def mesh_shards(**axes):
  mesh = sharding.make_mesh(MeshConfig(**({"data": 1} | axes)))
  return sharding.shards(mesh)


@pytest.mark.parametrize(
  ("axes", "kernel"),
  [
    (dict(sequence=8), "xla"),
    (dict(sequence=2, tensor=2, fsdp=2), "xla"),
    (dict(sequence=4, tensor=2), "chunked xla"),
    (dict(sequence=2, fsdp=2, tensor=2), "splash"),
  ],
)
def test_positions_rows_and_heads_split_over_a_mesh_change_nothing(axes, kernel, monkeypatch):
  length = 64
  if kernel == "chunked xla":
    monkeypatch.setattr(attention, "CHUNKED_PAIRS", 6 * length)
  layouts, arrays = patterns(length), draw(ROWS, length)
  run = jax.jit(runner(kernel.removeprefix("chunked "), WINDOW, mesh_shards(**axes)).__wrapped__)
  for local in (False, True):
    assert_equal_to_the_twin(run, arrays, layouts, local=local, kernel=kernel, tolerance=3e-6)


def test_keys_are_gathered_only_where_positions_are_split():
  layouts, arrays = patterns(64), draw(ROWS, 64)

  def gathers(**axes) -> bool:
    run = runner("xla", 0, mesh_shards(**axes))
    return "all_gather" in str(jax.make_jaxpr(run)(arrays, layouts, False))

  assert gathers(sequence=2, fsdp=4)
  assert not gathers(fsdp=4, tensor=2)


MODEL = ModelConfig(
  vocab_size=41, width=16, layers=3, heads=4, kv_heads=2, head_size=8, ffn_width=24,
  max_positions=64, norm="pre", positions="rotary", window=6, global_every=2,
  zero_mask_embedding=True, dropout=0.0,
)  # fmt: skip


def test_a_model_on_a_sequence_mesh_equals_one_device_with_its_output_shift():
  contract = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=40, attention="prefix", output_shift=1)
  _, layout = patterns(32)
  segments, canvas = layout.segments[4:7], layout.order[4:7] > 0
  segments = np.concatenate([segments, segments[:, ::-1]])[:4]
  canvas = np.concatenate([canvas, canvas])[:4]
  tokens = np.random.default_rng(1).integers(3, 41, segments.shape)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), jnp.float32),
    transformer.shapes(MODEL),
  )

  @functools.partial(jax.jit, static_argnames="shards")
  def run(params, shards):
    denoiser = transformer.bind(
      params, segments, config=MODEL, contract=contract, compute=ComputeConfig(), canvas=canvas,
      shards=shards,
    )  # fmt: skip
    return denoiser.trunk(tokens, None)

  want, got = run(params, None), run(params, mesh_shards(sequence=4, fsdp=2))
  real = segments > 0
  np.testing.assert_allclose(got[real], want[real], atol=1e-5 * abs(want).max())


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["auto", "splash"])
def test_rows_of_32k_positions_fit_with_their_gradient(kernel):
  length = 32768
  contract = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=40)
  config = ModelConfig(
    vocab_size=41, width=8, layers=1, heads=1, ffn_width=8, max_positions=length, dropout=0.0
  )
  segments = np.repeat([1, 2, 3, 0], length // 4)[None].astype(np.int32)
  shards = mesh_shards(sequence=8)

  def loss(params, tokens):
    denoiser = transformer.bind(
      params, segments, config=config, contract=contract, shards=shards,
      compute=ComputeConfig(attention=kernel),
    )  # fmt: skip
    return jnp.square(denoiser.trunk(tokens, None)[:, ::37]).mean()

  params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), transformer.shapes(config))
  program = jax.jit(jax.value_and_grad(loss))
  compiled = program.lower(params, segments).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  scores = (length // 8) * length * 4  # bytes on one device, of which the
  assert temporary < scores / 2  # gradient, unfused as here, would hold a dozen


@pytest.mark.slow
def test_some_queries_of_32k_positions_equal_the_twin():
  length, some = 32768, np.asarray([3, 4095, 4096, 13_107, 20_000, 29_490, 32_767])
  packed = jax.tree.map(lambda x: x[5:6], patterns(length))  # in blocks
  query, key, value, upstream = draw(1, length, heads=1, key_heads=1)
  counts = np.isin(np.arange(length), some)[None, :, None, None]
  arrays = (query, key, value, upstream * counts)  # gradients are of these queries alone
  got = runner("auto", WINDOW, mesh_shards(sequence=8))(arrays, packed, False)
  got[:2] = [x[:, some] for x in got[:2]]
  asking = jax.tree.map(lambda x: x[:, some], packed[0])
  want = twin(query[:, some], key, value, upstream[:, some], visible(asking, packed[1], False))
  for g, w in zip(got, want, strict=True):
    np.testing.assert_allclose(np.asarray(g, np.float64), w, rtol=0, atol=1e-5 * abs(w).max())


TPU = types.SimpleNamespace(platform="tpu")
CPU = types.SimpleNamespace(platform="cpu")
HOPPER = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
VOLTA = types.SimpleNamespace(platform="gpu", compute_capability="7.0")
RADEON = types.SimpleNamespace(platform="gpu", compute_capability="gfx90a")


def choose(kernel, device, **changes):
  asked = dict(
    length=512, local_length=512, width=64, dtype=jnp.dtype("bfloat16"), dropped=False, opened=False
  )
  return attention._choose(kernel, device=device, **(asked | changes))


def test_auto_takes_what_suits_the_device_and_the_length():
  float32 = jnp.dtype("float32")
  long = dict(length=32768, local_length=32768)
  for device, changes, want in [
    (CPU, {}, "xla"),
    (CPU, long, "chunked xla"),
    (CPU, dict(length=32768, local_length=64), "xla"),
    (TPU, {}, "splash"),
    (TPU, dict(dtype=float32), "splash"),
    (TPU, dict(length=256, local_length=256), "xla"),
    (TPU, dict(opened=True), "xla"),
    (TPU, dict(opened=True, **long), "chunked xla"),
    (TPU, dict(dropped=True), "written out"),
    (HOPPER, {}, "cudnn"),
    (HOPPER, dict(opened=True), "cudnn"),
    (HOPPER, dict(dtype=float32), "xla"),
    (HOPPER, dict(length=511, local_length=511), "xla"),
    (HOPPER, dict(length=514, local_length=257), "xla"),
    (HOPPER, dict(length=516, local_length=258), "cudnn"),
    (HOPPER, dict(width=320), "xla"),
    (HOPPER, long, "chunked xla"),
    (VOLTA, {}, "xla"),
    (RADEON, {}, "xla"),
  ]:
    assert choose("auto", device, **changes) == want, (device, changes)


@pytest.mark.parametrize(
  ("kernel", "device", "changes", "said"),
  [
    ("cudnn", CPU, {}, "NVIDIA GPU, here is cpu"),
    ("cudnn", RADEON, {}, "NVIDIA GPU"),
    ("cudnn", VOLTA, {}, "8.0, this GPU has 7.0"),
    ("cudnn", HOPPER, dict(dtype=jnp.dtype("float32")), "set compute.dtype = 'bfloat16'"),
    ("cudnn", HOPPER, dict(width=12), "model.head_size"),
    ("cudnn", HOPPER, dict(length=514, local_length=257), "even number of .* not 257 of 514"),
    ("cudnn", HOPPER, dict(length=8194), "at most 8192"),
    ("cudnn", HOPPER, dict(dropped=True), "model.attention_dropout = 0"),
    ("splash", TPU, dict(dropped=True), "model.attention_dropout = 0"),
    ("splash", TPU, dict(opened=True), "adaptation.anneal_steps = 0"),
    ("splash", TPU, dict(width=12), "model.head_size"),
    ("splash", HOPPER, {}, "'cudnn'"),
  ],
)
def test_an_explicit_kernel_that_cannot_is_refused_in_one_line(kernel, device, changes, said):
  with pytest.raises(UserError, match=said) as error:
    choose(kernel, device, **changes)
  assert "\n" not in str(error.value)
  assert str(error.value).startswith(f"config.compute.attention = {kernel!r} ")


def test_what_is_chosen_is_what_runs():
  config = ModelConfig(width=32, layers=1, heads=4, ffn_width=8, vocab_size=9)
  dropping = ModelConfig(
    width=32, layers=1, heads=4, ffn_width=8, vocab_size=9, attention_dropout=0.1
  )
  ask = functools.partial(attention.chosen, length=64)
  assert ask(config, ComputeConfig()) == "xla"
  assert ask(config, ComputeConfig(attention="splash")) == "splash"
  assert ask(dropping, ComputeConfig()) == "xla"
  assert ask(dropping, ComputeConfig(), training=True) == "written out"
  with pytest.raises(UserError, match="attention_dropout = 0"):
    ask(dropping, ComputeConfig(attention="splash"), training=True)
  with pytest.raises(UserError, match="needs an NVIDIA GPU"):
    ask(config, ComputeConfig(attention="cudnn"))
  layouts, arrays = patterns(64), draw(ROWS, 64)
  program = lambda kernel: str(jax.make_jaxpr(runner(kernel, 0))(arrays, layouts, False))
  assert "pallas_call" in program("splash")
  assert "pallas_call" not in program("auto")


def test_lengths_and_heads_that_do_not_divide_are_refused_with_the_nearest_that_do():
  shards = mesh_shards(sequence=2, tensor=4)
  config = ModelConfig(width=32, layers=1, heads=4, ffn_width=8, vocab_size=9)
  with pytest.raises(UserError, match=r"sequence = 2 .* 63 positions.* 62 and 64"):
    attention.chosen(config, ComputeConfig(), length=63, shards=shards)
  layout = Layout(*[np.zeros((1, 8), np.int32)] * 3)
  for heads, said in ((6, "6 heads; set it to one of 1, 2, 3, 6"), (4, "2 key heads")):
    query, key, value, _ = draw(1, 8, heads=heads)
    with pytest.raises(UserError, match=said):
      attention.attend(query, key, value, queries=layout, keys=layout, shards=shards)


def test_cudnn_lowers_for_a_gpu_that_is_not_there(monkeypatch):
  cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
  monkeypatch.setattr(attention, "_device", lambda shards: HOPPER)
  layouts, arrays = patterns(64), draw(ROWS, 64, jnp.bfloat16)
  run = jax.jit(runner("auto", WINDOW, mesh_shards(fsdp=4, tensor=2)).__wrapped__)
  text = run.trace(arrays, layouts, False).lower(lowering_platforms=("cuda",)).as_text()
  assert "cudnn$fmhaScaleBiasSoftmax(" in text
  assert "cudnn$fmhaScaleBiasSoftmaxBackward(" in text
