"""Where it is decided how a step runs: a table from platform to backend.

A backend is a function (job, inputs) -> outputs that does what `xla.run` does. `xla.run` is what the partitioner can cut,
and serves wherever arrays are cut over devices, and every platform that is not in the table.

To add one: a file here, and its line in `TABLE`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping

import jax

from ramda_jax import solvers, step
from ramda_jax.backends import cpu, gpu, program, tpu, xla
from ramda_jax.solvers import Arrangement
from ramda_jax.step import Inputs, Job, Outputs

Backend = Callable[[Job, Inputs], Outputs]

TABLE: Mapping[str, Backend] = {
    "cpu": cpu.run,
    "tpu": tpu.run,
    "cuda": gpu.run,
    "rocm": gpu.run,
}

# How groups are worked on where their scores are looked for; `solvers.together` where there is no entry.
ARRANGEMENTS: Mapping[str, Arrangement] = {"cpu": cpu.arrangement(cpu.TILE_SIZES)}

_injected: list[tuple[tuple[str, Backend], ...]] = []


@contextlib.contextmanager
def injected(table: Mapping[str, Backend]) -> Iterator[None]:
    """Within this context, steps that are traced use this table: for tests and experiments.

    What was traced before keeps its table: give `jax.jit` a new function.

    Example:
      >>> from ramda_jax import backends
      >>> with backends.injected({}):  # nothing but what the partitioner can cut
      ...     pass
    """
    _injected.append(tuple(table.items()))
    try:
        yield
    finally:
        _injected.pop()


def run(job: Job, inputs: Inputs) -> Outputs:
    """The step, by the backend of what it is compiled for.

    Compiled once per job and shapes, also where the caller does not jit. Differentiable (`step.derivative`).
    """
    table = _injected[-1] if _injected else tuple(TABLE.items())
    return _run(job, table, inputs)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _run(job: Job, table: tuple[tuple[str, Backend], ...], inputs: Inputs) -> Outputs:
    return _differentiable(job, table, inputs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _differentiable(job: Job, table: tuple[tuple[str, Backend], ...], inputs: Inputs) -> Outputs:
    if not job.blocks:
        return xla.run(job, inputs)  # elementwise: nothing to decide
    local = {name: _program(backend, job) for name, backend in table}
    return program.select(_program(xla.run, job), local, inputs)


@functools.cache
def _program(backend: Backend, job: Job) -> Callable[[Inputs], Outputs]:
    return functools.partial(backend, job)


@_differentiable.defjvp
def _jvp(
    job: Job,
    table: tuple[tuple[str, Backend], ...],
    primals: tuple[Inputs],
    tangents: tuple[Inputs],
) -> tuple[Outputs, Outputs]:
    outputs = _differentiable(job, table, *primals)
    around = lambda inputs: step.derivative(job, inputs, outputs)
    return outputs, jax.jvp(around, primals, tangents)[1]


@functools.partial(jax.jit, static_argnums=0, inline=True)
def scores(job: Job, inputs: Inputs) -> list[jax.Array]:
    """Of every block the strength at which each of its groups would die (`step.scores`). No derivative is offered."""
    local = {name: _scores(arrange, job) for name, arrange in ARRANGEMENTS.items()}
    return program.select(_scores(solvers.together, job), local, inputs)


@functools.cache
def _scores(arrange: Arrangement, job: Job) -> Callable[[Inputs], list[jax.Array]]:
    return functools.partial(step.scores, job, arrange=arrange)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def recall(job: Job, inputs: Inputs) -> list[jax.Array]:
    """What of every parameter as the last step found it (`step.recall`): elementwise, and so the same everywhere.

    Differentiable where the step is.
    """
    return _recall(job, inputs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _recall(job: Job, inputs: Inputs) -> list[jax.Array]:
    return step.recall(job, inputs)


@_recall.defjvp
def _recall_jvp(
    job: Job, primals: tuple[Inputs], tangents: tuple[Inputs]
) -> tuple[list[jax.Array], list[jax.Array]]:
    step.check_derivative(job)
    return jax.jvp(functools.partial(step.recall, job), primals, tangents)
