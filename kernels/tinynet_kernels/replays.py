"""What a recorded step does again at each replay, beside its launches.

A step that is recorded (`tinynet.graphed`) runs no kernel: its launches are listed, and replayed later. Work of the
host that must not happen once, while recording, but in each replay goes through this file: an optimizer's step, random
numbers, counters.
"""

from __future__ import annotations

from collections.abc import Callable
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

    def upload(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Copies values to a tensor once, before the first replay."""
        ...

    def constant(self, tensor: torch.Tensor) -> None:
        """Lists a tensor whose values are the same in each replay, so that the host may read them."""
        ...


recorder: Recorder | None = None


def on_host(action: Callable[..., object], *operands: torch.Tensor | None) -> None:
    """Runs an action of the host on its operands now; while a step is recorded, in each replay instead."""
    if recorder is None:
        action(*operands)
    else:
        recorder.on_host(action, *operands)


def constant(tensor: torch.Tensor) -> None:
    """Says that the values of a tensor on the CPU are the same in each replay, so that the host may read them."""
    if recorder is not None:
        recorder.constant(tensor)


def placed(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values that the host has computed, on a device; in a recorded step they are copied there once."""
    if recorder is None or device.type == "cpu":
        return values.to(device)
    tensor = torch.empty_like(values, device=device)
    recorder.upload(tensor, values.clone())
    return tensor


def fill(tensor: torch.Tensor, fill: Callable[..., object], *operands: torch.Tensor | None) -> torch.Tensor:
    """The tensor, to which `fill(tensor, *operands)` writes by PyTorch's operators.

    It does so now; while a step is recorded, in each replay instead.
    """
    if recorder is None:
        fill(tensor, *operands)
    else:
        recorder.fill(tensor, fill, *operands)
    return tensor
