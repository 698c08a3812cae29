"""A target is met at every step, whatever the method, the arrays, the scope and the precision."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ramda_jax as rj
from ramda_jax import selection
from ramda_jax.selection import Question, Scores

SHAPES = {
    "conv": {"kernel": (3, 3, 20, 4)},
    "dense": {"kernel": (30, 5), "bias": (5,)},
    "entries": {"kernel": (9, 8)},
    "mlp": {"up": {"kernel": (5, 24)}, "down": {"kernel": (24, 7), "bias": (7,)}},
}
NEURON = {"neuron": [("{m}/up/kernel", -1), ("{m}/down/kernel", -2)]}
METHODS = {
    "ramda": functools.partial(rj.ramda, 0.1),
    "rmda": functools.partial(rj.rmda, 0.1),
    "prox_sgd": functools.partial(rj.prox_sgd, 0.1),
    "prox_adamw": functools.partial(rj.prox_adamw, 0.01),
}


def draw(seed, shapes=None, dtype=np.float32):
    rng = np.random.default_rng(seed)
    make = lambda shape: jnp.asarray(0.3 * rng.standard_normal(shape), dtype)
    return jax.tree.map(make, shapes or SHAPES, is_leaf=lambda s: isinstance(s, tuple))


def mixed(make):
    """A convolution and a dense layer that share a strength; entries and neurons with their own."""
    return rj.by_path(
        [
            ("^(conv|dense)/kernel", rj.GroupLasso(make(scope="tree", of="params"))),
            ("^entries/", rj.L1(make())),
            ("^mlp/.*kernel", rj.coupled(NEURON, rj.SparseGroupLasso(1e-3, make()))),
            (".*", None),
        ]
    )


def dead_groups(params):
    """By block, the zero groups of `SHAPES`, each a bool."""
    p = jax.tree.map(np.asarray, params)
    zero = lambda x, axes: ~np.any(x, axis=axes)
    up, down = p["mlp"]["up"]["kernel"], p["mlp"]["down"]["kernel"]
    return {
        "conv": zero(p["conv"]["kernel"], (0, 1, 3)),
        "dense": zero(p["dense"]["kernel"], 1),
        "entries": (p["entries"]["kernel"] == 0).ravel(),
        "mlp": zero(up, 0) & zero(down, 1),
    }


def at_a_fraction(make, rules=mixed, **options):
    """(fraction, params, state, gradient) -> the same after a step, compiled once for all fractions."""

    def step(fraction, params, state, grads):
        tx = make(rules(functools.partial(rj.TargetSparsity, fraction, mode="exact", **options)))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, rj.structured_params(state, params, values="minimizer")

    start = make(rules(functools.partial(rj.TargetSparsity, 0.5, mode="exact", **options))).init
    return start, jax.jit(step)


FRACTIONS = (0.0, 0.5, 0.8, 0.95, 0.0, *(0.95 * (1 - (1 - t / 5) ** 3) for t in range(1, 6)), 1.0)


@pytest.mark.parametrize(
    ("method", "double"),
    [*((name, False) for name in METHODS), ("ramda", True)],
)
def test_the_count_is_within_one_group_of_the_target_at_every_step(method, double):
    with jax.enable_x64(double):
        dtype = np.float64 if double else np.float32
        start, step = at_a_fraction(METHODS[method])
        params = draw(0, dtype=dtype)
        state = start(params)
        for seed, fraction in enumerate([f for f in FRACTIONS for _ in range(2)]):
            grads = draw(1 + seed, dtype=dtype)
            params, state, structured = step(fraction, params, state, grads)
            dead = {name: zero.sum() for name, zero in dead_groups(structured).items()}
            assert abs(dead["entries"] - fraction * 72) <= 1, (fraction, dead)
            assert abs(dead["mlp"] - fraction * 24) <= 1, (fraction, dead)
            # 20 groups of 36 entries and 30 of 5.
            shared = dead["conv"] * 36 + dead["dense"] * 5
            assert abs(shared - fraction * 870) <= 36 / 2, (fraction, dead)
            stats = rj.solver_stats(state)
            assert stats["dead/entries/kernel"] == dead["entries"]
            assert stats["dead/neuron/mlp"] == dead["mlp"]
            assert stats["fraction/conv/kernel"] == pytest.approx(shared / 870, rel=1e-6)
            assert stats["strength/conv/kernel"] == stats["strength/dense/kernel"]
            assert (stats["strength/conv/kernel"] == 0) == (fraction == 0)


def layer(seed, groups=40):
    return draw(seed, {"a": {"kernel": (groups, 3)}, "b": {"kernel": (groups // 2, 4)}})


@functools.cache
def compiled(make, **options):
    """`at_a_fraction` for `layer`, compiled once."""
    return at_a_fraction(make, lambda target: rj.GroupLasso(target()), **options)


def trained(fractions, make=METHODS["ramda"], **options):
    """(zero groups of both layers, the stats) at every step."""
    start, step = compiled(make, **options)
    params = layer(0)
    state, rows = start(params), []
    for seed, fraction in enumerate(fractions):
        params, state, structured = step(fraction, params, state, layer(1 + seed))
        dead = [int((~np.any(np.asarray(structured[k]["kernel"]), 1)).sum()) for k in "ab"]
        rows.append((dead, rj.solver_stats(state)))
    return rows


def test_the_strength_moves_slowly_within_its_interval():
    old = 0.0
    for dead, stats in trained([0.6] * 6):
        assert dead == [24, 12]
        low, high = stats["strength_low/a/kernel"], stats["strength_high/a/kernel"]
        middle = 0.5 * (low + high)
        wanted = np.clip(0.95 * old + 0.05 * middle if old else middle, low, high)
        old = stats["strength/a/kernel"]
        assert low < old < high
        assert old == pytest.approx(wanted, rel=1e-4)


def test_groups_that_nothing_moved_are_zero_without_any_strength():
    tx = rj.ramda(0.1, rj.GroupLasso(rj.TargetSparsity(0.0, mode="exact")))
    params = {"kernel": jnp.ones((6, 2)).at[:2].set(0.0)}
    _, state = tx.update(params, tx.init(params), params)
    structured = rj.structured_params(state, params, values="minimizer")["kernel"]
    np.testing.assert_array_equal(np.any(structured, 1), [False, False, True, True, True, True])
    assert rj.solver_stats(state)["strength/kernel"] == 0


def test_at_least_min_alive_of_every_layer_is_left():
    # One layer has much larger gradients than the other: a shared strength would kill the other.
    make = lambda psi: optax.chain(
        optax.masked(optax.scale(100.0), {"a": {"kernel": True}, "b": {"kernel": False}}),
        METHODS["ramda"](psi),
    )
    rows = trained([0.6] * 4, make, scope="tree", min_alive=0.1)
    assert [dead for dead, _ in rows] == [[18, 18]] * 4
    assert [dead for dead, _ in trained([0.9], make, scope="tree", min_alive=0.1)] == [[36, 18]]


def test_at_99_9_percent_small_layers_die():
    assert [dead for dead, _ in trained([0.999] * 2)] == [[40, 20]] * 2


@pytest.mark.parametrize("scope", ["layer", "tree"])
def test_the_living_are_rounded_up_to_a_multiple(scope):
    for dead, _ in trained([0.55] * 4, scope=scope, multiple_of=8):
        assert (40 - dead[0]) % 8 == 0
        assert (20 - dead[1]) % 8 == 0 or dead[1] == 0
        if scope == "layer":  # not 22 and 11
            assert dead == [16, 4]
        else:  # 33 of 60 in all; a step of a layer is 8 groups
            assert abs(sum(dead) - 33) <= 4


def test_ramps():
    at = lambda target: [float(target.at_step(jnp.asarray(t))) for t in range(5)]
    cubic = [0.8 * (1 - (1 - t / 4) ** 3) for t in range(1, 5)]
    np.testing.assert_allclose(at(rj.TargetSparsity(0.8, ramp=4)), [*cubic, 0.8], rtol=1e-6)
    linear = rj.TargetSparsity(0.8, ramp=optax.linear_schedule(0.0, 1.0, 4))
    np.testing.assert_allclose(at(linear), [0.0, 0.2, 0.4, 0.6, 0.8], rtol=1e-6)
    ramp = at(rj.TargetSparsity(0.8, ramp=4))
    for fraction, (dead, _) in zip(ramp, trained(ramp), strict=True):
        np.testing.assert_allclose(dead, [fraction * 40, fraction * 20], atol=0.501)


# Settling.

INPUTS, RESTARTS, STEPS = 200, (40, 80), 110


def regression(step):
    """A batch of a regression of which some inputs matter more than others."""
    rng = np.random.default_rng(100 + step)
    truth = np.random.default_rng(0).standard_normal((INPUTS, 5))
    truth *= np.exp(-np.arange(INPUTS) / 40)[:, None]
    x = rng.standard_normal((32, INPUTS))
    return jnp.float32(x), jnp.float32(x @ truth + 0.5 * rng.standard_normal((32, 5)))


def settled(make, **options):
    """(zero groups, mask, stats) of every step; 80 % of the inputs are to go."""
    tx = make(rj.GroupLasso(rj.TargetSparsity(0.8, **options)))
    params = draw(0, {"kernel": (INPUTS, 5)})

    @jax.jit
    def step(params, state, x, y):
        loss = lambda p: 0.5 * jnp.mean(jnp.sum((x @ p["kernel"] - y) ** 2, -1))
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return params, state, rj.structured_params(state, params, values="minimizer")

    state, rows = tx.init(params), []
    for t in range(STEPS):
        params, state, structured = step(params, state, *regression(t))
        zero = ~np.any(np.asarray(structured["kernel"]), 1)
        rows.append((zero, np.ravel(state.solver.targets.masks[0]), rj.solver_stats(state)))
    return rows


IN_STAGES = functools.partial(
    rj.ramda, rj.multistep(0.05, RESTARTS), momentum=0.1, restart_steps=RESTARTS
)
SETTLING = {
    "ramda relax 1": (IN_STAGES, {"relax": 1.0}),
    "ramda before the last restart": (IN_STAGES, {"settle_step": 60}),
    "prox_adamw": (functools.partial(rj.prox_adamw, 0.01), {"settle_step": 80}),
}


@pytest.mark.parametrize("case", SETTLING)
def test_what_is_dead_when_a_target_settles_stays_dead_and_the_count_stays(case):
    make, options = SETTLING[case]
    at, relax = options.get("settle_step", RESTARTS[-1]), options.get("relax", 0.1)
    relaxes = max(at, RESTARTS[-1]) if case.startswith("ramda") else at
    rows = settled(make, **options)
    before, _, stats_before = rows[at - 1]
    for t, (zero, mask, stats) in enumerate(rows):
        held = case.startswith("ramda") and 40 <= t < 40 + (at - 40) // 20  # 5 % of the stage
        if not held:  # within 0.5 points
            assert abs(zero.sum() - 0.8 * INPUTS) <= 1, t
        if held:
            assert stats["strength/kernel"] == rows[39][2]["strength/kernel"]
        if t >= at:
            np.testing.assert_array_equal(mask, before)
            assert np.all(zero[mask])
            assert stats["died/kernel"] == np.sum(zero & ~mask)
            strengths = [row[2]["strength/kernel"] for row in rows]
            if relaxes <= t:
                force = relax * strengths[relaxes - 1]
                assert strengths[t] == pytest.approx(force, rel=1e-6)
            else:  # within a stage it only keeps the others alive
                assert 0.3 * strengths[at - 1] < strengths[t] <= strengths[t - 1]
                np.testing.assert_array_equal(zero, before)
        else:
            assert stats["died/kernel"] == 0
    assert 0.01 < stats_before["strength/kernel"] < 10


# Selection.


def bits_of(x):
    return Scores(selection.as_bits(jnp.asarray(x)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_selection_is_that_of_a_sort(dtype):
    rng = np.random.default_rng(0)
    n = 20
    count = lambda counts: counts[0]
    select = jax.jit(lambda x, k: selection.select([bits_of(x)], [Question((0,), count, k)])[0])
    with jax.enable_x64(True):
        for trial in range(20):
            x = np.exp(8 * rng.standard_normal(n)).astype(dtype)
            if trial % 3 == 1:
                x[: n // 2] = 0.0
            k = int(rng.integers(1, n + 1))
            low, high = (float(selection.as_floats(end)) for end in select(x, k))
            ordered = np.append(np.sort(x), np.inf)
            possible = [j for j in range(1, n + 1) if ordered[j - 1] < ordered[j]]
            reached = int((x <= low).sum())
            assert abs(reached - k) == min(abs(j - k) for j in possible)
            assert high == ordered[reached]


def test_equal_scores_die_together_and_what_is_not_finite_never_dies():
    question = lambda k: Question((0,), lambda counts: counts[0], jnp.asarray(k))
    ask = lambda k, x: selection.select([bits_of(np.float32(x))], [question(k)])[0]
    ends = lambda answer: [float(selection.as_floats(end)) for end in answer]
    assert ends(ask(2, [1, 2, 2, 2, 3])) == [1, 2]  # 1 is nearer to 2 than 4
    assert ends(ask(3, [1, 2, 2, 2, 3])) == [2, 3]
    assert ends(ask(3, [1, np.nan, 2, np.inf])) == [2, np.inf]
    assert ends(ask(1, [np.nan, np.nan])) == [0, np.inf]


def test_questions_over_several_blocks_weigh_their_groups():
    x = [np.float32([1, 4, 6]), np.float32([2, 3, 5])]
    weigh = lambda counts: 10 * counts[0] + counts[1]
    for target, low in ((1, 0.0), (9, 1.0), (12, 3.0), (21, 4.0), (33, 6.0)):
        question = Question((0, 1), weigh, jnp.asarray(target))
        (answer,) = selection.select([bits_of(y) for y in x], [question])
        assert float(selection.as_floats(answer.low)) == low


# lambda_max.

EVERYTHING = {
    "group lasso": rj.GroupLasso,
    "unweighted": functools.partial(rj.GroupLasso, size_weighted=False),
    "L1": rj.L1,
    "elastic net": lambda s: rj.ElasticNet(s, 0.1),
    "L0": rj.L0,
    "sparse group lasso": lambda s: rj.SparseGroupLasso(0.1, s),
    "nuclear": rj.NuclearNorm,
    "coupled": lambda s: rj.coupled(NEURON, rj.GroupLasso(s)),
}


@pytest.mark.parametrize("case", EVERYTHING)
def test_lambda_max_is_the_least_strength_at_which_everything_is_zero(case):
    psi = EVERYTHING[case]
    grads = {"mlp": draw(1)["mlp"]}
    largest = rj.lambda_max(grads, psi(1.0))
    zero = jax.tree.map(jnp.zeros_like, grads)

    @jax.jit
    def first(strength):
        tx = rj.prox_sgd(1.0, psi(strength), momentum=1.0)
        return tx.update(grads, tx.init(zero), zero)[0]

    for name, value in largest.items():
        own = "mlp" if name.startswith("neuron") else name.split("/")[1]
        for factor, alive in ((1 + 1e-5, False), (1 - 1e-5, True)):
            moved = first(factor * value)["mlp"]
            kernel = moved["up" if own == "mlp" else own]["kernel"]
            assert bool(jnp.any(kernel != 0)) == alive


def test_lambda_max_refuses_what_it_is_not_for():
    with pytest.raises(ValueError, match="GroupMCP"):
        rj.lambda_max(layer(0), rj.GroupMCP(1.0, 3.0))


# What users see.


def test_a_target_is_described_as_it_is_typed():
    target = rj.TargetSparsity(0.8, scope="tree", ramp=100)
    assert repr(target) == "TargetSparsity(0.8, scope='tree', ramp=100)"
    params = layer(0)
    assert "strength=TargetSparsity(0.8" in rj.describe(params, rj.GroupLasso(target))
    found = rj.summary(params, rj.GroupLasso(target))
    assert "regularization" not in found
    assert found["group_sparsity"] == 0
    with pytest.raises(ValueError, match="has no value by itself"):
        rj.objective(0.0, params, rj.GroupLasso(target))


def begun(regularizer):
    return rj.ramda(0.1, regularizer).init(layer(0))


BAD = {
    "fraction": (lambda: rj.TargetSparsity(1.5), r"fraction must be in \[0, 1\], got 1.5"),
    "schedule": (lambda: rj.TargetSparsity(lambda t: 0.5), "fraction must be a number"),
    "of": (lambda: rj.TargetSparsity(0.5, of="bytes"), "of must be one of 'groups', 'params'"),
    "flops": (lambda: rj.TargetSparsity(0.5, of="flops"), 'give scope="tree"'),
    "settle_step": (
        lambda: rj.TargetSparsity(0.5, mode="exact", settle_step=3),
        "settle_step is for mode",
    ),
    "relax": (lambda: rj.TargetSparsity(0.5, relax=-1.0), r"relax must be in \[0, inf\)"),
    "ramp": (lambda: rj.TargetSparsity(0.5, ramp=0), "ramp must be an integer"),
    "min_alive": (
        lambda: rj.TargetSparsity(0.95, min_alive=0.1),
        r"fraction must be in \[0, 0.9\] where min_alive=0.1",
    ),
    "multiple_of": (
        lambda: rj.TargetSparsity(0.5, multiple_of=0),
        "multiple_of must be an integer",
    ),
    "mcp": (
        lambda: begun(rj.GroupMCP(rj.TargetSparsity(0.5, mode="exact"), 3.0)),
        "GroupMCP cannot have a TargetSparsity",
    ),
    "nuclear": (
        lambda: begun(rj.NuclearNorm(rj.TargetSparsity(0.5, mode="exact"))),
        "NuclearNorm cannot have a TargetSparsity",
    ),
    "the other strength": (
        lambda: begun(rj.SparseGroupLasso(rj.TargetSparsity(0.5, mode="exact"), 0.1)),
        "only for 'group'",
    ),
    "never settles": (
        lambda: begun(rj.GroupLasso(rj.TargetSparsity(0.5))),
        r"'a/kernel' never settles.*Give TargetSparsity\(settle_step=...\)",
    ),
    "no network": (
        lambda: begun(
            rj.GroupLasso(rj.TargetSparsity(0.5, of="flops", scope="tree", mode="exact"))
        ),
        "needs to know the network",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_in_words(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_state_of_another_kind_of_target_is_refused():
    params = layer(0)
    of = lambda s: rj.ramda(0.1, rj.GroupLasso(s))
    state = of(0.1).init(params)
    with pytest.raises(ValueError, match=r"TargetSparsity\(mode='exact'\) was expected"):
        of(rj.TargetSparsity(0.5, mode="exact")).update(params, state, params)


def test_states_go_through_pickle_tree_maps_and_injection():
    def make(fraction):
        target = rj.TargetSparsity(fraction, mode="settle", settle_step=2)
        return rj.ramda(0.1, rj.GroupLasso(target))

    params = layer(0)
    tx = optax.inject_hyperparams(make)(fraction=0.5)
    state = tx.init(params)
    step = jax.jit(tx.update)
    _, state = step(layer(1), state, params)
    assert rj.solver_stats(state)["dead/a/kernel"] == 20
    state.hyperparams["fraction"] = jnp.asarray(0.8)
    again = pickle.loads(pickle.dumps(state))
    same = jax.tree.map(lambda x, y: bool(jnp.all(x == y)), state, again)
    assert all(jax.tree.leaves(same))
    _, state = step(layer(2), again, params)
    assert rj.solver_stats(state)["dead/a/kernel"] == 32


# FLOPs.


def convnet(params, x):
    """Two convolutions, a shortcut between channels, a dense layer after flattening."""
    conv = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(conv(x, params["one"]))
    x = x + jax.nn.relu(conv(x, params["two"]))
    x = jax.nn.relu(conv(x, params["three"]))
    return jax.nn.relu(x.reshape(len(x), -1) @ params["four"]) @ params["five"]


CONVNET = {
    "one": (3, 3, 3, 48),
    "two": (3, 3, 48, 48),
    "three": (3, 3, 48, 64),
    "four": (16 * 64, 100),
    "five": (100, 10),
}


@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_flops_are_those_of_the_compact_network(fraction):
    params, x = draw(0, CONVNET), jnp.ones((1, 4, 4, 3))
    net = rj.network(convnet, params, x)
    target = rj.TargetSparsity(fraction, of="flops", scope="tree", mode="exact", min_alive=0.1)
    tx = rj.rmda(0.1, net.channels(rj.GroupLasso(target)))
    state, update = tx.init(params), jax.jit(tx.update)
    for seed in range(2):
        updates, state = update(draw(1 + seed, CONVNET), state, params)
        params = optax.apply_updates(params, updates)
    small = rj.compact(convnet, rj.structured_params(state, params), x)
    report = small.report()
    left = report.flops / report.flops_before
    assert abs(1 - left - fraction) <= 0.02
    told = [v for k, v in rj.solver_stats(state).items() if k.startswith("fraction/")]
    np.testing.assert_allclose(told, 1 - left, atol=0.005)


def test_flops_that_no_dead_channel_takes_away_cannot_be_asked_for():
    skipping = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"] + x @ p["skip"]
    params = draw(0, {"up": (30, 15), "down": (15, 30), "skip": (30, 30)})
    net = rj.network(skipping, params, jnp.ones((1, 30)))
    make = functools.partial(rj.TargetSparsity, of="flops", scope="tree", mode="exact")
    rj.rmda(0.1, net.channels(rj.GroupLasso(make(0.5)))).init(params)
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 0.5\], got 0.51"):
        rj.rmda(0.1, net.channels(rj.GroupLasso(make(0.51)))).init(params)
