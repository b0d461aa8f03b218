"""The inspection as a context: activates the compile-only driver and afterwards restores everything."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from tinynet_engines.offline.report import Report

# Triton's active driver belongs to the whole process, and so does this count of open inspections.
_open_inspections = 0


def is_inspecting() -> bool:
    """Whether this process is currently recording launches instead of running them."""
    return _open_inspections > 0


@contextmanager
def inspect(target: str) -> Iterator[Report]:
    """Compile and record every Triton launch inside the block for `target`, instead of running it.

    Tensors may be on the CPU, on `meta` or fake: no GPU is touched and no kernel runs. Output tensors hold whatever was
    in their memory, and code that uses results (`loss.item()`, a branch on a value) sees that. Triton's active driver
    is replaced for the whole process, all its threads, until the block ends, and then restored. Inspections
    may be nested; the innermost records.

    A kernel that doesn't compile raises its error here, as it would on the chip. A launch that the chip would refuse
    (too much shared memory, too large a grid) is recorded with an error, and the program continues.

    Args:
        target: `sm_80`, `sm_86`, `sm_89`, `sm_90`, `sm_100`, `sm_120`, `gfx90a`, `gfx942` or `gfx950`.

    Yields:
        The report, which grows with every launch; read it inside the block or after it.

    Raises:
        ValueError: an unknown target.
        RuntimeError: Triton runs in interpreter mode, in which nothing is compiled.
    """
    global _open_inspections
    import triton
    from triton import knobs

    from tinynet_engines.offline.driver import InspectDriver, shared_memory_limit_lifted, tuning_forgotten
    from tinynet_engines.offline.report import Report
    from tinynet_engines.offline.targets import find_target

    report = Report(find_target(target))
    if knobs.runtime.interpret:
        raise RuntimeError("inspect: TRITON_INTERPRET=1 is set, so kernels are interpreted, never compiled; unset it")
    configuration = triton.runtime.driver
    previous = configuration._active  # not `.active`, which would look for a GPU and raise if there is none
    with ExitStack() as stack:
        stack.enter_context(shared_memory_limit_lifted())
        stack.enter_context(tuning_forgotten())
        stack.enter_context(_launch_plans_off())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        configuration.set_active(InspectDriver(report))
        _open_inspections += 1
        try:
            yield report
        finally:
            _open_inspections -= 1
            configuration._active = previous


def _launch_plans_off() -> mock._patch:
    """Disables our launch plans, which bypass Triton's launcher on another engine: here that launcher must run."""
    from tinynet_kernels import launch

    return mock.patch.object(launch, "planner", None)
