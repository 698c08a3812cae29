"""How much, instead of how strong: `TargetSparsity`, and the rule by which it sets a strength at every step."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ramda_jax import _numerics, _validation, selection
from ramda_jax._numerics import Schedulable
from ramda_jax.regularizers import GroupNorm, ScoredStrength
from ramda_jax.regularizers.base import Strength
from ramda_jax.selection import Answer, Question, Scores
from ramda_jax.step import Inputs, Job, Leaf
from ramda_jax.subproblem import Along, Block

# lambda_t = _MEMORY lambda_{t-1} + (1 - _MEMORY) middle.
_MEMORY = 0.95
# How far from the ends of its interval a strength is kept: what summing the squares of a group may be off by, in units of
# the rounding of one operation.
_ROUNDINGS = 64
# A strength is held for the first steps of a later stage: so many, but at most one in so many of the stage's.
_HELD, _HELD_SHARE = 100, 20


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TargetSparsity(ScoredStrength):
    """A strength that is set, step by step, so that a given share of the groups is zero.

    It stands where a strength is given: of a regularizer whose strength alone says which groups are zero (group lasso, L1
    and the other entrywise ones, the group strength of a sparse group lasso), in any assignment or rule. In the subproblem
    of a step group g is zero iff its score ||D x0 - v||_g / (w sqrt|g|) is at most lambda. So exactly k groups are zero iff
    lambda is in [L, H), L and H the k-th and the next smallest score, and

      lambda_t = clip(0.95 lambda_{t-1} + 0.05 (L + H) / 2,  L, H),   kept a rounding away from the ends.

    mode="exact": this at every step. What_t has the count that is asked for, within one group, at every step; lambda never
    stops to move, so nothing promises that the groups are those of a limit.

    mode="settle": this until `settle_step`, except that lambda is held for the first min(100, 5 %) steps of every later
    stage, where scores are noise. From `settle_step` on lambda is what it was just before, groups that were zero then stay
    zero, and lambda is multiplied by `relax` on the others, which may die too (`solver_stats` says how many).

    `settle_step` is best left alone where the last stage has only a few hundred steps: the last restart. Within a stage
    that another follows, lambda is relaxed at the start of that, since What would jump; until then it is lowered by as
    little as keeps the others alive. Where none follows, a method that averages wants relax=1.

    Args:
      fraction: of what `of` counts that is to be zero, in [0, 1]: a number or a 0-d array. 0 is no strength at all; groups
        that nothing ever moved from zero are zero all the same.
      of: "groups"; "params": a group counts as often as it has entries; "flops": what a network takes without them, as
        `rj.compact(...).report()` has it; for `rj.network(...).channels`, with scope="tree".
      scope: "layer": every block has a strength of its own, and the fraction; "tree": one strength for all blocks with this
        target, and the fraction in all of them together. Layers' strengths differ a hundredfold: one for all may kill whole
        layers.
      mode: "settle" or "exact".
      settle_step: 0-based step count, >= 1; None: the last of `restart_steps`.
      relax: >= 0; 1 keeps the objective, which is for identification; 0.1 removes most of the shrinkage, which is for
        networks.
      ramp: how the fraction grows. None: it does not; an integer T: fraction (1 - (1 - t / T)^3) at the t-th step, all of
        it from step T on; or a schedule, a function of the 0-based step count whose value multiplies the fraction. From
        some 90 % on, and for methods that shrink at every step (`prox_sgd`, `prox_adamw`, `prox_ssi`) always, let it grow
        over 80 % of the first stage.
      min_alive: the share of the groups of every block that stays alive, in [0, 1 - fraction].
      multiple_of: the number of living groups of every block is rounded up to a multiple of this.

    Raises:
      ValueError: for constants out of range; when it meets a method, if that never settles, or the regularizer has no such
        scores.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> params = {"kernel": jnp.arange(1.0, 13.0).reshape(6, 2)}
      >>> tx = rj.ramda(0.1, rj.GroupLasso(rj.TargetSparsity(0.5, mode="exact")))
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> rj.solver_stats(state)["dead/kernel"]
      3
    """

    fraction: ArrayLike
    of: str = "groups"
    scope: str = "layer"
    mode: str = "settle"
    settle_step: int | None = None
    relax: ArrayLike = 0.1
    ramp: int | Schedulable | None = None
    min_alive: float = 0.0
    multiple_of: int = 1

    def __post_init__(self) -> None:
        name = "TargetSparsity"
        _validation.check_range(f"{name}.fraction", self.fraction, 0.0, 1.0, schedule=False)
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                text = ", ".join(map(repr, choices))
                raise ValueError(f"{name}.{field} must be one of {text}, got {self._of(field)!r}.")
        if self.of == "flops" and self.scope != "tree":
            raise ValueError(
                f'{name}: of="flops" is a share of the whole network: give scope="tree".'
            )
        if self.settle_step is not None:
            _validation.check_integer(f"{name}.settle_step", self.settle_step, 1)
            if self.mode == "exact":
                raise ValueError(
                    f'{name}.settle_step is for mode="settle"; mode="exact" never settles.'
                )
        _validation.check_range(f"{name}.relax", self.relax, 0.0, schedule=False)
        if self.ramp is not None and not callable(self.ramp):
            _validation.check_integer(f"{name}.ramp", self.ramp, 1)
        _validation.check_range(f"{name}.min_alive", self.min_alive, 0.0, 1.0, schedule=False)
        _validation.check_integer(f"{name}.multiple_of", self.multiple_of, 1)
        known = _number(self.fraction)
        if known is not None and known > 1 - self.min_alive + 1e-9:
            raise ValueError(
                f"{name}.fraction must be in [0, {1 - self.min_alive:g}] where min_alive={self.min_alive:g}, "
                f"got {self.fraction!r}."
            )

    def _of(self, field: str) -> Any:
        return getattr(self, field)

    def __repr__(self) -> str:
        """As one would type it."""
        fields = dataclasses.fields(TargetSparsity)
        given = [f for f in fields[1:] if self._of(f.name) is not f.default]
        texts = [f"{self.fraction!r}", *(f"{f.name}={self._of(f.name)!r}" for f in given)]
        return f"TargetSparsity({', '.join(texts)})"

    def key(self) -> tuple[object, ...]:
        """What two targets that are the same have in common."""
        values = [self._of(f.name) for f in dataclasses.fields(self)]
        return tuple(x if isinstance(x, (int, float, str, type(None))) else id(x) for x in values)

    def at_step(self, count: jax.Array) -> jax.Array:
        """The fraction at the 0-based step `count`, 0-d."""
        fraction = _numerics.as_scalar(self.fraction)
        if self.ramp is None:
            return fraction
        if callable(self.ramp):
            return fraction * _numerics.evaluate(self.ramp, count)
        left = 1 - jnp.minimum((_numerics.as_scalar(count) + 1) / self.ramp, 1)
        return fraction * (1 - left * left * left)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Priced(TargetSparsity):
    """A target of FLOPs, with what they are.

    Attributes:
      price: static, hashable: `network.price.Price`.
    """

    price: Any = None


def wants_price(strength: Any) -> bool:
    """Whether a strength is a target of FLOPs."""
    return isinstance(strength, TargetSparsity) and strength.of == "flops"


def priced(strength: Any, price: Any) -> Any:
    """The strength; a target of FLOPs with what they are."""
    if not wants_price(strength):
        return strength
    fields = {f.name: getattr(strength, f.name) for f in dataclasses.fields(TargetSparsity)}
    return _Priced(**fields, price=price)


_CHOICES = {
    "of": ("groups", "params", "flops"),
    "scope": ("layer", "tree"),
    "mode": ("settle", "exact"),
}


def _number(value: Any) -> float | None:
    """A Python number as one, None where it is an array or traced."""
    return float(value) if isinstance(value, (int, float)) else None


# What is static.


@dataclasses.dataclass(frozen=True)
class Rule:
    """One strength: of one block, or of all that share it.

    Attributes:
      blocks: places in the step.
      numbers: of groups of each.
      sizes: what a group of each counts.
      alive: how many groups of each stay alive.
      multiple_of: the living groups of each are rounded up to a multiple of this.
      settles: whether there is a mask.
      total: of what is counted.
      price: what dead groups are worth, where they do not count by `sizes`: `removed` of it, of counts by place.
      places: of the blocks in it.
    """

    blocks: tuple[int, ...]
    numbers: tuple[int, ...]
    sizes: tuple[int, ...]
    alive: tuple[int, ...]
    multiple_of: int
    settles: bool
    total: int
    price: Any = None
    places: tuple[int, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether any number of groups of any block may die."""
        return self.multiple_of == 1 and not any(self.alive)

    def dead(self, k: int, count: Any) -> Any:
        """How many groups of the k-th block die where `count` would: a Python number, or a 0-d array."""
        if self.is_plain:
            return count
        least = math.ceil(self.alive[k] / self.multiple_of) * self.multiple_of
        living = (self.numbers[k] - count + self.multiple_of - 1) // self.multiple_of
        array = isinstance(count, jax.Array)
        larger, smaller = (jnp.maximum, jnp.minimum) if array else (max, min)
        return self.numbers[k] - smaller(larger(living * self.multiple_of, least), self.numbers[k])

    def most(self, k: int) -> int:
        """How many groups of the k-th block may die."""
        return self.dead(k, self.numbers[k])

    def amount(self, counts: Sequence[jax.Array]) -> jax.Array:
        """What dead groups, so many in each block, count together; an int32 unless that is too small."""
        if self.price is not None:
            return self.price.removed(dict(zip(self.places, counts, strict=True)))
        dtype = self._dtype
        rows = zip(counts, self.sizes, strict=True)
        return sum((c.astype(dtype) * size for c, size in rows), jnp.zeros([], dtype))

    @property
    def _dtype(self) -> Any:
        small = self.total < 2**31 and self.price is None
        return jnp.dtype(jnp.int32) if small else _numerics.scalar_dtype()

    @property
    def is_single(self) -> bool:
        """Whether it is of one block, all of whose groups count the same."""
        return len(self.blocks) == 1 and self.price is None

    def target(self, fraction: jax.Array) -> jax.Array:
        """The amount that is wanted; of a single block, the number of its groups."""
        if self.is_single:
            return self.dead(0, jnp.round(fraction * self.numbers[0]).astype(jnp.int32))
        if self.price is not None:
            return fraction
        return jnp.round(fraction * self.total).astype(self._dtype)

    def question(self, at: tuple[int, ...], fraction: jax.Array) -> Question:
        """How much of its blocks, which are at these places among those with a target, is to die."""
        if self.is_single:
            return Question(at, _only, self.target(fraction), (self.most(0),))
        allowed = lambda counts: self.amount([self.dead(k, c) for k, c in enumerate(counts)])
        return Question(at, allowed, self.target(fraction))

    def share(self, counts: Sequence[jax.Array]) -> jax.Array:
        """What dead groups, so many in each block, are of the total."""
        return _numerics.as_scalar(self.amount(counts)) / max(self.total, 1)


class Wanted(NamedTuple):
    """What a rule wants at a step, 0-d arrays.

    Attributes:
      fraction: of the total.
      held: whether the strength stays as it is.
      settled: whether it does from now on, and what is dead stays dead.
      cleared: whether what the accumulators hold of dead groups may be other than zero.
      waits: whether it is settled and not relaxed yet: it is what it was, or as little less as keeps the others alive.
      relax: the factor, where it does not wait.
    """

    fraction: jax.Array
    held: jax.Array
    settled: jax.Array
    cleared: jax.Array
    waits: jax.Array
    relax: jax.Array


class TargetState(NamedTuple):
    """What targets remember, and what they say of the last step; of every block with a target, in the order of the plan.

    Attributes:
      strength: as it was chosen, without `relax`; 1-d.
      low, high: the interval it was chosen from; 1-d.
      fraction: what is zero of what the target counts, in its scope; 1-d.
      dead: how many groups are zero; int32, 1-d.
      died: how many of these have died since the target has settled; int32, 1-d.
      masks: which groups are dead, a number per group as solvers keep them (`Newton.init`), or of the shape of an entrywise
        regularizer's view; None where the target never settles.
    """

    strength: jax.Array
    low: jax.Array
    high: jax.Array
    fraction: jax.Array
    dead: jax.Array
    died: jax.Array
    masks: tuple[Any, ...]


class Targets(NamedTuple):
    """The targets of a transformation.

    Attributes:
      rules: static.
      given: of every rule, the target as the user gave it.
      stages: the 0-based steps at which stages start.
    """

    rules: tuple[Rule, ...]
    given: tuple[TargetSparsity, ...]
    stages: tuple[int, ...]

    def modes(self) -> dict[int, str]:
        """By the place of every block with a target, its mode."""
        pairs = zip(self.rules, self.given, strict=True)
        return {i: target.mode for rule, target in pairs for i in rule.blocks}

    def at_step(self, count: jax.Array) -> tuple[Wanted, ...]:
        """What every rule wants at the 0-based step `count`."""
        return tuple(_wanted(target, self.stages, count) for target in self.given)


def targets_of(
    blocks: Sequence[Block], strengths: Sequence[Sequence[Strength]], stages: tuple[int, ...]
) -> Targets:
    """The targets among the strengths of blocks.

    Raises:
      ValueError: naming the block whose regularizer cannot have a target, and for a target that never settles.
    """
    shared: dict[Any, list[int]] = {}
    found: dict[Any, TargetSparsity] = {}
    for i, (block, own) in enumerate(zip(blocks, strengths, strict=True)):
        target = _target_of(block, own)
        if target is not None:
            if target.mode == "settle" and _settle_step(target, stages) is None:
                raise ValueError(
                    f"the target of {block.name!r} never settles: the method has no restart_steps, whose last one would be "
                    "the step. Give TargetSparsity(settle_step=...), the step from which what is dead stays dead, or "
                    'mode="exact".'
                )
            key = (*target.key(), *(() if target.scope == "tree" else (i,)))
            shared.setdefault(key, []).append(i)
            found[key] = target
    rules = tuple(_rule(found[key], own, blocks) for key, own in shared.items())
    return Targets(rules, tuple(found.values()), stages)


def _target_of(block: Block, strengths: Sequence[Strength]) -> TargetSparsity | None:
    psi: Any = block.psi
    scored = [s for s in strengths if isinstance(s, ScoredStrength)]
    if not scored:
        return None
    kind = type(psi).__name__
    if psi.scored is None or psi.structure != "groups":
        raise ValueError(
            f"{kind} cannot have a TargetSparsity ({block.name!r}): no single strength says which of its groups are zero. "
            "GroupLasso, SparseGroupLasso (its group strength), L1, ElasticNet (its l1), L0, LHalf and LTwoThirds can."
        )
    if len(scored) > 1 or not isinstance(getattr(psi, psi.scored), ScoredStrength):
        raise ValueError(
            f"{kind} can have a TargetSparsity only for {psi.scored!r} ({block.name!r})."
        )
    target = scored[0]
    if not isinstance(target, TargetSparsity):
        raise ValueError(f"{target!r} of {block.name!r} is no TargetSparsity.")
    return target


def _rule(target: TargetSparsity, places: Sequence[int], blocks: Sequence[Block]) -> Rule:
    own = [blocks[i] for i in places]
    numbers = [block.psi.num_groups(block.shape) for block in own]
    sizes = [1] * len(own)
    if target.of == "params":
        sizes = [math.prod(b.shape) // max(n, 1) for b, n in zip(own, numbers, strict=True)]
    price, at = getattr(target, "price", None), ()
    if target.of == "flops":
        if price is None:
            raise ValueError(
                f'TargetSparsity(of="flops") of {own[0].name!r} needs to know the network: give the regularizer to '
                "net.channels of net = rj.network(...)."
            )
        at = tuple(price.names.index(block.name) for block in own)
    # What is meant by 0.3 of 10 is 3.
    alive = tuple(math.ceil(target.min_alive * n - 1e-6) for n in numbers)
    rule = Rule(
        tuple(places),
        tuple(numbers),
        tuple(sizes),
        alive,
        target.multiple_of,
        target.mode == "settle",
        1 if price else sum(n * size for n, size in zip(numbers, sizes, strict=True)),
        price,
        at,
    )
    if price is not None:
        _check_reachable(rule, target)
    return rule


def _check_reachable(rule: Rule, target: TargetSparsity) -> None:
    """Raise ValueError if even with all channels dead that may die too little is gone."""
    wanted = _number(target.fraction)
    with jax.ensure_compile_time_eval():
        most = float(rule.amount([jnp.asarray(rule.most(k)) for k in range(len(rule.blocks))]))
    if wanted is not None and wanted > most:
        raise ValueError(
            f"TargetSparsity.fraction must be in [0, {most:.3g}], got {wanted!r}: the channels that may die make no more "
            "of the network's FLOPs."
        )


def _settle_step(target: TargetSparsity, stages: tuple[int, ...]) -> int | None:
    if target.mode == "exact":
        return None
    return target.settle_step or (stages[-1] if stages else None)


def _wanted(target: TargetSparsity, stages: tuple[int, ...], count: jax.Array) -> Wanted:
    settle = _settle_step(target, stages)
    never = jnp.zeros([], bool)
    held = settled = cleared = never
    if settle is not None:
        settled = count >= settle
        ends = (*stages[1:], settle)
        for start, end in zip(stages, ends, strict=False):
            length = max(0, min(end, settle) - start)
            hold = min(_HELD, -(-length // _HELD_SHARE))
            held = held | ((count >= start) & (count < start + hold))
        # A later restart takes W^0 from W, an average that is not zero.
        for step in {settle, *(s for s in stages if s > settle)}:
            cleared = cleared | (count == step)
    waits = settled & ~_relaxes(target, stages, count)
    relax = jnp.where(waits, 1.0, _numerics.as_scalar(target.relax))
    return Wanted(target.at_step(count), held, settled, cleared, waits, relax)


def _relaxes(target: TargetSparsity, stages: tuple[int, ...], count: jax.Array) -> jax.Array:
    """Whether a strength that has settled is relaxed yet: not within the stage in which it did, if another follows.

    A smaller strength moves every living group of What by the difference times w sqrt|g| / D, at once. Within a stage w
    and D are sums over all its steps, and no step of the training so far was of that length; at its start they are new.
    """
    settle = _settle_step(target, stages)
    later = [step for step in stages if settle is not None and step >= settle]
    return count >= later[0] if later else jnp.ones([], bool)


def asked(rules: Sequence[Rule]) -> list[int]:
    """The places of the blocks that have a target, in the order in which `TargetState` has them."""
    return sorted(i for rule in rules for i in rule.blocks)


# What is done at a step.


class Look(NamedTuple):
    """What this device sees of the groups of one block.

    Attributes:
      scores: a number per group, or per entry.
      names: the mesh axes over which these lie.
    """

    scores: jax.Array
    names: tuple[str, ...] = ()


def choose(
    job: Job,
    rules: Sequence[Rule],
    inputs: Inputs,
    wanted: Sequence[Wanted],
    old: TargetState,
    entries: Callable[[int, jax.Array], dict[int, jax.Array]],
    look: Callable[[Inputs], Sequence[Look]],
) -> tuple[Inputs, TargetState]:
    """The inputs with the strengths of all blocks that have a target, and without what must stay dead.

    Args:
      job: of the step.
      rules: its targets.
      inputs: of the step.
      wanted: of every rule.
      old: after the last step.
      entries: (the place of a block, its mask) -> by the place of a leaf, which of its entries are masked.
      look: the inputs -> what this device sees of every block that has a target, in the order of `asked`.
    """
    places = asked(rules)
    inputs = inputs._replace(leaves=_clear(rules, wanted, old, inputs.leaves, entries))
    looks = look(jax.lax.stop_gradient(inputs))
    scores = _scores(looks)
    rows: dict[int, _Row] = {}
    for rule, wants, own, answers in zip(
        rules, wanted, at := _at(rules), _answers(rules, scores, wanted), strict=True
    ):
        rows |= _rows(rule, wants, own, answers, old, inputs.scalars.weight)
    psis = list(inputs.psis)
    inside = []
    for k, i in enumerate(places):
        force, psi = rows[k].force, psis[i]
        psis[i] = dataclasses.replace(psi, **{_scored(psi): force})  # type: ignore[type-var]  # every one is a dataclass
        # As the solver will have it, which is in the accumulators' dtype.
        dtype = inputs.leaves[job.blocks[i].members[0].leaf].arrays[0].dtype
        limit = force.astype(dtype).astype(selection.as_floats(scores[k].bits[..., :0]).dtype)
        inside.append(scores[k].bits <= selection.as_bits(limit))
    new = _remembered(rules, scores, wanted, old, rows, at, inside)
    return inputs._replace(psis=tuple(psis)), new


def _scored(psi: Any) -> str:
    """The field of the strength that scores are in the units of."""
    return str(psi.scored)


def _at(rules: Sequence[Rule]) -> list[tuple[int, ...]]:
    """Of every rule the places of its blocks among those that have a target."""
    places = asked(rules)
    return [tuple(places.index(i) for i in rule.blocks) for rule in rules]


def _scores(looks: Sequence[Look]) -> list[Scores]:
    """Of one dtype: the bits of floats of two widths are not in one order."""
    dtype = jnp.result_type(jnp.float32, *(x.scores.dtype for x in looks))
    return [Scores(selection.as_bits(x.scores.astype(dtype)), x.names) for x in looks]


def _answers(
    rules: Sequence[Rule], scores: Sequence[Scores], wanted: Sequence[Wanted]
) -> list[list[Answer]]:
    """Of every rule its interval, and those of its blocks where these may not all take it."""
    at = _at(rules)
    rows = zip(rules, at, wanted, strict=True)
    questions = [rule.question(own, wants.fraction) for rule, own, wants in rows]
    answers = [[answer] for answer in selection.select(scores, questions)]
    restricted = [r for r, rule in enumerate(rules) if not (rule.is_plain or rule.is_single)]
    further = []
    for r in restricted:
        own = [scores[k] for k in at[r]]
        counts = selection.counted(own, [s.bits <= answers[r][0].low for s in own])
        for k, (place, count) in enumerate(zip(at[r], counts, strict=True)):
            wants = rules[r].dead(k, count)
            further.append(Question((place,), _only, wants, (rules[r].most(k),)))
    remaining = iter(selection.select(scores, further))
    for r in restricted:
        answers[r] += [next(remaining) for _ in at[r]]
    return answers


def _only(counts: Sequence[jax.Array]) -> jax.Array:
    return counts[0]


class _Row(NamedTuple):
    """Of one block, 0-d: as in `TargetState`, and the strength in force."""

    strength: jax.Array
    low: jax.Array
    high: jax.Array
    force: jax.Array


def _rows(
    rule: Rule,
    wanted: Wanted,
    at: tuple[int, ...],
    answers: Sequence[Answer],
    old: TargetState,
    weight: jax.Array,
) -> dict[int, _Row]:
    """The strengths of the blocks of a rule."""
    shared = answers[0]
    _, shared_high = _inner(shared)
    previous = jnp.max(jnp.stack([old.strength[k] for k in at]))
    new = _strength(shared, previous)
    new = jnp.where(rule.target(wanted.fraction) > 0, new, jnp.zeros_like(new))
    rows = {}
    # Where nothing is regularized (a learning rate of 0) no strength kills anything.
    keeps = wanted.held | wanted.settled | ~(weight > 0)
    for k, own in zip(at, answers[1:] or [shared] * len(at), strict=True):
        own_low, own_high = _inner(own)
        strength = jnp.minimum(new, own_high.astype(new.dtype))
        strength = jnp.where(keeps, old.strength[k], strength)
        # What is masked has the score 0, so that the interval is what keeps all others alive.
        alive = jnp.minimum(shared_high, own_high).astype(new.dtype)
        strength = jnp.where(wanted.waits, jnp.minimum(strength, alive), strength)
        # Of the two intervals the one it was taken from.
        apart = own_high.astype(new.dtype) < new
        low = jnp.where(apart, own_low, selection.as_floats(shared.low)).astype(new.dtype)
        high = jnp.where(apart, selection.as_floats(own.high), selection.as_floats(shared.high))
        low = jnp.where(wanted.settled, old.low[k], low)
        high = jnp.where(wanted.settled, old.high[k], high.astype(new.dtype))
        force = strength * jnp.where(wanted.settled, wanted.relax, jnp.ones_like(wanted.relax))
        rows[k] = _Row(strength, low, high, force)
    return rows


def _inner(answer: Answer) -> tuple[jax.Array, jax.Array]:
    """The ends of an interval moved inside by a rounding, or a quarter of it where it is narrow."""
    low, high = selection.as_floats(answer.low), selection.as_floats(answer.high)
    info = jnp.finfo(low.dtype)
    end = jnp.minimum(high, float(info.max))
    room = 0.25 * (end - low)
    near = _ROUNDINGS * float(info.eps)
    return low + jnp.minimum(near * low, room), end - jnp.minimum(near * end, room)


def _strength(answer: Answer, previous: jax.Array) -> jax.Array:
    """The next strength in an interval; from its middle where there was none."""
    low, high = selection.as_floats(answer.low), selection.as_floats(answer.high)
    # Where everything dies there is no middle.
    middle = jnp.where(high < jnp.inf, low + 0.5 * (high - low), low).astype(previous.dtype)
    moved = _MEMORY * previous + (1 - _MEMORY) * middle
    inner = [x.astype(previous.dtype) for x in _inner(answer)]
    return jnp.clip(jnp.where(previous > 0, moved, middle), *inner)


def _remembered(
    rules: Sequence[Rule],
    scores: Sequence[Scores],
    wanted: Sequence[Wanted],
    old: TargetState,
    rows: dict[int, _Row],
    at: Sequence[tuple[int, ...]],
    inside: Sequence[jax.Array],
) -> TargetState:
    """What the next step must know, and what is said of this one. `inside`: which groups die."""
    dead = selection.counted(scores, inside)
    died, masks, fraction = list(dead), list(old.masks), [old.fraction[0]] * len(dead)
    survivors = [x if mask is None else x & ~mask for x, mask in zip(inside, masks, strict=True)]
    late = selection.counted(scores, survivors)
    for rule, wants, own in zip(rules, wanted, at, strict=True):
        share = rule.share([dead[k] for k in own]).astype(old.fraction.dtype)
        for k in own:
            died[k] = jnp.where(wants.settled, late[k], jnp.zeros_like(late[k]))
            fraction[k] = share
            if masks[k] is not None:
                masks[k] = jnp.where(wants.settled, masks[k], inside[k])
    strength, low, high, _ = (
        jnp.stack(xs) for xs in zip(*(rows[k] for k in range(len(dead))), strict=True)
    )
    told = jnp.stack(fraction), jnp.stack(dead), jnp.stack(died)
    return TargetState(strength, low, high, *told, tuple(masks))


# What settles: dead groups stay dead, because nothing that the subproblem is made of is left of them.


def _clear(
    rules: Sequence[Rule],
    wanted: Sequence[Wanted],
    old: TargetState,
    leaves: Sequence[Leaf],
    entries: Callable[[int, jax.Array], dict[int, jax.Array]],
) -> tuple[Leaf, ...]:
    """The leaves of the step with what belongs to groups that must stay dead made 0; arguments as those of `choose`.

    With V, x0 (or the parameter, which is zero there already) and the gradient 0, b = D x0 - v is 0, and so is X.
    """
    new = list(leaves)
    places = asked(rules)
    for rule, wants in zip(rules, wanted, strict=True):
        for i in rule.blocks if rule.settles else ():
            for k, mask in entries(i, old.masks[places.index(i)]).items():
                new[k] = _cleared(new[k], mask, wants)
    return tuple(new)


def _cleared(leaf: Leaf, mask: jax.Array, wanted: Wanted) -> Leaf:
    zero = lambda x: jnp.where(mask, jnp.zeros_like(x), x)
    # The accumulators are left alone but where there may be something to clear: most steps write nothing.
    arrays = jax.lax.cond(
        wanted.cleared, lambda xs: tuple(map(zero, xs)), lambda xs: xs, leaf.arrays
    )
    return leaf._replace(
        arrays=arrays,
        grad=jnp.where(wanted.settled & mask, jnp.zeros_like(leaf.grad), leaf.grad),
    )


def masked_entries(
    block: Block,
    mask: jax.Array,
    along: Callable[[], Sequence[Along]],
    shape: Callable[[int], tuple[int, ...]],
) -> dict[int, jax.Array]:
    """By the place of a leaf, which of its entries belong to masked groups; arrays that broadcast against it.

    Args:
      block: whose groups they are.
      mask: a number per group; see `TargetState`.
      along: gives how the groups lie in each member, where they are groups.
      shape: of a leaf, by its place.
    """
    found: dict[int, jax.Array] = {}
    for k, member in enumerate(block.members):
        full = jnp.zeros(shape(member.leaf), bool)
        view = member.take(full)
        own = along()[k].spread(mask, view) if isinstance(block.psi, GroupNorm) else mask
        if member.is_plain:
            found[member.leaf] = own
        else:
            before = found.get(member.leaf, full)
            found[member.leaf] = member.put(before, jnp.broadcast_to(own, view.shape))
    return found
