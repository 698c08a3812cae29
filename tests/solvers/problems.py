"""The subproblem of one block, as a solver gets it."""

from functools import partial

import jax

from ramda_jax.solvers import together
from ramda_jax.subproblem import Part, Subproblem, single


def block_of(psi, start):
    return single(0, "x", start.shape, psi)


def pieces(arrays, start, scalars):
    return arrays


@partial(jax.jit, static_argnums=0)
def solve_block(solver, arrays, w, psi, start, warm):
    """`arrays`: (v, x0, D)."""
    problem = Subproblem(block_of(psi, start), (Part(arrays, start),), (), pieces, w, psi)
    return solver.solve([problem], [warm], together)[0]
