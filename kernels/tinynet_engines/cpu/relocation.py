"""Launches that are recorded once and run on other memory each time.

A program is a list of launches in order, in which every tensor is given as a memory's number and an offset. One call
of C puts the addresses in and runs the launches up to the next call of a Python function. There are few of these:
PyTorch's copies, and what is computed again where a kernel has left numbers that are not zero.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import driver
from .recording import RecordedLaunch

# What code that torch.compile generates calls: `torch.empty_strided(shape, stride, dtype=dtype)` on the CPU, and a
# tensor in the memory of another, so many elements behind its beginning, in half the time of `as_strided`.
empty_strided: Callable[..., Tensor] = torch._C._dynamo.guards._empty_strided_cpu  # pyright: ignore
view_at: Callable[..., Tensor] = torch._C._dynamo.guards._reinterpret_tensor  # pyright: ignore

_ALIGNMENT = 64  # bytes, of each block
_STEP, _RELOCATION = struct.Struct("=4q"), struct.Struct("=3q")  # as in runtime.c


class Location(NamedTuple):
    """Where something lies.

    Attributes:
        base: the number of the memory.
        offset: in bytes.
    """

    base: int
    offset: int


class LocatedTensor(NamedTuple):
    """A tensor in one of a program's memories."""

    location: Location
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def size(self) -> int:
        """Its bytes, if it has no gaps."""
        return math.prod(self.shape) * self.dtype.itemsize

    def of(self, memories: Sequence[Tensor | None]) -> Tensor:
        """The tensor, given one that begins where each memory does."""
        memory = memories[self.location.base]
        assert memory is not None
        offset = self.location.offset // self.dtype.itemsize
        if memory.dtype is self.dtype:
            return view_at(memory, self.shape, self.stride, offset)
        storage = memory.untyped_storage()
        start = (memory.data_ptr() - storage.data_ptr()) // self.dtype.itemsize
        empty = torch.empty(0, dtype=self.dtype, device="cpu")
        return empty.set_(storage, start + offset, self.shape, self.stride)  # pyright: ignore


class LocatedLaunch(NamedTuple):
    """A launch, and where the tensors that it is given lie, in the order of its pointers.

    A tensor without a location is the same one in each run.
    """

    launch: RecordedLaunch
    locations: Sequence[Location | None]


class Call(NamedTuple):
    """A call of a Python function between launches.

    Attributes:
        function: what is called.
        operands: what it takes. A tensor without a location is the same one in each run.
        unless_zero: numbers in contiguous memory; where they are all zero there is no call. None: there always is.
    """

    function: Callable[..., object]
    operands: Sequence[Any]
    unless_zero: LocatedTensor | None = None

    def located(self) -> list[LocatedTensor]:
        """The tensors whose memory is another one in each run."""
        return [each for each in (self.unless_zero, *self.operands) if isinstance(each, LocatedTensor)]

    def run(self, memories: Sequence[Tensor | None]) -> None:
        """Calls the function if C has found a byte among the numbers that is not zero, as -0.0 has one."""
        if self.unless_zero is None or self.unless_zero.of(memories).any():
            self.function(*[each.of(memories) if isinstance(each, LocatedTensor) else each for each in self.operands])


class Program:
    """Launches and calls in order, to be run on other memory each time; by several threads at once, if need be.

    Attributes:
        bases: the numbers of the memories that it uses.
    """

    def __init__(self, steps: Sequence[LocatedLaunch | Call]) -> None:
        blocks, described, relocations = b"", b"", b""
        count = 0
        self.bases: set[int] = set()
        for step in steps:
            if isinstance(step, Call):
                self.bases.update(each.location.base for each in step.located())
                numbers = step.unless_zero
                span = (0, 0, -1) if numbers is None else (*numbers.location, numbers.size())
                described += _STEP.pack(-1, *span)
                continue
            described += _STEP.pack(len(blocks), 0, 0, 0)
            for pointer, location in zip(step.launch.pointers, step.locations, strict=True):
                if location is not None:
                    relocations += _RELOCATION.pack(len(blocks) + pointer.position, *location)
                    count += 1
                    self.bases.add(location.base)
            blocks += step.launch.block + bytes(-len(step.launch.block) % _ALIGNMENT)
        self._calls = {n: step for n, step in enumerate(steps) if isinstance(step, Call)}
        self._count = len(steps)
        self._parts = [ctypes.create_string_buffer(part) for part in (blocks, described, relocations)]
        addresses = [ctypes.addressof(part) for part in self._parts]
        sizes = len(blocks), len(steps), count
        pairs = [number for pair in zip(addresses, sizes, strict=True) for number in pair]
        self._program = ctypes.create_string_buffer(struct.pack("=6q", *pairs))
        self._address = ctypes.addressof(self._program)

    def run(self, memories: Sequence[Tensor | None]) -> None:
        """Runs everything, on as many threads as PyTorch uses now.

        Args:
            memories: for each number a tensor that begins where the memory does; None where nothing lies in it.

        Raises:
            RuntimeError: a device assertion failed, or memory for the tiles could not be allocated.
        """
        bases = struct.pack(f"={len(memories)}q", *[0 if m is None else m.data_ptr() for m in memories])
        runtime, threads, step = driver.runtime(), torch.get_num_threads(), ctypes.c_int64()
        while True:
            failure = runtime.run(self._address, bases, ctypes.byref(step), runtime.parallel, threads)
            if failure is not None:
                raise RuntimeError(failure.decode())
            if step.value == self._count:
                return
            self._calls[step.value].run(memories)
            step.value += 1
