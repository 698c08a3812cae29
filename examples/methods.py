"""The optimizers to choose from: a frozen dataclass of hyperparameters each, and what it builds.

A method is given the regularizer and the run's stages in steps; it decides what a stage means for
it: all of them lower the learning rate, the dual-averaging ones also restart and average less and
less in the last stage. `Sgd` and `AdamW` are the dense references.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import ramda_jax as rj

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
        self, regularizer: Any, stages: Stages, placement: rj.Placement | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The method as an optax transformation.

        Args:
            regularizer: of the recipe.
            stages: of the run, in steps.
            placement: where the state lies on many devices; a dense method's lies on each.
        """

    def structured_params(self, opt_state: optax.OptState, params: Any) -> Any:
        """The point to deploy: W with What's amount of structure."""
        return rj.structured_params(opt_state, params)

    def minimizer(self, opt_state: optax.OptState, params: Any) -> Any:
        """What, the minimiser of the last subproblem."""
        return rj.structured_params(opt_state, params, values="minimizer")

    def solver_stats(self, opt_state: optax.OptState) -> tuple[jax.Array, jax.Array]:
        """Iterations and residual of the last step's subproblem."""
        stats = rj.solver_stats(opt_state)
        return stats["iterations"], stats["residual"]


@dataclass(frozen=True)
class Adaptive(Method):
    """A method whose metric is not a multiple of the identity, so that subproblems take a solver.

    Attributes:
        solver_iterations: at most so many iterations of the paper's proximal gradient method a
            step; 0 takes the library's own solver, to its own accuracy.
        solver_rtol: relative decrease at which the proximal gradient method stops.
    """

    solver_iterations: int = 0
    solver_rtol: float = 1e-8

    def solver(self) -> Any:
        """The solver as the library takes it; None leaves the choice to it."""
        if self.solver_iterations == 0:
            return None
        return rj.ProximalGradient(self.solver_iterations, self.solver_rtol)


@dataclass(frozen=True)
class Ramda(Adaptive):
    """Regularized adaptive momentum dual averaging, restarted at every stage."""

    momentum: float = 0.01

    def transformation(
        self, regularizer: Any, stages: Stages, placement: rj.Placement | None = None
    ) -> optax.GradientTransformationExtraArgs:
        return rj.ramda(
            stages.learning_rate(self.learning_rate, self.schedule),
            regularizer,
            momentum=stages.momentum(self.momentum),
            restart_steps=stages.steps,
            solver=self.solver(),
            placement=placement,
        )


@dataclass(frozen=True)
class Rmda(Method):
    """Regularized momentum dual averaging (not adaptive), restarted at every stage."""

    momentum: float = 0.1

    def transformation(
        self, regularizer: Any, stages: Stages, placement: rj.Placement | None = None
    ) -> optax.GradientTransformationExtraArgs:
        return rj.rmda(
            stages.learning_rate(self.learning_rate, self.schedule),
            regularizer,
            momentum=stages.momentum(self.momentum),
            restart_steps=stages.steps,
            placement=placement,
        )


@dataclass(frozen=True)
class ProxSGD(Method):
    """Proximal SGD; `momentum` is the weight of the newest gradient."""

    momentum: float = 0.1

    def transformation(
        self, regularizer: Any, stages: Stages, placement: rj.Placement | None = None
    ) -> optax.GradientTransformationExtraArgs:
        return rj.prox_sgd(
            stages.learning_rate(self.learning_rate, self.schedule),
            regularizer,
            momentum=self.momentum,
            placement=placement,
        )


@dataclass(frozen=True)
class ProxAdamW(Adaptive):
    """Proximal AdamW (ProxGen)."""

    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0

    def transformation(
        self, regularizer: Any, stages: Stages, placement: rj.Placement | None = None
    ) -> optax.GradientTransformationExtraArgs:
        return rj.prox_adamw(
            stages.learning_rate(self.learning_rate, self.schedule),
            regularizer,
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
            solver=self.solver(),
            placement=placement,
        )


@dataclass(frozen=True)
class ProxSSI(Method):
    """Structured sparsity inducing adaptive proximal steps.

    `bias_corrected_metric=false` is the published behaviour: a prox in the uncorrected metric,
    whose effective strength is far too large in the first steps.
    """

    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    bias_corrected_metric: bool = True

    def transformation(
        self, regularizer: Any, stages: Stages, placement: rj.Placement | None = None
    ) -> optax.GradientTransformationExtraArgs:
        return rj.prox_ssi(
            stages.learning_rate(self.learning_rate, self.schedule),
            regularizer,
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
            bias_corrected_metric=self.bias_corrected_metric,
            placement=placement,
        )


@dataclass(frozen=True)
class Dense(Method):
    """A reference method without a regularizer: its iterate has no structure but its own."""

    strength: float = 0.0

    def structured_params(self, opt_state: optax.OptState, params: Any) -> Any:
        return params

    def minimizer(self, opt_state: optax.OptState, params: Any) -> Any:
        return params

    def solver_stats(self, opt_state: optax.OptState) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(()), jnp.zeros(())


@dataclass(frozen=True)
class Sgd(Dense):
    """SGD with heavy-ball momentum; the weight decay is added to the gradient."""

    momentum: float = 0.9
    weight_decay: float = 0.0

    def transformation(
        self, regularizer: Any, stages: Stages, placement: rj.Placement | None = None
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
        self, regularizer: Any, stages: Stages, placement: rj.Placement | None = None
    ) -> optax.GradientTransformationExtraArgs:
        return optax.adamw(
            stages.learning_rate(self.learning_rate, self.schedule),
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
        )
