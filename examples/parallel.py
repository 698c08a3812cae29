"""How a training step runs on the devices there are: on one, or on many by `jax.jit`, `jax.shard_map`
or `jax.pmap`. Mesh, shardings and compilation are decided here and nowhere else.

Data parallel over one axis, `data`: every device has the parameters and takes its rows of each
batch; the optimizer's state is cut over the devices (ZeRO-1, `ramda_jax.Placement`). Between epochs
a state is the same tree of global arrays in every mode, so that evaluation and checkpoints do not
know the mode, and what one mode wrote another one reads.

    jit         a step sees global arrays; the partitioner writes the collectives
    shard_map   a step sees what one device holds, and sums over `data` by itself
    pmap        the same step, of arrays with a leading axis of devices
"""

import os
import time
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, Generic, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import make_array_from_single_device_arrays as _array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ramda_jax as rj
from examples.recipe import RecipeError

AXIS = "data"
WHOLE, ROWS = P(), P(AXIS)
"""Specs of what every device has a copy of, and of what is cut along its first axis."""

Specs = Any
"""A tree of `PartitionSpec`s: of the structure of what it is for, or of a part from the root."""

# A process that is gone is noticed within the first of these, and waited for at the end no longer
# than the second; JAX's own figures let the others wait five minutes.
_HEARTBEAT_SECONDS, _SHUTDOWN_SECONDS = 30, 15


Tree = TypeVar("Tree")
"""A tree of arrays: what comes out is of the structure of what went in."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Compiled(Generic[Arguments, Result]):
    """A jitted function that compiles once per shape of its arguments, and knows how long it took.

    Attributes:
        seconds: spent tracing and compiling so far.
    """

    def __init__(self, jitted: Callable[Arguments, Result]) -> None:
        self._jitted: Any = jitted  # which can be lowered as well
        self._programs: dict[Hashable, Callable[..., Result]] = {}
        self.seconds = 0.0

    def __call__(self, *arguments: Arguments.args, **_: Arguments.kwargs) -> Result:
        shapes = _shapes(arguments)
        if shapes not in self._programs:
            begun = time.perf_counter()
            self._programs[shapes] = self._jitted.lower(*arguments).compile()
            self.seconds += time.perf_counter() - begun
        return self._programs[shapes](*arguments)


class CompiledPmap(Compiled[Arguments, Result]):
    """The same for `jax.pmap`, which has no programs to keep: a first call is taken as compiling."""

    def __call__(self, *arguments: Arguments.args, **_: Arguments.kwargs) -> Result:
        shapes, begun = _shapes(arguments), time.perf_counter()
        outputs = self._jitted(*arguments)
        if shapes not in self._programs:
            self._programs[shapes] = self._jitted
            self.seconds += time.perf_counter() - begun
        return outputs


class OneDevice:
    """All on JAX's default device; and what the others have to offer.

    Attributes:
        mode: what the command line calls it.
        devices: how many take part.
        axis: name over which a step has to sum by itself; None if it sees whole batches.
    """

    mode = "one device"
    devices = 1
    axis: str | None = None

    def placement(self) -> rj.Placement | None:
        """How the optimizer's state is cut, as the library takes it."""
        return None

    def state_specs(
        self, transformation: optax.GradientTransformation, params: optax.Params
    ) -> Specs:
        """Specs of the optimizer's state."""
        return WHOLE

    def init(
        self, transformation: optax.GradientTransformation, params: optax.Params, specs: Specs
    ) -> optax.OptState:
        """The optimizer's first state, where it is to lie."""
        return transformation.init(params)

    def place(self, tree: Tree, specs: Specs) -> Tree:
        """Global arrays of values that every process has."""
        return tree

    def put_rows(self, rows: Tree) -> Tree:
        """A batch on the devices, of the rows that this process has read."""
        return jax.tree.map(jnp.asarray, rows)

    def put_whole_rows(self, rows: Tree) -> Tree:
        """The same, for a `whole` function."""
        return self.put_rows(rows)

    def whole(
        self, function: Callable[Arguments, Result], outputs: Specs = WHOLE
    ) -> Compiled[Arguments, Result]:
        """Compiles a function of global arrays."""
        return Compiled(jax.jit(function))

    def step(
        self,
        function: Callable[Arguments, Result],
        inputs: Specs,
        outputs: Specs,
        donate: tuple[int, ...] = (),
    ) -> Compiled[Arguments, Result]:
        """Compiles a function that trains; `own`, `sum` and `own_key` are for use in it."""
        return Compiled(jax.jit(function, donate_argnums=donate))

    def spread(self, rows: Tree) -> Tree:
        """In a `whole` function: rows, computed with where they belong."""
        return rows

    def own(self, rows: jax.Array) -> jax.Array:
        """In a step: what this device takes of all rows."""
        return rows

    def keep(self, tree: Tree, specs: Specs) -> Tree:
        """In a loop of steps, where no program's end says it: this lies between steps so."""
        return tree

    def sum(self, tree: Tree) -> Tree:
        """In a step: the sum over all devices."""
        return tree

    def own_key(self, leaf: jax.Array) -> jax.Array:
        """In a step: a random key of this device, if it is a key."""
        return leaf

    def enter(self, tree: Tree, specs: Specs) -> Tree:
        """Global arrays as a step takes them."""
        return tree

    def leave(self, tree: Tree, specs: Specs) -> Tree:
        """What a step has returned as global arrays."""
        return tree

    def local(self, tree: Tree) -> Tree:
        """What every device has a copy of, on one device of this process."""
        return tree


ONE_DEVICE = OneDevice()


class Jit(OneDevice):
    """A step sees global arrays, and XLA's partitioner cuts it."""

    mode = "jit"

    def __init__(self, devices: list[jax.Device]) -> None:
        self.mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self.devices = len(devices)

    def shardings(self, specs: Specs) -> Any:
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)

    def placement(self) -> rj.Placement | None:
        return rj.Placement(AXIS, self.mesh)

    def state_specs(
        self, transformation: optax.GradientTransformation, params: optax.Params
    ) -> Specs:
        shardings = rj.state_sharding(transformation, params, self.mesh)
        return jax.tree.map(lambda sharding: sharding.spec, shardings)

    def init(
        self, transformation: optax.GradientTransformation, params: optax.Params, specs: Specs
    ) -> optax.OptState:
        return jax.jit(transformation.init, out_shardings=self.shardings(specs))(params)

    def place(self, tree: Tree, specs: Specs) -> Tree:
        def put(spec: P, leaf: Any) -> jax.Array:
            host, sharding = np.asarray(leaf), NamedSharding(self.mesh, spec)
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        return _map_prefix(_with_key_data(put), specs, tree)

    def put_rows(self, rows: Tree) -> Tree:
        sharding = NamedSharding(self.mesh, ROWS)
        put = lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf))
        return jax.tree.map(put, rows)

    def whole(
        self, function: Callable[Arguments, Result], outputs: Specs = WHOLE
    ) -> Compiled[Arguments, Result]:
        return Compiled(jax.jit(function, out_shardings=self.shardings(outputs)))

    def step(
        self,
        function: Callable[Arguments, Result],
        inputs: Specs,
        outputs: Specs,
        donate: tuple[int, ...] = (),
    ) -> Compiled[Arguments, Result]:
        return Compiled(
            jax.jit(
                function,
                in_shardings=self.shardings(inputs),
                out_shardings=self.shardings(outputs),
                donate_argnums=donate,
            )
        )

    def spread(self, rows: Tree) -> Tree:
        return jax.lax.with_sharding_constraint(rows, NamedSharding(self.mesh, ROWS))

    def own(self, rows: jax.Array) -> jax.Array:
        return self.spread(rows)

    def keep(self, tree: Tree, specs: Specs) -> Tree:
        # Left to itself the partitioner cuts the parameters like the state, and gathers them twice.
        return jax.lax.with_sharding_constraint(tree, self.shardings(specs))

    def local(self, tree: Tree) -> Tree:
        return _map_prefix(_with_key_data(lambda _, leaf: leaf.addressable_data(0)), WHOLE, tree)


class ShardMap(Jit):
    """A step sees what one device holds, and sums over the axis by itself."""

    mode = "shard_map"
    axis = AXIS

    def placement(self) -> rj.Placement | None:
        return rj.Placement(AXIS)

    def step(
        self,
        function: Callable[Arguments, Result],
        inputs: Specs,
        outputs: Specs,
        donate: tuple[int, ...] = (),
    ) -> Compiled[Arguments, Result]:
        # Unchecked, as in pmap: a gradient is then that of this device's share of the loss, in both.
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False
        )
        return Compiled(jax.jit(mapped, donate_argnums=donate))

    def keep(self, tree: Tree, specs: Specs) -> Tree:
        return tree

    def own(self, rows: jax.Array) -> jax.Array:
        size = len(rows) // self.devices
        return jax.lax.dynamic_slice_in_dim(rows, jax.lax.axis_index(AXIS) * size, size)

    def sum(self, tree: Tree) -> Tree:
        return jax.lax.psum(tree, AXIS)

    def own_key(self, leaf: jax.Array) -> jax.Array:
        return jax.random.fold_in(leaf, jax.lax.axis_index(AXIS)) if is_key(leaf) else leaf


class Pmap(ShardMap):
    """The same step under `jax.pmap`: what is cut has a leading axis of this process's devices."""

    mode = "pmap"

    def step(
        self,
        function: Callable[Arguments, Result],
        inputs: Specs,
        outputs: Specs,
        donate: tuple[int, ...] = (),
    ) -> Compiled[Arguments, Result]:
        axis = lambda spec: None if _cut(spec) is None else 0
        # Among several processes pmap has to hash the axes of the outputs: a flat tuple is hashable.
        flat: list[P]
        structure: Any
        flat, structure = jax.tree.flatten(outputs)

        def share(
            _: jax.Array, *arguments: Arguments.args, **names: Arguments.kwargs
        ) -> tuple[Any, ...]:
            return tuple(structure.flatten_up_to(function(*arguments, **names)))

        mapped = jax.pmap(
            share,
            axis_name=AXIS,
            in_axes=(0, *jax.tree.map(axis, inputs)),
            out_axes=tuple(map(axis, flat)),
            devices=list(self.mesh.devices.flat),
            donate_argnums=tuple(number + 1 for number in donate),
        )
        # The first argument says how many devices there are; the others may all be whole.
        here = jax.device_put(np.zeros(len(self._here), np.int32), self._stacked)

        def call(*arguments: Arguments.args, **names: Arguments.kwargs) -> Result:
            return structure.unflatten(mapped(here, *arguments, **names))

        return CompiledPmap(call)

    def put_rows(self, rows: Tree) -> Tree:
        count = len(self._here)
        stack = lambda leaf: np.reshape(leaf, (count, len(leaf) // count, *np.shape(leaf)[1:]))
        return jax.device_put(jax.tree.map(stack, rows), self._stacked)

    def put_whole_rows(self, rows: Tree) -> Tree:
        return super().put_rows(rows)

    @cached_property
    def _here(self) -> list[jax.Device]:
        return list(self.mesh.local_mesh.devices.flat)

    @cached_property
    def _stacked(self) -> NamedSharding:
        return NamedSharding(self.mesh.local_mesh, ROWS)

    def enter(self, tree: Tree, specs: Specs) -> Tree:
        """Each device's part stays where it is; one that is cut gets the leading axis."""

        def one(spec: P, leaf: jax.Array) -> jax.Array:
            parts = _parts(leaf, self._here)
            if _cut(spec) is None:
                return _array(leaf.shape, NamedSharding(self.mesh.local_mesh, WHOLE), parts)
            parts = [part[None] for part in parts]
            return _array((len(parts), *parts[0].shape[1:]), self._stacked, parts)

        return _map_prefix(_with_key_data(one), specs, tree)

    def leave(self, tree: Tree, specs: Specs) -> Tree:
        """Each device's part stays where it is; one that is cut loses the leading axis."""

        def one(spec: P, leaf: jax.Array) -> jax.Array:
            parts, axis = _parts(leaf, self._here), _cut(spec)
            if axis is None:
                return _array(leaf.shape, NamedSharding(self.mesh, WHOLE), parts)
            parts = [part[0] for part in parts]
            shape = list(parts[0].shape)
            shape[axis] *= self.devices
            return _array(tuple(shape), NamedSharding(self.mesh, spec), parts)

        return _map_prefix(_with_key_data(one), specs, tree)


MODES = {kind.mode: kind for kind in (Jit, ShardMap, Pmap)}


def choose(mode: str | None) -> OneDevice:
    """All devices there are, of all processes, in the mode asked for; one device needs none."""
    devices = jax.devices()
    if mode is None and len(devices) == 1:
        return ONE_DEVICE
    return MODES[mode or "jit"](devices)


def require_divisible(batch_size: int, parallel: OneDevice) -> None:
    """Training batches have to be cut evenly.

    Raises:
        RecipeError: they cannot be.
    """
    if batch_size % parallel.devices:
        raise RecipeError(
            f"batch_size: expected a multiple of {parallel.devices} (the devices), got {batch_size}"
        )


def initialize() -> None:
    """Joins the processes of the run; before anything else touches a device.

    JAX finds the others by itself on SLURM, Kubernetes, Open MPI and TPU pods. Elsewhere the
    environment says where and who: JAX_COORDINATOR_ADDRESS (host:port of the first process),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    number = lambda name: int(os.environ[name]) if name in os.environ else None
    # It would take SIGTERM for itself, and the run would never hear of one.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            num_processes=number("JAX_NUM_PROCESSES"),
            process_id=number("JAX_PROCESS_ID"),
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise RecipeError(
            f"--distributed: expected a cluster that JAX knows, or JAX_COORDINATOR_ADDRESS, "
            f"JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment ({error})"
        ) from error


def leads() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def together(point: str) -> None:
    """Waits until every process of the run has come to the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(point)


def is_key(leaf: Any) -> bool:
    """Whether an array is one of random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def rows_axis(of_size: Callable[[int], Any]) -> Specs:
    """Specs of a tree whose axes grow with the number of rows.

    Args:
        of_size: rows -> the tree; it is not computed, only its shapes are.
    """

    def spec(two: Any, four: Any) -> P:
        grown = [a != b for a, b in zip(two.shape, four.shape, strict=True)]
        return P(*(AXIS if grows else None for grows in grown)) if any(grown) else WHOLE

    return jax.tree.map(spec, *(jax.eval_shape(lambda n=n: of_size(n)) for n in (2, 4)))


def _shapes(arguments: tuple[Any, ...]) -> Hashable:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, *((leaf.shape, leaf.dtype) for leaf in leaves)


def _map_prefix(function: Callable[[P, Any], Any], specs: Specs, tree: Any) -> Any:
    """Maps (spec, leaf) where one spec may stand for a whole branch."""
    branch = lambda spec, part: jax.tree.map(lambda leaf: function(spec, leaf), part)
    return jax.tree.map(branch, specs, tree)


def _with_key_data(function: Callable[[P, Any], jax.Array]) -> Callable[[P, Any], jax.Array]:
    """The function, applied to the numbers behind random keys where it gets keys."""

    def keys_too(spec: P, leaf: Any) -> jax.Array:
        if not is_key(leaf):
            return function(spec, leaf)
        data = function(spec, jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

    return keys_too


def _cut(spec: P) -> int | None:
    """The axis of an array that is cut over the devices."""
    return next((axis for axis, name in enumerate(spec) if name == AXIS), None)


def _parts(array: jax.Array, devices: list[jax.Device]) -> list[jax.Array]:
    """What each device holds of an array."""
    held = {shard.device: shard.data for shard in array.addressable_shards}
    return [held[device] for device in devices]
