"""These tests run compiled kernels on the CPU engine: they need a compiler and a process without another driver."""

from __future__ import annotations

import os

import pytest

from tinynet_engines import cpu


@pytest.fixture(scope="session", autouse=True)
def cpu_engine() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter runs in this process")
    reason = cpu.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    try:
        cpu.activate()
    except RuntimeError as error:
        pytest.skip(str(error))
