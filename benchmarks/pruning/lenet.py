"""LeNet (20, 50, 500) as a function of its parameters, of any widths: what it costs, and how channels are cut from it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ramda_jax as rj
from examples.models.convnet import ConvNet

Widths = tuple[int, int, int]
WIDTHS: Widths = (20, 50, 500)
EXAMPLE = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)


def first(seed: int, widths: Widths = WIDTHS) -> Any:
    """The parameters before training, a dictionary."""
    model = ConvNet(widths=widths[:2], hidden=widths[2], rngs=nnx.Rngs(seed))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def apply(params: Any, images: jax.Array) -> jax.Array:
    """(n, 28, 28, 1) -> logits, by XLA's convolutions: what is seen by `rj.network` and cut by `rj.compact`."""
    x = images
    for k in (0, 1):
        kernel, bias = params["convs"][k]["kernel"], params["convs"][k]["bias"]
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return _head(params, x.reshape(len(x), -1))


def _head(params: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return x @ params["output"]["kernel"] + params["output"]["bias"]


# The same function with a gradient that a CPU finds in half the time: XLA's convolutions there are slow backwards. Channels
# come first and examples last, so that the columns of a convolution are copies of long rows, and all else is one product.


def by_columns(params: Any, images: jax.Array) -> jax.Array:
    """`apply`, for training."""
    x = jnp.transpose(images, (3, 1, 2, 0))
    for k in (0, 1):
        x = _convolve(x, params["convs"][k]["kernel"])
        x = jax.nn.relu(x + params["convs"][k]["bias"][:, None, None, None])
        x = _apart(_pool(x))
    return _head(params, _apart(jnp.transpose(x, (3, 1, 2, 0)).reshape(len(images), -1)))


# Without it what comes before is computed once for each of the 25 places of a window.
_apart = jax.lax.optimization_barrier


def _pool(x: jax.Array) -> jax.Array:
    c, height, width, n = x.shape
    x = x.reshape(c, height // 2, 2, width // 2, 2, n)
    rows = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


def _columns(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(channels, height, width, examples) -> (places of the window and channels, all else)."""
    a, b = kernel.shape[:2]
    height, width = x.shape[1] - a + 1, x.shape[2] - b + 1
    places = [x[:, i : i + height, j : j + width] for i in range(a) for j in range(b)]
    return _apart(jnp.stack(places).reshape(kernel[..., 0].size, -1))


def _matrix(kernel: jax.Array) -> jax.Array:
    return kernel.reshape(-1, kernel.shape[-1])


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    columns = _columns(_apart(x), kernel)
    shape = (x.shape[1] - kernel.shape[0] + 1, x.shape[2] - kernel.shape[1] + 1, x.shape[3])
    return _apart(_matrix(kernel).T @ columns).reshape(-1, *shape), (columns, kernel)


def _backward(kept: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    columns, kernel = kept
    a, b, channels, made = kernel.shape
    grad = _apart(grad)
    height, width, n = grad.shape[1:]
    flat = grad.reshape(made, -1)
    of_columns = _apart(_matrix(kernel) @ flat).reshape(a, b, channels, height, width, n)
    of_x = jnp.zeros((channels, height + a - 1, width + b - 1, n), grad.dtype)
    for i in range(a):
        for j in range(b):
            of_x = of_x.at[:, i : i + height, j : j + width].add(of_columns[i, j])
    return _apart(of_x), (columns @ flat.T).reshape(kernel.shape)


_convolve = jax.custom_vjp(lambda x, kernel: _forward(x, kernel)[0])
_convolve.defvjp(_forward, _backward)


# What it costs.


def flops(widths: Sequence[float]) -> float:
    """Of one example, as `rj.compact(...).report()` counts."""
    first, second, hidden = widths
    return 2 * (
        24 * 24 * 25 * first + 64 * 25 * first * second + 16 * second * hidden + 10 * hidden
    )


def widths_of(params: Any) -> Widths:
    arrays = (params["convs"][0], params["convs"][1], params["hidden"])
    first, second, hidden = (x["bias"].shape[0] for x in arrays)
    return first, second, hidden


def even_widths(share: float, widths: Widths = WIDTHS) -> Widths:
    """Of layers that keep about the same share of their channels, with at most this share of the FLOPs of LeNet.

    The convolutions take a neighbouring whole number each, the hidden layer what is left; of the four choices that whose
    hidden layer is nearest to the common share.
    """
    budget = share * flops(WIDTHS)
    if flops(widths) <= budget:
        return widths
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if flops([middle * w for w in widths]) <= budget else (low, middle)
        )
    found = []
    for first in _neighbours(low * widths[0], widths[0]):
        for second in _neighbours(low * widths[1], widths[1]):
            left = budget - flops((first, second, 0))
            hidden = min(int(left / (2 * (16 * second + 10))), widths[2])
            if hidden > 0:
                found.append((abs(np.log(hidden / (low * widths[2]))), (first, second, hidden)))
    return min(found)[1]


def _neighbours(number: float, most: int) -> list[int]:
    return sorted({min(max(int(number) + k, 1), most) for k in (0, 1)})


# Channels and their norms.


def norms(params: Any) -> list[np.ndarray]:
    """Of every channel of the three spaces the norm of all that makes it or reads it, biases left out."""
    get = lambda *path: np.asarray(_at(params, path), np.float64)
    makers = [get("convs", 0, "kernel"), get("convs", 1, "kernel"), get("hidden", "kernel")]
    second = makers[1].shape[3]
    readers = [
        makers[1].transpose(2, 0, 1, 3),
        makers[2].reshape(-1, second, makers[2].shape[1]).transpose(1, 0, 2),
        get("output", "kernel"),
    ]
    squares = lambda x: np.sum(np.square(x.reshape(len(x), -1)), axis=1)
    pairs = zip(makers, readers, strict=True)
    return [np.sqrt(squares(np.moveaxis(m, -1, 0)) + squares(r)) for m, r in pairs]


def _at(tree: Any, path: Sequence[Any]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def smallest(params: Any, share: float, spread: str, min_alive: float) -> list[np.ndarray]:
    """Which channels to keep of each space, masks: the largest, until at most this share of LeNet's FLOPs is left.

    Args:
      spread: "layer": `even_widths`; "tree": by norms over the mean of their space, all in one order.
      min_alive: the share of each space that stays in any case ("tree").
    """
    found = norms(params)
    if spread == "layer":
        numbers = even_widths(share, widths_of(params))
        return [np.argsort(np.argsort(-x)) < n for x, n in zip(found, numbers, strict=True)]
    masks = [np.ones(len(x), bool) for x in found]
    least = [int(np.ceil(min_alive * w)) for w in WIDTHS]
    order = [(x[i] / x.mean(), k, i) for k, x in enumerate(found) for i in range(len(x))]
    for _, k, i in sorted(order):
        if flops([int(m.sum()) for m in masks]) <= share * flops(WIDTHS):
            break
        if masks[k].sum() > least[k]:
            masks[k][i] = False
    return masks


def without(params: Any, masks: Sequence[np.ndarray]) -> Any:
    """The parameters with zeros in all that reads a channel that is not kept."""
    first, second, hidden = map(jnp.asarray, masks)
    new = jax.tree.map(lambda x: x, params)
    new["convs"][1]["kernel"] = new["convs"][1]["kernel"] * first[:, None]
    rows = jnp.tile(second, new["hidden"]["kernel"].shape[0] // len(second))
    new["hidden"]["kernel"] = new["hidden"]["kernel"] * rows[:, None]
    new["output"]["kernel"] = new["output"]["kernel"] * hidden[:, None]
    return new


def cut(params: Any) -> tuple[Any, int]:
    """(the parameters without what is zero, the FLOPs that are left), by `rj.compact`."""
    small = rj.compact(apply, params, EXAMPLE, low_rank=False)
    return small.params, small.report().flops
