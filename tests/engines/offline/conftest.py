"""The launch report compiles; in interpreter mode there is nothing to test."""

import pytest
from triton import knobs


@pytest.fixture(autouse=True)
def compiled() -> None:
    if knobs.runtime.interpret:
        pytest.skip("nothing is compiled in interpreter mode")
