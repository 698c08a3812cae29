"""The pictures of docs/compaction.md, and the README's of sizes.

    python -m benchmarks.compaction_pictures [--out docs]

What goes is drawn of a small network that is compacted on the way; times and sizes are those of
examples/results/compaction.json, where the tables of both RESULTS.md come from, too.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import ramda_jax as rj
from examples.plots import STRUCTURED, WEIGHTS

RESULTS = Path("examples/results/compaction.json")
_FEW, _MANY, _ZERO, _OTHER = WEIGHTS, "#56B4E9", "#E5E5E5", "#009E73"
_KINDS = ("kept", "zero", "read by zeros only")


def block(params: Any, x: jax.Array) -> jax.Array:
    """A stream, a branch that is added to it, and a head."""
    stream = x @ params["embed"]
    stream = stream + jax.nn.relu(stream @ params["up"]) @ params["down"]
    return stream @ params["head"]


def zeros_and_kept() -> tuple[dict[str, Any], dict[str, Any]]:
    """(weights with zero inputs, what `rj.compact` has to leave of each: rows and columns)."""
    rng = np.random.default_rng(0)
    weights = {
        "embed": rng.normal(size=(6, 14)),
        "up": rng.normal(size=(14, 10)),
        "down": rng.normal(size=(10, 14)),
        "head": rng.normal(size=(14, 4)),
    }
    branch, hidden, head = np.arange(8), np.array([0, 2, 3, 6, 9]), np.arange(5, 12)
    for name, alive in (("up", branch), ("down", hidden), ("head", head)):
        dead = np.setdiff1d(np.arange(len(weights[name])), alive)
        weights[name][dead] = 0
    stream = np.union1d(branch, head)
    kept = {
        "embed": (np.arange(6), stream),
        "up": (branch, hidden),
        "down": (hidden, head),
        "head": (head, np.arange(4)),
    }
    return weights, kept


def picture_of_weights(path: Path) -> None:
    """Every weight before and after; what is drawn is checked against `rj.compact`."""
    weights, kept = zeros_and_kept()
    params = {name: np.asarray(w, np.float32) for name, w in weights.items()}
    widths = rj.compact(block, params, np.zeros((1, 6), np.float32)).widths()
    expected = {name: tuple(map(len, axes)) for name, axes in kept.items()}
    assert widths == expected, (widths, expected)
    figure = Figure(figsize=(9, 5.2), dpi=110, layout="constrained")
    rows = figure.subplots(2, 4, gridspec_kw={"height_ratios": [14, 8]})
    for (name, w), above, below in zip(weights.items(), *rows, strict=True):
        inside = np.zeros(w.shape, bool)
        inside[np.ix_(*kept[name])] = True
        kinds = np.where(inside, 0, np.where(w == 0, 1, 2))
        _matrix(above, kinds, f"{name} {w.shape[0]} x {w.shape[1]}")
        small = np.zeros(expected[name], int)
        _matrix(below, small, f"{small.shape[0]} x {small.shape[1]}")
        for ax in (above, below):
            ax.set_xlim(-0.5, 13.5)
        above.set_ylim(13.5, -0.5)
        below.set_ylim(8 - 0.5, -0.5)
    colors = (WEIGHTS, _ZERO, STRUCTURED)
    handles = [Patch(color=c, label=k) for c, k in zip(colors, _KINDS, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("relu(s @ up) @ down + s, with s = x @ embed, read by a head; rows are inputs")
    figure.savefig(path)


def _matrix(ax: Axes, kinds: np.ndarray, title: str) -> None:
    colors = ListedColormap([WEIGHTS, _ZERO, STRUCTURED])
    ax.imshow(kinds, cmap=colors, vmin=0, vmax=2, aspect="equal")
    ax.set_xticks(np.arange(-0.5, kinds.shape[1]), minor=True)
    ax.set_yticks(np.arange(-0.5, kinds.shape[0]), minor=True)
    ax.grid(which="minor", color="white", linewidth=0.8)
    ax.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    ax.set_title(title, fontsize=9, loc="left")
    for spine in ax.spines.values():
        spine.set_visible(False)


def picture_of_times(path: Path, trained: dict[str, Any]) -> None:
    """How many times fewer products, and how many times faster, of every trained model."""
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    ax = figure.subplots()
    place, width = np.arange(len(trained)), 0.2
    parts = [
        ("parameters", [m["parameters"]["ratio"] for m in trained.values()], _ZERO),
        ("products", [m["flops"]["ratio"] for m in trained.values()], STRUCTURED),
    ]
    bars: list[Any] = [(name, values, color, None) for name, values, color in parts]
    for k, color in enumerate((_FEW, _MANY)):
        found = [m["latency"][k] for m in trained.values()]
        middle = [f["ratio"]["median"] for f in found]
        low = [f["ratio"]["median"] - f["ratio"]["low"] for f in found]
        high = [f["ratio"]["high"] - f["ratio"]["median"] for f in found]
        bars.append((f"time, {found[0]['examples']} a call", middle, color, [low, high]))
    for k, (name, values, color, spread) in enumerate(bars):
        at = place + (k - 1.5) * width
        ax.bar(at, values, width, label=name, color=color, yerr=spread, ecolor="0.3")
        for x, value in zip(at, values, strict=True):
            ax.annotate(f"{value:.1f}", (x, value), ha="center", va="bottom", fontsize=7)
    ax.axhline(1, color="0.3", linewidth=0.6)
    _finish(ax, list(trained), "whole / compact")
    figure.savefig(path)


def picture_of_sizes(path: Path, trained: dict[str, Any]) -> None:
    """What is left of every trained model, and what that does to its results: the README's picture."""
    again = ("multiples", "statistics")  # the same models, compacted in another way
    plain = {name: m for name, m in trained.items() if not any(word in name for word in again)}
    figure = Figure(figsize=(9, 2.6), dpi=110, layout="constrained")
    ax = figure.subplots()
    place = np.arange(len(plain))[::-1]
    left = [100 / m["parameters"]["ratio"] for m in plain.values()]
    ax.barh(place, 100.0, 0.7, color=_ZERO, label="as trained, zeros included")
    ax.barh(place, left, 0.7, color=STRUCTURED, label="compact")
    for y, m in zip(place, plain.values(), strict=True):
        before, after = m["parameters"]["whole"], m["parameters"]["compact"]
        metric, digits = (
            ("accuracy", ".4f") if "accuracy" in m["figures"]["whole"] else ("perplexity", ".2f")
        )
        whole, compact = (m["figures"][point][metric] for point in ("whole", "compact"))
        text = f"{before:,} to {after:,}, test {metric} {whole:{digits}} and {compact:{digits}}"
        ax.annotate(text, (101, y), va="center", fontsize=8, annotation_clip=False)
    ax.set_yticks(place, list(plain), fontsize=8)
    ax.set_xlim(0, 160)
    ax.set_xticks(range(0, 101, 25))
    ax.set_xlabel("% of the parameters", loc="left", fontsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path)


def picture_of_coupled(path: Path, sides: dict[str, Any]) -> None:
    """Parameters left of the same zeros."""
    figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
    ax = figure.subplots()
    place, width = np.arange(len(sides)), 0.35
    for k, (by, color) in enumerate((("rj.compact", WEIGHTS), ("Torch-Pruning", _OTHER))):
        left = [100 * s[by]["parameters"] / s["parameters"] for s in sides.values()]
        bars = ax.bar(place + (k - 0.5) * width, left, width, label=by, color=color)
        ax.bar_label(bars, fmt="%.0f%%", fontsize=8)
    _finish(ax, list(sides), "% of the parameters left")
    figure.savefig(path)


def _finish(ax: Axes, names: list[str], label: str) -> None:
    ax.set_xticks(np.arange(len(names)), [name.replace(", ", "\n") for name in names], fontsize=8)
    ax.set_ylabel(label)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text())
    picture_of_weights(args.out / "compaction-weights.png")
    picture_of_times(args.out / "compaction-times.png", results["trained"])
    picture_of_sizes(args.out / "sizes.png", results["trained"])
    picture_of_coupled(args.out / "compaction-coupled.png", results["side_by_side"])


if __name__ == "__main__":
    main()
