"""What a solver is: subproblems in, minimisers and certificates out."""

import abc
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import chex
import jax.numpy as jnp

from ramda_jax import first_order
from ramda_jax.regularizers.base import Regularizer

# (accumulators of a leaf, its parameter, the step's scalars) -> (v, x0, D). Elementwise; D may be 0-d.
Pieces = Callable[
    [tuple[chex.Array, ...], chex.Array, tuple[chex.Array, ...]], tuple[chex.Array, ...]
]


class Span(NamedTuple):
    """Of an array whose groups lie across devices, each of which has a part of every group.

    Attributes:
      shape: of an array of whole groups: as many as the device has parts of.
      names: the mesh axes over which the groups are spread.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]


class LeafProblem(NamedTuple):
    """minimise over X   <v, X> + 1/2 <X - x0, D (X - x0)> + weight psi(X)   for one parameter array, or a block of it.

    Attributes:
      arrays: the accumulators which v, x0, D are computed from, each of the shape of `start`.
      scalars: 0-d arrays that go with them, in the dtype of the arrays.
      pieces: (arrays, start, scalars) -> (v, x0, D).
      weight: w, 0-d.
      psi: the regularizer, its strengths resolved to 0-d arrays of the same dtype.
      start: W^{t-1}.
      resident: whether the arrays are few enough to stay in a cache: then v, x0 and D are made once and kept; otherwise
        recomputed wherever they are needed, because keeping them would cost parameter-sized temporaries.
      span: None, or what this device's part of an array is a part of (`Span`).
    """

    arrays: tuple[chex.Array, ...]
    scalars: tuple[chex.Array, ...]
    pieces: Pieces
    weight: chex.Array
    psi: Regularizer
    start: chex.Array
    resident: bool = False
    span: Span | None = None

    def smooth(self, tie: Callable = lambda x: x) -> first_order.Quadratic:
        """The smooth part; `tie` is applied to every array before use (see `secular.GroupProblem`)."""
        arrays = tuple(tie(x) for x in self.arrays)
        return first_order.Quadratic(*self.pieces(arrays, tie(self.start), self.scalars))


class LeafSolution(NamedTuple):
    """The minimiser of one leaf and its certificate.

    Attributes:
      x: the minimiser, the shape of the parameter.
      warm: what the next solve may start from; as `Solver.init` made it.
      iterations: int32, 0-d.
      residual: a bound on the least ||s||, s in dQ(x): condition (7) of the paper; 0-d.
    """

    x: chex.Array
    warm: chex.Array
    iterations: chex.Array
    residual: chex.Array


class Solver(abc.ABC):
    """Solves the subproblems of several arrays. An immutable dataclass of settings; never callable.

    Attributes:
      separable: whether the solution of a part of an array that psi does not connect with the rest
        (`Regularizer.separable_axes`) is the same with or without the rest.
      spans: whether it can solve for groups that lie across devices (`LeafProblem.span`).
    """

    separable: ClassVar[bool] = False
    spans: ClassVar[bool] = False

    @abc.abstractmethod
    def supports(self, psi: Regularizer) -> bool:
        """Whether this solver can minimise with this regularizer."""

    def init(self, psi: Regularizer, param: chex.Array, dtype: chex.ArrayDType) -> chex.Array:
        """The warm start before the first step; its shape and dtype never change. Empty by default."""
        return jnp.zeros((0,), dtype)

    @abc.abstractmethod
    def solve(
        self, problems: Sequence[LeafProblem], warm: Sequence[chex.Array]
    ) -> list[LeafSolution]:
        """Solve all, each started from its warm start."""


class PerArraySolver(Solver):
    """A solver that treats each array by itself."""

    @abc.abstractmethod
    def solve_one(self, problem: LeafProblem, warm: chex.Array) -> LeafSolution:
        """Solve one, started from its warm start."""

    def solve(
        self, problems: Sequence[LeafProblem], warm: Sequence[chex.Array]
    ) -> list[LeafSolution]:
        return [self.solve_one(p, w) for p, w in zip(problems, warm, strict=True)]
