"""What a solver is: subproblems in, minimisers and certificates out."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import chex

from ramda_jax.regularizers import Regularizer
from ramda_jax.solvers import secular
from ramda_jax.subproblem import Block, Solution, Subproblem, Whole

# How the groups of several problems are worked on; a backend has one. Called as `algorithm` would be without its `pack`:
# (algorithm, problems, warm starts, tolerance, most iterations) -> roots.
Arrangement = Callable[..., list[secular.Roots]]


def together(algorithm: Callable, *arguments: Any) -> list[secular.Roots]:
    """The plain arrangement: one loop for all, every array as it is cut."""
    return algorithm(*arguments, pack=secular.Apart)


class Solver(abc.ABC):
    """Solves the subproblems of several blocks. An immutable dataclass of settings; never callable.

    Attributes:
      separable: whether the solution of a part of a block that psi does not connect with the rest
        (`Regularizer.separable_axes`) is the same with or without the rest.
      spans: whether it can solve for groups that lie across devices.
    """

    separable: ClassVar[bool] = False
    spans: ClassVar[bool] = False

    @abc.abstractmethod
    def supports(self, psi: Regularizer) -> bool:
        """Whether this solver can minimise with this regularizer."""

    def init(self, block: Block, start: chex.Array, dtype: chex.ArrayDType) -> Any:
        """The warm start before the first step, an array whose shape and dtype never change; None: nothing is kept.

        `start`: the block as one array, which says how a kept one lies on devices.
        """
        return None

    @abc.abstractmethod
    def solve(
        self, problems: Sequence[Subproblem], warm: Sequence[Any], arrange: Arrangement
    ) -> list[Solution]:
        """Solve all, each started from its warm start."""

    @abc.abstractmethod
    def recall(self, problem: Subproblem, warm: Any) -> tuple[chex.Array, ...]:
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
    """A solver that treats each block by itself, as one array."""

    @abc.abstractmethod
    def solve_one(
        self, problem: Whole, warm: Any
    ) -> tuple[chex.Array, Any, chex.Array, chex.Array]:
        """(x, warm, iterations, residual) of one problem, started from its warm start."""

    def solve(
        self, problems: Sequence[Subproblem], warm: Sequence[Any], arrange: Arrangement
    ) -> list[Solution]:
        del arrange
        solutions = []
        for problem, old in zip(problems, warm, strict=True):
            x, *rest = self.solve_one(problem.whole(), old)
            solutions.append(Solution(problem.split(x), *rest))
        return solutions
