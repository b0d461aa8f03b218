"""One optimizer step over the parameters of the example CNN; PyTorch with fused=True where it has that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tinynet import optim
from tinynet.models import build

from .case import OURS, Case, Setting

TITLE = "optimizer"


def cases(setting: Setting) -> Iterator[Case]:
    shapes = [parameter.shape for parameter in build("cnn").parameters()]
    matrices = [torch.Size([256, 784]), torch.Size([128, 256])]
    # operations: of each parameter; passes: how often memory of the parameters' size is read or written
    for name, ours, eager, arguments, own, operations, passes in (
        ("AdamW", optim.AdamW, torch.optim.AdamW, {"lr": 1e-3}, shapes, 10, 7),
        ("SGD momentum", optim.SGD, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}, shapes, 4, 5),
        ("LAMB", optim.LAMB, None, {"lr": 1e-3}, shapes, 10, 7),  # PyTorch has none
        ("Muon", optim.Muon, getattr(torch.optim, "Muon", None), {"lr": 1e-3}, matrices, 4, 5),
    ):
        elements = sum(shape.numel() for shape in own)
        contenders = {OURS: _step(setting, own, ours, arguments)}
        work = operations * elements
        if name == "Muon":
            work += sum(map(_orthogonalization, own))
        else:
            arguments = {**arguments, "fused": True}
        if eager is not None:
            contenders[f"eager{' fused' if 'fused' in arguments else ''}"] = _step(setting, own, eager, arguments)
        moved = passes * elements * setting.dtype.itemsize
        yield Case(f"{name} step", f"{len(own)} tensors, {elements:,}", work, moved, contenders, None, elements)


def _orthogonalization(shape: torch.Size) -> int:
    """Operations of Muon's five Newton-Schulz iterations: three products each, two of them of small matrices."""
    small, large = sorted(shape)
    return 5 * (4 * small**2 * large + 2 * small**3)


def _step(
    setting: Setting, shapes: list[torch.Size], optimizer: Callable[..., Any], arguments: dict[str, Any]
) -> Callable[[], None]:
    parameters: list[Tensor] = [setting.random(*shape, grad=True) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return optimizer(parameters, **arguments).step
