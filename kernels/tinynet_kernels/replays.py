"""What a recorded step does again at each replay, beside its launches.

A step that is recorded (`tinynet.graphed`) runs no kernel: its launches are listed, and replayed later. Work of the
host that must not happen once, while recording, but in each replay goes through this file: an optimizer's step, random
numbers, counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import string_at
from threading import get_ident
from typing import Protocol

import torch


class Recorder(Protocol):
    """What records a step."""

    def on_host(self, action: Callable[..., object], *operands: torch.Tensor | None) -> None:
        """Lists an action of the host at this place among the launches."""
        ...

    def fill(self, tensor: torch.Tensor, fill: Callable[..., object], *operands: torch.Tensor | None) -> None:
        """Lists that PyTorch's operators write to a tensor at this place."""
        ...

    def unless_zero(self, numbers: torch.Tensor, again: Callable[..., object], *operands: torch.Tensor | None) -> None:
        """Lists that `again(*operands)` is called at this place if not all numbers are zero."""
        ...

    def upload(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Copies values to a tensor once, before the first replay."""
        ...

    def constant(self, tensor: torch.Tensor) -> None:
        """Lists a tensor whose values are the same in each replay, so that the host may read them."""
        ...


_EVERY_THREAD = 0
_recorders: dict[int, Recorder] = {}  # by thread


def recorder() -> Recorder | None:
    """What records a step on this thread; None where a call is an ordinary one."""
    return (_recorders.get(get_ident()) or _recorders.get(_EVERY_THREAD)) if _recorders else None


@contextmanager
def recording(by: Recorder, *, every_thread: bool = False) -> Iterator[None]:
    """Records the calls of this thread, or of every thread: autograd runs the backward of a GPU on its own threads."""
    thread = _EVERY_THREAD if every_thread else get_ident()
    _recorders[thread] = by
    try:
        yield
    finally:
        del _recorders[thread]


def on_host(action: Callable[..., object], *operands: torch.Tensor | None) -> None:
    """Runs an action of the host on its operands now; while a step is recorded, in each replay instead."""
    by = recorder()
    if by is None:
        action(*operands)
    else:
        by.on_host(action, *operands)


def constant(tensor: torch.Tensor) -> None:
    """Says that the values of a tensor on the CPU are the same in each replay, so that the host may read them."""
    by = recorder()
    if by is not None:
        by.constant(tensor)


def placed(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values that the host has computed, on a device; in a recorded step they are copied there once."""
    by = recorder()
    if by is None or device.type == "cpu":
        return values.to(device)
    tensor = torch.empty_like(values, device=device)
    by.upload(tensor, values.clone())
    return tensor


def fill(tensor: torch.Tensor, fill: Callable[..., object], *operands: torch.Tensor | None) -> torch.Tensor:
    """The tensor, to which `fill(tensor, *operands)` writes by PyTorch's operators.

    It does so now; while a step is recorded, in each replay instead.
    """
    by = recorder()
    if by is None:
        fill(tensor, *operands)
    else:
        by.fill(tensor, fill, *operands)
    return tensor


def any_nonzero(numbers: torch.Tensor) -> bool:
    """Whether a contiguous tensor on the CPU holds a number that is not zero, found in a third of PyTorch's time."""
    size = numbers.nbytes
    return string_at(numbers.data_ptr(), size) != bytes(size) and bool(numbers.any())  # -0.0 has other bytes


def call_unless_zero(again: Callable[..., object], numbers: torch.Tensor, *operands: torch.Tensor | None) -> None:
    """Calls `again(*operands)` if one of the numbers is not zero."""
    if any_nonzero(numbers):
        again(*operands)
