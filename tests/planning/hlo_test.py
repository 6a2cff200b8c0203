"""Reading compiled programs: loops count as often as they run, collectives by their groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from diffjax.planning import buffers, costs, hlo
from diffjax.planning.groups import members

# In the spelling of a TPU's compiler: tiles, VMEM as S(1), trips by the condition, a gather in the
# shade of two fusions, a sum of which each keeps a share.
TPU = """
HloModule step

FileNames
1 "/somewhere/diffjax/models/layers.py"
2 "/elsewhere/flax/scan.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=42 end_line=42 column=1 end_column=9}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%stacked (param_0: bf16[4,16,128], param_1: s32[], param_2: bf16[16,128]) -> bf16[4,16,128] {
  %param_0 = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = s32[] parameter(1)
  %param_2 = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(2)
  %bitcast.0 = bf16[1,16,128]{2,1,0:T(8,128)(2,1)} bitcast(%param_2)
  ROOT %update = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%param_0, %bitcast.0, %param_1)
}

%all-reduce-scatter.1 (input: f32[64,128]) -> f32[8,128] {
  %input = f32[64,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,128]{1,0:T(8,128)} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice.1 = f32[8,128]{1,0:T(8,128)} slice(%all-reduce.1), slice={[0:8],[0:128]}
}

%shade.1 (a: bf16[2,128]) -> bf16[16,128] {
  %a = bf16[2,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[16,128]{1,0:T(8,128)(2,1)} all-gather(%a), channel_id=2, replica_groups=mesh['x'=2,'y'=4] {'x', 'y'}, dimensions={0}
}

%shade.2 (b: bf16[2,128]) -> bf16[16,128] {
  %b = bf16[2,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[16,128]{1,0:T(8,128)(2,1)} all-gather(%b), channel_id=2, replica_groups=mesh['x'=2,'y'=4] {'x', 'y'}, dimensions={0}
}

%condition (state: (s32[], bf16[16,128], bf16[4,16,128])) -> pred[] {
  %state = (s32[], bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[4,16,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %end = s32[] constant(10)
  %counter = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%counter, %end), direction=LT
}

%body (state.1: (s32[], bf16[16,128], bf16[4,16,128])) -> (s32[], bf16[16,128], bf16[4,16,128]) {
  %state.1 = (s32[], bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[4,16,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %counter.1 = s32[] get-tuple-element(%state.1), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%counter.1, %two)
  %x = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state.1), index=1
  %stack = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state.1), index=2
  %fetch = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, bf16[16,128]{1,0:T(8,128)(2,1)}, u32[]) copy-start(%x)
  %near = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%fetch)
  %square = bf16[16,16]{1,0:T(8,128)(2,1)S(1)} convolution(%near, %near), dim_labels=bf_oi->bf
  %product = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} convolution(%square, %near), dim_labels=bf_io->bf, metadata={op_name="jit(step)/while/body/dot" stack_frame_id=1}
  %stored = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} fusion(%stack, %counter.1, %product), kind=kLoop, calls=%stacked, metadata={op_name="jit(step)/while/body/put" stack_frame_id=2}
  ROOT %together = (s32[], bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[4,16,128]{2,1,0:T(8,128)(2,1)}) tuple(%next, %x, %stored)
}

ENTRY %main (p: bf16[16,128], q: f32[64,128], r: bf16[2,128], s: bf16[4,16,128]) -> bf16[4,16,128] {
  %p = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %q = f32[64,128]{1,0:T(8,128)} parameter(1)
  %r = bf16[2,128]{1,0:T(8,128)(2,1)} parameter(2)
  %s = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} parameter(3)
  %first = s32[] constant(4)
  %share = f32[8,128]{1,0:T(8,128)S(1)} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.1
  %early = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} fusion(%r), kind=kCustom, calls=%shade.1
  %late = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} fusion(%r), kind=kCustom, calls=%shade.2
  %begin = (s32[], bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[4,16,128]{2,1,0:T(8,128)(2,1)}) tuple(%first, %p, %s)
  %loop = (s32[], bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[4,16,128]{2,1,0:T(8,128)(2,1)}) while(%begin), condition=%condition, body=%body, metadata={op_name="jit(step)/while"}
  ROOT %result = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=2
}
"""  # noqa: E501
ASSIGNMENT = """
allocation 0: size 8192, parameter 0, shape |bf16[16,128]| at ShapeIndex {}:
 value: <1 p @0> (size=8192,offset=0): bf16[16,128]{1,0:T(8,128)(2,1)}
allocation 1: size 24576, preallocated-temp:
 value: <2 body{} @0> (size=16384,offset=0): (s32[], bf16[4,16,128])
 value: <3 loop{2} (phi) @0> (size=16384,offset=0): bf16[4,16,128]{2,1,0:T(8,128)(2,1)}
 value: <4 x @0> (size=4096,offset=16384): bf16[16,128]{1,0:T(8,128)(2,1)}
 value: <5 near @0> (size=4096,offset=8192): bf16[16,128]{1,0:T(8,128)(2,1)}
allocation 2: size 99999999, color 1, preallocated-temp:
 value: <6 product @1> (size=4096,offset=0): bf16[16,128]{1,0:T(8,128)(2,1)S(1)}
"""
SLICES = [0] * 8


def test_trips_by_the_condition_from_the_start_in_its_paces():
  (loop,) = costs.count(hlo.Module(TPU), slices=SLICES).loops
  assert (loop.name, loop.trips, loop.is_known) == ("jit(step)/while", 3, True)  # 4, 6, 8


def test_products_and_traffic_count_as_often_as_they_run():
  found = costs.count(hlo.Module(TPU), slices=SLICES)
  assert found.flops == 3 * 2 * (2 * 16 * 16 * 128)
  inside = 16 * 128 * 2 + 16 * 128 * 2  # x is fetched, its product put away: not the whole stack
  once = 64 * 128 * 4 + 2 * 8 * 128 * 2  # q; r for both fusions, in whole tiles of 8 rows
  assert found.hbm_bytes == pytest.approx(3 * inside + once, abs=3 * 16)  # and the counter
  put_away = dict(found.traffic)["models/layers.py:42"]
  assert put_away == pytest.approx(3 * 16 * 128 * 2, abs=3 * 4)


def test_collectives_by_kind_and_group():
  found = costs.count(hlo.Module(TPU), slices=[0, 0, 0, 0, 1, 1, 1, 1])
  scatter, gather = found.collectives
  assert (scatter.kind, scatter.group, scatter.slices) == ("reduce-scatter", 4, 1)
  assert scatter.bytes == 64 * 128 * 4 * 3 / 4
  assert (gather.kind, gather.group, gather.slices) == ("all-gather", 8, 2)
  assert gather.count == 1  # it runs in the shade of two fusions
  assert gather.bytes == 8 * 128 * 2 * 7


def test_sources_are_followed_to_a_line_of_ours():
  module = hlo.Module(TPU)
  assert module.source("product") == "models/layers.py:42"
  assert module.source("stored") == "models/layers.py:42"  # flax stacks it; what it stacks is ours
  assert module.source("loop", 2) == "models/layers.py:42"
  assert module.source("p") == ""


def test_the_largest_buffers_do_not_overlap():
  found = buffers.largest(ASSIGNMENT, hlo.Module(TPU), count=5)
  assert [(b.bytes, b.shape) for b in found] == [
    (16384, "bf16[4,16,128]"),
    (4096, "bf16[16,128]"),
  ]
  assert found[0].source == "models/layers.py:42"


def test_bytes_are_of_whole_tiles_outside_other_memories():
  assert hlo.shape_bytes("f32[3,100]") == 1200
  assert hlo.shape_bytes("f32[3,100]{1,0:T(8,128)}") == 8 * 128 * 4
  assert hlo.shape_bytes("bf16[5,100,9]{1,2,0:T(8,128)(2,1)}") == 5 * 128 * 16 * 2
  assert hlo.shape_bytes("(f32[2]{0}, pred[3]{0}, /*index=2*/s32[])") == 8 + 3 + 4
  assert hlo.shape_bytes("(f32[2]{0:S(1)}, f32[2]{0})", hbm_only=True) == 8


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['x'=2,'y'=2] {'x'}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['x'=4] {'x':(1)2}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['x'=4] {'x':(2)2}", [[0, 1], [2, 3]]),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ("", [[0, 1, 2, 3]]),
  ],
)
def test_every_spelling_of_groups(text, groups):
  assert members(text, 4) == groups


def test_products_of_convolutions_count_what_is_not_padding():
  # A batch of 4 products, which a TPU writes as a convolution over a dilated dimension.
  line = (
    "%c = f32[4,8,16]{2,1,0} convolution(%a, %b), window={size=4 stride=3 lhs_dilate=4}, "
    "dim_labels=0bf_0oi->0bf"
  )
  text = (
    "ENTRY %m (a: f32[4,8,32], b: f32[4,16,32]) -> f32[4,8,16] {\n"
    "  %a = f32[4,8,32]{2,1,0} parameter(0)\n  %b = f32[4,16,32]{2,1,0} parameter(1)\n"
    f"  ROOT {line}\n}}\n"
  )
  assert costs.count(hlo.Module(text), slices=[0]).flops == 2 * 4 * 8 * 16 * 32


def test_a_compiled_program_with_nested_loops_and_collectives():
  mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
  width, outer, inner = 16, 3, 5

  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=(P("x"), P(), P()), out_specs=P("x"), check_vma=False
  )
  def run(x, w, turns):
    def layer(x, _):
      x = jax.lax.fori_loop(0, inner, lambda _, x: jnp.tanh(x @ w), x)
      return jax.lax.psum(x, "y"), None

    x, _ = jax.lax.scan(layer, x, None, length=outer)
    unfinished = lambda state: state[0] < turns
    return jax.lax.while_loop(unfinished, lambda s: (s[0] + 1, s[1] @ w), (jnp.int32(0), x))[1]

  lowered = jax.jit(run).lower(jnp.zeros((8, width)), jnp.zeros((width, width)), jnp.int32(7))
  found = costs.count(
    hlo.Module(lowered.compile().as_text()), unknown_trips=lambda name: 2.0, slices=SLICES
  )
  product = 2 * (8 // 2) * width * width
  assert found.flops == (outer * inner + 2) * product
  (reduced,) = found.collectives
  assert (reduced.kind, reduced.group, reduced.count) == ("all-reduce", 4, outer)
  assert reduced.bytes == outer * 2 * (4 * width * 4) * 3 / 4
  assert [loop.trips for loop in found.loops if not loop.is_known] == [2.0]


def test_what_slices_send_each_other_through_their_hosts():
  text = (
    "ENTRY %m (a: f32[1024]) -> f32[1024] {\n  ROOT %a = f32[1024]{0} parameter(0)\n"
    "  %t = token[] after-all()\n"
    "  %s = (f32[1024]{0}, u32[], token[]) send(%a, %t), channel_id=1, is_host_transfer=true, "
    'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}\n}\n'
  )
  (sent,) = costs.count(hlo.Module(text), slices=[0, 0, 1, 1]).collectives
  assert (sent.kind, sent.group, sent.slices) == ("all-reduce", 2, 2)
  assert sent.bytes == 4096


def test_of_branches_the_busiest_counts():
  def step(x, w, flag):
    return jax.lax.cond(flag, lambda: x @ w @ w, lambda: x @ w)

  shapes = jnp.zeros((4, 8)), jnp.zeros((8, 8)), jnp.array(True)
  text = jax.jit(step).lower(*shapes).compile().as_text()
  assert costs.count(hlo.Module(text), slices=[0]).flops == 2 * (2 * 4 * 8 * 8)
