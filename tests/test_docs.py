"""The code of docs/devices.md runs as it stands, and its three ways give the same parameters."""

import pathlib
import re

import jax
import numpy as np

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "devices.md").read_text()


def test_the_code_of_the_devices_page_runs_and_all_ways_agree():
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)), names)
    for other in ("by_shard_map", "by_pmap"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), names["by_jit"], names[other]
        )
