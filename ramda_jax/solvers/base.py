"""What a solver is: subproblems in, minimisers and certificates out."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ramda_jax.regularizers import Regularizer
from ramda_jax.solvers import secular
from ramda_jax.subproblem import Block, Solution, Subproblem, Whole

# How the groups of several problems are worked on; a backend has one. Called as `algorithm` would be without its `pack`:
# (algorithm, problems, warm starts, tolerance, most iterations) -> roots.
Arrangement = Callable[..., list[secular.Roots]]


Warm: TypeAlias = jax.Array | None
"""What a solver keeps of a block between steps; None: nothing."""


def together(algorithm: Callable, *arguments: Any) -> list[secular.Roots]:
    """The plain arrangement: one loop for all, every array as it is cut."""
    return algorithm(*arguments, pack=secular.Apart)


class Solver(abc.ABC):
    """Solves the subproblems of several blocks. An immutable dataclass of settings; never callable.

    Attributes:
      separable: whether the solution of a part of a block that psi does not connect with the rest
        (`Regularizer.separable_axes`) is the same with or without the rest.
      spans: whether it can solve for groups that lie across devices.

    Example:
      >>> import ramda_jax as rj
      >>> rj.Newton().supports(rj.GroupLasso(0.1)), rj.Newton().supports(rj.NuclearNorm(0.1))
      (True, False)
    """

    separable: ClassVar[bool] = False
    spans: ClassVar[bool] = False

    @abc.abstractmethod
    def supports(self, psi: Regularizer) -> bool:
        """Whether this solver can minimise with this regularizer."""

    def init(self, block: Block, start: jax.Array, dtype: DTypeLike) -> Warm:
        """The warm start before the first step, an array whose shape and dtype never change; None: nothing is kept.

        `start`: the block as one array, which says how a kept one lies on devices.
        """
        return None

    @abc.abstractmethod
    def solve(
        self, problems: Sequence[Subproblem], warm: Sequence[Warm], arrange: Arrangement
    ) -> list[Solution]:
        """Solve all, each started from its warm start."""

    @abc.abstractmethod
    def recall(self, problem: Subproblem, warm: Warm) -> tuple[jax.Array, ...]:
        """x of the solution that left this warm start behind: nothing is solved again.

        It has the derivative of the minimiser with respect to the problem, unless `check_derivative` refuses.
        """

    def check_derivative(self, block: Block) -> None:
        """Raise ValueError naming the block if `recall` does not have the derivative of the minimiser."""
        raise ValueError(
            f"there is no derivative through the step of {block.name!r}: {type(self).__name__} solves "
            f"{type(block.psi).__name__} without one. Group norms under Newton and entrywise regularizers have one."
        )


class WholeSolver(Solver):
    """A solver that treats each block by itself, as one array.

    Blocks alike (of one shape and dtype, with the same kind of regularizer) share a program: they are solved one after the
    other in a loop, so that compilation takes its time per kind, not per block. What comes out does not depend on it.
    """

    @abc.abstractmethod
    def solve_one(self, problem: Whole, warm: Warm) -> tuple[jax.Array, Warm, jax.Array, jax.Array]:
        """(x, warm, iterations, residual) of one problem, started from its warm start."""

    def shares(self, psi: Regularizer) -> bool:
        """Whether a program is worth sharing: not where it is elementwise, since sharing copies its arrays."""
        return True

    def solve(
        self, problems: Sequence[Subproblem], warm: Sequence[Warm], arrange: Arrangement
    ) -> list[Solution]:
        del arrange
        wholes = [problem.whole() for problem in problems]
        alike: dict[Any, list[int]] = {}
        for i, pair in enumerate(zip(wholes, warm, strict=True)):
            leaves, structure = jax.tree.flatten(pair)
            kind = (structure, *map(jax.typeof, leaves))
            alike.setdefault(kind if self.shares(wholes[i].psi) else i, []).append(i)
        found: dict[int, tuple[jax.Array, Any, jax.Array, jax.Array]] = {}
        for places in alike.values():
            if len(places) == 1:
                found[places[0]] = self.solve_one(wholes[places[0]], warm[places[0]])
                continue
            pairs = [(wholes[i], warm[i]) for i in places]
            stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *pairs)
            solved = jax.lax.map(lambda pair: self.solve_one(*pair), stacked)
            for k, i in enumerate(places):
                found[i] = jax.tree.map(lambda x, k=k: x[k], solved)
        solutions = []
        for i, problem in enumerate(problems):
            x, *rest = found[i]
            solutions.append(Solution(problem.split(x), *rest))
        return solutions
