"""A fully connected network on Fashion-MNIST, its matrices trained to low rank by a nuclear norm."""

from dataclasses import dataclass
from typing import Any

from flax import nnx

import ramda_jax as rj
from examples import classification, methods
from examples.data.idx import FashionMnist
from examples.models.mlp import FASHION_MNIST_WIDTHS, MLP
from examples.recipe import Recipe, Settings

# The paper's accuracy for the nuclear norm; solver_iterations=0 is the library's own, to the end.
PAPER_SOLVER: dict[str, Any] = {"solver_iterations": 5, "solver_rtol": 1e-3}


# 1,400 steps instead of 140,000, in larger batches: singular values that carry nothing have to fall
# faster, by higher rates and strengths. How each was chosen: examples/RESULTS.md.
SMALL: dict[str, Any] = {
    "ramda.strength": 2e-3,
    "ramda.solver_iterations": 0,
    "rmda.learning_rate": 1.0,
    "rmda.strength": 5.5e-3,
    "prox_sgd.learning_rate": 0.3,
    "prox_sgd.strength": 9e-3,
    "prox_adamw.learning_rate": 3e-3,
    "prox_adamw.strength": 5e-3,
    "prox_adamw.solver_iterations": 0,
    "epochs": 12,
    "stages": (6, 9),
    "batch_size": 512,
    "eval_train_examples": 10_000,
    "checkpoint_every": 1,
}


@dataclass(frozen=True)
class Model:
    """Builds the network.

    Attributes:
        widths: inputs, units of each hidden layer, classes.
    """

    widths: tuple[int, ...] = FASHION_MNIST_WIDTHS

    def __call__(self, rngs: nnx.Rngs, dtype: Any) -> MLP:
        return MLP(self.widths, dtype=dtype, rngs=rngs)


RECIPE = Recipe(
    name="fashion_mnist_mlp",
    title="MLP on Fashion-MNIST, nuclear norm of every matrix",
    load=FashionMnist(),
    model=Model(),
    loss=classification.cross_entropy,
    metrics={"accuracy": classification.correct},
    regularizer=rj.NuclearNorm,
    sparsity=("low_rank_level", rj.low_rank_level),
    # There is no ProxSSI: it is a method for group norms.
    methods={
        "ramda": methods.Ramda(learning_rate=1e-2, strength=1e-3, momentum=0.1, **PAPER_SOLVER),
        "rmda": methods.Rmda(learning_rate=1e-1, strength=5e-3, momentum=0.1),
        "prox_sgd": methods.ProxSGD(learning_rate=1e-1, strength=5e-3, momentum=0.1),
        "prox_adamw": methods.ProxAdamW(learning_rate=1e-3, strength=3.5e-3, **PAPER_SOLVER),
        # The paper gives no rates for its dense runs of this task; these are ours.
        "sgd": methods.Sgd(learning_rate=1e-2),
        "adamw": methods.AdamW(learning_rate=1e-3),
    },
    # Batches as in the paper's other image tasks; it names none for this one.
    settings=Settings(
        epochs=300, batch_size=128, stages=(100, 200), eval_batch_size=2000, checkpoint_every=10
    ),
    scales={
        "small": SMALL,
        "smoke": {
            "epochs": 3,
            "stages": (2,),
            "checkpoint_every": 0,
            "data.train_limit": 2560,
            "data.test_limit": 1000,
            "model.widths": (784, 64, 32, 10),
        },
    },
)
