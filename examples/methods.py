"""The optimizers to choose from: a frozen dataclass of hyperparameters each, and what it builds.

A method is given the regularizer and the run's stages in steps; it decides what a stage means for
it: all of them lower the learning rate, the dual-averaging ones also restart and average less and
less in the last stage. `Sgd` and `AdamW` are the dense references.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax

import ramda_jax as rj

Params = TypeVar("Params")

Regularization = rj.Regularizer | rj.Assignment
"""What a recipe regularizes by."""

Schedule = Literal["stages", "cosine", "linear"]
"""How the learning rate falls: at each stage, or from the first step to 0 after the last."""


@dataclass(frozen=True)
class Stages:
    """Where the stages of a run after its first begin.

    Attributes:
        steps: the first step (from 0) of each.
        factor: what each multiplies the learning rate by.
        total: steps of the whole run.
    """

    steps: tuple[int, ...]
    factor: float
    total: int

    def learning_rate(self, initial: float, schedule: Schedule) -> optax.Schedule:
        """Initial rate times `factor` for each stage begun, or a smooth fall instead."""
        if schedule == "cosine":
            return optax.cosine_decay_schedule(initial, self.total)
        if schedule == "linear":
            return optax.linear_schedule(initial, 0.0, self.total)
        return rj.multistep(initial, self.steps, self.factor)

    def momentum(self, initial: float) -> float | optax.Schedule:
        """Constant until the last stage, where it grows to 1: W takes on the zeros of What."""
        return rj.final_momentum_schedule(initial, self.steps[-1]) if self.steps else initial


@dataclass(frozen=True)
class Method(ABC):
    """A method with its hyperparameters.

    Attributes:
        learning_rate: that of the first stage.
        strength: that of the regularizer; here because every method is tuned with its own.
        schedule: how the learning rate falls; restarts and momentum follow the stages in any case.
    """

    learning_rate: float
    strength: float
    schedule: Schedule = "stages"

    @abstractmethod
    def transformation(
        self, regularizer: Regularization, stages: Stages, placement: rj.Placement | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The method as an optax transformation.

        Args:
            regularizer: of the recipe.
            stages: of the run, in steps.
            placement: where the state lies on many devices; a dense method's lies on each.
        """

    def structured_params(self, opt_state: optax.OptState, params: Params) -> Params:
        """The point to deploy: W with What's amount of structure."""
        return rj.structured_params(opt_state, params)

    def minimizer(self, opt_state: optax.OptState, params: Params) -> Params:
        """What, the minimiser of the last subproblem."""
        return rj.structured_params(opt_state, params, values="minimizer")

    def solver_stats(self, opt_state: optax.OptState) -> tuple[jax.Array, jax.Array]:
        """Iterations and residual of the last step's subproblem."""
        stats = rj.solver_stats(opt_state)
        return jnp.asarray(stats["iterations"]), jnp.asarray(stats["residual"])


@dataclass(frozen=True)
class Regularized(Method):
    """One of the library's methods.

    Attributes:
        function: of the library; takes this method's own hyperparameters by their names.
    """

    function: ClassVar[Callable[..., optax.GradientTransformationExtraArgs]]

    def transformation(
        self, regularizer: Regularization, stages: Stages, placement: rj.Placement | None = None
    ) -> optax.GradientTransformationExtraArgs:
        rate = stages.learning_rate(self.learning_rate, self.schedule)
        return type(self).function(rate, regularizer, placement=placement, **self.options(stages))

    def options(self, stages: Stages) -> dict[str, Any]:
        """The function's further arguments: the fields that not every method has."""
        common = {field.name for field in fields(Method)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in common}


@dataclass(frozen=True)
class Adaptive(Regularized):
    """A method whose metric is not a multiple of the identity, so that subproblems take a solver.

    Attributes:
        solver_iterations: at most so many iterations of the paper's proximal gradient method a
            step; 0 takes the library's own solver, to its own accuracy.
        solver_rtol: relative decrease at which the proximal gradient method stops.
    """

    solver_iterations: int = 0
    solver_rtol: float = 1e-8

    def options(self, stages: Stages) -> dict[str, Any]:
        options = super().options(stages)
        most, rtol = options.pop("solver_iterations"), options.pop("solver_rtol")
        return options | {"solver": rj.ProximalGradient(most, rtol) if most else None}


def _in_stages(options: dict[str, Any], stages: Stages) -> dict[str, Any]:
    """The options of a method that averages: it restarts at every stage."""
    momentum = stages.momentum(options["momentum"])
    return options | {"momentum": momentum, "restart_steps": stages.steps}


@dataclass(frozen=True)
class Ramda(Adaptive):
    """Regularized adaptive momentum dual averaging, restarted at every stage."""

    momentum: float = 0.01
    function = staticmethod(rj.ramda)

    def options(self, stages: Stages) -> dict[str, Any]:
        return _in_stages(super().options(stages), stages)


@dataclass(frozen=True)
class Rmda(Regularized):
    """Regularized momentum dual averaging (not adaptive), restarted at every stage."""

    momentum: float = 0.1
    function = staticmethod(rj.rmda)

    def options(self, stages: Stages) -> dict[str, Any]:
        return _in_stages(super().options(stages), stages)


@dataclass(frozen=True)
class ProxSGD(Regularized):
    """Proximal SGD; `momentum` is the weight of the newest gradient."""

    momentum: float = 0.1
    function = staticmethod(rj.prox_sgd)


@dataclass(frozen=True)
class ProxAdamW(Adaptive):
    """Proximal AdamW (ProxGen)."""

    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    function = staticmethod(rj.prox_adamw)


@dataclass(frozen=True)
class ProxSSI(Regularized):
    """Structured sparsity inducing adaptive proximal steps.

    `bias_corrected_metric=false` is the published behaviour: a prox in the uncorrected metric,
    whose effective strength is far too large in the first steps.
    """

    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    bias_corrected_metric: bool = True
    function = staticmethod(rj.prox_ssi)


@dataclass(frozen=True)
class Dense(Method):
    """A reference method without a regularizer: its iterate has no structure but its own."""

    strength: float = 0.0

    def structured_params(self, opt_state: optax.OptState, params: Params) -> Params:
        return params

    def minimizer(self, opt_state: optax.OptState, params: Params) -> Params:
        return params

    def solver_stats(self, opt_state: optax.OptState) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(()), jnp.zeros(())


@dataclass(frozen=True)
class Sgd(Dense):
    """SGD with heavy-ball momentum; the weight decay is added to the gradient."""

    momentum: float = 0.9
    weight_decay: float = 0.0

    def transformation(
        self, regularizer: Regularization, stages: Stages, placement: rj.Placement | None = None
    ) -> optax.GradientTransformationExtraArgs:
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(stages.learning_rate(self.learning_rate, self.schedule), self.momentum),
        )


@dataclass(frozen=True)
class AdamW(Dense):
    """AdamW; the weight decay is apart from the gradient."""

    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0

    def transformation(
        self, regularizer: Regularization, stages: Stages, placement: rj.Placement | None = None
    ) -> optax.GradientTransformationExtraArgs:
        return optax.adamw(
            stages.learning_rate(self.learning_rate, self.schedule),
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
        )
