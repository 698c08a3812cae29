"""Data-parallel steps of RAMDA as programs for any mesh: compiled without arrays, or run on arrays."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ramda_jax as rj
from benchmarks import hlo
from benchmarks.train import Task

AXIS = "data"
BATCH_PER_DEVICE = 4
# The state whole on every device; cut over the devices (ZeRO-1); parameters and gradients cut as well.
STATES = ("replicated", "sharded", "all sharded")


class Program(NamedTuple):
    """A step on a mesh.

    Attributes:
        step: (*moving, *fixed) -> moving after the step; `moving` is (parameters, optimizer's state, ...).
        make: () -> (moving, fixed), pure.
        shardings: of what `make` returns.
    """

    step: Callable[..., tuple[Any, ...]]
    make: Callable[[], tuple[tuple[Any, ...], tuple[Any, ...]]]
    shardings: tuple[tuple[Any, ...], tuple[Any, ...]]


def update(
    make_params: Callable[[], Any], regularizer: rj.Regularizer, mesh: Mesh, state: str
) -> Program:
    """The optimizer alone. Gradients come in as the state is placed: that is how the backward pass leaves them."""
    params = jax.eval_shape(make_params)
    placed = _place(regularizer, params, mesh, state)
    tx = placed.tx

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, ...]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def make() -> Any:
        params = make_params()
        return (params, tx.init(params)), (_gradients(params),)

    return Program(step, make, ((placed.params, placed.state), (placed.grads,)))


def training(task: Task, mesh: Mesh, state: str) -> Program:
    """The whole step: forward and backward on a batch that is cut over the devices, and the update."""
    graph, params, rest = _split(nnx.eval_shape(lambda: task.make(nnx.Rngs(0))))
    placed = _place(task.regularizer(task.strength), params, mesh, state)
    tx = placed.tx

    def step(params: Any, state: Any, rest: Any, images: Any, labels: Any) -> tuple[Any, ...]:
        def loss(params: Any) -> Any:
            model = nnx.merge(graph, params, rest, copy=True)
            value = task.loss(model, images, labels)
            return value, nnx.state(model, nnx.Not(nnx.Param))

        (_, new_rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, new_rest

    def make() -> Any:
        _, params, rest = _split(task.make(nnx.Rngs(0)))
        size = BATCH_PER_DEVICE * mesh.size
        images = jax.random.normal(jax.random.key(1), (size, *task.image))
        labels = jax.random.randint(jax.random.key(2), (size,), 0, 10)
        return (params, tx.init(params), rest), (images, labels)

    moving = (placed.params, placed.state, _everywhere(rest, mesh))
    batch = NamedSharding(mesh, PartitionSpec(AXIS))
    return Program(step, make, (moving, (batch, batch)))


def _split(model: nnx.Module) -> tuple[Any, Any, Any]:
    """(graph, parameters, the rest of the state)."""
    graph, *states = nnx.split(model, nnx.Param, ...)
    return graph, states[0], states[1]


class _Placed(NamedTuple):
    """A transformation, and the shardings of parameters, state and gradients."""

    tx: Any
    params: Any
    state: Any
    grads: Any


def _place(regularizer: rj.Regularizer, params: Any, mesh: Mesh, state: str) -> _Placed:
    """RAMDA with its state in one of the `STATES`."""
    whole = _everywhere(params, mesh)
    if state == "replicated":
        tx = rj.ramda(1e-2, regularizer)
        return _Placed(tx, whole, _everywhere(jax.eval_shape(tx.init, params), mesh), whole)
    tx = rj.ramda(1e-2, regularizer, placement=rj.Placement(AXIS, mesh))
    shardings = rj.state_sharding(tx, params, mesh)
    grads = shardings.method.grad_sum
    if state == "sharded":
        return _Placed(tx, whole, shardings, grads)
    tx = rj.ramda(1e-2, regularizer, placement=rj.Placement(AXIS, mesh, grads))
    return _Placed(tx, grads, rj.state_sharding(tx, params, mesh), grads)


def _everywhere(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)


def _gradients(params: Any) -> Any:
    """Noise whose scale differs from entry to entry over two orders of magnitude (see `shapes.gradients`)."""
    leaves, treedef = jax.tree.flatten(params)
    drawn = []
    for key, leaf in zip(jax.random.split(jax.random.key(3), len(leaves)), leaves, strict=True):
        scale, noise = jax.random.split(key)
        size = 10.0 ** jax.random.uniform(scale, leaf.shape, minval=-4, maxval=-2)
        drawn.append((size * jax.random.normal(noise, leaf.shape)).astype(leaf.dtype))
    return jax.tree.unflatten(treedef, drawn)


def compiled(program: Program) -> tuple[Any, dict[str, Any]]:
    """(the executable, what can be read from it: bytes per device and collectives)."""
    inputs = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(program.make),
        program.shardings,
    )
    moving, fixed = inputs
    begin = time.perf_counter()
    lowered = jax.jit(program.step, donate_argnums=tuple(range(len(moving)))).lower(*moving, *fixed)
    executable: Any = lowered.compile()
    seconds = time.perf_counter() - begin
    text = executable.as_text()
    found = hlo.collectives(text)
    memory = executable.memory_analysis()
    state = bytes_per_device(moving[1], executable.output_shardings[1])
    return executable, {
        "state_bytes": state,
        "parameter_bytes": bytes_per_device(moving[0], executable.output_shardings[0]),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "collectives": hlo.summary(found),
        "in_loops": sum(one.in_loop for one in found),
        "loops": text.count(" while("),
        "kernels": text.count('"tpu_custom_call"'),
        "compile_seconds": seconds,
    }


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """What one device holds of arrays that are placed so."""
    sizes = jax.tree.map(
        lambda x, s: x.dtype.itemsize * math.prod(s.shard_shape(x.shape)), tree, shardings
    )
    return sum(jax.tree.leaves(sizes))


class Running:
    """The step of a program on arrays, as a contender of `measure`."""

    def __init__(self, program: Program, executable: Any) -> None:
        self.step = executable
        make = jax.jit(program.make, out_shardings=program.shardings)
        self.moving, self.fixed = make()

    def __call__(self) -> None:
        self.moving = self.step(*self.moving, *self.fixed)
        jax.block_until_ready(self.moving)
