"""From what the user has (a function and parameters, a module of NNX, a Linen module's apply) to a jaxpr with names."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from jax.extend import core

from ramda_jax import trees


class Leaf(NamedTuple):
    """One parameter."""

    path: str
    shape: tuple[int, ...]
    dtype: Any


class Program(NamedTuple):
    """A traced function of parameters and inputs; nothing of it was computed.

    Attributes:
      closed: its jaxpr; the parameters are the first of its inputs, in order.
      leaves: the parameters.
      inputs: how many of its last inputs the result is a function of; others (batch statistics, keys in a module's state)
        come between and are taken for constants.
      treedef: of the parameters.
    """

    closed: core.ClosedJaxpr
    leaves: tuple[Leaf, ...]
    inputs: int
    treedef: Any


def is_array(x: Any) -> bool:
    """Whether x is an array, or stands for one: what is traced. Anything else is a constant of the program."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def nnx_module(x: Any) -> bool:
    """Whether x is a module of Flax NNX, which is not imported here."""
    module = getattr(sys.modules.get("flax.nnx"), "Module", None)
    return module is not None and isinstance(x, module)


def nnx_with(module: Any, params: chex.ArrayTree) -> Any:
    """A copy of a module of Flax NNX with other parameters."""
    nnx: Any = sys.modules["flax.nnx"]
    graph, _, rest = nnx.split(module, nnx.Param, ...)
    return nnx.merge(graph, params, rest)


def _is_linen(apply_fn: Any) -> bool:
    """Whether it is the bound `apply` of a Linen module."""
    module = getattr(sys.modules.get("flax.linen"), "Module", None)
    return module is not None and isinstance(getattr(apply_fn, "__self__", None), module)


def trace(apply_fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
    """The program of `apply_fn(*args, **kwargs)`; see `network` for what these may be.

    Raises:
      TypeError: if `apply_fn` is not callable, or parameters are missing.
      ValueError: if the parameters hold no floating-point array.
    """
    if nnx_module(apply_fn):
        return _trace_nnx(lambda module, *a, **k: module(*a, **k), (apply_fn, *args), kwargs)
    if not callable(apply_fn):
        raise TypeError(
            f"network needs a function and its parameters, or an nnx.Module, got {apply_fn!r}."
        )
    if not args:
        raise TypeError(
            "network needs parameters after the function: network(apply_fn, params, *args)."
        )
    if nnx_module(args[0]):
        return _trace_nnx(apply_fn, args, kwargs)
    params, *others = args
    statistics: Any = None
    first_only = False
    if _is_linen(apply_fn) and isinstance(params, dict) and "params" in params:
        statistics = {name: x for name, x in params.items() if name != "params"}
        first_only = bool(kwargs.get("mutable", False))

    def function(params: Any, statistics: Any, args: Any, kwargs: Any) -> Any:
        if statistics is not None:
            params = {"params": params["params"], **statistics}
        result = apply_fn(params, *args, **kwargs)
        return result[0] if first_only else result

    parameters = params if statistics is None else {"params": params["params"]}
    return _program(function, parameters, statistics, tuple(others), kwargs)


def _trace_nnx(apply_fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
    nnx: Any = sys.modules["flax.nnx"]
    module, *others = args
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def function(params: Any, rest: Any, args: Any, kwargs: Any) -> Any:
        return apply_fn(nnx.merge(graph, params, rest), *args, **kwargs)

    return _program(function, params, rest, tuple(others), kwargs)


def _program(
    function: Callable[..., Any], params: chex.ArrayTree, statistics: Any, args: Any, kwargs: Any
) -> Program:
    paths, leaves, treedef = trees.flatten(params)
    trained = [is_array(x) and jax.dtypes.issubdtype(x.dtype, np.inexact) for x in leaves]
    if not any(trained):
        raise ValueError("network: the parameters hold no floating-point array.")
    pairs = zip(paths, leaves, trained, strict=True)
    named = tuple(Leaf(path, tuple(x.shape), x.dtype) for path, x, ok in pairs if ok)
    own, others = _split(leaves, trained)
    flatten: Any = jax.tree.flatten
    rest, rest_tree = flatten(statistics)
    inputs, input_tree = flatten((args, kwargs))
    is_input = [is_array(x) for x in inputs]
    is_state = [is_array(x) for x in rest]
    dynamic, static = _split(inputs, is_input)
    state, fixed = _split(rest, is_state)

    def flat(own: Any, state: Any, dynamic: Any) -> Any:
        whole = treedef.unflatten(_merge(trained, own, others))
        rest = rest_tree.unflatten(_merge(is_state, state, fixed))
        args, kwargs = input_tree.unflatten(_merge(is_input, dynamic, static))
        results = function(whole, rest, args, kwargs)
        return [x for x in jax.tree.leaves(results) if is_array(x)]

    closed: Any = jax.make_jaxpr(flat)(own, state, dynamic)
    return Program(closed, named, len(dynamic), treedef)


def _split(items: Sequence[Any], wanted: Sequence[bool]) -> tuple[list[Any], list[Any]]:
    pairs = list(zip(items, wanted, strict=True))
    return [x for x, ok in pairs if ok], [x for x, ok in pairs if not ok]


def _merge(wanted: Sequence[bool], chosen: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """The inverse of `_split`."""
    one, two = iter(chosen), iter(others)
    return [next(one) if ok else next(two) for ok in wanted]
