"""The memory of a launch's tensors: where it lies, whether arguments share it, and how large its pages are.

Memory that nobody has touched yet is cleared by Linux page by page, at its first use. In pages of 4 KB that takes four
times as long as a kernel needs to write it, and two threads that touch a page at the same time both clear it. The C
library takes such fresh memory for every tensor above 32 MB, so the kernel that writes it waits at each call. Most
distributions of Linux have pages of 2 MB for programs that ask for them, as the CPU engine does for large results.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

LARGE = 4 << 20  # bytes of a result that surely holds a whole page of 2 MB


def memory_span(tensor: Any) -> tuple[int, int]:
    """Address of a tensor's first byte and of the byte after its last."""
    start = tensor.data_ptr()
    if not isinstance(tensor, torch.Tensor):
        return start, start
    if tensor.is_contiguous():  # so is an empty one
        return start, start + tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=False))
    return start, start + (last + 1) * tensor.element_size()


def overlaps(written: Iterable[int], spans: Sequence[tuple[int, int] | None]) -> bool:
    """Whether a written argument shares memory with another one. ``spans``: None for an argument without memory."""
    for target in written:
        start, end = spans[target] or (0, 0)
        for position, other in enumerate(spans):
            if other is not None and position != target and start < other[1] and other[0] < end:
                return True
    return False


def prefer_huge_pages(written: Iterable[int], arguments: Sequence[Any]) -> None:
    """Asks for pages of 2 MB for the large tensors among the arguments at the positions ``written``.

    Pages that exist already stay as they are. Where Linux has no such pages, nothing changes.
    """
    advise = _advice()
    for position in written:
        tensor = arguments[position]
        if advise is None or not isinstance(tensor, torch.Tensor) or tensor.nbytes < LARGE:
            continue
        start, end = memory_span(tensor)
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(start, end // mmap.PAGESIZE * mmap.PAGESIZE - start, mmap.MADV_HUGEPAGE)


@functools.lru_cache(maxsize=1)
def _advice() -> Callable[[int, int, int], int] | None:
    """The C library's ``madvise``; None where it knows no huge pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
