"""Records launches of the CPU engine and runs them again, many of them in one call of C.

A recording is a list of launches and of Python functions in order. Launches between two functions lie one behind the
other in memory, as the blocks that the run-time library takes: the kernel's address, the grid and the arguments.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NamedTuple

import torch

from tinynet_kernels.launch import Grid, recorders

from . import driver
from .plan import CPUCallSite, planner

_ALIGNMENT = 64  # bytes, of each block


class Place:
    """A place in a recording for a function that may turn out to be needed.

    Attributes:
        function: to be called there; None for nothing.
    """

    function: Callable[[], object] | None = None


class Pointer(NamedTuple):
    """A tensor that a launch is given.

    Attributes:
        position: of its address among the bytes of the launch's block.
        address: where its elements begin.
        memory: the address of the memory that it is a part of.
    """

    position: int
    address: int
    memory: int


class RecordedLaunch(NamedTuple):
    """A launch that did not run.

    Attributes:
        block: what the run-time library takes: the kernel's address, the grid and the arguments.
        pointers: the tensors among the arguments.
    """

    block: bytes
    pointers: list[Pointer]


class LaunchRecorder:
    """Records a thread's launches instead of running them.

    Args:
        watch: called with the tensors of each launch and those of them that it writes.
    """

    def __init__(self, watch: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], None]) -> None:
        self.watch = watch
        self.items: list[RecordedLaunch | Place] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        """Records this thread's launches."""
        recorders[get_ident()] = self
        try:
            yield
        finally:
            del recorders[get_ident()]

    def launch(self, kernel: Any, grid: Grid, arguments: tuple[Any, ...], constants: Mapping[str, Any]) -> bool:
        """Records a launch.

        Raises:
            RuntimeError: no plan can run it, as a kernel of the autotuner.
        """
        site = planner.site(kernel, grid, tuple(map(type, arguments)), 0, constants)
        plan = site.create(grid, arguments) if isinstance(site, CPUCallSite) else None
        if plan is None:
            raise RuntimeError(f"{kernel.__name__}: only Triton's own launcher can run this launch")
        passed = [arguments[position] for position in plan.passed]
        first = driver.HEAD.size
        pointers = [
            Pointer(first + driver.SLOT * slot, each.data_ptr(), each.untyped_storage().data_ptr())
            for slot, each in enumerate(passed)
            if isinstance(each, torch.Tensor)
        ]
        self.items.append(RecordedLaunch(plan.block(passed), pointers))
        tensors = [each for each in passed if isinstance(each, torch.Tensor)]
        # A kernel that loads addresses is thought to write to all of its arguments.
        written = () if plan.kernel.data_dependent else plan.written
        self.watch(tensors, [passed[position] for position in written])
        return True

    def place(self) -> Place:
        """Keeps a place."""
        place = Place()
        self.items.append(place)
        return place

    def recording(self) -> Recording:
        """What has been recorded so far."""
        items = [item.function if isinstance(item, Place) else item for item in self.items]
        return Recording([item for item in items if item is not None])


class Recording:
    """Launches and functions, to be run again and again. The memory that the launches use must be kept alive.

    Args:
        items: launches and functions.
    """

    def __init__(self, items: Sequence[RecordedLaunch | Callable[[], object]]) -> None:
        self.steps: list[_Launches | Callable[[], object]] = []
        blocks: list[bytes] = []
        for item in items:
            if isinstance(item, RecordedLaunch):
                blocks.append(item.block)
                continue
            self._end(blocks)
            self.steps.append(item)
        self._end(blocks)

    def _end(self, blocks: list[bytes]) -> None:
        if blocks:
            self.steps.append(_Launches(blocks))
            blocks.clear()

    def replay(self) -> None:
        """Runs everything, on as many threads as PyTorch uses now.

        Raises:
            RuntimeError: a device assertion failed, or memory for the tiles could not be allocated.
        """
        for step in self.steps:
            step()


class _Launches:
    """Launches that one call of C runs."""

    def __init__(self, blocks: Sequence[bytes]) -> None:
        starts, end = [], 0
        for block in blocks:
            starts.append(end)
            end += -(-len(block) // _ALIGNMENT) * _ALIGNMENT
        self._memory = ctypes.create_string_buffer(end + _ALIGNMENT)
        base = -(-ctypes.addressof(self._memory) // _ALIGNMENT) * _ALIGNMENT
        for start, block in zip(starts, blocks, strict=True):
            ctypes.memmove(base + start, block, len(block))
        self._blocks = (ctypes.c_void_p * len(starts))(*(base + start for start in starts))

    def __call__(self) -> None:
        runtime = driver.runtime()
        failure = runtime.replay(self._blocks, len(self._blocks), runtime.parallel, torch.get_num_threads())
        if failure is not None:
            raise RuntimeError(failure.decode())
