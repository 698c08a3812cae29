"""What a model is: how gradients become a subproblem.

Every method minimises, per parameter array,   <v, X> + 1/2 <X - x0, D (X - x0)> + w psi(X)   and differs from the others in
how v, x0, D and w are made. A model is an immutable dataclass of hyperparameters (numbers, 0-d arrays or schedules);
its state is a NamedTuple of params-shaped trees and scalars. A dual-averaging state can state its subproblem by
itself (method `subproblem()`), which is how `structured_params` finds What_t again.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ramda_jax.solvers.base import Pieces


class Subproblem(NamedTuple):
    """The subproblem of all leaves at once.

    Attributes:
      trees: params-shaped trees from which `pieces` makes v, x0 and D.
      scalars: 0-d arrays which `pieces` also needs.
      weight: w, 0-d.
      pieces: (arrays of one leaf, scalars) -> (v, x0, D), elementwise; D may be 0-d.
    """

    trees: tuple[Any, ...]
    scalars: tuple[chex.Array, ...]
    weight: chex.Array
    pieces: Pieces


class Model(abc.ABC):
    """From gradients to subproblems.

    Attributes:
      scalar_metric: whether D is a multiple of the identity, so that one prox solves the subproblem.
    """

    scalar_metric: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, params: chex.ArrayTree) -> Any:
        """The state before the first step. `params` have the accumulators' dtype; nothing of them is aliased."""

    @abc.abstractmethod
    def accumulate(
        self, state: Any, grads: chex.ArrayTree, params: chex.ArrayTree, count: chex.Array
    ) -> Any:
        """The state after one more gradient; grads and params in the accumulators' dtype, `count` 0-based."""

    @abc.abstractmethod
    def subproblem(self, state: Any, params: chex.ArrayTree, count: chex.Array) -> Subproblem:
        """The subproblem of this step, from the state that `accumulate` returned and W^{t-1}."""

    def averaging(self, count: chex.Array) -> chex.Array | None:
        """c_t in W^t = (1 - c_t) W^{t-1} + c_t What_t, or None where W^t = What_t."""
        return None


def zeros_like(tree: chex.ArrayTree) -> chex.ArrayTree:
    """Zeros of the same shapes, dtypes and shardings; abstract leaves stay abstract."""
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.ShapeDtypeStruct) else jnp.zeros_like(x), tree
    )


def decay(tree: chex.ArrayTree, new: chex.ArrayTree, rate: chex.Array) -> chex.ArrayTree:
    """rate tree + (1 - rate) new: one step of an exponential average."""
    return jax.tree.map(
        lambda x, y: rate.astype(x.dtype) * x + (1 - rate).astype(x.dtype) * y, tree, new
    )
