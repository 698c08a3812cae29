"""From what the user has (a function and parameters, a module of NNX, a Linen module's apply) to a jaxpr with names."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from ramda_jax import trees
from ramda_jax.trees import ArrayTree


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
    """

    closed: core.ClosedJaxpr
    leaves: tuple[Leaf, ...]
    inputs: int


def bare(path: str) -> str:
    """A path without the name of Linen's collection, which its users have in it or have not."""
    return path.removeprefix("params/")


def is_array(x: Any) -> bool:
    """Whether x is an array, or stands for one: what is traced. Anything else is a constant of the program."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def nnx_module(x: Any) -> bool:
    """Whether x is a module of Flax NNX, which is not imported here."""
    module = getattr(sys.modules.get("flax.nnx"), "Module", None)
    return module is not None and isinstance(x, module)


def nnx_with(module: Any, params: ArrayTree) -> Any:
    """A copy of a module of Flax NNX with other parameters."""
    nnx: Any = sys.modules["flax.nnx"]
    graph, _, rest = nnx.split(module, nnx.Param, ...)
    return nnx.merge(graph, params, rest)


def _is_linen(apply_fn: Any) -> bool:
    """Whether it is the bound `apply` of a Linen module."""
    module = getattr(sys.modules.get("flax.linen"), "Module", None)
    return module is not None and isinstance(getattr(apply_fn, "__self__", None), module)


def called(
    what: str, apply_fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """What a user gives to `network` or `compact`, taken apart.

    Returns:
      A function of a model and inputs, without the mutable collections that a Linen module returns as well; the model:
      parameters, or a module of NNX; the inputs.

    Raises:
      TypeError: if there is no function, or no model; `what`: the caller's name in the message.
    """
    if nnx_module(apply_fn):
        return (lambda module, *a, **k: module(*a, **k)), apply_fn, args
    if not callable(apply_fn):
        raise TypeError(
            f"{what} needs a function and its parameters, or an nnx.Module, got {apply_fn!r}."
        )
    if not args:
        raise TypeError(
            f"{what} needs parameters after the function: {what}(apply_fn, params, *args)."
        )
    if _is_linen(apply_fn) and kwargs.get("mutable", False):
        return (lambda *a, **k: apply_fn(*a, **k)[0]), args[0], args[1:]
    return apply_fn, args[0], args[1:]


def of_module(
    function: Callable[..., Any], module: Any
) -> tuple[Callable[..., Any], ArrayTree, Any]:
    """A function of a module of NNX as one of (its parameters, its other variables, *inputs); these two."""
    nnx: Any = sys.modules["flax.nnx"]
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    fresh = lambda tree: jax.tree.map(lambda x: x, tree)  # other variables than the module's own

    def merged(params: Any, rest: Any, *args: Any, **kwargs: Any) -> Any:
        return function(nnx.merge(graph, fresh(params), fresh(rest)), *args, **kwargs)

    return merged, params, rest


def trace(apply_fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
    """The program of `apply_fn(*args, **kwargs)`; see `network` for what these may be.

    Raises:
      TypeError: if `apply_fn` is not callable, or parameters are missing.
      ValueError: if the parameters hold no floating-point array.
    """
    function, model, inputs = called("network", apply_fn, args, kwargs)
    if nnx_module(model):
        return _program(*of_module(function, model), inputs, kwargs)
    if _is_linen(apply_fn) and isinstance(model, dict) and "params" in model:
        statistics = {name: x for name, x in model.items() if name != "params"}
        whole = lambda params, rest, *a, **k: function({**params, **rest}, *a, **k)
        return _program(whole, {"params": model["params"]}, statistics, inputs, kwargs)
    return _program(
        lambda params, _, *a, **k: function(params, *a, **k), model, None, inputs, kwargs
    )


def _program(
    function: Callable[..., Any], params: ArrayTree, rest: Any, args: Any, kwargs: Any
) -> Program:
    """The program of `function(params, rest, *args, **kwargs)`; what `rest` holds is taken for constant."""
    paths, leaves, _ = trees.flatten(params)
    trained = [is_array(x) and jax.dtypes.issubdtype(x.dtype, np.inexact) for x in leaves]
    if not any(trained):
        raise ValueError("network: the parameters hold no floating-point array.")
    pairs = zip(paths, leaves, trained, strict=True)
    named = tuple(Leaf(path, tuple(x.shape), x.dtype) for path, x, ok in pairs if ok)
    own, rebuild = apart(params, trained)
    state, with_state = arrays_apart(rest)
    dynamic, with_inputs = arrays_apart((args, kwargs))

    def flat(own: Any, state: Any, dynamic: Any) -> Any:
        args, kwargs = with_inputs(dynamic)
        results = function(rebuild(own), with_state(state), *args, **kwargs)
        return [x for x in jax.tree.leaves(results) if is_array(x)]

    closed: Any = jax.make_jaxpr(flat)(own, state, dynamic)
    return Program(closed, named, len(dynamic))


# What makes a tree again of the leaves that were taken from it.
Rebuild = Callable[[Sequence[Any]], Any]


def arrays_apart(tree: Any) -> tuple[list[Any], Rebuild]:
    """(the arrays of a tree, from such arrays to the tree)."""
    return apart(tree, [is_array(x) for x in jax.tree.leaves(tree)])


def apart(tree: Any, chosen: Sequence[bool]) -> tuple[list[Any], Rebuild]:
    """(the chosen leaves of a tree, from such leaves to the tree)."""
    flatten: Any = jax.tree.flatten
    leaves, treedef = flatten(tree)

    def rebuild(values: Sequence[Any]) -> Any:
        rest = iter(values)
        filled = [next(rest) if ok else x for x, ok in zip(leaves, chosen, strict=True)]
        return treedef.unflatten(filled)

    return [x for x, ok in zip(leaves, chosen, strict=True) if ok], rebuild
