"""The memory that a guarded launch may touch, and a record of who touched it.

A pointer argument gets a tag in bits 48 - 62 of its address, which user addresses don't use; pointer arithmetic
preserves it. So every access is checked against the very argument that it derives from, even if another tensor is
adjacent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

TAG_SHIFT = np.uint64(48)
ADDRESS_MASK = np.uint64((1 << 48) - 1)

SEVERAL = -1  # in a shadow: more than one program


def tensors_of(argument: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors inside one kernel argument with their names: a tensor, a tuple, a descriptor or a wrapper."""
    if isinstance(argument, torch.Tensor):
        yield name, argument
    elif isinstance(argument, tuple):
        for position, element in enumerate(argument):
            yield from tensors_of(element, f"{name}[{position}]")
    elif isinstance(getattr(argument, "base", None), torch.Tensor):  # TensorDescriptor, TensorWrapper
        yield name, argument.base


@dataclasses.dataclass
class Region:
    """One tensor that a kernel may touch, and the traffic from and to it.

    Attributes:
        name: the kernel's parameter, or the place in the list of tensors given to `allow`.
        lower, upper: address of the first byte, and of the byte after the last.
        storage: address of the tensor's storage; regions that share it share their shadow.
        layout: (stride in bytes, size) of each dimension, outermost first, if the tensor has gaps, else empty.
        bytes_loaded, bytes_stored: traffic of active lanes; an atomic counts as both.
    """

    name: str
    tensor: torch.Tensor
    lower: int
    upper: int
    element_size: int
    storage: int
    layout: tuple[tuple[int, int], ...] = ()
    bytes_loaded: int = 0
    bytes_stored: int = 0

    @classmethod
    def of(cls, tensor: torch.Tensor, name: str, extent: str) -> Region:
        """The region of a tensor: the elements of the view itself, or its whole storage."""
        storage, element_size = tensor.untyped_storage(), tensor.element_size()
        name = f"{name}{list(tensor.shape)}"
        if extent == "storage":
            lower = storage.data_ptr()
            return cls(name, tensor, lower, lower + storage.nbytes(), element_size, lower)
        lower, span = tensor.data_ptr(), 0
        if tensor.numel():
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            span = (sum((size - 1) * stride for size, stride in steps) + 1) * element_size
        layout = _gapped_layout(tensor)
        return cls(name, tensor, lower, lower + span, element_size, storage.data_ptr(), layout)

    def outside(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Which accesses of `size` bytes are outside the tensor, or in a gap between its elements."""
        wrong = (addresses < self.lower) | (addresses + size > self.upper)
        if self.layout and size == self.element_size:
            rest = np.where(wrong, 0, addresses - self.lower)
            for stride, length in self.layout:
                position = np.minimum(rest // stride, length - 1)
                rest = rest - position * stride
            wrong |= rest != 0
        return wrong

    def describe(self, addresses: np.ndarray) -> str:
        """The positions of addresses, counted in elements from the tensor's first."""
        offsets = (addresses - self.lower) // self.element_size
        return f"element offsets {int(offsets.min())}..{int(offsets.max())} of {self.name}"


def _gapped_layout(tensor: torch.Tensor) -> tuple[tuple[int, int], ...]:
    """Strides and sizes, outermost first; empty if there are no gaps, or if dimensions interleave."""
    element_size = tensor.element_size()
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    dimensions = sorted((stride * element_size, size) for stride, size in steps if size > 1 and stride > 0)
    span = element_size
    elements = 1
    for stride, size in dimensions:
        if stride < span:
            return ()
        span += stride * (size - 1)
        elements *= size
    return () if span == elements * element_size else tuple(reversed(dimensions))


@dataclasses.dataclass(frozen=True)
class Conflict:
    """Elements that two programs, or two warps of one, touch so that the result depends on their order."""

    kind: str
    elements: int
    other_program: int  # linear index, or SEVERAL


class _Page:
    """The readers and writers of a run of elements: 0 none, p + 1 program p, SEVERAL more than one.

    `read_phase` and `write_phase` hold when an element was last touched: a phase ends with a barrier or a program.
    """

    LENGTH = 1 << 16

    def __init__(self) -> None:
        self.reader = np.zeros(self.LENGTH, np.int32)
        self.writer = np.zeros(self.LENGTH, np.int32)
        self.atomic = np.zeros(self.LENGTH, bool)
        self.read_phase = np.zeros(self.LENGTH, np.int32)
        self.write_phase = np.zeros(self.LENGTH, np.int32)


class Shadow:
    """Who read and who wrote each element of one storage during one launch. Stored in pages, allocated on demand."""

    def __init__(self, base: int, granularity: int) -> None:
        self.base = base
        self.granularity = granularity
        self.pages: dict[int, _Page] = {}

    def record(self, addresses: np.ndarray, size: int, program: int, phase: int, action: str) -> list[Conflict]:
        """Records an access and returns its conflicts with earlier ones.

        Args:
            addresses: int64 [n], of accesses of `size` bytes each.
            program: linear index of the program.
            phase: number of barriers and programs so far, from 1.
            action: "load", "store" or "atomic".
        """
        elements = (addresses - self.base) // self.granularity
        if size > self.granularity:
            elements = (elements[:, None] + np.arange(size // self.granularity)).ravel()
        numbers = elements // _Page.LENGTH
        conflicts = []
        for number in np.unique(numbers):
            page = self.pages.setdefault(int(number), _Page())
            inside = elements[numbers == number] - number * _Page.LENGTH
            conflicts += self._record_in_page(page, inside, program + 1, phase, action)
        return conflicts

    def _record_in_page(self, page: _Page, element: np.ndarray, me: int, phase: int, action: str) -> list[Conflict]:
        conflicts = []
        reader, writer = page.reader[element], page.writer[element]
        foreign_writer = (writer != 0) & (writer != me)
        if action == "atomic":
            foreign_writer &= ~page.atomic[element]
        if foreign_writer.any():
            kind = "read-write" if action == "load" else "write-write"
            conflicts.append(self._conflict(kind, writer[foreign_writer]))
        earlier = page.write_phase[element] if action == "load" else page.read_phase[element]
        if (earlier == phase).any():
            conflicts.append(Conflict("no-barrier", int(np.count_nonzero(earlier == phase)), me - 1))
        if action == "load":
            page.read_phase[element] = phase
            page.reader[element] = np.where((reader == 0) | (reader == me), me, SEVERAL)
            return conflicts
        foreign_reader = (reader != 0) & (reader != me)
        if foreign_reader.any():
            conflicts.append(self._conflict("read-write", reader[foreign_reader]))
        page.writer[element] = np.where((writer == 0) | (writer == me), me, SEVERAL)
        page.atomic[element] = action == "atomic"
        page.write_phase[element] = phase
        return conflicts

    @staticmethod
    def _conflict(kind: str, others: np.ndarray) -> Conflict:
        other = int(others[0])
        return Conflict(kind, others.size, other if other == SEVERAL else other - 1)

    def elements_touched(self, region: Region) -> tuple[int, int]:
        """The number of distinct elements of a region that were read, and that were written."""
        first = (region.lower - self.base) // self.granularity
        last = (region.upper - self.base) // self.granularity
        read = written = 0
        for number, page in self.pages.items():
            start = number * _Page.LENGTH
            inside = slice(max(first - start, 0), max(last - start, 0))
            read += int(np.count_nonzero(page.reader[inside]))
            written += int(np.count_nonzero(page.writer[inside]))
        scale = region.element_size // self.granularity
        return read // scale, written // scale
