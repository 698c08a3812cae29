"""What targets give: whether they find the right inputs, how they settle, and accuracy against FLOPs beside pruning.

    python -m benchmarks.pruning --out FOLDER [--parts identify settle lenet] [--search] [--seeds 3] [--shares 0.2 0.05 0.5]

Every run leaves a file in FOLDER, and is not run again where that is: a command that was stopped goes on where it was.
`--tables` runs nothing, and prints what is there. The parts are `benchmarks.pruning.identify`, `.settle` and `.runs`.

Budget of `lenet`, fixed beforehand: 75 minutes of one core for the search and three seeds of all methods, each of which
has six epochs all in. The search is the same for each: the four `CHOICES`, at seed 0 and 20 % of the FLOPs, on the first
20,000 training images, judged on the last 10,000. Without --search all methods take the same choice, the first. On one
core:

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 1 python -m benchmarks.pruning --out FOLDER
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pruning import identify, lenet, runs, settle
from benchmarks.pruning.results import kept, present

SEARCH = functools.partial(runs.Setting, 0.2, 0, "valid", 20_000)
# Means of three seeds on this network and data, AdamW 1e-3, four epochs of sparse training with Torch-Pruning's group-norm
# pruner and two of fine-tuning; measured before this command was written, which does not run it.
TORCH_PRUNING = {0.5: 0.901, 0.2: 0.888, 0.05: 0.850}
TORCH_DENSE = 0.907

Job = tuple[str, Callable[[], dict[str, Any]]]
Found = Callable[[str], dict[str, Any] | None]


def identify_jobs(seeds: int) -> Iterable[Job]:
    for seed in range(seeds):
        for name in ("target", "constant"):
            yield f"identify-{name}-{seed}", functools.partial(identify.run, name == "target", seed)


def settle_jobs(seeds: int) -> Iterable[Job]:
    for seed in range(seeds):
        for case in settle.CASES:
            yield f"settle-{_plain(case)}-{seed}", functools.partial(settle.run, case, seed)


def _plain(text: str) -> str:
    return text.replace(" %", "").replace(", ", "-").replace(" ", "-")


def search_jobs(methods: Sequence[str]) -> Iterable[Job]:
    for choice in runs.CHOICES:
        for method in methods:
            yield _search(method, choice), functools.partial(runs.run, method, choice, SEARCH())


def _search(method: str, choice: runs.Choice) -> str:
    return f"search-{method}-{choice}"


def chosen(found: Found, method: str) -> runs.Choice:
    """The best by the search; where there was none, that which all take."""
    trials = {choice: found(_search(method, choice)) for choice in runs.CHOICES}
    complete = {choice: trial for choice, trial in trials.items() if trial is not None}
    if len(complete) < len(trials):
        return runs.CHOICES[0]
    return max(complete, key=lambda choice: complete[choice]["accuracy"])


def lenet_jobs(
    found: Found, methods: Sequence[str], shares: Sequence[float], seeds: int
) -> Iterable[Job]:
    """The methods turn by turn, so that a command which was stopped has all of them; then networks from their start."""
    for seed in range(seeds):
        for share in shares:
            setting = runs.Setting(share, seed)
            for method in methods:
                choice = chosen(found, method)
                yield (
                    _lenet(method, choice, setting),
                    functools.partial(runs.run, method, choice, setting),
                )
    for seed in range(seeds):
        for share in (*shares, 1.0):
            setting, widths = runs.Setting(share, seed), lenet.even_widths(share)
            yield _from_start(setting), functools.partial(runs.dense, widths, setting)


def _lenet(method: str, choice: runs.Choice, setting: runs.Setting) -> str:
    return f"lenet-{method}-{choice}-{setting.share:g}-{setting.seed}"


def _from_start(setting: runs.Setting) -> str:
    return f"lenet-start-{setting.share:g}-{setting.seed}"


# Tables.


def rows_of(found: Found, names: Sequence[str]) -> list[dict[str, Any]]:
    return [row for row in map(found, names) if row is not None]


def show(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def listed(rows: Sequence[dict[str, Any]], key: str, form: str) -> str:
    return ", ".join(format(row[key], form) for row in rows)


def identify_table(found: Found, seeds: int) -> None:
    lines = []
    for name in ("target", "constant"):
        rows = rows_of(found, [f"identify-{name}-{seed}" for seed in range(seeds)])
        if rows:
            keys = {
                "lambda": ".6f",
                "zeros": "d",
                "zeros of the optimum": "d",
                "wrong in W": "d",
                "wrong in What": "d",
                "changes of side in the last tenth": "d",
                "certificate": ".0e",
            }
            lines.append([name, *(listed(rows, key, form) for key, form in keys.items())])
    show(
        (
            "strength",
            "lambda it ended with",
            "zero inputs of What",
            "of the optimum there",
            "wrong in W",
            "wrong in What",
            "changes of side in the last tenth",
            "subgradient at the optimum",
        ),
        lines,
    )


def settle_table(found: Found, seeds: int) -> None:
    lines = []
    for case in settle.CASES:
        rows = rows_of(found, [f"settle-{_plain(case)}-{seed}" for seed in range(seeds)])
        if rows:
            lines.append(
                [
                    case,
                    listed(rows, "accuracy", ".3f"),
                    listed(rows, "accuracy of the point to deploy", ".3f"),
                    listed(rows, "points off after settling", ".2f"),
                    listed(rows, "groups off in a layer", ".0f") if "layer" in case else "-",
                    listed(rows, "died after settling", "d"),
                ]
            )
    header = (
        "target",
        "accuracy of W",
        "to deploy",
        "points off after settling, all groups",
        "groups off, worst layer",
        "died after settling",
    )
    show(header, lines)


def lenet_table(found: Found, shares: Sequence[float], seeds: int) -> None:
    lines = [
        [method, *(_trial(found(_search(method, choice))) for choice in runs.CHOICES)]
        for method in runs.METHODS
    ]
    if any(found(_search(m, c)) for m in runs.METHODS for c in runs.CHOICES):
        show(("search, validation accuracy", *map(str, runs.CHOICES)), lines)
    lines = []
    for name, points in lenet_points(found, (1.0, *shares), seeds).items():
        cells = [_cell(points.get(share, [])) for share in (1.0, *shares)]
        lines.append([name, *cells])
    show(("method", "all FLOPs", *(f"{share:.0%}" for share in shares)), lines)


def _trial(trial: dict[str, Any] | None) -> str:
    return "-" if trial is None else f"{trial['accuracy']:.4f}"


def _cell(points: Sequence[tuple[float, float, str]]) -> str:
    """Accuracy: its mean and every seed's, and of the first seed what is left."""
    if not points:
        return "-"
    values = [accuracy for accuracy, _, _ in points]
    each = ", ".join(f"{100 * a:.2f}" for a in values)
    _, left, widths = points[0]
    return f"**{100 * statistics.mean(values):.2f}** ({each}); {left:.1%} {widths}".strip()


def lenet_points(
    found: Found, shares: Sequence[float], seeds: int
) -> dict[str, dict[float, list[tuple[float, float, str]]]]:
    """By method and asked share, of every seed: accuracy, the share that is left, widths."""

    def points(names: Sequence[str]) -> list[tuple[float, float, str]]:
        rows = rows_of(found, names)
        return [(r["accuracy"], r["share of FLOPs"], str(tuple(r["widths"]))) for r in rows]

    out: dict[str, dict[float, list[tuple[float, float, str]]]] = {}
    for method in runs.METHODS:
        choice = chosen(found, method)
        settings = lambda share: [runs.Setting(share, seed) for seed in range(seeds)]
        out[f"{method}, {choice}"] = {
            share: points([_lenet(method, choice, s) for s in settings(share)]) for share in shares
        }
    out["AdamW from the start"] = {
        share: points([_from_start(runs.Setting(share, seed)) for seed in range(seeds)])
        for share in shares
    }
    quoted = {1.0: TORCH_DENSE, **TORCH_PRUNING}
    out["Torch-Pruning, quoted"] = {share: [(a, share, "")] for share, a in quoted.items()}
    return out


def picture(path: Path, found: Found, shares: Sequence[float], seeds: int) -> None:
    """Accuracy against the FLOPs that are left; a line from least to largest of the seeds."""
    from matplotlib.figure import Figure

    from examples.plots import METHOD_COLORS

    figure = Figure(figsize=(6.4, 4.4), dpi=130, layout="constrained")
    ax = figure.subplots()
    drawn = lenet_points(found, (1.0, *shares), seeds)
    for color, (name, by_share) in zip(METHOD_COLORS, drawn.items(), strict=True):
        points = [row for share in sorted(by_share) if (row := by_share[share])]
        if not points:
            continue
        left = [statistics.mean(f for _, f, _ in row) for row in points]
        accuracies = [[a for a, _, _ in row] for row in points]
        ax.plot(left, list(map(statistics.mean, accuracies)), "o-", color=color, label=name, ms=4)
        ax.vlines(left, list(map(min, accuracies)), list(map(max, accuracies)), color=color)
    ax.set_xscale("log")
    ticks = sorted((1.0, *shares))
    ax.set_xticks(ticks, [f"{share:.0%}" for share in ticks], minor=False)
    ax.set_xticks([], minor=True)
    ax.set_xlabel("FLOPs left")
    ax.set_ylabel("test accuracy")
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path)


PARTS = ("identify", "settle", "lenet")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruning", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the result files")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--search", action="store_true", help="search before `lenet`")
    parser.add_argument("--methods", nargs="+", choices=runs.METHODS, default=runs.METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=(0.2, 0.05, 0.5))
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--picture", type=Path, help="draw accuracy against FLOPs")
    options = parser.parse_args()
    found = functools.partial(present, options.out)
    shares = tuple(sorted(options.shares, reverse=True))

    def do(jobs: Iterable[Job]) -> None:
        for name, job in () if options.tables else jobs:
            print(name, kept(options.out, name, job), flush=True)

    if "identify" in options.parts:
        do(identify_jobs(options.seeds))
    if "settle" in options.parts:
        do(settle_jobs(options.seeds))
    if "lenet" in options.parts:
        if options.search:
            do(search_jobs(options.methods))
        do(lenet_jobs(found, options.methods, options.shares, options.seeds))
    if "identify" in options.parts:
        identify_table(found, options.seeds)
    if "settle" in options.parts:
        settle_table(found, options.seeds)
    if "lenet" in options.parts:
        lenet_table(found, shares, options.seeds)
    if options.picture:
        picture(options.picture, found, shares, options.seeds)


if __name__ == "__main__":
    main()
