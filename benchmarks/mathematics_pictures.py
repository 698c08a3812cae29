"""The picture of docs/mathematics.md: the equation behind a group norm in a diagonal metric.

python -m benchmarks.mathematics_pictures [--out docs]
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from examples.plots import STRUCTURED, WEIGHTS

# One group of four entries: b, and a metric D of which no multiple of the identity is near.
B = np.array([1.0, -0.8, 1.5, 0.6])
D = np.array([0.05, 0.3, 2.0, 8.0])


def h(r: float, strength: float) -> float:
    """1 / phi(r); the minimiser's norm r is where this is 1."""
    return float(1 / np.linalg.norm(B / (D * r + strength)))


def slope(r: float, strength: float) -> float:
    y = B / (D * r + strength)
    return float(h(r, strength) ** 3 * np.sum(y**2 * D / (D * r + strength)))


def newton(strength: float) -> list[float]:
    """The free start and the iterates to the root; [0] where the group is zero."""
    if np.linalg.norm(B) <= strength:
        return [0.0]
    found = [0.0]
    while len(found) < 2 or found[-1] - found[-2] > 1e-12 * found[-1]:
        r = found[-1]
        found.append(r + (1 - h(r, strength)) / slope(r, strength))
    return found[1:]


def picture(path: Path) -> None:
    """Newton's steps on h, and the norm of the minimiser over the strength."""
    figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    strength = 0.5
    found = newton(strength)
    last = found[-1]
    grid = np.linspace(0, 1.25 * last, 200)
    left.plot(grid, [h(r, strength) for r in grid], color=WEIGHTS, label="h(r), concave")
    left.axhline(1, color="gray", linewidth=0.8)
    for k, (r, after) in enumerate(zip([0.0, *found], found, strict=False)):
        left.plot([r, after], [h(r, strength), 1], color=STRUCTURED, linewidth=1)
        left.plot([after, after], [1, h(after, strength)], ":", color=STRUCTURED, linewidth=1)
        if k < 3:
            left.annotate(f"$r_{k}$", (after, 1), (0, 4), textcoords="offset points", ha="center")
    left.plot([], [], color=STRUCTURED, label="tangents: each ends below the root")
    left.set(xlabel="r, the norm of the group", ylabel="h", ylim=(0, 1.2), xlim=(0, grid[-1]))
    largest = np.linalg.norm(B)
    strengths = np.linspace(0.05, 1.2 * largest, 200)
    right.plot(strengths, [newton(s)[-1] for s in strengths], color=WEIGHTS)
    right.axvline(largest, color="gray", linewidth=0.8, linestyle=":")
    right.annotate(
        "||b||: zero from here on", (largest, 0), (-6, 60), textcoords="offset points", ha="right"
    )
    right.set(xlabel="l, the strength", ylabel="norm of the minimiser")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    picture(parser.parse_args().out / "mathematics-secular.png")


if __name__ == "__main__":
    main()
