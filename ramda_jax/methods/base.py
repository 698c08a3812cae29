"""What a method is: how gradients become a subproblem.

Every method minimises, per block,   <v, X> + 1/2 <X - x0, D (X - x0)> + w psi(X)   and differs from the others in
how v, x0, D and w are made. A method is an immutable dataclass of hyperparameters (numbers, 0-d arrays or schedules);
its state is a NamedTuple of scalars and of accumulators, which are params-shaped trees; its property
`accumulators` names them in the order in which `accumulate` and `pieces` take the arrays of a leaf.

Scalars are advanced once per step (`begin`). All that touches arrays is elementwise and stateless (`Accumulate`, `Pieces`),
so that a step may run over whole arrays or over tiles of them, reading and writing each entry once.
A dual-averaging state can state its subproblem by itself (method `terms()`), which is how `structured_params` finds
What_t again.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ramda_jax.subproblem import Pieces
from ramda_jax.trees import ArrayTree

# (accumulators of one leaf, its gradient, 0-d arrays) -> the accumulators after the gradient. Elementwise, and a
# module-level function: two calls with the same settings give the same one, which is what compiled steps are cached by.
# An accumulator which the step does not change must be returned as it came.
Accumulate = Callable[
    [tuple[jax.Array, ...], jax.Array, tuple[jax.Array, ...]], tuple[jax.Array, ...]
]


class Terms(NamedTuple):
    """What the subproblems of all blocks share.

    Attributes:
      weight: w, 0-d.
      scalars: 0-d arrays which `pieces` needs besides the arrays.
      pieces: (accumulators of one leaf, its parameter, scalars) -> (v, x0, D); module-level, as `Accumulate`.
    """

    weight: jax.Array
    scalars: tuple[jax.Array, ...]
    pieces: Pieces


class Method(abc.ABC):
    """From gradients to subproblems.

    Attributes:
      state: the class of its states.
      scalar_metric: whether D is a multiple of the identity, so that one prox solves the subproblem.
    """

    state: ClassVar[type]
    scalar_metric: ClassVar[bool] = False

    @staticmethod
    @abc.abstractmethod
    def accumulate(
        arrays: tuple[jax.Array, ...], grad: jax.Array, scalars: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        """See `Accumulate`."""

    @abc.abstractmethod
    def init(self, params: ArrayTree) -> Any:
        """The state before the first step. `params` have the accumulators' dtype; nothing of them is aliased."""

    @abc.abstractmethod
    def begin(
        self, state: Any, params: ArrayTree, count: jax.Array
    ) -> tuple[Any, tuple[jax.Array, ...]]:
        """(the state with its scalars advanced by a step, the scalars for `accumulate`).

        Args:
          state: after the last step.
          params: W^{t-1}, in any dtype.
          count: 0-based.
        """

    @abc.abstractmethod
    def terms(self, state: Any, count: jax.Array) -> Terms:
        """The terms of this step, from the state that `begin` returned."""

    def stages(self) -> tuple[int, ...]:
        """The 0-based steps at which stages start; none: there is one."""
        return ()

    def averaging(self, count: jax.Array) -> jax.Array | None:
        """c_t in W^t = (1 - c_t) W^{t-1} + c_t What_t, or None where W^t = What_t."""
        return None


def zeros_like(tree: ArrayTree) -> ArrayTree:
    """Zeros of the same shapes, dtypes and shardings; abstract leaves stay abstract."""
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.ShapeDtypeStruct) else jnp.zeros_like(x), tree
    )


def accumulators_of(state: Any) -> list[ArrayTree]:
    """The accumulators of a method's state, in their order."""
    return [getattr(state, name) for name in state.accumulators]
