"""Fixtures of the tests of the examples."""

import pytest

from tests.examples.idx_files import write_digits


@pytest.fixture
def idx_dir(tmp_path):
    """Four small files in the format of full MNIST."""
    folder = tmp_path / "idx"
    folder.mkdir()
    write_digits(folder)
    return folder
