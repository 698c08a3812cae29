"""Transformer-XL base on WikiText-103 with one group per input of every matrix.

Not regularized: biases, layer norms, word vectors. The paper evaluates by perplexity.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
from flax import nnx

import ramda_jax as rj
from examples import language, methods
from examples.data.wikitext import WikiText
from examples.models.transformer_xl import (
    WIKITEXT103_CUTOFFS,
    WIKITEXT103_WORDS,
    TransformerXL,
)
from examples.recipe import Recipe, RecipeError, Settings


@dataclass(frozen=True)
class Model:
    """Builds the model; see `TransformerXL`.

    Attributes:
        vocabulary: number of words, at least data.vocabulary.
        cutoffs: where each tail cluster of the adaptive softmax begins.
        features: size of the word vectors.
        layers: number of layers.
        heads: attention heads.
        head_size: of a head's queries, keys and values.
        hidden: units between the two dense layers of a layer.
        memory_length: words of the memory.
        dropout: rate.
        attention_dropout: rate for the attention weights.
    """

    vocabulary: int = WIKITEXT103_WORDS
    cutoffs: tuple[int, ...] = WIKITEXT103_CUTOFFS
    features: int = 512
    layers: int = 16
    heads: int = 8
    head_size: int = 64
    hidden: int = 2048
    memory_length: int = 192
    dropout: float = 0.1
    attention_dropout: float = 0.0

    def __call__(self, rngs: nnx.Rngs, dtype: Any) -> TransformerXL:
        return TransformerXL(
            self.vocabulary,
            self.cutoffs,
            features=self.features,
            layers=self.layers,
            heads=self.heads,
            head_size=self.head_size,
            hidden=self.hidden,
            memory_length=self.memory_length,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            dtype=dtype,
            rngs=rngs,
        )


def check(load: Any, model: Model) -> None:
    """Words beyond the model's would read as none at all."""
    bounds = (0, *model.cutoffs, model.vocabulary)
    if not all(a < b for a, b in pairwise(bounds)) or not model.cutoffs:
        raise RecipeError(
            f"model.cutoffs: expected rising numbers between 1 and model.vocabulary - 1 = "
            f"{model.vocabulary - 1}, got {model.cutoffs}"
        )
    if load.vocabulary > model.vocabulary:
        raise RecipeError(
            f"data.vocabulary: expected at most model.vocabulary = {model.vocabulary}, "
            f"got {load.vocabulary}"
        )


# W takes on What's zeros after 1/c^2 steps of the last stage, which here has 500. Rates and
# strengths come from the search on the State of the Union addresses in RESULTS.md.
SMALL: dict[str, Any] = {
    "ramda.learning_rate": 4e-2,
    "ramda.strength": 1e-5,
    "ramda.momentum": 0.1,
    "rmda.learning_rate": 25.0,
    "rmda.strength": 2e-5,
    "rmda.momentum": 0.1,
    "prox_sgd.learning_rate": 20.0,
    "prox_sgd.strength": 3e-5,
    "prox_adamw.learning_rate": 4e-3,
    "prox_adamw.strength": 3e-5,
    "prox_ssi.learning_rate": 4e-3,
    "prox_ssi.strength": 3e-5,
    "adamw.learning_rate": 1e-3,
    "epochs": 6,
    "steps_per_epoch": 250,
    "stages": (2, 4),
    "batch_size": 8,
    "eval_train_examples": 64,
    "checkpoint_every": 1,
    "data.words": 64,
    "data.vocabulary": 8000,
    "data.test_limit": 16_384,
    "model.vocabulary": 8000,
    "model.cutoffs": (1000, 3000),
    "model.features": 128,
    "model.layers": 4,
    "model.heads": 4,
    "model.head_size": 32,
    "model.hidden": 512,
    "model.memory_length": 64,
}

# In so few steps only larger strengths, and averages over fewer steps, show any structure.
SMOKE: dict[str, Any] = {
    "ramda.learning_rate": 0.02,
    "ramda.strength": 3e-5,
    "ramda.momentum": 0.3,
    "rmda.strength": 3e-5,
    "rmda.momentum": 0.3,
    "prox_sgd.strength": 3e-5,
    "prox_adamw.strength": 3e-5,
    "prox_ssi.strength": 3e-5,
    "epochs": 3,
    "steps_per_epoch": 20,
    "stages": (2,),
    "batch_size": 8,
    "eval_batch_size": 8,
    "eval_train_examples": 64,
    "checkpoint_every": 0,
    "data.words": 16,
    "data.vocabulary": 1000,
    "data.test_limit": 2000,
    "model.vocabulary": 1000,
    "model.cutoffs": (200, 500),
    "model.features": 32,
    "model.layers": 2,
    "model.heads": 2,
    "model.head_size": 16,
    "model.hidden": 64,
    "model.memory_length": 16,
}

RECIPE = Recipe(
    name="wikitext_transformer_xl",
    title="Transformer-XL on WikiText-103, group lasso over inputs",
    load=WikiText(),
    model=Model(),
    loss=language.mean_nll,
    metrics={},
    derived={"perplexity": jnp.exp},
    regularizer=rj.GroupLasso,
    sparsity=("weighted_group_sparsity", rj.weighted_group_sparsity),
    methods={
        "ramda": methods.Ramda(learning_rate=5e-3, strength=1.25e-7, momentum=0.01),
        "rmda": methods.Rmda(learning_rate=25.0, strength=1.65e-7, momentum=0.01),
        "prox_sgd": methods.ProxSGD(
            learning_rate=10.0, strength=2.5e-7, momentum=0.1, schedule="cosine"
        ),
        "prox_adamw": methods.ProxAdamW(learning_rate=2.5e-4, strength=1.75e-7, schedule="cosine"),
        "prox_ssi": methods.ProxSSI(learning_rate=2.5e-4, strength=1.75e-7, schedule="cosine"),
        # The paper gives no rate for its dense run of this task; this is ProxAdamW's.
        "adamw": methods.AdamW(learning_rate=2.5e-4, schedule="cosine"),
    },
    # 400,000 steps, stages at 100,000, 200,000 and 300,000; a pass over the text has 8,400.
    settings=Settings(
        epochs=100,
        steps_per_epoch=4000,
        stages=(25, 50, 75),
        batch_size=64,
        clip_norm=0.25,
        eval_batch_size=16,
        eval_train_examples=1600,
        checkpoint_every=1,
    ),
    scales={"small": SMALL, "smoke": SMOKE},
    check=check,
    forward=language.forward,
    memory=language.empty_memory,
)
