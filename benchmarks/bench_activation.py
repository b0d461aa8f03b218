"""Elementwise activations, forward and backward: limited by memory bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet.functional import gelu, glu, prelu, relu

from .case import OURS, Case, Setting, allowed_error

TITLE = "activation"


def cases(setting: Setting) -> Iterator[Case]:
    for name, ours, eager in (("relu", relu, F.relu), ("gelu", gelu, F.gelu), ("glu", glu, F.glu)):
        for elements in (1 << 16, 1 << 22):
            yield from both_directions(setting, name, ours, eager, (elements // 256, 256))
    # One slope for each channel of images, whose gradients are sums.
    yield from both_directions(setting, "prelu", prelu, F.prelu, (32, 64, 56, 56), setting.random(64, grad=True))


def both_directions(
    setting: Setting,
    name: str,
    ours: Callable[..., Tensor],
    eager: Callable[..., Tensor],
    shape: tuple[int, ...],
    *parameters: Tensor,
) -> Iterator[Case]:
    x = setting.random(*shape, grad=True)
    frozen = [tensor.detach() for tensor in (x, *parameters)]
    y, z = ours(x, *parameters), eager(x, *parameters)
    grad = torch.randn_like(y)
    inputs = (x, *parameters)
    elements, size = x.numel(), x.element_size()
    text = "x".join(map(str, shape))
    yield Case(
        f"{name}, forward",
        text,
        elements,
        (elements + y.numel()) * size,
        {
            OURS: lambda: ours(*frozen),
            "eager": lambda: eager(*frozen),
            **setting.compiled(eager, *frozen),
        },
        allowed_error(setting.dtype),
        elements,
        family=f"{name}, forward",
    )
    yield Case(
        f"{name}, backward",
        text,
        elements,
        (2 * elements + y.numel()) * size,
        {
            OURS: lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True),
            "eager": lambda: torch.autograd.grad(z, inputs, grad, retain_graph=True),
        },
        allowed_error(setting.dtype, elements if parameters else 1),
        elements,
        family=f"{name}, backward",
    )
