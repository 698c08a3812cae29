"""The reader of compiled programs sees every collective, its size, and whether a loop runs it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks import hlo

N = 8


def compiled(local, *shapes):
    """The text of a program of 8 devices, each of which runs `local` on its rows of float32 arrays."""
    mesh = jax.make_mesh((N,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=tuple(P("data") for _ in shapes),
        out_specs=P("data"),
        check_vma=False,
    )
    inputs = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    return jax.jit(mapped).lower(*inputs).compile().as_text()


def repeat(body, x):
    """A loop whose length the compiler cannot know."""
    more = lambda carry: (carry[0] < 5) & (carry[1].sum() < 1e3)
    return jax.lax.while_loop(more, lambda carry: (carry[0] + 1, body(carry[1])), (0, x))[1]


psum = lambda x: jax.lax.psum(x, "data")


def test_every_kind_is_found_with_the_bytes_of_the_whole_array():
    def local(x):  # (2, 24): 192 bytes
        scattered = jax.lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True)
        gathered = jax.lax.all_gather(2 * x, "data", tiled=True)
        turned = jax.lax.ppermute(3 * x, "data", [(i, (i + 1) % N) for i in range(N)])
        exchanged = jax.lax.all_to_all(4 * x, "data", 1, 1, tiled=True)
        return psum(5 * x) + turned + exchanged + gathered[:2], scattered

    found = hlo.collectives(compiled(local, (2 * N, 24)))
    assert sorted(found) == [
        ("all-gather", 192 * N, False),
        ("all-reduce", 192, False),
        ("all-to-all", 192, False),
        ("collective-permute", 192, False),
        ("reduce-scatter", 192, False),
    ]


def test_a_collective_in_the_body_of_a_loop_is_in_the_loop_and_others_are_not():
    text = compiled(lambda x: psum(repeat(lambda x: psum(x.T).T * 1.1, x)[:, :2]), (2 * N, 8))
    assert sorted(hlo.collectives(text)) == [
        ("all-reduce", 2 * 2 * 4, False),
        ("all-reduce", 2 * 8 * 4, True),
    ]


def test_a_loop_without_collectives_has_none():
    text = compiled(lambda x: psum(repeat(lambda x: jnp.sin(x) + 1, x)), (2 * N, 8))
    assert "while(" in text
    assert hlo.collectives(text) == [("all-reduce", 64, False)]


def test_a_collective_in_the_condition_of_a_loop_is_in_the_loop():
    def local(x):
        return jax.lax.while_loop(lambda x: psum(x.sum()) < 100, lambda x: 2 * x, x)

    assert hlo.collectives(compiled(local, (2 * N, 8))) == [("all-reduce", 4, True)]


def test_a_collective_deep_inside_a_loop_is_in_the_loop():
    def either(x):
        return jax.lax.cond(x.sum() > 3, lambda x: psum(x), lambda x: 2 * x, x)

    def nested(x):
        return repeat(lambda x: repeat(either, x) + 1, x)

    found = hlo.collectives(compiled(lambda x: either(nested(x)), (2 * N, 8)))
    assert sorted(found) == [("all-reduce", 64, False), ("all-reduce", 64, True)]


def test_summary_adds_up_by_kind():
    one, other = hlo.Collective("all-reduce", 8, False), hlo.Collective("all-reduce", 4, True)
    assert hlo.summary([one, other, hlo.Collective("all-gather", 2, False)]) == {
        "all-reduce": {"count": 2, "bytes": 12, "in_loops": 1},
        "all-gather": {"count": 1, "bytes": 2, "in_loops": 0},
    }


# Forms that XLA's other backends write, in the least text that shows them.
ASYNCHRONOUS = """HloModule m, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%wrapped (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %to-all = bf16[4,8]{1,0:T(8,128)(2,1)} all-to-all(%p), dimensions={0}
}

%all-reduce-scatter (input: f32[16,4]) -> f32[2,4] {
  %input = f32[16,4]{1,0} parameter(0)
  %whole = f32[16,4]{1,0} all-reduce(%input), to_apply=%sum
  %zero = s32[] constant(0)
  ROOT %part = f32[2,4]{1,0} dynamic-slice(%whole, %zero, %zero), dynamic_slice_sizes={2,4}
}

ENTRY %main (x: f32[2,4], y: bf16[4,8], z: f32[16,4]) -> (f32[16,4], bf16[4,8], f32[2,4]) {
  %x = f32[2,4]{1,0:T(8,128)} parameter(0)
  %y = bf16[4,8]{1,0} parameter(1)
  %z = f32[16,4]{1,0} parameter(2)
  %begun = (f32[2,4]{1,0:T(8,128)}, f32[16,4]{1,0:T(8,128)S(1)}) all-gather-start(%x), dimensions={0}
  %turning = (f32[2,4], f32[2,4], u32[], /*index=3*/u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}
  %turned = f32[2,4] collective-permute-done(%turning)
  %running = ((bf16[4,8]), bf16[4,8], s32[]) async-start(%y), calls=%wrapped
  %ran = bf16[4,8] async-done(%running), calls=%wrapped
  %scattered = f32[2,4]{1,0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter
  %ended = f32[16,4]{1,0:T(8,128)} all-gather-done(%begun)
  ROOT %out = (f32[16,4], bf16[4,8], f32[2,4]) tuple(%ended, %ran, %scattered)
}
"""


def test_asynchronous_pairs_count_once_and_the_fusion_of_a_reduce_scatter_is_one():
    assert hlo.collectives(ASYNCHRONOUS) == [
        ("all-gather", 16 * 4 * 4, False),
        ("collective-permute", 2 * 4 * 4, False),
        ("all-to-all", 4 * 8 * 2, False),
        ("reduce-scatter", 16 * 4 * 4, False),
    ]


def test_a_text_that_cannot_be_followed_is_refused():
    hidden = ASYNCHRONOUS.replace("kind=kCustom, calls=", "kind=kCustom, unknown_attribute=")
    with pytest.raises(ValueError, match="'all-reduce-scatter' holds a collective"):
        hlo.collectives(hidden)
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.collectives("not a program")
