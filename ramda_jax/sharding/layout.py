"""How a step meets its arrays: together on one device (or as the partitioner cuts them), on a mesh, or in parts.

Three classes with the same methods, in the order of a step: `cut` what comes in whole, `run`, `join` what goes out.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from ramda_jax import backends, step, targets
from ramda_jax.sharding import parts, placement
from ramda_jax.sharding.placement import Cut, Names, Placement, spec
from ramda_jax.solvers.newton import along_of
from ramda_jax.step import Inputs, Job, Leaf, Outputs
from ramda_jax.subproblem import Block
from ramda_jax.targets import Look, Rule, TargetState, Wanted


class Together:
    """No placement: arrays are as they are."""

    def cut(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """The arrays of the state's layout, one per parameter, from whole ones."""
        return list(arrays)

    def cut_warm(
        self, blocks: Sequence[Block], warm: Sequence[jax.Array | None]
    ) -> tuple[Any, ...]:
        """The warm starts of the state's layout from whole ones."""
        return tuple(warm)

    def choose(
        self,
        job: Job,
        rules: tuple[Rule, ...],
        inputs: Inputs,
        wanted: tuple[Wanted, ...],
        old: TargetState,
    ) -> tuple[Inputs, TargetState]:
        """The inputs with the strengths that have targets (`targets.choose`), and what these remember."""
        return _choose(job, rules, inputs, wanted, old)

    def run(self, job: Job, inputs: Inputs) -> Outputs:
        """The step."""
        return backends.run(job, inputs)

    def recall(self, job: Job, inputs: Inputs) -> list[jax.Array]:
        """What of every parameter as the last step found it."""
        return backends.recall(job, inputs)

    def join(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """Arrays of the parameters' layout from those of the state's."""
        return list(arrays)


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """Global arrays, cut over a mesh: every device runs the step of its parts."""

    mesh: Mesh
    cuts: tuple[Cut, ...]

    def cut(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        pairs = zip(arrays, self.cuts, strict=True)
        return [placement.lay(x, self.mesh, cut.layout(x.shape)) for x, cut in pairs]

    def cut_warm(
        self, blocks: Sequence[Block], warm: Sequence[jax.Array | None]
    ) -> tuple[Any, ...]:
        lay = lambda x, names: placement.lay(x, self.mesh, names)
        return placement.map_warm(lay, blocks, self.cuts, warm)

    def choose(
        self,
        job: Job,
        rules: tuple[Rule, ...],
        inputs: Inputs,
        wanted: tuple[Wanted, ...],
        old: TargetState,
    ) -> tuple[Inputs, TargetState]:
        return _choose_on_mesh(job, rules, self, inputs, wanted, old)

    def run(self, job: Job, inputs: Inputs) -> Outputs:
        return _run_on_mesh(job, self, inputs)

    def recall(self, job: Job, inputs: Inputs) -> list[jax.Array]:
        return backends.recall(job, inputs)

    def join(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        pairs = zip(arrays, self.cuts, strict=True)
        return [placement.lay(x, self.mesh, cut.params) for x, cut in pairs]


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _choose(
    job: Job,
    rules: tuple[Rule, ...],
    inputs: Inputs,
    wanted: tuple[Wanted, ...],
    old: TargetState,
) -> tuple[Inputs, TargetState]:
    problems = step.subproblems(job, inputs, step.accumulate(job, inputs))

    def entries(i: int, mask: jax.Array) -> dict[int, jax.Array]:
        shape = lambda k: inputs.leaves[k].grad.shape
        return targets.masked_entries(job.blocks[i], mask, lambda: along_of(problems[i]), shape)

    some = step.only(job, targets.asked(rules))

    def look(inputs: Inputs) -> list[Look]:
        return [Look(x) for x in backends.scores(some.job, some.of(inputs))]

    return targets.choose(job, rules, inputs, wanted, old, entries, look)


def _specs(layout: OnMesh, job: Job, inputs: Inputs) -> Inputs:
    """How the inputs of a step lie."""
    cuts, everywhere = layout.cuts, PartitionSpec()
    leaves = []
    for cut, leaf in zip(cuts, inputs.leaves, strict=True):
        own: Any = spec(cut.state)  # in the places of arrays
        leaves.append(Leaf((own,) * len(leaf.arrays), own, own))
    warm = _warm_specs(layout, job.blocks, inputs.warm)
    psis, scalars = jax.tree.map(lambda _: everywhere, (inputs.psis, inputs.scalars))
    return Inputs(tuple(leaves), psis, warm, scalars)


def _warm_specs(layout: OnMesh, blocks: Sequence[Block], warm: Sequence[Any]) -> tuple[Any, ...]:
    return placement.map_warm(lambda _, names: spec(names), blocks, layout.cuts, warm)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _run_on_mesh(job: Job, layout: OnMesh, inputs: Inputs) -> Outputs:
    mesh, cuts = layout.mesh, layout.cuts
    specs = _specs(layout, job, inputs)
    numbers: Any = (PartitionSpec(),) * len(job.blocks)
    arrays, updates = tuple(x.arrays for x in specs.leaves), tuple(x.grad for x in specs.leaves)
    mapped = jax.shard_map(
        lambda inputs: parts.run(job, cuts, mesh.axis_names, inputs),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=Outputs(arrays, updates, specs.warm, numbers, numbers),
    )
    return mapped(inputs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _choose_on_mesh(
    job: Job,
    rules: tuple[Rule, ...],
    layout: OnMesh,
    inputs: Inputs,
    wanted: tuple[Wanted, ...],
    old: TargetState,
) -> tuple[Inputs, TargetState]:
    specs = _specs(layout, job, inputs)
    blocks = [job.blocks[i] for i in targets.asked(rules)]
    everywhere = jax.tree.map(lambda _: PartitionSpec(), (wanted, old))
    remembered = everywhere[1]._replace(masks=_warm_specs(layout, blocks, old.masks))
    # Of what is not changed nothing is handed out.
    settles = any(rule.settles for rule in rules)
    part = lambda inputs: (inputs.psis, inputs.leaves if settles else ())

    def chosen(inputs: Inputs, wanted: Any, old: TargetState) -> Any:
        new, remembered = parts.choose(job, rules, layout.cuts, inputs, wanted, old)
        return part(new), remembered

    mapped = jax.shard_map(
        chosen,
        mesh=layout.mesh,
        in_specs=(specs, everywhere[0], remembered),
        out_specs=(part(specs), remembered),
    )
    (psis, leaves), new = mapped(inputs, wanted, old)
    return inputs._replace(psis=psis, leaves=leaves or inputs.leaves), new


@dataclasses.dataclass(frozen=True)
class Inside:
    """Within `shard_map` or `pmap`: parameters and gradients whole, the state in parts."""

    names: Names
    cuts: tuple[Cut, ...]

    def cut(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        pairs = zip(arrays, self.cuts, strict=True)
        return [placement.part(x, cut.layout(x.shape)) for x, cut in pairs]

    def cut_warm(
        self, blocks: Sequence[Block], warm: Sequence[jax.Array | None]
    ) -> tuple[Any, ...]:
        return placement.map_warm(placement.part, blocks, self.cuts, warm)

    def choose(
        self,
        job: Job,
        rules: tuple[Rule, ...],
        inputs: Inputs,
        wanted: tuple[Wanted, ...],
        old: TargetState,
    ) -> tuple[Inputs, TargetState]:
        return parts.choose(job, rules, self.cuts, inputs, wanted, old)

    def run(self, job: Job, inputs: Inputs) -> Outputs:
        return parts.run(job, self.cuts, self.names, inputs)

    def recall(self, job: Job, inputs: Inputs) -> list[jax.Array]:
        return parts.recall(job, self.cuts, inputs)

    def join(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        pairs = zip(arrays, self.cuts, strict=True)
        return [placement.gather(x, cut.state, to="invarying") for x, cut in pairs]


Layout = Together | OnMesh | Inside


def layout_of(
    where: Placement | None,
    paths: Sequence[str],
    leaves: Sequence[jax.Array],
    blocks: Sequence[Block],
) -> Layout:
    """The layout of a step over these parameters, which are whole."""
    if where is None or not leaves:
        return Together()
    sizes = _bound(where.names)
    if sizes is not None:
        if where.params is not None:
            raise ValueError(
                "Placement.params: inside shard_map or pmap parameters are whole on every device; "
                "call update under jit instead."
            )
        bare = Placement(where.axis)
        return Inside(where.names, placement.cuts(bare, sizes, paths, leaves, blocks))
    if where.mesh is None:
        return Together()
    return OnMesh(where.mesh, placement.cuts(where, where.mesh.shape, paths, leaves, blocks))


def _bound(names: Names) -> dict[str, int] | None:
    """The sizes of these axes where `shard_map` or `pmap` has bound them."""
    try:
        return {name: jax.lax.axis_size(name) for name in names}
    except NameError:
        return None
