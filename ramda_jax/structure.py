"""How structured the parameters are."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ramda_jax import _numerics, assignment
from ramda_jax.assignment import Regularization
from ramda_jax.regularizers import Regularizer
from ramda_jax.regularizers.base import size
from ramda_jax.strengths import is_scored
from ramda_jax.trees import ArrayTree


def _regularized(
    params: ArrayTree, regularizer: Regularization, structure: str | None = None
) -> list[tuple[str, jax.Array, Regularizer]]:
    """(name, array, regularizer) of the blocks, each as one array, of one kind of structure if given."""
    resolved = assignment.resolve(regularizer, params)
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(params)]
    rows = []
    for block in resolved.blocks:
        if structure is None or block.psi.structure == structure:
            views = [member.take(leaves[member.leaf]) for member in block.members]
            rows.append((block.name, block.join(views), block.psi))
    return rows


def _ratio(parts: list[jax.Array], wholes: list[int]) -> jax.Array:
    return sum(map(_numerics.as_scalar, parts), _numerics.as_scalar(0.0)) / max(sum(wholes), 1)


def group_sparsity(params: ArrayTree, regularizer: Regularization) -> jax.Array:
    """Zero groups / groups, over the arrays whose regularizer favours zeros.

    For elementwise regularizers the groups are the entries.

    Args:
      params: arrays.
      regularizer: as in `ramda`.

    Returns:
      0-d array in [0, 1]; 0 if nothing is grouped.

    Raises:
      ValueError: as `ramda` would for this regularizer.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> print(rj.group_sparsity({"kernel": jnp.array([[0.0, 0.0], [0.0, 1.0]])}, rj.GroupLasso(0.1)))
      0.5
    """
    rows = _regularized(params, regularizer, "groups")
    zeros = [jnp.sum(psi.zero_groups(x)) for _, x, psi in rows]
    return _ratio(zeros, [psi.num_groups(x.shape) for _, x, psi in rows])


def weighted_group_sparsity(params: ArrayTree, regularizer: Regularization) -> jax.Array:
    """Parameters in zero groups / parameters in groups: the paper's measure.

    Args, returns, raises: as `group_sparsity`.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> params = {"a": {"kernel": jnp.zeros((1, 6))}, "b": {"kernel": jnp.array([[0.0, 0.0], [0.0, 1.0]])}}
      >>> print(rj.weighted_group_sparsity(params, rj.GroupLasso(0.1)))  # 6 + 2 of 10 entries
      0.8

    Source: Huang & Lee, NeurIPS 2024, Section 5.
    """
    rows = _regularized(params, regularizer, "groups")
    sizes = [size(x.shape) for _, x, _ in rows]
    zeros = [
        jnp.mean(psi.zero_groups(x).astype(jnp.float32)) * n
        for (_, x, psi), n in zip(rows, sizes, strict=True)
        if n
    ]
    return _ratio(zeros, sizes)


def low_rank_level(params: ArrayTree, regularizer: Regularization) -> jax.Array:
    """1 - (nonzero singular values) / (all singular values), over the arrays with a spectral regularizer.

    A singular value counts as zero up to rounding of the stored entries; see `NuclearNorm.zero_groups`.

    Args, returns, raises: as `group_sparsity`.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> print(rj.low_rank_level({"kernel": jnp.ones((4, 4))}, rj.NuclearNorm(0.1)))  # one of four singular values is left
      0.75

    Source: Huang & Lee, NeurIPS 2024, Section 5.
    """
    rows = _regularized(params, regularizer, "rank")
    zeros = [jnp.sum(psi.zero_groups(x)) for _, x, psi in rows]
    return _ratio(zeros, [psi.num_groups(x.shape) for _, x, psi in rows])


def _penalty(params: ArrayTree, regularizer: Regularization, count: ArrayLike) -> jax.Array:
    total = _numerics.as_scalar(0.0)
    for _, x, psi in _regularized(params, regularizer):
        wide = x.astype(_numerics.at_least_float32(x.dtype))
        total += _numerics.as_scalar(psi.resolve(count, wide.dtype).value(wide))
    return total


def objective(
    loss: ArrayLike, params: ArrayTree, regularizer: Regularization, *, count: ArrayLike = 0
) -> jax.Array:
    """F(W) = loss + psi(W), the regularized objective. Differentiable (0 at zero groups).

    Args:
      loss: the value of f at params.
      params: arrays.
      regularizer: as in `ramda`.
      count: the step at which scheduled strengths are evaluated.

    Returns:
      0-d array.

    Raises:
      ValueError: as `ramda` would for this regularizer.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> print(rj.objective(2.0, {"kernel": jnp.array([[-1.0, 3.0]])}, rj.L1(0.5)))
      4.0
    """
    return _numerics.as_scalar(loss) + _penalty(params, regularizer, count)


def summary(params: ArrayTree, regularizer: Regularization) -> dict[str, float | jax.Array]:
    """A flat dict of the structure, loggable as is.

    Per regularized array: `PATH/groups`, `PATH/zero_groups`, `PATH/group_sparsity`; for a spectral regularizer `PATH/rank`,
    `PATH/full_rank`, `PATH/low_rank_level`; for `Binarize` `PATH/binarized` (the share of entries at -1 or 1).
    Totals: `group_sparsity` and `weighted_group_sparsity`, `low_rank_level` (each where it applies), `regularization`
    (the value of psi, scheduled strengths as at step 0; not where a strength is a target), `nonzero_parameters` and
    `parameters`.

    Args, raises: as `group_sparsity`.

    Returns:
      Python numbers, or tracers under jit.

    Example:
      >>> import jax.numpy as jnp, ramda_jax as rj
      >>> params = {"dense": {"kernel": jnp.array([[0.0, 0.0], [0.0, 1.0]]), "bias": jnp.zeros(2)}}
      >>> for name, value in rj.summary(params, rj.GroupLasso(0.1)).items():  # any logger: log(name, value, step)
      ...     print(f"{name}: {value:.4g}")
      dense/kernel/groups: 2
      dense/kernel/zero_groups: 1
      dense/kernel/group_sparsity: 0.5
      group_sparsity: 0.5
      weighted_group_sparsity: 0.5
      regularization: 0.1414
      nonzero_parameters: 1
      parameters: 6
    """
    rows = _regularized(params, regularizer)
    out: dict[str, Any] = {}
    for path, x, psi in rows:
        prefix = f"{path}/" if path else ""
        groups = psi.num_groups(x.shape)
        if psi.structure == "rank":
            zeros = jnp.sum(psi.zero_groups(x))
            out[prefix + "rank"] = groups - zeros
            out[prefix + "full_rank"] = groups
            out[prefix + "low_rank_level"] = zeros / max(groups, 1)
        elif psi.structure == "signs":
            out[prefix + "binarized"] = jnp.mean(jnp.abs(x) == 1)
        else:
            zeros = jnp.sum(psi.zero_groups(x))
            out[prefix + "groups"] = groups
            out[prefix + "zero_groups"] = zeros
            out[prefix + "group_sparsity"] = zeros / max(groups, 1)
    kinds = {psi.structure for _, _, psi in rows}
    if "groups" in kinds:
        out["group_sparsity"] = group_sparsity(params, regularizer)
        out["weighted_group_sparsity"] = weighted_group_sparsity(params, regularizer)
    if "rank" in kinds:
        out["low_rank_level"] = low_rank_level(params, regularizer)
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(params)]
    # What a target sets has no value here.
    if not any(map(is_scored, jax.tree.leaves([psi for _, _, psi in rows]))):
        out["regularization"] = _penalty(params, regularizer, 0)
    out["nonzero_parameters"] = sum((jnp.sum(x != 0) for x in leaves), jnp.zeros([], int))
    out["parameters"] = sum(size(x.shape) for x in leaves)
    return {name: _numerics.as_number(value) for name, value in out.items()}
