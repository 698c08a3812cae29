"""Trajectories of all methods against the float64 NumPy transcription of the paper (tests/reference.py)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ramda_jax as rj
from tests import reference

STEPS = 40
SHAPES = {
    "conv/kernel": (3, 3, 4, 5),
    "conv/bias": (5,),
    "dense/kernel": (12, 6),
    "dense/bias": (6,),
}
METHODS = {
    "ramda": {"learning_rate": 0.05, "momentum": 0.3},
    "rmda": {"learning_rate": 0.1, "momentum": 0.2},
    "prox_sgd": {"learning_rate": 0.05, "momentum": 0.1},
    "prox_adamw": {"learning_rate": 0.02, "weight_decay": 0.05},
    "prox_ssi": {"learning_rate": 0.02, "weight_decay": 0.05},
}
VARIANTS = {
    **{name: (name, {}) for name in METHODS},
    "ramda-stages": ("ramda", {"restart_steps": (13, 27)}),
    "rmda-stages": ("rmda", {"restart_steps": (13, 27)}),
    "ramda-no-averaging": ("ramda", {"momentum": 1.0, "eps": 1e-3}),
    "prox_adamw-amsgrad": ("prox_adamw", {"amsgrad": True}),
    "prox_ssi-published": ("prox_ssi", {"bias_corrected_metric": False}),
}


def problem(seed=0):
    """Initial parameters and gradients of a wide range of sizes, some inputs nearly dead; as flat dicts of arrays."""
    rng = np.random.default_rng(seed)
    params = {p: 0.3 * rng.standard_normal(s) for p, s in SHAPES.items()}
    scale = {p: np.exp(rng.uniform(-3, 0, s)) for p, s in SHAPES.items()}
    for path in ("conv/kernel", "dense/kernel"):
        scale[path][..., 1, :] *= 1e-4
        scale[path][..., 2, :] = 0.0
    grads = [
        {p: scale[p] * (rng.standard_normal(s) + 0.5 * params[p]) for p, s in SHAPES.items()}
        for _ in range(STEPS)
    ]
    return params, grads


def nest(flat):
    out = {}
    for path, value in flat.items():
        layer, name = path.split("/")
        out.setdefault(layer, {})[name] = value
    return out


@functools.cache
def trajectory(method, options):
    """(regularizer, parameters, stacked gradients) -> every step; compiled once for all strengths."""

    def run(regularizer, params, grads):
        tx = getattr(rj, method)(regularizer=regularizer, **dict(options))

        def step(carry, g):
            w, state = carry
            updates, state = tx.update(g, state, w)
            w = jax.tree.map(jnp.add, w, updates)
            stats = rj.solver_stats(state)
            return (w, state), (
                w,
                rj.structured_params(state, w, values="minimizer"),
                stats["iterations"],
            )

        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    return jax.jit(run)


def run(method, options, regularizer, params, grads):
    """(W_t, What_t, iterations) of every step, flat dicts, by one jitted scan."""
    stacked = nest({p: np.stack([g[p] for g in grads]) for p in SHAPES})
    w, what, iterations = trajectory(method, tuple(options.items()))(
        regularizer, nest(params), stacked
    )
    flat = lambda tree: {
        f"{a}/{b}": np.asarray(x) for a, layer in tree.items() for b, x in layer.items()
    }
    return flat(w), flat(what), np.asarray(iterations)


def assert_trajectories_equal(ours, theirs, rtol):
    """Relative to the largest entry of the array at that step."""
    for path in SHAPES:
        for t, expected in enumerate(x[path] for x in theirs):
            error = np.abs(ours[path][t] - expected).max()
            assert error <= rtol * np.abs(expected).max(), (path, t, error)


def zero_patterns_equal(ours, theirs):
    for path in SHAPES:
        for t, expected in enumerate(x[path] for x in theirs):
            np.testing.assert_array_equal(ours[path][t] == 0, expected == 0, err_msg=f"{path} {t}")


# (weak, strong): with the strong one groups die, with the weak one only those without a signal.
STRENGTHS = {
    "rmda": (0.02, 0.1),
    "rmda-stages": (0.02, 0.1),
    "prox_sgd": (0.02, 0.2),
    "prox_ssi-published": (1e-4, 3e-3),
}


@pytest.mark.parametrize("which", ["weak", "strong"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_group_lasso_trajectory_equals_the_float64_reference_to_1e_9(variant, which):
    method, extra = VARIANTS[variant]
    strength = STRENGTHS.get(variant, (3e-3, 5e-2))[which == "strong"]
    options = {**METHODS[method], **extra}
    params, grads = problem()
    kernels = {p: reference.GroupLasso(strength) if "kernel" in p else None for p in SHAPES}
    expected = getattr(reference, method)(params, grads, kernels, **options)
    with jax.enable_x64(True):
        w, what, iterations = run(method, options, rj.GroupLasso(strength), params, grads)
    assert_trajectories_equal(w, expected.W, 1e-9)
    assert_trajectories_equal(what, expected.What, 1e-9)
    zero_patterns_equal(what, expected.What)
    zero_patterns_equal(w, expected.W)
    zero_rows = (expected.What[-1]["dense/kernel"] == 0).all(-1)
    assert zero_rows.any() or which == "weak"
    assert not zero_rows.all()
    assert iterations.max() <= 10


REGULARIZERS = [
    (rj.L1(0.02), reference.L1(0.02)),
    (rj.ElasticNet(0.02, 0.1), reference.ElasticNet(0.02, 0.1)),
    (rj.L0(0.002), reference.L0(0.002)),
    (rj.LHalf(0.01), reference.LHalf(0.01)),
    (rj.LTwoThirds(0.01), reference.LTwoThirds(0.01)),
    (rj.Binarize(0.02), reference.Binarize(0.02)),
    (rj.SparseGroupLasso(0.01, 0.02), reference.SparseGroupLasso(0.01, 0.02)),
    (rj.GroupMCP(0.03, 5.0), reference.GroupMCP(0.03, 5.0)),
    (rj.GroupLasso(0.03, group_axis=-1), reference.GroupLasso(0.03, group_axis=-1)),
    (
        rj.GroupLasso(0.03, group_axis=(-2, -1), size_weighted=False),
        reference.GroupLasso(0.03, group_axis=(-2, -1), size_weighted=False),
    ),
]
# Each regularizer for a metric of entries and for a metric of one number, each method for several regularizers.
ENTRIES, ONE_NUMBER = ("ramda", "prox_adamw", "prox_ssi"), ("rmda", "prox_sgd")
FOLLOWED = [
    (kind[k % len(kind)], *pair)
    for k, pair in enumerate(REGULARIZERS)
    for kind in (ENTRIES, ONE_NUMBER)
]


@pytest.mark.parametrize(
    ("method", "ours", "theirs"),
    FOLLOWED,
    ids=lambda v: (
        v if isinstance(v, str) else type(v).__name__ if isinstance(v, rj.Regularizer) else ""
    ),
)
def test_every_regularizer_follows_the_float64_reference(method, ours, theirs):
    params, grads = problem(seed=1)
    kernels = {p: theirs if "kernel" in p else None for p in SHAPES}
    expected = getattr(reference, method)(params, grads[:12], kernels, **METHODS[method])
    with jax.enable_x64(True):
        w, what, _ = run(method, METHODS[method], ours, params, grads[:12])
    assert_trajectories_equal(w, expected.W, 1e-9)
    assert_trajectories_equal(what, expected.What, 1e-9)
    zero_patterns_equal(what, expected.What)


@pytest.mark.parametrize("strength", [1e-2, 1e-1])
@pytest.mark.parametrize("method", METHODS)
def test_nuclear_norm_trajectory_equals_the_float64_reference_to_1e_6(method, strength):
    params, grads = problem(seed=2)
    grads = grads[: STEPS // 2]
    kernels = {p: reference.NuclearNorm(strength) if "kernel" in p else None for p in SHAPES}
    expected = getattr(reference, method)(params, grads, kernels, **METHODS[method])
    with jax.enable_x64(True):
        w, what, _ = run(method, METHODS[method], rj.NuclearNorm(strength), params, grads)
    assert_trajectories_equal(w, expected.W, 1e-6)
    assert_trajectories_equal(what, expected.What, 1e-6)
