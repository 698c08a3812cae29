"""The pictures: curves of one run, and of several side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator, PercentFormatter

from examples.loop import Fit, Row
from examples.recipe import Recipe, Run

# Colours that stay apart for colour-blind readers (Okabe and Ito).
WEIGHTS, STRUCTURED = "#0072B2", "#D55E00"
METHOD_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#000000")
# Dashes for the last, so that a curve which coincides with it still shows.
METHOD_LINES: tuple[Any, ...] = ("-", "-", "-", "-", (0, (2, 2)))
_BLANK = "0.95"
# Gaps below this are noise of the float32 objective.
_SMALLEST_GAP = 1e-6


def plot_run(path: Path, run: Run, fit: Fit) -> None:
    """Objective, headline metric and structure of W and of What, and the picture of What."""
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
            f"structured_{name}",
            offset,
            label="structured iterate Ŵ",
            color=STRUCTURED,
        )
        _curve(ax, fit.rows, name, offset, label="training iterate W", color=WEIGHTS)
        _epochs_axis(ax, run)
    _objective_axis(axes[0])
    _metric_axis(axes[1], f"test {metric}")
    _sparsity_axis(axes[2], recipe)
    axes[2].legend(loc="center", bbox_to_anchor=(0.5, 0.35), frameon=False)
    if recipe.picture:
        _picture(axes[3], recipe.picture(fit.structured), "inputs kept by Ŵ")
    else:
        axes[3].set_axis_off()
    figure.suptitle(f"{run.optimizer}: {recipe.title}")
    figure.savefig(path)


def plot_comparison(path: Path, fits: Sequence[tuple[Run, Fit]]) -> None:
    """The same curves for several methods, and the picture of each one's What."""
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
            style = {"color": METHOD_COLORS[index % 5], "linestyle": METHOD_LINES[index % 5]}
            # The first method of a recipe is on top.
            _curve(
                ax, fit.rows, name, offset, label=run.optimizer, zorder=2 if index else 3, **style
            )
        _epochs_axis(ax, first)
    _objective_axis(axes[0], " of W")
    _metric_axis(axes[1], f"test {metric} of W")
    _sparsity_axis(axes[2], recipe, " of W")
    _sparsity_axis(axes[3], recipe, " of Ŵ")
    axes[2].legend(loc="upper left", ncols=2, frameon=False)
    figure.suptitle(recipe.title)
    figure.savefig(path)


def _curve(ax: Axes, rows: Sequence[Row], name: str, offset: float, **style: Any) -> None:
    heights = np.array([row[name] for row in rows]) - offset
    ax.plot([row["epoch"] for row in rows], heights, linewidth=1.3, **style)


def _lowest_objective(fits: Sequence[Fit]) -> float:
    return min(
        row[name]
        for fit in fits
        for row in fit.rows
        for name in ("objective", "structured_objective")
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
    ax.set_yscale("log", nonpositive="mask")
    ax.set_ylim(bottom=max(_SMALLEST_GAP, ax.get_ylim()[0]))
    ax.set_title(f"training objective{suffix} minus lowest reached")


def _metric_axis(ax: Axes, title: str) -> None:
    """Leaves the first, steep epochs out of the range, so that the rest can be read."""
    curves = [
        np.asarray(line.get_ydata(), dtype=float)
        for line in ax.lines
        if not str(line.get_label()).startswith("_")
    ]
    settled = np.concatenate([curve[len(curve) // 20 :] for curve in curves])
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
