"""Max and average pooling 2x2, forward + backward; PyTorch in both layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import OURS, Case, Setting, allowed_error
from tinynet.functional import avg_pool2d, max_pool2d

TITLE = "pool"
SIZES = ((64, 32, 28, 28), (64, 64, 56, 56))
LAYOUTS = {"": torch.contiguous_format, " channels_last": torch.channels_last}


def cases(setting: Setting) -> Iterator[Case]:
    for shape in SIZES:
        for name, ours, eager in (
            ("max_pool2d 2x2", max_pool2d, F.max_pool2d),
            ("avg_pool2d 2x2", avg_pool2d, F.avg_pool2d),
        ):
            x, grad = setting.random(*shape), setting.random(*shape[:2], shape[2] // 2, shape[3] // 2)
            contenders: dict[str, Callable[[], Tensor]] = {}
            last = torch.channels_last
            contenders[OURS] = _step(ours, x.to(memory_format=last), grad.to(memory_format=last))
            for suffix, layout in LAYOUTS.items():
                contenders["eager" + suffix] = _step(eager, x.to(memory_format=layout), grad.to(memory_format=layout))
            yield Case(
                f"{name}, forward + backward",
                "x".join(map(str, shape)),
                2 * x.numel(),
                2 * (x.numel() + grad.numel()) * setting.dtype.itemsize,
                contenders,
                allowed_error(setting.dtype),
                shape[0],
            )


def _step(function: Callable[..., Tensor], x: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    x = x.detach().requires_grad_()
    return lambda: torch.autograd.grad(function(x, 2), x, grad)[0]
