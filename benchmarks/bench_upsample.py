"""Bilinear upsampling by 2, forward + backward; PyTorch in both layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet.functional import interpolate

from .case import OURS, Case, Setting, allowed_error

TITLE = "upsample"
SIZES = ((8, 64, 28, 28), (4, 128, 14, 14))
LAYOUTS = {"": torch.contiguous_format, " channels_last": torch.channels_last}


def cases(setting: Setting) -> Iterator[Case]:
    for shape in SIZES:
        x, grad = setting.random(*shape), setting.random(*shape[:2], 2 * shape[2], 2 * shape[3])
        last = torch.channels_last
        contenders: dict[str, Callable[[], Tensor]] = {}
        contenders[OURS] = _step(interpolate, x.to(memory_format=last), grad.to(memory_format=last))
        for suffix, layout in LAYOUTS.items():
            operands = x.to(memory_format=layout), grad.to(memory_format=layout)
            contenders["eager" + suffix] = _step(F.interpolate, *operands)
        yield Case(
            "bilinear x2, forward + backward",
            "x".join(map(str, shape)),
            14 * grad.numel(),
            2 * (x.numel() + grad.numel()) * setting.dtype.itemsize,
            contenders,
            allowed_error(setting.dtype),
            shape[0],
        )


def _step(function: Callable[..., Tensor], x: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    x = x.detach().requires_grad_()
    return lambda: torch.autograd.grad(function(x, scale_factor=2, mode="bilinear"), x, grad)[0]
