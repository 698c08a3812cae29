"""The step is differentiable, forward and backward, through the solve: against finite differences in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import ramda_jax as rj
from ramda_jax import backends
from ramda_jax.backends import cpu, gpu
from tests.methods import needs_eight

pytestmark = pytest.mark.unoptimized

METHODS = {
    "ramda": lambda rate, psi: rj.ramda(rate, psi, momentum=0.5, restart_steps=(2,)),
    "rmda": lambda rate, psi: rj.rmda(rate, psi, momentum=0.5),
    "prox_sgd": lambda rate, psi: rj.prox_sgd(rate, psi),
    "prox_adamw": lambda rate, psi: rj.prox_adamw(rate, psi, weight_decay=0.1),
    "prox_ssi": lambda rate, psi: rj.prox_ssi(rate, psi, weight_decay=0.1),
}
NEURON = {"neuron": [("{m}/up/kernel", -1), ("{m}/down/kernel", -2)]}
PSIS = {
    "group lasso": rj.GroupLasso,
    "sparse group lasso": lambda s: rj.SparseGroupLasso(0.3 * s, s),
    "group MCP": lambda s: rj.GroupMCP(s, 4.0),
    "L1": rj.L1,
    "coupled": lambda s: rj.coupled(NEURON, rj.GroupLasso(s)),
}
UP = {"kernel": (3, 6), "bias": (6,)}
SHAPES = {"mlp": {"up": UP, "down": {"kernel": (6, 4)}}}
ONE_KERNEL = {"mlp": {"up": UP}}  # compiled in half the time
STEPS = 3


def normal(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(0.3 * rng.standard_normal(shape))
    return jax.tree.map(draw, shapes, is_leaf=lambda s: isinstance(s, tuple))


def run(method, psi, inputs):
    """A number that depends on W and What after some steps, of (rate, strength, parameters, gradients)."""
    rate, strength, params, grads = inputs
    tx = METHODS[method](rate, PSIS[psi](strength))

    def step(carry, scale):
        # Gradients depend on the parameters, as they do in training.
        params, state = carry
        slope = jax.tree.map(lambda g, p: scale * g + 0.2 * jnp.sin(p), grads, params)
        updates, state = tx.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), None

    scales = 1 + 0.1 * jnp.arange(STEPS)
    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), scales)
    weighted = lambda x: jnp.sum(jnp.cos(x) * jnp.arange(1.0, 1 + x.size).reshape(x.shape))
    both = (params, rj.structured_params(state, params, values="minimizer"))
    return sum(map(weighted, jax.tree.leaves(both)))


def direction(inputs, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(np.shape(x))), inputs)


def inputs_of(shapes=SHAPES):
    return jnp.asarray(0.1), jnp.asarray(0.05), normal(0, shapes), normal(1, shapes)


# What differs between methods is elementwise; what differs between regularizers is the solve.
PAIRS = [("ramda", psi) for psi in PSIS] + [(m, "group lasso") for m in METHODS if m != "ramda"]


@pytest.mark.parametrize(("method", "psi"), PAIRS)
def test_forward_and_reverse_derivatives_are_those_of_finite_differences(method, psi):
    with jax.enable_x64(True):
        several = method == "ramda" and psi in ("group lasso", "group MCP", "coupled")
        inputs = inputs_of(SHAPES if several else ONE_KERNEL)
        f = lambda x: run(method, psi, x)
        step = direction(inputs, 2)
        # The rate and the strength each by themselves, too.
        alone = [
            tuple(v if k == kept else jax.tree.map(np.zeros_like, v) for k, v in enumerate(step))
            for kept in range(4)
        ]
        reverse = jax.jit(jax.grad(f))(inputs)
        forward = jax.jit(lambda x, d: jax.jvp(f, (x,), (d,)))
        value = lambda x: forward(x, step)[0]
        for d in (step, *alone):
            h = 1e-6
            moved = lambda sign, d=d, h=h: jax.tree.map(lambda x, y: x + sign * h * y, inputs, d)
            expected = (value(moved(1)) - value(moved(-1))) / (2 * h)
            assert abs(expected) > 1e-3  # there is something to compare
            np.testing.assert_allclose(forward(inputs, d)[1], expected, rtol=1e-6, atol=1e-7)
            products = jax.tree.map(lambda x, y: np.sum(x * y), reverse, d)
            np.testing.assert_allclose(
                sum(jax.tree.leaves(products)), expected, rtol=1e-6, atol=1e-7
            )


def test_the_derivative_with_respect_to_a_strength_is_right_at_zero():
    with jax.enable_x64(True):
        rate, _, params, grads = inputs_of(ONE_KERNEL)
        f = lambda s: run("ramda", "group lasso", (rate, s, params, grads))
        both = jax.jit(jax.value_and_grad(f))
        h = 1e-7
        start, slope = both(0.0)
        one_sided = (both(h)[0] - start) / h
        np.testing.assert_allclose(slope, one_sided, rtol=1e-4)


@pytest.mark.parametrize("method", ["ramda", "prox_adamw"])
def test_where_the_metric_has_no_derivative_it_counts_as_zero(method):
    """cbrt(U) and sqrt(n) at 0: a gradient of zero must not make the derivative NaN."""
    params = normal(0, ONE_KERNEL)
    zeros = jax.tree.map(jnp.zeros_like, params)
    f = lambda g: run(method, "group lasso", (jnp.asarray(0.1), jnp.asarray(0.01), params, g))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.jit(jax.grad(f))(zeros)))


def gradient_by(table):
    """By reverse differentiation, with a table of backends."""
    with backends.injected(table):
        return jax.jit(jax.grad(lambda x: run("ramda", "coupled", x)))(inputs_of())


@functools.cache
def gradient_by_none():
    return gradient_by({})


@pytest.mark.parametrize("backend", [cpu.tiled((12, 6)), gpu.run], ids=["tiles", "one vector"])
def test_every_backend_has_the_same_derivative(backend):
    with jax.enable_x64(True):
        expected, found = gradient_by_none(), gradient_by({"cpu": backend})
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


def test_derivatives_batch():
    with jax.enable_x64(True):
        inputs = inputs_of(ONE_KERNEL)
        g = lambda rate: run("ramda", "group lasso", (rate, *inputs[1:]))
        rates = jnp.asarray([0.05, 0.1, 0.2])
        batched, one = jax.jit(jax.vmap(jax.grad(g)))(rates), jax.jit(jax.grad(g))
        np.testing.assert_allclose(batched, [one(r) for r in rates], rtol=1e-9)


@pytest.mark.parametrize(
    ("psi", "options", "name"),
    [
        (rj.NuclearNorm(0.1), {}, "DouglasRachford"),
        (rj.GroupLasso(0.1), {"solver": rj.ProximalGradient()}, "ProximalGradient"),
    ],
    ids=["nuclear norm", "proximal gradient"],
)
def test_where_there_is_no_derivative_an_error_says_so(psi, options, name):
    params = {"dense": {"kernel": jnp.ones((3, 2))}}

    def f(rate):
        tx = rj.ramda(rate, psi, **options)
        return optax.tree.norm(tx.update(params, tx.init(params), params)[0])

    with pytest.raises(
        ValueError, match=rf"no derivative through the step of 'dense/kernel': {name}"
    ):
        jax.grad(f)(0.1)
    with pytest.raises(ValueError, match="no derivative"):
        jax.grad(lambda rate: optax.tree.norm(step_of_rmda(rate, params)))(0.1)


def step_of_rmda(rate, params):
    tx = rj.rmda(rate, rj.NuclearNorm(0.1))
    return tx.update(params, tx.init(params), params)[0]


@needs_eight
def test_derivatives_are_the_same_where_devices_share_the_groups_and_refused_where_they_share_one():
    with jax.enable_x64(True):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        draw = np.random.default_rng(0).standard_normal
        params = {
            "wide": {"kernel": jnp.asarray(draw((16, 5)))},
            "odd": {"kernel": jnp.asarray(draw((3, 5)))},
        }

        def f(rate, specs=None, where=None):
            where = None if where is None else rj.Placement("data", where, specs)
            tx = rj.ramda(rate, rj.GroupLasso(0.05), placement=where)
            updates, state = tx.update(params, tx.init(params), params)
            moved = optax.apply_updates(params, updates)
            return optax.tree.norm((moved, rj.structured_params(state, moved, values="minimizer")))

        expected = jax.grad(f)(0.1)
        placed = lambda rate: f(rate, None, mesh)
        np.testing.assert_allclose(jax.jit(jax.grad(placed))(0.1), expected, rtol=1e-9)
        forward = jax.jit(lambda r: jax.jvp(placed, (r,), (1.0,))[1])
        np.testing.assert_allclose(forward(0.1), expected, rtol=1e-9)
        params = {"wide": {"kernel": jnp.ones((3, 16))}, "odd": params["odd"]}
        across = {"wide": {"kernel": P(None, "data")}, "odd": {"kernel": P()}}
        with pytest.raises(ValueError, match=r"\['wide/kernel'\]: their groups lie across devices"):
            jax.jit(jax.grad(lambda rate: f(rate, across, mesh)))(0.1)
