"""Independent oracle: the methods, regularizers and subproblems in plain float64 NumPy.

Transcribed from the mathematics, not from the library, and built to be right rather than fast.
Wherever it can, it takes another route than the library: proximal gradient run to its fixed point,
scans and bisection in place of closed forms. Every method solves, per parameter, the subproblem

    min_X  <v, X> + 1/2 <X - x0, D (X - x0)> + w psi(X),      D diagonal and positive,

whose smooth part is 1/2 <X, D X> - <b, X> + const with b = D x0 - v.

Symbols of the paper            here
    psi                         a regularizer: value, prox, zero_pattern
    V, U, alpha                 grad_sum, grad_sq_sum, weight_sum
    W^0, W^t, What_t            origin, W, What
    P = diag(cbrt(U) + eps)     D
    eta_t, c_t, s_t             learning_rate, momentum, weight = eta_t sqrt(t)
    m, n (Adam moments)         mean, square
    lambda sqrt(|g|)            group_level
Step counts: k is the 0-based global count that schedules and restart_steps see, t the 1-based count
in the stage.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

Array = np.ndarray
Params = dict[str, Array]
Schedule = float | Callable[[int], float]
EPS = np.finfo(np.float64).eps
BISECTIONS = 200  # more than enough to reach two neighbouring floats


# -------------------------------------------------------------------------------------------------
# Regularizers that are sums over entries
# -------------------------------------------------------------------------------------------------


class Entrywise:
    """psi(x) = sum_i penalty(x_i); between neighbouring kinks smooth, with derivative `slope`."""

    kinks: ClassVar[tuple[float, ...]] = (0.0,)
    jumps: ClassVar[bool] = False  # penalty is discontinuous (lower) at its kinks

    def penalty(self, x: Array) -> Array:
        raise NotImplementedError

    def slope(self, x: Array, inside: float) -> Array:
        """penalty'(x), x in the closed piece between kinks that has `inside` in its interior."""
        raise NotImplementedError

    def inflection(self, ratio: Array) -> Array:
        """|x| from which z^2 / 2 + ratio * penalty(z) is convex away from zero."""
        return np.zeros_like(ratio)

    def value(self, x: Array) -> float:
        return float(np.sum(self.penalty(_float64(x))))

    def prox(self, x: Array, step: float) -> Array:
        x = _float64(x)
        return minimise_entries(x, np.ones_like(x), step, self)

    def zero_pattern(self, x: Array) -> Array:
        """One boolean per entry: x == 0."""
        return _float64(x) == 0


@dataclass(frozen=True)
class L1(Entrywise):
    """strength * sum |x|."""

    strength: float

    def penalty(self, x: Array) -> Array:
        return self.strength * np.abs(x)

    def slope(self, x: Array, inside: float) -> Array:
        return np.full_like(x, self.strength * np.sign(inside))


@dataclass(frozen=True)
class L0(Entrywise):
    """strength * (number of nonzero entries)."""

    strength: float
    jumps: ClassVar[bool] = True

    def penalty(self, x: Array) -> Array:
        return self.strength * (x != 0)

    def slope(self, x: Array, inside: float) -> Array:
        return np.zeros_like(x)


class Power(Entrywise):
    """strength * sum |x|^exponent, 0 < exponent < 1."""

    strength: float
    exponent: ClassVar[float]

    def penalty(self, x: Array) -> Array:
        return self.strength * np.abs(x) ** self.exponent

    def slope(self, x: Array, inside: float) -> Array:
        # infinite at zero: 1e-300 makes it huge and finite, so a zero strength gives zero, not NaN
        size = np.maximum(np.abs(x), 1e-300)
        return self.strength * self.exponent * size ** (self.exponent - 1) * np.sign(inside)

    def inflection(self, ratio: Array) -> Array:
        # 1 + ratio strength p (p - 1) x^(p - 2) = 0
        p = self.exponent
        return (ratio * self.strength * p * (1 - p)) ** (1 / (2 - p))


@dataclass(frozen=True)
class LHalf(Power):
    """strength * sum |x|^(1/2)."""

    strength: float
    exponent: ClassVar[float] = 1 / 2


@dataclass(frozen=True)
class LTwoThirds(Power):
    """strength * sum |x|^(2/3)."""

    strength: float
    exponent: ClassVar[float] = 2 / 3


@dataclass(frozen=True)
class ElasticNet(Entrywise):
    """l1 * sum |x| + l2/2 * sum x^2."""

    l1: float
    l2: float

    def penalty(self, x: Array) -> Array:
        return self.l1 * np.abs(x) + self.l2 / 2 * x**2

    def slope(self, x: Array, inside: float) -> Array:
        return self.l1 * np.sign(inside) + self.l2 * x


@dataclass(frozen=True)
class Binarize(Entrywise):
    """strength * sum |x - sign x| = strength * sum | |x| - 1 |, sign(0) = +1."""

    strength: float
    kinks: ClassVar[tuple[float, ...]] = (-1.0, 0.0, 1.0)

    def penalty(self, x: Array) -> Array:
        return self.strength * np.abs(np.abs(x) - 1)

    def slope(self, x: Array, inside: float) -> Array:
        return np.full_like(x, self.strength * np.sign(inside) * np.sign(abs(inside) - 1))

    def zero_pattern(self, x: Array) -> Array:
        """One boolean per entry: |x| == 1, where |x - sign x| is zero."""
        return np.abs(_float64(x)) == 1


# -------------------------------------------------------------------------------------------------
# Regularizers that are sums over groups, and the nuclear norm
# -------------------------------------------------------------------------------------------------


class Grouped:
    """A sum over groups; one group per index along group_axis, its members along all other axes."""

    group_axis: int | tuple[int, ...]

    def rows(self, x: Array) -> Array:
        """x as a matrix of shape (groups, group size)."""
        x = _float64(x)
        axes = self._axes(x.ndim)
        moved = np.moveaxis(x, axes, range(len(axes)))
        return moved.reshape(int(np.prod(moved.shape[: len(axes)])), -1)

    def unrows(self, rows: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `rows`."""
        axes = self._axes(len(shape))
        others = [a for a in range(len(shape)) if a not in axes]
        moved_shape = [shape[a] for a in (*axes, *others)]
        return np.moveaxis(rows.reshape(moved_shape), range(len(axes)), axes)

    def _axes(self, ndim: int) -> tuple[int, ...]:
        axes = (self.group_axis,) if isinstance(self.group_axis, int) else self.group_axis
        return tuple(range(ndim)[a] for a in axes)  # an axis out of range raises

    def zero_pattern(self, x: Array) -> Array:
        """One boolean per group: all its entries are zero."""
        return np.all(self.rows(x) == 0, axis=1)


class GroupNorm(Grouped):
    """entry_level * ||x||_1 + sum_g group_level * ||x_g||; the two levels may be zero."""

    @property
    def entry_level(self) -> float:
        return 0.0

    def group_level(self, size: int) -> float:
        raise NotImplementedError

    def value(self, x: Array) -> float:
        rows = self.rows(x)
        group_term = self.group_level(rows.shape[1]) * np.sum(_row_norms(rows))
        return float(self.entry_level * np.sum(np.abs(rows)) + group_term)

    def prox(self, x: Array, step: float) -> Array:
        x = _float64(x)
        return self.unrows(self.prox_rows(self.rows(x), step), x.shape)

    def prox_rows(self, rows: Array, step: float | Array) -> Array:
        """prox of each row; `step` may be a column, one value per row."""
        shrunk = soft_threshold(rows, step * self.entry_level)
        norms = _row_norms(shrunk)
        kept = np.maximum(norms - step * self.group_level(rows.shape[1]), 0)
        return shrunk * (kept / np.where(norms == 0, 1, norms))


@dataclass(frozen=True)
class GroupLasso(GroupNorm):
    """strength * sum_g sqrt(|g|) ||x_g||; without the sqrt(|g|) where size_weighted is False."""

    strength: float
    group_axis: int | tuple[int, ...] = -2
    size_weighted: bool = True

    def group_level(self, size: int) -> float:
        return self.strength * (np.sqrt(size) if self.size_weighted else 1.0)


@dataclass(frozen=True)
class SparseGroupLasso(GroupNorm):
    """l1 * ||x||_1 + group * sum_g sqrt(|g|) ||x_g||."""

    l1: float
    group: float
    group_axis: int | tuple[int, ...] = -2

    @property
    def entry_level(self) -> float:
        return self.l1

    def group_level(self, size: int) -> float:
        return self.group * np.sqrt(size)

    def zero_pattern(self, x: Array) -> Array:
        """One boolean per entry, for it zeroes entries as well as groups."""
        return _float64(x) == 0


@dataclass(frozen=True)
class GroupMCP(Grouped):
    """sum_g rho(||x_g||), lam = strength sqrt(|g|).

    rho(r) = lam r - r^2/(2 gamma) for r <= gamma lam, and gamma lam^2 / 2 beyond.
    """

    strength: float
    gamma: float
    group_axis: int | tuple[int, ...] = -2

    def group_level(self, size: int) -> float:
        return self.strength * np.sqrt(size)

    def rho(self, r: float | Array, lam: float) -> Array:
        rising = lam * r - r**2 / (2 * self.gamma)
        return np.where(r <= self.gamma * lam, rising, self.gamma * lam**2 / 2)

    def rho_slope(self, r: Array, lam: float) -> Array:
        return np.maximum(lam - r / self.gamma, 0)

    def value(self, x: Array) -> float:
        rows = self.rows(x)
        return float(np.sum(self.rho(_row_norms(rows), self.group_level(rows.shape[1]))))

    def prox(self, x: Array, step: float) -> Array:
        x = _float64(x)
        return solve_subproblem(np.zeros_like(x), x, np.ones_like(x), step, self)


@dataclass(frozen=True)
class NuclearNorm:
    """strength * sum of the singular values of the matrix (prod(shape[:-1]), shape[-1])."""

    strength: float

    def value(self, x: Array) -> float:
        return float(self.strength * np.sum(np.linalg.svd(self._matrix(x), compute_uv=False)))

    def prox(self, x: Array, step: float) -> Array:
        left, sigma, right = np.linalg.svd(self._matrix(x), full_matrices=False)
        kept = np.maximum(sigma - step * self.strength, 0)
        rank = int(np.count_nonzero(kept))
        return ((left[:, :rank] * kept[:rank]) @ right[:rank]).reshape(np.shape(x))

    def zero_pattern(self, x: Array, rtol: float = 1e-10) -> Array:
        """One boolean per singular value, largest first: is it at most rtol times the largest."""
        sigma = np.linalg.svd(self._matrix(x), compute_uv=False)
        return sigma <= rtol * sigma[0]

    def _matrix(self, x: Array) -> Array:
        return _float64(x).reshape(-1, np.shape(x)[-1])


Regularizer = Entrywise | GroupNorm | GroupMCP | NuclearNorm


def soft_threshold(x: Array, level: float | Array) -> Array:
    """argmin_z 1/2 (z - x)^2 + level |z|."""
    return np.sign(x) * np.maximum(np.abs(x) - level, 0)


def _row_norms(rows: Array) -> Array:
    return np.sqrt(np.sum(rows**2, axis=1, keepdims=True))


def _float64(x: Array) -> Array:
    return np.asarray(x, dtype=np.float64)


# -------------------------------------------------------------------------------------------------
# The subproblem
# -------------------------------------------------------------------------------------------------


def Q(x: Array, v: Array, x0: Array, D: Array, w: float, reg: Regularizer | None) -> float:
    """<v, x> + 1/2 <x - x0, D (x - x0)> + w psi(x)."""
    smooth = float(np.sum(v * x) + 0.5 * np.sum(D * (x - x0) ** 2))
    return smooth if reg is None else smooth + w * reg.value(x)


def solve_subproblem(
    v: Array, x0: Array, D: Array, w: float, reg: Regularizer | None, start: Array | None = None
) -> Array:
    """argmin_x <v, x> + 1/2 <x - x0, D (x - x0)> + w psi(x), the global one if psi is not convex.

    Args: v, x0, start of one shape (start defaults to x0; only proximal gradient uses it), D of
    that shape or a scalar, w >= 0. Where minimisers tie, an entry or group is zero (Binarize:
    positive).
    """
    v, x0 = _float64(v), _float64(x0)
    D = np.broadcast_to(_float64(D), x0.shape)
    start = x0 if start is None else _float64(start)
    if reg is None:
        return x0 - v / D
    if isinstance(reg, Entrywise):
        return minimise_entries(D * x0 - v, D, w, reg)
    if isinstance(reg, GroupMCP):
        b, D_rows = reg.rows(D * x0 - v), reg.rows(D)
        found = [minimise_mcp_group(b_g, D_g, w, reg) for b_g, D_g in zip(b, D_rows, strict=True)]
        return reg.unrows(np.stack(found), x0.shape)
    if isinstance(reg, GroupNorm):
        v_rows, x0_rows, D_rows, start_rows = (reg.rows(a) for a in (v, x0, D, start))
        rows = solve_group_norm(v_rows, x0_rows, D_rows, w, reg, start_rows)
        return reg.unrows(rows, x0.shape)
    return solve_nuclear_norm(v, x0, D, w, reg, start)


def pg_residual(x: Array, v: Array, x0: Array, D: Array, w: float, reg: Regularizer) -> float:
    """||x - prox_{theta w psi}(x - theta grad)|| / theta, theta = 1/max D; zero iff x minimises Q.

    That is half the bound (9) on the subgradient norm. For a nonconvex psi, theta is halved, and
    zero is only necessary.
    """
    convex = isinstance(reg, GroupNorm | NuclearNorm | L1 | ElasticNet)
    theta = (1.0 if convex else 0.5) / np.max(D)
    moved = reg.prox(x - theta * (v + D * (x - x0)), theta * w)
    return float(np.linalg.norm(x - moved) / theta)


# -- entries: compare all local minimisers


def minimise_entries(b: Array, D: Array, w: float, reg: Entrywise) -> Array:
    """Per entry, the global minimiser of F(x) = 1/2 D x^2 - b x + w penalty(x).

    A local minimiser is a kink with F'(k-) <= 0 <= F'(k+), or a root of F' where F' rises. Between
    two kinks, beyond the inflection point next to zero, F' increases: bisection finds the only root
    there. The lowest candidate wins.
    """
    kinks = sorted(reg.kinks)
    inner = [(p + q) / 2 for p, q in itertools.pairwise(kinks)]
    insides = [kinks[0] - 1, *inner, kinks[-1] + 1]
    bound = 1.000001 * np.maximum(np.abs(b / D), max(map(abs, kinks)))  # F' points inwards there
    edges = [-bound, *(np.full_like(b, k) for k in kinks), bound]

    def slope(x: Array, inside: float) -> Array:
        return D * x - b + w * reg.slope(x, inside)

    candidates: list[tuple[Array, Array]] = []  # (exists, x); the first of equals wins
    for i in sorted(range(len(kinks)), key=lambda i: (abs(kinks[i]), -kinks[i])):
        x = np.full_like(b, kinks[i])
        is_minimum = (slope(x, insides[i]) <= 0) & (slope(x, insides[i + 1]) >= 0)
        candidates.append((is_minimum | reg.jumps, x))
    concave = reg.inflection(w / D)
    for i in reversed(range(len(insides))):
        low = np.where(edges[i] == 0, concave, edges[i])
        high = np.where(edges[i + 1] == 0, -concave, edges[i + 1])
        rising = partial(slope, inside=insides[i])
        exists = (low <= high) & (rising(low) <= 0) & (rising(high) >= 0)
        candidates.append((exists, bisect_increasing(rising, low, high)))

    best, lowest = np.full_like(b, np.nan), np.full_like(b, np.inf)
    for exists, x in candidates:
        cost = np.where(exists, 0.5 * D * x**2 - b * x + w * reg.penalty(x), np.inf)
        best, lowest = np.where(cost < lowest, x, best), np.minimum(cost, lowest)
    return best


def bisect_increasing(function: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The root of an increasing function in [low, high], per entry; rubbish where there is none."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = function(middle) < 0
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(np.abs(function(low)) < np.abs(function(high)), low, high)


# -- convex group norms: Algorithm 2 to its fixed point, then the radius by bisection


def solve_group_norm(
    v: Array, x0: Array, D: Array, w: float, reg: GroupNorm, start: Array
) -> Array:
    """Rows are groups. Proximal gradient, one step size per group, on the groups screening leaves.

    Group g is zero iff ||soft(D x0 - v, w entry_level)|| <= w group_level.
    """
    level = w * reg.group_level(v.shape[1])
    shrunk = soft_threshold(D * x0 - v, w * reg.entry_level)
    alive = _row_norms(shrunk)[:, 0] > level
    x = np.zeros_like(x0)
    if alive.any():
        v, x0, D, shrunk = v[alive], x0[alive], D[alive], shrunk[alive]
        found = proximal_gradient(
            v, x0, D, lambda z, theta: reg.prox_rows(z, theta * w), start[alive], axes=(1,)
        )
        x[alive] = polish_radius(found, shrunk, D, level)
    return x


def proximal_gradient(
    v: Array,
    x0: Array,
    D: Array,
    prox: Callable[[Array, Array], Array],
    start: Array,
    axes: tuple[int, ...],
    max_iterations: int = 300_000,
) -> Array:
    """Algorithm 2 to its fixed point: Z <- prox_theta(Y - theta (v + D (Y - x0))), theta = 1/max D.

    The problem separates into blocks, each spanning `axes`, with a theta and a momentum of its own.
    The momentum is Nesterov's, at most (1 - sqrt(q)) / (1 + sqrt(q)), q = min D / max D, and starts
    afresh when it points uphill. A block is done when a step without momentum would move it by no
    more than round-off.
    """
    top, bottom = D.max(axis=axes, keepdims=True), D.min(axis=axes, keepdims=True)
    theta = 1 / top
    ceiling = (1 - np.sqrt(bottom / top)) / (1 + np.sqrt(bottom / top))

    def norm(a: Array) -> Array:
        return np.sqrt(np.sum(a**2, axis=axes, keepdims=True))

    def step(y: Array) -> Array:
        return prox(y - theta * (v + D * (y - x0)), theta)

    z = y = start
    t = np.ones_like(top)
    done = np.zeros(top.shape, dtype=bool)
    for k in range(max_iterations):
        if k % 20 == 0:  # without momentum
            plain = step(z)
            round_off = 8 * EPS * (norm(plain) + norm(x0) + theta * norm(v))
            done = done | (norm(plain - z) <= round_off)
            if done.all():
                return z
        new = np.where(done, z, step(y))
        uphill = np.sum((y - new) * (new - z), axis=axes, keepdims=True) > 0
        t_next = np.where(uphill, 1, (1 + np.sqrt(1 + 4 * t**2)) / 2)
        beta = np.where(uphill, 0, np.minimum((t - 1) / t_next, ceiling))
        z, y, t = new, new + beta * (new - z), t_next
    raise RuntimeError("proximal gradient did not reach its fixed point")


def polish_radius(found: Array, shrunk: Array, D: Array, level: float) -> Array:
    """Removes the round-off (EPS times max D / min D) that proximal gradient leaves in a group.

    D x - shrunk + level x / ||x|| = 0 gives x = shrunk r / (D r + level) with r = ||x||, so r is
    the root of the increasing 1 - ||shrunk / (D r + level)||. Must agree with what proximal
    gradient found.
    """
    free = _row_norms(shrunk / D)  # the radius at level = 0, never exceeded
    if level > 0:
        r = bisect_increasing(lambda r: 1 - _row_norms(shrunk / (D * r + level)), 0 * free, free)
        x = shrunk * r / (D * r + level)
    else:
        x = shrunk / D
    allowed = 1e-10 + 1e3 * EPS * (D.max() / D.min())
    if np.max(_row_norms(x - found) / free) > allowed:
        raise RuntimeError("proximal gradient and the radius equation disagree")
    return x


# -- group MCP: a scan over the radius


def minimise_mcp_group(b: Array, D: Array, w: float, reg: GroupMCP) -> Array:
    """Global minimiser of 1/2 <x, D x> - <b, x> + w rho(||x||) for one group (vectors b, D).

    On the sphere ||x|| = r the smooth part is least at x = b / (D + mu), mu the multiplier; F(r),
    that least value plus w rho(r), has F'(r) = w rho'(r) - mu r. As mu falls from infinity to 0, r
    rises from 0 to ||b / D||, beyond which both parts grow. Dense scan over mu; each sign change of
    F' from - to + as r rises is refined.
    """
    lam = reg.group_level(b.size)

    def point(mu: Array) -> Array:  # mu a column, one multiplier per row
        return b / (D + mu)

    def slope(mu: Array) -> Array:
        r = _row_norms(point(mu))
        return w * reg.rho_slope(r, lam) - mu * r

    def cost(x: Array) -> float:
        return float(0.5 * np.sum(D * x**2) - b @ x + w * reg.rho(float(np.linalg.norm(x)), lam))

    exponents = np.arange(np.log10(D.min()) - 10, np.log10(D.max()) + 18, 1 / 20)
    scan = np.concatenate([[0.0], 10**exponents])[:, None]
    slopes = slope(scan)[:, 0]
    candidates = [np.zeros_like(b)] if np.linalg.norm(b) <= w * lam else []
    if np.linalg.norm(b / D) >= reg.gamma * lam:  # F'(||b / D||) = 0
        candidates.append(b / D)
    j = np.flatnonzero((slopes[:-1] > 0) & (slopes[1:] <= 0))
    candidates.extend(point(bisect_increasing(lambda mu: -slope(mu), scan[j], scan[j + 1])))
    return min(candidates, key=cost, default=np.zeros_like(b))  # the first of equals, so zero


# -- nuclear norm


def solve_nuclear_norm(
    v: Array, x0: Array, D: Array, w: float, reg: NuclearNorm, start: Array
) -> Array:
    """Proximal gradient on the whole matrix as one block; accurate to about EPS * max D / min D."""

    def prox(z: Array, theta: Array) -> Array:
        return reg.prox(z, theta.item() * w)

    return proximal_gradient(v, x0, D, prox, start, axes=tuple(range(x0.ndim)))


# -------------------------------------------------------------------------------------------------
# The methods
# -------------------------------------------------------------------------------------------------


class Trajectory(NamedTuple):
    """W[k], What[k]: parameters and subproblem solutions after the update with grads[k]."""

    W: list[Params]
    What: list[Params]


def ramda(
    params: Params,
    grads: Sequence[Params],
    regularizers: dict[str, Regularizer | None],
    learning_rate: Schedule,
    *,
    momentum: Schedule = 0.01,
    eps: float = 1e-6,
    restart_steps: Sequence[int] = (),
    restart_eps_decay: float = 0.1,
) -> Trajectory:
    """RAMDA: dual averaging in the metric P_t = diag(cbrt(U_t) + eps)."""

    def metric(grad_sq_sum: Array, t: int, restarts: int) -> Array:
        return np.cbrt(grad_sq_sum) + eps * restart_eps_decay**restarts

    return _dual_averaging(
        params, grads, regularizers, learning_rate, momentum, restart_steps, metric
    )


def rmda(
    params: Params,
    grads: Sequence[Params],
    regularizers: dict[str, Regularizer | None],
    learning_rate: Schedule,
    *,
    momentum: Schedule = 0.1,
    restart_steps: Sequence[int] = (),
) -> Trajectory:
    """RMDA: dual averaging in the metric sqrt(t) I."""

    def metric(grad_sq_sum: Array, t: int, restarts: int) -> Array:
        return np.full_like(grad_sq_sum, np.sqrt(t))

    return _dual_averaging(
        params, grads, regularizers, learning_rate, momentum, restart_steps, metric
    )


def _dual_averaging(
    params: Params,
    grads: Sequence[Params],
    regularizers: dict[str, Regularizer | None],
    learning_rate: Schedule,
    momentum: Schedule,
    restart_steps: Sequence[int],
    metric: Callable[[Array, int, int], Array],
) -> Trajectory:
    """What RAMDA and RMDA share; `metric` gives D from U_t, t and the number of restarts so far."""
    W = _copy(params)
    origin, t, restarts, weight_sum = W, 0, 0, 0.0
    grad_sum, grad_sq_sum = _zeros(W), _zeros(W)
    out = Trajectory([], [])
    for k, grad in enumerate(grads):
        if k in restart_steps:
            origin, t, restarts, weight_sum = W, 0, restarts + 1, 0.0
            grad_sum, grad_sq_sum = _zeros(W), _zeros(W)
        t += 1
        weight = _at(learning_rate, k) * np.sqrt(t)  # s_t = eta_t sqrt(t)
        weight_sum += weight  # alpha_t = alpha_{t-1} + s_t
        c = _at(momentum, k)
        new, hat = {}, {}
        for path, w in W.items():
            g = _float64(grad[path])
            grad_sum[path] = grad_sum[path] + weight * g  # V_t = V_{t-1} + s_t G_t
            grad_sq_sum[path] = grad_sq_sum[path] + weight * g * g  # U_t = U_{t-1} + s_t G_t * G_t
            D = metric(grad_sq_sum[path], t, restarts)
            hat[path] = solve_subproblem(
                grad_sum[path], origin[path], D, weight_sum, regularizers[path], w
            )
            new[path] = (1 - c) * w + c * hat[path]  # W^t = (1 - c_t) W^{t-1} + c_t What_t
        W = new
        out.W.append(new)
        out.What.append(hat)
    return out


def prox_sgd(
    params: Params,
    grads: Sequence[Params],
    regularizers: dict[str, Regularizer | None],
    learning_rate: Schedule,
    *,
    momentum: Schedule = 0.1,
) -> Trajectory:
    """ProxSGD: v = m_t, x0 = W^{t-1}, D = I / eta, w = 1, with m_t = (1 - c) m_{t-1} + c G_t."""
    W, mean = _copy(params), _zeros(params)
    steps = []
    for k, grad in enumerate(grads):
        eta, c = _at(learning_rate, k), _at(momentum, k)
        new = {}
        for path, w in W.items():
            mean[path] = (1 - c) * mean[path] + c * _float64(grad[path])
            D = np.full_like(w, 1 / eta)
            new[path] = solve_subproblem(mean[path], w, D, 1.0, regularizers[path], w)
        W = new
        steps.append(new)
    return Trajectory(steps, steps)


def prox_adamw(
    params: Params,
    grads: Sequence[Params],
    regularizers: dict[str, Regularizer | None],
    learning_rate: Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> Trajectory:
    """ProxGen with AdamW: v = mhat, x0 = (1 - eta wd) W^{t-1}, D = (sqrt(nhat) + eps) / eta, w = 1.

    amsgrad: nhat_t is the running maximum of n, bias-corrected after.
    """
    W, mean, square, largest = _copy(params), _zeros(params), _zeros(params), _zeros(params)
    steps = []
    for k, grad in enumerate(grads):
        eta, t = _at(learning_rate, k), k + 1
        new = {}
        for path, w in W.items():
            g = _float64(grad[path])
            mean[path] = b1 * mean[path] + (1 - b1) * g
            square[path] = b2 * square[path] + (1 - b2) * g * g
            largest[path] = np.maximum(largest[path], square[path])
            mean_hat = mean[path] / (1 - b1**t)
            square_hat = (largest[path] if amsgrad else square[path]) / (1 - b2**t)
            x0 = (1 - eta * weight_decay) * w
            D = (np.sqrt(square_hat) + eps) / eta
            new[path] = solve_subproblem(mean_hat, x0, D, 1.0, regularizers[path], w)
        W = new
        steps.append(new)
    return Trajectory(steps, steps)


def prox_ssi(
    params: Params,
    grads: Sequence[Params],
    regularizers: dict[str, Regularizer | None],
    learning_rate: Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    bias_corrected_metric: bool = True,
) -> Trajectory:
    """ProxSSI: an Adam step to u, weight decay of u, then min 1/2 <X - u, M (X - u)> + eta psi(X).

    M = (sqrt(n) + eps) / sqrt(1 - b2^t), the metric of the Adam step itself; sqrt(n) + eps if
    published.
    """
    W, mean, square = _copy(params), _zeros(params), _zeros(params)
    steps = []
    for k, grad in enumerate(grads):
        eta, t = _at(learning_rate, k), k + 1
        new = {}
        for path, w in W.items():
            g = _float64(grad[path])
            mean[path] = b1 * mean[path] + (1 - b1) * g
            square[path] = b2 * square[path] + (1 - b2) * g * g
            root = np.sqrt(square[path]) + eps
            u = w - eta * np.sqrt(1 - b2**t) / (1 - b1**t) * mean[path] / root
            u = (1 - eta * weight_decay) * u
            M = root / np.sqrt(1 - b2**t) if bias_corrected_metric else root
            new[path] = solve_subproblem(np.zeros_like(u), u, M, eta, regularizers[path], w)
        W = new
        steps.append(new)
    return Trajectory(steps, steps)


def _at(value: Schedule, k: int) -> float:
    """A schedule's value at the 0-based global step k."""
    return float(value(k)) if callable(value) else float(value)


def _copy(params: Params) -> Params:
    return {path: np.array(x, dtype=np.float64) for path, x in params.items()}


def _zeros(params: Params) -> Params:
    return {path: np.zeros(np.shape(x)) for path, x in params.items()}


# -------------------------------------------------------------------------------------------------
# Convex optimum of group-sparse logistic regression
# -------------------------------------------------------------------------------------------------


class LogisticOptimum(NamedTuple):
    """Minimiser W (features, classes), b (classes,); F there, its duality gap; iterations made."""

    W: Array
    b: Array
    value: float
    gap: float
    iterations: int


def logistic_optimum(
    X: Array, y: Array, strength: float, gap: float = 1e-9, max_iterations: int = 100_000
) -> LogisticOptimum:
    """Minimises, over W and b,

        F = mean cross-entropy(X W + b, y) + strength sqrt(classes) sum_features ||W_feature||,

    by FISTA with restart on the features that are nonzero or close to it, until the duality gap
    over all features is at most `gap`. Centring the features changes only the free bias, and helps
    much: the Hessian is then at most 1/2 blockdiag(X^T X / n, 1), so W and b have a step size each.
    Args: X (n, features), y (n,) integer classes. One BLAS thread is fastest on a busy machine.
    """
    n, mean = len(X), X.mean(axis=0)
    X = _float64(X) - mean
    Y = np.eye(int(np.max(y)) + 1)[y]
    level = strength * np.sqrt(Y.shape[1])
    step_W, step_b = 2 * n / np.linalg.eigvalsh(X.T @ X)[-1], 2.0
    reg = GroupLasso(level, group_axis=0, size_weighted=False)

    W = W_y = np.zeros((X.shape[1], Y.shape[1]))
    b = b_y = np.zeros(Y.shape[1])
    t, active, X_active = 1.0, np.ones(len(W), dtype=bool), X
    for k in range(1, max_iterations + 1):
        error = (_softmax(X_active @ W_y[active] + b_y) - Y) / n
        W_new = np.zeros_like(W)
        W_new[active] = reg.prox_rows(W_y[active] - step_W * (X_active.T @ error), step_W)
        b_new = b_y - step_b * error.sum(axis=0)
        uphill_W = np.sum((W_y - W_new) * (W_new - W)) / step_W
        uphill_b = np.sum((b_y - b_new) * (b_new - b)) / step_b
        restart = uphill_W + uphill_b > 0
        t_next = 1.0 if restart else (1 + np.sqrt(1 + 4 * t**2)) / 2
        beta = 0.0 if restart else (t - 1) / t_next
        W_y, b_y = W_new + beta * (W_new - W), b_new + beta * (b_new - b)
        W, b, t = W_new, b_new, t_next
        if k % 100 == 0:
            b_best, value, certified, slopes = _logistic_gap(X, Y, W, b, level)
            if certified <= gap:
                return LogisticOptimum(W, b_best - mean @ W, value, certified, k)
            active = np.any(W != 0, axis=1) | (slopes > 0.95 * level)
            X_active, W_y = X[:, active], W_y * active[:, None]
    raise RuntimeError("FISTA did not reach the duality gap asked for")


def _logistic_gap(
    X: Array, Y: Array, W: Array, b: Array, level: float
) -> tuple[Array, float, float, Array]:
    """The best b for W, F there, its duality gap, and per feature the norm of the loss gradient.

    The dual is max (1/n) sum_i entropy(q_i) over distributions q_i such that theta = (q - Y)/n has
    ||theta^T x_feature|| <= level and columns that sum to zero (P of the best b does, by Newton).
    Used: q = Y + s (P - Y), P the model's probabilities, with the largest feasible s <= 1.
    """
    n = len(X)
    scores = X @ W
    for _ in range(8):
        P = _softmax(scores + b)
        hessian = (np.diag(P.sum(axis=0)) - P.T @ P) / n
        b = b - np.linalg.pinv(hessian) @ (P - Y).mean(axis=0)
    scores = scores + b
    P = _softmax(scores)
    slopes = _row_norms(X.T @ (P - Y) / n)[:, 0]
    q = Y + min(1.0, level / slopes.max()) * (P - Y)
    dual = -np.sum(q * np.log(np.where(q > 0, q, 1))) / n
    peak = scores.max(axis=1)
    log_sum = peak + np.log(np.sum(np.exp(scores - peak[:, None]), axis=1))
    value = np.mean(log_sum - np.sum(Y * scores, axis=1)) + level * np.sum(_row_norms(W))
    return b, float(value), float(value - dual), slopes


def _softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
