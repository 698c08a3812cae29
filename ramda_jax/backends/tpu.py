"""On a TPU that holds whole arrays: accumulate, solve and move in one kernel per parameter, where one can take it.

The kernel goes over tiles of whole groups: every array is read once and written once. Parameters that it cannot take
(groups too large, blocks of several arrays, solvers of whole arrays) go together, as in `xla`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from ramda_jax import solvers
from ramda_jax.backends import kernel
from ramda_jax.step import Inputs, Job, Leaf, Outputs, divide, step, unite


def run(job: Job, inputs: Inputs) -> Outputs:
    """See above."""
    return with_kernel(kernel.TILE_SIZE, False)(job, inputs)


@functools.cache
def with_kernel(tile_size: int, interpret: bool) -> Callable[[Job, Inputs], Outputs]:
    """The backend with tiles of another size, or interpreted on any platform."""

    def backend(job: Job, inputs: Inputs) -> Outputs:
        def tile(blocks: list[int], leaves: list[int]) -> tuple[int, int] | None:
            if len(blocks) != 1 or not job.blocks[blocks[0]].is_single:
                return None
            return _tile(job, blocks[0], inputs, leaves[0], tile_size)

        # Each parameter with a kernel is a kind of its own.
        kind = lambda blocks, leaves: (
            (leaves[0], length) if (length := tile(blocks, leaves)) else ()
        )
        done = []
        for name, some in divide(job, len(inputs.leaves), kind).items():
            own = some.of(inputs)
            if name:
                done.append((some, _in_kernel(some.job, *name[1], interpret, own)))
            else:
                done.append((some, step(some.job, own, solvers.together)))
        return unite(done)

    return backend


def _tile(
    job: Job, block: int, inputs: Inputs, leaf: int, tile_size: int
) -> tuple[int, int] | None:
    """(along which axis, how long) tiles are; None: the kernel cannot take the parameter."""
    read, psi = inputs.leaves[leaf], inputs.psis[block]
    if not job.solvers[block].separable:
        return None
    shape, dtype = read.param.shape, read.arrays[0].dtype
    axis = max(psi.separable_axes(shape), key=shape.__getitem__, default=None)
    narrowest = min(read.param.dtype.itemsize, read.grad.dtype.itemsize)
    length = kernel.tile_length(shape, axis, dtype, narrowest, tile_size)
    return None if axis is None or length is None else (axis, length)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _in_kernel(job: Job, axis: int, length: int, interpret: bool, inputs: Inputs) -> Outputs:
    """The step of one parameter, in tiles of `length` along the axis that separates its groups."""
    ((arrays, grad, param),), (psi,), (warm,), scalars = inputs
    fixed = _unchanged(job, inputs)

    def of_tile(updated: Any, read: Any, numbers: Any) -> tuple[Any, ...]:
        changed, warm = updated
        kept, grad, param = read
        psi, scalars = numbers
        leaf = Leaf(_with(changed, kept, fixed), grad, param)
        done = step(job, Inputs((leaf,), (psi,), (warm,), scalars), solvers.together, resident=True)
        new = (_without(done.arrays[0], fixed), done.warm[0])
        return new, done.updates[0], done.iterations[0], done.residual[0]

    kept = tuple(x if k in fixed else () for k, x in enumerate(arrays))
    (new, warm), update, iterations, residual = kernel.call(
        of_tile,
        (_without(arrays, fixed), warm),
        (kept, grad, param),
        (psi, scalars),
        jax.ShapeDtypeStruct(param.shape, param.dtype),
        axis,
        length,
        interpret,
    )
    return Outputs((_with(new, arrays, fixed),), (update,), (warm,), (iterations,), (residual,))


def _unchanged(job: Job, inputs: Inputs) -> list[int]:
    """Which accumulators the method returns as they came."""
    same: list[int] = []

    def look(arrays: tuple, grad: jax.Array) -> tuple:
        scalars = jax.tree.map(lambda s: s.astype(grad.dtype), inputs.scalars.accumulate)
        new = job.accumulate(arrays, grad, scalars)
        same.extend(k for k, x in enumerate(new) if x is arrays[k])
        return new

    arrays = inputs.leaves[0].arrays
    jax.eval_shape(look, arrays, arrays[0])
    return same


def _without(items: tuple, left_out: list[int]) -> tuple:
    return tuple(x for k, x in enumerate(items) if k not in left_out)


def _with(items: tuple, all_items: tuple, kept: list[int]) -> tuple:
    """`items`, with those of `all_items` at the indices `kept` back in their places."""
    rest = iter(items)
    return tuple(x if k in kept else next(rest) for k, x in enumerate(all_items))
