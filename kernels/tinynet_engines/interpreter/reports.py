"""Results of the guard: reports of faults, and the traffic of each launch."""

from __future__ import annotations

import dataclasses
import linecache
import os
import sys
from types import CodeType

KINDS = {
    "out-of-bounds": "an access outside the tensor that its pointer derives from",
    "misaligned": "an address that is not a multiple of the element's size",
    "poison": "a result that depends on lanes masked off in a load without `other`",
    "write-write": "two programs write to one address",
    "read-write": "a program reads what another program writes",
    "no-barrier": "a program overwrites what it loads, or reads back what it stores, with no tl.debug_barrier between",
    "duplicate-store": "one store writes different values to one address",
    "overflow": "integer arithmetic that leaves its type",
    "assertion": "a tl.device_assert that fails",
}


class GuardError(AssertionError):
    """Raised at the end of a strict guard that found faults, which are in `reports`."""

    def __init__(self, reports: list[Report]) -> None:
        super().__init__("\n".join([f"{len(reports)} fault(s) under the guard:", *map(str, reports)]))
        self.reports = reports


@dataclasses.dataclass
class Report:
    """One fault at one line of a kernel; further programs with the same fault are only counted.

    Attributes:
        kind: a key of `KINDS`.
        kernel: the kernel's name.
        program: indices (x, y, z) of the first program with the fault; None if it belongs to the whole launch.
        message: what happened, with names and numbers.
        location: "path:line" in the kernel or device function, or "" if unknown.
        occurrences: how often it occurred in this launch.
    """

    kind: str
    kernel: str
    program: tuple[int, ...] | None
    message: str
    location: str = ""
    occurrences: int = 1

    @property
    def source(self) -> str:
        """The line of source at `location`, stripped."""
        path, _, line = self.location.rpartition(":")
        return linecache.getline(path, int(line)).strip() if path else ""

    def __str__(self) -> str:
        where = f"program {self.program} of {self.kernel}" if self.program else f"a launch of {self.kernel}"
        times = f", {self.occurrences} times" if self.occurrences > 1 else ""
        place = f"\n    {self.location}: {self.source}" if self.location else ""
        return f"{self.kind} in {where}{times}: {self.message}{place}"


@dataclasses.dataclass
class ArgumentTraffic:
    """The traffic of one launch from and to one tensor.

    Attributes:
        elements: the tensor's number of elements.
        bytes_loaded, bytes_stored: by all programs together; an atomic counts as both.
        elements_read, elements_written: distinct elements; 0 if the guard doesn't check races.
    """

    elements: int
    bytes_loaded: int
    bytes_stored: int
    elements_read: int
    elements_written: int


@dataclasses.dataclass
class Launch:
    """One launch of a kernel: its traffic by tensor, and the arithmetic of its `tl.dot`s.

    Attributes:
        kernel: the kernel's name.
        grid: programs in x, y and z.
        arguments: traffic by parameter name, or by "allowed[i]" for tensors given to `allow`.
        dot_flops: 2 M N K of each `tl.dot`, including masked parts of tiles.
    """

    kernel: str
    grid: tuple[int, int, int] = (0, 0, 0)
    arguments: dict[str, ArgumentTraffic] = dataclasses.field(default_factory=dict)
    dot_flops: int = 0

    @property
    def bytes_loaded(self) -> int:
        """Bytes loaded by the active lanes of all programs."""
        return sum(argument.bytes_loaded for argument in self.arguments.values())

    @property
    def bytes_stored(self) -> int:
        """Bytes stored by the active lanes of all programs."""
        return sum(argument.bytes_stored for argument in self.arguments.values())


def kernel_location(package_folders: tuple[str, ...]) -> str:
    """ "path:line" of the innermost running frame that is in none of these folders: a line of the kernel."""
    frame = sys._getframe(1)
    while frame is not None:
        code: CodeType = frame.f_code
        if not os.path.abspath(code.co_filename).startswith(package_folders):
            return f"{code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
