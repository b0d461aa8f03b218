"""One suite for every engine: `pytest --engine auto|cpu|interpreter|cuda`, one process per engine.

`auto`, the default, uses whatever driver Triton has active on this machine. TRITON_INTERPRET is read when a
kernel is decorated, so it is set here before any test module is imported.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

FIXED_EXAMPLES = 2
MANY_CASES = 6  # of one test, of which `--share` leaves some out


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=["auto", "cpu", "interpreter", "cuda"], default="auto")
    parser.addoption("--guard", action="store_true", help="run every kernel under tinynet.guard (interpreter only)")
    parser.addoption("--examples", type=int, help="random examples per property; without it a few fixed ones")
    parser.addoption("--share", type=int, default=1, metavar="N", help="one of N cases of each test that has many")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--engine") == "interpreter":
        os.environ["TRITON_INTERPRET"] = "1"
    elif config.getoption("--engine") in ("cpu", "cuda"):
        os.environ.pop("TRITON_INTERPRET", None)
    if config.getoption("--guard") and config.getoption("--engine") != "interpreter":
        raise pytest.UsageError("--guard needs --engine interpreter")
    set_examples(config.getoption("--examples"))
    config.addinivalue_line("markers", "kernels: needs an engine that runs the kernels")
    config.addinivalue_line("markers", "every_case: cases that are not alike, of which --share leaves none out")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out cases for `--share`: most of the time goes into compiling, and cases are alike."""
    share = int(config.getoption("--share") or 1)
    cases = Counter(item.nodeid.partition("[")[0] for item in items)
    seen: Counter[str] = Counter()
    selected, left_out = [], []
    for item in items:
        test = item.nodeid.partition("[")[0]
        has_turn = cases[test] <= MANY_CASES or seen[test] % share == 0 or item.get_closest_marker("every_case")
        seen[test] += 1
        (selected if has_turn else left_out).append(item)
    items[:] = selected
    config.hook.pytest_deselected(items=left_out)


def set_examples(number: int | None) -> None:
    """The number of examples that hypothesis draws per property. It reads its settings when a property is decorated."""
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "tinynet",
        max_examples=number or FIXED_EXAMPLES,
        derandomize=number is None,
        database=None,
        deadline=None,  # an example may compile kernels
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("tinynet")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device type the suite runs on."""
    import torch

    if request.config.getoption("--engine") == "cuda" or torch.cuda.is_available():
        return "cuda"
    return "cpu"


@pytest.fixture(scope="session")
def kernels_reason(device: str) -> str | None:
    """Why no kernel can run here, or None."""
    from tinynet.dispatch import unavailable_reason

    return unavailable_reason(device)


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked `kernels` run with engine "kernels", so that none passes on the reference by accident."""
    if request.node.get_closest_marker("kernels") is None:
        yield
        return
    reason = request.getfixturevalue("kernels_reason")
    if reason is not None:
        if request.config.getoption("--engine") != "auto":
            pytest.fail(f"--engine {request.config.getoption('--engine')}: {reason}")
        pytest.skip(f"no engine runs kernels here: {reason}")
    import tinynet

    with tinynet.engine("kernels"):
        if request.config.getoption("--guard"):
            with tinynet.guard(barriers=True):  # raises at its end if it found faults
                yield
        else:
            yield


@pytest.fixture
def pytorchs_settings() -> Iterator[None]:
    """Restores what training programs and the documentation's pages set, for the tests that follow in this process."""
    import torch

    torch.manual_seed(0)
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # pyright: ignore
    precisions = [backend.fp32_precision for backend in backends]
    benchmark = torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore
    # Importing torch.testing._internal, as other tests do, forbids setting them.
    with torch.backends.__allow_nonbracketed_mutation():  # pyright: ignore
        yield
        for backend, precision in zip(backends, precisions, strict=True):
            backend.fp32_precision = precision
        torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fills  # pyright: ignore


@pytest.fixture
def on_the_cpu_engine(device: str) -> None:
    """Skips tests of what only the CPU engine does."""
    from tinynet_kernels import launch

    if device != "cpu" or launch.INTERPRETED:
        pytest.skip("records on the CPU engine")


@pytest.fixture
def runs() -> Iterator[list[Any]]:
    """The recorded functions that were run, in order."""
    from tinynet.graphs.recorded import Recorded

    seen: list[Any] = []
    run = Recorded.run

    def counted(self: Any, operands: Any) -> Any:
        seen.append(self)
        return run(self, operands)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorded, "run", counted)
        yield seen
