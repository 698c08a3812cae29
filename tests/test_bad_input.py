"""Bad input: constants, regularizers that cannot apply, and gradients that are not finite.

Every message is read for the words a user needs: which argument, which value, what range.
"""

import dataclasses
import functools
import importlib
import pkgutil
import re
import warnings
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ramda_jax as rj
from tests.methods import (
    EITHER_METRIC,
    LAYER_RATE,
    LAYER_STRENGTH,
    METHODS,
    Method,
    kernels_only,
    layer_grads,
    layer_params,
    layer_tx,
    method_id,
    minimizer,
    run,
    two_layer_params,
)

pytestmark = pytest.mark.unoptimized

Tree = Any

NAN, INF = float("nan"), float("inf")

every_method = pytest.mark.parametrize("method", METHODS, ids=method_id)
either_metric = pytest.mark.parametrize("method", EITHER_METRIC, ids=method_id)
with_solver = pytest.mark.parametrize(
    "method", [method for method in METHODS if not method.scalar_metric], ids=method_id
)

RANGE = re.compile(r"[\[(][^\])]*[\])]|[<>]=?|positive|negative|between|increasing", re.IGNORECASE)


def message_of(build: Callable[[], Any], kind: Any = ValueError) -> str:
    """The text of the error `build` raises."""
    with pytest.raises(kind) as caught:
        build()
    return str(caught.value)


def assert_names(message: str, *words: str) -> None:
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"


def assert_names_argument_value_and_range(message: str, argument: str, value: float) -> None:
    assert re.search(rf"\b{argument}\b", message), f"argument {argument} is not in {message!r}"
    assert str(value) in message, f"value {value} is not in {message!r}"
    rest = message.replace(argument, "").replace(str(value), "")
    assert RANGE.search(rest), f"no range in {message!r}"


def first_error(tx_or_build: Any, params: Tree, kind: Any = (ValueError, TypeError)) -> str:
    """The error of building the method and initialising its state: before any training step."""
    return message_of(lambda: tx_or_build().init(params), kind)


# ---------------------------------------------------------------------------------------- constants


@every_method
@pytest.mark.parametrize("value", [0.0, -0.37, NAN, INF, -1])
def test_a_learning_rate_outside_its_range_is_an_error(method: Method, value: float) -> None:
    message = message_of(lambda: method(None, learning_rate=value))
    assert_names_argument_value_and_range(message, "learning_rate", value)


@pytest.mark.parametrize("name", ["ramda", "rmda", "prox_sgd"])
@pytest.mark.parametrize("value", [0.0, -0.37, 1.0001, 2, NAN])
def test_a_momentum_outside_zero_to_one_is_an_error(name: str, value: float) -> None:
    message = message_of(lambda: getattr(rj, name)(0.1, None, momentum=value))
    assert_names_argument_value_and_range(message, "momentum", value)


@pytest.mark.parametrize("name", ["ramda", "rmda", "prox_sgd"])
def test_a_momentum_of_one_is_allowed(name: str) -> None:
    getattr(rj, name)(0.1, None, momentum=1.0)
    getattr(rj, name)(0.1, None, momentum=1)


@pytest.mark.parametrize("name", ["ramda", "prox_adamw", "prox_ssi"])
@pytest.mark.parametrize("value", [0.0, -0.37, NAN, INF])
def test_an_eps_that_is_not_positive_is_an_error(name: str, value: float) -> None:
    message = message_of(lambda: getattr(rj, name)(0.1, None, eps=value))
    assert_names_argument_value_and_range(message, "eps", value)


@pytest.mark.parametrize("name", ["prox_adamw", "prox_ssi"])
@pytest.mark.parametrize("argument", ["b1", "b2"])
@pytest.mark.parametrize("value", [-0.37, 1.0, 1.5, NAN])
def test_a_decay_rate_outside_zero_to_one_is_an_error(
    name: str, argument: str, value: float
) -> None:
    message = message_of(lambda: getattr(rj, name)(0.1, None, **{argument: value}))
    assert_names_argument_value_and_range(message, argument, value)


@pytest.mark.parametrize("name", ["prox_adamw", "prox_ssi"])
@pytest.mark.parametrize("value", [-0.37, NAN])
def test_a_negative_weight_decay_is_an_error(name: str, value: float) -> None:
    message = message_of(lambda: getattr(rj, name)(0.1, None, weight_decay=value))
    assert_names_argument_value_and_range(message, "weight_decay", value)


@pytest.mark.parametrize("value", [0.0, -0.37, NAN])
def test_a_restart_eps_decay_outside_its_range_is_an_error(value: float) -> None:
    message = message_of(lambda: rj.ramda(0.1, None, restart_eps_decay=value))
    assert_names_argument_value_and_range(message, "restart_eps_decay", value)


@pytest.mark.parametrize("name", ["ramda", "rmda"])
@pytest.mark.parametrize(
    "steps", [(-3,), (0,), (2.5,), (10, 5), (5, 5), 7, ("ten",)], ids=lambda s: str(s)
)
def test_restart_steps_that_are_not_increasing_positive_integers_are_an_error(
    name: str, steps: Any
) -> None:
    message = message_of(
        lambda: getattr(rj, name)(0.1, None, restart_steps=steps), (ValueError, TypeError)
    )
    assert_names(message, "restart_steps")
    wrong = steps[0] if isinstance(steps, tuple) else steps
    assert_names(message, str(wrong))
    assert RANGE.search(message), message


STRENGTHS: tuple[tuple[str, Callable[[float], Any]], ...] = (
    ("strength", rj.L1),
    ("strength", rj.L0),
    ("strength", rj.LHalf),
    ("strength", rj.LTwoThirds),
    ("l1", lambda s: rj.ElasticNet(s, 0.1)),
    ("l2", lambda s: rj.ElasticNet(0.1, s)),
    ("strength", rj.GroupLasso),
    ("l1", lambda s: rj.SparseGroupLasso(s, 0.1)),
    ("group", lambda s: rj.SparseGroupLasso(0.1, s)),
    ("strength", lambda s: rj.GroupMCP(s, 3.0)),
    ("strength", rj.NuclearNorm),
    ("strength", rj.Binarize),
)


@pytest.mark.parametrize("value", [-0.37, NAN])
@pytest.mark.parametrize("which", range(len(STRENGTHS)))
def test_a_negative_strength_is_an_error(which: int, value: float) -> None:
    argument, build = STRENGTHS[which]
    assert_names_argument_value_and_range(message_of(lambda: build(value)), argument, value)


@pytest.mark.parametrize("which", range(len(STRENGTHS)))
def test_a_strength_of_zero_is_allowed(which: int) -> None:
    STRENGTHS[which][1](0.0)


@pytest.mark.parametrize("value", [0.0, -0.37, NAN])
def test_a_gamma_that_is_not_positive_is_an_error(value: float) -> None:
    message = message_of(lambda: rj.GroupMCP(0.1, value))
    assert_names_argument_value_and_range(message, "gamma", value)


@pytest.mark.parametrize("axis", [1.5, "in", (0, 0)], ids=str)
def test_a_group_axis_that_is_no_axis_is_an_error(axis: Any) -> None:
    def build() -> Any:
        params = {"kernel": jnp.ones((2, 3))}
        return rj.ramda(0.1, rj.GroupLasso(0.1, group_axis=axis)).init(params)

    assert_names(message_of(build, (ValueError, TypeError)), "group_axis", str(axis))


@pytest.mark.parametrize(
    ("argument", "value", "build"),
    [
        ("tolerance", -0.37, lambda v: rj.Newton(tolerance=v)),
        ("tolerance", NAN, lambda v: rj.Newton(tolerance=v)),
        ("max_iterations", 0, lambda v: rj.Newton(max_iterations=v)),
        ("max_iterations", -3, lambda v: rj.Newton(max_iterations=v)),
        ("rtol", -0.37, lambda v: rj.ProximalGradient(rtol=v)),
        ("tolerance", -0.37, lambda v: rj.ProximalGradient(tolerance=v)),
        ("max_iterations", 0, lambda v: rj.ProximalGradient(max_iterations=v)),
        ("max_iterations", 2.5, lambda v: rj.ProximalGradient(max_iterations=v)),
        ("max_iterations", 0, lambda v: rj.AcceleratedProximalGradient(max_iterations=v)),
        ("tolerance", -0.37, lambda v: rj.AcceleratedProximalGradient(tolerance=v)),
    ],
)
def test_a_solver_constant_outside_its_range_is_an_error(
    argument: str, value: float, build: Callable[[float], Any]
) -> None:
    message = message_of(lambda: build(value))
    assert_names_argument_value_and_range(message, argument, value)


@pytest.mark.parametrize(
    ("argument", "value", "build"),
    [
        ("momentum", 1.5, lambda v: rj.final_momentum_schedule(v, 10)),
        ("start_step", -3, lambda v: rj.final_momentum_schedule(0.1, v)),
        ("learning_rate", -0.37, lambda v: rj.multistep(v, (3,))),
        ("factor", -0.37, lambda v: rj.multistep(0.1, (3,), factor=v)),
        ("milestone_steps", -3, lambda v: rj.multistep(0.1, (v,))),
    ],
)
def test_a_schedule_constant_outside_its_range_is_an_error(
    argument: str, value: float, build: Callable[[float], Any]
) -> None:
    message = message_of(lambda: build(value))
    assert_names_argument_value_and_range(message, argument, value)


@every_method
@pytest.mark.parametrize("value", ["0.1", None, [0.1]], ids=str)
def test_a_learning_rate_of_the_wrong_type_is_an_error(method: Method, value: Any) -> None:
    message = message_of(lambda: method(None, learning_rate=value), (ValueError, TypeError))
    assert_names(message, "learning_rate", str(value))


# ------------------------------------------------------------------- regularizers that cannot apply

NETWORK = {
    "body": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
    "norm": {"scale": jnp.ones(3)},
}


def tree_with(regularizer: Any, *, kernel: bool = False) -> Tree:
    return {
        "body": {"kernel": regularizer if kernel else None, "bias": None},
        "norm": {"scale": None if kernel else regularizer},
    }


@every_method
@pytest.mark.parametrize("assignment", ["tree", "by_path"])
def test_a_nuclear_norm_on_a_vector_names_path_and_shape(method: Method, assignment: str) -> None:
    nuclear = rj.NuclearNorm(0.1)
    choices = {
        "tree": tree_with(nuclear),
        "by_path": rj.by_path([(".*scale.*", nuclear), (".*", None)]),
    }
    message = first_error(lambda: method(choices[assignment]), NETWORK)
    assert_names(message, "norm/scale", "(3,)", "NuclearNorm")


@every_method
def test_a_group_axis_out_of_range_names_path_and_shape(method: Method) -> None:
    regularizer = tree_with(rj.GroupLasso(0.1, group_axis=2), kernel=True)
    message = first_error(lambda: method(regularizer), NETWORK)
    assert_names(message, "body/kernel", "(4, 3)", "2")


@pytest.mark.parametrize(
    "build",
    [
        lambda: rj.GroupLasso(0.1),
        lambda: rj.SparseGroupLasso(0.1, 0.1),
        lambda: rj.GroupMCP(0.1, 3.0),
        lambda: rj.GroupLasso(0.1, group_axis=(0, 1)),
    ],
    ids=["group", "sparse_group", "mcp", "two axes"],
)
def test_groups_along_an_axis_a_vector_has_not_name_path_and_shape(build: Any) -> None:
    message = first_error(lambda: rj.ramda(0.1, tree_with(build())), NETWORK)
    assert_names(message, "norm/scale", "(3,)", "group_axis")


@with_solver
def test_newton_for_the_nuclear_norm_names_the_path(method: Method) -> None:
    regularizer = tree_with(rj.NuclearNorm(0.1), kernel=True)
    message = first_error(lambda: method(regularizer, solver=rj.Newton()), NETWORK)
    assert_names(message, "body/kernel", "Newton", "NuclearNorm")


# -------------------------------------------------------------------------------------- assignments


@every_method
def test_a_leaf_no_rule_matches_is_named(method: Method) -> None:
    regularizer = rj.by_path([(".*kernel.*", rj.GroupLasso(0.1)), (".*bias.*", None)])
    message = first_error(lambda: method(regularizer), NETWORK)
    assert_names(message, "norm/scale")
    assert "body/kernel" not in message


def test_the_first_matching_rule_wins() -> None:
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    rules = [(".*kernel", rj.L1(1e6)), (".*", None), (".*bias", rj.L1(1e6))]
    tx = rj.prox_sgd(1.0, rj.by_path(rules))
    found, _ = run(tx, params, [jax.tree.map(jnp.zeros_like, params)])
    assert not bool(jnp.any(found["kernel"]))
    chex.assert_trees_all_equal(found["bias"], params["bias"])


def test_a_pattern_that_is_no_regular_expression_is_an_error() -> None:
    message = message_of(lambda: rj.by_path([("kernel[", rj.L1(0.1))]))
    assert_names(message, "kernel[")


@pytest.mark.parametrize(
    "rules",
    [
        [(".*", 0.1)],
        [(".*", "l1")],
        [(3, rj.L1(0.1))],
        [".*"],
        [(".*", rj.L1(0.1), "too many")],
        rj.L1(0.1),
    ],
    ids=str,
)
def test_a_rule_that_is_no_pair_of_pattern_and_regularizer_is_an_error(rules: Any) -> None:
    def build() -> Any:
        return rj.ramda(0.1, rj.by_path(rules)).init(NETWORK)

    assert message_of(build, (ValueError, TypeError))


@every_method
@pytest.mark.parametrize("kind", ["bare", "kernels", "by_path", "tree"])
def test_an_assignment_that_regularizes_nothing_is_an_error(method: Method, kind: str) -> None:
    params = {"norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)}}
    choices = {
        "bare": rj.GroupLasso(0.1),
        "kernels": rj.kernels(rj.GroupLasso(0.1)),
        "by_path": rj.by_path([(".*", None)]),
        "tree": {"norm": {"scale": None, "bias": None}},
    }
    message = first_error(lambda: method(choices[kind]), params)
    assert re.search(r"nothing|no leaf|no parameter|none of", message, re.IGNORECASE), message
    assert "None" in message, f"{message!r} does not say how to have no regularizer on purpose"


@every_method
@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"body": {"kernel": rj.L1(0.1)}, "norm": {"scale": None}}, "body/bias"),
        ({"body": {"kernel": rj.L1(0.1), "bias": None}}, "norm"),
        (
            {
                "body": {"kernel": rj.L1(0.1), "bias": None, "gain": None},
                "norm": {"scale": None},
            },
            "body/gain",
        ),
        ({"body": [rj.L1(0.1), None], "norm": {"scale": None}}, "body"),
    ],
    ids=["leaf missing", "layer missing", "leaf too many", "other container"],
)
def test_a_tree_of_another_structure_names_the_path(method: Method, tree: Any, path: str) -> None:
    assert_names(first_error(lambda: method(tree), NETWORK), path)


@every_method
@pytest.mark.parametrize(
    "wrong",
    [0.1, "l1", lambda params: params, rj.L1, {"body": {"kernel": 0.1}}],
    ids=["number", "string", "function", "class", "tree of numbers"],
)
def test_something_that_is_no_regularizer_is_an_error(method: Method, wrong: Any) -> None:
    params = {"body": {"kernel": jnp.ones((4, 3))}}
    message = first_error(lambda: method(wrong), params)
    assert re.search("regularizer", message, re.IGNORECASE), message


@with_solver
@pytest.mark.parametrize("wrong", ["newton", 3, rj.Newton], ids=["string", "number", "class"])
def test_something_that_is_no_solver_is_an_error(method: Method, wrong: Any) -> None:
    message = first_error(lambda: method(rj.L1(0.1), solver=wrong), NETWORK)
    assert_names(message, "solver")


def test_a_regularizer_and_a_solver_are_no_callables() -> None:
    """inject_hyperparams calls every callable argument as a schedule."""
    group = rj.GroupLasso(0.1)
    for thing in (
        group,
        rj.kernels(group),
        rj.by_path([(".*", group)]),
        rj.Newton(),
        rj.ProximalGradient(),
        rj.AcceleratedProximalGradient(),
    ):
        assert not callable(thing), thing


# --------------------------------------------------------------------------- traced hyperparameters


TRACED: dict[str, dict[str, float]] = {
    "ramda": {"momentum": 0.1, "eps": 1e-6, "restart_eps_decay": 0.1},
    "rmda": {"momentum": 0.1},
    "prox_sgd": {"momentum": 0.1},
    "prox_adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2},
    "prox_ssi": {"b1": 0.9, "b2": 0.999, "eps": 1e-6, "weight_decay": 1e-2},
}


@every_method
def test_every_hyperparameter_may_be_traced(method: Method) -> None:
    params = two_layer_params()
    (grad,) = layer_grads(params, 1)
    constants = {
        "learning_rate": LAYER_RATE,
        "strength": LAYER_STRENGTH,
        "group": 0.05,
        **TRACED[method.name],
    }

    def step(values: dict[str, Any]) -> Tree:
        values = dict(values)
        strength, group = values.pop("strength"), values.pop("group")
        regularizer = {
            "body": {"kernel": rj.GroupLasso(strength), "bias": rj.L1(strength)},
            "head": {
                "kernel": rj.SparseGroupLasso(strength, group),
                "bias": rj.ElasticNet(strength, group),
            },
        }
        learning_rate = values.pop("learning_rate")
        tx = getattr(rj, method.name)(learning_rate, regularizer, **values)
        return tx.update(grad, tx.init(params), params)[0]

    traced = jax.jit(step)(jax.tree.map(jnp.float32, constants))
    constant = jax.jit(lambda: step(constants))()
    chex.assert_trees_all_close(traced, constant, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda s: rj.L0(s),
        lambda s: rj.LHalf(s),
        lambda s: rj.LTwoThirds(s),
        lambda s: rj.GroupMCP(s, s + 2.0),
        lambda s: rj.NuclearNorm(s),
        lambda s: rj.Binarize(s),
    ],
    ids=["L0", "LHalf", "LTwoThirds", "GroupMCP", "NuclearNorm", "Binarize"],
)
def test_every_strength_may_be_traced(build: Callable[[Any], Any]) -> None:
    params = {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)}

    def step(strength: Any) -> Tree:
        tx = rj.prox_sgd(0.1, build(strength))
        return tx.update(params, tx.init(params), params)[0]

    chex.assert_trees_all_close(jax.jit(step)(jnp.float32(0.3)), step(0.3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", range(len(STRENGTHS)))
def test_a_regularizer_survives_tree_maps_over_anything(which: int) -> None:
    """JAX and optax put placeholders into pytrees: rebuilding one must not look at the values."""
    regularizer = STRENGTHS[which][1](0.1)
    for stand_in in (object(), None, -1.0, "name"):
        jax.tree.map(lambda _, x=stand_in: x, regularizer)
    axes = jax.tree.map(lambda _: 0, regularizer)
    batch = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 2), regularizer)
    jax.vmap(lambda _: 0, in_axes=(axes,))(batch)
    assert jax.tree.structure(regularizer) == jax.tree.structure(axes)


# ----------------------------------------------------------------------------- non-finite gradients


def poison(grad: Tree, value: float) -> Tree:
    """`value` at one entry of row 3 of the body's kernel."""
    body = {**grad["body"], "kernel": grad["body"]["kernel"].at[3, 1].set(value)}
    return {**grad, "body": body}


def largest_residual(state: Tree) -> float:
    """The residual over all leaves that `solver_stats` reports."""
    return float(rj.solver_stats(state)["residual"])


@every_method
@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("when", ["first", "later"])
def test_a_gradient_that_is_not_finite_shows_in_its_group_and_in_the_residual(
    method: Method, value: float, when: str
) -> None:
    """No hang, no crash, no group silently set to zero: it reads NaN, as does the certificate."""
    params = layer_params()
    tx = layer_tx(method, kernels_only)
    first, second = layer_grads(params, 2)
    grads = [poison(first, value)] if when == "first" else [first, poison(second, value)]
    found, state = run(tx, params, grads)
    kernel = np.asarray(found["body"]["kernel"])
    assert not np.isfinite(kernel[3, 1])
    assert not np.any(kernel[3] == 0.0)
    if np.isnan(value):
        assert np.isnan(kernel[3]).all()
    others = np.delete(kernel, 3, axis=0)
    assert np.isfinite(others).all()
    chex.assert_tree_all_finite((found["head"], found["body"]["bias"]))
    structured = np.asarray(minimizer(state, found)["body"]["kernel"])
    assert not np.isfinite(structured[3, 1])
    assert not np.any(structured[3] == 0.0)
    assert np.isfinite(np.delete(structured, 3, axis=0)).all()
    assert np.isnan(largest_residual(state))


@either_metric
@pytest.mark.parametrize(
    "regularizer",
    [
        rj.L1(0.1),
        rj.L0(0.1),
        rj.LHalf(0.1),
        rj.LTwoThirds(0.1),
        rj.ElasticNet(0.1, 0.1),
        rj.SparseGroupLasso(0.1, 0.1),
        rj.GroupMCP(0.1, 3.0),
        rj.NuclearNorm(0.1),
        rj.Binarize(0.1),
        None,
    ],
    ids=lambda r: type(r).__name__,
)
def test_a_gradient_that_is_not_finite_shows_whatever_the_regularizer(
    method: Method, regularizer: Any
) -> None:
    params = {"body": {"kernel": layer_params()["body"]["kernel"]}}
    (grad,), tx = layer_grads(params, 1), method(regularizer, learning_rate=LAYER_RATE)
    for value in (NAN, INF, -INF):
        found, state = run(tx, params, [poison(grad, value)])
        for point in (found, minimizer(state, found)):
            entry = np.asarray(point["body"]["kernel"])[3, 1]
            assert np.isnan(entry) if np.isnan(value) else not np.isfinite(entry)
        assert regularizer is None or np.isnan(largest_residual(state))


@pytest.mark.parametrize("solver", ["ProximalGradient", "AcceleratedProximalGradient"])
def test_an_iterative_solver_neither_hangs_on_a_nan_nor_hides_it(solver: str) -> None:
    params = layer_params()
    (grad,) = layer_grads(params, 1)
    group, iterative = rj.GroupLasso(LAYER_STRENGTH), getattr(rj, solver)(max_iterations=50)
    tx = rj.ramda(LAYER_RATE, group, solver=iterative)
    found, state = run(tx, params, [poison(grad, NAN)])
    assert np.isnan(np.asarray(found["body"]["kernel"])[3, 1])
    assert np.isnan(largest_residual(state))


@functools.cache
def skipping(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`apply_if_finite` around it, made once."""
    return optax.apply_if_finite(tx, max_consecutive_errors=5)


@every_method
@pytest.mark.parametrize("value", [NAN, INF], ids=str)
def test_apply_if_finite_skips_the_step(method: Method, value: float) -> None:
    params = layer_params()
    tx = layer_tx(method, kernels_only)
    safe = skipping(tx)
    first, second, third = layer_grads(params, 3)
    before, state = run(safe, params, [first])
    after, skipped = run(safe, before, [poison(second, value)], state)
    chex.assert_trees_all_equal(after, before)
    chex.assert_trees_all_equal(skipped.inner_state, state.inner_state)
    assert int(skipped.total_notfinite) == 1
    # Training goes on as if the bad step had not been.
    found, _ = run(safe, after, [third], skipped)
    expected, _ = run(tx, params, [first, third])
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["ramda", "rmda", "prox_sgd"])
def test_a_momentum_that_means_the_reverse_elsewhere_is_warned_of(name: str) -> None:
    with pytest.warns(UserWarning, match=r"momentum=0\.9 is the weight of the newest.*give 0\.1"):
        getattr(rj, name)(0.1, None, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(rj, name)(0.1, None, momentum=1.0)
        getattr(rj, name)(0.1, None, momentum=0.1)


def test_settings_do_not_change():
    """They are hashed, and programs are compiled for them."""
    names = [m.name for m in pkgutil.walk_packages(rj.__path__, "ramda_jax.")]
    found = {
        member
        for name in names
        for member in vars(importlib.import_module(name)).values()
        if isinstance(member, type) and dataclasses.is_dataclass(member)
    }
    found = {cls for cls in found if cls.__module__.startswith("ramda_jax.")}
    assert len(found) > 40
    changing = {cls.__name__ for cls in found if not cls.__dataclass_params__.frozen}
    assert changing == {"Flow"}  # which the analysis of a network writes
