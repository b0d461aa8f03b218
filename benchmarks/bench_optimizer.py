"""One optimizer step over the parameters of the example CNN; PyTorch with fused=True."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import OURS, Case, Setting
from tinynet import optim
from tinynet.models import build

TITLE = "optimizer"


def cases(setting: Setting) -> Iterator[Case]:
    shapes = [parameter.shape for parameter in build("cnn").parameters()]
    elements = sum(shape.numel() for shape in shapes)
    # passes: how often memory of the parameters' size is read or written
    for name, ours, eager, arguments, passes in (
        ("AdamW", optim.AdamW, torch.optim.AdamW, {"lr": 1e-3}, 7),
        ("SGD momentum", optim.SGD, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}, 5),
    ):
        yield Case(
            f"{name} step",
            f"{len(shapes)} tensors, {elements:,}",
            10 * elements,
            passes * elements * setting.dtype.itemsize,
            {
                OURS: _step(setting, shapes, ours, arguments),
                "eager fused": _step(setting, shapes, eager, {**arguments, "fused": True}),
            },
            None,
            elements,
        )


def _step(
    setting: Setting, shapes: list[torch.Size], optimizer: Callable[..., Any], arguments: dict[str, Any]
) -> Callable[[], None]:
    parameters: list[Tensor] = [setting.random(*shape, grad=True) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return optimizer(parameters, **arguments).step
