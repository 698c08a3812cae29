"""JAX still tells what `ramda_jax.backends.program` reads while it lowers: if not, the first failure here says what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.interpreters import mlir
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ramda_jax.backends import program
from tests.methods import needs_eight

# One operation that nothing else needs says which program was lowered.
MARKERS = {"whole": "stablehlo.cosine", "cpu": "stablehlo.sine", "cuda": "stablehlo.tanh"}


def choose(x):
    return program.select(jnp.cos, {"cpu": jnp.sin, "cuda": jnp.tanh}, x)


def chosen(lowered):
    """The names of the programs in a lowered text."""
    text = lowered.as_text()
    return [name for name, op in MARKERS.items() for _ in range(text.count(f"{op} "))]


def mesh(shape=(8,), names=("data",), kind=AxisType.Auto):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def on_mesh(spec):
    return jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh(), spec))


def mapped(f, where, names):
    """f on parts along these axes of the mesh."""
    specs = {"in_specs": P(*names), "out_specs": P(*names)}
    return jax.jit(jax.shard_map(f, mesh=where, axis_names=set(names), **specs))


X = np.ones((8, 4), np.float32)


def test_for_one_device_the_program_of_its_platform_is_lowered():
    traced = jax.jit(choose).trace(X)
    assert chosen(traced.lower()) == ["cpu"]
    assert chosen(traced.lower(lowering_platforms=("cuda",))) == ["cuda"]
    np.testing.assert_allclose(jax.jit(choose)(X), np.sin(X), rtol=1e-6)


def test_for_a_platform_that_is_not_in_the_table_the_partitionable_program_is_lowered():
    assert chosen(jax.jit(choose).trace(X).lower(lowering_platforms=("tpu",))) == ["whole"]


def test_for_several_platforms_at_once_the_partitionable_program_is_lowered():
    lowered = jax.jit(choose).trace(X).lower(lowering_platforms=("cpu", "cuda"))
    assert chosen(lowered) == ["whole"]


@needs_eight
@pytest.mark.parametrize("spec", [P("data"), P(None, None)], ids=["cut", "replicated"])
def test_for_eight_devices_the_partitionable_program_is_lowered(spec):
    x = on_mesh(spec)
    assert chosen(jax.jit(choose).lower(x)) == ["whole"]
    np.testing.assert_allclose(jax.jit(choose)(x), np.cos(X), rtol=1e-6)


@needs_eight
def test_inside_shard_map_and_pmap_the_local_program_is_lowered():
    inside = mapped(choose, mesh(), ("data",))
    assert chosen(inside.lower(X)) == ["cpu"]
    np.testing.assert_allclose(inside(X), np.sin(X), rtol=1e-6)
    inside = jax.pmap(choose)
    assert chosen(inside.lower(X)) == ["cpu"]
    np.testing.assert_allclose(inside(X), np.sin(X), rtol=1e-6)


@needs_eight
def test_inside_a_shard_map_that_leaves_axes_to_the_partitioner_so_does_the_program():
    two = mesh((4, 2), ("data", "model"))
    assert chosen(mapped(choose, two, ("data",)).lower(X)) == ["whole"]
    assert chosen(mapped(choose, two, ("data", "model")).lower(X)) == ["cpu"]


@needs_eight
def test_on_an_explicit_mesh_the_partitionable_program_is_traced_alone():
    explicit = mesh(kind=AxisType.Explicit)
    x = jax.device_put(X, NamedSharding(explicit, P("data")))
    with jax.set_mesh(explicit):
        assert chosen(jax.jit(choose).lower(x)) == ["whole"]


@needs_eight
def test_under_vmap_it_still_chooses():
    batched = jax.vmap(choose)
    assert chosen(jax.jit(batched).lower(X)) == ["cpu"]
    assert chosen(jax.jit(batched).lower(on_mesh(P("data")))) == ["whole"]
    assert chosen(mapped(batched, mesh(), ("data",)).lower(X)) == ["cpu"]
    np.testing.assert_allclose(jax.jit(batched)(X), np.sin(X), rtol=1e-6)


def test_in_a_loop_and_a_branch_it_still_chooses():
    def inside(x):
        x = jax.lax.fori_loop(0, 3, lambda _, y: choose(y), x)
        return jax.lax.cond(x[0, 0] > 0, choose, lambda y: y, x)

    assert chosen(jax.jit(inside).lower(X)) == ["cpu", "cpu"]


# What is read, by itself.

probe_p = core.Primitive("ramda_test_probe")
probe_p.def_abstract_eval(lambda x: x)
seen = []


@functools.partial(mlir.register_lowering, probe_p)
def _lower_probe(ctx, x):
    seen.append(ctx)
    return [x]


def context_of(lower):
    """The context of lowering in which the probe was found."""
    seen.clear()
    lower()
    (ctx,) = seen
    return ctx


def test_the_context_of_lowering_has_the_platforms():
    traced = jax.jit(probe_p.bind).trace(X)
    one = context_of(lambda: traced.lower())
    assert tuple(one.module_context.platforms) == ("cpu",)
    assert not one.platforms  # None: those of the module
    both = context_of(lambda: traced.lower(lowering_platforms=("cpu", "tpu")))
    assert set(both.platforms or both.module_context.platforms) == {"cpu", "tpu"}


@needs_eight
def test_the_context_of_lowering_has_the_number_of_devices():
    number = lambda x: (
        context_of(lambda: jax.jit(probe_p.bind).lower(x)).module_context.axis_context.num_devices
    )
    assert number(X) == 1
    assert number(on_mesh(P("data"))) == 8


@needs_eight
def test_the_context_of_lowering_inside_shard_map_and_pmap_has_the_manual_axes():
    two = mesh((4, 2), ("data", "model"))
    for names in (("data",), ("data", "model")):
        context = context_of(lambda names=names: mapped(probe_p.bind, two, names).lower(X))
        axes = context.module_context.axis_context
        assert set(axes.manual_axes) == set(names)
        assert set(axes.mesh.axis_names) == {"data", "model"}
    axes = context_of(lambda: jax.pmap(probe_p.bind).lower(X)).module_context.axis_context
    assert set(axes.manual_axes) == set(axes.mesh.axis_names)
