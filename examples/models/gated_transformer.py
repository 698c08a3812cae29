"""A causal language model as they are built now: RMSNorm before each part, grouped queries, gated units.

Shazeer, GLU Variants Improve Transformer, 2020; Ainslie et al., GQA, EMNLP 2023. Positions by
rotation (Su et al., RoFormer, 2021).
"""

import jax
import jax.numpy as jnp
from flax import nnx


class GatedTransformer(nnx.Module):
    """Tokens to logits; the layers one by one, or stacked and scanned.

    Args:
        vocabulary: number of tokens.
        features: size of the token vectors; a multiple of twice the number of query heads.
        layers: number of layers.
        key_heads: heads of keys and values.
        queries: query heads of each of these.
        expansion: hidden units over features.
        scanned: whether every parameter of the layers has an axis of them, and `jax.lax.scan` runs
            them: compiled once, however many there are.
        rngs: stream `params`.
    """

    def __init__(
        self,
        vocabulary: int,
        features: int,
        layers: int,
        *,
        key_heads: int = 2,
        queries: int = 2,
        expansion: int = 3,
        scanned: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        d, hidden = features, expansion * features
        width = d // (key_heads * queries)
        shapes = {
            "norm": (d,),
            "query": (d, key_heads, queries, width),
            "key": (d, key_heads, width),
            "value": (d, key_heads, width),
            "output": (key_heads, queries, width, d),
            "second_norm": (d,),
            "gate": (d, hidden),
            "up": (d, hidden),
            "down": (hidden, d),
        }
        fans = {"output": d, "down": hidden}

        def draw(name: str, *shape: int) -> nnx.Param:
            if "norm" in name:
                return nnx.Param(jnp.ones(shape))
            scale = fans.get(name, d) ** -0.5
            return nnx.Param(scale * jax.random.normal(rngs.params(), shape))

        def layer(*stack: int) -> nnx.Dict:
            return nnx.Dict({name: draw(name, *stack, *shape) for name, shape in shapes.items()})

        self.embedding = draw("embedding", vocabulary, d)
        self.layers = layer(layers) if scanned else nnx.List([layer() for _ in range(layers)])
        self.norm, self.head = draw("norm", d), draw("head", d, vocabulary)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(n, words) -> logits (n, words, vocabulary)."""

        def weights(layer: nnx.Dict) -> dict[str, jax.Array]:
            return {name: w[...] for name, w in layer.items()}

        x = self.embedding[...][tokens]
        if isinstance(self.layers, nnx.List):
            for layer in self.layers:
                x = _layer(x, weights(layer))
        else:
            x, _ = jax.lax.scan(lambda x, w: (_layer(x, w), None), x, weights(self.layers))
        return _rms(x, self.norm[...]) @ self.head[...]


def _rms(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def _rotated(x: jax.Array) -> jax.Array:
    """(n, words, ..., width), pairs of entries turned by angles that grow with the position."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10_000.0 ** (-jnp.arange(half) / half)
    shape = (x.shape[1], *(1,) * (x.ndim - 3), half)
    sin, cos = jnp.sin(angles).reshape(shape), jnp.cos(angles).reshape(shape)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _layer(x: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
    y = _rms(x, w["norm"])
    q = _rotated(jnp.einsum("btd,dkgw->btkgw", y, w["query"]))
    k = _rotated(jnp.einsum("btd,dkw->btkw", y, w["key"]))
    v = jnp.einsum("btd,dkw->btkw", y, w["value"])
    scores = jnp.einsum("btkgw,bskw->bkgts", q, k) * q.shape[-1] ** -0.5
    seen = jnp.tri(x.shape[1], dtype=bool)
    p = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    x = x + jnp.einsum("bkgts,bskw,kgwd->btd", p, v, w["output"])
    y = _rms(x, w["second_norm"])
    return x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]
