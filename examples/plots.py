"""The pictures: curves of one run, and of several side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator, PercentFormatter

from examples.loop import Fit, Row
from examples.recipe import Recipe, Run

# Colours that stay apart for colour-blind readers (Okabe and Ito).
WEIGHTS, MINIMIZER, STRUCTURED = "#0072B2", "#D55E00", "#009E73"
METHOD_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
# Dashes for ProxSSI, so that a curve which coincides with it still shows; dots for the dense ones.
METHOD_LINES: tuple[Any, ...] = ("-", "-", "-", "-", (0, (2, 2)), (0, (1, 1)), (0, (1, 1)))
_BLANK = "0.95"
# Gaps below this are noise of the float32 objective.
_SMALLEST_GAP = 1e-6


def plot_run(path: Path, run: Run, fit: Fit) -> None:
    """Objective, headline metric and structure of W, of What and of the point to deploy, and the
    picture of the latter.
    """
    recipe = run.recipe
    figure = Figure(figsize=(9, 6.6), dpi=130, layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    metric, sparsity = recipe.headline, recipe.sparsity[0]
    names = ("objective", f"test_{metric}", sparsity)
    lowest = _lowest_objective([fit])
    for ax, name in zip(axes, names, strict=False):
        offset = lowest if name == "objective" else 0.0
        _curve(
            ax,
            fit.rows,
            f"minimizer_{name}",
            offset,
            label="minimiser Ŵ",
            color=MINIMIZER,
        )
        if name != "objective":
            _curve(ax, fit.rows, f"structured_{name}", 0.0, label="to deploy", color=STRUCTURED)
        _curve(ax, fit.rows, name, offset, label="training iterate W", color=WEIGHTS)
        _epochs_axis(ax, run)
    _objective_axis(axes[0])
    _metric_axis(axes[1], f"test {metric}")
    _sparsity_axis(axes[2], recipe)
    axes[2].legend(loc="center", bbox_to_anchor=(0.5, 0.35), frameon=False)
    if recipe.picture:
        _picture(axes[3], recipe.picture(fit.structured), "inputs kept")
    else:
        axes[3].set_axis_off()
    figure.suptitle(f"{run.optimizer}: {recipe.title}")
    figure.savefig(path)


def plot_comparison(path: Path, fits: Sequence[tuple[Run, Fit]]) -> None:
    """The same curves for several methods, and the picture of what each would deploy."""
    first = fits[0][0]
    recipe = first.recipe
    figure = Figure(figsize=(10, 9 if recipe.picture else 6.6), dpi=130, layout="constrained")
    curves: FigureBase = figure
    if recipe.picture:
        grid = figure.subfigures(2, 1, squeeze=False, height_ratios=(6.6, 2.4))
        curves, below = grid[:, 0]
        pictures = below.subplots(1, len(fits), squeeze=False)[0]
        for ax, (run, fit) in zip(pictures, fits, strict=True):
            _picture(ax, recipe.picture(fit.structured), f"{run.optimizer}\n")
    axes = curves.subplots(2, 2).ravel()
    metric, sparsity = recipe.headline, recipe.sparsity[0]
    lowest = _lowest_objective([fit for _, fit in fits])
    for ax, name in zip(
        axes, ("objective", f"test_{metric}", sparsity, f"structured_{sparsity}"), strict=True
    ):
        offset = lowest if name == "objective" else 0.0
        for index, (run, fit) in enumerate(fits):
            _curve(ax, fit.rows, name, offset, label=run.optimizer, **_method_style(index))
        _epochs_axis(ax, first)
    _objective_axis(axes[0], " of W")
    _metric_axis(axes[1], f"test {metric} of W")
    _sparsity_axis(axes[2], recipe, " of W")
    _sparsity_axis(axes[3], recipe, " of what to deploy")
    axes[2].legend(loc="upper left", ncols=2, frameon=False)
    figure.suptitle(recipe.title)
    figure.savefig(path)


def plot_over_seeds(folder: Path, fits: Sequence[tuple[Run, Sequence[Fit]]]) -> None:
    """`metric.png` and `structure.png`: mean over seeds and the range they span, per epoch."""
    first = fits[0][0]
    recipe = first.recipe
    sparsity = recipe.sparsity[0]
    for file, name, title in (
        ("metric.png", f"test_{recipe.headline}", f"test {recipe.headline}"),
        ("structure.png", sparsity, sparsity.replace("_", " ")),
    ):
        figure = Figure(figsize=(13, 4), dpi=130, layout="constrained")
        axes = figure.subplots(1, 3, sharey=True)
        points = (("", "W"), ("minimizer_", "Ŵ"), ("structured_", "what to deploy"))
        for ax, (prefix, point) in zip(axes, points, strict=True):
            for index, (run, seeds) in enumerate(fits):
                _band(ax, seeds, prefix + name, run.optimizer, index)
            _epochs_axis(ax, first)
            if name == sparsity:
                _sparsity_axis(ax, recipe)
            else:
                _metric_axis(ax, title)
            ax.set_title(f"{title} of {point}")
        axes[0].legend(loc="best", ncols=2, frameon=False)
        figure.suptitle(f"{recipe.title}, {len(fits[0][1])} seed(s)")
        figure.savefig(folder / file)


def plot_path(path: Path, recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> None:
    """The compact model's metric against structure, and against the share of FLOPs that is left."""
    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    metric, (sparsity, label) = recipe.headline, recipe.sparsity
    done = [row for row in rows if "flops" in row]
    values = [row[f"compact_test_{metric}"] for row in done]
    structure = [row[f"structured_{sparsity}"] for row in done]
    left = [row["flops"] / row["whole_flops"] for row in done]
    for ax, x, title in zip(
        figure.subplots(1, 2), (structure, left), (label, "FLOPs left"), strict=True
    ):
        ax.plot(x, values, "o-", color=STRUCTURED)
        for row, a, b in zip(done, x, values, strict=True):
            ax.annotate(f"{row['strength']:g}", (a, b), textcoords="offset points", xytext=(4, 4))
        ax.set_xlabel(title)
        ax.set_ylabel(f"test {metric}")
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.grid(alpha=0.3)
    figure.suptitle(f"{recipe.title}: a path of strengths")
    figure.savefig(path)


def plot_alignment(path: Path, weights: np.ndarray, text: str, title: str) -> None:
    """Attention weights (frames, symbols): what was read when; good speech is a rising line."""
    figure = Figure(figsize=(6, 4.5), dpi=130, layout="constrained")
    ax = figure.subplots()
    ax.imshow(weights.T, origin="lower", aspect="auto", cmap="viridis", interpolation="nearest")
    if len(text) <= 60:
        ax.set_yticks(range(len(text)), text)
    ax.set_xlabel("frame")
    ax.set_ylabel("symbol")
    ax.set_title(title)
    figure.savefig(path)


def _band(ax: Axes, fits: Sequence[Fit], name: str, label: str, index: int) -> None:
    """Mean of a figure over the seeds, as far as all of them got, and the range around it."""
    length = min(len(fit.rows) for fit in fits)
    epochs = [row["epoch"] for row in fits[0].rows[:length]]
    heights = np.array([[row[name] for row in fit.rows[:length]] for fit in fits])
    style = _method_style(index)
    ax.plot(epochs, heights.mean(axis=0), linewidth=1.3, label=label, **style)
    if len(fits) > 1:
        low, high = heights.min(axis=0), heights.max(axis=0)
        ax.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _method_style(index: int) -> dict[str, Any]:
    """The first method of a recipe is on top."""
    return {
        "color": METHOD_COLORS[index % len(METHOD_COLORS)],
        "linestyle": METHOD_LINES[index % len(METHOD_LINES)],
        "zorder": 2 if index else 3,
    }


def _curve(ax: Axes, rows: Sequence[Row], name: str, offset: float, **style: Any) -> None:
    heights = np.array([row[name] for row in rows]) - offset
    ax.plot([row["epoch"] for row in rows], heights, linewidth=1.3, **style)


def _lowest_objective(fits: Sequence[Fit]) -> float:
    return min(
        row[name]
        for fit in fits
        for row in fit.rows
        for name in ("objective", "minimizer_objective")
    )


def _epochs_axis(ax: Axes, run: Run) -> None:
    """Marks where stages begin, and what all curves share."""
    for epoch in run.settings.stages:
        if epoch < run.settings.epochs:
            ax.axvline(epoch, color="0.88", linewidth=0.8, zorder=0)
    ax.set_xlim(0, run.settings.epochs)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_xlabel("epoch")
    ax.spines[["top", "right"]].set_visible(False)


def _objective_axis(ax: Axes, suffix: str = "") -> None:
    if any(np.any(curve > 0) for curve in _curves(ax)):  # a single epoch is the lowest reached
        ax.set_yscale("log", nonpositive="mask")
        ax.set_ylim(bottom=max(_SMALLEST_GAP, ax.get_ylim()[0]))
    ax.set_title(f"training objective{suffix} minus lowest reached")


def _curves(ax: Axes) -> list[np.ndarray]:
    """What is drawn and has a name; not the marks of stages."""
    named = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
    return [np.asarray(line.get_ydata(), dtype=float) for line in named]


def _metric_axis(ax: Axes, title: str) -> None:
    """Leaves the first, steep epochs out of the range, so that the rest can be read."""
    settled = np.concatenate([curve[len(curve) // 20 :] for curve in _curves(ax)])
    settled = settled[np.isfinite(settled)]
    if settled.size:
        low, high = np.quantile(settled, 0.01), settled.max()
        margin = 0.05 * (high - low) + 1e-3
        ax.set_ylim(low - margin, high + margin)
    ax.set_title(title)


def _sparsity_axis(ax: Axes, recipe: Recipe, suffix: str = "") -> None:
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_title(recipe.sparsity[0].replace("_", " ") + suffix)


def _picture(ax: Axes, image: np.ndarray, title: str) -> None:
    """An image of group norms; groups that are exactly zero are blank."""
    kept = np.ma.masked_equal(image, 0)
    ax.set_facecolor(_BLANK)
    ax.imshow(kept, cmap="viridis", interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    joint = "" if title.endswith("\n") else ": "
    ax.set_title(f"{title}{joint}{kept.count()} of {image.size}")
