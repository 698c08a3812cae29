"""The step where this device has parts of the arrays; inside `jax.shard_map` or `jax.pmap`.

How a block is solved depends on what its arrays are cut along:

- alone: along axes that separate groups. The part is a block like any other, and the device says nothing to the others;
- spread: across groups, by a solver that can do it. All such blocks in one loop, one sum over devices per iteration;
- by an owner: one array whose solver looks at all of it (a matrix under the nuclear norm). b and D are gathered, one
  device solves, and the parts of the solution are scattered. Different devices solve different arrays;
- whole: what is left (cut arrays that are seen through windows or reshapes, several arrays whose solver looks at all of
  them) is gathered, stepped on every device, and cut again.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ramda_jax import _numerics, backends, solvers, step, targets
from ramda_jax.regularizers import GroupNorm
from ramda_jax.sharding.placement import (
    Cut,
    Names,
    common_names,
    gather,
    group_names,
    map_warm,
    part,
)
from ramda_jax.solvers import Solver
from ramda_jax.solvers.newton import along_of
from ramda_jax.step import Inputs, Job, Leaf, Outputs
from ramda_jax.subproblem import Along, Block, Part, Solution, Subproblem
from ramda_jax.targets import Look, Rule, TargetState, Wanted


class _Way(NamedTuple):
    """How a block is solved.

    Attributes:
      name: "alone", "spread", "owner" or "whole".
      names: the mesh axes over which its groups are spread, or over which it has owners.
      separated: the mesh axes along which devices know of different residuals.
    """

    name: str
    names: Names
    separated: Names


def run(job: Job, cuts: Sequence[Cut], axes: Names, inputs: Inputs) -> Outputs:
    """`backends.run` of this device's parts.

    Args:
      job, inputs: as there; the arrays of `inputs` are parts.
      cuts: how each array is cut.
      axes: all mesh axes there are: iterations and residuals are those of all devices.
    """
    ways = [_way(*pair, cuts) for pair in zip(job.solvers, job.blocks, strict=True)]

    def kind(blocks: list[int], leaves: list[int]) -> str:
        """Blocks that share a parameter are run in one way."""
        names = {ways[i].name for i in blocks}
        return "alone" if names <= {"alone"} else "whole" if "whole" in names else "apart"

    done = []
    for name, some in step.divide(job, len(inputs.leaves), kind).items():
        own, where = some.of(inputs), [cuts[k] for k in some.leaves]
        if name == "alone":
            out = backends.run(some.job, own)
        elif name == "whole":
            out = _whole(some.job, where, own)
        else:
            out = _apart(some.job, where, [ways[i] for i in some.blocks], own)
        done.append((some, out))
    out = step.unite(done)
    return _agree(out, [way.separated for way in ways], axes) if ways else out


def _way(solver: Solver, block: Block, cuts: Sequence[Cut]) -> _Way:
    own = [cuts[m.leaf] for m in block.members]
    names = tuple(dict.fromkeys(name for cut in own for name in cut.names))
    if not names:
        return _Way("alone", (), ())
    if not all(m.is_plain for m in block.members):
        return _Way("whole", (), ())
    along = common_names(block, cuts) if len(block.members) > 1 else _separating(block, own[0])
    if solver.separable and all(set(cut.names) == set(along) for cut in own):
        return _Way("alone", (), along)
    one_axis = all(len(block.axes(k)) == 1 for k in range(len(block.members)) if _grouped(block))
    if solver.spans and _grouped(block) and (len(own) == 1 or one_axis):
        return _Way("spread", tuple(n for n in names if n not in along), along)
    return _Way("owner", names, names) if len(own) == 1 else _Way("whole", (), ())


def _grouped(block: Block) -> bool:
    return isinstance(block.psi, GroupNorm)


def _separating(block: Block, cut: Cut) -> Names:
    """The mesh axes over which a single array is cut along axes that separate its groups."""
    separable = block.psi.separable_axes(cut.shape)
    return tuple(name for a in separable for name in cut.state[a])


def choose(
    job: Job,
    rules: Sequence[Rule],
    cuts: Sequence[Cut],
    inputs: Inputs,
    wanted: Sequence[Wanted],
    old: TargetState,
) -> tuple[Inputs, TargetState]:
    """`targets.choose` of this device's parts; devices tell each other counts."""
    places = targets.asked(rules)
    ways = {i: _way(job.solvers[i], job.blocks[i], cuts) for i in places}

    def look(inputs: Inputs) -> list[Look]:
        found: dict[int, Look] = {}
        for name, names in dict.fromkeys(way[:2] for way in ways.values()):
            mine = [i for i in places if ways[i][:2] == (name, names)]
            some = step.only(job, mine)
            own, where = some.of(inputs), [cuts[k] for k in some.leaves]
            if name == "alone":
                found_ = backends.scores(some.job, own)
            elif name == "spread":
                found_ = _scores_of_spread(some.job, where, names, own)
            else:
                found_ = backends.scores(some.job, _gathered(some.job, where, own))
            for i, scores in zip(mine, found_, strict=True):
                local = name in ("alone", "spread")
                found[i] = Look(scores, ways[i].separated if local else ())
        return [found[i] for i in places]

    def entries(i: int, mask: jax.Array) -> dict[int, jax.Array]:
        return _masked_entries(job, i, ways[i], cuts, mask, inputs)

    return targets.choose(job, rules, inputs, wanted, old, entries, look)


def _scores_of_spread(
    job: Job, cuts: Sequence[Cut], names: Names, inputs: Inputs
) -> list[jax.Array]:
    problems = step.subproblems(job, inputs, step.accumulate(job, inputs))
    return solvers.scores([_spread(p, cuts, names) for p in problems], solvers.together)


def _masked_entries(
    job: Job, i: int, way: _Way, cuts: Sequence[Cut], mask: jax.Array, inputs: Inputs
) -> dict[int, jax.Array]:
    """`targets.masked_entries` of this device's parts."""
    block = job.blocks[i]
    if way.name == "whole":
        found = targets.masked_entries(
            block, mask, lambda: _along_whole(block), lambda k: cuts[k].shape
        )
        whole = {k: jnp.broadcast_to(x, cuts[k].shape) for k, x in found.items()}
        return {k: part(x, cuts[k].state) for k, x in whole.items()}
    some = step.only(job, [i])
    own, where = some.of(inputs), [cuts[k] for k in some.leaves]
    (problem,) = step.subproblems(some.job, own, step.accumulate(some.job, own))
    if way.name == "spread":
        problem = _spread(problem, where, way.names)
    shape = lambda k: inputs.leaves[k].grad.shape
    return targets.masked_entries(block, mask, lambda: along_of(problem), shape)


def _along_whole(block: Block) -> list[Along]:
    """How the groups of a block lie in its members as they are."""
    number = block.number if len(block.members) > 1 else None
    return [Along(block.axes(k), number) for k in range(len(block.members))]


def recall(job: Job, cuts: Sequence[Cut], inputs: Inputs) -> list[jax.Array]:
    """`backends.recall` of this device's parts."""
    ways = [_way(*pair, cuts) for pair in zip(job.solvers, job.blocks, strict=True)]

    def kind(blocks: list[int], leaves: list[int]) -> bool:
        """Whether x is elementwise again: always but where a solver looks at all of an array and keeps no solution."""
        kept = [job.blocks[i].is_single and inputs.warm[i] is not None for i in blocks]
        names = [ways[i].name in ("alone", "spread") for i in blocks]
        return all(a or b for a, b in zip(kept, names, strict=True))

    found: dict[int, jax.Array] = {}
    for local, some in step.divide(job, len(inputs.leaves), kind).items():
        own, where = some.of(inputs), [cuts[k] for k in some.leaves]
        if local:
            xs = backends.recall(some.job, own)
        else:
            xs = _parts(backends.recall(some.job, _gathered(some.job, where, own)), where)
        found |= dict(zip(some.leaves, xs, strict=True))
    return [found[k] for k in range(len(found))]


def _whole(job: Job, cuts: Sequence[Cut], inputs: Inputs) -> Outputs:
    """Everything gathered, and this device's parts of what comes out."""
    out = backends.run(job, _gathered(job, cuts, inputs))
    columns = [_parts(column, cuts) for column in zip(*out.arrays, strict=True)]
    return out._replace(
        arrays=tuple(zip(*columns, strict=True)),
        updates=tuple(_parts(out.updates, cuts)),
        warm=map_warm(part, job.blocks, cuts, out.warm),
    )


def _gathered(job: Job, cuts: Sequence[Cut], inputs: Inputs) -> Inputs:
    """The inputs with whole arrays."""
    get = lambda x, cut: gather(x, cut.state, to="invarying")
    leaves = tuple(
        Leaf(tuple(get(x, cut) for x in leaf.arrays), get(leaf.grad, cut), get(leaf.param, cut))
        for leaf, cut in zip(inputs.leaves, cuts, strict=True)
    )
    whole = lambda x, names: gather(x, names, to="invarying")
    return inputs._replace(leaves=leaves, warm=map_warm(whole, job.blocks, cuts, inputs.warm))


def _parts(xs: Sequence[jax.Array], cuts: Sequence[Cut]) -> list[jax.Array]:
    """This device's parts of arrays like the parameters."""
    return [part(x, cut.state) for x, cut in zip(xs, cuts, strict=True)]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _apart(job: Job, cuts: Sequence[Cut], ways: Sequence[_Way], inputs: Inputs) -> Outputs:
    """Accumulated and moved part by part; each block solved in its way."""
    leaves = step.accumulate(job, inputs)
    problems = step.subproblems(job, inputs, leaves)
    solved: dict[int, Solution] = {}
    for name, names in dict.fromkeys(way[:2] for way in ways):
        mine = [i for i, way in enumerate(ways) if way[:2] == (name, names)]
        if name == "owner":
            shapes = [job.blocks[i].shape for i in mine]
            for i, owner in zip(mine, _owners(shapes, jax.lax.axis_size(names)), strict=True):
                cut = cuts[job.blocks[i].members[0].leaf]
                solved[i] = _by_owner(job.solvers[i], cut, owner, problems[i], inputs.warm[i])
        else:
            stated = [_spread(problems[i], cuts, names) for i in mine]
            own = [job.solvers[i] for i in mine], stated, [inputs.warm[i] for i in mine]
            solved |= dict(zip(mine, step.solve(*own, solvers.together), strict=True))
    return step.move(job, inputs, leaves, [solved[i] for i in range(len(problems))])


@_apart.defjvp
def _apart_jvp(job: Job, cuts: Any, ways: Any, primals: Any, tangents: Any) -> Any:
    names = [block.name for block in job.blocks]
    raise ValueError(
        f"there is no derivative through the step of {names}: their groups lie across devices. Cut them along their "
        "groups, or not at all."
    )


def _spread(problem: Subproblem, cuts: Sequence[Cut], names: Names) -> Subproblem:
    """The problem with what it takes to sum over groups that lie across devices."""
    block = problem.block
    if not names:
        return problem
    if len(block.members) == 1:
        return problem._replace(along=(Along(block.axes(0)),), names=names)
    common = common_names(block, cuts)
    number = block.number // math.prod(jax.lax.axis_size(name) for name in common)
    along = []
    for k, member in enumerate(block.members):
        own = () if common else group_names(block, k, cuts)
        copies = tuple(n for n in names if n not in cuts[member.leaf].names)
        along.append(Along(block.axes(k), number, own, copies))
    return problem._replace(along=tuple(along), names=names)


def _owners(shapes: Sequence[tuple[int, ...]], devices: int) -> list[int]:
    """Which device solves each array: the largest first, each to who has the least to do."""
    work = [0.0] * devices
    owners = [0] * len(shapes)
    # Of a decomposition.
    cost = lambda shape: math.prod(shape) * min(math.prod(shape[:-1]), shape[-1])
    for i in sorted(range(len(shapes)), key=lambda i: -cost(shapes[i])):
        owners[i] = work.index(min(work))
        work[owners[i]] += cost(shapes[i])
    return owners


def _by_owner(solver: Solver, cut: Cut, owner: int, problem: Subproblem, warm: Any) -> Solution:
    """The solution of one array by one device of those over which it is cut."""
    smooth, start = problem.smooth(0), problem.parts[0].start
    rows = _rows(warm, start.shape)
    scalar = smooth.d.ndim == 0
    own = [smooth.at_zero(), start, *([] if scalar else [smooth.d])]
    stacked = jnp.concatenate([jnp.stack(own), rows])
    stacked_layout = ((), *cut.state)
    mine = jax.lax.axis_index(cut.names) == owner

    def solve(stacked: jax.Array) -> tuple[jax.Array, ...]:
        d = smooth.d if scalar else stacked[2]
        old = _like(warm, stacked[len(own) :])
        part = Part((stacked[0], d), stacked[1])
        whole = problem._replace(parts=(part,), scalars=(), pieces=_as_they_are)
        (solution,) = solver.solve([whole], [old], solvers.together)
        new = jnp.concatenate([solution.x[0][None], _rows(solution.warm, stacked[0].shape)])
        return vary((new, solution.iterations, solution.residual))

    def wait(stacked: jax.Array) -> tuple[jax.Array, ...]:
        return vary(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract))

    # The two branches are of one type: both vary over the devices.
    vary = lambda tree: jax.tree.map(lambda x: jnp.where(mine, x, x), tree)
    # Known to be the same on all devices: JAX's SVD for TPUs takes no input of a type that varies over them.
    gathered = gather(stacked, stacked_layout, to="invarying")
    abstract = jax.eval_shape(solve, gathered)
    new, iterations, residual = jax.lax.cond(mine, solve, wait, gathered)
    for axis, names in enumerate(stacked_layout):
        if names:
            new = jax.lax.psum_scatter(new, names, scatter_dimension=axis, tiled=True)
    return Solution((new[0],), _like(warm, new[1:]), iterations, residual)


def _as_they_are(
    arrays: tuple[jax.Array, ...], start: jax.Array, scalars: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """The `pieces` of a problem whose arrays are b and D: it differs from the original by a constant."""
    b, d = arrays
    return -b, jnp.zeros_like(b), d


def _rows(warm: Any, shape: tuple[int, ...]) -> jax.Array:
    """The arrays of this shape in a warm start, stacked; none where it is something else."""
    if warm is not None and warm.shape == shape:
        return warm[None]
    if warm is not None and warm.shape[1:] == shape:
        return warm
    return jnp.zeros((0, *shape))


def _like(warm: Any, rows: jax.Array) -> Any:
    """The inverse of `_rows`, for a warm start of this form."""
    if rows.shape[0] == 0:
        return warm
    return rows if warm.ndim == rows.ndim else rows[0]


def _agree(out: Outputs, separated: Sequence[Names], axes: Names) -> Outputs:
    """With the most iterations, and the residuals of whole blocks, on all devices: two collectives."""
    number = len(separated)
    dtype = _numerics.scalar_dtype()
    # Neither has a derivative, and a maximum over devices has no rule for one. What is the same on some devices is made to
    # vary over all: a collective over an axis takes nothing else.
    varying = 0 * jax.lax.axis_index(axes).astype(dtype)
    vector = lambda xs: jnp.stack([jax.lax.stop_gradient(x.astype(dtype)) for x in xs]) + varying
    residuals, counts = vector(out.residual), vector(out.iterations)
    most = jax.lax.pmax(jnp.concatenate([residuals, counts]), axes)
    largest, iterations = most[:number], most[number:].astype(jnp.int32)
    # Devices that know the same residual share it. (A maximum over devices may pass over a NaN, a sum does not.)
    devices = jax.lax.axis_size(axes)
    copies = [devices // math.prod(jax.lax.axis_size(n) for n in names) for names in separated]
    unit = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0)
    squares = jax.lax.psum(jnp.square(residuals / unit) / jnp.asarray(copies, dtype), axes)
    total = unit * jnp.sqrt(squares)
    return out._replace(
        iterations=tuple(iterations[k] for k in range(number)),
        residual=tuple(total[k].astype(x.dtype) for k, x in enumerate(out.residual)),
    )
