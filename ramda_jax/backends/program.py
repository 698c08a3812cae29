"""One function, several programs: which one is compiled depends on what it is compiled for.

The one file that reads what is not public of JAX: the context in which a primitive is lowered tells for which platform, and
whether every device holds whole arrays. Tests say so when a version of JAX no longer tells
(tests/backends/test_program.py).
The primitive has no rule of differentiation: what calls it has an implicit derivative (`backends.run`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core as jax_core
from jax.interpreters import batching, mlir

from ramda_jax import _numerics
from ramda_jax.trees import ArrayTree


def select(
    whole: Callable[..., Any], local: Mapping[str, Callable[..., Any]], *args: ArrayTree
) -> Any:
    """whole(*args), or the program that `local` has for the platform where every device holds whole arrays.

    That is so where the computation is compiled for a single device, and inside `shard_map` and `pmap`. Only there may
    a program slice arrays or hand them to a kernel: the partitioner would gather arrays that are cut across devices.
    Neither is known while the function is traced; when it is lowered, one of the programs is.

    Args:
      whole: the program that the partitioner can cut.
      local: by platform ("cpu", "tpu", "cuda", "rocm").
      args: pytrees of arrays, the same for all; all programs return the same structure, shapes and dtypes.
    """
    flat, treedef = jax.tree.flatten(args)
    # Known already: slicing cut arrays is an error.
    if any(_numerics.on_explicit_mesh(x) for x in flat) or not local:
        return whole(*args)
    jaxpr, shape = jax.make_jaxpr(whole, return_shape=True)(*args)
    flatten = lambda f: _Flat(f, treedef)
    programs = tuple((name, flatten(f)) for name, f in local.items())
    avals = tuple(jaxpr.out_avals)
    out = _program_p.bind(*flat, whole=flatten(whole), local=programs, avals=avals)
    return jax.tree.unflatten(jax.tree.structure(shape), out)


@dataclasses.dataclass(frozen=True)
class _Flat:
    """A function of pytrees as one of arrays."""

    function: Callable[..., Any]
    treedef: Any

    def __call__(self, *flat: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(self.function(*jax.tree.unflatten(self.treedef, flat)))


_program_p = jax_core.Primitive("ramda_program")
_program_p.multiple_results = True


@_program_p.def_impl
def _run(*args: jax.Array, whole: Any, local: Any, avals: Any) -> list[jax.Array]:
    """Op by op, under `jax.disable_jit` only: steps are jitted."""
    del local, avals
    return whole(*args)


@_program_p.def_abstract_eval
def _avals(*_: Any, whole: Any, local: Any, avals: Any) -> Any:
    del whole, local
    return list(avals)


def _holds_whole_arrays(context: Any) -> bool:
    manual = getattr(context, "manual_axes", None)
    if manual is not None:
        return set(manual) == set(context.mesh.axis_names)
    return getattr(context, "num_devices", None) == 1


def _lower(ctx: Any, *args: Any, whole: Any, local: Any, avals: Any) -> Any:
    del avals
    platforms = ctx.platforms or ctx.module_context.platforms
    here = len(platforms) == 1 and _holds_whole_arrays(ctx.module_context.axis_context)
    program = dict(local).get(platforms[0], whole) if here else whole
    return mlir.lower_fun(program, multiple_results=True)(ctx, *args)


def _batch(args: Any, dims: Any, *, whole: Any, local: Any, avals: Any) -> Any:
    del avals
    batched = lambda f: jax.vmap(f, in_axes=dims)
    out = select(batched(whole), {name: batched(f) for name, f in local}, *args)
    return out, [0] * len(out)


mlir.register_lowering(_program_p, _lower)
batching.primitive_batchers[_program_p] = _batch
