"""The four scripts for strangers run as they stand, and end as they say."""

import pytest

from examples.scripts import many_devices, plain_jax, with_linen, with_nnx


def test_nnx_halves_what_a_call_costs_and_cuts_it_without_loss():
    whole, compact, report = with_nnx.main()
    assert compact == whole > 0.85
    assert report.flops == pytest.approx(report.flops_before / 2, rel=0.06)


def test_linen_has_zeros_to_deploy_in_mid_run_and_one_point_at_the_end():
    (middle, end), report = with_linen.main()
    (_, zeros_of_w), (_, zeros_to_deploy) = middle
    assert zeros_of_w == 0 < zeros_to_deploy
    assert end[0] == end[1]
    assert end[0][0] > 0.8
    assert report.parameters < 0.75 * report.parameters_before


def test_plain_jax_ends_in_factors():
    (whole, compact), report = plain_jax.main()
    assert compact == whole > 0.85
    assert "of rank" in str(report)


def test_eight_devices_hold_an_eighth_each():
    accuracy, sparsity, share = many_devices.main()
    assert accuracy > 0.85
    assert sparsity > 0.1
    assert share < 0.14
