"""Whether the loader keeps the devices busy: seconds per step of training, of reading, and of both.

    python -m benchmarks.input [--data-dir DIR] [--scale NAME] [--steps N] [--json FILE] [field=value ...]

The recipe imagenet_resnet50 on JPEG files in ImageNet's class folders (made here unless a folder is
given). Three things take turns, each over so many steps: training on a batch that is already on the
device; the loader alone, which reads, decodes and crops, and whose batches are moved to the device and
thrown away; and the training loop, which does both. What is saved by doing both at once, of the shorter
of the two, is hidden. On a CPU both want the same cores: XLA_FLAGS=--xla_cpu_multi_thread_eigen=false
leaves the step one of them, data.threads=1 the loader another, and --scale small makes both short.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import measure
from examples import parallel, streaming
from examples.data import Stream
from examples.data.pipeline import iterate
from examples.recipe import SCALES, make_run, split_overrides
from examples.recipes import imagenet_resnet50

_CLASSES = 10
_AHEAD = 2
# Of a typical image of ImageNet.
_WIDTH, _HEIGHT, _QUALITY = 500, 375, 90


def make_images(folder: Path, per_class: int = 60) -> None:
    """Class folders of JPEG files: blurred noise with grain, of the size and bytes of photographs."""
    rng = np.random.default_rng(0)
    for split, count in (("train", per_class), ("val", 1)):
        for number in range(_CLASSES):
            inside = folder / split / f"n{number:08d}"
            inside.mkdir(parents=True)
            for index in range(count):
                shapes = rng.integers(0, 256, (12, 16, 3), np.uint8)
                image = np.asarray(Image.fromarray(shapes).resize((_WIDTH, _HEIGHT)), np.int16)
                grain = rng.normal(0, 10, image.shape).astype(np.int16)
                pixels = np.clip(image + grain, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(inside / f"{index}.JPEG", quality=_QUALITY)


def prepare(data_dir: Path, options: argparse.Namespace) -> streaming.Streaming:
    """The training loop of `examples/` on the images; an epoch has `--steps` steps."""
    settings = {"steps_per_epoch": str(options.steps), **split_overrides(options.settings)}
    run = make_run(imagenet_resnet50.RECIPE, "ramda", options.scale, settings)
    stream = run.recipe.load(data_dir)
    assert isinstance(stream, Stream)
    return streaming.prepare(run, stream, parallel.choose(None))


class Contest:
    """The three, each timed over one epoch; every one reads just the batches that it needs."""

    def __init__(self, program: streaming.Streaming) -> None:
        self.program, self.steps = program, program.steps_per_epoch
        self.state = program.start(0)
        self.batch = self.feed(1).take()

    def feed(self, count: int) -> streaming.Feed:
        """So many batches, none of them read before."""
        size = streaming.own_rows(self.program.run.settings.batch_size)
        batches = self.program.stream.train(size, 0).repeat()[:count]
        put = self.program.task.parallel.put_rows
        return streaming.Feed(iterate(batches, self.program.stream.threads), put, ahead=_AHEAD)

    def step(self) -> None:
        self.train(Repeated(self.batch))

    def load(self) -> None:
        feed = self.feed(self.steps)
        for _ in range(self.steps):
            jax.block_until_ready(feed.take())

    def both(self) -> None:
        self.train(self.feed(self.steps + _AHEAD))

    def train(self, feed: Any) -> None:
        self.state, iterations = self.program.epoch(self.state, feed)
        jax.block_until_ready((self.state, iterations))


class Repeated:
    """A feed of one batch that stays on the device."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def take(self) -> Any:
        return self.batch

    def fill(self) -> None:
        """There is nothing to read."""


def benchmark(contest: Contest, rounds: int) -> dict[str, Any]:
    """Seconds per step of each, and how much of the shorter part is hidden, over rounds."""
    seconds: dict[str, list[float]] = {"step": [], "load": [], "both": []}
    contest.step()  # compiles
    for _ in range(rounds):
        for name, times in seconds.items():
            begun = time.perf_counter()
            getattr(contest, name)()
            times.append((time.perf_counter() - begun) / contest.steps)
    hidden = [
        (step + load - both) / min(step, load)
        for step, load, both in zip(*seconds.values(), strict=True)
    ]
    report = {name: measure.spread(times) for name, times in seconds.items()}
    return {**report, "hidden": measure.spread(hidden)}


def table(report: dict[str, Any], batch_size: int) -> str:
    """A Markdown table."""
    names = {
        "step": "training step, batch on the device",
        "load": "loader alone",
        "both": "training loop",
    }
    lines = ["| what | ms per step [quartiles] | images/s |", "| --- | --- | --- |"]
    for name, title in names.items():
        rate = batch_size / report[name]["median"]
        lines.append(f"| {title} | {measure.milliseconds(report[name])} | {rate:.1f} |")
    hidden = report["hidden"]
    span = f"{hidden['median']:.0%} [{hidden['low']:.0%}, {hidden['high']:.0%}]"
    return "\n".join([*lines, "", f"hidden, of the shorter of step and loader: {span}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="with train and val; made if not given")
    parser.add_argument("--scale", choices=SCALES, default="paper")
    parser.add_argument("--steps", type=int, default=50, help="that are timed together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("settings", nargs="*", metavar="field=value", help="of the recipe")
    measure.add_output_argument(parser)
    options = parser.parse_args()
    environment = measure.environment()
    print(", ".join(f"{k} {v}" for k, v in environment.items()), flush=True)
    with tempfile.TemporaryDirectory() as made:
        if options.data_dir is None:
            make_images(Path(made))
        program = prepare(options.data_dir or Path(made), options)
        report = benchmark(Contest(program), options.rounds)
    size = program.run.settings.batch_size
    print(f"\nbatch of {size}, {program.stream.threads} threads\n\n{table(report, size)}")
    settings = {"scale": options.scale, "settings": options.settings, "steps": options.steps}
    measure.write(options.json, {"environment": environment, **settings, **report})


if __name__ == "__main__":
    main()
