"""Pooling, forward + backward, at sizes of real networks; PyTorch in both layouts where there are two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet import functional

from .case import OURS, Case, Setting, allowed_error

TITLE = "pool"
# name, function, its arguments after the input, input's shape
POOLINGS: tuple[tuple[str, str, tuple[Any, ...], tuple[int, ...]], ...] = (
    ("max 2x2", "max_pool2d", (2,), (64, 32, 28, 28)),
    ("max 2x2", "max_pool2d", (2,), (64, 64, 56, 56)),
    ("max 3x3 (ResNet)", "max_pool2d", (3, 2, 1), (32, 64, 112, 112)),
    ("mean 2x2", "avg_pool2d", (2,), (64, 64, 56, 56)),
    ("mean 2x2 (DenseNet)", "avg_pool2d", (2,), (16, 256, 28, 28)),
    ("global mean (ResNet)", "adaptive_avg_pool2d", (1,), (32, 2048, 7, 7)),
    ("adaptive mean", "adaptive_avg_pool2d", (6,), (16, 256, 28, 28)),
    ("adaptive max", "adaptive_max_pool2d", (6,), (16, 256, 28, 28)),
    ("norm 2x2", "lp_pool2d", (2, 2), (16, 256, 28, 28)),
    ("max of 2", "max_pool1d", (2,), (32, 128, 4096)),
    ("max 2x2x2", "max_pool3d", (2,), (4, 32, 16, 56, 56)),
)


def cases(setting: Setting) -> Iterator[Case]:
    for name, function, arguments, shape in POOLINGS:
        x = setting.random(*shape)
        grad = torch.randn_like(getattr(F, function)(x, *arguments))
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape))
        layouts = {"": torch.contiguous_format, **({" channels_last": last} if last is not None else {})}
        contenders: dict[str, Callable[[], Tensor]] = {}
        for module, label in ((functional, OURS), (F, "eager")):
            pool = getattr(module, function)
            chosen = {"": last or torch.contiguous_format} if module is functional else layouts
            for suffix, layout in chosen.items():
                operands = x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
                contenders[label + suffix] = _step(pool, arguments, *operands)
        yield Case(
            f"{name}, forward + backward",
            "x".join(map(str, shape)),
            2 * x.numel(),
            2 * (x.numel() + grad.numel()) * setting.dtype.itemsize,
            contenders,
            allowed_error(setting.dtype),
            shape[0],
        )


def _step(function: Callable[..., Tensor], arguments: tuple[Any, ...], x: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    x = x.detach().requires_grad_()
    return lambda: torch.autograd.grad(function(x, *arguments), x, grad)[0]
