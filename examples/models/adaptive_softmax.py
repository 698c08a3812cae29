"""A softmax over a vocabulary sorted by frequency, and the word vectors it shares with the input.

Grave et al., Efficient softmax approximation for GPUs, ICML 2017, and Baevski & Auli, Adaptive input
representations, ICLR 2019. The vocabulary is cut into a head of frequent words and tail clusters:

    p(w) = p(w | head)                         for w in the head,
    p(w) = p(cluster | head) p(w | cluster)    for w in a tail cluster,

where the first softmax has the head's words and one more class for each cluster.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

_TABLE_INIT = nnx.initializers.normal(0.02)
_PROJECTION_INIT = nnx.initializers.normal(0.01)


class AdaptiveVocabulary(nnx.Module):
    """Word vectors by cluster, read by the input (`embed`) and by the softmax (`nll`).

    Cluster i has vectors of size features / div_val^i. For div_val > 1 a dense layer takes them to
    the model's size on the way in, and for tail clusters the same layer, transposed, takes hidden
    vectors to theirs on the way out; the head has its own. For div_val = 1 there are no projections.

    The vectors of the clusters are further rows of the head's table, so they are no `kernel` either.

    Args:
        vocabulary: number of words, the most frequent first.
        features: size of the model's vectors.
        cutoffs: where each tail cluster begins; rising, between 1 and vocabulary - 1.
        div_val: by how much vectors shrink from one cluster to the next.
        chunk: how many positions share the memory of their logits.
        dtype: type computed in.
        rngs: stream `params`.

    Raises:
        ValueError: for cutoffs that are no such numbers.
    """

    def __init__(
        self,
        vocabulary: int,
        features: int,
        cutoffs: Sequence[int],
        *,
        div_val: int = 1,
        chunk: int = 1024,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        bounds = (0, *cutoffs, vocabulary)
        if len(cutoffs) == 0 or any(a >= b for a, b in itertools.pairwise(bounds)):
            raise ValueError(
                f"cutoffs must rise between 1 and {vocabulary - 1}, got {tuple(cutoffs)}."
            )
        self.bounds, self.features, self.chunk = bounds, features, chunk
        ranges = list(itertools.pairwise(bounds))
        sizes = [features // div_val**i for i in range(len(ranges))]
        self.tables = nnx.List(
            [
                nnx.Embed(hi - lo, size, embedding_init=_TABLE_INIT, dtype=dtype, rngs=rngs)
                for (lo, hi), size in zip(ranges, sizes, strict=True)
            ]
        )
        self.biases = nnx.List([nnx.Param(jnp.zeros(hi - lo)) for lo, hi in ranges])
        self.cluster_table = nnx.Embed(
            len(cutoffs), sizes[0], embedding_init=_TABLE_INIT, dtype=dtype, rngs=rngs
        )
        self.cluster_bias = nnx.Param(jnp.zeros(len(cutoffs)))

        def projection(size: int) -> nnx.Linear:
            return nnx.Linear(
                size,
                features,
                use_bias=False,
                kernel_init=_PROJECTION_INIT,
                dtype=dtype,
                rngs=rngs,
            )

        self.projected = div_val > 1
        self.projections = nnx.List([projection(size) for size in sizes if self.projected])
        self.head_projection = projection(sizes[0]) if self.projected else None

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Words (...) -> vectors (..., features), scaled by sqrt(features)."""
        total: jax.Array | float = 0.0
        for i, table in enumerate(self.tables):
            lo, hi = self.bounds[i], self.bounds[i + 1]
            inside = (tokens >= lo) & (tokens < hi)
            vectors = table(jnp.clip(tokens - lo, 0, hi - lo - 1))
            if self.projected:
                vectors = self.projections[i](vectors)
            total = total + jnp.where(inside[..., None], vectors, 0)
        return jnp.asarray(total) * math.sqrt(self.features)

    def nll(self, hidden: jax.Array, targets: jax.Array) -> jax.Array:
        """-log p(target), exactly, at the cost of a softmax over the head where words are frequent.

        Args:
            hidden: (positions, features).
            targets: words (positions,).

        Returns:
            (positions,) in float32.
        """
        cluster = self._cluster_of(targets)
        in_head = jnp.where(cluster == 0, targets, self.bounds[1] + cluster - 1)
        everywhere = jnp.ones(targets.shape, bool)
        total = _nll_of_members(self._head_logits, hidden, in_head, everywhere, self.chunk)
        for i in range(1, len(self.tables)):

            def logits(x: jax.Array, i: int = i) -> jax.Array:
                return self._tail_logits(i, x)

            word = targets - self.bounds[i]
            total += _nll_of_members(logits, hidden, word, cluster == i, self.chunk)
        return total

    def log_probs(self, hidden: jax.Array) -> jax.Array:
        """log p of every word: (positions, features) -> (positions, vocabulary) in float32."""
        head = jax.nn.log_softmax(self._head_logits(hidden))
        parts = [head[:, : self.bounds[1]]]
        for i in range(1, len(self.tables)):
            of_cluster = head[:, self.bounds[1] + i - 1, None]
            parts.append(of_cluster + jax.nn.log_softmax(self._tail_logits(i, hidden)))
        return jnp.concatenate(parts, axis=-1)

    def _cluster_of(self, tokens: jax.Array) -> jax.Array:
        """0 for words of the head, i for words of the i-th tail cluster."""
        return jnp.searchsorted(jnp.asarray(self.bounds[1:-1]), tokens, side="right")

    def _head_logits(self, hidden: jax.Array) -> jax.Array:
        """(positions, features) -> (positions, words of the head + clusters)."""
        if self.head_projection is not None:
            hidden = _transposed(self.head_projection, hidden)
        words = _scores(hidden, self.tables[0], self.biases[0])
        clusters = _scores(hidden, self.cluster_table, self.cluster_bias)
        return jnp.concatenate([words, clusters], axis=-1)

    def _tail_logits(self, i: int, hidden: jax.Array) -> jax.Array:
        """(positions, features) -> (positions, words of cluster i)."""
        if self.projected:
            hidden = _transposed(self.projections[i], hidden)
        return _scores(hidden, self.tables[i], self.biases[i])


def _scores(hidden: jax.Array, table: nnx.Embed, bias: nnx.Param[jax.Array]) -> jax.Array:
    """Inner products with all rows, plus bias; in float32, as the softmax needs."""
    rows = table.embedding[...].astype(hidden.dtype)
    return jnp.matmul(hidden, rows.T, preferred_element_type=jnp.float32) + bias[...]


def _transposed(projection: nnx.Linear, hidden: jax.Array) -> jax.Array:
    """The projection from vectors of words to the model's size, in the other direction."""
    return hidden @ projection.kernel[...].T.astype(hidden.dtype)


def _nll_of_members(
    logits_of: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    member: jax.Array,
    chunk: int,
) -> jax.Array:
    """Negative log-softmax at the targets of the members, 0 elsewhere.

    How many positions belong to a cluster is only known at run time, but shapes are fixed: the
    members are sorted to the front, and chunks of positions without any are skipped. Logits are
    recomputed for the gradient, so that those of one chunk at a time are in memory.

    Args:
        logits_of: (chunk, features) -> (chunk, classes).
        hidden: (positions, features).
        targets: classes (positions,), anything where not a member.
        member: booleans (positions,).
        chunk: positions a chunk.

    Returns:
        (positions,) in float32.
    """
    positions = len(targets)
    chunk = min(chunk, positions)
    chunks = -(-positions // chunk)
    order = jnp.argsort(~member)  # stable: the head, of which all are members, stays as it is
    padding = chunks * chunk - positions

    def in_chunks(x: jax.Array) -> jax.Array:
        widths = [(0, padding)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x[order], widths).reshape(chunks, chunk, *x.shape[1:])

    @jax.checkpoint
    def nll(x: jax.Array, target: jax.Array, counts: jax.Array) -> jax.Array:
        logits = logits_of(x)
        target = jnp.clip(target, 0, logits.shape[-1] - 1)
        chosen = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        return jnp.where(counts, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)

    def nothing(x: jax.Array, target: jax.Array, counts: jax.Array) -> jax.Array:
        return jnp.zeros(counts.shape, jnp.float32)

    def body(_: None, rows: tuple[jax.Array, ...]) -> tuple[None, jax.Array]:
        return None, jax.lax.cond(jnp.any(rows[-1]), nll, nothing, *rows)

    _, values = jax.lax.scan(body, None, tuple(map(in_chunks, (hidden, targets, member))))
    return jnp.zeros(positions, jnp.float32).at[order].set(values.reshape(-1)[:positions])
