"""What a language model's recipe is made of: its call, its loss, and text drawn from it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from examples.data.wikitext import PADDING
from examples.models.transformer_xl import Memory, TransformerXL


def forward(
    model: TransformerXL, inputs: tuple[jax.Array, jax.Array], memory: Memory
) -> tuple[jax.Array, Memory]:
    """(words, the words after them), (n, k) each -> -log p of the latter (n, k), and the memory."""
    words, targets = inputs
    return model.nll(words, targets, memory)


def empty_memory(model: TransformerXL, batch_size: int) -> Memory:
    """The memory at the beginning of `batch_size` texts."""
    return model.initial_memory(batch_size)


def mean_nll(nll: jax.Array, targets: jax.Array) -> jax.Array:
    """-log p a word, (n, k) -> (n,); words that are padding do not count."""
    real = targets != PADDING
    return jnp.sum(jnp.where(real, nll, 0.0), axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)


def sample(
    model: TransformerXL,
    prompt: Sequence[int],
    length: int,
    key: jax.Array,
    temperature: float = 1.0,
    never: Sequence[int] = (),
) -> list[int]:
    """Words that continue a prompt, drawn one by one; the memory carries all that was read.

        p(word) ~ exp(log p_model(word | words before) / temperature)

    Args:
        model: in evaluation mode.
        prompt: at least one word.
        length: how many words to draw.
        key: for the draws.
        temperature: above 0; small values prefer the likely words.
        never: words that are not drawn.
    """
    graph, state = nnx.split(model)
    # The prompt, then places for what is drawn: one program reads both, a word a step.
    given = jnp.array([*prompt, *[PADDING] * (length - 1)], jnp.int32)
    words = _draw(graph, state, given, key, temperature, jnp.array(never, jnp.int32))
    return [int(word) for word in words[len(prompt) - 1 :]]


@jax.jit(static_argnums=0)
def _draw(
    graph: nnx.GraphDef[TransformerXL],
    state: nnx.State,
    given: jax.Array,
    key: jax.Array,
    temperature: float,
    never: jax.Array,
) -> jax.Array:
    """The word drawn after each word; a place of `given` that is padding takes the one drawn."""
    model = nnx.merge(graph, state)

    def step(
        carry: tuple[jax.Array, Memory], at: Any
    ) -> tuple[tuple[jax.Array, Memory], jax.Array]:
        drawn, memory = carry
        word, step_key = at
        word = jnp.where(word == PADDING, drawn, word)
        hidden, memory = model(word[None, None], memory)
        scores = model.vocabulary.log_probs(hidden[0])[0].at[never].set(-jnp.inf)
        drawn = jax.random.categorical(step_key, scores / temperature)
        return (drawn, memory), drawn

    start = (jnp.zeros((), jnp.int32), model.initial_memory(1))
    return jax.lax.scan(step, start, (given, jax.random.split(key, len(given))))[1]
