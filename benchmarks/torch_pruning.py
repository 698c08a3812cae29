"""Cutting the same zeros out of the same networks: `rj.compact` and Torch-Pruning, side by side.

    python -m venv side && side/bin/pip install -e '.[examples]' torch torch-pruning
    side/bin/python -m benchmarks.torch_pruning [--networks lenet resnet] [--share 0.6] [--batches 1 128] [--multiple-of 8]

Torch and Torch-Pruning are nothing that this library needs. The networks are LeNet (20, 50, 500) and a ResNet of
bottlenecks with batch norms in evaluation, of the same weights and the same zeros in JAX and in Torch:

    coupled     whole channels: what reads one is zero, in all that read it
    branches    ResNet: inner channels as above; of what a branch adds to the stream, channels that die in this branch only
    inputs      inputs of each weight by itself, as training with `net.inputs` leaves them

Torch-Pruning finds what is coupled, and is told to remove every channel of which all readers, or all writers, are zero:
the most that it can remove without changing results. Each is compared with its own whole network: largest difference of
outputs over the largest output, parameters, seconds a call (whole and cut in turns; ratios are those of a turn).
"""

import argparse
import copy
import importlib.metadata
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ramda_jax as rj
from benchmarks import measure
from benchmarks.compaction import with_zeros
from examples.models.convnet import ConvNet
from examples.models.resnet import ResNet
from examples.timing import seconds_per_call

Params = dict[str, Any]


class Network(NamedTuple):
    """A network in both frameworks.

    Attributes:
      make: the module of Flax NNX.
      torch: of (the package torch, its parameters and statistics): the module of Torch.
      shape: of an input, channels last.
      zeros: names of the patterns.
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    torch: Callable[[Any, Params], Any]
    shape: tuple[int, ...]
    zeros: tuple[str, ...]


def torch_conv(torch: Any, weights: Params, stride: int = 1, padding: int = 0) -> Any:
    """A convolution of Torch with the weights of one of Flax."""
    kernel = np.asarray(weights["kernel"]).transpose(3, 2, 0, 1)
    made = torch.nn.Conv2d(
        kernel.shape[1],
        kernel.shape[0],
        kernel.shape[2:],
        stride,
        padding,
        bias="bias" in weights,
    )
    _fill(torch, made.weight, kernel)
    if "bias" in weights:
        _fill(torch, made.bias, weights["bias"])
    return made


def torch_linear(torch: Any, weights: Params) -> Any:
    kernel = np.asarray(weights["kernel"])
    made = torch.nn.Linear(*kernel.shape)
    _fill(torch, made.weight, kernel.T)
    _fill(torch, made.bias, weights["bias"])
    return made


def torch_conv_norm(torch: Any, weights: Params, stride: int) -> Any:
    """Convolution and batch norm, as `examples.models.layers.ConvNorm`."""
    conv, norm = weights["conv"], weights["norm"]
    made = torch.nn.BatchNorm2d(len(norm["scale"]), eps=1e-5)
    for array, name in (
        (made.weight, "scale"),
        (made.bias, "bias"),
        (made.running_mean, "mean"),
        (made.running_var, "var"),
    ):
        _fill(torch, array, norm[name])
    padding = conv["kernel"].shape[0] // 2
    return torch.nn.Sequential(torch_conv(torch, conv, stride, padding), made)


def _fill(torch: Any, tensor: Any, values: Any) -> None:
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.array(values)))


def torch_lenet(torch: Any, weights: Params) -> Any:
    """`examples.models.convnet.ConvNet`; what is flattened has channels first in Torch."""
    convs = [torch_conv(torch, weights["convs"][k]) for k in sorted(weights["convs"])]
    hidden = dict(weights["hidden"])
    side, channels = 4, convs[-1].out_channels
    kernel = np.asarray(hidden["kernel"]).reshape(side, side, channels, -1)
    hidden["kernel"] = kernel.transpose(2, 0, 1, 3).reshape(side * side * channels, -1)
    layers = []
    for conv in convs:
        layers += [conv, torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    dense = [torch_linear(torch, hidden), torch.nn.ReLU(), torch_linear(torch, weights["output"])]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), *dense)


def torch_resnet(torch: Any, weights: Params) -> Any:
    """`examples.models.resnet.ResNet` with the stem for small images."""

    class Block(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]  # torch may be missing
        def __init__(self, weights: Params, stride: int) -> None:
            super().__init__()
            self.reduce = torch_conv_norm(torch, weights["reduce"], 1)
            self.spatial = torch_conv_norm(torch, weights["spatial"], stride)
            self.expand = torch_conv_norm(torch, weights["expand"], 1)
            projection = weights.get("projection")
            self.projection = torch_conv_norm(torch, projection, stride) if projection else None

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.spatial(torch.relu(self.reduce(x))))
            shortcut = x if self.projection is None else self.projection(x)
            return torch.relu(self.expand(y) + shortcut)

    blocks = []
    for k in sorted(weights["stages"]):
        stage = weights["stages"][k]
        blocks += [Block(stage[j], 2 if k > 0 and j == 0 else 1) for j in sorted(stage)]
    return torch.nn.Sequential(
        torch_conv_norm(torch, weights["stem"], 1),
        torch.nn.ReLU(),
        *blocks,
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch_linear(torch, weights["dense"]),
    )


NETWORKS = {
    "lenet": Network(
        lambda rngs: ConvNet(10, widths=(20, 50), hidden=500, rngs=rngs),
        torch_lenet,
        (28, 28, 1),
        ("coupled", "inputs"),
    ),
    "resnet": Network(
        lambda rngs: ResNet(10, blocks=(2, 2, 2, 2), width=32, rngs=rngs),
        torch_resnet,
        (32, 32, 3),
        ("coupled", "branches", "inputs"),
    ),
}


def with_random_statistics(state: Any) -> Any:
    """Batch statistics, scales and shifts other than the first ones."""
    rng = np.random.default_rng(1)
    draw = lambda x, low, high: jnp.asarray(rng.uniform(low, high, x.shape), jnp.float32)

    def leaf(path: Any, x: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if "norm" not in name:
            return x
        return draw(x, 0.5, 1.5) if "var" in name or "scale" in name else draw(x, -0.2, 0.2)

    return jax.tree_util.tree_map_with_path(leaf, state)


def with_pattern(name: str, net: rj.Network, params: Any, share: float) -> Any:
    if name == "inputs":
        return with_zeros(net.inputs(rj.GroupLasso(1.0)), params, share)
    if name == "coupled":
        return with_zeros(net.channels(rj.GroupLasso(1.0)), params, share)
    return with_dead_branches(params, share)


def with_dead_branches(params: Any, share: float) -> Any:
    """What makes a share of the channels that each branch adds, and what reads a share of the inner ones, set to zero.

    A channel that a branch makes is zero where its kernel's slice and its norm's scale and shift are.
    """
    rng = np.random.default_rng(0)
    weights: Any = nnx.to_pure_dict(params)
    branches = [weights["stem"]]
    for stage in weights["stages"].values():
        for block in stage.values():
            branches += [block[k] for k in ("expand", "projection") if k in block]
            for reader in ("spatial", "expand"):
                kernel = block[reader]["conv"]["kernel"]
                dead = rng.random(kernel.shape[2]) < share
                block[reader]["conv"]["kernel"] = jnp.where(dead[:, None], 0.0, kernel)
    for branch in branches:
        alive = rng.random(len(branch["norm"]["scale"])) >= share
        branch["conv"]["kernel"] = branch["conv"]["kernel"] * alive
        branch["norm"] = {k: x * alive for k, x in branch["norm"].items()}
    found = jax.tree.map(lambda x: x, params)
    nnx.replace_by_pure_dict(found, weights)
    return found


def remove_coupled(torch: Any, tp: Any, model: Any, example: Any, output: Any) -> Any:
    """A copy of a model without the coupled channels of which all readers, or all writers, are zero.

    Args:
      output: of its modules, that which makes the result.
    """
    places = dict(model.named_modules())
    last = next(name for name, module in places.items() if module is output)
    model = copy.deepcopy(model)
    output = dict(model.named_modules())[last]
    removed = True
    while removed:
        removed = False
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
        for group in list(graph.get_all_groups(ignored_layers=[output])):
            root, prune = group[0].dep.target.module, group[0].dep.handler
            size = graph.get_out_channels(root)
            group = graph.get_pruning_group(root, prune, list(range(size)))  # others have changed
            dead = dead_channels(torch, graph, group, size)[: size - 1]  # one has to stay
            if dead:
                graph.get_pruning_group(root, prune, dead).prune()
                removed = True
    return model


def dead_channels(torch: Any, graph: Any, group: Any, size: int) -> list[int]:
    """Channels of a group whose readers are all zero, or whose writers, each with its norm, are."""
    read, written = np.zeros(size, bool), np.zeros(size, bool)
    norms: list[Any] = []
    for item in group:
        layer, roots = item.dep.target.module, np.asarray(item.root_idxs)
        if isinstance(layer, torch.nn.BatchNorm2d):
            # Its scale and shift decide, whatever is before it.
            norms.append(layer)
            made = (layer.weight != 0) | (layer.bias != 0)
            np.logical_or.at(written, roots, made.numpy()[item.idxs])
        elif not isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            continue
        elif graph.is_in_channel_pruning_fn(item.dep.handler):
            others = [d for d in range(layer.weight.ndim) if d != 1]
            np.logical_or.at(read, roots, (layer.weight != 0).amax(others).numpy()[item.idxs])
    if not norms:
        written[:] = True  # biases make something of nothing
    return [int(k) for k in np.flatnonzero(~read | ~written)]


class Cut(NamedTuple):
    """A network cut by one framework.

    Attributes:
      parameters: before and after.
      products: before over after, of one example.
      calls: whole and cut, of a batch with channels last; each waits for its result.
    """

    parameters: tuple[int, int]
    products: float
    calls: Sequence[Callable[[Any], np.ndarray]]


def by_compact(apply: Callable[..., Any], params: Any, example: Any, multiple_of: int) -> Cut:
    small = rj.compact(apply, params, example, multiple_of=multiple_of)
    report = small.report()
    whole, cut = jax.jit(apply), jax.jit(small.apply)
    calls = (
        lambda x: np.asarray(whole(params, x)),
        lambda x: np.asarray(cut(small.params, x)),
    )
    products = report.flops_before / report.flops
    return Cut((report.parameters_before, report.parameters), products, calls)


def by_torch_pruning(torch: Any, tp: Any, model: Any, example: Any) -> Cut:
    first = lambda x: torch.from_numpy(np.array(np.moveaxis(x, -1, 1)))
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    model.eval()
    small = remove_coupled(torch, tp, model, first(example), linear[-1]).eval()
    count = lambda m: sum(p.numel() for p in m.parameters())

    def call(m: Any) -> Callable[[Any], np.ndarray]:
        kept: dict[int, Any] = {}

        def run(x: Any) -> np.ndarray:
            # The layout is changed once, outside of what is measured: batches are of the same examples.
            if len(x) not in kept:
                kept[len(x)] = first(x)
            with torch.inference_mode():
                return m(kept[len(x)]).numpy()

        return run

    before, after = (tp.utils.count_ops_and_params(m, first(example))[0] for m in (model, small))
    return Cut((count(model), count(small)), before / after, (call(model), call(small)))


def row(name: str, cut: Cut, x: Any, turns: int) -> list[str]:
    """Exactness and time with one batch."""
    whole, small = (call(x) for call in cut.calls)
    error = np.max(np.abs(whole - small)) / np.max(np.abs(whole))
    times = [[seconds_per_call(call, x) for call in cut.calls] for _ in range(turns)]
    ratio = measure.times(measure.spread([a / b for a, b in times]))
    both = [1e3 * statistics.median(part) for part in zip(*times, strict=True)]
    before, after = cut.parameters
    left = f"{before:,} -> {after:,} ({after / before:.1%})"
    products = f"{cut.products:.2f}"
    milliseconds = " -> ".join(f"{t:.2f}" for t in both)
    return [name, left, products, f"{error:.0e}", str(len(x)), milliseconds, ratio]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 128])
    parser.add_argument("--multiple-of", type=int, default=1, help="widths of rj.compact")
    parser.add_argument("--turns", type=int, default=11)
    args = parser.parse_args()
    torch, tp = _packages()
    versions = {n: importlib.metadata.version(n) for n in ("jax", "torch", "torch-pruning")}
    print(", ".join(f"{name} {number}" for name, number in versions.items()), end="; ")
    kind, threads = jax.devices()[0].device_kind, torch.get_num_threads()
    print(f"{kind}, {threads} threads of Torch; {args.share:.0%} zero")
    words = ["network", "zeros", "by", "parameters", "products, before / after"]
    words += ["error", "batch", "ms", "time, before / after"]
    print(f"| {' | '.join(words)} |\n|{' --- |' * len(words)}")
    for name in args.networks:
        network = NETWORKS[name]
        model = network.make(nnx.Rngs(0))
        model.eval()
        graph, *states = nnx.split(model, nnx.Param, ...)
        params, rest = map(with_random_statistics, states)
        apply = lambda p, x, graph=graph, rest=rest: nnx.merge(graph, p, rest)(x)
        rng, shape = np.random.default_rng(0), network.shape
        examples = rng.normal(size=(max([8, *args.batches]), *shape)).astype(np.float32)
        net = rj.network(apply, params, examples[:1])
        for pattern in network.zeros:
            sparse = with_pattern(pattern, net, params, args.share)
            merged = nnx.to_pure_dict(nnx.state(nnx.merge(graph, sparse, rest)))
            theirs = network.torch(torch, merged)
            cuts = {
                "rj.compact": by_compact(apply, sparse, examples[:1], args.multiple_of),
                "Torch-Pruning": by_torch_pruning(torch, tp, theirs, examples[:1]),
            }
            x = examples[:8]
            ours, other = (cut.calls[0](x) for cut in cuts.values())
            apart = np.max(np.abs(ours - other)) / np.max(np.abs(ours))
            if not apart < 1e-4:
                raise SystemExit(f"the whole networks differ by {apart:.1e}: not the same weights")
            for by, cut in cuts.items():
                for size in args.batches:
                    cells = row(by, cut, examples[:size], args.turns)
                    print(f"| {' | '.join([name, pattern, *cells])} |", flush=True)


def _packages() -> tuple[Any, Any]:
    try:
        # Types are checked where neither is installed.
        import torch  # type: ignore[import-not-found, unused-ignore]
        import torch_pruning  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise SystemExit(f"{error}: pip install torch torch-pruning") from None
    return torch, torch_pruning


if __name__ == "__main__":
    main()
