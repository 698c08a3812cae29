"""The README's code runs as it stands, and what it links to exists."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readmes_code_runs():
    assert len(BLOCKS) == 4
    exec(compile("".join(BLOCKS), "README.md", "exec"), {})


def test_the_readmes_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    missing = [t for t in targets if "://" not in t and not (ROOT / t).exists()]
    assert not missing
