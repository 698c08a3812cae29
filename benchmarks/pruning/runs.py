"""LeNet on Fashion-MNIST with a part of its FLOPs: by targets, and by pruning; so many epochs all in.

Every method has two phases. In the first, of `until` epochs, the whole network is trained and channels are chosen; then
what is zero is cut out by `rj.compact`, and what is left is trained by AdamW, with a rate that falls to zero
along a cosine, for the epochs that remain. The methods differ in the first phase:

  ramda, rmda, prox_adamw   group lasso of channels (`net.channels`) with a target that grows and settles
  one-shot                  AdamW, then the channels of smallest norm go
  gradual                   AdamW, and channels of smallest norm go after every epoch, along a cubic
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

import ramda_jax as rj
from benchmarks.pruning import lenet
from benchmarks.pruning.train import Data, accuracy, on_device, steps_of, train
from examples.data.base import Split
from examples.data.idx import FashionMnist

BATCH, EPOCHS = 128, 6
DENSE_RATE, FINE_RATE = 1e-3, 2e-3
RATES = {"ramda": 2e-2, "rmda": 0.5, "prox_adamw": 1e-3}
# No convolution with one channel, or none: "tree" only.
MIN_ALIVE = 0.05


@dataclass(frozen=True)
class Choice:
    """What a search chooses.

    Attributes:
        spread: "layer": all layers keep about the same share of their channels (`lenet.even_widths`); "tree": one order of
            all channels.
        until: epochs of the first phase.
    """

    spread: str
    until: int

    def __str__(self) -> str:
        return f"{self.spread}-{self.until}"


CHOICES = tuple(Choice(spread, until) for spread in ("layer", "tree") for until in (2, 3))
METHODS = ("ramda", "one-shot", "gradual", "rmda", "prox_adamw")


@dataclass(frozen=True)
class Setting:
    """What all methods have in common.

    Attributes:
        share: of the FLOPs, at most, that is left.
        seed: of the parameters before training and of the order of the examples.
        split: "test", or "valid": the last 10,000 training images, which are then not trained on.
        limit: train on so many images, from the first; 0: on all.
        epochs: all in.
    """

    share: float
    seed: int
    split: Split = "test"
    limit: int = 0
    epochs: int = EPOCHS


@functools.lru_cache(2)
def load(split: Split, limit: int) -> Data:
    return on_device(FashionMnist(images=True, train_limit=limit, split=split)(None))


def run(method: str, choice: Choice, setting: Setting) -> dict[str, Any]:
    """One run: accuracy and FLOPs of what is left, and the accuracy before it was trained further."""
    data = load(setting.split, setting.limit)
    if method == "gradual":
        params = by_steps(choice, setting, data)
    elif method == "one-shot":
        dense = by_adamw(setting.split, setting.limit, setting.seed, choice.until)
        masks = lenet.smallest(dense, setting.share, choice.spread, MIN_ALIVE)
        params, _ = lenet.cut(lenet.without(dense, masks))
    else:
        params = by_target(method, choice, setting, data)
    params, flops = lenet.cut(params)
    before = accuracy(lenet.apply, params, data)
    params = fine_tuned(params, choice.until, setting, data)
    return {
        "accuracy": accuracy(lenet.apply, params, data),
        "accuracy before the second phase": before,
        "share of FLOPs": flops / lenet.flops(lenet.WIDTHS),
        "widths": lenet.widths_of(params),
    }


def by_target(method: str, choice: Choice, setting: Setting, data: Data) -> Any:
    """The point to deploy at the end of the first phase, with its zeros."""
    total = choice.until * steps_of(data, BATCH)
    tx = transformation(method, choice.spread, setting.share, total)
    first = lenet.first(setting.seed)
    params, state, _ = _train(tx, first, data, setting.seed, range(choice.until))
    return jax.jit(rj.structured_params)(state, params)


def transformation(
    method: str, spread: str, share: float, total: int
) -> optax.GradientTransformation:
    """A method with its target, for so many steps."""
    rate = RATES[method]
    averages = method != "prox_adamw"
    schedule: dict[str, Any] = {"learning_rate": rate}
    if averages:
        schedule = {**rj.stages(rate, total, 2)}
    # Where the second of two stages starts, for those without stages, too.
    settle = 7 * total // 10
    network = rj.network(lenet.apply, lenet.first(0), lenet.EXAMPLE)

    def channels(fraction: float, **options: Any) -> Any:
        target = rj.TargetSparsity(fraction, ramp=8 * settle // 10, settle_step=settle, **options)
        return network.channels(rj.GroupLasso(target))

    if spread == "tree":
        regularizer = channels(1 - share, of="flops", scope="tree", min_alive=MIN_ALIVE)
    else:
        readers = ("convs/1/kernel", "hidden/kernel", "output/kernel")
        pairs = zip(lenet.even_widths(share), lenet.WIDTHS, strict=True)
        rules = [(path, channels(1 - n / w)) for path, (n, w) in zip(readers, pairs, strict=True)]
        regularizer = rj.by_path([*rules, (".*", None)])
    return getattr(rj, method)(regularizer=regularizer, **schedule)


@functools.lru_cache(2)
def by_adamw(split: Split, limit: int, seed: int, epochs: int) -> Any:
    """The whole network after so many epochs: what one-shot pruning at any target starts from."""
    data = load(split, limit)
    tx = optax.adamw(DENSE_RATE)
    return _train(tx, lenet.first(seed), data, seed, range(epochs))[0]


def by_steps(choice: Choice, setting: Setting, data: Data) -> Any:
    """Channels go after every epoch of the first phase; what is left is trained on by a new AdamW."""
    params = lenet.first(setting.seed)
    for k in range(choice.until):
        params = _train(optax.adamw(DENSE_RATE), params, data, setting.seed, range(k, k + 1))[0]
        left = (1 - (k + 1) / choice.until) ** 3
        share = setting.share + (1 - setting.share) * left
        masks = lenet.smallest(params, share, choice.spread, MIN_ALIVE)
        params, _ = lenet.cut(lenet.without(params, masks))
    return params


def fine_tuned(params: Any, until: int, setting: Setting, data: Data) -> Any:
    """After the epochs that remain."""
    if until == setting.epochs:
        return params
    steps = (setting.epochs - until) * steps_of(data, BATCH)
    tx = optax.adamw(optax.cosine_decay_schedule(FINE_RATE, steps))
    return _train(tx, params, data, setting.seed, range(until, setting.epochs))[0]


def dense(widths: lenet.Widths, setting: Setting) -> dict[str, Any]:
    """A network of these widths trained from its start by AdamW."""
    data = load(setting.split, setting.limit)
    params = fine_tuned(lenet.first(setting.seed, widths), 0, setting, data)
    return {
        "accuracy": accuracy(lenet.apply, params, data),
        "share of FLOPs": lenet.flops(widths) / lenet.flops(lenet.WIDTHS),
        "widths": widths,
    }


def _train(
    tx: optax.GradientTransformation, params: Any, data: Data, seed: int, epochs: range
) -> tuple[Any, Any, list[Any]]:
    params = jax.tree.map(jnp.asarray, params)
    return train(lenet.by_columns, tx, params, data, BATCH, seed, epochs)
