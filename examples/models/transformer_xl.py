"""Transformer-XL, the language model of the paper for WikiText-103.

Dai et al., Transformer-XL: Attentive language models beyond a fixed-length context, ACL 2019. A long
text is read segment by segment; each layer also attends to what its inputs were in the segment
before (the memory, which is passed in and out, and which no gradient enters). Positions enter as
distances between words: the score of key j for query i is

    q_i . k_j + q_i . W r_{i-j} + u . k_j + v . W r_{i-j},

r_d the sinusoidal encoding of the distance d, u and v learned and shared by all layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from examples.models.adaptive_softmax import AdaptiveVocabulary

WIKITEXT103_WORDS = 267_735
WIKITEXT103_CUTOFFS = (20_000, 40_000, 200_000)

_INIT = nnx.initializers.normal(0.02)
_EPSILON = 1e-5  # of the layer norms


class Memory(NamedTuple):
    """What each layer read in the segments before.

    Attributes:
        hidden: inputs of each layer, (layers, n, memory length, features), the newest last.
        length: how many of the last positions are filled, a scalar; attention skips the others.
    """

    hidden: jax.Array
    length: jax.Array


class RelativeAttention(nnx.Module):
    """Multi-head attention to the memory and to all words up to the query's.

    Args:
        features: size of the word vectors.
        heads: number of heads.
        head_size: size of a head's queries, keys and values.
        dropout: rate, of the output.
        attention_dropout: rate, of the attention weights.
        dtype: type computed in.
        rngs: streams `params` and `dropout`.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        head_size: int,
        *,
        dropout: float,
        attention_dropout: float,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ) -> None:
        def dense(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(
                inputs, outputs, use_bias=False, dtype=dtype, kernel_init=_INIT, rngs=rngs
            )

        self.heads, self.head_size = heads, head_size
        width = heads * head_size
        # One kernel for the three, so that a word feature is one group for all of them.
        self.query_key_value = dense(features, 3 * width)
        self.distance = dense(features, width)
        self.output = dense(width, features)
        self.attention_dropout = nnx.Dropout(attention_dropout, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def weights(
        self,
        query: jax.Array,
        key: jax.Array,
        distances: jax.Array,
        biases: tuple[jax.Array, jax.Array],
        visible: jax.Array,
    ) -> jax.Array:
        """Attention weights (n, heads, queries, keys) in float32, each row with sum one.

        Args:
            query: (n, queries, heads, head size).
            key: (n, keys, heads, head size).
            distances: encodings of the distances keys - 1, ..., 0, (keys, features).
            biases: u and v, (heads, head size) each.
            visible: booleans (queries, keys).
        """
        content_bias, position_bias = (bias.astype(query.dtype) for bias in biases)
        encoded = self.distance(distances).reshape(-1, self.heads, self.head_size)
        content = jnp.einsum("nihd,njhd->nhij", query + content_bias, key)
        position = jnp.einsum("nihd,jhd->nhij", query + position_bias, encoded)
        scores = (content + relative_shift(position)).astype(jnp.float32)
        scores = jnp.where(visible, scores / self.head_size**0.5, -jnp.inf)
        return jax.nn.softmax(scores, axis=-1)

    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array,
        distances: jax.Array,
        biases: tuple[jax.Array, jax.Array],
        visible: jax.Array,
    ) -> jax.Array:
        """(n, words, features) and memory (n, length, features) -> (n, words, features)."""
        context = jnp.concatenate([memory.astype(x.dtype), x], axis=1)
        packed = self.query_key_value(context)
        packed = packed.reshape(*context.shape[:2], 3, self.heads, self.head_size)
        query, key, value = (packed[:, :, i] for i in range(3))
        weights = self.weights(query[:, -x.shape[1] :], key, distances, biases, visible)
        weights = self.attention_dropout(weights).astype(value.dtype)
        mixed = jnp.einsum("nhij,njhd->nihd", weights, value)
        return self.dropout(self.output(mixed.reshape(*x.shape[:2], -1)))


class Layer(nnx.Module):
    """Attention, then two dense layers; each is added to its input, and the sum normalized.

    Args:
        features: size of the word vectors.
        hidden: units between the two dense layers.
        attention: the attention of this layer.
        dropout: rate, after each dense layer.
        dtype: type computed in.
        rngs: streams `params` and `dropout`.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        attention: RelativeAttention,
        *,
        dropout: float,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ) -> None:
        self.attention = attention
        self.attention_norm = _layer_norm(features, dtype, rngs)
        self.expand = nnx.Linear(features, hidden, dtype=dtype, kernel_init=_INIT, rngs=rngs)
        self.contract = nnx.Linear(hidden, features, dtype=dtype, kernel_init=_INIT, rngs=rngs)
        self.norm = _layer_norm(features, dtype, rngs)
        self.hidden_dropout = nnx.Dropout(dropout, rngs=rngs)
        self.output_dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array,
        distances: jax.Array,
        biases: tuple[jax.Array, jax.Array],
        visible: jax.Array,
    ) -> jax.Array:
        """(n, words, features) -> the same shape; the other arguments are the attention's."""
        x = self.attention_norm(x + self.attention(x, memory, distances, biases, visible))
        y = self.hidden_dropout(nnx.relu(self.expand(x)))
        return self.norm(x + self.output_dropout(self.contract(y)))


class TransformerXL(nnx.Module):
    """The language model. The defaults are the paper's base model for WikiText-103.

    Args:
        vocabulary: number of words, the most frequent first.
        cutoffs: where each tail cluster of the adaptive softmax begins.
        features: size of the word vectors.
        layers: number of layers.
        heads: number of attention heads.
        head_size: of a head's queries, keys and values.
        hidden: units between the two dense layers of a layer.
        memory_length: positions of the memory that `initial_memory` makes.
        div_val: by how much word vectors shrink from one cluster to the next.
        dropout: rate.
        attention_dropout: rate for the attention weights.
        dtype: type computed in.
        rngs: streams `params` and `dropout`.
    """

    def __init__(
        self,
        vocabulary: int = WIKITEXT103_WORDS,
        cutoffs: Sequence[int] = WIKITEXT103_CUTOFFS,
        *,
        features: int = 512,
        layers: int = 16,
        heads: int = 8,
        head_size: int = 64,
        hidden: int = 2048,
        memory_length: int = 192,
        div_val: int = 1,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.features, self.memory_length = features, memory_length
        self.dtype = jnp.float32 if dtype is None else dtype
        self.vocabulary = AdaptiveVocabulary(
            vocabulary, features, cutoffs, div_val=div_val, dtype=dtype, rngs=rngs
        )
        self.content_bias = nnx.Param(_INIT(rngs.params(), (heads, head_size), jnp.float32))
        self.position_bias = nnx.Param(_INIT(rngs.params(), (heads, head_size), jnp.float32))

        def attention() -> RelativeAttention:
            return RelativeAttention(
                features,
                heads,
                head_size,
                dropout=dropout,
                attention_dropout=attention_dropout,
                dtype=dtype,
                rngs=rngs,
            )

        # Separate layers, not one stacked over an axis: groups must not reach across layers.
        self.layers = nnx.List(
            [
                Layer(features, hidden, attention(), dropout=dropout, dtype=dtype, rngs=rngs)
                for _ in range(layers)
            ]
        )
        self.input_dropout = nnx.Dropout(dropout, rngs=rngs)
        self.distance_dropout = nnx.Dropout(dropout, rngs=rngs)
        self.output_dropout = nnx.Dropout(dropout, rngs=rngs)

    def initial_memory(self, count: int, length: int | None = None) -> Memory:
        """An empty memory for `count` texts; `length` positions, by default those of training."""
        length = self.memory_length if length is None else length
        shape = (len(self.layers), count, length, self.features)
        return Memory(jnp.zeros(shape, self.dtype), jnp.zeros((), jnp.int32))

    def __call__(self, tokens: jax.Array, memory: Memory) -> tuple[jax.Array, Memory]:
        """Reads one segment.

        Args:
            tokens: words (n, words).
            memory: of the same n texts.

        Returns:
            What predicts the next words, (n, words, features), and the memory for the next segment.
        """
        words, length = tokens.shape[1], memory.hidden.shape[2]
        visible = visible_keys(words, length, memory.length)
        distances = sinusoids(jnp.arange(length + words - 1, -1, -1), self.features)
        distances = self.distance_dropout(distances.astype(self.dtype))
        biases = (self.content_bias[...], self.position_bias[...])
        x = self.input_dropout(self.vocabulary.embed(tokens))
        inputs = []
        for layer, past in zip(self.layers, memory.hidden, strict=True):
            inputs.append(x)
            x = layer(x, past, distances, biases, visible)
        return self.output_dropout(x), updated(memory, jnp.stack(inputs))

    def nll(
        self, tokens: jax.Array, targets: jax.Array, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        """Negative log-likelihood of the next words; exp of the mean is the perplexity.

        Args:
            tokens: words (n, words).
            targets: the word that follows each, (n, words).
            memory: of the same n texts.

        Returns:
            (n, words) in float32, and the memory for the next segment.
        """
        hidden, memory = self(tokens, memory)
        flat = self.vocabulary.nll(hidden.reshape(-1, self.features), targets.reshape(-1))
        return flat.reshape(targets.shape), memory


def _layer_norm(features: int, dtype: DTypeLike | None, rngs: nnx.Rngs) -> nnx.LayerNorm:
    def around_one(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return 1.0 + _INIT(key, shape, dtype)

    return nnx.LayerNorm(features, epsilon=_EPSILON, dtype=dtype, scale_init=around_one, rngs=rngs)


def updated(memory: Memory, inputs: jax.Array) -> Memory:
    """The memory after a segment: the oldest positions make place for the inputs of its layers.

    Args:
        memory: before.
        inputs: (layers, n, words, features).
    """
    length, words = memory.hidden.shape[2], inputs.shape[2]
    both = jnp.concatenate([memory.hidden, inputs.astype(memory.hidden.dtype)], axis=2)
    return Memory(
        jax.lax.stop_gradient(both[:, :, words:]), jnp.minimum(memory.length + words, length)
    )


def visible_keys(words: int, length: int, filled: jax.Array) -> jax.Array:
    """Booleans (words, length + words): neither later than the query nor in unfilled memory."""
    query, key = jnp.arange(words)[:, None], jnp.arange(length + words)[None]
    return (key <= length + query) & (key >= length - filled)


def sinusoids(positions: jax.Array, features: int) -> jax.Array:
    """(k,) -> (k, features): sines, then cosines, of wavelengths from 2 pi to 10000 * 2 pi."""
    frequencies = 10000.0 ** (-jnp.arange(0, features, 2) / features)
    angles = positions[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def relative_shift(x: jax.Array) -> jax.Array:
    """From scores by distance to scores by key.

    Column c of x belongs to distance keys - 1 - c. Query i of the last q keys is at distance
    (keys - q + i) - j from key j, so row i moves left by q - 1 - i:

        y[i, j] = x[i, j + q - 1 - i]    where that column exists (elsewhere j is after the query).

    One zero column and two reshapes do that to all rows at once.

    Args:
        x: (..., queries, keys).
    """
    *batch, queries, keys = x.shape
    x = jnp.pad(x, [(0, 0)] * len(batch) + [(0, 0), (1, 0)])
    x = x.reshape(*batch, keys + 1, queries)[..., 1:, :]
    return x.reshape(*batch, queries, keys)
