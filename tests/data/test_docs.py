"""The examples of docs/data.md run as they are printed."""

import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the tests")
def test_examples_of_the_page_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["images"].shape == (64, 16, 16, 3)
    assert names["alphas"].steps_per_epoch == 3
    assert names["loader"].batch(0)["image"].shape == (64, 16, 16, 3)
