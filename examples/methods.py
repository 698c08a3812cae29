"""The optimizers to choose from: a frozen dataclass of hyperparameters each, and what it builds.

A method is given the regularizer and the run's stages in steps; it decides what a stage means for
it: all of them lower the learning rate, the dual-averaging ones also restart and average less and
less in the last stage.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import optax

import ramda_jax as rj


@dataclass(frozen=True)
class Stages:
    """Where the stages of a run after its first begin.

    Attributes:
        steps: the first step (from 0) of each.
        factor: what each multiplies the learning rate by.
    """

    steps: tuple[int, ...]
    factor: float

    def learning_rate(self, initial: float) -> optax.Schedule:
        """Initial rate times `factor` for each stage begun."""
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
    """

    learning_rate: float
    strength: float

    @abstractmethod
    def transformation(
        self, regularizer: Any, stages: Stages
    ) -> optax.GradientTransformationExtraArgs:
        """The method as an optax transformation."""


@dataclass(frozen=True)
class Ramda(Method):
    """Regularized adaptive momentum dual averaging, restarted at every stage."""

    momentum: float = 0.01

    def transformation(
        self, regularizer: Any, stages: Stages
    ) -> optax.GradientTransformationExtraArgs:
        return rj.ramda(
            stages.learning_rate(self.learning_rate),
            regularizer,
            momentum=stages.momentum(self.momentum),
            restart_steps=stages.steps,
        )


@dataclass(frozen=True)
class Rmda(Method):
    """Regularized momentum dual averaging (not adaptive), restarted at every stage."""

    momentum: float = 0.1

    def transformation(
        self, regularizer: Any, stages: Stages
    ) -> optax.GradientTransformationExtraArgs:
        return rj.rmda(
            stages.learning_rate(self.learning_rate),
            regularizer,
            momentum=stages.momentum(self.momentum),
            restart_steps=stages.steps,
        )


@dataclass(frozen=True)
class ProxSGD(Method):
    """Proximal SGD; `momentum` is the weight of the newest gradient."""

    momentum: float = 0.1

    def transformation(
        self, regularizer: Any, stages: Stages
    ) -> optax.GradientTransformationExtraArgs:
        return rj.prox_sgd(
            stages.learning_rate(self.learning_rate), regularizer, momentum=self.momentum
        )


@dataclass(frozen=True)
class ProxAdamW(Method):
    """Proximal AdamW (ProxGen)."""

    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0

    def transformation(
        self, regularizer: Any, stages: Stages
    ) -> optax.GradientTransformationExtraArgs:
        return rj.prox_adamw(
            stages.learning_rate(self.learning_rate),
            regularizer,
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
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
        self, regularizer: Any, stages: Stages
    ) -> optax.GradientTransformationExtraArgs:
        return rj.prox_ssi(
            stages.learning_rate(self.learning_rate),
            regularizer,
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
            bias_corrected_metric=self.bias_corrected_metric,
        )
