"""One function, several programs: which one is compiled depends on what it is compiled for."""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
from jax.extend import core as jax_core
from jax.interpreters import batching, mlir


def select(
    whole: Callable[..., Any], local: Mapping[str, Callable[..., Any]], *args: chex.ArrayTree
) -> Any:
    """whole(*args), or the program that `local` has for the platform where every device holds whole arrays.

    That is so where the computation is compiled for a single device, and inside `shard_map` and `pmap`. Only there may
    a program slice arrays or hand them to a kernel: the partitioner would gather arrays that are cut across devices.
    Neither is known while the function is traced, so all programs are traced and one of them is lowered.

    Args:
      whole: the program that the partitioner can cut.
      local: by platform ("cpu", "tpu", "cuda", "rocm").
      args: pytrees of arrays, the same for all; all programs return the same structure, shapes and dtypes.
    """
    flat, treedef = jax.tree.flatten(args)
    if any(on_explicit_mesh(x) for x in flat):  # known already: slicing cut arrays is an error
        return whole(*args)
    names = ("", *local)
    traced = [
        jax.make_jaxpr(lambda *xs, f=f: f(*jax.tree.unflatten(treedef, xs)), return_shape=True)(
            *flat
        )
        for f in (whole, *local.values())
    ]
    out = _program_p.bind(*flat, names=names, jaxprs=tuple(jaxpr for jaxpr, _ in traced))
    return jax.tree.unflatten(jax.tree.structure(traced[0][1]), out)


def is_explicit(mesh: Any) -> bool:
    """Whether the mesh has axes over which arrays say in their types how they are cut."""
    return any(kind == jax.sharding.AxisType.Explicit for kind in mesh.axis_types)


def on_explicit_mesh(x: chex.Array) -> bool:
    """Whether x is of such a type."""
    return is_explicit(jax.typeof(x).sharding.mesh)


_program_p = jax_core.Primitive("ramda_program")
_program_p.multiple_results = True


@_program_p.def_impl
def _run(*args: chex.Array, names: Any, jaxprs: Any) -> list[chex.Array]:
    """Op by op, under `jax.disable_jit` only: steps are jitted."""
    return jax_core.jaxpr_as_fun(jaxprs[0])(*args)


@_program_p.def_abstract_eval
def _avals(*_: Any, names: Any, jaxprs: Any) -> Any:
    return jaxprs[0].out_avals


def _holds_whole_arrays(context: Any) -> bool:
    manual = getattr(context, "manual_axes", None)
    if manual is not None:
        return set(manual) == set(context.mesh.axis_names)
    return getattr(context, "num_devices", None) == 1


def _lower(ctx: Any, *args: Any, names: Any, jaxprs: Any) -> Any:
    platforms = ctx.platforms or ctx.module_context.platforms
    local = len(platforms) == 1 and _holds_whole_arrays(ctx.module_context.axis_context)
    chosen = names.index(platforms[0]) if local and platforms[0] in names else 0
    program = jax_core.jaxpr_as_fun(jaxprs[chosen])
    return mlir.lower_fun(program, multiple_results=True)(ctx, *args)


def _batch(args: Any, dims: Any, *, names: Any, jaxprs: Any) -> Any:
    batched = [jax.vmap(jax_core.jaxpr_as_fun(jaxpr), in_axes=dims) for jaxpr in jaxprs]
    out = select(batched[0], dict(zip(names[1:], batched[1:], strict=True)), *args)
    return out, [0] * len(out)


mlir.register_lowering(_program_p, _lower)
batching.primitive_batchers[_program_p] = _batch
