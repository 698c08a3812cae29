"""Roles of axes: a line per kind of layer."""

import pytest

from tests.network import zoo

CASES = zoo.cases()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_roles_of_every_axis(case):
    net = zoo.seen(case)
    found = {path: net.roles(path) for path in net.paths}
    told = {path: roles for path, roles in found.items() if set(roles) - {"none"}}
    assert told == case.roles
