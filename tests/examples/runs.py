"""What several test modules do with runs: prepare them, fit them in a folder, compare their rows."""

from dataclasses import replace

import jax
import pytest

from examples import loop, parallel
from examples.checkpoint import Checkpoints
from tests.examples import tiny


def prepared(mode=None, count=8, recipe=tiny.PLAIN, optimizer="ramda", **settings):
    """A program for the first `count` devices in a mode; None is one device."""
    run = tiny.tiny_run(optimizer, recipe, **settings)
    devices = parallel.MODES[mode](jax.devices()[:count]) if mode else parallel.ONE_DEVICE
    return loop.prepare(run, recipe.load(None), devices)


def changed(program, **settings):
    """The same compiled program with settings that its compilation does not depend on."""
    run = replace(program.run, settings=replace(program.run.settings, **settings))
    return replace(program, task=replace(program.task, run=run))


def fitted(out, program, resume=False):
    """A fit with checkpoints in a folder."""
    out.mkdir(exist_ok=True)
    rows, run = [], program.run
    with Checkpoints(out, run, 0, resume) as checkpoints:
        fit = loop.fit(program, 0, rows.append, checkpoints)
    assert rows == fit.rows
    return fit


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def assert_same(rows, expected):
    """To rounding: many devices take the sums over a batch in another order."""
    for row, like in zip(without_times(rows), without_times(expected), strict=True):
        assert list(row) == list(like)
        for name, value in row.items():
            assert value == pytest.approx(like[name], rel=1e-4, abs=1e-6), name
