"""The nuclear norm: thresholding through the Gram matrix, and what counts as zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ramda_jax as rj
from tests import reference

STRENGTH = 0.3
LIMITS = {"float32": 1e-5, "float64": 1e-13}

threshold = jax.jit(lambda psi, x, level: psi.prox_and_value(x, level))


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("level", [0.0, 1e-9, 1e-4, 0.1, 3.0, 1e3])
@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (9, 9), (3, 2, 5, 4), (1, 1), (7, 1)])
def test_thresholding_and_its_value(shape, level, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape), dtype)
    z, psi = threshold(rj.NuclearNorm(STRENGTH), x, level)
    reg = reference.NuclearNorm(STRENGTH)
    expected = reg.prox(np.asarray(x), level)
    size = np.abs(np.asarray(x)).max() * np.sqrt(x.size)
    assert z.dtype == x.dtype
    np.testing.assert_allclose(z, expected, atol=LIMITS[dtype] * size)
    np.testing.assert_allclose(psi, reg.value(expected), atol=LIMITS[dtype] * size * min(shape))


@pytest.mark.parametrize("dtype", LIMITS)
def test_thresholding_whatever_the_number_of_singular_values_above_the_level(dtype):
    x = np.random.default_rng(2).standard_normal((40, 24))
    s = np.linalg.svd(x, compute_uv=False)
    reg = reference.NuclearNorm(1.0)
    for kept, level in enumerate([s[0] + 1, *(s[:-1] + s[1:]) / 2, s[-1] / 2]):
        z, psi = threshold(rj.NuclearNorm(1.0), jnp.asarray(x, dtype), level)
        expected = reg.prox(x, level)
        assert np.linalg.matrix_rank(expected) == kept
        np.testing.assert_allclose(z, expected, atol=10 * LIMITS[dtype])
        np.testing.assert_allclose(psi, reg.value(expected), atol=100 * LIMITS[dtype])


def test_small_singular_values_beside_a_large_one_are_not_lost_in_its_square():
    """In float32 the Gram matrix knows nothing of what is below 3e-4 of the largest."""
    rng = np.random.default_rng(3)
    u, v = (np.linalg.qr(rng.standard_normal((6, 6)))[0] for _ in range(2))
    s = np.array([1.0, 3e-4, 2e-4, 1e-4, 5e-5, 2e-5])
    x = jnp.asarray((u * s) @ v, jnp.float32)
    z, _ = threshold(rj.NuclearNorm(1.0), x, 8e-5)
    expected = reference.NuclearNorm(1.0).prox(np.asarray(x, np.float64), 8e-5)
    # The singular values that are left, but for the largest, are of the size of 1e-4.
    np.testing.assert_allclose(z, expected, atol=2e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_thresholding_squares_neither_under_nor_over(scale):
    x = np.random.default_rng(1).standard_normal((8, 5))
    found = rj.NuclearNorm(1.0).prox(jnp.asarray(scale * x, jnp.float32), np.float32(scale))
    expected = reference.NuclearNorm(1.0).prox(x, 1.0)
    np.testing.assert_allclose(np.asarray(found, np.float64) / scale, expected, atol=1e-5)


def test_rank_survives_the_rounding_of_a_stored_low_rank_matrix():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((40, 3)) @ rng.standard_normal((3, 30)))
    for dtype in (jnp.float64, jnp.float32, jnp.bfloat16):
        assert int(rj.NuclearNorm(0.1).rank(x.astype(dtype))) == 3


def test_a_convolution_is_a_matrix_of_its_flattened_leading_axes():
    x = np.random.default_rng(11).standard_normal((3, 3, 4, 5))
    psi = rj.NuclearNorm(2.0)
    expected = np.linalg.svd(x.reshape(36, 5), compute_uv=False)
    np.testing.assert_allclose(psi.group_norms(jnp.asarray(x)), expected)
    np.testing.assert_allclose(
        psi.prox(jnp.asarray(x), 1.0).reshape(36, 5),
        psi.prox(jnp.asarray(x.reshape(36, 5)), 1.0),
    )


@pytest.mark.parametrize(
    ("rows", "stack", "shape"),
    [
        (0, (), (6, 2, 3)),
        ((0, 1), (), (2, 3, 6)),
        (-2, 0, (3, 5, 4)),
        ((1, 3), (0, 2), (2, 3, 2, 4, 5)),
        (None, 0, (3, 2, 2, 5)),
    ],
)
def test_rows_and_stacks_are_those_that_are_named(rows, stack, shape):
    """Against NumPy's SVD of every matrix; a zero one, and one that needs the careful decomposition, among them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    reg = rj.NuclearNorm(0.7, row_axes=rows, stack_axes=stack)
    tuple_of = lambda axes: tuple(a % x.ndim for a in ((axes,) if isinstance(axes, int) else axes))
    stacked = tuple_of(stack)
    rest = [a for a in range(x.ndim) if a not in stacked]
    rowed = rest[:-1] if rows is None else tuple_of(rows)
    order = [*stacked, *rowed, *(a for a in rest if a not in rowed)]
    count = int(np.prod([x.shape[a] for a in stacked], initial=1))
    height = int(np.prod([x.shape[a] for a in rowed]))
    matrices = np.transpose(x, order).reshape(count, height, -1)
    if count > 1:
        matrices[0] = 0
        matrices[-1] *= 1e4
        back = matrices.reshape([x.shape[a] for a in order])
        x = np.transpose(back, [order.index(a) for a in range(x.ndim)])
    u, s, vt = np.linalg.svd(matrices, full_matrices=False)
    shrunk = (u * np.maximum(s - 0.5 * 0.7, 0)[:, None, :]) @ vt
    expected = np.transpose(
        shrunk.reshape([x.shape[a] for a in order]), [order.index(a) for a in range(x.ndim)]
    )
    with jax.enable_x64(True):
        found, value = jax.jit(reg.prox_and_value)(jnp.asarray(x), 0.5)
        np.testing.assert_allclose(found, expected, atol=1e-8 * max(1, np.abs(x).max()))
        np.testing.assert_allclose(value, 0.7 * np.maximum(s - 0.35, 0).sum(), rtol=1e-9)
        np.testing.assert_allclose(reg.value(jnp.asarray(x)), 0.7 * s.sum(), rtol=1e-9)
        assert reg.num_groups(shape) == s.size
        np.testing.assert_allclose(
            np.sort(np.ravel(reg.group_norms(jnp.asarray(x)))),
            np.sort(s.ravel()),
            rtol=1e-6,
            atol=1e-9,
        )
        np.testing.assert_allclose(
            np.ravel(reg.scores(jnp.asarray(x), 1.0, 2.0)), s.max(1) / 2, rtol=1e-9
        )


@pytest.mark.parametrize(
    ("reg", "shape"),
    [
        (rj.NuclearNorm(1.0, row_axes=(0, 0)), (3, 2)),
        (rj.NuclearNorm(1.0, row_axes=0, stack_axes=0), (3, 2)),
        (rj.NuclearNorm(1.0, row_axes=2), (3, 2)),
        (rj.NuclearNorm(1.0, row_axes=(0, 1)), (3, 2)),
        (rj.NuclearNorm(1.0, stack_axes=0), (3, 2)),
    ],
)
def test_axes_that_make_no_matrix_are_refused(reg, shape):
    with pytest.raises(ValueError, match="cannot apply to 'w'"):
        reg.check("w", shape)
    with pytest.raises(ValueError, match=r"NuclearNorm\.row_axes must be"):
        rj.NuclearNorm(1.0, row_axes=0.5)
